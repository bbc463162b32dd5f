"""Waiting for py-rattler, which is asynchronous, from code that is not."""

from __future__ import annotations

import asyncio
import atexit
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

# The thread that hands over a result drops Python objects after that, and an interpreter that ends meanwhile crashes: 8
# of 60 programs did that ended right after a solve, none of 60 with this rest, in which it gets the lock it waits for.
atexit.register(time.sleep, 0.02)


def wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of py-rattler; return or raise what it does."""
    return asyncio.run(coroutine)

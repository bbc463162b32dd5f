"""Waiting for py-rattler, which is asynchronous, from code that is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_REST = 0.02


def wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of py-rattler; return or raise what it does."""
    try:
        return asyncio.run(coroutine)
    finally:
        # The thread that hands over a result drops Python objects after that, and an interpreter that ends meanwhile
        # crashes: 8 of 60 programs that did nothing after their solve did. While we sleep it gets the lock it waits for.
        time.sleep(_REST)

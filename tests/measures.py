"""Measures of what code costs that do not depend on how busy the machine is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any


def calls(do: Callable[[], object], look: Callable[..., object] | None = None) -> tuple[int, int]:
    """Calls of functions that ``do`` makes, and the most of them from one call of ``look`` to the next."""
    code = None if look is None else look.__code__
    total = between = most = 0

    def count(frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal total, between, most
        if event not in ("call", "c_call"):
            return
        total += 1
        between += 1
        if frame.f_code is code:
            most, between = max(most, between), 0

    sys.setprofile(count)
    try:
        do()
    finally:
        sys.setprofile(None)
    return total, max(most, between)


def least_seconds(do: Callable[[], object], tries: int = 3) -> float:
    """Processor time of this thread for the quickest of some tries: what disturbs one seldom disturbs all of them."""

    def once() -> float:
        before = time.thread_time()
        do()
        return time.thread_time() - before

    return min(once() for _ in range(tries))

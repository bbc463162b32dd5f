"""What a schema may cost: time, and the size of what is made of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from ..capi.interrupts import is_unwanted
from ..errors import LimitReachedError

T = TypeVar("T")

#: How deep a schema may apply others to the same value (``allOf`` in ``anyOf`` in ``$ref`` …), and how deep a value that is
#: compared may be nested.
DEPTH = 200
#: Ways in which the alternatives of one schema may be combined.
ALTERNATIVES = 2000
#: States of an automaton for strings.
STATES = 6000
#: Rules that bounds of numbers or of counts may take.
STEPS = 40_000


_current: ContextVar[Budget | None] = ContextVar("_current", default=None)


def tick() -> None:
    """Checks the time of the budget that is :meth:`~Budget.used`; for what is kept from one schema to the next, and has none."""
    budget = _current.get()
    if budget is not None:
        budget.tick()


_steps = itertools.count()


def tick_sometimes() -> None:
    """As :func:`tick`, every 64th time: for what is done once for each part of a schema, a pattern or a grammar."""
    if next(_steps) & 63 == 0:
        tick()


class Budget:
    """Counts what is used of ``seconds`` and of ``n_bytes`` of grammar.

    Raises:
        LimitReachedError: in its methods, when nothing is left.
    """

    def __init__(self, seconds: float, n_bytes: int) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._bytes = self._n_bytes = n_bytes

    @contextmanager
    def used(self) -> Iterator[Budget]:
        """Lets :func:`tick` check this one meanwhile."""
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)

    def tick(self) -> None:
        """Checks the time, and whether anybody still waits."""
        if time.monotonic() > self._end:
            raise LimitReachedError(
                f"the JSON schema takes more than {self._seconds:g} s to read.", remedy="Simplify it, or raise Limits(seconds=…)."
            )
        if is_unwanted():
            raise LimitReachedError("nobody waits any more for the JSON schema to be read.")

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """The items, with the time checked between them."""
        for item in items:
            self.tick()
            yield item

    def spend(self, n_bytes: int) -> None:
        """Takes so many bytes of what the grammar may have."""
        self._bytes -= n_bytes
        if self._bytes < 0:
            raise LimitReachedError(
                f"the JSON schema makes a grammar of more than {self._n_bytes} bytes.",
                remedy="Simplify it, or raise Limits(grammar_bytes=…).",
            )

"""Keeps what a signal handler raises (Ctrl-C) until a native call has returned.

Python runs signal handlers in the main thread as soon as that executes bytecode. While a native call lasts, that is
inside the engine's callbacks (log, progress), out of which ctypes passes no exception: it prints it, and Ctrl-C is lost.
"""

from __future__ import annotations

# signal.signal() also looks for enumerators, which takes ten times as long
import _signal  # type: ignore[import-not-found]  # no stubs have it
import signal
import threading
from collections.abc import Callable
from contextvars import ContextVar
from types import FrameType
from typing import Any

# those that programs let raise: Ctrl-C, being told to stop, a time limit
_SIGNALS = (signal.SIGALRM, signal.SIGTERM, signal.SIGINT)

#: Set by who hands work to another thread and may lose interest in it: whether that has happened. None is never.
unwanted: ContextVar[Callable[[], bool] | None] = ContextVar("unwanted", default=None)


def is_unwanted() -> bool:
    """Whether nobody waits any more for what this thread does, so that it had better end."""
    asked = unwanted.get()
    return asked is not None and asked()


class DeferredInterrupts:
    """While it is entered, Python's signal handlers run as ever, but what they raise is raised on leaving.

    It costs two or three microseconds, and nothing happens outside of the main thread, where no handler runs.

    Attributes:
        pending: what will be raised. A callback of the engine can end the call early when it is set.

    Example:
        >>> with DeferredInterrupts() as interrupts:
        ...     pointer = long_native_call(lambda: interrupts.pending is None)
    """

    __slots__ = ("_handlers", "pending")

    def __init__(self) -> None:
        self._handlers: list[tuple[int, Callable[[int, FrameType | None], Any]]] = []
        self.pending: BaseException | None = None

    def __enter__(self) -> DeferredInterrupts:
        if threading.get_ident() != threading.main_thread().ident:
            return self
        try:
            for number in _SIGNALS:
                handler = _signal.getsignal(number)
                if callable(handler):
                    self._handlers.append((number, handler))
                    _signal.signal(number, self)
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._handlers:
            self._restore()
            if self.pending is not None:
                # without the callback's frames, which hold this object
                raise self.pending.with_traceback(None)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        try:
            dict(self._handlers)[number](number, frame)
        except BaseException as error:
            self.pending = self.pending or error

    def _restore(self) -> None:
        try:
            for number, handler in self._handlers:
                # one that the program set meanwhile stays
                if _signal.getsignal(number) is self:
                    _signal.signal(number, handler)
        except BaseException:
            # a signal that was given back can raise here at once; the others are given back all the same
            self._restore()
            raise

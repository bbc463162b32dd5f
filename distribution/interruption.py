"""Signals that end a run: each becomes an exception, so that what is temporary is cleared away, but not in the midst of that.

``Ctrl-C`` raises KeyboardInterrupt; SIGTERM and SIGHUP raise SystemExit with the status a shell expects. Inside ``deferred`` they
wait for its end.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

_PATIENCE = 5
"""Seconds that a program has to end after it was asked to."""


class Pending:
    """The signal that came while signals are deferred, if one did."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._tell: Callable[[], object] | None = None
        self._released = False

    def come(self, number: int) -> None:
        """A signal came. The first one counts."""
        if self._released:
            _raise(number)
        if self.number is None:
            self.number = number
            if self._tell:
                self._tell()

    def tell(self, callback: Callable[[], object]) -> None:
        """Call this, once, when a signal comes, or now if one came before."""
        self._tell = callback
        if self.number is not None:
            callback()

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Let signals raise again, beginning with the one that came before."""
        self._released = True
        try:
            if self.number is not None:
                number, self.number = self.number, None
                _raise(number)
            yield
        finally:
            self._released = False


_deferrals: list[Pending] = []


def install() -> None:
    """Have the signals raise. One that is ignored stays so: ``nohup``, and what a shell starts in the background."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _receive)


def _receive(number: int, frame: FrameType | None) -> None:
    if _deferrals:
        _deferrals[-1].come(number)
    else:
        _raise(number)


def _raise(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


@contextlib.contextmanager
def deferred() -> Iterator[Pending]:
    """Finish what is inside before a signal raises. Signals raise in the main thread alone: elsewhere nothing has to wait."""
    pending = Pending()
    if threading.current_thread() is not threading.main_thread():
        yield pending
        return
    _deferrals.append(pending)
    try:
        yield pending
    except (KeyboardInterrupt, SystemExit):
        # it ends already
        pending.number = None
        raise
    finally:
        _deferrals.remove(pending)
        if pending.number is not None:
            if _deferrals:
                _deferrals[-1].come(pending.number)
            else:
                _raise(pending.number)


def run_program(command: Sequence[str], seconds: float | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` for text, whose program has ended whatever happens.

    Nothing writes on into a folder that is being removed.

    Raises:
        subprocess.TimeoutExpired: it took longer than ``seconds``.
        OSError: it cannot be started.
    """
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with deferred() as pending:
        process = subprocess.Popen(command, text=True, errors="replace", **options)
        try:
            with pending.released():
                out, err = process.communicate(timeout=seconds)
        except BaseException:
            # not killed at once: git ends the child through which it fetches
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_PATIENCE)
            process.kill()
            process.communicate()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)

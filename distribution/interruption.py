"""Signals that end a run: each becomes an exception, so that what is temporary is cleared away, but not in the midst of that.

``Ctrl-C`` raises KeyboardInterrupt; SIGTERM and SIGHUP raise SystemExit with the status a shell expects. Inside ``deferred`` they
wait for its end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
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


def run_program(
    command: Sequence[str], seconds: float | None = None, each_line: Callable[[str], object] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` for text, whose program has ended whatever happens.

    Nothing writes on into a folder that is being removed.

    Args:
        each_line: is given every line as it comes, of stderr, too; what is returned has none of them then. ``seconds`` do not
            count before the last one.
        start_new_session: (among ``options``) what the program itself has started ends with it, too.

    Raises:
        subprocess.TimeoutExpired: it took longer than ``seconds``.
        OSError: it cannot be started.
    """
    stderr = subprocess.STDOUT if each_line else subprocess.PIPE
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": stderr, **options}
    with deferred() as pending:
        process = subprocess.Popen(command, text=True, errors="replace", **options)
        try:
            with pending.released():
                if each_line and process.stdout:
                    for line in process.stdout:
                        each_line(line)
                out, err = process.communicate(timeout=seconds)
        except BaseException:
            together = bool(options.get("start_new_session"))
            # not killed at once: git ends the child through which it fetches
            _send(process, signal.SIGTERM, together)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_PATIENCE)
            if together:
                _wait_for_group(process.pid, _PATIENCE)
            _send(process, signal.SIGKILL, together)
            process.communicate()
            if together:
                _wait_for_group(process.pid, 1)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _send(process: subprocess.Popen[str], number: int, together: bool) -> None:
    """Signal a program, ``together`` with what it has started; one that has ended gets nothing."""
    if not together:
        process.send_signal(number)
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _wait_for_group(group: int, seconds: float) -> None:
    """Wait until all have ended that a program had started; a compiler that is killed leaves half a file."""
    over = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < over:
            os.killpg(group, 0)
            time.sleep(0.05)

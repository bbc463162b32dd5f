"""What the commands say. Results go to stdout, everything else to stderr, so that stdout can be piped."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import DistributionError

STDERR = 2
"""For a subprocess's stdout: the file descriptor, also where a program has replaced ``sys.stderr``."""

DEBUG_VARIABLE = "LLAMA_CPP_DEBUG"
_LONGEST = 6000
"""Characters of a message, which may repeat what somebody else wrote."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_BLANK = re.compile(r"^\s+")
# a terminal would obey these, and what is said may come from a server or a file
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def say(message: str) -> None:
    """Print a line of progress."""
    # where stderr is closed there is none, and print() would take stdout
    if sys.stderr is not None:
        print(message.translate(_CONTROLS), file=sys.stderr, flush=True)


def megabytes(size: int) -> str:
    """``size`` bytes, for people.

    >>> megabytes(76_589_250)
    '76.6 MB'
    """
    return f"{size / 1e6:,.1f} MB"


def run(action: Callable[[], int | None]) -> int:
    """Run what a command does; say what was wrong and what to do about it. Return the exit status.

    A reader of stdout or stderr that goes away is no error: the work goes on, and what is printed is dropped.
    """
    _open_closed_streams()
    # when what stderr is for cannot be said, nobody can be told
    with _forgiving("stdout", BrokenPipeError), _forgiving("stderr", OSError):
        try:
            status = _attempt(action)
        finally:
            written = _flush_results()
    return status if written else status or 1


def _attempt(action: Callable[[], int | None]) -> int:
    try:
        return action() or 0
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except (SystemExit, GeneratorExit):
        raise
    # py-rattler's panics are no Exception
    except BaseException as error:
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        message, remedy = _explain(error)
        # a path may begin with a newline
        message = _BLANK.sub(lambda found: found[0].encode("unicode_escape").decode(), message)
        say(f"error: {_shortened(message)}")
        if remedy:
            say(f"  remedy: {_shortened(remedy)}")
        return 1


def _explain(error: BaseException) -> tuple[str, str]:
    """What is wrong, and what to do about it."""
    if isinstance(error, DistributionError):
        return error.message, error.remedy
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("distribution"):
        return f"{sys.executable} has no {error.name}", "make tools, and run this with .venv/bin/python"
    if isinstance(error, MemoryError):
        return "there is not enough memory", "close other programs, or run this on a machine that has more"
    if isinstance(error, OSError) and error.errno is not None:
        return _explain_system_error(error)
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" ({Path(last[0].filename).name}:{last[0].lineno})" if last else ""
    return (
        f"internal error: {type(error).__name__}: {str(error)[:500]}{place}",
        f"this should not happen: {DEBUG_VARIABLE}=1 shows where it does; please report it with that",
    )


def _shortened(text: str) -> str:
    return text if len(text) < _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


def _explain_system_error(error: OSError) -> tuple[str, str]:
    # it says what is going on by means of this module
    from .files import other_place

    files = (error.filename, error.filename2)
    names = [os.fsdecode(one) for one in files if one and isinstance(one, (str, bytes, os.PathLike))]
    reason = error.strerror or str(error)
    message = f"{' → '.join(names)}: {reason}" if names else reason
    if error.errno in _FULL:
        return message, "free some space, or use another disk"
    if error.errno in _FORBIDDEN:
        return message, f"look at who may write and read there, or {other_place(names[-1] if names else '')}"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return message, "allow more open files (ulimit -n)"
    return message, f"look at {names[-1]}, or {other_place(names[-1])}" if names else ""


def _open_closed_streams() -> None:
    # what is opened next would take the number of a closed one, and be written to by every program that is started
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # the lowest number that is free
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            if getattr(sys, name) is None:
                setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - for as long as this runs


@contextlib.contextmanager
def _forgiving(name: str, kind: type[OSError]) -> Iterator[None]:
    """Let the stream ``sys.<name>`` lose its reader, as ``kind`` of error shows, and take every text."""
    before = getattr(sys, name)
    with contextlib.suppress(AttributeError, ValueError):
        before.reconfigure(errors="bytes-else-escaped")
    setattr(sys, name, before and _Stream(before, kind))
    try:
        yield
    finally:
        setattr(sys, name, before)


class _Stream:
    """A stream that drops what it is given once its reader has gone away."""

    def __init__(self, stream: Any, gone: type[OSError]) -> None:
        self._stream, self._gone = stream, gone

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except self._gone:
            _send_to_nowhere(self._stream)
        except OSError as error:
            raise OSError(error.errno, error.strerror, "the results (stdout)") from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _flush_results() -> bool:
    """Write out what is left of the results, as the interpreter would only do when nobody can say any more that it failed."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        return True
    except OSError as error:
        say(f"error: {_explain_system_error(error)[0]}")
        _send_to_nowhere(sys.stdout)
        return False


def _send_to_nowhere(stream: Any) -> None:
    # the number stays in use, and what the stream holds still has a place to go
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def _bytes_else_escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """For texts that cannot be encoded: names of files as the bytes they are, other characters as escapes."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error("bytes-else-escaped", _bytes_else_escaped)

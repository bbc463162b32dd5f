"""What the commands say. Results go to stdout, everything else to stderr, so that stdout can be piped."""

from __future__ import annotations

import sys
from collections.abc import Callable

from .errors import DistributionError

STDERR = 2
"""For a subprocess's stdout: the file descriptor, also where a program has replaced ``sys.stderr``."""


def say(message: str) -> None:
    """Print a line of progress."""
    print(message, file=sys.stderr, flush=True)


def megabytes(size: int) -> str:
    """``size`` bytes, for people.

    >>> megabytes(76_589_250)
    '76.6 MB'
    """
    return f"{size / 1e6:,.1f} MB"


def run(action: Callable[[], int | None]) -> int:
    """Run what a command does; say what was wrong and what to do about it. Return the exit status."""
    try:
        return action() or 0
    except DistributionError as error:
        say(f"error: {error.message}")
        if error.remedy:
            say(f"  remedy: {error.remedy}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130

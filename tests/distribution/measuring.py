"""What a call costs, in a process of its own that may have 4 GiB of memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHILD = """
import resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
sys.path.insert(0, {here!r})
from damaged_packages import most_memory
from distribution.errors import {expected}
{first}
started, before = time.monotonic(), most_memory()
try:
    {call}
    said = "accepted"
except {expected} as error:
    said = error.message.partition("\\n")[0]
print(said, (most_memory() - before) >> 20, round(time.monotonic() - started), sep="\\n")
"""


def measured(first: str, call: str, expected: str, *arguments: object) -> tuple[str, int, int]:
    """What a call says first, or ``accepted``; the MiB by which the process grew meanwhile, and the seconds that it took.

    Args:
        first: a line of code that imports what the call needs.
        call: a line of code; ``arguments`` are in ``sys.argv``.
        expected: the name of the error that it may raise.
    """
    code = CHILD.format(here=str(Path(__file__).parent), first=first, call=call, expected=expected)
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    said, grown, seconds = done.stdout.splitlines()
    return said, int(grown), int(seconds)

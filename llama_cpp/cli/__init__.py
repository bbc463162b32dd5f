"""The ``llama-cpp`` command."""

from __future__ import annotations

import os
import re
import sys


def main() -> None:
    """Runs the command line; an error of ours is one message and exit status 1, without a traceback.

    Who does not read the output any more is no error; a disk that is full is one.
    """
    from ..errors import LlamaCppError
    from .app import app

    try:
        try:
            app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _leave_stdout()
    except SystemExit as ended:
        if not isinstance(ended.__context__, BrokenPipeError):  # which is a failure to click
            raise
        _leave_stdout()
    except LlamaCppError as error:
        print(f"error: {for_command_line(str(error))}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.filename is not None:
            raise
        _leave_stdout()
        print(f"error: the output could not be written: {error.strerror}.", file=sys.stderr)
        sys.exit(1)


def for_command_line(text: str) -> str:
    """A message in which arguments are written as the command's flags: ``n_ctx=4096`` is ``--n-ctx 4096``."""
    return re.sub(r"\b(n_ctx|n_gpu_layers|max_tokens)=(-?\d+)", lambda found: f"--{found[1].replace('_', '-')} {found[2]}", text)


def _leave_stdout() -> None:
    """What is still to be written goes nowhere, instead of failing once more when the interpreter ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)

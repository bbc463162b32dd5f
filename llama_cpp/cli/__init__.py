"""The ``llama-cpp`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; an error of ours is one message and exit status 1, without a traceback."""
    from ..errors import LlamaCppError
    from .app import app

    try:
        app()
    except LlamaCppError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)

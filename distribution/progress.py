"""A progress bar for terminals, and a line now and then for logs."""

from __future__ import annotations

import shutil
import sys
import time


class Bar:
    """Shows how far a long step is. Use as a context manager.

    On a terminal it is one line that is drawn again; elsewhere (CI) a line every half minute.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._terminal = sys.stderr.isatty()
        self._started = time.monotonic()
        self._drawn = self._started
        self._width = 0

    def __enter__(self) -> Bar:
        self._draw(f"{self._label} …")
        return self

    def __exit__(self, *_: object) -> None:
        self._erase()

    def note(self, text: str) -> None:
        """A line that stays."""
        self._erase()
        print(f"  {text}", file=sys.stderr, flush=True)

    def update(self, done: int, total: int) -> None:
        """``done`` of ``total`` steps."""
        now = time.monotonic()
        if not self._terminal and now - self._drawn < 30 and done < total:
            return
        self._drawn = now
        share = done / total if total else 0
        filled = int(share * 30)
        elapsed = int(now - self._started)
        bar = "█" * filled + "░" * (30 - filled)
        self._draw(f"{self._label} {bar} {share:4.0%} {done}/{total} {elapsed // 60}:{elapsed % 60:02d}")

    def _draw(self, text: str) -> None:
        if self._terminal:
            self._erase()
            text = text[: shutil.get_terminal_size().columns - 1]
            self._width = len(text)
            print(text, end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def _erase(self) -> None:
        if self._terminal and self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)
            self._width = 0

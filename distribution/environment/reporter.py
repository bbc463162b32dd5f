"""What an installation shows while it runs."""

from __future__ import annotations

import sys

from rattler import InstallerReporter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..console import megabytes, say


class InstallationReporter(InstallerReporter):
    """A bar that counts packages and says what was downloaded; one line where there is no terminal.

    Use as a context manager. py-rattler calls the methods from threads of its own, which rich allows.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        columns = TextColumn("installing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._progress = Progress(
            *columns,
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            disable=not self._terminal,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None)
        self._downloaded: dict[int, int] = {}

    def __enter__(self) -> InstallationReporter:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_transaction_start(self, total_operations: int) -> None:
        self._progress.update(self._task, total=total_operations)
        if not self._terminal:
            say(f"installing {total_operations} packages")

    def on_archive_progress(self, index: int, size: int) -> None:
        """``size`` bytes of a package were downloaded so far."""
        self._downloaded[index] = size
        self._progress.update(self._task, description=f"{megabytes(sum(self._downloaded.values()))} downloaded")

    def on_transaction_operation_complete(self, operation: int) -> None:
        self._progress.advance(self._task)

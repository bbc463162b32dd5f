"""Writes docs/reference/compatibility.md from the markers of the tests in tests/compat; ``--check`` only compares."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "compatibility.md"

HEAD = """# What llama-cpp-python has, and what is here

`python tools/compatibility_table.py` writes this page from the tests in `tests/compat`, each of which says what it stands behind.

- *same*: code written for llama-cpp-python finds what it expects.
- *better*: it does, and the last column says what is more.
- *other*: a default or a behaviour differs, and the last column says how.
- *later*: it is accepted, and says that it comes in a later version.

[Coming from llama-cpp-python](../guides/from-llama-cpp-python.md) has the differences in sentences.

| name | how | test | |
| --- | --- | --- | --- |
"""


class Collector:
    """Notes the markers of tests that are collected."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Called by pytest with all tests."""
        for item in items:
            for mark in item.iter_markers("offers"):
                test = f"{item.path.relative_to(ROOT).as_posix()}::{item.originalname}"
                for name in mark.args:
                    if self.rows.get(name, ("same",))[0] == "same":  # what a closer test says of it counts
                        self.rows[name] = mark.kwargs["how"], test, mark.kwargs.get("note", "")


def page() -> str:
    """The page's text."""
    collector = Collector()
    arguments = ["--collect-only", "-qq", "-n", "0", "-p", "no:cacheprovider", str(ROOT / "tests" / "compat")]
    status = pytest.main(arguments, plugins=[collector])
    if status != 0:
        sys.exit("the tests in tests/compat cannot be collected")
    lines = [
        f"| `{name}` | {how} | `{test.removeprefix('tests/compat/')}` | {note} |"
        for name, (how, test, note) in sorted(collector.rows.items(), key=lambda row: row[0].lower())
    ]
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    found = page()
    if "--check" in sys.argv:
        return int(found != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(found, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""No file of a package tells where it was built, or belongs to one environment alone.

Usage: python check_files.py PREFIX PACKAGE
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# parts of folders that exist on machines that build, never where these files are used
BUILD_PATHS = (
    b"/work/native/", b"_env_placehold", b"/build_env/", b"rattler-build_", b"conda-bld", b"/llama-cpp-build/"
)  # fmt: skip
# written by whoever installs a package, with the environment's folder inside
MADE_HERE = ("unix_python_entry_point", "pyc_file")
# these tests, which name what they look for
TESTS = "etc/conda/test-files/"


def files(prefix: Path, package: str) -> Iterator[Path]:
    """Every file of an installed package, as the environment records it."""
    [record] = [
        found
        for found in (json.loads(path.read_text()) for path in (prefix / "conda-meta").glob(f"{package}-*.json"))
        if found["name"] == package
    ]
    for entry in record["paths_data"]["paths"]:
        if entry["path_type"] not in MADE_HERE and not entry["_path"].startswith(TESTS):
            yield prefix / entry["_path"]


def complaint(path: Path, prefix: Path) -> str:
    """What is wrong with one file; empty when nothing is."""
    if path.is_symlink():
        data = os.fsencode(os.readlink(path))
    else:
        data = path.read_bytes()
    for needle in (*BUILD_PATHS, os.fsencode(prefix) + b"/"):
        if (at := data.find(needle)) >= 0:
            return f"holds a path of the machine that built it: {data[max(at - 40, 0) : at + 60]!r}"
    return ""


def main(prefix: Path, package: str) -> int:
    checked = wrong = 0
    for path in files(prefix, package):
        checked += 1
        if said := complaint(path, prefix):
            print(f"FAILED: {path.relative_to(prefix)} {said}")
            wrong += 1
    print(f"{checked} files of {package} checked, {wrong} complaints")
    return 1 if wrong or not checked else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))

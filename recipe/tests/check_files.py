"""No file of a package tells where it was built, or belongs to one environment alone, and it brings along what it should.

Usage: python check_files.py PREFIX PACKAGE
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# parts of folders that exist on machines that build, never where these files are used
BUILD_PATHS = (
    b"/work/native/", b"_env_placehold", b"/build_env/", b"rattler-build_", b"conda-bld", b"/llama-cpp-build/"
)  # fmt: skip
# written by whoever installs a package, with the environment's folder inside
MADE_HERE = ("unix_python_entry_point", "pyc_file")
# these tests, which name what they look for
TESTS = "etc/conda/test-files/"
# what compiles, drivers and NCCL: never in the environment of who uses a package
UNWANTED = re.compile(r"\bgcc|\bgxx|nvcc|cmake|ninja|nccl|driver|sysroot|-dev\b|-tools\b")


def record_of(prefix: Path, package: str) -> dict[str, Any]:
    """What the environment notes of an installed package."""
    [record] = [
        found
        for found in (json.loads(path.read_text()) for path in (prefix / "conda-meta").glob(f"{package}-*.json"))
        if found["name"] == package
    ]
    return record


def files(prefix: Path, record: dict[str, Any]) -> Iterator[Path]:
    """Every file of an installed package, as the environment records it."""
    for entry in record["paths_data"]["paths"]:
        if entry["path_type"] not in MADE_HERE and not entry["_path"].startswith(TESTS):
            yield prefix / entry["_path"]


def complaint(path: Path, prefix: Path) -> str:
    """What is wrong with one file; empty when nothing is."""
    data = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
    for needle in (*BUILD_PATHS, os.fsencode(prefix) + b"/"):
        if (at := data.find(needle)) >= 0:
            return f"holds a path of the machine that built it: {data[max(at - 40, 0) : at + 60]!r}"
    return ""


def complaints_about(depends: list[str], package: str) -> Iterator[str]:
    """What is wrong with what a package brings along: compilers and the like, or any libllama but the one it was built with."""
    for one in depends:
        if UNWANTED.search(one.split()[0]):
            yield f"brings {one} into its users' environments"
    if package != "libllama" and not any(re.fullmatch(r"libllama ==?\S+ \w+", one) for one in depends):
        yield f"does not ask for one libllama alone, but for: {', '.join(depends)}"


def main(prefix: Path, package: str) -> int:
    checked = wrong = 0
    record = record_of(prefix, package)
    for said in complaints_about(record["depends"], package):
        print(f"FAILED: {package} {said}")
        wrong += 1
    for path in files(prefix, record):
        checked += 1
        if said := complaint(path, prefix):
            print(f"FAILED: {path.relative_to(prefix)} {said}")
            wrong += 1
    print(f"{checked} files of {package} checked, {wrong} complaints")
    return 1 if wrong or not checked else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))

"""What a package is made from, as files and as a digest."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from ..errors import BuildError
from ..files import REPOSITORY, sha256_of

# The sources that the recipe compiles or installs. A change in one of them renames the packages made from it.
ENGINE = ("recipe", "vendor/llama.cpp", "native", "CMakeLists.txt", "distribution/provenance.py", "llama_cpp/capi/pinned.py")
PYTHON = (*ENGINE, "llama_cpp", "pyproject.toml", "README.md", "LICENSE")
# What the package that CI inspected once depends on.
INSPECTED = ("recipe", "vendor/llama.cpp", "native", "distribution", "CMakeLists.txt")

IGNORED = {"__pycache__", "source", ".source-state"}


def files_of(names: Iterable[str], repository: Path = REPOSITORY) -> list[Path]:
    """The files below these names, without what was fetched or compiled; sorted, relative to the repository."""
    found = set()
    for name in names:
        path = repository / name
        members = path.rglob("*") if path.is_dir() else [path]
        for member in members:
            relative = member.relative_to(repository)
            inside = IGNORED.intersection(relative.parts) or any(part.startswith(".source") for part in relative.parts)
            if member.is_file() and not inside:
                found.add(relative)
    return sorted(found)


def digest_of(names: Iterable[str], repository: Path = REPOSITORY) -> str:
    """Eight hex digits that stand for the content of these files."""
    lines = [f"{path.as_posix()} {sha256_of(repository / path)}" for path in files_of(names, repository)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def export(target: Path, repository: Path = REPOSITORY) -> None:
    """Copy what a build needs to ``target``: files of the repository, and the engine's source.

    Raises:
        BuildError: the engine's source is not there.
    """
    names = (*PYTHON, "distribution", "recipe")
    for path in files_of(names, repository):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repository / path, target / path)
        (target / path).chmod(0o755 if os.access(repository / path, os.X_OK) else 0o644)
    source = repository / "vendor" / "llama.cpp"
    if not (source / "source").is_dir():
        raise BuildError("the engine's source is missing", "python -m distribution vendor")
    for name in ("source", ".source-state"):
        # hundreds of megabytes: reflinks where the file system has them
        subprocess.run(
            ["cp", "-a", "--reflink=auto", str(source / name), str(target / "vendor" / "llama.cpp" / name)], check=True
        )

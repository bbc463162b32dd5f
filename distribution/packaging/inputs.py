"""What a package is made from, as files and as a digest."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from ..errors import BuildError
from ..files import REPOSITORY, sha256_of
from ..interruption import run_program

_PIN = ("vendor/llama.cpp/pin.toml", "vendor/llama.cpp/patches")
# The sources that the recipe compiles or installs. A change in one of them renames the packages made from it.
ENGINE = ("recipe", *_PIN, "native", "CMakeLists.txt", "distribution/provenance.py", "llama_cpp/capi/pinned.py")
PYTHON = (*ENGINE, "llama_cpp", "pyproject.toml", "README.md", "LICENSE")
# The CUDA plugin alone is made with these, so that they rename no other package.
CUDA_PACKAGE = "libggml-cuda"
CUDA = ("recipe/build-cuda.sh", "recipe/NVIDIA.txt", "recipe/nvidia_licences.py", "recipe/tests/check_cuda.py")
# These rename nothing by being there: a package's hash holds those values of theirs that it uses.
VARIANTS = ("recipe/variants", "recipe/variants.yaml")
# What the package that CI inspected once depends on.
INSPECTED = ("recipe", *_PIN, "native", "distribution", "CMakeLists.txt")


def files_of(names: Iterable[str], repository: Path = REPOSITORY) -> list[Path]:
    """The files of these names and below them, without Python's caches; sorted, relative to the repository."""
    paths = [repository / name for name in names]
    found = {member for path in paths for member in (path.rglob("*") if path.is_dir() else [path]) if member.is_file()}
    return sorted(path.relative_to(repository) for path in found if "__pycache__" not in path.parts)


def digest_of(names: Iterable[str], repository: Path = REPOSITORY, without: Iterable[str] = ()) -> str:
    """Eight hex digits that stand for the content of these files, those of ``without`` left out."""
    files = sorted({*files_of(names, repository)} - {*files_of(without, repository)})
    lines = [f"{path.as_posix()} {sha256_of(repository / path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def export(target: Path, repository: Path = REPOSITORY) -> None:
    """Copy what a build needs to ``target``: files of the repository, and the engine's source.

    Raises:
        BuildError: the engine's source is not there, or cannot be copied.
    """
    for path in files_of((*PYTHON, "distribution"), repository):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repository / path, target / path)
        (target / path).chmod(0o755 if os.access(repository / path, os.X_OK) else 0o644)
    source = repository / "vendor" / "llama.cpp"
    if not (source / "source").is_dir():
        raise BuildError("the engine's source is missing", "python -m distribution vendor")
    for name in ("source", ".source-state"):
        # hundreds of megabytes: reflinks where the file system has them
        done = run_program(["cp", "-a", "--reflink=auto", str(source / name), str(target / "vendor" / "llama.cpp" / name)])
        if done.returncode:
            raise BuildError(f"the engine's source cannot be copied: {done.stderr.strip()}", f"free some space in {target}")


def digests(repository: Path = REPOSITORY) -> dict[str, str]:
    """What the recipe's variant keys ``<name>_inputs`` are, by that name."""
    shared = (*CUDA, *VARIANTS)
    return {
        "engine": digest_of(ENGINE, repository, without=shared),
        "python": digest_of(PYTHON, repository, without=shared),
        "cuda": digest_of(CUDA, repository),
    }


if __name__ == "__main__":
    # for the recipe's scripts: what the packages of a plain `conda build` are made from, which does not stand in their names
    found = digests()
    print(" ".join(found[name] for name in sys.argv[1:]))

"""Installs a package once, where nobody uses it, with the code that installs it later, and compares what came out.

Reading a package with care says what it holds. That the installer takes it, and takes it so, only the installer can tell.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rattler import PackageRecord, RepoDataRecord, install

from ..conda_archive import BLOCK, shown
from ..console import megabytes
from ..errors import DiskSpaceError
from ..files import remove_for_good, remove_tree
from ..interruption import deferred
from ..rattler_async import wait
from ..seed import conda_package

PYTHON = (3, 12)
"""The version of the stand-in for Python that packages for every Python are installed with."""
_MEMORY = Path("/dev/shm")
_SMALL = 256 << 20
_PREFIX = "llama-cpp-trial-"
_PAGE = 4096
_YOUNG = 60
# py-rattler gives the operating system's error as text
_NUMBER = re.compile(r"os error (\d+)")
_OF_THE_MACHINE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EACCES, errno.EPERM,
    errno.EROFS,
}  # fmt: skip
# what the installer itself writes: its records, and a note to backup programs that the folder can be made again
_OF_THE_INSTALLER = {"conda-meta", "CACHEDIR.TAG"}


class File(NamedTuple):
    """A file of a package: its size in bytes, its SHA-256, and whether it can be run."""

    size: int
    sha256: bytes
    executable: bool


@dataclass
class Contents:
    """All that is in a package, ``info/`` included: files, the targets of symbolic links, and how many folders."""

    files: dict[str, File] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: int = 0


@dataclass(frozen=True)
class Expected:
    """What an installation must bring about.

    Attributes:
        contents: what is unpacked.
        places: where each path of the payload ends up in the environment.
        relocated: paths of the payload whose files are changed by that.
        commands: programs made in ``bin/``.
    """

    contents: Contents
    places: Mapping[str, str]
    relocated: frozenset[str]
    commands: tuple[str, ...]


def install_once(package: Path, index: bytes, noarch_python: bool, expected: Expected, folder: Path) -> None:
    """Unpack a package and make an environment of it alone, compare both with what they should be, and remove them.

    Small packages are installed in memory, where there is a file system for that.

    Args:
        index: its ``info/index.json``.
        folder: where there is room for it.

    Raises:
        ValueError: the installer refuses it, or makes something else of it.
        DiskSpaceError: there is no room.
    """
    with _scratch(expected, folder) as scratch:
        described = scratch / "index.json"
        described.write_bytes(index)
        python = [_stand_in_for_python(scratch)] if noarch_python else []
        prefix, cache = scratch / "environment", scratch / "packages"
        _install([(package, described), *python], prefix, cache)
        unpacked = cache / package.name.removesuffix(".conda")
        _compare_unpacked(unpacked, expected.contents)
        _compare_installed(prefix, unpacked, expected)


def _install(packages: list[tuple[Path, Path]], prefix: Path, cache: Path) -> None:
    """Install packages, each given with a file of what its index says."""
    try:
        records = [
            RepoDataRecord(PackageRecord.from_index_json(index), package.name, package.as_uri(), package.parent.as_uri())
            for package, index in packages
        ]
        wait(install(records, target_prefix=prefix, cache_dir=cache, show_progress=False, execute_link_scripts=False))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    # a panic in py-rattler is no Exception
    except BaseException as error:
        reason = (str(error).splitlines() or [repr(error)])[-1].strip().removeprefix("Caused by: ")
        found = _NUMBER.search(str(error))
        if found and int(found[1]) in _OF_THE_MACHINE:
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(prefix.parent)) from None
        raise ValueError(f"the installer refuses it: {shown(reason)}") from None


def _stand_in_for_python(scratch: Path) -> tuple[Path, Path]:
    program = f"bin/python{PYTHON[0]}.{PYTHON[1]}"
    version = f"{PYTHON[0]}.{PYTHON[1]}.0"
    made = conda_package.write(
        conda_package.SeedPackage("python", version, files={program: conda_package.PackedFile(b"")}), scratch
    )
    build = made.stem.rsplit("-", 1)[1]
    described = scratch / "python.json"
    index = {"name": "python", "version": version, "build": build, "build_number": 0, "subdir": "linux-64"}
    described.write_text(json.dumps(index))
    return made, described


def _compare_unpacked(folder: Path, contents: Contents) -> None:
    left = contents.files.keys() | contents.links.keys()
    for path, entry in _walk(folder):
        if (entry.is_symlink() and contents.links.get(path) == os.readlink(entry.path)) or (
            entry.is_file(follow_symlinks=False) and contents.files.get(path) == _file(entry)
        ):
            left.discard(path)
        elif path != "info/repodata_record.json":
            raise ValueError(f"the installer unpacks {shown(path)} otherwise than it is in the package")
    if left:
        raise ValueError(f"the installer does not unpack {shown(min(left))}")


def _compare_installed(prefix: Path, unpacked: Path, expected: Expected) -> None:
    sources = {place: path for path, place in expected.places.items()}
    made = {f"bin/{name}" for name in expected.commands} | {f"bin/python{PYTHON[0]}.{PYTHON[1]}"}
    for path, entry in _walk(prefix):
        source = sources.pop(path, None)
        if source is None:
            if path in made or path.split("/")[0] in _OF_THE_INSTALLER:
                continue
            raise ValueError(f"the installer adds {shown(path)}")
        if source in expected.contents.links:
            same = entry.is_symlink() and os.readlink(entry.path) == expected.contents.links[source]
        elif not entry.is_file(follow_symlinks=False):
            same = False
        else:
            # mostly it is the unpacked file itself, which was compared already
            same = (
                source in expected.relocated
                or os.path.samestat(entry.stat(follow_symlinks=False), os.lstat(unpacked / source))
                or expected.contents.files[source] == _file(entry)
            )
        if not same:
            raise ValueError(f"the installer makes something else of {shown(source)}")
    if sources:
        raise ValueError(f"the installer leaves out {shown(min(sources.values()))}")


def _walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below a folder that is no folder, with its path."""
    waiting = [""]
    while waiting:
        start = waiting.pop()
        with os.scandir(folder / start) as entries:
            for entry in entries:
                path = f"{start}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{path}/")
                else:
                    yield path, entry


def _file(entry: os.DirEntry[str]) -> File:
    digest = hashlib.sha256()
    with open(entry.path, "rb", buffering=0) as file:
        mode = os.fstat(file.fileno())
        while block := file.read(BLOCK):
            digest.update(block)
    return File(mode.st_size, digest.digest(), bool(mode.st_mode & 0o111))


@contextlib.contextmanager
def _scratch(expected: Expected, folder: Path) -> Iterator[Path]:
    # what is unpacked becomes part of the environment by a hard link, where it is not changed
    files = expected.contents.files
    count = len(files) + len(expected.contents.links) + expected.contents.folders
    needed = sum(-file.size % _PAGE + file.size for file in [*files.values(), *(files[one] for one in expected.relocated)])
    needed += 2 * _PAGE * count + (1 << 20)
    for place in (_MEMORY, folder) if needed <= _SMALL else (folder,):
        if os.access(place, os.W_OK | os.X_OK) and shutil.disk_usage(place).free > needed:
            break
    else:
        raise DiskSpaceError(
            f"installing the package on trial needs {megabytes(needed)} in {folder}, and "
            f"{megabytes(shutil.disk_usage(folder).free)} are free",
            "free some space there",
        )
    # a signal does not keep it from being removed
    with deferred() as signals:
        _sweep(place)
        made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        try:
            lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            made.rmdir()
            raise
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with signals.released():
                yield made
        except BaseException:
            remove_for_good(made)
            raise
        finally:
            remove_tree(made)
            os.close(lock)


def _sweep(place: Path) -> None:
    """Remove what killed ones left behind. A living one holds a lock, but for the moment in which it is made."""
    for left in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                found = os.fstat(lock)
                if found.st_uid == os.getuid() and time.time() - found.st_mtime > _YOUNG:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_tree(left)
            finally:
                os.close(lock)

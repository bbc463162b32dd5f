"""What is inside a ``.conda`` file, and whether all of it is there."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rattler import MatchSpec, PackageRecord
from rattler.package.build_string import BuildString
from rattler.package_streaming import PackageArchive

from ..errors import DamagedPackageError
from ..files import sha256_of
from ..waiting import wait

OURS = ("libllama", "libggml-cuda", "llama.cpp", "llama-cpp-python")
"""The packages that are built here, which belong together."""

SUBDIRS = ("linux-64", "noarch")

@dataclass(frozen=True)
class Package:
    """A conda package as it describes itself.

    Attributes:
        subdir: the folder of a channel it belongs in.
        sha256: of the file, in hex; ``size`` is in bytes.
        depends: match specifications of what must be installed beside it.
        extra: free-form notes of whoever built it (``extra`` in ``info/about.json``).
    """

    name: str
    version: str
    build: str
    build_number: int
    subdir: str
    sha256: str
    size: int
    depends: tuple[str, ...]
    extra: Mapping[str, Any]

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.version}-{self.build}.conda"

    @property
    def path(self) -> str:
        """Where it lies in a channel."""
        return f"{self.subdir}/{self.file_name}"

    @property
    def is_ours(self) -> bool:
        return self.name in OURS

    @property
    def llama_cpp_commit(self) -> str | None:
        """The commit a package of ours was built from; None where it does not say, and for other packages."""
        return self.extra.get("llama_cpp_commit") if self.is_ours else None

    def satisfies(self, dependency: str) -> bool:
        """Whether this package is one that ``dependency`` accepts."""
        record = PackageRecord(self.name, self.version, BuildString(self.build), self.build_number, self.subdir)
        return MatchSpec(dependency).matches(record)

    @classmethod
    def from_record(cls, record: Mapping[str, Any], commit: str | None = None) -> Package:
        """The package that an entry of ``repodata.json`` describes."""
        return cls(
            record["name"], record["version"], record["build"], record["build_number"], record["subdir"],
            record["sha256"], record["size"], tuple(record["depends"]), {"llama_cpp_commit": commit} if commit else {},
        )  # fmt: skip


def inspect(path: Path, visit: Callable[[str, bytes], None] | None = None) -> Package:
    """Read a package to its last byte and check that every file in it is there and unaltered.

    Args:
        visit: called with the path and content of every file in the package's payload.

    Raises:
        DamagedPackageError: it is not a ``.conda`` file, or not a whole one, or not what its name says.
        OSError: it cannot be read.
    """
    if path.suffix != ".conda":
        raise DamagedPackageError(f"{path.name} is not a .conda file", "name files that end in .conda")
    size, digest = path.stat().st_size, sha256_of(path)
    try:
        _check_container(path)
        index, about = wait(_check_members(path, visit))
        package = Package(
            str(index["name"]), str(index["version"]), str(index["build"]), int(index["build_number"]),
            str(index.get("subdir") or ""), digest, size, tuple(index.get("depends") or ()), dict(about.get("extra") or {}),
        )  # fmt: skip
    except (DamagedPackageError, MemoryError):
        raise
    except Exception as error:
        # half a file shows as any of a dozen kinds of exception, of zipfile's and of the unpacker's
        raise _damaged(path, str(error).splitlines()[0] if str(error) else repr(error)) from None
    if package.file_name != path.name:
        raise DamagedPackageError(
            f"{path.name} says that it is {package.file_name}", "give the file back the name it was built under"
        )
    if package.subdir not in SUBDIRS:
        raise DamagedPackageError(
            f"{path.name} is for {package.subdir or 'an unknown platform'}",
            f"publish packages for {' and '.join(SUBDIRS)} only",
        )
    return package


def _check_container(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        damaged = archive.testzip()
    if damaged:
        raise _damaged(path, f"{damaged} in it is damaged")
    for start in ("info-", "pkg-"):
        if not any(name.startswith(start) and name.endswith(".tar.zst") for name in names):
            raise _damaged(path, f"it has no {start}*.tar.zst")


async def _check_members(path: Path, visit: Callable[[str, bytes], None] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    archive = await PackageArchive.from_path(path)
    index_json, about_json, paths_json = "info/index.json", "info/about.json", "info/paths.json"
    files = await archive.read_files([index_json, about_json, paths_json])
    for name in (index_json, paths_json):
        if files[name] is None:
            raise _damaged(path, f"{name} is missing")
    index, about, listed = (json.loads(files[name] or b"{}") for name in (index_json, about_json, paths_json))
    expected = {str(entry["_path"]): entry for entry in listed["paths"]}
    async for member in archive.stream("pkg"):
        if not (member.is_file or member.is_link):
            continue
        entry = expected.pop(member.name, None)
        if entry is None or member.name.startswith("/") or ".." in member.name.split("/"):
            raise _damaged(path, f"{member.name} is not listed in info/paths.json")
        if member.is_file:
            content = await member.read()
            _check_content(path, entry, content)
            if visit:
                visit(member.name, content)
    # empty folders are listed and not archived
    absent = [name for name, entry in expected.items() if entry.get("path_type") != "directory"]
    if absent:
        raise _damaged(path, f"{absent[0]} is missing")
    return index, about


def _check_content(path: Path, entry: Mapping[str, Any], content: bytes) -> None:
    size, digest = entry.get("size_in_bytes"), entry.get("sha256")
    if (size is not None and size != len(content)) or (digest and digest != hashlib.sha256(content).hexdigest()):
        raise _damaged(path, f"{entry['_path']} in it is damaged")


def _damaged(path: Path, reason: str) -> DamagedPackageError:
    return DamagedPackageError(
        f"{path.name} is damaged, or not all of it is here: {reason}", "copy or build it again, then publish"
    )

"""What is inside a ``.conda`` file, and whether all of it is there."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rattler import MatchSpec, PackageRecord
from rattler.package.build_string import BuildString

from .. import conda_archive
from ..conda_archive import shown
from ..console import megabytes
from ..errors import DamagedPackageError
from ..files import load_json, open_regular
from .metadata import READ, REFUSED, Listed, Metadata, parse
from .trial import PYTHON, Contents, Expected, File, install_once

OURS = ("libllama", "libggml-cuda", "llama.cpp", "llama-cpp-python")
"""The packages that are built here, which belong together."""

SUBDIRS = ("linux-64", "noarch")

LARGEST_PAYLOAD, LARGEST_INFO = 16 << 30, 64 << 20
"""Bytes that a package's files, and what it says about itself, may have unpacked."""
LARGEST_RATIO = 1000
"""How many times their compressed size the files may have, once they are more than 64 MiB."""
_UNSUSPICIOUS = 64 << 20
_LARGEST_OVERHEAD, _LARGEST_END = 16 << 10, 2 << 20
_LARGEST_VERSION = 4096
MOST_FOLDERS = 50_000
_LISTED_AS = {"file": "hardlink", "hard link": "hardlink", "link": "softlink", "folder": "directory"}
# both tars are unpacked into one folder, and an environment has the installers' records in it
_RESERVED = ("info", "conda-meta")
# the C library of a compiler may be the machine's own
_SYSROOT = re.compile(r"[^/]+/sysroot/")
_SITE_PACKAGES = f"lib/python{PYTHON[0]}.{PYTHON[1]}/site-packages"


@dataclass(frozen=True)
class ChannelPackage:
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
    def from_record(cls, record: Mapping[str, Any], commit: str | None = None) -> ChannelPackage:
        """The package that an entry of ``repodata.json`` describes."""
        return cls(
            record["name"], record["version"], record["build"], record["build_number"], record["subdir"],
            record["sha256"], record["size"], tuple(record["depends"]), {"llama_cpp_commit": commit} if commit else {},
        )  # fmt: skip


def inspect(
    path: Path,
    visit: Callable[[str, Iterator[bytes]], None] | None = None,
    scratch: Path | None = None,
    size: int | None = None,
) -> ChannelPackage:
    """Read a package to its last byte, check that all of it is there and unaltered, and install it once on trial.

    It takes as much memory as the list of its files, however large they are.

    Args:
        visit: called with the path of every file in the package's payload, and its content in blocks. What it does not
            take of them is read nevertheless. The package may still turn out to be damaged.
        scratch: a folder with room for what the package has unpacked (default: the folder it is in).
        size: bytes that it must have; of a file of another size nothing is read.

    Raises:
        DamagedPackageError: it is not a ``.conda`` file, or not a whole one, or not what its name says. Or it holds what an
            installer refuses, or what two of them would take in different ways.
        DiskSpaceError: there is no room to install it on trial.
        OSError: it cannot be read.
    """
    if path.suffix != ".conda":
        raise DamagedPackageError(f"{shown(path.name)} is not a .conda file", "name files that end in .conda")
    try:
        with open_regular(path) as file:
            if size is not None and size != (found := os.fstat(file.fileno()).st_size):
                raise DamagedPackageError(f"{shown(path.name)} has {found} bytes instead of {size}", "copy or build it again")
            package, metadata, index, contents = _read(file, path.name, visit)
        relocated = frozenset(name for name, listed in metadata.paths.items() if listed.relocated)
        expected = Expected(contents, _places(metadata), relocated, metadata.commands)
        install_once(path.absolute(), index, metadata.noarch_python, expected, scratch or path.parent)
    except DamagedPackageError:
        raise
    except ValueError as error:
        raise DamagedPackageError(
            f"{shown(path.name)} is damaged, or no package that all installers take alike: {error}", "copy or build it again"
        ) from None
    return package


def _read(
    file: IO[bytes], file_name: str, visit: Callable[[str, Iterator[bytes]], None] | None
) -> tuple[ChannelPackage, Metadata, bytes, Contents]:
    """The package, what it says about itself, its ``info/index.json``, and all that is in it."""
    size = os.fstat(file.fileno()).st_size
    parts = _parts(file, size, file_name)  # first: what is no archive may be as large as it likes
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(conda_archive.BLOCK):
        digest.update(block)
    contents = Contents()
    texts = _read_info(file, parts["info"], contents)
    metadata = parse(texts)
    index = metadata.index
    package = ChannelPackage(
        index["name"], index["version"], index["build"], index["build_number"], index.get("subdir", ""),
        digest.hexdigest(), size, tuple(index.get("depends", ())), metadata.extra,
    )  # fmt: skip
    _check_name(package, file_name)
    _read_payload(file, parts["pkg"], metadata.paths, contents, visit)
    _check_links(metadata.paths, contents)
    return package, metadata, texts["info/index.json"], contents


def largest_payload(packed: int) -> int:
    """How many bytes the files of a package may have, of which ``packed`` are there."""
    return min(LARGEST_PAYLOAD, _UNSUSPICIOUS + packed * LARGEST_RATIO)


def _check_name(package: ChannelPackage, file_name: str) -> None:
    if package.file_name != file_name:
        raise DamagedPackageError(
            f"{shown(file_name)} says that it is {package.file_name}", "give the file back the name it was built under"
        )
    if package.subdir not in SUBDIRS:
        raise DamagedPackageError(
            f"{shown(file_name)} is for {shown(package.subdir) or 'an unknown platform'}",
            f"publish packages for {' and '.join(SUBDIRS)} only",
        )


def _parts(file: IO[bytes], size: int, file_name: str) -> dict[str, conda_archive.ArchivePart]:
    """The two tars. conda looks for them by the name of the file, other readers by how their names begin or end."""
    parts = conda_archive.parts(file, size)
    stem = file_name.removesuffix(".conda")
    names = {"metadata.json": "metadata", f"info-{stem}.tar.zst": "info", f"pkg-{stem}.tar.zst": "pkg"}
    if parts.keys() != names.keys():
        raise ValueError(f"it holds {', '.join(shown(name) for name in sorted(parts))} instead of {', '.join(sorted(names))}")
    try:
        version = load_json(conda_archive.read(file, parts["metadata.json"], _LARGEST_VERSION))
    except ValueError as error:
        raise ValueError(f"its metadata.json cannot be read: {error}") from None
    if not isinstance(version, dict) or version.get("conda_pkg_format_version") != 2:
        raise ValueError("its metadata.json does not say that it has format 2")
    return {names[name]: part for name, part in parts.items()}


def _read_info(file: IO[bytes], part: conda_archive.ArchivePart, contents: Contents) -> dict[str, bytes]:
    """Walk through ``info/``; return the texts that say what the package is."""
    tree, texts = _Tree(), {}
    for member, blocks in conda_archive.members(file, part, LARGEST_INFO):
        path = member.path
        if not path.startswith("info/") and (path, member.kind) != ("info", "folder"):
            raise ValueError(f"{shown(path)} is beside info/")
        tree.add(path, member.kind == "folder")
        if path in REFUSED or (path in READ and member.kind != "file"):
            raise ValueError(f"{path} in it is not understood by all installers")
        if path in READ:
            if member.size > READ[path]:
                raise ValueError(f"{path} has {member.size:,} bytes")
            texts[path] = b"".join(blocks)
            blocks = iter((texts[path],))
        _keep(member, blocks, contents)
    contents.folders += len(tree.folders)
    return texts


def _read_payload(
    file: IO[bytes],
    part: conda_archive.ArchivePart,
    paths: Mapping[str, Listed],
    contents: Contents,
    visit: Callable[[str, Iterator[bytes]], None] | None,
) -> None:
    """Compare what is to be installed with the list of it."""
    tree = _Tree()
    for path, entry in paths.items():
        if path.split("/")[0] in _RESERVED:
            raise ValueError(f"it would install {shown(path)}, which is where installers keep their records")
        tree.add(path, entry.kind == "directory")
    contents.folders += len(tree.folders)
    declared = sum(entry.size for entry in paths.values())
    if declared > largest_payload(part.size):
        raise ValueError(f"it would unpack to {megabytes(declared)}")
    largest = declared + (len(paths) + len(tree.folders)) * _LARGEST_OVERHEAD + _LARGEST_END
    seen: set[str] = set()
    for member, blocks in conda_archive.members(file, part, largest):
        path, listed = member.path, paths.get(member.path)
        if path in seen:
            raise ValueError(f"{shown(path)} is in it twice")
        seen.add(path)
        if member.kind == "folder" and path in tree.folders:
            continue
        if listed is None:
            raise ValueError(f"{shown(path)} is not listed in info/paths.json")
        if listed.kind != _LISTED_AS[member.kind]:
            raise ValueError(f"{shown(path)} in it is a {member.kind}, and info/paths.json says {listed.kind}")
        if member.kind == "file" and member.size != listed.size:
            raise ValueError(f"{shown(path)} in it is damaged")
        if member.kind == "hard link" and member.target not in paths:
            raise ValueError(f"{shown(path)} in it is a link to {shown(member.target)}, which is not in front of it")
        _keep(member, blocks, contents, visit)
        found = contents.files.get(path)
        if found and (found.size, found.sha256.hex()) != (listed.size, listed.sha256):
            raise ValueError(f"{shown(path)} in it is damaged")
    # a folder is made where it is listed
    if absent := [path for path, listed in paths.items() if path not in seen and listed.kind != "directory"]:
        raise ValueError(f"{shown(absent[0])} is missing")


def _keep(
    member: conda_archive.Member,
    blocks: Iterator[bytes],
    contents: Contents,
    visit: Callable[[str, Iterator[bytes]], None] | None = None,
) -> None:
    if member.kind == "link":
        contents.links[member.path] = member.target
    elif member.kind == "hard link":
        # the file must be there already, and one file has one mode
        found = contents.files.get(member.target)
        if found is None or found.executable != member.executable:
            raise ValueError(f"{shown(member.path)} in it is a link to {shown(member.target)}, which is not in front of it")
        contents.files[member.path] = found
    elif member.kind == "file":
        digest = hashlib.sha256()
        passed = _hashed(blocks, digest)
        if visit:
            visit(member.path, passed)
        for _ in passed:
            pass
        contents.files[member.path] = File(member.size, digest.digest(), member.executable)


def _hashed(blocks: Iterator[bytes], digest: Any) -> Iterator[bytes]:
    for block in blocks:
        digest.update(block)
        yield block


class _Tree:
    """Paths, none of them twice, and none of them a file and a folder at once. What is below a link is so, too."""

    def __init__(self) -> None:
        self._leaves: set[str] = set()
        self._explicit: set[str] = set()
        self.folders: set[str] = set()

    def add(self, path: str, folder: bool) -> None:
        known = self._explicit if folder else self.folders
        if path in self._leaves or path in known:
            raise ValueError(f"{shown(path)} is in it twice")
        (self._explicit if folder else self._leaves).add(path)
        if folder:
            self.folders.add(path)
        while (path := path.rpartition("/")[0]) and path not in self.folders:
            if path in self._leaves:
                raise ValueError(f"{shown(path)} in it is a folder and something else")
            self.folders.add(path)
        if len(self.folders) > MOST_FOLDERS:
            raise ValueError(f"it has more than {MOST_FOLDERS:,} folders")


def _check_links(paths: Mapping[str, Listed], contents: Contents) -> None:
    for path, target in contents.links.items():
        if target.startswith("/") and _SYSROOT.match(path):
            continue
        names = [name for name in target.split("/") if name not in ("", ".")]
        ups = next((place for place, name in enumerate(names) if name != ".."), len(names))
        # what goes up behind a name would go up from wherever a link of that name leads, be it one of another package
        if target.startswith("/") or ups > path.count("/") or ".." in names[ups:]:
            raise ValueError(f"{shown(path)} in it may lead out of the environment, to {shown(target)}")
        said = paths[path].sha256 if path in paths else ""
        file = contents.files.get("/".join([*path.split("/")[: -1 - ups], *names[ups:]]))
        # builders hash what a link leads to, or nothing, or the link itself
        if said and file and said not in (file.sha256.hex(), _sha256(b""), _sha256(target.encode())):
            raise ValueError(f"{shown(path)} in it leads to another file than the one that info/paths.json describes")


def _places(metadata: Metadata) -> dict[str, str]:
    """Where each path of the payload ends up in an environment with the Python of the trial.

    Raises:
        ValueError: two of them end up at the same place.
    """
    if not metadata.noarch_python:
        return {path: path for path in metadata.paths}
    tree, places = _Tree(), {}
    for path, listed in metadata.paths.items():
        start, _, rest = path.partition("/")
        folder = {"site-packages": _SITE_PACKAGES, "python-scripts": "bin"}.get(start)
        places[path] = f"{folder}/{rest}" if folder and rest else path
        tree.add(places[path], listed.kind == "directory")
    for name in metadata.commands:
        tree.add(f"bin/{name}", False)
    return places


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

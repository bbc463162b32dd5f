"""Writes ``.conda`` packages: the same content gives the same bytes, wherever and whenever it is packed.

``rattler_build.assemble_package`` has no way to say run exports, entry points or prefix placeholders, and the
packages of a seed need all three. Format: conda's CEP "conda package format v2" and the metadata in ``info/``.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..errors import SeedError
from ..files import sha256_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TIMESTAMP = 1_767_225_600
"""Seconds since 1970 of every file in every package (1 January 2026)."""

PLACEHOLDER = "/seed-prefix-placeholder"
"""Stands for the environment's folder in text files; whoever installs the package replaces it."""

EPOCH_OF_ZIP = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class PackedFile:
    """One file of a package; exactly one of ``data``, ``source`` and ``link`` is given.

    Attributes:
        data: its bytes.
        source: the file to read them from.
        link: the target, for a symbolic link.
        executable: whether it can be run.
        relocate: it is text that holds ``PLACEHOLDER``.
    """

    data: bytes | None = None
    source: Path | None = None
    link: str | None = None
    executable: bool = False
    relocate: bool = False

    def open(self) -> IO[bytes]:
        return self.source.open("rb") if self.source else io.BytesIO(self.data or b"")

    @property
    def size(self) -> int:
        return self.source.stat().st_size if self.source else len(self.data or b"")

    @property
    def sha256(self) -> str:
        return sha256_of(self.source) if self.source else hashlib.sha256(self.data or b"").hexdigest()


@dataclass
class SeedPackage:
    """A conda package to be written.

    Attributes:
        build: the start and end of the build string, around a hash of the content.
        subdir: ``linux-64`` or ``noarch``.
        noarch: ``python``, ``generic`` or None.
        files: path inside the environment to content.
        licences: file name to content, kept in ``info/licenses``.
        entry_points: ``name = module:function``, for noarch Python packages.
        run_exports: kind (``weak``, ``strong``, ``noarch``) to specs.
        index: further keys of ``info/index.json``.
        extra: what ``info/about.json`` says under ``extra``.
        level: of zstd; NVIDIA's libraries are too large for a high one.
    """

    name: str
    version: str
    build: tuple[str, str] = ("h", "_0")
    subdir: str = "linux-64"
    noarch: str | None = None
    depends: list[str] = field(default_factory=list)
    constrains: list[str] = field(default_factory=list)
    license: str = ""
    summary: str = ""
    home: str = ""
    files: dict[str, PackedFile] = field(default_factory=dict)
    licences: dict[str, bytes] = field(default_factory=dict)
    entry_points: list[str] = field(default_factory=list)
    run_exports: dict[str, list[str]] = field(default_factory=dict)
    index: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    level: int = 6


def write(package: SeedPackage, channel: Path) -> Path:
    """Write a package into its subdir of ``channel``; return the file.

    The build string holds a hash of everything inside, so other content never has the same file name.

    Raises:
        SeedError: a path leads out of the environment.
    """
    for path in package.files:
        if path.startswith(("/", "info/", "../")) or posixpath.normpath(path) != path:
            raise SeedError(f"{package.name} would hold the path {path!r}", "do not use what it is made from")
    files = dict(sorted(package.files.items()))
    info = _info(package, files)
    start, end = package.build
    digest = hashlib.sha256(b"\0".join([package.version.encode(), *(data for _, data in sorted(info.items()))]))
    build = f"{start}{digest.hexdigest()[:7]}{end}"
    info["info/index.json"] = _json(_index(package, build))

    stem = f"{package.name}-{package.version}-{build}"
    target = channel / package.subdir / f"{stem}.conda"
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(zipfile.ZipInfo("metadata.json", EPOCH_OF_ZIP), '{"conda_pkg_format_version":2}')
        with _tar(archive, f"pkg-{stem}.tar.zst", package.level) as tar:
            for path, entry in files.items():
                _add(tar, path, entry)
        with _tar(archive, f"info-{stem}.tar.zst", package.level) as tar:
            for path, data in sorted(info.items()):
                _add(tar, path, PackedFile(data))
    return target


def files_in(folder: Path) -> dict[str, PackedFile]:
    """Every file and link under ``folder``, the text files that hold ``PLACEHOLDER`` marked as such."""
    found = {}
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder).as_posix()
        if file.is_symlink():
            found[path] = PackedFile(link=os.readlink(file))
        elif file.is_file():
            executable = bool(file.stat().st_mode & 0o100)
            found[path] = PackedFile(source=file, executable=executable, relocate=_holds_placeholder(file))
    return found


def _holds_placeholder(file: Path) -> bool:
    return file.suffix in (".py", ".json", "") and PLACEHOLDER.encode() in file.read_bytes()


def _info(package: SeedPackage, files: dict[str, PackedFile]) -> dict[str, bytes]:
    """The members of ``info/``, without a build string in ``index.json`` as yet."""
    paths = {"paths": [_path(path, entry, files) for path, entry in files.items()], "paths_version": 1}
    about = {"home": package.home, "license": package.license, "summary": package.summary, "extra": package.extra}
    info = {
        "info/index.json": _json(_index(package, "")),
        "info/paths.json": _json(paths),
        "info/about.json": _json({key: value for key, value in about.items() if value}),
        "info/files": "".join(f"{path}\n" for path in files).encode(),
    }
    if package.run_exports:
        info["info/run_exports.json"] = _json(package.run_exports)
    if package.noarch == "python":
        python = {"type": "python", "entry_points": package.entry_points}
        info["info/link.json"] = _json({"noarch": python, "package_metadata_version": 1})
    info.update({f"info/licenses/{name}": data for name, data in package.licences.items()})
    return info


def _index(package: SeedPackage, build: str) -> dict[str, Any]:
    index = {
        "name": package.name,
        "version": package.version,
        "build": build,
        "build_number": 0,
        "subdir": package.subdir,
        "depends": package.depends,
        "constrains": package.constrains,
        "license": package.license,
        "timestamp": TIMESTAMP * 1000,
        **package.index,
    }
    if package.noarch:
        index["noarch"] = package.noarch
    else:
        index.update(platform="linux", arch="x86_64")
    return index


def _path(path: str, entry: PackedFile, files: dict[str, PackedFile]) -> dict[str, Any]:
    described: dict[str, Any] = {"_path": path, "path_type": "softlink" if entry.link else "hardlink"}
    if entry.relocate:
        described |= {"file_mode": "text", "prefix_placeholder": PLACEHOLDER}
    content = _follow(path, entry, files)
    return described | {"sha256": content.sha256, "size_in_bytes": content.size}


def _follow(path: str, entry: PackedFile, files: dict[str, PackedFile]) -> PackedFile:
    # a link is described by what it leads to, and by nothing where that is in another package
    while entry.link is not None:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), entry.link))
        entry = files.get(path, PackedFile(b""))
    return entry


@contextmanager
def _tar(archive: zipfile.ZipFile, name: str, level: int) -> Iterator[tarfile.TarFile]:
    # other than tarfile's default, PAX, this format never adds members of its own
    with (
        archive.open(zipfile.ZipInfo(name, EPOCH_OF_ZIP), "w") as raw,
        zstd.open(raw, "w", level=level) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as tar,
    ):
        yield tar


def _add(tar: tarfile.TarFile, path: str, entry: PackedFile) -> None:
    member = tarfile.TarInfo(path)
    member.mtime = TIMESTAMP
    member.mode = 0o755 if entry.executable else 0o644
    if entry.link is not None:
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, entry.link, 0o777
        tar.addfile(member)
        return
    member.size = entry.size
    with entry.open() as file:
        tar.addfile(member, file)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"

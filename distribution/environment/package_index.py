"""What a conda package that nobody vouches for says about itself: its ``info/index.json``, in little memory and time.

Of a ``.conda`` file at an address only the parts are fetched that lead to it. Where a server does not send parts of files, and
of a ``.tar.bz2``, the whole file is fetched.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast
from urllib.parse import unquote, urlsplit

from rattler import Client, RepoDataRecord

from .. import conda_archive, package_files
from ..channel.metadata import READ
from ..channel.package_file import LARGEST_INFO
from ..conda_archive import Member, shown
from ..errors import FetchError
from ..fetching import fetch_range
from ..files import open_regular

_INDEX = "info/index.json"
_LARGEST_TAR = 256 << 20
"""Bytes of an unpacked ``.tar.bz2`` within which the index must be; builders put it in front of the payload."""
_PART = 1 << 17
_SECONDS = 30
"""For a part of a file. An interrupted run waits for as long at most."""


async def read_index(record: RepoDataRecord, http: Client, scratch: Path) -> bytes:
    """The text of a package's ``info/index.json``.

    Args:
        record: where the package is, and its hash. A whole file is compared with that; a part of one cannot be.
        scratch: a file to be made where a whole package must be fetched; it is gone afterwards.

    Raises:
        ValueError: it is no package, a damaged one, or one that unpacks to more than it may.
        HashMismatchError: it is not what the hash says.
        DownloadError: it could not be fetched.
        OSError: it cannot be read, or ``scratch`` cannot be written.
    """
    address = urlsplit(record.url)
    if address.scheme == "file":
        return await asyncio.to_thread(_read_local, Path(unquote(address.path)), record.file_name)
    if record.file_name.endswith(".conda"):
        file = _Remote(record.url)
        try:
            return await asyncio.to_thread(_read_remote, file, record.file_name)
        except FetchError:
            # it sends no parts, or wants credentials, which py-rattler knows
            pass
        finally:
            file.stop()
    try:
        await package_files.download(record, scratch, http)
        return await asyncio.to_thread(_read_local, scratch, record.file_name)
    finally:
        scratch.unlink(missing_ok=True)


def _read_local(path: Path, file_name: str) -> bytes:
    with open_regular(path) as file:
        return _find(file, os.fstat(file.fileno()).st_size, file_name)


def _read_remote(file: _Remote, file_name: str) -> bytes:
    size = file.open()
    return _find(cast(IO[bytes], file), size, file_name)


def _find(file: IO[bytes], size: int, file_name: str) -> bytes:
    for member, blocks in _members(file, size, file_name):
        if member.path != _INDEX:
            continue
        if member.kind != "file" or member.size > READ[_INDEX]:
            raise ValueError(f"its {_INDEX} is a {member.kind} of {member.size:,} bytes")
        return b"".join(blocks)
    raise ValueError(f"it has no {_INDEX}")


def _members(file: IO[bytes], size: int, file_name: str) -> Iterator[tuple[Member, Iterator[bytes]]]:
    if not file_name.endswith(".conda"):
        return conda_archive.bzip2_members(file, size, _LARGEST_TAR)
    parts, name = conda_archive.parts(file, size), f"info-{unquote(file_name).removesuffix('.conda')}.tar.zst"
    if name not in parts:
        raise ValueError(f"it holds {', '.join(shown(one) for one in sorted(parts))}, and no {shown(name)}")
    return conda_archive.members(file, parts[name], LARGEST_INFO)


class _Remote:
    """A file at an address, of which that is fetched which is read, and what is near it."""

    def __init__(self, url: str) -> None:
        self._url, self._position, self._start, self._size = url, 0, 0, 0
        self._part = b""
        self._stopped = False

    def open(self) -> int:
        """Fetch the start; return how many bytes the file has."""
        self._part, self._size = fetch_range(self._url, 0, _PART, _SECONDS)
        return self._size

    def stop(self) -> None:
        """Fetch nothing more: the thread that reads would go on after an interruption."""
        self._stopped = True

    def seek(self, position: int) -> None:
        self._position = position

    def read(self, size: int) -> bytes:
        start = self._position
        end = min(start + size, self._size)
        if start >= end:
            return b""
        if start < self._start or end > self._start + len(self._part):
            if self._stopped:
                raise ValueError("the reading was interrupted")
            self._part, there = fetch_range(self._url, start, max(size, _PART), _SECONDS)
            self._start = start
            if there != self._size:
                raise ValueError("it changed while it was read")
        self._position = end
        return self._part[start - self._start : end - self._start]

"""Getting the files of conda packages, each compared with the hash that its record names, every time it is used.

Downloads are kept in ``archives/`` in the cache, by hash. Nothing in there is trusted: a file is copied out of it and hashed
on the way, and one that was changed, cut off or replaced is fetched again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from rattler import Client, RepoDataRecord
from rattler.package_streaming import download_to_writer

from .errors import ChannelUnreachableError, DownloadError, HashMismatchError
from .files import open_regular
from .rattler_async import all_of, client, within

LARGEST = 16 << 30
"""Bytes that a package may have, packed, where its record does not say how many it has."""
_AT_ONCE = 8
_SECONDS = 3600
"""For one package: a server may send so slowly that it never comes to an end."""
_BLOCK = 1 << 20


async def gather(
    records: Sequence[RepoDataRecord], folder: Path, cache: Path, progress: Callable[[int, int], None] = lambda index, size: None
) -> list[Path]:
    """Put the files of packages into ``folder``; return their paths, in the order of ``records``.

    Args:
        folder: nobody else may be able to write to it.
        cache: where downloads are looked for and kept; where it cannot be written to, they are not kept.
        progress: called with the index of a record and the bytes of it that were downloaded.

    Raises:
        HashMismatchError: a package has other bytes than its record says.
        DownloadError: a package could not be fetched.
        ChannelUnreachableError: the credentials that the user has stored cannot be read.
        OSError: the folder cannot be written to.
    """
    http, turns = client(), asyncio.Semaphore(_AT_ONCE)
    folder.mkdir(mode=0o700)

    async def get(index: int, record: RepoDataRecord) -> Path:
        async with turns:
            # two channels may have a file of one name
            target = folder / str(index) / record.file_name
            target.parent.mkdir()
            kept = cache / "archives" / f"{_digest_of(record)[1]}-{record.file_name}"
            if address := _local(record):
                await asyncio.to_thread(copy, address, target, record)
            elif not await asyncio.to_thread(_take, kept, target, record):
                await download(record, target, http, lambda size: progress(index, size))
                await asyncio.to_thread(_keep, target, kept)
            return target

    return await all_of(get(index, record) for index, record in enumerate(records))


async def download(
    record: RepoDataRecord, target: Path, http: Client, progress: Callable[[int], None] = lambda size: None
) -> None:
    """Write the file of a package to ``target``; no more of it than its record says it has.

    Raises:
        HashMismatchError: it has other bytes than the record says.
        DownloadError: it could not be fetched, or not in time.
        OSError: it could not be written.
    """
    with target.open("wb") as file:
        writer = _Writer(file, record, progress)
        try:
            await within(_SECONDS, download_to_writer(http, record.url, writer), record.url)
        except ChannelUnreachableError as error:
            raise DownloadError(error.message, error.remedy) from None
        # py-rattler raises several kinds, some of them bare
        except Exception as error:
            if writer.error:
                raise writer.error from None
            raise DownloadError(f"{record.url} could not be fetched: {error}", "check the network, and try again") from None
    writer.check()


class _Writer:
    """What is downloaded, hashed and counted while it is written."""

    def __init__(self, file: IO[bytes], record: RepoDataRecord, progress: Callable[[int], None]) -> None:
        self._file, self._record, self._progress = file, record, progress
        self._kind, self._expected = _digest_of(record)
        self._digest = hashlib.new(self._kind, usedforsecurity=self._kind != "md5")
        self._size = 0
        self.error: Exception | None = None

    def write(self, block: bytes) -> int:
        try:
            self._size += len(block)
            if self._size > (self._record.size or LARGEST):
                raise _wrong(self._record, f"more than {self._record.size or LARGEST} bytes")
            self._digest.update(block)
            self._file.write(block)
            self._progress(self._size)
        except Exception as error:
            # what went wrong here comes back from py-rattler as something else
            self.error = error
            raise
        return len(block)

    def check(self) -> None:
        if self._digest.hexdigest() != self._expected:
            raise _wrong(self._record, f"{self._kind} {self._digest.hexdigest()}, expected {self._expected}")


def copy(source: Path, target: Path, record: RepoDataRecord) -> None:
    """Write the file of a package that is in a folder to ``target``; no more of it than its record says it has.

    Raises:
        HashMismatchError: it has other bytes than the record says.
        DownloadError: it is not there, or no plain file.
        OSError: it could not be written.
    """
    try:
        opened = open_regular(source)
    except OSError as error:
        raise DownloadError(f"{source} cannot be read: {error.strerror}", "check the channel: channel verify") from None
    with opened, target.open("wb") as file:
        writer = _Writer(file, record, lambda size: None)
        while block := opened.read(_BLOCK):
            writer.write(block)
    writer.check()


def _take(kept: Path, target: Path, record: RepoDataRecord) -> bool:
    """Copy a package out of the cache; false where it is not there, or not what it should be."""
    try:
        if not os.path.lexists(kept):
            return False
        copy(kept, target, record)
        return True
    except (HashMismatchError, DownloadError):
        with suppress(OSError):
            shutil.rmtree(kept) if kept.is_dir() and not kept.is_symlink() else kept.unlink()
        return False


def _keep(source: Path, kept: Path) -> None:
    temporary = None
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=kept.parent, prefix=".part-")
        temporary = Path(name)
        with source.open("rb") as opened, os.fdopen(handle, "wb") as file:
            shutil.copyfileobj(opened, file, _BLOCK)
        os.replace(temporary, kept)
    except OSError:
        # full or not writable: the next environment downloads it again
        if temporary:
            with suppress(OSError):
                temporary.unlink()


def _local(record: RepoDataRecord) -> Path | None:
    address = urlsplit(record.url)
    return Path(unquote(address.path)) if address.scheme == "file" else None


def _digest_of(record: RepoDataRecord) -> tuple[str, str]:
    if record.sha256:
        return "sha256", record.sha256.hex()
    if record.md5:
        return "md5", record.md5.hex()
    raise _wrong(record, "its channel's index has no hash of it")


def _wrong(record: RepoDataRecord, what: str) -> HashMismatchError:
    return HashMismatchError(
        f"{record.url} is not the package that the channel's index or the lock names: {what}",
        "do not use it; python -m distribution channel verify says what is wrong with a channel",
    )

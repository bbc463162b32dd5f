"""How much room packages take on the disk, found out before they are unpacked: py-rattler unpacks to whatever it is.

Nobody has looked into a package of a channel that did not go through ``publish``. So each is unpacked here first, in memory and
block by block, and within the limits that ``publish`` has. That takes a tenth of the time that the installation takes.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from .. import conda_archive
from ..channel.package_file import LARGEST_PAYLOAD, MOST_FOLDERS, largest_payload
from ..conda_archive import Member, shown
from ..console import megabytes
from ..errors import DamagedPackageError
from ..files import open_regular
from ..rattler_async import all_of

_AT_ONCE = 4
"""Packages; each may need 128 MiB of memory meanwhile."""
_PAGE = 4096
"""Bytes that an entry takes at least, and a multiple of which it takes."""


async def needed(files: Sequence[Path]) -> int:
    """The bytes that the files of packages take on the disk once they are unpacked.

    Raises:
        DamagedPackageError: one unpacks to more than a package may, or is no package, or one that readers take differently.
        OSError: one cannot be read.
    """
    turns, stopped = asyncio.Semaphore(_AT_ONCE), threading.Event()

    async def one(path: Path) -> int:
        async with turns:
            return await asyncio.to_thread(_measure, path, stopped)

    try:
        return sum(await all_of(map(one, files)))
    finally:
        # a thread cannot be cancelled, and is waited for
        stopped.set()


def _measure(path: Path, stopped: threading.Event) -> int:
    try:
        with open_regular(path) as file:
            return _count(file, path.name, stopped)
    except ValueError as error:
        raise DamagedPackageError(
            f"{shown(path.name)} is damaged, or no package that can be installed: {error}",
            "do not use it: choose another version of it, or another channel",
        ) from None


def _count(file: IO[bytes], file_name: str, stopped: threading.Event) -> int:
    packed = os.fstat(file.fileno()).st_size
    content, room, largest = 0, 0, largest_payload(packed)
    folders: set[int] = set()
    for member, blocks in _members(file, packed, file_name):
        for block in blocks:
            content += len(block)
            if content > largest:
                raise ValueError(f"it unpacks to more than {megabytes(largest)}")
            if stopped.is_set():
                raise ValueError("the installation was interrupted")
        room += max(member.size + -member.size % _PAGE, _PAGE) + _PAGE * _add_folders(member, folders)
        if room > LARGEST_PAYLOAD:
            raise ValueError(f"it takes more than {megabytes(LARGEST_PAYLOAD)} of the disk")
        if stopped.is_set():
            raise ValueError("the installation was interrupted")
    return room


def _members(file: IO[bytes], size: int, file_name: str) -> Iterator[tuple[Member, Iterator[bytes]]]:
    """Of all tars in a package: what is in the zip beside the two is no package, and installers differ in what they unpack."""
    if file_name.endswith(".tar.bz2"):
        yield from conda_archive.bzip2_members(file, size, LARGEST_PAYLOAD, strict=False)
        return
    for name, part in conda_archive.parts(file, size).items():
        if name != "metadata.json":
            yield from conda_archive.members(file, part, LARGEST_PAYLOAD, strict=False)


def _add_folders(member: Member, known: set[int]) -> int:
    """How many folders are made for a member, which nobody has to name."""
    before, path = len(known), member.path
    while (path := path.rpartition("/")[0]) and hash(path) not in known:
        known.add(hash(path))
        if len(known) > MOST_FOLDERS:
            raise ValueError(f"it has more than {MOST_FOLDERS:,} folders")
    return len(known) - before

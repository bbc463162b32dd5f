"""Explicit locks: every package by its URL and hash, as ``conda create --file`` reads them."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rattler import Client, PackageRecord, RepoDataRecord, Subdir
from rattler.package_streaming import PackageArchive

from .. import hardware
from ..errors import ChannelUnreachableError, EnvironmentFileError
from ..waiting import wait
from . import solving, specification

MARKER = "@EXPLICIT"
_ENTRY = re.compile(r"(?P<url>\S+/(?P<subdir>[^/#\s]+)/(?P<file>[^/#\s]+\.(?:conda|tar\.bz2)))#(?P<hash>\S+)")
_HASH = re.compile(r"(?:sha256:)?(?P<sha256>[0-9a-f]{64})|(?P<md5>[0-9a-f]{32})")


def explicit(
    channels: Sequence[str],
    environment_file: Path,
    found: hardware.Hardware | None = None,
    cpu: bool = False,
) -> str:
    """The lock of an environment file, solved against ``channels`` alone.

    Args:
        channels: names, URLs and folders, the most important first; they take the place of those in the file.
        found, cpu: as for ``solving.solve_environment``.

    Raises:
        EnvironmentFileError: the file cannot be understood.
        ChannelUnreachableError, EnvironmentUnsolvableError, DriverTooOldError: as ``solving.solve_environment``.
    """
    source = str(environment_file)
    wanted = specification.parse(specification.read_text(source), source, only=channels)
    return render(solving.solve_environment(wanted, found, cpu).records, wanted.name)


def render(records: Sequence[RepoDataRecord], name: str = "") -> str:
    """The text of a lock; dependencies come before what needs them."""
    by_name = {record.name.normalized: record for record in records}
    order = [record.name.normalized for record in PackageRecord.sort_topologically(list(records))]
    lines = [
        f"# conda create --name {name or 'NAME'} --file THIS_FILE      (conda 24.9 or later)",
        f"# platform: {Subdir.current()}",
        MARKER,
        *(f"{by_name[one].url}#{_hash_of(by_name[one])}" for one in order),
    ]
    return "\n".join(lines) + "\n"


def is_lock(text: str) -> bool:
    """Whether a text is a lock and not an environment file."""
    return MARKER in (line.strip() for line in text.splitlines())


def read(text: str, source: str) -> list[RepoDataRecord]:
    """The packages that a lock names, described by what is inside them.

    The hashes are those of the lock; the installation compares them with the bytes.

    Raises:
        EnvironmentFileError: a line is no package URL with a hash, or a package is for another platform.
        ChannelUnreachableError: a package is not there.
    """
    lines = [line.strip() for line in text.splitlines()]
    entries = [_parse_entry(line, source) for line in lines if line and not line.startswith("#") and line != MARKER]
    return wait(_describe_all(entries))


def _hash_of(record: RepoDataRecord) -> str:
    if record.sha256:
        return f"sha256:{record.sha256.hex()}"
    if record.md5:
        return record.md5.hex()
    raise EnvironmentFileError(f"the index has no hash of {record.url}", "index the channel again")


def _parse_entry(line: str, source: str) -> re.Match[str]:
    entry = _ENTRY.fullmatch(line)
    if entry is None or "://" not in line or not _HASH.fullmatch(entry["hash"]):
        raise EnvironmentFileError(
            f"{source}: {line!r} is no URL of a package with its hash", "make the lock anew: python -m distribution env lock"
        )
    if entry["subdir"] not in (str(Subdir.current()), "noarch"):
        raise EnvironmentFileError(
            f"{source} is a lock for {entry['subdir']}, and this machine is {Subdir.current()}", "make a lock on such a machine"
        )
    return entry


async def _describe_all(entries: Sequence[re.Match[str]]) -> list[RepoDataRecord]:
    client = Client.default_client()
    with tempfile.TemporaryDirectory() as folder:
        return list(await asyncio.gather(*(_describe(entry, client, Path(folder)) for entry in entries)))


async def _describe(entry: re.Match[str], client: Client, folder: Path) -> RepoDataRecord:
    url = entry["url"]
    try:
        if url.startswith("file:"):
            archive = await PackageArchive.from_path(unquote(urlsplit(url).path))
        else:
            archive = await PackageArchive.from_url(client, url)
        index = await archive.read_file("info/index.json")
    # py-rattler raises several kinds here, some of them bare
    except Exception as error:
        raise ChannelUnreachableError(
            f"{url} cannot be read: {error}", "it may have been pruned from the channel: make the lock anew"
        ) from None
    if index is None:
        raise ChannelUnreachableError(f"{url} is no conda package", "make the lock anew: python -m distribution env lock")
    described = folder / f"{entry['subdir']}-{entry['file']}.json"
    described.write_bytes(index)
    hashes = _HASH.fullmatch(entry["hash"])
    record = PackageRecord.from_index_json(described, sha256=hashes["sha256"], md5=hashes["md5"])
    channel = url.removesuffix(f"{entry['subdir']}/{entry['file']}")
    return RepoDataRecord(record, entry["file"], url, channel)

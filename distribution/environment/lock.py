"""Explicit locks: every package by its URL and hash, as ``conda create --file`` reads them."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from rattler import Client, PackageRecord, RepoDataRecord, Subdir
from rattler.package.build_string import BuildString

from .. import hardware
from ..errors import ChannelUnreachableError, EnvironmentFileError, HashMismatchError
from ..files import naming
from ..rattler_async import all_of, client, wait, within
from . import solving, specification
from .package_index import read_index

MARKER = "@EXPLICIT"
_ENTRY = re.compile(r"(?P<url>\S+/(?P<subdir>[^/#\s]+)/(?P<file>[^/#\s]+\.(?:conda|tar\.bz2)))#(?P<hash>\S+)")
_LONGEST_LINE = 4000
_MOST_PACKAGES = 10_000
_AT_ONCE = 8
_SECONDS = 300
"""For the description of one package, from a server."""
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
        ChannelUnreachableError: a package is not there, or cannot be read.
        HashMismatchError: a package had to be fetched as a whole, and is not what the lock says.
    """
    lines = [line.strip() for line in text.splitlines()]
    entries = [_parse_entry(line, source) for line in lines if line and not line.startswith("#") and line != MARKER]
    if not 0 < len(entries) <= _MOST_PACKAGES:
        raise EnvironmentFileError(
            f"{source} names {'no packages' if not entries else f'more than {_MOST_PACKAGES:,} packages'}",
            "make the lock anew: python -m distribution env lock",
        )
    return wait(_describe_all(entries))


def _hash_of(record: RepoDataRecord) -> str:
    if record.sha256:
        return f"sha256:{record.sha256.hex()}"
    if record.md5:
        return record.md5.hex()
    raise EnvironmentFileError(f"the index has no hash of {record.url}", "index the channel again")


def _parse_entry(line: str, source: str) -> re.Match[str]:
    # the length first: an expression that looks for slashes takes its time over a million of them
    entry = _ENTRY.fullmatch(line) if len(line) < _LONGEST_LINE else None
    if entry is None or not _is_address(entry["url"]) or not _HASH.fullmatch(entry["hash"]):
        raise EnvironmentFileError(
            f"{source}: {line!r:.200} is no URL of a package with its hash",
            "make the lock anew: python -m distribution env lock",
        )
    if entry["subdir"] not in (str(Subdir.current()), "noarch"):
        raise EnvironmentFileError(
            f"{source} is a lock for {entry['subdir']}, and this machine is {Subdir.current()}", "make a lock on such a machine"
        )
    return entry


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https", "file") and bool(parts.path) and url.isprintable()
    except ValueError:
        return False


async def _describe_all(entries: Sequence[re.Match[str]]) -> list[RepoDataRecord]:
    http, turns = client(), asyncio.Semaphore(_AT_ONCE)

    async def describe(entry: re.Match[str], file: Path) -> RepoDataRecord:
        async with turns:
            return await _describe(entry, http, file)

    with tempfile.TemporaryDirectory() as folder:
        files = (Path(folder, f"{number}.json") for number in range(len(entries)))
        return await all_of(map(describe, entries, files))


async def _describe(entry: re.Match[str], http: Client, described: Path) -> RepoDataRecord:
    url, hashes = entry["url"], _HASH.fullmatch(entry["hash"])
    assert hashes
    try:
        sha256, md5 = (bytes.fromhex(text) if text else None for text in (hashes["sha256"], hashes["md5"]))
        named = _locate(entry, PackageRecord("unknown", "0", BuildString("0"), 0, entry["subdir"], sha256=sha256, md5=md5))
        index = await within(_SECONDS, read_index(named, http, described.with_suffix(".package")), url)
    except (ChannelUnreachableError, HashMismatchError):
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(url, error) from None
    with naming(described):
        described.write_bytes(index)
    try:
        return _locate(entry, PackageRecord.from_index_json(described, sha256=hashes["sha256"], md5=hashes["md5"]))
    # py-rattler raises several kinds here, some of them bare
    except Exception as error:
        raise _unreadable(url, error) from None


def _locate(entry: re.Match[str], record: PackageRecord) -> RepoDataRecord:
    return RepoDataRecord(record, entry["file"], entry["url"], entry["url"].removesuffix(f"{entry['subdir']}/{entry['file']}"))


def _unreadable(url: str, error: Exception) -> ChannelUnreachableError:
    return ChannelUnreachableError(
        f"{url} cannot be read: {error}", "it may have been pruned from the channel: make the lock anew"
    )

"""Solving and installing only what a configured key signed: environment files, indexes and packages."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from rattler import Channel, RepoDataRecord, SparseRepoData

from ..channel import environment_files, rollback
from ..channel.keys import Trust
from ..channel.manifest import MANIFEST, REMEDY, Manifest, fetch_file, folder_of
from ..channel.package_file import OURS, SUBDIRS
from ..channel.publishing import INDEX, LARGEST_INDEX
from ..channel.trust import open_signed
from ..errors import ChannelDamagedError, HashMismatchError, NoSignaturesError, UnsignedPackageError
from ..files import read_regular, scratch_folder
from . import specification

# These channels by their whole address: at the same host anybody has one.
_VOUCHED_FOR_BY_TLS = frozenset(Channel(name).base_url.rstrip("/") for name in ("conda-forge", "main"))
_TRIES = 3
"""A publisher may change the channel between two of our reads."""
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Sources:
    """The channels of an environment.

    Attributes:
        for_solver: what py-rattler solves from, the most important first: names and addresses, and, of channels with
            signatures, the indexes that were signed.
        signed: what those channels signed, by their address.
    """

    trust: Trust
    for_solver: list[str | SparseRepoData] = field(default_factory=list)
    signed: dict[str, Manifest] = field(default_factory=dict)
    indexes: dict[str, list[SparseRepoData]] = field(default_factory=dict)

    def described(self, record: RepoDataRecord) -> RepoDataRecord:
        """A package of a lock as the signed index describes it; as it is where there is none, or it does not list it.

        Raises:
            HashMismatchError: the index describes another package of that name than the lock.
        """
        for index in self.indexes.get(_address(record.channel), ()):
            for known in index.load_records(record.name):
                if known.file_name == record.file_name and known.subdir == record.subdir:
                    if (record.sha256 or known.sha256, record.md5 or known.md5) != (known.sha256, known.md5):
                        raise HashMismatchError(
                            f"{record.url} is not the package that the lock names: its channel has another one of that name",
                            "find out why it was replaced; if it should have been, make the lock anew",
                        )
                    return known
        return record

    def check(self, records: Sequence[RepoDataRecord]) -> None:
        """Compare what would be installed with what its channels signed.

        Where a key is configured, every channel but conda-forge and Anaconda's main must have signed what comes from it.
        Those two vouch for their packages by TLS and sign nothing we could check. A package of ours is never taken unsigned
        from them. Where no key is configured, other channels behind TLS are left out.

        Raises:
            UnsignedPackageError: a package is not among those that the key signed, or its channel has no signatures.
            ChannelUnreachableError, ChannelDamagedError: a channel's signatures cannot be read.
        """
        late: dict[str, Manifest | None] = {}
        for record in records:
            address = _address(record.channel)
            signed = self.signed.get(address)
            if signed is None and self._needs_signature(record, address):
                # read late: only now is it known that packages of ours come from there
                if address not in late:
                    late[address] = open_signed(address, self.trust)
                signed = late[address]
            if signed:
                _compare(record, signed, address)

    def _needs_signature(self, record: RepoDataRecord, address: str) -> bool:
        if record.name.normalized in OURS:
            return True
        return address not in _VOUCHED_FOR_BY_TLS if self.trust.configured else not address.startswith("https:")


@contextlib.contextmanager
def open_sources(channels: Sequence[str], trust: Trust, allow_older: bool = False) -> Iterator[Sources]:
    """The channels of an environment, each with the index that was signed, as long as the context lasts.

    Raises:
        UnsignedPackageError: a key is configured, and did not sign a channel.
        OlderGenerationError: a key is configured, and a channel is older than it was.
        ChannelUnreachableError, ChannelDamagedError: a channel's signatures or index cannot be read.
    """
    with scratch_folder() as scratch:
        sources = Sources(trust)
        for number, channel in enumerate(channels):
            address = _address(channel)
            plain = address in _VOUCHED_FOR_BY_TLS or (address.startswith("https:") and not trust.configured)
            found = None if plain else _read_signed(address, trust, allow_older)
            if found is None:
                sources.for_solver.append(channel)
                continue
            sources.signed[address], texts = found
            sources.indexes[address] = [_sparse(address, subdir, text, scratch / str(number)) for subdir, text in texts.items()]
            sources.for_solver.extend(sources.indexes[address])
        yield sources


def read_environment_file(source: str, trust: Trust, allow_older: bool = False) -> str:
    """The text of an environment file or lock at a path or an address.

    Where a key is configured, a file of a channel must be the one that was signed, and a channel that was seen before must still
    be signed. What comes without TLS must be signed; a file of one's own is one's own.

    Raises:
        UnsignedPackageError: it is not what was signed, or nothing vouches for it.
        OlderGenerationError: the channel is older than it was.
        EnvironmentFileError, ChannelUnreachableError, ChannelDamagedError: it cannot be read.
    """
    for last in (False,) * (_TRIES - 1) + (True,):
        text = specification.read_text(source)
        if not trust.configured or _is_signed(source, text, trust, allow_older):
            return text
        if last:
            break
    raise UnsignedPackageError(
        f"{source} is not what its channel's publisher signed", "do not use it; ask the publisher, or use a file of your own"
    )


def _is_signed(source: str, text: str, trust: Trust, allow_older: bool) -> bool:
    location, name = _folder_and_name(source)
    if "://" not in source and not _is_of_a_channel(location, name):
        return True
    address = _address(location)
    try:
        content = open_signed(location, trust)
        assert content
    except NoSignaturesError:
        # a page of somebody's, behind TLS; but a channel does not lose its signatures
        if source.startswith("https:") and not rollback.is_known(address):
            return True
        raise
    if name not in content.addressed:
        raise UnsignedPackageError(
            f"nothing vouches for {source}: it lies in a signed channel, and its publisher did not sign it",
            "fetch it by a way that you trust, put it elsewhere, and name the file",
        )
    digests = {environment_files.neutral_digest(text, one) for one in _spellings(location)}
    if content.addressed[name] in digests:
        rollback.check(address, content.generation, allow_older)
        return True
    return False


def _is_of_a_channel(folder: str, name: str) -> bool:
    """Whether a file here is a channel's. One whose signatures are gone is still one: whoever can write to it can remove them."""
    return name in environment_files.ADDRESSED and (
        os.path.lexists(Path(folder, MANIFEST)) or rollback.is_known(_address(folder))
    )


def _folder_and_name(source: str) -> tuple[str, str]:
    if "://" in source:
        location, _, name = source.partition("?")[0].rpartition("/")
        return location, name
    path = Path(source).absolute()
    return str(path.parent), path.name


def _spellings(location: str) -> list[str]:
    """The addresses that a channel's server or publisher may have put into a file that was read from there."""
    if (folder := folder_of(location)) is not None:
        return [folder.absolute().as_uri()]
    parts = urlsplit(location)
    plain = parts.hostname if parts.port in (None, _DEFAULT_PORTS.get(parts.scheme)) else parts.netloc
    return [location, f"{parts.scheme}://{plain}{parts.path}"]


def _read_signed(address: str, trust: Trust, allow_older: bool) -> tuple[Manifest, dict[str, bytes]] | None:
    """What a channel signed, and its indexes; None where it has no signatures and no key asks for them."""
    changed = ""
    for _ in range(_TRIES):
        content = open_signed(address, trust)
        if content is None:
            return None
        texts = {subdir: _read_file(address, f"{subdir}/{INDEX}") for subdir in SUBDIRS}
        wrong = [
            subdir for subdir, text in texts.items() if hashlib.sha256(text).hexdigest() != content.files.get(f"{subdir}/{INDEX}")
        ]
        if not wrong:
            if trust.configured:
                rollback.check(address, content.generation, allow_older)
            return content, texts
        changed = f"{wrong[0]}/{INDEX}"
    kind = UnsignedPackageError if trust.configured else ChannelDamagedError
    raise kind(f"{changed} of {address} is not what was signed", REMEDY)


def _read_file(address: str, path: str) -> bytes:
    try:
        if (folder := folder_of(address)) is not None:
            return read_regular(folder / path, LARGEST_INDEX)
        return fetch_file(address, path, LARGEST_INDEX)
    except FileNotFoundError:
        raise ChannelDamagedError(f"{address} has no {path}", REMEDY) from None


def _sparse(address: str, subdir: str, text: bytes, folder: Path) -> SparseRepoData:
    folder.mkdir(exist_ok=True)
    file = folder / f"{subdir}.json"
    file.write_bytes(text)
    try:
        index = SparseRepoData(Channel(address), subdir, file)
        # it is read lazily: what is wrong with one of its packages would only show in the midst of a solve
        index.load_all_records()
    # py-rattler raises several kinds here, most of them bare
    except Exception as error:
        raise ChannelDamagedError(f"{subdir}/{INDEX} of {address} cannot be read: {error}", REMEDY) from None
    return index


def _compare(record: RepoDataRecord, signed: Manifest, address: str) -> None:
    entry = signed.packages.get(f"{record.subdir}/{record.file_name}")
    found = record.sha256.hex() if record.sha256 else "unknown"
    if entry is None or entry.sha256 != found:
        raise UnsignedPackageError(
            f"{record.file_name} of {address} is not what was signed (its SHA-256 is {found})",
            "do not install it; python -m distribution channel verify says what is wrong with the channel",
        )


def _address(channel: str) -> str:
    """One spelling of a channel's address."""
    return Channel(channel).base_url.rstrip("/")

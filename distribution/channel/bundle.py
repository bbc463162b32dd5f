"""One file with our packages and all they need, for a machine without a network.

It is a tar file: the signed manifest, the publisher's key, then the packages. The manifest says everything that counts: which
packages there are, and what an environment file asks for.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from rattler import (
    BuildString,
    Gateway,
    GenericVirtualPackage,
    MatchSpec,
    PackageName,
    RepoDataRecord,
    SourceConfig,
    Subdir,
    Version,
    VirtualPackage,
    solve,
)
from rattler.exceptions import GatewayError, SolverError

from .. import package_files
from ..console import megabytes, say
from ..errors import BundleError, ChannelUnreachableError, DistributionError, DownloadError, EnvironmentUnsolvableError
from ..files import open_regular, refuse_to_replace_special, sha256_of, staging_folder
from ..rattler_async import SOLVING, client, wait
from . import dependencies, environment_files, keys, manifest, publishing
from .keys import Trust, load_trust
from .manifest import CHANNEL_KEY, MANIFEST, Manifest, ManifestEntry
from .package_file import inspect
from .publishing import Publication, State
from .store import Channel, explained, sync
from .trust import require_own_before_signing, require_signatures

_PLATFORMS = (Subdir("linux-64"), Subdir("noarch"))
# a package's driver is on the machine it is for, not on the one that exports
_ANY_DRIVER = "99"
_TEXTS = {MANIFEST, CHANNEL_KEY}
_LARGEST_TEXT = 16 << 20
_LARGEST_PACKAGE = 16 << 30
_LARGEST_HEADER = 1 << 16


class _Archive(tarfile.TarFile):
    header_was_read = False
    """Whether the member before was only a header of the next one."""


class _Member(tarfile.TarInfo):
    """A member of a tar file, of the two kinds that ``export`` writes: files, and what does not fit into their headers.

    tarfile would read a long name or other attributes into memory, however many they say they are; calls itself for each
    header of a member; and goes back in the file, perhaps for ever, where a size is negative.
    """

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type != tarfile.REGTYPE and self.size > _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header has {self.size} bytes")
        if self.size < 0 or self.type not in (tarfile.REGTYPE, tarfile.XHDTYPE):
            raise tarfile.ReadError(f"{self.name} is no plain file")
        assert isinstance(archive, _Archive)
        follows, archive.header_was_read = archive.header_was_read, self.type == tarfile.XHDTYPE
        if follows and archive.header_was_read:
            raise tarfile.ReadError("a member has two headers")
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # of tarfile's inside, which has no types
        # what is in a header counts more than what stands in the field
        if member.size < 0:
            raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
        return member

    def _refuse_holes(self, *_: object) -> None:
        raise tarfile.ReadError(f"{self.name} is no plain file")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_holes


@dataclass(frozen=True)
class Export:
    """A file that was written: its ``path``, ``size`` in bytes, and the packages inside."""

    path: Path
    size: int
    packages: tuple[str, ...]


def export(channel: Channel, target: Path, environment: Path | None = None) -> Export:
    """Write our packages, what an environment file asks for, and all they depend on into one file.

    Args:
        environment: an environment file; the channel's own where it is None.

    Raises:
        ChannelNotFoundError, ChannelDamagedError: there is no channel, or it is damaged.
        EnvironmentUnsolvableError: the channel and those beside it lack something.
        ChannelUnreachableError, DownloadError: a channel beside it is out of reach.
        EnvironmentFileError: the environment file cannot be read.
        UnsignedPackageError: what is in the channel was signed by a key that is not trusted here.
        DiskSpaceError, ChannelNotWritableError: the file cannot be written.
        OSError: what is there in its place is no plain file.
    """
    target = Path(os.path.abspath(target))
    refuse_to_replace_special(target)
    named = environment_files.wanted_by(environment) if environment else None
    # all of it from one generation, which may be pruned while a large one is written
    with channel.holding() as folder, explained(target), staging_folder(target.parent, f".{target.name}-") as staging:
        state = State.at(folder)
        require_own_before_signing(state.manifest, keys.load_publishers(), folder)
        wanted = named or state.manifest.environment or environment_files.wanted_by()
        records = _closure(folder, state, environment_files.dependencies_of(wanted, list(state.packages.values())))
        files = {path: _collect(path, record, folder, staging) for path, record in sorted(records.items())}
        content = Manifest(
            state.manifest.generation, _entries(files, records, state), keys=state.manifest.keys, environment=wanted
        )
        unfinished = staging / "bundle"
        _write(unfinished, content, files)
        refuse_to_replace_special(target)
        os.rename(unfinished, target)
        sync(target.parent)
    return Export(target, target.stat().st_size, tuple(files))


def import_(file: Path, channel: Channel, key: Path | None = None) -> Publication:
    """Publish what an exported file holds, after all of it was checked.

    Args:
        key: the public key that must have signed every package (default: the configured ones).

    Raises:
        BundleError: the file is damaged, or was not made by ``export``.
        UnsignedPackageError: a configured key did not sign a package.
        PackageExistsError, CommitMismatchError, UnsatisfiedPinError: as for ``publishing.publish``.
        ChannelNotWritableError, DiskSpaceError, ChannelDamagedError, SigningKeyError: as they say.
    """
    trust = load_trust(key)
    try:
        source = open_regular(file)
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}", "name a file made by `channel export`") from None
    with source, channel.writing(), channel.staging() as staging:
        content, packages = _unpack(source, staging, file, trust)
        assert content.environment is not None
        return publishing.add(packages, channel, content.environment, content.packages, content.keys)


def _closure(folder: Path, state: State, wanted: Sequence[str]) -> dict[str, RepoDataRecord]:
    """The packages of an environment for each of our CUDA variants, and of one without, by path."""
    ours = [package for package in state.packages.values() if package.is_ours]
    plain = [one for one in wanted if dependencies.name_of(one) != environment_files.PLUGIN]
    plain += sorted(
        {package.name for package in ours} - {environment_files.PLUGIN} - {dependencies.name_of(one) for one in plain}
    )
    variants = sorted({built[0] for package in ours if (built := environment_files.variant_of(package))})
    gateway = Gateway(per_channel_config={folder.as_uri(): SourceConfig(cache_action="no-cache")})
    channels = [folder.as_uri(), *state.manifest.also]
    records = _solve(channels, plain, gateway)
    for variant in variants:
        plugin = f"{environment_files.PLUGIN}=*={variant}_*"
        try:
            records += _solve(channels, [*plain, plugin], gateway)
        except EnvironmentUnsolvableError:
            # an old plugin is tied to an old engine, and so to another build of llama-cpp-python than the newest
            any_build = [
                environment_files.PYTHON if dependencies.name_of(one) == environment_files.PYTHON else one for one in plain
            ]
            records += _solve(channels, environment_files.pinned([*any_build, plugin], ours), gateway)
    return {f"{record.subdir}/{record.file_name}": record for record in records}


def _solve(channels: Sequence[str], specs: Sequence[str], gateway: Gateway) -> list[RepoDataRecord]:
    machine = [one for one in VirtualPackage.detect() if one.into_generic().name.normalized != "__cuda"]
    driver = GenericVirtualPackage(PackageName("__cuda"), Version(_ANY_DRIVER), BuildString("0"))
    try:
        return wait(
            solve(channels, [MatchSpec(one) for one in specs], gateway, _PLATFORMS, virtual_packages=[*machine, driver]),
            SOLVING,
        )
    except GatewayError as error:
        raise ChannelUnreachableError(f"a channel cannot be read: {error}", "check the network, and try again") from None
    except SolverError as error:
        raise EnvironmentUnsolvableError(
            f"the channels lack what the environment needs:\n{error}", "publish what is missing, or name another --environment"
        ) from None


def _collect(path: str, record: RepoDataRecord, folder: Path, staging: Path) -> Path:
    """The file of a package: the channel's own, or a fresh copy from the channel beside it."""
    if (folder / path).is_file():
        return folder / path
    copy = staging / record.file_name
    address = urlsplit(record.url)
    if address.scheme == "file":
        package_files.copy(Path(unquote(address.path)), copy, record)
    else:
        say(f"fetching {record.file_name}, {megabytes(record.size or 0)}")
        wait(package_files.download(record, copy, client()))
    if record.sha256 is None or sha256_of(copy) != record.sha256.hex():
        raise DownloadError(f"{record.url} is not what its channel's index says", "try again")
    # it will be signed: whoever imports it must be able to install it
    inspect(copy)
    return copy


def _entries(files: dict[str, Path], records: dict[str, RepoDataRecord], state: State) -> dict[str, ManifestEntry]:
    key = keys.signing_key()
    entries = {}
    for path, file in files.items():
        known = state.manifest.packages.get(path)
        record = records[path]
        digest = record.sha256.hex() if record.sha256 else ""
        if known and (known.sha256 != digest or sha256_of(file, known.size) != digest):
            raise BundleError(f"{path} was changed since it was published", "python -m distribution channel verify")
        entry = known or ManifestEntry(digest, file.stat().st_size, state.manifest.generation)
        # what others built is signed here, too: whoever imports this file checks all of it with one key
        entries[path] = manifest.sign_entry(path, entry, key)
    return entries


def _write(target: Path, content: Manifest, files: dict[str, Path]) -> None:
    key = keys.signing_key()
    texts = {
        MANIFEST: manifest.dump(content, key).encode(),
        CHANNEL_KEY: keys.public_pem(key.public_key()).encode(),
    }
    with target.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, text in texts.items():
                archive.addfile(_member(name, len(text)), io.BytesIO(text))
            for path, source in files.items():
                with source.open("rb") as package:
                    archive.addfile(_member(path, source.stat().st_size), package)
        file.flush()
        os.fsync(file.fileno())


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


def _unpack(source: IO[bytes], staging: Path, file: Path, trust: Trust) -> tuple[Manifest, list[Path]]:
    """The manifest, and the packages it lists, written to ``staging`` and compared with it."""
    texts: dict[str, bytes] = {}
    packages: dict[str, Path] = {}
    content: Manifest | None = None
    try:
        with _Archive.open(fileobj=source, mode="r:", tarinfo=_Member) as archive:
            for member in archive:
                data = archive.extractfile(member)
                assert data
                if member.name in texts or member.name in packages:
                    raise _damaged(file, f"{member.name} is in it twice")
                if member.name in _TEXTS and member.size <= _LARGEST_TEXT:
                    texts[member.name] = data.read()
                    if texts.keys() == _TEXTS:
                        content = _check_texts(texts, file, trust)
                elif content is None or member.name not in content.packages:
                    raise _damaged(file, f"its manifest does not list {member.name}")
                else:
                    packages[member.name] = _unpack_package(member, data, content.packages[member.name], staging, file)
    # tarfile raises several kinds for headers that make no sense
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        if isinstance(error, DistributionError):
            raise
        raise _damaged(file, str(error)) from None
    if content is None or len(packages) < len(content.packages):
        raise _damaged(file, "it ends too early")
    return content, list(packages.values())


def _check_texts(texts: dict[str, bytes], file: Path, trust: Trust) -> Manifest:
    """The manifest, before anything that it lists is unpacked."""
    content = manifest.parse(texts[MANIFEST], str(file))
    if texts[CHANNEL_KEY] != keys.public_pem(content.public_keys[content.signer]).encode():
        raise _damaged(file, f"{CHANNEL_KEY} is not the key that signed its manifest")
    if content.environment is None:
        raise _damaged(file, "its manifest does not say what an environment asks for")
    if content.files or any(entry.size > _LARGEST_PACKAGE for entry in content.packages.values()):
        raise _damaged(file, "its manifest lists what no exported file holds")
    environment_files.check_wanted(content.environment, str(file))
    if note := require_signatures(content, trust, file.name):
        say(note)
    return content


def _unpack_package(member: tarfile.TarInfo, data: IO[bytes], entry: ManifestEntry, staging: Path, file: Path) -> Path:
    # parse() saw to it that the name is a folder and a file
    target = staging / member.name
    target.parent.mkdir(exist_ok=True)
    if member.size != entry.size:
        raise _damaged(file, f"{member.name} has another size than its manifest says")
    with target.open("wb") as output:
        shutil.copyfileobj(data, output, 1 << 20)
    if sha256_of(target) != entry.sha256:
        raise _damaged(file, f"{member.name} is not what its manifest says")
    return target


def _damaged(file: Path, reason: str) -> BundleError:
    return BundleError(
        f"{file} is damaged, or not all of it is here: {reason}", "copy it again, or export again; the channel is as it was"
    )

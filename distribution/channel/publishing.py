"""Adding packages to a channel, and removing them: always a whole new generation."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rattler import BuildString, PackageRecord, VersionWithSource

from ..conda_archive import LARGEST_PACKED
from ..console import megabytes, say
from ..errors import ChannelDamagedError, DamagedPackageError, PackageExistsError
from ..files import load_json, need_space, read_regular, sha256_of
from ..rattler_async import index_channel
from . import dependencies, environment_files, keys, manifest
from .manifest import CHANNEL_KEY, MANIFEST, Manifest, ManifestEntry, Wanted
from .package_file import SUBDIRS, ChannelPackage, inspect
from .store import Channel, link_or_copy, link_young_shards
from .trust import require_own_before_signing

INDEX = "repodata.json"
LARGEST_INDEX = 32 << 20
_FIELDS = {
    "name": str, "version": str, "build": str, "build_number": int, "subdir": str, "sha256": str, "size": int, "depends": list,
}  # fmt: skip
_TAKES_SECONDS = 100_000_000
COMPLEMENT = "conda-forge"
"""The channel that holds what ours lacks, where it is not complete in itself."""


@dataclass(frozen=True)
class Publication:
    """What a publication did.

    Attributes:
        generation: the channel's current one, afterwards.
        added: paths of packages that were not there before; ``present`` those that were, byte for byte.
        removed: paths of packages that are gone.
        complete: whether the channel needs no other one beside it.
        notes: lines for people.
    """

    generation: int
    added: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    complete: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class State:
    """What a channel holds: the manifest and, by path, what the packages say about themselves.

    The packages are in the order in which they were published, as ``in_order`` has it.
    """

    folder: Path | None
    manifest: Manifest
    packages: Mapping[str, ChannelPackage] = field(default_factory=dict)

    @classmethod
    def of(cls, channel: Channel) -> State:
        """The current state; empty where nothing was published.

        Raises:
            ChannelDamagedError: the manifest or the index cannot be read, or they disagree.
        """
        return cls.at(channel.current()) if channel.exists() else cls(None, Manifest(0, {}))

    @classmethod
    def at(cls, folder: Path) -> State:
        """The state of one generation.

        Raises:
            ChannelNotFoundError: the folder holds none.
            ChannelDamagedError: the manifest or the index cannot be read, or they disagree.
        """
        content = manifest.read(folder)
        records = {
            f"{subdir}/{file_name}": record for subdir in SUBDIRS for file_name, record in read_index(folder / subdir).items()
        }
        if records.keys() != content.packages.keys():
            raise ChannelDamagedError(
                f"the index of {folder} does not list what its manifest lists", "python -m distribution channel verify"
            )
        packages = [described(path, record, content.packages[path].llama_cpp_commit) for path, record in records.items()]
        return cls(folder, content, {package.path: package for package in in_order(packages, content.packages)})


def in_order(packages: Iterable[ChannelPackage], entries: Mapping[str, ManifestEntry]) -> list[ChannelPackage]:
    """The packages, those of the newest publication last; within one publication by version and build number.

    A build string says nothing about age: where builds of one version and number differ in it alone, this order does.
    """

    def age(package: ChannelPackage) -> tuple[int, VersionWithSource, int, str]:
        return entries[package.path].generation, VersionWithSource(package.version), package.build_number, package.build

    return sorted(packages, key=age)


def read_index(subdir: Path) -> dict[str, dict[str, Any]]:
    """The entries of a folder's ``repodata.json``, by file name.

    Raises:
        ChannelDamagedError: it is missing or malformed.
    """
    try:
        return parse_index(read_regular(subdir / INDEX, LARGEST_INDEX))
    except (OSError, ValueError) as error:
        raise ChannelDamagedError(f"the index in {subdir} cannot be read: {error}", manifest.REMEDY) from None


def parse_index(text: bytes) -> dict[str, dict[str, Any]]:
    """The entries of a ``repodata.json``, by file name.

    Raises:
        ValueError: it is malformed.
    """
    document = load_json(text, LARGEST_INDEX)
    entries = document.get("packages.conda") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise ValueError("it lists no packages.conda")
    for name, record in entries.items():
        if not isinstance(record, dict):
            raise ValueError(f"{name!r:.80} is described by no mapping")
        for key, kind in _FIELDS.items():
            if not isinstance(record.get(key), kind) or isinstance(record.get(key), bool):
                raise ValueError(f"{key} of {name!r:.80} is {record.get(key)!r:.40}")
        for one in record["depends"]:
            if not isinstance(one, str) or not dependencies.is_spec(one):
                raise ValueError(f"depends of {name!r:.80} holds {one!r:.80}")
        _check_taken(name, record)
    return entries


def described(path: str, record: Mapping[str, Any], commit: str | None = None) -> ChannelPackage:
    """The package at a path of the channel, as its entry in the index describes it.

    Raises:
        ChannelDamagedError: the entry is about another package. Elsewhere a package is known by its path.
    """
    package = ChannelPackage.from_record(record, commit)
    if package.path != path:
        raise ChannelDamagedError(f"the index was changed: it describes {path} as {package.path!r:.200}", manifest.REMEDY)
    return package


def _check_taken(name: str, record: Mapping[str, Any]) -> None:
    try:
        PackageRecord(record["name"], record["version"], BuildString(record["build"]), record["build_number"], record["subdir"])
    # py-rattler raises another kind for each field
    except Exception as error:
        raise ValueError(f"{name!r:.80} is described as no package can be: {str(error)[:200]}") from None


def publish(
    files: Iterable[Path],
    channel: Channel,
    environment: Path | None = None,
) -> Publication:
    """Add packages to a channel, all of them or none. What is there already, byte for byte, is left alone.

    Args:
        environment: the environment file that the channel's own is made from (default: the repository's).

    Raises:
        PackageExistsError: the channel has a package of that name with other content.
        DamagedPackageError: a file is not a whole ``.conda`` package.
        CommitMismatchError, UnsatisfiedPinError: packages of ours that do not belong together.
        UnsignedPackageError: what is in the channel already was signed by a key that is not trusted here.
        EnvironmentFileError: the environment file asks for what a channel's own cannot.
        ChannelNotWritableError, DiskSpaceError, ChannelDamagedError, SigningKeyError: as they say.
    """
    wanted = environment_files.wanted_by(environment)
    with channel.writing():
        return add(files, channel, wanted)


def add(
    files: Iterable[Path],
    channel: Channel,
    wanted: Wanted,
    signed: Mapping[str, ManifestEntry] | None = None,
    public_keys: Mapping[str, str] | None = None,
) -> Publication:
    """What ``publish`` does, for who holds ``Channel.writing`` already.

    Args:
        signed, public_keys: signatures that packages bring along from another channel, and the keys they were made with.
    """
    coming = _NextGeneration(channel, wanted, public_keys or {})
    with channel.staging() as folder:
        added, present = coming.stage(files, folder, signed or {})
        coming.index()
        coming.describe()
        content = coming.sign()
        if not added and coming.is_like_the_last(content):
            return coming.publication(present=present, generation=coming.last.manifest.generation)
        coming.commit(content)
        return coming.publication(added=added, present=present)


def remove(paths: Iterable[str], channel: Channel, wanted: Wanted) -> Publication:
    """Publish a generation without these packages, and drop all older generations. Only inside ``Channel.writing``."""
    coming = _NextGeneration(channel, wanted)
    gone = set(paths)
    with channel.staging() as folder:
        coming.stage((), folder, without=gone)
        coming.index()
        coming.describe()
        coming.commit(coming.sign(), keep=0)
        return coming.publication(removed=sorted(gone))


class _NextGeneration:
    """A generation on its way: stage, index, describe, sign, commit, in this order. Only inside ``Channel.writing``.

    Attributes:
        last: the channel's current state.
    """

    def __init__(self, channel: Channel, wanted: Wanted, public_keys: Mapping[str, str] | None = None) -> None:
        self.last = _state_to_sign(channel)
        self._channel = channel
        self._wanted = wanted
        self._number = self.last.manifest.generation + 1
        self._keys = {**self.last.manifest.keys, **(public_keys or {})}
        self._entries: dict[str, ManifestEntry] = {}
        self._new: list[str] = []
        self._also: tuple[str, ...] = ()
        self._notes: list[str] = []
        self._addressed: Mapping[str, str] = {}

    def stage(
        self,
        files: Iterable[Path],
        folder: Path,
        signed: Mapping[str, ManifestEntry] | None = None,
        without: Collection[str] = (),
    ) -> tuple[list[ChannelPackage], list[ChannelPackage]]:
        """Puts packages into the generation's folder: those of the last one, and new ones, each read once.

        Args:
            signed: entries that packages bring along from another channel, with signatures.
            without: paths of those that are left out.

        Returns:
            Packages that were not there before, and those that were, byte for byte.
        """
        self._folder = folder
        arrived = _take_in(files, folder / "incoming", self._channel)
        added, present = _sort_out(arrived, self.last)
        dependencies.check(added, list(self.last.packages.values()))
        for subdir in SUBDIRS:
            (folder / subdir).mkdir()
        for path, entry in self.last.manifest.packages.items():
            if path not in without:
                assert self.last.folder, "what it holds is somewhere"
                self._entries[path] = entry
                link_or_copy(self.last.folder / path, folder / path)
        for package in added:
            brought = (signed or {}).get(package.path)
            self._entries[package.path] = ManifestEntry(
                package.sha256, package.size, self._number, package.llama_cpp_commit,
                dict(brought.signatures) if brought else {},
            )  # fmt: skip
            self._new.append(package.path)
            os.rename(folder / "incoming" / package.file_name, folder / package.path)
        shutil.rmtree(folder / "incoming")
        return added, present

    def index(self) -> None:
        """Lists the packages as conda reads them."""
        if self.last.folder:
            for subdir in SUBDIRS:
                # what the indexer finds here it does not read again: nobody may have changed it since it was signed
                _carry(f"{subdir}/{INDEX}", self.last, self._folder)
        index_channel(self._folder)
        # the indexer leaves an empty folder
        shutil.rmtree(self._folder / ".tmp", ignore_errors=True)

    def describe(self) -> None:
        """Writes the channel's environment files and locks, of what the index has."""
        packages = _check_index(self._folder, self._entries)
        needed = [one for package in packages for one in package.depends]
        needed += environment_files.dependencies_of(self._wanted, packages)
        self._also = (COMPLEMENT,) if dependencies.missing(needed, packages) else ()
        self._notes, self._addressed = environment_files.write(self._folder, self._channel, self._wanted, packages, self._also)
        if self.last.folder:
            link_young_shards(self.last.folder, self._folder, self.last.manifest.files)

    def sign(self) -> Manifest:
        """Signs the new packages, and the manifest of everything in the folder."""
        key = keys.signing_key()
        for path in self._new:
            self._entries[path] = manifest.sign_entry(path, self._entries[path], key)
        (self._folder / CHANNEL_KEY).write_text(keys.public_pem(key.public_key()))
        content = Manifest(
            self._number, self._entries, _other_files(self._folder), self._also, self._keys, environment=self._wanted,
            addressed=self._addressed,
        )  # fmt: skip
        (self._folder / MANIFEST).write_text(manifest.dump(content, key))
        return content

    def commit(self, content: Manifest, **how: int) -> None:
        """Makes it the channel's current one."""
        self._channel.publish(self._folder, content.generation, **how)

    def is_like_the_last(self, content: Manifest) -> bool:
        """Whether it says the same: the index holds times and its old shards, and with the same packages it lists the same."""

        def of(files: Mapping[str, str]) -> dict[str, str]:
            return {path: digest for path, digest in files.items() if "/" not in path and path != MANIFEST}

        return self.last.folder is not None and of(content.files) == of(self.last.manifest.files)

    def publication(
        self,
        added: Sequence[ChannelPackage] = (),
        present: Sequence[ChannelPackage] = (),
        removed: Sequence[str] = (),
        generation: int | None = None,
    ) -> Publication:
        """What was done."""
        return Publication(
            self._number if generation is None else generation, tuple(package.path for package in added),
            tuple(package.path for package in present), tuple(removed), not self._also, tuple(self._notes),
        )  # fmt: skip


def _state_to_sign(channel: Channel) -> State:
    """What the channel holds, all of it signed by keys that are trusted here: it will be signed again."""
    state = State.of(channel)
    if state.folder:
        require_own_before_signing(state.manifest, keys.load_publishers(), state.folder)
    return state


def _take_in(files: Iterable[Path], folder: Path, channel: Channel) -> list[ChannelPackage]:
    """Copy files into the channel's file system and read them there, where nobody changes them any more."""
    folder.mkdir()
    files = [Path(file) for file in files]
    size = sum(_size(file) for file in files)
    remedy = "free some space, or remove old builds: python -m distribution channel prune"
    need_space(channel.store, 0 if all(file.is_relative_to(channel.store) for file in files) else size, "publishing", remedy)
    if size > _TAKES_SECONDS:
        say(f"checking {len(files)} packages, {megabytes(size)}")
    packages = []
    for file in files:
        copy = folder / file.name
        if copy.exists():
            if sha256_of(copy) != sha256_of(file):
                raise PackageExistsError(f"{file.name} was given twice, with different content", "name one of them")
            continue
        if file.is_relative_to(channel.store):
            link_or_copy(file, copy)
        else:
            shutil.copyfile(file, copy)
        copy.chmod(0o444)
        packages.append(inspect(copy))
    return packages


def _size(file: Path) -> int:
    try:
        found = file.stat()  # before it is opened: a fifo would wait for a writer
        if not stat.S_ISREG(found.st_mode):
            raise DamagedPackageError(f"{file} is no plain file", "name files that end in .conda")
        if found.st_size > LARGEST_PACKED:
            # one that is empty but for its size would fill the disk while it is copied
            raise DamagedPackageError(f"{file} is larger than any package", "name files that end in .conda")
        with file.open("rb"):
            return found.st_size
    except OSError as error:
        raise DamagedPackageError(f"{file} cannot be read: {error.strerror}", "check the path") from None


def _sort_out(arrived: Sequence[ChannelPackage], state: State) -> tuple[list[ChannelPackage], list[ChannelPackage]]:
    added, present = [], []
    for package in arrived:
        known = state.manifest.find(package.file_name)
        if known is None:
            added.append(package)
        elif known == package.path and state.manifest.packages[known].sha256 == package.sha256:
            present.append(package)
        else:
            raise PackageExistsError(
                f"the channel has another {known}: a published file never changes, because everyone who has it would be "
                "left with the wrong hash",
                "raise the build number (build_number in recipe/recipe.yaml) and build again",
            )
    return added, present


def _carry(path: str, state: State, staging: Path) -> None:
    """Copy a file that is no package from the current generation, if it is still the one that was signed."""
    assert state.folder, "the current generation is in a folder"
    data = read_regular(state.folder / path, LARGEST_INDEX)
    if hashlib.sha256(data).hexdigest() != state.manifest.files.get(path):
        raise ChannelDamagedError(f"{path} in {state.folder} was changed since it was published", manifest.REMEDY)
    (staging / path).write_bytes(data)


def _check_index(folder: Path, entries: Mapping[str, ManifestEntry]) -> list[ChannelPackage]:
    """The packages as the index has them, in order of publication; each must be the file that is signed."""
    packages = []
    for subdir in SUBDIRS:
        for file_name, record in read_index(folder / subdir).items():
            entry = entries.get(f"{subdir}/{file_name}")
            if entry is None or (record["sha256"], record["size"]) != (entry.sha256, entry.size):
                raise ChannelDamagedError(f"{subdir}/{file_name} was changed since it was published", manifest.REMEDY)
            packages.append(described(f"{subdir}/{file_name}", record, entry.llama_cpp_commit))
    if len(packages) != len(entries):
        raise OSError(errno.EIO, "the index is incomplete", str(folder))
    return in_order(packages, entries)


def _other_files(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".conda")
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(files)}

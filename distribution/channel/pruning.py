"""Which builds of ours nothing needs any more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from . import dependencies, publishing
from .environment_files import variant_of, wanted_by
from .package_file import ChannelPackage
from .publishing import Publication, State
from .store import Channel


def prune(channel: Channel, keep: int = 1, environment: Path | None = None, dry_run: bool = False) -> Publication:
    """Remove old builds of our packages that no kept one needs, and all old generations.

    Args:
        keep: how many builds of each package stay, those that were published last; of the CUDA plugin, for each CUDA
            version and set of architectures.
        environment: as for ``publishing.publish``.
        dry_run: only say what would go.

    Raises:
        ChannelNotFoundError: nothing was published there.
        ChannelNotWritableError, ChannelDamagedError, DiskSpaceError: as they say.
    """
    channel.current()
    if dry_run:
        state = State.of(channel)
        return Publication(state.manifest.generation, removed=tuple(sorted(_outdated(state, keep))))
    with channel.writing():
        state = State.of(channel)
        if outdated := _outdated(state, keep):
            return publishing.remove(outdated, channel, wanted_by(environment))
        channel.drop_old_generations(0)
        return Publication(state.manifest.generation)


def _outdated(state: State, keep: int) -> set[str]:
    ours = [package for package in state.packages.values() if package.is_ours]
    builds: dict[tuple[str, str], list[ChannelPackage]] = defaultdict(list)
    for package in ours:
        variant = variant_of(package)
        builds[package.name, variant[0] if variant else ""].append(package)

    newest = [one for group in builds.values() for one in group[-keep:]]
    return {package.path for package in ours} - {package.path for package in _with_partners(newest, ours)}


def _with_partners(packages: Iterable[ChannelPackage], ours: list[ChannelPackage]) -> list[ChannelPackage]:
    """The packages and, at any remove, those of ours they are pinned to."""
    found: dict[str, ChannelPackage] = {}
    waiting = list(packages)
    while waiting:
        package = waiting.pop()
        if package.path not in found:
            found[package.path] = package
            waiting += [partner for _, partners in dependencies.pinned(package, ours) for partner in partners]
    return list(found.values())

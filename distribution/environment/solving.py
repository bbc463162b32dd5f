"""Which packages satisfy an environment file on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rattler import (
    Gateway,
    MatchSpec,
    RepoDataRecord,
    SourceConfig,
    SparseRepoData,
    Subdir,
    VirtualPackage,
    VirtualPackageOverrides,
    solve,
)
from rattler.exceptions import DetectVirtualPackageError, GatewayError, SolverError

from .. import hardware
from ..errors import ChannelUnreachableError, EnvironmentFileError, EnvironmentUnsolvableError
from ..rattler_async import SOLVING, limited_files, wait
from .specification import Specification

CUDA_PLUGIN = "libggml-cuda"
LARGEST_INDEX = 2 << 30
"""Bytes of an index that nobody signed, unpacked; conda-forge's is far smaller."""


@dataclass(frozen=True)
class Solution:
    """What to install.

    Attributes:
        records: the packages.
        requested: the specifications they satisfy.
        note: a line about the GPU, for people; empty where there is nothing to say.
    """

    records: list[RepoDataRecord]
    requested: tuple[str, ...]
    note: str = ""


def solve_environment(
    specification: Specification,
    found: hardware.Hardware | None = None,
    cpu: bool = False,
    sources: Sequence[str | SparseRepoData] | None = None,
) -> Solution:
    """Solve for this machine: its glibc and driver, and the CUDA plugin for its GPUs.

    Args:
        found: the GPUs to choose the plugin for; detected where it is None and the answer matters.
        cpu: leave the CUDA plugin out.
        sources: what to solve from, as ``signatures.open_sources`` has it; the file's channels where it is None.

    Raises:
        ChannelUnreachableError: a channel could not be read, or not in time.
        EnvironmentUnsolvableError: nothing satisfies the file; the message is the solver's.
        DriverTooOldError: the driver is too old for every plugin there is for these GPUs, or for those that the channels
            have; then the remedy says how to build one that fits.
        EnvironmentFileError: ``$CONDA_OVERRIDE_CUDA`` is no version.
    """
    check_folders(specification.channels)
    gateway = _gateway(specification.channels)
    sources = specification.channels if sources is None else sources
    specification, note = _fit_to_hardware(specification, sources, gateway, found, cpu)
    try:
        with limited_files(LARGEST_INDEX):
            records = wait(
                solve(
                    sources=sources,
                    specs=[MatchSpec(one) for one in specification.dependencies],
                    gateway=gateway,
                    virtual_packages=_virtual_packages(),
                    # an index may name further channels: these and no others are asked for
                    channel_relations="disabled",
                ),
                SOLVING,
            )
    except GatewayError as error:
        raise _unreachable(error) from None
    except SolverError as error:
        raise _unsolvable(str(error)) from None
    return Solution(records, specification.dependencies, note)


def _gateway(channels: Sequence[str]) -> Gateway:
    # Channels of our own change by the minute; an index behind TLS is large and may be a little old. And an index in parts is
    # unpacked in memory, whatever its size: it is taken only of channels that a name is enough for (conda-forge), where it saves
    # most of a large download.
    fresh, whole = (SourceConfig(cache_action=action, sharded_enabled=False) for action in ("no-cache", "cache-or-fetch"))
    schemes = {one: urlsplit(one).scheme for one in channels}
    return Gateway(per_channel_config={one: whole if scheme == "https" else fresh for one, scheme in schemes.items() if scheme})


def check_folders(channels: Sequence[str]) -> None:
    """Raise ChannelUnreachableError for a folder that is no channel."""
    for channel in channels:
        if not channel.startswith("file:"):
            continue
        folder = Path(unquote(urlsplit(channel).path))
        if not (folder / "noarch" / "repodata.json").is_file():
            raise ChannelUnreachableError(
                f"{folder} is no conda channel: there is no noarch/repodata.json in it",
                "publish packages to it first: python -m distribution channel publish",
            )


def _virtual_packages() -> list[VirtualPackage]:
    try:
        return VirtualPackage.detect(VirtualPackageOverrides.from_env())
    except DetectVirtualPackageError as error:
        raise EnvironmentFileError(
            f"this machine cannot be described: {error}", "check the variables CONDA_OVERRIDE_CUDA and CONDA_OVERRIDE_GLIBC"
        ) from None


def _fit_to_hardware(
    specification: Specification,
    sources: Sequence[str | SparseRepoData],
    gateway: Gateway,
    found: hardware.Hardware | None,
    cpu: bool,
) -> tuple[Specification, str]:
    """Name the build of the CUDA plugin that runs here, or leave the plugin out."""
    plugin = next((one for one in specification.dependencies if _name(one) == CUDA_PLUGIN), None)
    if plugin is None:
        return specification, ""
    override = hardware.cuda_override()
    if override and not cpu:
        return specification, f"CONDA_OVERRIDE_CUDA={override}: `{plugin}` as the file says, whatever GPU is here"
    if cpu or override == "":
        return _without(specification, plugin), "for the CPU, as asked"
    found = hardware.detect() if found is None else found
    if not found.gpus:
        return _without(specification, plugin), "no NVIDIA GPU here: for the CPU"
    variants = hardware.suitable_variants(found.gpus, found.driver)
    offered = _offered_builds(sources, gateway)
    for variant in variants:
        if any(build.startswith(f"{variant.build_prefix}_") for build in offered):
            version = MatchSpec(plugin).version or "*"
            channel = "".join(plugin.rpartition("::")[:2])
            chosen = f"{channel}{CUDA_PLUGIN} {version} {variant.build_prefix}_*"
            dependencies = tuple(chosen if one == plugin else one for one in specification.dependencies)
            return replace(specification, dependencies=dependencies), f"{found}: {variant}"
    for variant in hardware.VARIANTS:
        there = any(build.startswith(f"{variant.build_prefix}_") for build in offered)
        if there and all(variant.covers(gpu.capability) for gpu in found.gpus):
            # made for these GPUs and not suitable: it is the driver
            hardware.check_driver(variant, found.gpus, found.driver)
    raise EnvironmentUnsolvableError(
        f"the channels have no {CUDA_PLUGIN} for {found}" + (f"; they have {', '.join(sorted(offered))}" if offered else ""),
        "build it (ARCH=120 make packages, with your GPU's compute capability), or use the CPU: --cpu",
    )


def _without(specification: Specification, dependency: str) -> Specification:
    kept = tuple(one for one in specification.dependencies if one != dependency)
    return replace(specification, dependencies=kept)


def _name(dependency: str) -> str:
    return MatchSpec(dependency).name.normalized


def _offered_builds(sources: Sequence[str | SparseRepoData], gateway: Gateway) -> set[str]:
    try:
        with limited_files(LARGEST_INDEX):
            answers = wait(
                gateway.query(
                    sources,  # type: ignore[arg-type]  # SparseRepoData is taken, and py-rattler's annotation leaves it out
                    [Subdir.current(), "noarch"],
                    [CUDA_PLUGIN],
                    recursive=False,
                ),
                SOLVING,
            )
    except GatewayError as error:
        raise _unreachable(error) from None
    return {str(record.build) for records in answers for record in records}


def _unreachable(error: GatewayError) -> ChannelUnreachableError:
    if "os error 27" in str(error):
        return ChannelUnreachableError(
            f"a channel cannot be read: its index has more than {LARGEST_INDEX:,} bytes", "check the address: that is no index"
        )
    return ChannelUnreachableError(
        f"a channel cannot be read: {error}",
        "check the address and the network; where conda-forge is out of reach and the channel is complete in itself, "
        "pass --channel and --override-channels",
    )


def _unsolvable(reason: str) -> EnvironmentUnsolvableError:
    reason = reason.strip()
    remedy = "change what the environment file asks for, or the channels it lists"
    if "__cuda" in reason:
        remedy = "install a newer NVIDIA driver, or choose another variant; CONDA_OVERRIDE_CUDA=13.0 solves for another machine"
    elif "__glibc" in reason:
        remedy = "the packages were built on a newer Linux than this one: build them here, or on an older one"
    return EnvironmentUnsolvableError(f"no set of packages satisfies the environment file:\n{reason}", remedy)

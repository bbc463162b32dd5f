"""The channel's own environment files and locks, which name the address they are read from.

The environment files are rendered from data that the manifest holds, signed: no text of somebody else's passes through.

They do not say ``ADDRESS::package``: py-rattler understands that, but conda takes the end of the address for the name of a
channel at anaconda.org (https://github.com/conda/conda/issues/14404), and of ``http://HOST:PORT`` it makes no channel at all
(https://github.com/conda/conda/issues/10407). The builds that they name say as much as names can: a digest is part of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from rattler.exceptions import InvalidMatchSpecError

from ..environment import specification
from ..errors import ChannelDamagedError, DistributionError, EnvironmentFileError
from ..fetching import answers
from ..files import REPOSITORY, read_regular, write_atomically
from . import dependencies, manifest
from .manifest import Wanted
from .package_file import OURS, ChannelPackage
from .store import Channel

ENVIRONMENT, ENVIRONMENT_CPU = "environment.yml", "environment-cpu.yml"
LOCK, LOCK_CPU = "explicit.txt", "explicit-cpu.txt"
ADDRESSED = (ENVIRONMENT, ENVIRONMENT_CPU, LOCK, LOCK_CPU)
"""The files that hold the channel's address; a server puts its own there."""

PLUGIN, PYTHON, ENGINE = "libggml-cuda", "llama-cpp-python", "libllama"
_HEADING = re.compile(rf"#     conda env create -f (?P<address>\S+)/{re.escape(ENVIRONMENT)}")
_BUILD = re.compile(r"(?P<variant>cuda(?P<cuda>\d+)_sm(?P<targets>\d+(?:_\d+)*))_")
_ENVIRONMENT_NAME = re.compile(r"[^\s/:#\x00-\x1f][^/:#\x00-\x1f]*")
_LARGEST_TEXT = 4 << 20
_SECONDS = 5.0
"""For a channel to say that it is there."""


def variant_of(package: ChannelPackage) -> tuple[str, str, tuple[str, ...]] | None:
    """The variant that the build string of the CUDA plugin names, its CUDA version, and its architectures.

    None where the build string is not one of ours. ``cuda134_sm120_h1a_0`` gives
    ``("cuda134_sm120", "13.4", ("120",))``.
    """
    if package.name != PLUGIN or not (found := _BUILD.match(package.build)):
        return None
    digits = found["cuda"]
    return found["variant"], f"{digits[:2]}.{digits[2:] or 0}", tuple(found["targets"].split("_"))


def wanted_by(template: Path | None = None) -> Wanted:
    """What an environment file asks for; the repository's where ``template`` is None.

    Raises:
        EnvironmentFileError: it is missing, is no environment file, or asks for more than packages by name.
    """
    path = template or REPOSITORY / ENVIRONMENT
    try:
        text = _read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentFileError(f"{path} cannot be read: {error}", "name an environment file: --environment FILE") from None
    # which channels it lists does not matter: a channel's own file lists that channel
    found = specification.parse(text, str(path), only=["here"])
    check_wanted(Wanted(found.name, found.dependencies), str(path))
    return Wanted(found.name, found.dependencies)


def check_wanted(wanted: Wanted, source: str) -> None:
    """Refuse what an environment file of a channel cannot say.

    Raises:
        EnvironmentFileError: a dependency is not a package by name, version and build, or the name is none.
    """
    if wanted.name and not _ENVIRONMENT_NAME.fullmatch(wanted.name):
        raise EnvironmentFileError(f"{source}: an environment cannot be called {wanted.name!r:.80}", "choose another name")
    for dependency in wanted.dependencies:
        try:
            plain = dependencies.is_plain(dependency)
        except InvalidMatchSpecError as error:
            raise EnvironmentFileError(f"{source}: `{dependency:.80}` is no package: {error}", "correct the file") from None
        if not plain:
            raise EnvironmentFileError(
                f"{source}: `{dependency:.80}` names more than a package, its version and its build",
                "take the address or the channel out: the packages come from the channel that the file is published to",
            )


def dependencies_of(wanted: Wanted, packages: Sequence[ChannelPackage], cpu: bool = False) -> list[str]:
    """What the channel's environment file asks for: ``wanted``, without packages of ours that are not among ``packages``.

    It names one build of llama-cpp-python and one of the engine, as in ``pinned``.

    Args:
        packages: in order of publication.
        cpu: leave the CUDA plugin out.

    Raises:
        EnvironmentFileError: ``wanted``, which may be a manifest's, names no package.
    """
    check_wanted(wanted, "what the channel's environment holds")
    adapted = (_adapt(one, packages, cpu) for one in wanted.dependencies)
    return pinned([one for one in adapted if one is not None], packages)


def write(
    folder: Path, channel: Channel, wanted: Wanted, packages: Sequence[ChannelPackage], also: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Write the environment files, and locks where they can be solved.

    Args:
        folder: the generation in the making, indexed.
        packages: what is in it, in order of publication.
        also: channels that hold what this one lacks.

    Returns:
        Lines for people; and the SHA-256 of each file as it is with ``ADDRESS`` in place of the channel's address.
    """
    plugins = [package for package in packages if variant_of(package)]
    notes: list[str] = []
    addressed: dict[str, str] = {}

    def add(name: str, text: str) -> None:
        write_atomically(folder / name, text)
        addressed[name] = neutral_digest(text, channel.url)

    names = [(ENVIRONMENT, LOCK, False), (ENVIRONMENT_CPU, LOCK_CPU, True)] if plugins else [(ENVIRONMENT, LOCK, True)]
    for environment, lock, cpu in names:
        add(environment, render(wanted, environment, channel.url, also, packages, cpu))
        try:
            locked = _lock(folder, channel, folder / environment, packages, also, cpu)
        except DistributionError as error:
            notes.append(f"no {lock}: {error.message}")
        else:
            if locked:
                add(lock, locked)
            else:
                notes.append(
                    f"no {lock}: {' and '.join(also)} out of reach; published along with the packages' dependencies "
                    '("$(python -m distribution seed --print-path)") the channel needs nothing else'
                )
    return notes, addressed


def neutral_digest(text: str, address: str) -> str:
    """The SHA-256 of a text in which ``ADDRESS`` stands for a channel's address."""
    return hashlib.sha256(text.replace(address, manifest.ADDRESS).encode()).hexdigest()


def render(
    wanted: Wanted, file: str, address: str, also: Sequence[str], packages: Sequence[ChannelPackage], cpu: bool = False
) -> str:
    """The text of an environment file of the channel at ``address``; ``file`` is its name."""
    content = {
        **({"name": wanted.name} if wanted.name else {}),
        "channels": [address, *also],
        "dependencies": dependencies_of(wanted, packages, cpu),
    }
    heading = f"#     conda env create -f {address}/{file}\n"
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=10_000)
    return heading + text


def readdress(folder: Path, name: str, address: str) -> str:
    """The text of an environment file or lock of a generation as it is where the channel is read at ``address``.

    Raises:
        OSError: there is no such file.
        ChannelDamagedError: the environment file does not begin as it was written.
    """
    # the address that was written: the folder may have been moved since, or be reached by another path
    heading = _read(folder / ENVIRONMENT).partition("\n")[0]
    if not (written := _HEADING.fullmatch(heading)):
        raise ChannelDamagedError(f"{folder / ENVIRONMENT} does not name its channel", manifest.REMEDY)
    return _read(folder / name).replace(written["address"], address)


def _read(path: Path) -> str:
    return read_regular(path, _LARGEST_TEXT).decode("utf-8")


def _adapt(dependency: str, packages: Sequence[ChannelPackage], cpu: bool) -> str | None:
    name = dependencies.name_of(dependency)
    if name not in OURS:
        return dependency
    if name == PLUGIN and cpu:
        return None
    offered = [package for package in packages if package.name == name]
    if any(package.satisfies(dependency) for package in offered):
        return dependency
    variants = sorted(variant[0] for package in offered if (variant := variant_of(package)))
    return f"{name}=*={variants[-1]}_*" if variants else None


def pinned(wanted: Sequence[str], packages: Sequence[ChannelPackage]) -> list[str]:
    """The dependencies, with llama-cpp-python as the build of it that was published last, and libllama as the one it needs.

    Of two builds with one version and number a solver takes either. The package's own exact pin ties it to one engine,
    and that one to a CUDA plugin; so the build is passed over where the others of ours that are wanted have none for its
    engine, as after a build for the CPU alone.

    The engine is named where nobody asked for it, too, with or without llama-cpp-python: it tolerates nothing beside it that
    is called like a package of ours and is not tied to it. So a solver takes ours, whatever the channel priority is.

    Args:
        packages: in order of publication.
    """
    names = [dependencies.name_of(one) for one in wanted]
    if not set(names) & set(OURS):
        return list(wanted)
    ours = [package for package in packages if package.is_ours]
    leading = PYTHON if PYTHON in names else ENGINE
    asked = next((one for one, name in zip(wanted, names) if name == leading), leading)
    others = [one for one, name in zip(wanted, names) if name in OURS and name != leading]
    offered = [one for one in reversed(ours) if one.name == leading and one.satisfies(asked)]
    newest = next((one for one in offered if _go_together(one, others, ours)), next(iter(offered), None))
    if newest is None:
        return list(wanted)
    exact = {one.name: f"{one.name}={one.version}={one.build}" for one in (newest, *_engines(newest, ours))}
    found = [exact.get(name, one) for one, name in zip(wanted, names)]
    if ENGINE in exact and ENGINE not in names:
        found.insert(next(place for place, name in enumerate(names) if name in OURS), exact[ENGINE])
    return found


def _engines(package: ChannelPackage, ours: Sequence[ChannelPackage]) -> list[ChannelPackage]:
    """The builds of the engine that a package of ours can be beside."""
    partners = [package] if package.name == ENGINE else [one for _, them in dependencies.pinned(package, ours) for one in them]
    return [one for one in partners if one.name == ENGINE]


def _go_together(leading: ChannelPackage, others: Sequence[str], ours: Sequence[ChannelPackage]) -> bool:
    def engines(package: ChannelPackage) -> set[str]:
        return {one.path for one in _engines(package, ours)}

    wanted = engines(leading)
    return all(
        any(one.name == dependencies.name_of(other) and one.satisfies(other) and wanted & engines(one) for one in ours)
        for other in others
    )


def _lock(
    folder: Path, channel: Channel, environment: Path, packages: Sequence[ChannelPackage], also: Sequence[str], cpu: bool
) -> str:
    """The lock of an environment file, or nothing where channels it needs are out of reach."""
    if not all(_reachable(one) for one in also):
        return ""
    from ..environment import lock

    cuda = max((variant[1] for package in packages if (variant := variant_of(package))), default="")
    # solved for who installs it: a machine with a driver, whether or not this one has
    with _environment_variable("CONDA_OVERRIDE_CUDA", "" if cpu else cuda):
        text = lock.explicit([folder.as_uri(), *also], environment, cpu=cpu)
    return text.replace(folder.as_uri(), channel.url)


def _reachable(channel: str) -> bool:
    from rattler import Channel as CondaChannel

    if os.environ.get("CONDA_OFFLINE", "").lower() in ("1", "true", "yes"):
        return False
    return answers(f"{CondaChannel(channel).base_url}noarch/repodata.json.zst", _SECONDS)


@contextlib.contextmanager
def _environment_variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before

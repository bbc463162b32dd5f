"""Which packages belong together: ours are tied to one another by exact pins and by the llama.cpp commit inside."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rattler import MatchSpec
from rattler.exceptions import InvalidMatchSpecError

from ..errors import CommitMismatchError, UnsatisfiedPinError
from .package_file import OURS, ChannelPackage


def check(added: Sequence[ChannelPackage], present: Sequence[ChannelPackage]) -> None:
    """Refuse packages of ours that have no place among those that are there and those that come with them.

    Raises:
        UnsatisfiedPinError: a package is tied to a build that is in neither.
        CommitMismatchError: a package does not say its llama.cpp commit, or is tied to one of another commit.
    """
    for package in added:
        if package.is_ours and not package.llama_cpp_commit:
            raise CommitMismatchError(
                f"{package.file_name} does not say which llama.cpp commit it was built from",
                "publish what `python -m distribution build` or `conda build recipe/` made",
            )
    everything = [*present, *added]
    new = {package.path for package in added}
    for package in everything:
        for dependency, partners in pinned(package, everything):
            if package.path in new and not partners:
                raise UnsatisfiedPinError(
                    f"{package.file_name} needs `{dependency}`, which is neither in the channel nor published with it",
                    "publish the packages of one build together",
                )
            if package.path in new or any(partner.path in new for partner in partners):
                _check_commits(package, partners)


def pinned(package: ChannelPackage, among: Iterable[ChannelPackage]) -> list[tuple[str, list[ChannelPackage]]]:
    """The dependencies of a package of ours on others of ours, each with the packages that satisfy it."""
    if not package.is_ours:
        return []
    among = list(among)
    return [
        (dependency, [other for other in among if other.name == name and other.satisfies(dependency)])
        for dependency in package.depends
        if (name := name_of(dependency)) in OURS
    ]


def missing(dependencies: Iterable[str], among: Sequence[ChannelPackage]) -> list[str]:
    """The dependencies that none of the packages satisfies; what the machine must offer (``__glibc``) is left out."""
    by_name: dict[str, list[ChannelPackage]] = {}
    for package in among:
        by_name.setdefault(package.name, []).append(package)
    return sorted(
        dependency
        for dependency in set(dependencies)
        if not (name := name_of(dependency)).startswith("__")
        and not any(package.satisfies(dependency) for package in by_name.get(name, ()))
    )


def name_of(dependency: str) -> str:
    """The package that a match specification is about."""
    name = MatchSpec(dependency).name
    return name.normalized if name else ""


def is_spec(text: str) -> bool:
    """Whether a text is a match specification that names a package."""
    try:
        return bool(name_of(text))
    except InvalidMatchSpecError:
        return False


def is_plain(dependency: str) -> bool:
    """Whether a match specification is about a package's name, version and build alone, and not about where it is from.

    Raises:
        InvalidMatchSpecError: it is none.
    """
    # an address or a path, a channel, or a key in brackets (url= among them), which MatchSpec does not show
    return MatchSpec(dependency).name is not None and not re.search(r"[:/\\\[\]@;]", dependency)


def _check_commits(package: ChannelPackage, partners: Sequence[ChannelPackage]) -> None:
    if partners and all(partner.llama_cpp_commit != package.llama_cpp_commit for partner in partners):
        raise CommitMismatchError(
            f"{package.file_name} was built from llama.cpp {package.llama_cpp_commit}, and {partners[0].file_name}, "
            f"which it needs, from {partners[0].llama_cpp_commit}",
            "build all packages from one commit, and publish them together",
        )

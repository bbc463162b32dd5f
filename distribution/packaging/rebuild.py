"""Proves that a build is reproducible: builds the same commit twice, from two folders, and compares every byte."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from ..console import say
from ..errors import NotReproducibleError
from ..files import REPOSITORY, scratch_folder, sha256_of
from . import build, inputs
from .normalise import members


def rebuild(
    variants: Sequence[str], channels: Sequence[str], only: Sequence[str] = (), with_cache: bool = False
) -> dict[str, str]:
    """Build everything again and compare; return the packages' names with their SHA-256.

    What is in ``dist/packages`` from the same sources counts as the first build; where it is missing it is made. The
    second starts from a copy of the checkout in another folder and compiles all of it: its compiler cache is empty at
    first, unless ``with_cache`` lets it have the user's answers.

    Raises:
        NotReproducibleError: a package came out otherwise the second time; names the first file that differs.
        BuildError: a build failed.
        DownloadError, HashMismatchError, TreeMismatchError: the engine's source could not be had.
    """
    with scratch_folder() as scratch:
        copy = scratch / "elsewhere" / "checkout"
        build.fetch_engine()
        inputs.export(copy)
        first = build.build(variants, channels, only=only)
        cache = None if with_cache else scratch / "ccache"
        output = scratch / "second"
        if only:
            shutil.copytree(build.OUTPUT, output)  # what they depend on
        # not without a cache: several packages come from one compile, which the build engine repeats for each
        second = build.build(variants, channels, output, copy, test=False, rebuild=True, only=only, compiler_cache=cache)
        differences = []
        for one, other in zip(first, second, strict=True):
            try:
                compare(one, other)
            except NotReproducibleError as error:
                differences.append(error)
        for difference in differences[1:]:
            say(str(difference))
        if differences:
            raise differences[0]
        return {path.name: sha256_of(path) for path in first}


def compare(one: Path, other: Path) -> None:
    """Raise NotReproducibleError unless two packages are the same bytes; say what differs first."""
    if one.read_bytes() == other.read_bytes():
        return
    ours, theirs = members(one), members(other)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) == theirs.get(name):
            continue
        what = "is in one of them only" if name not in ours or name not in theirs else "differs"
        kept = REPOSITORY / "build" / "not-reproducible"
        kept.mkdir(parents=True, exist_ok=True)
        for path, label in ((one, "first"), (other, "second")):
            shutil.copyfile(path, kept / f"{label}-{path.name}")
        raise NotReproducibleError(f"{one.name} is not reproducible: {name} {what}", f"compare the two packages in {kept}", name)
    raise NotReproducibleError(
        f"{one.name} holds the same files, packed in another way", "the archives' order or compression differs", ""
    )

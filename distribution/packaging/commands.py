"""``python -m distribution build`` and ``verify``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..console import say
from ..errors import BuildError
from . import build, rebuild


def add_build(parser: argparse.ArgumentParser) -> None:
    """Set up ``build``."""
    _add_choice(parser)
    parser.add_argument("--output", type=Path, default=build.OUTPUT, help="folder for the packages (default: dist/packages)")
    parser.add_argument("--no-test", action="store_true", help="leave out the tests inside the packages")
    parser.add_argument("--rebuild", action="store_true", help="build also what is there from the same sources")
    parser.set_defaults(run=_build)


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Set up ``verify``."""
    _add_choice(parser)
    parser.add_argument("--rebuild", action="store_true", required=True, help="build again, from another folder, and compare")
    parser.add_argument("--with-cache", action="store_true", help="let the compiler cache answer, instead of compiling all of it")
    parser.set_defaults(run=_verify)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--variant", action="append", default=[],
        help="a file of recipe/variants/: cpu, 90a, 89, cuda129, portable, … (default: RTX 5090)",
    )  # fmt: skip
    parser.add_argument("--arch", help="the GPU instead: a compute capability without the dot (120, 90, 89), or cpu")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="this package, of which others are built already; may be repeated",
    )
    parser.add_argument(
        "--channel", action="append", default=[],
        help="where dependencies come from (default: conda-forge, or a seeded channel where that is out of reach)",
    )  # fmt: skip


def variants_of(architecture: str) -> list[str]:
    """The variant files for a compute capability without the dot, or for ``cpu``.

    Raises:
        BuildError: there is none for it.
    """
    if architecture == build.CPU_ONLY:
        return [build.CPU_ONLY]
    number = architecture.removesuffix("-real").removesuffix("a")
    try:
        # code for one architecture alone can do more, where there is such
        return build.variant_files("13.4", [f"{number}a-real"])
    except BuildError:
        return build.variant_files("13.4", [f"{number}-real"])


def _variants(options: argparse.Namespace) -> list[str]:
    return variants_of(options.arch) if options.arch else options.variant


def _build(options: argparse.Namespace) -> None:
    variants = _variants(options)
    built = build.build(
        variants,
        options.channel or build.dependencies(cuda=build.CPU_ONLY not in variants),
        output=options.output.absolute(),
        test=not options.no_test,
        rebuild=options.rebuild,
        only=options.only,
    )
    for path in built:
        print(path)


def _verify(options: argparse.Namespace) -> None:
    variants = _variants(options)
    channels = options.channel or build.dependencies(cuda=build.CPU_ONLY not in variants)
    for name, digest in rebuild.rebuild(variants, channels, options.only, options.with_cache).items():
        print(f"{digest}  {name}")
    say("both builds gave the same bytes")

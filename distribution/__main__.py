"""The command line: ``python -m distribution COMMAND …``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import console, interruption, toolkit, update, vendor
from .pin import Pin


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    interruption.install()
    return console.run(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int | None:
    options = _parser(arguments).parse_args(arguments)
    status: int | None = options.run(options)
    return status


# What a command needs is imported when it is run: `vendor` must work where nothing is installed.
_COMMANDS: dict[str, tuple[str, str | Callable[[argparse.ArgumentParser], None]]] = {
    "vendor": ("unpack, prove and patch the pinned llama.cpp", lambda parser: _add_vendor(parser)),
    "toolkit": ("assemble a CUDA toolkit from pinned wheels", lambda parser: _add_toolkit(parser)),
    "seed": ("make a conda channel of this machine's Python, compiler and wheels", "seed:add_commands"),
    "build": ("build the conda packages", "packaging.commands:add_build"),
    "verify": ("show that a build gives the same bytes again", "packaging.commands:add_verify"),
    "channel": ("share packages: publish, serve, verify, export", "channel:add_commands"),
    "env": ("make the environment, or lock it", "environment:add_commands"),
    "demo": ("from this checkout to an answer: what `make demo` does", "demo:add_commands"),
    "provenance": ("say what a package was made from (for the recipe)", "provenance:add_commands"),
}


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m distribution", description="From pinned sources to packages.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (summary, add) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if name in arguments:
            _load(add)(command)
    return parser


def _load(add: str | Callable[[argparse.ArgumentParser], None]) -> Callable[[argparse.ArgumentParser], None]:
    if callable(add):
        return add
    module, _, function = add.partition(":")
    found: Callable[[argparse.ArgumentParser], None] = getattr(importlib.import_module(f".{module}", __package__), function)
    return found


def _add_vendor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, default=vendor.FOLDER, help="where pin.toml is (default: this repository's)")
    parser.add_argument("--force", action="store_true", help="throw away changes made in source/")
    parser.add_argument(
        "--from-git", nargs="?", const="", metavar="URL", help="fetch the commit from a git repository (default: upstream)"
    )
    parser.set_defaults(run=_vendor)
    actions = parser.add_subparsers(metavar="ACTION")

    status = actions.add_parser("status", help="say what is there")
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(run=_vendor_status)

    move = actions.add_parser("update", help="move the pin to another release of the carrier")
    move.add_argument("release", help="its version on the package index, for example 0.3.36")
    move.add_argument("--dry-run", action="store_true", help="report only, change nothing")
    move.set_defaults(run=_vendor_update)


def _vendor(options: argparse.Namespace) -> None:
    folder = options.folder.absolute()
    url = options.from_git
    if url == "":
        url = Pin.load(folder / "pin.toml").git
    vendor.vendor(folder, from_git=url, force=options.force)


def _vendor_status(options: argparse.Namespace) -> None:
    found = vendor.status(options.folder.absolute())
    print(found.json() if options.json else found.text())


def _vendor_update(options: argparse.Namespace) -> None:
    update.update(options.folder.absolute(), options.release, dry_run=options.dry_run, force=options.force)


def _add_toolkit(parser: argparse.ArgumentParser) -> None:
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--print-path", action="store_true", help="assemble if need be; print the folder, nothing else")
    choice.add_argument("--assembled-path", action="store_true", help="print the folder if it is assembled, else nothing")
    choice.add_argument("--status", action="store_true", help="say what is there, download nothing")
    choice.add_argument("--verify", action="store_true", help="hash every file of the assembled toolkit")
    parser.set_defaults(run=_toolkit)


def _toolkit(options: argparse.Namespace) -> None:
    if options.status:
        print(toolkit.status())
    elif options.assembled_path:
        if path := toolkit.assembled_path():
            print(path)
    elif options.verify:
        print(toolkit.verify())
    else:
        print(toolkit.assemble(quiet=options.print_path))


if __name__ == "__main__":
    sys.exit(main())

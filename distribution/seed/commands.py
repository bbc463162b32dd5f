"""The command line: ``python -m distribution seed …``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import toolkit
from ..errors import SeedError
from . import channel, pins


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Set up ``seed`` and ``seed pin``."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--status", action="store_true", help="say what a seed would be made from; make nothing")
    choice.add_argument("--print-path", action="store_true", help="print the folder, nothing else")
    parser.add_argument("--cuda", metavar="VERSION", help="include this CUDA toolkit, for example 13.4")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the channel goes (default: the cache)")
    parser.set_defaults(run=_seed)
    actions = parser.add_subparsers(metavar="ACTION")
    pin = actions.add_parser("pin", help="pin the newest wheels (for maintainers)")
    pin.set_defaults(run=lambda options: pins.choose())


def _seed(options: argparse.Namespace) -> None:
    cuda = options.cuda is not None
    if cuda:
        _check_cuda(options.cuda)
    if options.status:
        print(channel.status(cuda=cuda, output=options.output))
    else:
        print(channel.seed(cuda=cuda, quiet=options.print_path, output=options.output))


def _check_cuda(asked: str) -> None:
    pinned = toolkit.Pins.load().cuda
    if not f"{pinned}.".startswith(f"{asked}."):
        raise SeedError(f"CUDA {asked} is not pinned", f"ask for {'.'.join(pinned.split('.')[:2])}")

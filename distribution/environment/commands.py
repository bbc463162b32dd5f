"""``python -m distribution env create|lock``."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import say
from ..errors import EnvironmentFileError, ToolNotFoundError
from ..files import write_atomically
from . import activate_script, prefixes

if TYPE_CHECKING:
    from .solving import Solution
    from .specification import Specification

# What needs py-rattler is imported when a command runs: this module is loaded before anything is installed.


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Set up ``create`` and ``lock``."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    create = actions.add_parser("create", help="make an environment, as conda env create does")
    _add_common(create, "an environment file or a lock: a path or a URL")
    place = create.add_mutually_exclusive_group()
    place.add_argument("-n", "--name", help="the environment's name (default: the file's)")
    place.add_argument("-p", "--prefix", type=Path, help="the environment's folder, instead of a name")
    create.add_argument("--force", action="store_true", help="replace an environment of that name once the new one is complete")
    create.set_defaults(run=_create)

    lock = actions.add_parser("lock", help="write down every package by URL and hash, for conda create --file")
    _add_common(lock, "an environment file: a path or a URL")
    lock.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: print it")
    lock.set_defaults(run=_lock)


def _add_common(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-f", "--file", default="environment.yml", help=f"{what} (default: environment.yml)")
    parser.add_argument("--channel", default="", metavar="URL_OR_PATH", help="in place of ${LLAMA_CPP_CHANNEL}")
    parser.add_argument("--override-channels", action="store_true", help="use --channel alone, not what the file lists")
    parser.add_argument("--cpu", action="store_true", help="leave the CUDA plugin out")
    parser.add_argument("--key", type=Path, metavar="FILE", help="refuse what this public key did not sign")
    parser.add_argument("--allow-older", action="store_true", help="take a channel that is older than it was the last time")


def _create(options: argparse.Namespace) -> None:
    started = time.monotonic()
    _check_installed()
    from ..channel.keys import load_trust
    from . import install, lock, signatures, specification

    trust = load_trust(options.key)
    text = signatures.read_environment_file(options.file, trust, options.allow_older)
    wanted = None
    if not lock.is_lock(text):
        wanted = specification.parse(text, options.file, options.channel, _only(options))
    elif options.channel or options.cpu:
        raise EnvironmentFileError(f"{options.file} is a lock: it names every package itself", "leave --channel and --cpu out")
    prefix = options.prefix or prefixes.find_prefix(options.name or (wanted.name if wanted else ""))
    # a person should not wait for the solver to hear this
    install.check_free(Path(os.path.abspath(prefix)), options.force)

    if wanted:
        solution = _solve(wanted, options)
        records, requested = solution.records, solution.requested
    else:
        records, requested = lock.read(text, options.file), ()
        with signatures.open_sources(sorted({one.channel for one in records}), trust, options.allow_older) as sources:
            records = [sources.described(one) for one in records]
            sources.check(records)
    made = install.create(records, prefix, requested, force=options.force)
    say(f"{len(records)} packages in {time.monotonic() - started:.1f} s")
    _say_how_to_activate(made, by_name=options.prefix is None)


def _lock(options: argparse.Namespace) -> None:
    _check_installed()
    from ..channel.keys import load_trust
    from . import lock, signatures, specification

    text = signatures.read_environment_file(options.file, load_trust(options.key), options.allow_older)
    wanted = specification.parse(text, options.file, options.channel, _only(options))
    text = lock.render(_solve(wanted, options).records, wanted.name)
    if options.output is None:
        print(text, end="")
        return
    try:
        write_atomically(options.output, text)
    except OSError as error:
        raise EnvironmentFileError(f"{options.output} cannot be written: {error.strerror}", "choose another file: -o") from None
    say(f"wrote {options.output}")


def _solve(wanted: Specification, options: argparse.Namespace) -> Solution:
    """The packages that satisfy an environment file, all of them checked."""
    from ..channel.keys import load_trust
    from . import signatures, solving

    say(f"solving for {', '.join(wanted.channels)}")
    solving.check_folders(wanted.channels)
    with signatures.open_sources(wanted.channels, load_trust(options.key), options.allow_older) as sources:
        solution = solving.solve_environment(wanted, cpu=options.cpu, sources=sources.for_solver)
        sources.check(solution.records)
    if solution.note:
        say(solution.note)
    return solution


def _only(options: argparse.Namespace) -> tuple[str, ...]:
    if options.override_channels and not options.channel:
        raise EnvironmentFileError("--override-channels needs a channel to use instead", "add --channel URL_OR_PATH")
    return (options.channel,) if options.override_channels else ()


def _say_how_to_activate(prefix: Path, by_name: bool) -> None:
    if shutil.which("conda") or os.environ.get("CONDA_EXE"):
        how = f"conda activate {prefix.name if by_name else shlex.quote(str(prefix))}"
    else:
        how = f". {shlex.quote(str(prefix / activate_script.FILENAME))}"
    say(f"{prefix} is ready; activate it with")
    print(how)


def _check_installed() -> None:
    for module, name in (("rattler", "py-rattler"), ("yaml", "pyyaml"), ("rich", "rich"), ("cryptography",) * 2):
        if importlib.util.find_spec(module) is None:
            raise ToolNotFoundError(f"{sys.executable} has no {name}", f"{sys.executable} -m pip install {name}")

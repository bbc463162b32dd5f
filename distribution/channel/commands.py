"""``python -m distribution channel …``."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from ..console import megabytes, say
from ..errors import ChannelDamagedError, DamagedPackageError
from ..files import REPOSITORY

if TYPE_CHECKING:
    from .publishing import Publication

CHANNEL_VARIABLE = "LLAMA_CPP_CHANNEL"


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Set up the sub-commands."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    publish = _add(actions, "publish", "add packages, all of them or none", _publish)
    publish.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a .conda package, or a folder of them")
    _add_environment(publish)

    listing = _add(actions, "list", "say what is in it", _list)
    listing.add_argument("--json", action="store_true", help="for programs")

    verify = _add(actions, "verify", "check hashes, signatures, architectures and provenance of every package", _verify)
    _add_key(verify)

    serve = _add(actions, "serve", "offer it to other machines over HTTP", _serve)
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen at; 0.0.0.0 for the whole network")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument(
        "--connections", type=_positive, metavar="N",
        help="at once, in all (default: a quarter of the files that a process may open, 512 at most)",
    )  # fmt: skip
    serve.add_argument(
        "--connections-per-address", type=_positive, metavar="N",
        help="at once, of one IPv4 address or one /64 of IPv6 (default: half of those in all)",
    )  # fmt: skip
    serve.add_argument(
        "--request-time", type=_positive, default=15, metavar="SECONDS",
        help="for a whole request, from the connection or the last answer on (default: 15)",
    )  # fmt: skip
    serve.add_argument(
        "--minimum-rate", type=_positive, default=4096, metavar="BYTES",
        help="a second, that a client must take of an answer (default: 4096)",
    )  # fmt: skip

    export = _add(actions, "export", "write our packages and all they need into one file", _export)
    export.add_argument("file", type=Path, metavar="FILE", help="the file to write, for example llama-cpp.tar")
    export.add_argument("--environment", type=Path, metavar="FILE", help="what else must be inside (default: the channel's own)")

    import_ = _add(actions, "import", "publish what an exported file holds", _import)
    import_.add_argument("file", type=Path, metavar="FILE")
    _add_key(import_)

    prune = _add(actions, "prune", "remove old builds that nothing needs", _prune)
    prune.add_argument("--keep", type=_positive, default=1, metavar="N", help="builds of each package that stay (default: 1)")
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")
    _add_environment(prune)


def default_channel() -> Path:
    """``$LLAMA_CPP_CHANNEL`` where that is a folder, else ``dist/channel`` in the repository, and a line that says so."""
    chosen, here = os.environ.get(CHANNEL_VARIABLE, ""), REPOSITORY / "dist" / "channel"
    if chosen.startswith("file://"):
        return Path(unquote(urlsplit(chosen).path))
    if "://" in chosen:
        say(f"${CHANNEL_VARIABLE} is {chosen}, which is no folder: this is about {here} (another one: --channel DIR)")
        return here
    return Path(chosen) if chosen else here


def _add(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text)
    parser.add_argument(
        "--channel", type=Path, metavar="DIR", help=f"the channel's folder (default: ${CHANNEL_VARIABLE} or dist/channel)"
    )

    def run_with_channel(options: argparse.Namespace) -> None:
        options.channel = options.channel or default_channel()
        run(options)

    parser.set_defaults(run=run_with_channel)
    return parser


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", type=Path, metavar="FILE", help="refuse what this public key did not sign")


def _add_environment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--environment",
        type=Path,
        metavar="FILE",
        help="what the channel's environment.yml is made from (default: the repository's)",
    )


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


# Each command imports what it needs when it runs: the others work without the packages for it.


def _publish(options: argparse.Namespace) -> None:
    from . import publishing
    from .store import Channel

    files = [one for file in options.files for one in (sorted(file.rglob("*.conda")) if file.is_dir() else [file])]
    if not files:
        raise DamagedPackageError(f"there are no .conda packages in {options.files[0]}", "name packages, or a folder of them")
    _report(publishing.publish(files, Channel.at(options.channel), options.environment), options.channel)


def _report(done: Publication, channel: Path) -> None:
    for note in done.notes:
        say(f"note: {note}")
    for path in done.added:
        print(f"+ {path}")
    for path in done.removed:
        print(f"- {path}")
    if not done.added and not done.removed:
        say(f"nothing new; {len(done.present)} packages were there already")
    state = "complete in itself" if done.complete else "needs conda-forge beside it"
    say(f"generation {done.generation} of {channel}, {state}")


def _list(options: argparse.Namespace) -> None:
    import json

    from .publishing import State
    from .store import Channel

    channel = Channel.at(options.channel)
    channel.current()
    state = State.of(channel)
    rows = [(package, state.manifest.packages[path]) for path, package in state.packages.items()]
    if options.json:
        fields = ("name", "version", "build", "subdir", "size", "sha256")
        more = ("generation", "llama_cpp_commit")
        packages = [
            {**{one: getattr(package, one) for one in fields}, **{one: getattr(entry, one) for one in more}}
            for package, entry in rows
        ]
        print(json.dumps({"generation": state.manifest.generation, "also": state.manifest.also, "packages": packages}, indent=1))
        return
    # ours first, as they are what the channel is for
    for package, entry in sorted(rows, key=lambda row: (not row[0].is_ours, row[0].name, row[1].generation)):
        commit = (entry.llama_cpp_commit or "")[:12]
        print(f"{package.name:22} {package.version:12} {package.build:32} {megabytes(package.size):>10}  {commit}".rstrip())
    say(f"generation {state.manifest.generation}, {len(rows)} packages")


def _verify(options: argparse.Namespace) -> None:
    from .store import Channel
    from .verification import NOT_DISASSEMBLED, verify

    wrong = checked = 0
    unseen = False
    for finding in verify(Channel.at(options.channel), options.key):
        checked += 1
        wrong += bool(finding.problems)
        unseen |= NOT_DISASSEMBLED in finding.facts
        if finding.problems or finding.facts or finding.path.endswith(".conda"):
            details = "; ".join([*finding.problems, *finding.facts])
            print(f"{'WRONG' if finding.problems else 'ok':6}{finding.path}{': ' if details else ''}{details}")
    if wrong:
        raise ChannelDamagedError(
            f"{wrong} of {checked} files of {options.channel} are wrong",
            "do not install from it; publish to a new folder, or get the channel again from where it came",
        )
    more = f"; {NOT_DISASSEMBLED} (python -m distribution toolkit)" if unseen else ""
    say(f"{checked} files are as they were published{more}")


def _serve(options: argparse.Namespace) -> None:
    from .connections import Limits
    from .environment_files import ENVIRONMENT
    from .server import ChannelServer
    from .store import Channel

    limits = Limits.chosen(options.connections, options.connections_per_address, options.request_time, options.minimum_rate)
    # Ctrl-C is how it is meant to end
    with (
        contextlib.suppress(KeyboardInterrupt),
        ChannelServer(Channel.at(options.channel), options.host, options.port, limits) as server,
    ):
        say(f"serving {options.channel} at {server.address}; Ctrl-C ends it")
        if server.is_open:
            say("it is open to the network: whoever reaches this machine can read it")
        say(f"on another machine: conda env create -f {server.reachable_address}/{ENVIRONMENT}")
        server.serve_forever()


def _export(options: argparse.Namespace) -> None:
    from . import bundle
    from .store import Channel

    done = bundle.export(Channel.at(options.channel), options.file, options.environment)
    say(f"{len(done.packages)} packages, {megabytes(done.size)}; there: python -m distribution channel import {done.path.name}")
    print(done.path)


def _import(options: argparse.Namespace) -> None:
    from . import bundle
    from .store import Channel

    _report(bundle.import_(options.file, Channel.at(options.channel), options.key), options.channel)


def _prune(options: argparse.Namespace) -> None:
    from .pruning import prune
    from .store import Channel

    done = prune(Channel.at(options.channel), options.keep, options.environment, options.dry_run)
    for path in done.removed:
        print(f"- {path}")
    gone = "would go" if options.dry_run else "are gone"
    say(f"{len(done.removed)} packages {gone}; generation {done.generation} of {options.channel}")

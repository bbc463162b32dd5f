"""What was compiled for one package of a build, kept for the next: run by ``recipe/build-engine.sh``.

Whoever builds one package after the other gets the engine's script run for each of them. What it installs is kept from the
first to the last, in ``$LLAMA_CPP_STAGED`` or ``<cache>/staged``, under a key of all that goes into it *and* of the process
that builds. So nothing that an earlier build left is ever used, and a build that is done again compiles again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..console import say
from ..files import cache_dir, locked, remove_tree

NOT_THERE = 3
"""The exit status of ``take`` when nothing is kept."""
LIMIT = 4
"""As many results are kept at most: a build that has several compilers makes one with each."""
FOLDERS = ("bin", "etc", "lib", "share")
# what decides over the result, beside the sources and the packages that compile them
VARIABLES = (
    "AR", "AS", "CC", "CFLAGS", "CMAKE_ARGS", "CONDA_BUILD_SYSROOT", "CPPFLAGS", "CXX", "CXXFLAGS", "LD", "LDFLAGS",
    "LLAMA_CPP_INPUTS", "RANLIB", "STRIP", "SUBDIR",
)  # fmt: skip


def take(prefix: Path, builder: int, sources: str) -> bool:
    """Copy what was kept to ``prefix``; return whether there was something.

    Args:
        prefix: where packages are installed.
        builder: the process that builds.
        sources: a digest of the sources.
    """
    process = identity(builder)
    if not process:
        return False
    entry = _place() / key(process, sources, os.environ)
    with locked(_place() / "lock", "what was compiled before"):
        if not entry.is_dir():
            return False
        say(f"compiled before, for another package: taken from {entry}")
        shutil.copytree(entry / "prefix", prefix, symlinks=True, dirs_exist_ok=True)
    return True


def keep(prefix: Path, builder: int, sources: str) -> None:
    """Copy what is in ``prefix`` to where ``take`` finds it, all of it or nothing, and remove what nobody will take any more."""
    process = identity(builder)
    if not process:
        return
    place = _place()
    try:
        with locked(place / "lock", "what was compiled before"):
            _clear(place)
            made = Path(tempfile.mkdtemp(dir=place, prefix="new-"))
            (made / "process").write_text(process)
            brought = _files_of_packages(prefix)

            def not_ours(folder: str, names: list[str]) -> set[str]:
                return {name for name in names if Path(folder, name).relative_to(prefix).as_posix() in brought}

            for name in FOLDERS:
                shutil.copytree(prefix / name, made / "prefix" / name, symlinks=True, ignore=not_ours)
            entry = place / key(process, sources, os.environ)
            remove_tree(entry)
            os.rename(made, entry)
    except OSError as error:
        say(f"the next package will be compiled again: {error}")


def identity(process: int) -> str:
    """What no other process has, on this machine or another, now or later; empty where that cannot be told."""
    try:
        # after the name, which is in brackets and may hold anything
        started = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{os.uname().nodename} {boot} {os.readlink('/proc/self/ns/pid')} {process} {started}"
    except (OSError, IndexError):
        return ""


def key(process: str, sources: str, variables: Mapping[str, str]) -> str:
    """The name of what is kept: a digest of everything that goes into it."""
    prefixes = {name: variables[name] for name in ("PREFIX", "BUILD_PREFIX", "SRC_DIR") if variables.get(name)}
    chosen = {name: variables[name] for name in VARIABLES if name in variables}
    for name, folder in sorted(prefixes.items(), key=lambda item: -len(item[1])):
        # the same in each package's folders
        chosen = {variable: value.replace(folder, f"${name}") for variable, value in chosen.items()}
    packages = sorted(path.name for name in ("PREFIX", "BUILD_PREFIX") for path in _records(prefixes.get(name)))
    return hashlib.sha256(json.dumps([process, sources, chosen, packages], sort_keys=True).encode()).hexdigest()[:32]


def _records(prefix: str | None) -> list[Path]:
    """What says which packages an environment has: with version and build, which stand for their content."""
    return list(Path(prefix, "conda-meta").glob("*.json")) if prefix else []


def _files_of_packages(prefix: Path) -> set[str]:
    """What the packages in an environment installed: the next one has it, too."""
    return {name for record in _records(str(prefix)) for name in json.loads(record.read_text(encoding="utf-8")).get("files", [])}


def _place() -> Path:
    chosen = os.environ.get("LLAMA_CPP_STAGED")
    return Path(chosen) if chosen else cache_dir() / "staged"


def _clear(place: Path) -> None:
    """Remove what builds left that have ended or were killed, and the oldest beyond ``LIMIT``. Nobody else has the lock."""
    kept: list[Path] = []
    for entry in place.iterdir():
        if entry.is_dir():
            (kept.append if _is_alive(entry) else remove_tree)(entry)
    for entry in sorted(kept, key=lambda entry: entry.stat().st_mtime_ns)[: max(len(kept) - LIMIT + 1, 0)]:
        remove_tree(entry)


def _is_alive(entry: Path) -> bool:
    """Whether the process that an entry is for runs, or may run: on another machine or in another container."""
    try:
        process = (entry / "process").read_text()
        machine, boot, namespace, number, _ = process.split(" ")
    except (OSError, ValueError):
        return False
    our_machine, our_boot, our_namespace = identity(os.getpid()).split(" ")[:3]
    if entry.name.startswith("new-") or (machine == our_machine and boot != our_boot):
        return False
    return (machine, namespace) != (our_machine, our_namespace) or identity(int(number)) == process


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m distribution.packaging.staged")
    parser.add_argument("step", choices=["take", "keep"])
    parser.add_argument("--builder", type=int, required=True, help="the process that builds")
    parser.add_argument("--sources", required=True, help="a digest of the sources")
    options = parser.parse_args()
    arguments = (Path(os.environ["PREFIX"]), options.builder, options.sources)
    if options.step == "keep":
        keep(*arguments)
        return 0
    return 0 if take(*arguments) else NOT_THERE


if __name__ == "__main__":
    sys.exit(main())

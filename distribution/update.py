"""Moves the pin to another release of the carrier. For maintainers: needs git, libclang and the network."""

from __future__ import annotations

import dataclasses
import datetime
import sys
from pathlib import Path

from . import api_report, git_tree, patches, pip, sources, vendor
from .console import STDERR, say
from .errors import BindingsError, DownloadError, PinError, TreeMismatchError
from .files import REPOSITORY, cache_dir, staging_folder, write_atomically
from .interruption import run_program
from .pin import Pin
from .pip import VERSION

GENERATOR = REPOSITORY / "tools" / "generate_bindings.py"


def update(
    folder: Path = vendor.FOLDER,
    release: str = "",
    cache: Path | None = None,
    dry_run: bool = False,
    force: bool = False,
    generator: Path = GENERATOR,
) -> Pin:
    """Pin what ``release`` of the carrier holds, unpack and patch it, regenerate the bindings; return the pin.

    Prints what changed in the C API. Until the patches are known to apply, nothing on disk changes;
    a dry run ends there.

    Raises:
        ToolNotFoundError: libclang or git is not installed.
        DirtySourceError: ``source/`` was edited, and ``force`` is not given.
        DownloadError: there is no such release, or no network.
        TreeMismatchError: the release's tree is not the one of the commit it names.
        PatchError: a patch does not apply to it.
        BindingsError: the bindings could not be regenerated; the pin and the source have moved.
    """
    if not VERSION.fullmatch(release):
        raise DownloadError(f"{release!r:.80} is no version of a release", "name one, for example 0.3.36")
    api_report.require_libclang()
    cache = cache or cache_dir()
    # a folder without a pin is left as it is
    Pin.load(folder / "pin.toml")
    with vendor.exclusive(folder):
        found = vendor.status(folder)
        vendor.refuse_if_dirty(found, force)
        old = Pin.load(folder / "pin.toml")
        series = patches.load_series(folder / "patches")
        with staging_folder(folder, ".source-") as staging:
            new = _unpack_release(old, release, cache, staging)
            print(_report(folder, old, new, found, cache, staging), flush=True)
            patches.apply(staging / "tree", series)
            say(f"{len(series)} patches apply" if series else "no patches to apply")
            if dry_run:
                say("dry run: nothing was changed")
                return new
            vendor.install(folder, staging, new.fingerprint(series), previous=found.tree)
            write_atomically(folder / "pin.toml", new.dumps())
    say(f"pinned llama.cpp {new.commit}")
    _regenerate(folder / "source", generator)
    return new


def _unpack_release(old: Pin, release: str, cache: Path, staging: Path) -> Pin:
    """Unpack a release to ``staging/tree`` and return its pin."""
    try:
        archive = pip.fetch_release(old.carrier.name, release, cache)
    except DownloadError as error:
        error.remedy += f"\n  or name another release: {sys.executable} -m pip index versions {old.carrier.name}"
        raise
    sha256 = pip.digest_of(archive)
    say(f"{archive.name}: sha256 {sha256} (learned now, checked from now on)")
    sources.unpack_tree(archive, old.carrier.prefix, staging / "tree")
    tree = git_tree.tree_id(git_tree.scan(staging / "tree"))
    commit, committed_tree, date = sources.recorded_commit(archive, old.carrier.prefix, staging)
    if not committed_tree:
        say(f"warning: {archive.name} lacks the commit object, so that it holds commit {commit} is its word alone")
    elif committed_tree != tree:
        raise TreeMismatchError(
            f"{archive.name} says it carries commit {commit}, whose tree is {committed_tree}, and holds {tree}",
            "do not use this release",
        )
    say(f"llama.cpp {commit} of {date or 'unknown date'}, git tree {tree}")
    carrier = dataclasses.replace(old.carrier, version=release, filename=archive.name, sha256=sha256)
    # packages are stamped with the date, so that there must be one
    date = date or datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    new = dataclasses.replace(old, commit=commit, tree=tree, date=date, carrier=carrier)
    try:
        new.check()
    except ValueError as error:
        raise PinError(f"{archive.name} cannot be pinned: {error}", "do not use this release") from None
    return new


def _report(folder: Path, old: Pin, new: Pin, found: vendor.Status, cache: Path, staging: Path) -> str:
    """The difference between the old and the new C API, both without our patches."""
    before = folder / "source"
    if found.tree != old.tree:
        before = staging / "before"
        vendor.obtain(old, before, cache)
    report = api_report.compare(api_report.read_api(before), api_report.read_api(staging / "tree"))
    return f"{old.carrier.version} ({old.commit[:12]}) → {new.carrier.version} ({new.commit[:12]})\n{report}"


def _regenerate(source: Path, generator: Path) -> None:
    if not generator.exists():
        say(f"no {generator.name}: the bindings stay as they are")
        return
    done = run_program([sys.executable, str(generator), "--source", str(source)], stdout=STDERR, stderr=STDERR)
    if done.returncode:
        raise BindingsError(
            "the pin and the source have moved, but the bindings could not be regenerated (see above)",
            f"put that right and run: {sys.executable} {generator} --source {source}",
        )

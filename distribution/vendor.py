"""Unpacks the pinned llama.cpp to ``vendor/llama.cpp/source``, proves it and patches it.

Layout of the folder ``vendor/llama.cpp``: ``pin.toml`` and ``patches/`` are committed; ``source/``
and ``.source-*/`` are made here and ignored by git.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from . import git_tree, patches, pip, sources
from .console import say
from .errors import DirtySourceError, DownloadError, HashMismatchError, SourceNotFoundError, TreeMismatchError
from .files import (
    LARGEST_DOCUMENT,
    REPOSITORY,
    cache_dir,
    expand,
    load_json,
    locked,
    read_regular,
    record,
    remove_tree,
    staging_folder,
    write_atomically,
)
from .interruption import deferred
from .pin import Pin

FOLDER = REPOSITORY / "vendor" / "llama.cpp"
OVERRIDE = "LLAMA_CPP_SOURCE_DIR"
STATE_FOLDER = ".source-state"

FORCE_REMEDY = (
    "`python -m distribution vendor --force` throws the changes away; "
    f"to work on llama.cpp itself, point {OVERRIDE} at a checkout of yours"
)


@dataclass(frozen=True)
class Status:
    """What lies in ``source/``.

    Attributes:
        state: ``missing``; ``pristine`` (the pinned tree); ``patched`` (the pinned tree with today's
            patches); ``outdated`` (unedited, of another pin or other patches); ``dirty`` (edited).
        current: nothing is left to do for ``vendor``.
        commit: the pinned commit.
        tree: the git tree id of ``source/``, empty where it is missing.
        patches: names of the patches that belong on it.
        files: paths that differ from what was unpacked, where that is known.
        override: the value of ``LLAMA_CPP_SOURCE_DIR``, or None.
    """

    state: str
    current: bool
    commit: str
    tree: str = ""
    patches: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    override: str | None = None

    def json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def text(self) -> str:
        """A line or two for people."""
        detail = {
            "missing": "not unpacked yet: python -m distribution vendor",
            "pristine": "the pinned tree, as it is upstream",
            "patched": f"the pinned tree with {', '.join(self.patches)}",
            "outdated": "unedited, but the pin or the patches have changed since: python -m distribution vendor",
            "dirty": f"edited: {_some(self.files) or 'nothing is recorded to compare it with'}",
        }[self.state]
        if self.state == "pristine" and self.patches:
            detail += f"; still to apply: {', '.join(self.patches)}: python -m distribution vendor"
        lines = [f"llama.cpp {self.commit}", f"{self.state}: {detail}"]
        if self.override:
            lines.append(f"{OVERRIDE} is set: builds use {self.override} instead")
        return "\n".join(lines)


def source_dir(folder: Path = FOLDER) -> Path:
    """The llama.cpp to build: ``$LLAMA_CPP_SOURCE_DIR`` where it is set, else ``source/``.

    Raises:
        SourceNotFoundError: there is none, or the variable points to something else.
    """
    if chosen := os.environ.get(OVERRIDE):
        path = expand(chosen).absolute()
        if not _looks_like_llama_cpp(path):
            raise SourceNotFoundError(f"{OVERRIDE}={chosen} is no llama.cpp checkout", "correct it or unset it")
        return path
    if not _looks_like_llama_cpp(folder / "source"):
        raise SourceNotFoundError(f"there is no llama.cpp in {folder / 'source'}", "python -m distribution vendor")
    return folder / "source"


def _looks_like_llama_cpp(path: Path) -> bool:
    # not is_file(), which raises for names that are too long
    return all(os.path.isfile(path / name) for name in ("CMakeLists.txt", "include/llama.h", "ggml/CMakeLists.txt"))


def status(folder: Path = FOLDER) -> Status:
    """Look at ``source/``: every byte of it is hashed, nothing is written.

    Raises:
        PinError, PatchError: the committed files are wrong.
    """
    pin = Pin.load(folder / "pin.toml")
    series = patches.load_series(folder / "patches")
    missing = Status(
        state="missing",
        current=False,
        commit=pin.commit,
        patches=[patch.name for patch in series],
        override=os.environ.get(OVERRIDE) or None,
    )
    if not os.path.isdir(folder / "source"):
        # what is there and no folder was put there by somebody; a link to nothing holds nothing
        return replace(missing, state="dirty", files=["source"]) if os.path.exists(folder / "source") else missing
    files = git_tree.scan(folder / "source")
    tree = git_tree.tree_id(files)
    there = replace(missing, tree=tree)
    state = _read_state(folder)
    if tree == state.tree and state.fingerprint == pin.fingerprint(series):
        return replace(there, state="patched" if series else "pristine", current=True)
    if tree == pin.tree:
        return replace(there, state="pristine", current=not series)
    if tree in (state.tree, state.previous):
        return replace(there, state="outdated")
    if series and _is_patched(folder / "source", files, series, pin):
        return replace(there, state="patched", current=True)
    changed = git_tree.differing(state.files, files) if state.tree else []
    return replace(there, state="dirty", files=changed)


def _is_patched(source: Path, files: git_tree.Files, series: list[patches.Patch], pin: Pin) -> bool:
    """Whether today's patches turn the pinned tree into this one: for a folder that nothing is recorded about."""
    before = patches.unapplied(source, files, series)
    return before is not None and git_tree.tree_id(before) == pin.tree


def vendor(folder: Path = FOLDER, cache: Path | None = None, from_git: str | None = None, force: bool = False) -> Path:
    """Make ``source/`` the pinned tree with the patches applied; return the folder to build.

    Does nothing when it already is, after hashing all of it. ``from_git`` fetches from that git
    repository instead of the package index.

    Raises:
        DirtySourceError: ``source/`` was edited, and ``force`` is not given.
        DownloadError, HashMismatchError: the carrier or the commit could not be fetched.
        TreeMismatchError: what was fetched is not the pinned tree.
        PatchError: a patch does not apply.
        SourceNotFoundError: ``LLAMA_CPP_SOURCE_DIR`` is set to something that is not llama.cpp.
    """
    if os.environ.get(OVERRIDE):
        path = source_dir(folder)
        say(f"using {path} ({OVERRIDE} is set); nothing is unpacked")
        return path
    # a folder without a pin is left as it is
    Pin.load(folder / "pin.toml")
    with exclusive(folder):
        found = status(folder)
        if found.current:
            say(found.text())
            _record_unless_known(folder, found)
        else:
            refuse_if_dirty(found, force)
            _replace(folder, cache or cache_dir(), from_git, found)
    return folder / "source"


def refuse_if_dirty(found: Status, force: bool) -> None:
    """Raise DirtySourceError for an edited tree, unless ``force``."""
    if found.state == "dirty" and not force:
        names = _some(found.files) or "(nothing is recorded to say which files)"
        raise DirtySourceError(f"vendor/llama.cpp/source was edited: {names}", FORCE_REMEDY, found.files)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other vendor processes out of ``folder``, and clear up after any that were killed."""
    with locked(folder / STATE_FOLDER / "lock", "vendor/llama.cpp"):
        for left in folder.glob(".source-*"):
            if left.is_dir() and not left.is_symlink() and left.name != STATE_FOLDER:
                _rescue_or_remove(left, folder / "source")
        yield


def _rescue_or_remove(left: Path, source: Path) -> None:
    # a process killed between the two renames of install() leaves the old tree here
    if (left / "old").is_dir() and not os.path.lexists(source):
        os.rename(left / "old", source)
    remove_tree(left)


def _replace(folder: Path, cache: Path, from_git: str | None, found: Status) -> None:
    began = time.monotonic()
    pin = Pin.load(folder / "pin.toml")
    series = patches.load_series(folder / "patches")
    with staging_folder(folder, ".source-") as staging:
        obtain(pin, staging / "tree", cache, from_git)
        patches.apply(staging / "tree", series)
        install(folder, staging, pin.fingerprint(series), previous=found.tree)
    applied = f" with {', '.join(patch.name for patch in series)}" if series else ""
    say(f"llama.cpp {pin.commit} is in {folder / 'source'}{applied} ({time.monotonic() - began:.1f} s)")


def obtain(pin: Pin, target: Path, cache: Path, from_git: str | None = None) -> None:
    """Write the pinned tree to ``target`` and prove it by its git tree id.

    Raises:
        DownloadError, HashMismatchError: the carrier or the commit could not be fetched.
        TreeMismatchError: what was fetched is not the pinned tree.
    """
    if from_git:
        sources.checkout(from_git, pin.commit, target)
    else:
        say(f"llama.cpp {pin.commit[:12]} is carried by {pin.carrier.filename}")
        sources.unpack_tree(_fetch_carrier(pin, cache), pin.carrier.prefix, target)
    found = git_tree.tree_id(git_tree.scan(target))
    if found != pin.tree:
        raise TreeMismatchError(
            f"what was fetched is not the pinned llama.cpp\n  expected git tree {pin.tree}\n  found    git tree {found}",
            "pin.toml and its source disagree: restore pin.toml from git, or fetch from another place (--from-git)",
        )


def _fetch_carrier(pin: Pin, cache: Path) -> Path:
    cached = pip.cached_path(pin.carrier, cache)
    if os.path.isfile(cached) and cached.stat().st_size > sources.LARGEST_ARCHIVE:
        raise HashMismatchError(f"{cached} is too large to be {pin.carrier.filename}", f"delete {cached} and run this again")
    try:
        return pip.fetch(pin.carrier, cache)
    except DownloadError as error:
        # of a checkout a package is made of the pinned commit alone
        packaged = os.environ.get("CONDA_BUILD") == "1"
        which = "that has the pinned commit" if packaged else "that you have (for packages one that has the pinned commit)"
        error.remedy += (
            "\n  or fetch the commit with git: python -m distribution vendor --from-git [URL or path]"
            f"\n  or name a checkout {which}: {OVERRIDE}=/path/to/llama.cpp"
        )
        raise


def install(folder: Path, staging: Path, fingerprint: str, previous: str) -> None:
    """Move ``staging/tree`` to ``folder/source`` and record it; the old one goes away with ``staging``."""
    source = folder / "source"
    # recorded first, together with what it replaces: whatever happens next, the folder is recognised
    _record(folder, staging / "tree", fingerprint, previous)
    with deferred():
        if os.path.lexists(source):
            os.rename(source, staging / "old")
        try:
            os.rename(staging / "tree", source)
        except BaseException:
            if os.path.lexists(staging / "old"):
                os.rename(staging / "old", source)
            raise


@dataclass(frozen=True)
class _State:
    """What was unpacked; empty where nothing is recorded.

    Attributes:
        tree, fingerprint: of the tree that is there, and of what it was made from.
        previous: the git tree id of what it took the place of.
        files: the tree, as ``git_tree.scan`` lists it.
    """

    tree: str = ""
    fingerprint: str = ""
    previous: str = ""
    files: git_tree.Files = field(default_factory=dict)


def _record(folder: Path, tree: Path, fingerprint: str, previous: str) -> None:
    files = git_tree.scan(tree)
    state = _State(git_tree.tree_id(files), fingerprint, previous, files)
    (folder / STATE_FOLDER).mkdir(exist_ok=True)
    write_atomically(folder / STATE_FOLDER / "state.json", json.dumps(asdict(state), indent=0))


def _record_unless_known(folder: Path, found: Status) -> None:
    # a right tree that somebody else put there: once recorded, a later edit can be named
    if _read_state(folder).tree != found.tree:
        pin = Pin.load(folder / "pin.toml")
        fingerprint = pin.fingerprint(patches.load_series(folder / "patches"))
        _record(folder, folder / "source", fingerprint, previous=found.tree)


def _read_state(folder: Path) -> _State:
    try:
        state = record(_State, load_json(read_regular(folder / STATE_FOLDER / "state.json", LARGEST_DOCUMENT)))
        listed = state.files.items() if isinstance(state.files, dict) else [("", None)]
        return state if all(isinstance(value, str) for _, value in listed) else _State()
    except (FileNotFoundError, ValueError):
        # what cannot be read records nothing: the tree is then compared with the pin alone
        return _State()


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more

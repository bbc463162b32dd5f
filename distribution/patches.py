"""Our changes to llama.cpp: ``patches/series`` names unified diffs, applied in that order.

Each patch starts with free text: why it is there, and when it can go.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import git_tree
from .errors import PatchError, ToolNotFoundError
from .files import read_regular, scratch_folder
from .interruption import run_program

_LARGEST = 64 << 20
_FIRST_LINE_OF_A_DIFF = re.compile(r"^(diff --git |--- )", re.MULTILINE)
_TOUCHED_FILE = re.compile(r"^(?:---|\+\+\+) [ab]/([^\t\n]+)", re.MULTILINE)


@dataclass(frozen=True)
class Patch:
    """A patch file, read and checked."""

    path: Path
    header: str
    sha256: str
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.name


def load_series(folder: Path) -> list[Patch]:
    """Read the patches that ``folder/series`` lists; no such file means no patches.

    Raises:
        PatchError: a patch is missing, has no header or touches no file.
    """
    series = folder / "series"
    try:
        text = read_regular(series, _LARGEST).decode("utf-8")
    except FileNotFoundError:
        # a link to nothing was meant to be something
        if os.path.islink(series):
            raise PatchError(
                f"{series} is a link to nothing", "restore it, or remove it: without it there are no patches"
            ) from None
        return []
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise PatchError(f"{series} cannot be read: {reason}", f"restore it: git checkout -- {series}") from None
    names = [name for line in text.splitlines() if (name := line.split("#")[0].strip())]
    for name in names:
        if "/" in name or not name.isprintable():
            raise PatchError(f"patches/series lists {name!r:.80}, which is no name of a file", "list files of this folder")
    if len(set(names)) < len(names):
        raise PatchError("patches/series lists a patch twice", "remove one of the lines")
    return [load(folder / name) for name in names]


def load(path: Path) -> Patch:
    """Read one patch.

    Raises:
        PatchError: the patch is missing, has no header or touches no file.
    """
    try:
        data = read_regular(path, _LARGEST)
    except FileNotFoundError:
        raise PatchError(f"patches/series lists {path.name}, which is not there", "remove the line, or add the file") from None
    except OSError as error:
        raise PatchError(f"{path} cannot be read: {error.strerror}", "restore the file, or remove the line") from None
    text = data.decode("utf-8", errors="replace")
    diff = _FIRST_LINE_OF_A_DIFF.search(text)
    header = text[: diff.start()].strip() if diff else ""
    if not header:
        raise PatchError(f"{path.name} has no header", "say above the diff why the patch is there and when it can go")
    files = tuple(sorted(set(_TOUCHED_FILE.findall(text))))
    if not files:
        raise PatchError(f"{path.name} touches no file", "make it with `git diff`, paths starting with a/ and b/")
    return Patch(path.resolve(), header, hashlib.sha256(data).hexdigest(), files)


def apply(tree: Path, patches: Sequence[Patch]) -> None:
    """Apply patches to the files below ``tree``, in order; each is tried before it is applied.

    Raises:
        PatchError: one does not apply, or changes nothing. Those before it stay applied.
        ToolNotFoundError: neither git nor patch is installed.
    """
    for patch in patches:
        before = [_content(tree / name) for name in patch.files]
        _run(tree, patch, dry_run=True)
        _run(tree, patch)
        if before == [_content(tree / name) for name in patch.files]:
            raise PatchError(f"{patch.name} applied, but changed nothing", f"look at the paths in {patch.path}")


def unapplied(tree: Path, files: Mapping[str, str], patches: Sequence[Patch]) -> git_tree.Files | None:
    """The listing that ``tree``, listed as ``files``, had before the patches; None if they are not on it.

    Works on copies of the few files that the patches touch.

    Raises:
        ToolNotFoundError: neither git nor patch is installed.
    """
    touched = {name for patch in patches for name in patch.files}
    patched = {name: files[name] for name in touched if name in files}
    if not all(git_tree.is_in_git(value) for value in patched.values()):
        return None
    with scratch_folder() as scratch:
        copy = scratch / "tree"
        copy.mkdir()
        for name in patched:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, copy / name, follow_symlinks=False)
        try:
            for patch in reversed(patches):
                _run(copy, patch, reverse=True)
            before = git_tree.scan(copy)
            apply(copy, patches)
        except PatchError:
            return None
        if git_tree.scan(copy) != patched:
            return None
    return {**{name: value for name, value in files.items() if name not in touched}, **before}


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _run(tree: Path, patch: Patch, dry_run: bool = False, reverse: bool = False) -> None:
    done = run_program(_command(patch, dry_run, reverse), cwd=tree, env=_environment())
    if done.returncode:
        output = "\n".join(f"    {line}" for line in (done.stdout + done.stderr).strip().splitlines()[-8:])
        raise PatchError(
            f"{patch.name} does not apply:\n{output}",
            f"bring {patch.path} up to date, or take it out of patches/series; it is there to:\n    "
            + patch.header.splitlines()[0],
        )


def _command(patch: Patch, dry_run: bool, reverse: bool) -> list[str]:
    backwards = ["--reverse"] if reverse else []
    if shutil.which("git"):
        return ["git", "apply", "--whitespace=nowarn", *(["--check"] if dry_run else []), *backwards, str(patch.path)]
    if shutil.which("patch"):
        options = ["--strip=1", "--batch", "--fuzz=0", "--no-backup-if-mismatch", "--remove-empty-files"]
        direction = backwards or ["--forward"]
        return ["patch", *options, *direction, *(["--dry-run"] if dry_run else []), f"--input={patch.path}"]
    raise ToolNotFoundError("applying patches needs git or patch", "install git")


def _environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # Inside a repository `git apply` skips, without a word, paths that are not in its index. The tree
    # lies in ours, so git must not find it. GIT_CEILING_DIRECTORIES would not do: a path may have a colon.
    environment["GIT_DIR"] = os.devnull
    environment["GIT_CONFIG_GLOBAL"] = os.devnull
    environment["GIT_CONFIG_NOSYSTEM"] = "1"
    return environment

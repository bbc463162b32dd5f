"""Getting a llama.cpp tree onto the disk: out of a carrier, or out of a git repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from .console import say
from .errors import DownloadError, PinError, ToolNotFoundError, UnsafeArchiveError


def unpack_tree(archive: Path, prefix: str, target: Path) -> None:
    """Unpack the folder ``<release>/<prefix>`` of a source distribution to ``target``, and nothing else.

    The file ``.git``, which ties the folder to a repository that is not there, is left out.

    Raises:
        UnsafeArchiveError: a member would be written outside ``target``, or is no file, folder or link.
        PinError: the archive has no such folder, or is damaged.
    """
    target.mkdir(parents=True)
    count = 0
    for tar, member, path in _members(archive, prefix):
        if path.parts[0] == ".git":
            continue
        _write_member(tar, member, path, target)
        count += 1
    if not count:
        raise PinError(f"{archive.name} has no folder {prefix}", "look at [carrier] prefix in pin.toml")


def _members(archive: Path, prefix: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, PurePosixPath]]:
    """Members below ``<release>/<prefix>``, with their paths from there; the rest is skipped unread."""
    start = f"{archive.name.removesuffix('.tar.gz')}/{prefix}/"
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.name.startswith(start) and member.name != start:
                    yield tar, member, _safe(member.name.removeprefix(start))
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.filename:
            raise
        raise PinError(f"{archive} is damaged: {error}", f"delete {archive} and run this again") from error


def _safe(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise UnsafeArchiveError(f"the archive holds the path {name!r}, which leads out of its folder", "do not use it")
    return path


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: PurePosixPath, root: Path) -> None:
    target = root / path
    if _through_link(root, path):
        raise UnsafeArchiveError(f"the archive writes {path} through a symbolic link", "do not use it")
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        if member.linkname.startswith("/") or ".." in PurePosixPath(member.linkname).parts:
            raise UnsafeArchiveError(f"the archive links {path} to {member.linkname}, outside its folder", "do not use it")
        target.symlink_to(member.linkname)
    elif member.isreg():
        # Times are now, not the archive's: after a pin moves, build tools must see changed files as new.
        with tar.extractfile(member) as source, target.open("xb") as file:
            shutil.copyfileobj(source, file)
        target.chmod(0o755 if member.mode & 0o100 else 0o644)
    else:
        raise UnsafeArchiveError(f"the archive holds {path}, which is no file, folder or symbolic link", "do not use it")


def _through_link(root: Path, path: PurePosixPath) -> bool:
    return any((root / parent).is_symlink() for parent in (path, *path.parents))


def checkout(url: str, commit: str, target: Path) -> None:
    """Write the files of one commit of a git repository, local or remote, to ``target``.

    Raises:
        DownloadError: the repository cannot be reached or has no such commit.
        ToolNotFoundError: git is not installed.
    """
    repository = target.with_name(f"{target.name}.git")
    local = Path(url).expanduser()
    origin = str(local.resolve()) if local.exists() else url
    target.mkdir(parents=True)
    run_git("init", "--quiet", "--bare", str(repository))
    git = (f"--git-dir={repository}",)
    say(f"fetching commit {commit[:12]} from {origin}")
    try:
        _fetch(git, origin, commit)
        # verified by tree id afterwards; without these, a user's settings could rewrite line ends
        options = ("-c", "core.autocrlf=false", "-c", "core.symlinks=true", "-c", "core.fileMode=true")
        run_git(*git, f"--work-tree={target}", *options, "checkout", "--quiet", "--force", commit, "--", ".", cwd=target)
    except subprocess.CalledProcessError as error:
        raise DownloadError(
            f"could not get commit {commit} from {origin}; git says:\n    {error.stderr.strip()}",
            "check the URL and the network, or name a repository that has the commit: vendor --from-git URL",
        ) from None


def _fetch(git: tuple[str, ...], origin: str, commit: str) -> None:
    try:
        run_git(*git, "fetch", "--quiet", "--no-tags", "--depth=1", origin, commit)
    except subprocess.CalledProcessError:
        # some servers give out branches and tags only
        run_git(*git, "fetch", "--quiet", "--no-tags", origin, "+refs/*:refs/remotes/origin/*")


def run_git(*arguments: str, cwd: Path | None = None) -> str:
    """Run git outside whatever repository is around; return what it prints.

    Raises:
        subprocess.CalledProcessError: git failed.
        ToolNotFoundError: git is not installed.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR")
    }
    environment["GIT_TERMINAL_PROMPT"] = "0"
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=cwd, env=environment, check=True, capture_output=True, text=True, errors="replace"
        )
    except FileNotFoundError:
        raise ToolNotFoundError("git is not installed", "install git, or run `vendor` without --from-git") from None
    return done.stdout.strip()


def recorded_commit(archive: Path, prefix: str, scratch: Path) -> tuple[str, str, str]:
    """The commit that a carrier says it holds: its id, its tree's id and its date.

    Tree and date are empty where the carrier lacks the commit object.

    Raises:
        PinError: the carrier has no git metadata for ``prefix``.
        ToolNotFoundError: git is not installed.
    """
    repository = scratch / "carrier.git"
    # Objects and references only, in a repository of our own: a configuration or a hook from an
    # archive could run programs.
    run_git("init", "--quiet", "--bare", str(repository))
    head = None
    for tar, member, path in _members(archive, f".git/modules/{prefix}"):
        if path.name == "HEAD" and len(path.parts) == 1:
            head = tar.extractfile(member).read().decode()
        elif path.parts[0] in ("objects", "refs", "packed-refs", "shallow"):
            _write_member(tar, member, path, repository)
    if head is None:
        raise PinError(f"{archive.name} does not say which commit it carries", "move pin.toml by hand")
    (repository / "HEAD").write_text(head)
    git = f"--git-dir={repository}"
    try:
        commit = run_git(git, "rev-parse", "HEAD")
        tree = run_git(git, "rev-parse", "--verify", "--quiet", f"{commit}^{{tree}}")
        return commit, tree, run_git(git, "show", "--no-patch", "--format=%cs", commit)
    except subprocess.CalledProcessError:
        return head.strip(), "", ""

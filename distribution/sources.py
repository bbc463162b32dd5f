"""Getting a llama.cpp tree onto the disk: out of a carrier, or out of a git repository."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from .console import megabytes, say
from .errors import DownloadError, PinError, ToolNotFoundError, UnsafeArchiveError
from .files import open_regular
from .interruption import run_program
from .pin import GIT_ID

LARGEST_ARCHIVE = 4 << 30
LARGEST_TREE = 4 << 30
"""Bytes. llama.cpp has 0.2 GB; an archive of a few kilobytes can unpack to any number."""
_MOST_FILES = 200_000
_DEEPEST = 50
_LARGEST_HEAD = 1000
_FETCH_SECONDS = 3600
# what tarfile lets out where an archive's bytes are wrong
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, struct.error, ValueError, IndexError, KeyError, OverflowError, AttributeError)

Member = tuple[tarfile.TarInfo, PurePosixPath]


def unpack_tree(archive: Path, prefix: str, target: Path) -> None:
    """Unpack the folder ``<release>/<prefix>`` of a source distribution to ``target``, and nothing else.

    The file ``.git``, which ties the folder to a repository that is not there, is left out.

    Raises:
        UnsafeArchiveError: a member would be written outside ``target``, is no file, folder or link, or there is too much.
        PinError: the archive has no such folder, or is damaged.
        OSError: the archive cannot be opened, or ``target`` not be written to.
    """
    target.mkdir(parents=True)
    count = 0
    with _opened(archive) as tar:
        for member, path in _members(archive, tar, prefix):
            if path.parts[0] == ".git":
                continue
            _write_member(tar, member, path, target)
            count += 1
    if not count:
        raise PinError(f"{archive.name} has no folder {prefix}", "look at [carrier] prefix in pin.toml")


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    """The archive, to be read once from its beginning to its end.

    Raises:
        PinError: it is damaged; found at any moment while it is read.
    """
    with open_regular(archive) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:gz") as tar:
                yield tar
        except (PinError, UnsafeArchiveError, DownloadError, ToolNotFoundError):
            raise
        except (*_DAMAGE, OSError) as error:
            # one with a number is the system's: the disk is full, for one
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise PinError(f"{archive} is damaged: {error}", f"delete {archive} and run this again") from error


def _members(archive: Path, tar: tarfile.TarFile, prefix: str) -> Iterator[Member]:
    """Members below ``<release>/<prefix>``, with their paths from there; the rest is skipped unread."""
    start = f"{archive.name.removesuffix('.tar.gz')}/{prefix}/"
    count = size = 0
    for member in tar:
        if member.name.startswith(start) and member.name != start:
            count, size = count + 1, size + member.size
            if count > _MOST_FILES or size > LARGEST_TREE:
                raise UnsafeArchiveError(
                    f"{archive.name} holds more than {_MOST_FILES:,} files or {megabytes(LARGEST_TREE)}", "do not use it"
                )
            yield member, _safe(member.name.removeprefix(start))


def _safe(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise UnsafeArchiveError(f"the archive holds the path {name!r:.200}, which leads out of its folder", "do not use it")
    if len(path.parts) > _DEEPEST or len(os.fsencode(name)) > 2000 or "\0" in name:
        raise UnsafeArchiveError(f"the archive holds a path of {len(name)} characters: {name!r:.80}…", "do not use it")
    return path


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: PurePosixPath, root: Path) -> None:
    target = root / path
    if _through_link(root, path):
        raise UnsafeArchiveError(f"the archive writes {path} through a symbolic link", "do not use it")
    try:
        _write(tar, member, path, target)
    except (FileExistsError, IsADirectoryError, NotADirectoryError):
        raise UnsafeArchiveError(f"the archive holds {path} twice, or as a file and as a folder", "do not use it") from None


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: PurePosixPath, target: Path) -> None:
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        link = member.linkname
        if link.startswith("/") or ".." in PurePosixPath(link).parts or not 0 < len(os.fsencode(link)) < 2000 or "\0" in link:
            raise UnsafeArchiveError(f"the archive links {path} to {link!r:.200}, outside its folder", "do not use it")
        target.symlink_to(link)
    elif member.isreg():
        # Times are now, not the archive's: after a pin moves, build tools must see changed files as new.
        with _content(tar, member) as source, target.open("xb") as file:
            shutil.copyfileobj(source, file)
        target.chmod(0o755 if member.mode & 0o100 else 0o644)
    else:
        raise UnsafeArchiveError(f"the archive holds {path}, which is no file, folder or symbolic link", "do not use it")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    assert content is not None, "only files have a content"
    return content


def _through_link(root: Path, path: PurePosixPath) -> bool:
    return any((root / parent).is_symlink() for parent in (path, *path.parents))


def checkout(url: str, commit: str, target: Path) -> None:
    """Write the files of one commit of a git repository, local or remote, to ``target``.

    Raises:
        DownloadError: the repository cannot be reached or has no such commit.
        ToolNotFoundError: git is not installed.
    """
    origin = _local_repository(url) or url
    if not os.path.isabs(origin) and (not url or url.startswith("-") or not url.isprintable()):
        # git would take it for an option
        raise DownloadError(f"{url!r:.200} is no address of a git repository", "name one: vendor --from-git URL")
    _refuse_special_head(origin)
    repository = target.with_name(f"{target.name}.git")
    target.mkdir(parents=True)
    say(f"fetching commit {commit[:12]} from {origin}")
    try:
        run_git("init", "--quiet", "--bare", str(repository))
        git = (f"--git-dir={repository}",)
        _fetch(git, origin, commit)
        # verified by tree id afterwards; without these, a user's settings could rewrite line ends
        options = ("-c", "core.autocrlf=false", "-c", "core.symlinks=true", "-c", "core.fileMode=true")
        run_git(*git, f"--work-tree={target}", *options, "checkout", "--quiet", "--force", commit, "--", ".", cwd=target)
    except subprocess.CalledProcessError as error:
        raise DownloadError(
            f"could not get commit {commit} from {origin}; git says:\n    {error.stderr.strip()[-2000:]}",
            "check the URL and the network, or name a repository that has the commit: vendor --from-git URL",
        ) from None
    except subprocess.TimeoutExpired:
        raise DownloadError(
            f"could not get commit {commit} from {origin} within {_FETCH_SECONDS // 60} minutes",
            "check the network, or name a repository that is nearer: vendor --from-git URL",
        ) from None


def _local_repository(url: str) -> str:
    """The absolute path of a repository on this machine; empty for other addresses."""
    try:
        local = Path(url).expanduser()
    except RuntimeError:
        return ""
    # not exists(), which raises for names that are too long
    return os.path.realpath(local) if url and os.path.exists(local) else ""


def _refuse_special_head(origin: str) -> None:
    # git would wait for whoever writes into a fifo
    for head in (Path(origin, ".git", "HEAD"), Path(origin, "HEAD")):
        if os.path.isabs(origin) and os.path.exists(head):
            try:
                open_regular(head).close()
            except OSError as error:
                raise DownloadError(
                    f"{origin} is no git repository: {head}: {error.strerror}", "name another one: vendor --from-git URL"
                ) from None


def _fetch(git: tuple[str, ...], origin: str, commit: str) -> None:
    # a server that sends a byte now and then is given up after two minutes
    slow = ("-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=120")
    fetch = (*git, *slow, "fetch", "--quiet", "--no-tags")
    try:
        run_git(*fetch, "--depth=1", "--", origin, commit, seconds=_FETCH_SECONDS)
    except subprocess.CalledProcessError:
        # some servers give out branches and tags only
        run_git(*fetch, "--", origin, "+refs/*:refs/remotes/origin/*", seconds=_FETCH_SECONDS)


def run_git(*arguments: str, cwd: Path | None = None, seconds: float | None = None) -> str:
    """Run git outside whatever repository is around; return what it prints.

    Raises:
        subprocess.CalledProcessError: git failed.
        subprocess.TimeoutExpired: it took longer than ``seconds``.
        ToolNotFoundError: git is not installed.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR")
    }
    environment["GIT_TERMINAL_PROMPT"] = "0"
    command = ["git", *arguments]
    try:
        done = run_program(command, seconds, cwd=cwd, env=environment)
    except FileNotFoundError:
        raise ToolNotFoundError("git is not installed", "install git, or run `vendor` without --from-git") from None
    done.check_returncode()
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
    try:
        run_git("init", "--quiet", "--bare", str(repository))
    except subprocess.CalledProcessError as error:
        raise DownloadError(
            f"git cannot make a repository in {scratch}:\n    {error.stderr.strip()[-2000:] or error}",
            "look for room on that disk",
        ) from None
    head = b""
    with _opened(archive) as tar:
        for member, path in _members(archive, tar, f".git/modules/{prefix}"):
            if path.parts == ("HEAD",) and member.isreg():
                head = _content(tar, member).read(_LARGEST_HEAD)
            elif path.parts[0] in ("objects", "refs", "packed-refs", "shallow") and path.parts[:2] != ("objects", "info"):
                _write_member(tar, member, path, repository)
    commit, tree, date = _read_commit(repository, head)
    if not GIT_ID.fullmatch(commit):
        raise PinError(f"{archive.name} does not say which commit it carries", "move pin.toml by hand")
    return commit, tree, date


def _read_commit(repository: Path, head: bytes) -> tuple[str, str, str]:
    (repository / "HEAD").write_bytes(head)
    git = f"--git-dir={repository}"
    try:
        commit = run_git(git, "rev-parse", "HEAD")
        tree = run_git(git, "rev-parse", "--verify", "--quiet", f"{commit}^{{tree}}")
        return commit, tree, run_git(git, "show", "--no-patch", "--format=%cs", commit)
    except subprocess.CalledProcessError:
        return head.decode("ascii", errors="replace").strip(), "", ""

"""How a channel changes: a new folder is made in full beside the old one, and a symbolic link moves from old to new.

``dist/channel`` is a link to ``.channel.generations/000007``. Everything a reader opens goes through that one link, and
rename(2) replaces it at one moment. A package is the same file in every generation (a hard link), so a generation costs
the size of its index.

A reader that opens one index before that moment and the next one after it sees two generations. That is harmless: what a
generation adds is tied by exact pins to other packages it adds, so that with half of the new packages a solver takes the
old ones, which stay. The old shards of the index stay for a while, too, as whoever read the old list asks for them next.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..console import say
from ..errors import ChannelNotFoundError, ChannelNotWritableError, DiskSpaceError, DistributionError
from ..files import expand, locked, made_folder, remove_tree, staging_folder
from ..interruption import deferred

KEPT_GENERATIONS = 4
"""How many old generations stay, for readers that are still in one."""

_SHARD_LIFETIME = 3600
_STAGING = ".staging-"


@dataclass(frozen=True)
class Channel:
    """A channel in a folder; ``path`` is absolute, and is the link, not what it points to."""

    path: Path

    @classmethod
    def at(cls, path: Path) -> Channel:
        """The channel at a path, whether it exists yet or not.

        Raises:
            HomeNotFoundError: the path begins with the home folder of nobody.
        """
        return cls(Path(os.path.abspath(expand(path))))

    @property
    def url(self) -> str:
        return self.path.as_uri()

    @property
    def store(self) -> Path:
        """The folder of the generations."""
        return self.path.parent / f".{self.path.name}.generations"

    def current(self) -> Path:
        """The folder of the generation that is published now. Resolve once to see one generation only.

        Raises:
            ChannelNotFoundError: nothing was published here.
        """
        with contextlib.suppress(OSError):
            target = self.path.parent / os.readlink(self.path)
            if target.parent == self.store and target.is_dir():
                return target
        raise ChannelNotFoundError(
            f"{self.path} is no published channel", "publish to it first: python -m distribution channel publish FILE..."
        )

    @contextlib.contextmanager
    def holding(self) -> Iterator[Path]:
        """The folder of the current generation, which no writer drops in the meantime.

        Raises:
            ChannelNotFoundError: nothing was published here.
        """
        while True:
            folder = self.current()
            with _flock(folder, fcntl.LOCK_SH) as held:
                if held:
                    yield folder
                    return

    def exists(self) -> bool:
        """Whether something was published here."""
        with contextlib.suppress(ChannelNotFoundError):
            self.current()
            return True
        return False

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer: wait for another one, and clear away what a killed one left.

        Raises:
            ChannelNotWritableError: the folder cannot be written to, or holds something else.
            DiskSpaceError: the disk became full in between.
        """
        with explained(self.path):
            self._check_place()
            # the lock dies with its process, and with it nothing but a folder without a name stays behind
            with made_folder(self.store) as made, locked(self.store / "lock", f"the channel {self.path}"):
                try:
                    self._clear()
                    yield
                except BaseException:
                    if made and not self.exists():
                        # the folder goes, too
                        (self.store / "lock").unlink(missing_ok=True)
                    raise

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder on the channel's file system for the next generation; it is removed unless published."""
        with staging_folder(self.store, _STAGING) as folder:
            folder.chmod(0o755)
            yield folder

    def publish(self, staging: Path, generation: int, keep: int = KEPT_GENERATIONS) -> None:
        """Make a finished folder the current generation, and drop old ones. Only inside ``writing``.

        Args:
            keep: how many older generations stay.
        """
        make_readable(staging)
        with contextlib.suppress(PermissionError):
            # somebody else's, who lets us write there
            self.store.chmod(stat.S_IMODE(self.store.stat().st_mode) | 0o755)
        sync_tree(staging)
        folder = self.store / f"{generation:06d}"
        # a signal comes before, or when the new generation is there for good
        with deferred():
            os.rename(staging, folder)
            try:
                sync(self.store)
                self._switch(folder)
            except BaseException:
                remove_tree(folder)
                raise
            sync(self.path.parent)
            self.drop_old_generations(keep)

    def _switch(self, folder: Path) -> None:
        link = self.store / "next"
        os.symlink(folder.relative_to(self.path.parent), link)
        try:
            if self.path.is_dir() and not self.path.is_symlink():
                # _check_place saw that it is empty
                self.path.rmdir()
            os.rename(link, self.path)
        except BaseException:
            link.unlink()
            raise

    def drop_old_generations(self, keep: int) -> None:
        """Remove all generations before the current one but the last ``keep``. Only inside ``writing``.

        Those that somebody holds stay until the next time. So does one that cannot be removed, and a line says so: what
        was published is published.
        """
        for old in self._generations()[: -1 - keep]:
            try:
                if old.is_symlink() or not old.is_dir():
                    # nobody reads in it
                    old.unlink()
                    continue
                with _flock(old, fcntl.LOCK_EX | fcntl.LOCK_NB) as free:
                    if free:
                        remove_tree(old)
            except OSError as error:
                say(f"note: the old generation {old} cannot be removed: {error.strerror}")

    def _check_place(self) -> None:
        if self.path.is_symlink():
            if (self.path.parent / os.readlink(self.path)).parent != self.store:
                raise ChannelNotWritableError(
                    f"{self.path} is a link to something that is no channel", "name another folder: --channel DIR"
                )
        elif self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise ChannelNotWritableError(
                f"{self.path} exists and was not made by `channel publish`", "name another folder: --channel DIR"
            )

    def _clear(self) -> None:
        (self.store / "next").unlink(missing_ok=True)
        for left in self.store.glob(f"{_STAGING}*"):
            remove_tree(left)
        published = self.current().name if self.exists() else ""
        for folder in self._generations():
            # complete, and its writer died before the link moved
            if folder.name > published:
                remove_tree(folder)

    def _generations(self) -> list[Path]:
        return sorted(folder for folder in self.store.iterdir() if folder.name.isdigit())


@contextlib.contextmanager
def _flock(folder: Path, kind: int) -> Iterator[bool]:
    """Lock a folder; false where it is gone, or where others hold it and ``kind`` is not to wait for them."""
    with contextlib.ExitStack() as stack:
        try:
            with deferred():
                handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, handle)
            fcntl.flock(handle, kind)
            taken = folder.is_dir()
        except (FileNotFoundError, BlockingIOError):
            taken = False
        except OSError as error:
            # a network file system may refuse to lock a folder: its generations are dropped as if nobody read them
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            taken = True
        yield taken


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say for a person what a failed write to ``path`` means.

    Raises:
        DiskSpaceError: there was no room.
        ChannelNotWritableError: permission was refused.
    """
    try:
        yield
    except DistributionError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskSpaceError(
                f"there is no room for {path}: {error.strerror}; it is as it was before",
                "free some space, or remove old builds: python -m distribution channel prune",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise ChannelNotWritableError(
                f"{path} cannot be written: {error.strerror} ({error.filename})",
                "make its folder writable, or name another one",
            ) from error
        raise


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT):
            raise
        shutil.copy2(source, target)


def link_young_shards(old: Path, new: Path, listed: Iterable[str]) -> None:
    """Keep the shards of the index that a reader of an older generation may still ask for: those that are ``listed``."""
    for path in listed:
        shard, target = old / path, new / path
        if "/shards/" in path and not target.exists() and time.time() - shard.stat().st_mtime < _SHARD_LIFETIME:
            link_or_copy(shard, target)


def make_readable(folder: Path) -> None:
    """Let everybody read what is below ``folder``, whatever the umask is: a channel is there to be read."""
    for path in [*folder.rglob("*"), folder]:
        wanted = 0o755 if path.is_dir() else 0o444
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & wanted != wanted:
            path.chmod(mode | wanted)


def sync_tree(folder: Path) -> None:
    """Write a folder's files and names to the disk, so that a power failure cannot undo part of it."""
    for path in [*folder.rglob("*"), folder]:
        # a package that was linked from the last generation is there already
        if path.is_dir() or path.stat().st_nlink == 1:
            sync(path)


def sync(path: Path) -> None:
    """Write one file or folder to the disk."""
    with deferred():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

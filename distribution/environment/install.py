"""Making an environment: all of it, or nothing."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import errno
import fcntl
import json
import os
import re
import secrets
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rattler import MatchSpec, RepoDataRecord, install
from rattler.exceptions import InstallerError

from .. import package_files
from ..errors import (
    DiskSpaceError,
    DistributionError,
    EnvironmentExistsError,
    EnvironmentInstallError,
    HashMismatchError,
)
from ..files import cache_dir, made_folder, need_space, remove_for_good, remove_tree, write_atomically
from ..interruption import deferred
from ..rattler_async import wait
from . import activate_script, prefixes, room
from .reporter import InstallationReporter

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def create(records: Sequence[RepoDataRecord], prefix: Path, requested: Sequence[str] = (), force: bool = False) -> Path:
    """Install packages into a new environment; return its folder, made absolute.

    The environment is made beside ``prefix`` and renamed, so that at ``prefix`` there is all of it or nothing.

    Args:
        requested: the specifications that a person asked for; conda keeps to them in later solves.
        force: replace an environment that is there; until the new one is complete, the old one stays.

    Raises:
        EnvironmentExistsError: something is at ``prefix``, and either ``force`` is off or it is no environment.
        EnvironmentInstallError: the folder is not writable, a package is among them twice, or could not be fetched or unpacked.
        HashMismatchError: a package has other bytes than its channel's index or the lock says.
        DamagedPackageError: a package unpacks to more than one may, or to something else for every reader.
        DiskSpaceError: the disk is full, or has not the room that the packages take unpacked.
    """
    prefix = Path(os.path.abspath(prefix))
    check_free(prefix, force)
    _refuse_twice(records)
    with _translated(prefix), _staging(prefix) as folder:
        # packed; unpacked they need more, which is known when they are here
        _need(folder, sum(record.size or 0 for record in records))
        _install(records, folder, prefix, requested)
        _write_history(folder, records, requested)
        activate_script.write_script(folder, prefix)
        _move_into_place(folder, prefix, force)
    prefixes.register(prefix)
    return prefix


def _need(folder: Path, size: int) -> None:
    remedy = "free some space, or make the environment elsewhere: -p /another/folder"
    need_space(folder.parent, size, "installing the packages", remedy)


def _refuse_twice(records: Sequence[RepoDataRecord]) -> None:
    # py-rattler would write both into one place at once, and panics where it notices
    for names in ([one.name.normalized for one in records], [one.file_name for one in records]):
        [(name, count)] = Counter(names).most_common(1) or [("", 0)]
        if count > 1:
            raise EnvironmentInstallError(f"{name} would be installed {count} times", "name it once: make the lock anew")


def check_free(prefix: Path, force: bool = False) -> None:
    """Refuse to make an environment where something is.

    Raises:
        EnvironmentExistsError: something is at ``prefix``, and either ``force`` is off or it is no environment.
    """
    if not os.path.lexists(prefix) or (prefix.is_dir() and not prefix.is_symlink() and not any(prefix.iterdir())):
        return
    if prefix.is_symlink() or not prefixes.is_environment(prefix):
        raise EnvironmentExistsError(f"{prefix} exists and is no conda environment", "choose another name (-n) or folder (-p)")
    if not force:
        raise EnvironmentExistsError(
            f"the environment {prefix} exists", "choose another name (-n), or replace it with a new one: --force"
        )


@contextlib.contextmanager
def _staging(prefix: Path) -> Iterator[Path]:
    """A folder beside ``prefix`` that is gone afterwards unless it was renamed.

    It is locked while its maker lives, so that the next run can tell what a killed one left behind.
    """
    # a signal does not keep it from being removed
    with deferred() as signals, made_folder(prefix.parent):
        _sweep(prefix)
        folder, lock = _make_locked(prefix)
        try:
            with signals.released():
                yield folder
        except BaseException:
            remove_for_good(folder)
            raise
        finally:
            # after an exchange the old environment is here
            remove_tree(folder)
            os.close(lock)


def _make_locked(prefix: Path) -> tuple[Path, int]:
    while True:
        folder = prefix.parent / f".{prefix.name}.creating-{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        except OSError:
            folder.rmdir()
            raise
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        # swept by another process between mkdir and flock
        os.close(lock)


def _sweep(prefix: Path) -> None:
    left = re.compile(rf"\.{re.escape(prefix.name)}\.creating-[0-9a-f]{{8}}")
    for folder in prefix.parent.iterdir():
        if not left.fullmatch(folder.name):
            continue
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(folder)
            finally:
                os.close(lock)


def _install(records: Sequence[RepoDataRecord], folder: Path, prefix: Path, requested: Sequence[str]) -> None:
    # Every package is unpacked anew, from a file that was compared with its hash a moment before, and into a cache that is
    # gone afterwards: an environment shares no file with anything that could change later, or was changed before.
    scratch = folder / f".creating-{secrets.token_hex(4)}"
    scratch.mkdir(mode=0o700)

    async def run() -> None:
        files = await package_files.gather(records, scratch / "archives", cache_dir(), reporter.on_archive_progress)
        _need(folder, await room.needed(files))
        await install(
            [RepoDataRecord(one, one.file_name, file.as_uri(), one.channel) for one, file in zip(records, files, strict=True)],
            target_prefix=folder,
            alternative_target_prefix=prefix,
            cache_dir=scratch / "unpacked",
            # py-rattler 0.28 wants its inner objects here
            requested_specs=[MatchSpec(one)._match_spec for one in requested],
            reporter=reporter,
            # none of ours need link scripts, and they are code that runs before anybody asked for it
            execute_link_scripts=False,
        )

    with InstallationReporter() as reporter:  # type: ignore[abstract]  # py-rattler's empty methods do nothing, and may stay
        wait(run())
    _name_origins(records, folder)
    remove_tree(scratch)


def _name_origins(records: Sequence[RepoDataRecord], folder: Path) -> None:
    """Write down where packages are from; py-rattler notes the files that it was given, which are gone."""
    for record in records:
        file = folder / "conda-meta" / f"{record.file_name.removesuffix('.conda').removesuffix('.tar.bz2')}.json"
        described = json.loads(file.read_bytes())
        described["url"] = record.url
        for key in ("extracted_package_dir", "package_tarball_full_path", "link"):
            described.pop(key, None)
        write_atomically(file, json.dumps(described, indent=2) + "\n")


def _write_history(folder: Path, records: Sequence[RepoDataRecord], requested: Sequence[str]) -> None:
    """conda reads from here what was asked for; py-rattler leaves the file empty."""
    when = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    lines = [f"==> {when} <==", f"# cmd: {_in_one_line(' '.join(['python -m distribution', *sys.argv[1:]]))}"]
    lines += sorted(
        f"+{record.channel.rstrip('/')}/{record.subdir}::{record.name.normalized}-{record.version}-{record.build}"
        for record in records
    )
    if requested:
        lines.append(f"# update specs: {list(requested)!r}")
    write_atomically(folder / "conda-meta" / "history", "\n".join(lines) + "\n")


def _in_one_line(text: str) -> str:
    # conda would take another line for another entry, and half a character can be in no UTF-8
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _move_into_place(folder: Path, prefix: Path, force: bool) -> None:
    check_free(prefix, force)
    if prefixes.is_environment(prefix):
        _exchange(folder, prefix)
        return
    try:
        os.rename(folder, prefix)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            # another process was faster
            check_free(prefix)
        raise


def _exchange(folder: Path, prefix: Path) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.renameat2(_AT_FDCWD, os.fsencode(folder), _AT_FDCWD, os.fsencode(prefix), _RENAME_EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(number, os.strerror(number), str(prefix))
    # this file system cannot exchange two folders (NFS, for one)
    aside = folder.with_name(f"{folder.name}.old")
    os.rename(prefix, aside)
    try:
        os.rename(folder, prefix)
    except BaseException:
        os.rename(aside, prefix)
        raise
    remove_tree(aside)


@contextlib.contextmanager
def _translated(prefix: Path) -> Iterator[None]:
    """Say in this package's errors what went wrong below."""
    try:
        yield
    except InstallerError as error:
        raise _explain(str(error), prefix) from None
    except OSError as error:
        if isinstance(error, DistributionError):
            raise
        text = f"{error.strerror}: {error.filename or prefix}"
        raise _explain(text, prefix, error.errno) from None


def _explain(text: str, prefix: Path, number: int | None = None) -> Exception:
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "os error 28" in text or "os error 122" in text:
        return DiskSpaceError(
            f"the disk is full: {text}",
            "free some space, or use others: -p for the environment, LLAMA_CPP_CACHE for the package cache",
        )
    if "mismatch" in text:
        return _wrong_bytes(text)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS) or "os error 13" in text or "os error 30" in text:
        return EnvironmentInstallError(f"{prefix} cannot be written: {text}", "choose another folder: -p")
    return EnvironmentInstallError(
        f"the packages cannot be installed: {text}", "check the channel and the network, then run this again"
    )


def _wrong_bytes(what: str) -> HashMismatchError:
    return HashMismatchError(
        f"a package is not the one that the channel's index or the lock names: {what}",
        "do not use it; python -m distribution channel verify says what is wrong with a channel",
    )

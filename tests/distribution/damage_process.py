"""The process of a run: its time, streams, user and limits, the disk it writes to, and what it leaves open."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import gc
import io
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import damage_server

_MEMORY = 6 << 30
_PIPE = 1 << 20
_F_SETPIPE_SZ = 1031


class _Hang(BaseException):
    pass


def watched(
    work: Callable[[], Any], limit: float, number: signal.Signals | None = None, after: float = 0
) -> tuple[int | None, str]:
    """The exit status of ``work``, and where it was when its time was over; the signal ``number`` comes ``after`` seconds."""
    where, over = "", False

    def end(_: int, frame: Any) -> None:
        nonlocal where, number
        if over:
            # it came after the end of the command, where nothing can be said about it
            return
        if number is not None:
            sent, number = number, None
            if signal.getsignal(sent) is signal.SIG_DFL:
                # the command has not begun: this would end all of the tests with it
                sys.exit(128 + sent)
            signal.raise_signal(sent)
            return
        where = where or "".join(traceback.format_stack(frame)[-6:])
        raise _Hang

    handlers = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    signal.signal(signal.SIGALRM, end)
    faulthandler.dump_traceback_later(limit * 4, exit=True)
    status: Any = None
    try:
        # again and again: the first may be raised where nothing can be raised
        signal.setitimer(signal.ITIMER_REAL, after or limit, limit if after else 1)
        with warnings.catch_warnings():
            warnings.simplefilter("always", ResourceWarning)
            status = work()
            over = True
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except KeyboardInterrupt:
        # it came before the command began, or after its end
        status = 130
    except _Hang:
        pass
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        for one, handler in handlers.items():
            signal.signal(one, handler)
    return status, where


class Disk:
    """A small file system of its own, mounted at a folder; only root can have one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        self._mount("size=256m")

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self._folder)], check=True)

    @contextlib.contextmanager
    def limited(self, kind: str, amount: int) -> Iterator[None]:
        """A disk that is full but for so many pages or files, or that is read-only."""
        found = os.statvfs(self._folder)
        pages, files = found.f_blocks - found.f_bfree, found.f_files - found.f_ffree
        options = {
            "bytes": f"size={max(1, pages + amount) * found.f_bsize}", "files": f"size=256m,nr_inodes={files + amount}",
            "read-only": "ro,size=256m",
        }  # fmt: skip
        self._mount(f"remount,{options[kind]}")
        try:
            yield
        finally:
            self._mount("remount,rw,size=256m,nr_inodes=100000")

    def _mount(self, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "damage", str(self._folder)], check=True, capture_output=True)


@contextlib.contextmanager
def captured() -> Iterator[Any]:
    """What is written to stdout and stderr, by whoever it is. It goes through pipes: a full disk does not concern them."""
    kept = [os.dup(number) for number in (1, 2)]
    streams = sys.stdout, sys.stderr, sys.stdin
    pipes = [os.pipe() for _ in range(2)]
    for number, (_, write) in zip((1, 2), pipes, strict=True):
        fcntl.fcntl(write, _F_SETPIPE_SZ, _PIPE)
        os.dup2(write, number)
        os.close(write)
    # closed below
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.stdin = io.StringIO()
    texts = ["", ""]
    try:
        yield lambda: texts
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr, sys.stdin = streams
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        for index, (read, _) in enumerate(pipes):
            os.set_blocking(read, False)
            with open(read, "rb") as pipe:
                texts[index] = (pipe.read() or b"").decode("utf-8", errors="replace")


@contextlib.contextmanager
def as_user(user: int | None) -> Iterator[None]:
    """Be somebody else for a while, if a number of a user is given."""
    if user is None:
        yield
        return
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def limited_to(largest_file: int | None) -> Iterator[None]:
    """Memory that ends, and a disk that takes only small files."""
    kinds = {resource.RLIMIT_AS: _MEMORY}
    if largest_file is not None:
        kinds[resource.RLIMIT_FSIZE] = largest_file
    before = {kind: resource.getrlimit(kind) for kind in kinds}
    for kind, value in kinds.items():
        resource.setrlimit(kind, (value if kind == resource.RLIMIT_FSIZE else value + _mapped(), before[kind][1]))
    try:
        yield
    finally:
        for kind, value in before.items():
            resource.setrlimit(kind, value)


def _mapped() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def own_things() -> dict[str, set[str]]:
    """The files, threads and processes of this process."""
    files = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{number}")
            # py-rattler keeps its own, and connections for a while
            if not target.startswith(("anon_inode:", "socket:", "pipe:")) and "/fd" not in target:
                files.add(f"open file {target}")
    threads = {f"thread {one.name}" for one in threading.enumerate()}
    children = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/children") as file:
            children |= {f"process {one}" for one in file.read().split()}
    return {"files": files, "threads": threads, "children": children}


def left_over(before: dict[str, set[str]]) -> tuple[str, ...]:
    """What is there that was not before, a moment later still."""

    def left() -> list[str]:
        return [one for kind, things in own_things().items() for one in things - before[kind]]

    for _ in range(10):
        if not (found := left()):
            return ()
        # what only waits for its last reference, and threads that are about to end
        gc.collect()
        time.sleep(0.02)
    return tuple(sorted(found))


@contextlib.contextmanager
def misbehaving_server() -> Iterator[str]:
    """The address of ``damage_server``, which runs in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, str(Path(damage_server.__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdin
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.communicate()

"""A channel served by ``channel serve`` in a process of its own, which a test looks at from outside."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conda_packages import ROOT, place_in, release

SMALL = "/linux-64/repodata.json"
BIG, BIG_SIZE = "/linux-64/big.bin", 1 << 30
PATIENCE = 10
"""Seconds within which whatever is waited for must have happened, on a busy machine, too."""


def publish_channel(folder: Path) -> Path:
    """The folder of a published channel, with a large file of nothing in it."""
    with pytest.MonkeyPatch.context() as patch:
        place = place_in(folder, patch)
        place.publish(*release(folder / "one", 0))
    with (place.channel.current() / BIG[1:]).open("wb") as file:
        file.truncate(BIG_SIZE)
    return place.channel.path


@dataclass
class Serving:
    """A running server."""

    process: subprocess.Popen[str]
    port: int
    host: str = "127.0.0.1"

    def connect(self, source: str = "") -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.settimeout(PATIENCE)
        if source:
            # many connections of one source do without ports of their own until they connect
            connection.setsockopt(socket.IPPROTO_IP, 24, 1)
            connection.bind((source, 0))
        connection.connect((self.host, self.port))
        return connection

    def ask(self, path: str = SMALL, source: str = "") -> bytes:
        """All that the server says to one request."""
        with self.connect(source) as connection:
            connection.sendall(request(path, "Connection: close"))
            return read_all(connection)

    def processor_time(self) -> float:
        """Seconds of processor time that it took since its start."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def held(self) -> tuple[int, int]:
        """The number of its open files, and of its threads."""
        return tuple(len(os.listdir(f"/proc/{self.process.pid}/{kind}")) for kind in ("fd", "task"))

    def idle(self) -> tuple[int, int]:
        """As ``held``, once that stays the same for a while."""
        before = None
        while before != (now := self.held()):
            before = now
            time.sleep(0.5)
        return now

    def end(self, by: int = signal.SIGINT) -> tuple[int, str]:
        """How it ends, and what it has said since its start."""
        self.process.send_signal(by)
        _, said = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, said


@contextlib.contextmanager
def serving(channel: Path, *options: str, files: int = 1024, host: str = "127.0.0.1") -> Iterator[Serving]:
    """``channel serve`` in a process that may open so many files."""
    command = [sys.executable, "-m", "distribution", "channel", "serve", "--channel", str(channel), "--host", host]
    limited = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command, "--port", "0", *options]
    with subprocess.Popen(limited, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            lines = [process.stderr.readline()]
            found = re.search(r"at http://(\S+):(\d+);", lines[0])
            assert found, lines[0] + process.stderr.read()
            while "on another machine" not in lines[-1]:
                lines.append(process.stderr.readline())
                assert lines[-1], lines
            server = Serving(process, int(found[2]), host)
            # its loop runs once it has answered
            server.ask()
            yield server
        finally:
            process.kill()


def request(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes; what came before a reset."""
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while block := connection.recv(1 << 16):
            received += block
    return bytes(received)


def read_one(connection: socket.socket) -> bytes:
    """One answer, on a connection that stays."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += (block := connection.recv(1 << 16))
        assert block, received
    head, _, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"\r\nContent-Length: (\d+)", head)
    while length and len(body) < int(length[1]):
        body += (block := connection.recv(1 << 16))
        assert block, head
    return head + b"\r\n\r\n" + body


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed a connection on which nothing more is to come."""
    connection.setblocking(False)
    try:
        return not connection.recv(1 << 16)
    except BlockingIOError:
        return False
    except OSError:
        return True


def eventually(is_so: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Whether something becomes true in time."""
    until = time.monotonic() + patience
    while not is_so():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True

"""An HTTP server on loopback that misbehaves: the first part of a request's path says how.

``python damage_server.py`` prints its port and serves until its stdin ends. It runs in a process of its own, so that a test can
count the open files of the other one.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable

GOOD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


def _body(connection: socket.socket, content: bytes, length: int | None = None) -> None:
    connection.sendall(GOOD + f"Content-Length: {len(content) if length is None else length}\r\n\r\n".encode() + content)


def _forever(connection: socket.socket, block: bytes, pause: float = 0) -> None:
    while True:
        connection.sendall(block)
        time.sleep(pause)


def _send(text: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(text)


def _redirect(target: bytes, status: bytes = b"302 Found") -> Callable[[socket.socket], None]:
    return _send(b"HTTP/1.1 " + status + b"\r\nLocation: " + target + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def _drip(connection: socket.socket, start: bytes) -> None:
    connection.sendall(start)
    _forever(connection, b"a", 0.05)


def _endless(connection: socket.socket) -> None:
    connection.sendall(GOOD + b"\r\n")
    _forever(connection, bytes(1 << 20))


def _endless_chunks(connection: socket.socket) -> None:
    connection.sendall(GOOD + b"Transfer-Encoding: chunked\r\n\r\n")
    _forever(connection, b"10000\r\n" + bytes(1 << 16) + b"\r\n")


def _negative_chunk(connection: socket.socket) -> None:
    connection.sendall(GOOD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n")
    _forever(connection, bytes(1 << 20))


def _endless_redirect(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /good\r\n\r\n")
    _forever(connection, bytes(1 << 20))


QUICK: dict[str, Callable[[socket.socket], None]] = {
    "closes": lambda connection: None,
    "no-http": _send(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "garbage": _send(bytes(range(256)) * 20),
    "bad-status": _send(b"HTTP/1.1 abc OK\r\n\r\n"),
    "huge-status": _send(b"HTTP/1.1 99999999999999999999 OK\r\n\r\n"),
    "negative-length": _send(GOOD + b"Content-Length: -5\r\n\r\nabc"),
    "odd-length": _send(GOOD + b"Content-Length: many\r\n\r\nabc"),
    "long-length": lambda connection: _body(connection, b"[]", 1000),
    "short-length": lambda connection: _body(connection, b"[1, 2, 3]", 3),
    "huge-length": lambda connection: _body(connection, b"[]", 1 << 62),
    "bad-chunks": _send(GOOD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc"),
    "cut-chunks": _send(GOOD + b"Transfer-Encoding: chunked\r\n\r\n10\r\nabc"),
    "huge-chunk": _send(GOOD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\nabc"),
    "many-headers": _send(GOOD + b"".join(b"X-%d: 1\r\n" % number for number in range(5000)) + b"\r\n"),
    "long-header": _send(GOOD + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n"),
    "zero": _send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    "not-text": lambda connection: _body(connection, b"\xff\xfe\x00\x01"),
    "not-gzip": _send(GOOD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"),
    "circle": _redirect(b"/circle"),
    "to-file": _redirect(b"file:///etc/hostname"),
    "to-ftp": _redirect(b"ftp://127.0.0.1/x"),
    "to-nothing": _redirect(b""),
    "to-odd": _redirect(b"http://[::1"),
    "to-data": _redirect(b"data:text/plain,hello", b"301 Moved"),
    "to-gopher": _redirect(b"gopher://127.0.0.1:70/", b"307 Temporary"),
    "404": _send(b"HTTP/1.1 404 \x1b[31mNot Found\x07\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    "500": _send(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    "304": _send(b"HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n"),
    "401": _send(b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    "good": lambda connection: _body(connection, b"[]"),
}
SLOW: dict[str, Callable[[socket.socket], None]] = {
    "silent": lambda connection: time.sleep(600),
    "drips-status": lambda connection: _drip(connection, b"HTTP/1.1 200 "),
    "drips-headers": lambda connection: _drip(connection, GOOD + b"X: "),
    "drips-body": lambda connection: _drip(connection, GOOD + b"Content-Length: 100000\r\n\r\n"),
    "drips-chunks": lambda connection: _drip(connection, GOOD + b"Transfer-Encoding: chunked\r\n\r\n"),
    "continues": lambda connection: _forever(connection, b"HTTP/1.1 100 Continue\r\n\r\n", 0.001),
}
ENDLESS: dict[str, Callable[[socket.socket], None]] = {
    "endless": _endless,
    "endless-chunks": _endless_chunks,
    "negative-chunk": _negative_chunk,
    "endless-redirect": _endless_redirect,
}
BEHAVIOURS = {**QUICK, **SLOW, **ENDLESS}


def _serve(connection: socket.socket) -> None:
    with contextlib.suppress(OSError, IndexError), connection:
        connection.settimeout(600)
        request = b""
        while b"\r\n\r\n" not in request and len(request) < 65536:
            if not (block := connection.recv(65536)):
                break
            request += block
        behaviour = request.split(b" ")[1].split(b"/")[1].decode("ascii", errors="replace")
        BEHAVIOURS.get(behaviour, BEHAVIOURS["404"])(connection)
        # what was not read yet would make the kernel reset the connection, and the answer be lost
        connection.shutdown(socket.SHUT_WR)


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()

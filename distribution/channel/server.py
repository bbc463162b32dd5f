"""The channel over HTTP, for other machines: read-only, always the current generation."""

from __future__ import annotations

import contextlib
import email.utils
import errno
import hashlib
import html
import os
import re
import socket
import stat
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from ..errors import ChannelDamagedError, ChannelNotFoundError, ServerError
from . import environments
from .generations import Channel

_HOST = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:\d{1,5})?")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_IDLE = 60
_CHUNK = 1 << 20
_TYPES = {".json": "application/json", ".yml": "text/yaml; charset=utf-8", ".txt": "text/plain; charset=utf-8"}


class ChannelServer(ThreadingHTTPServer):
    """Serves one channel. ``serve_forever`` runs it; ``address`` is its URL."""

    daemon_threads = True

    def __init__(self, channel: Channel, host: str = "127.0.0.1", port: int = 8000) -> None:
        """Bind to an address; port 0 takes any free one.

        Raises:
            ChannelNotFoundError: nothing was published yet.
            ServerError: the address is in use, or not this machine's.
        """
        channel.current()
        self.channel = channel
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ServerError(
                f"cannot listen at {host}, port {port}: {getattr(error, 'strerror', None) or error}",
                "choose another --port, or --host 127.0.0.1 or 0.0.0.0",
            ) from None

    @property
    def address(self) -> str:
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def reachable_address(self) -> str:
        """The URL for another machine, where the server listens at every address of this one."""
        host, port = self.server_address[:2]
        return f"http://{socket.gethostname()}:{port}" if host in ("0.0.0.0", "::") else self.address

    @property
    def is_open(self) -> bool:
        """Whether other machines can reach it."""
        return not str(self.server_address[0]).startswith(("127.", "::1"))

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no error of ours."""


@dataclass(frozen=True)
class _Answer:
    """Something to send: an open file or text, of ``size`` bytes."""

    body: IO[bytes] | bytes
    size: int
    tag: str
    type: str
    modified: float | None = None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChannelServer
    # a client that keeps a connection without using it holds a thread
    timeout = _IDLE

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def version_string(self) -> str:
        return "llama-cpp-channel"

    def _answer(self, with_body: bool) -> None:
        if self.headers.get("Content-Length", "0") != "0" or self.headers.get("Transfer-Encoding"):
            # its body is not read, and would be taken for the next request
            self.close_connection = True
        try:
            found = self._find()
        except ChannelDamagedError:
            return self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, with_body)
        except ValueError:
            return self._refuse(HTTPStatus.BAD_REQUEST, with_body)
        except OSError as error:
            absent = isinstance(error, ChannelNotFoundError) or error.errno in _ABSENT
            return self._refuse(HTTPStatus.NOT_FOUND if absent else HTTPStatus.INTERNAL_SERVER_ERROR, with_body)
        with contextlib.ExitStack() as stack:
            if not isinstance(found.body, bytes):
                stack.enter_context(found.body)
            self._send(found, with_body)

    def _find(self) -> _Answer:
        """What the request's path names.

        Raises:
            OSError: nothing that is served.
            ChannelDamagedError: the environment file was changed.
            ValueError: the path or the Host header is malformed.
        """
        path = unquote(urlsplit(self.path).path, errors="strict")
        if "\0" in path or "\\" in path:
            raise ValueError(path)
        parts = [part for part in path.split("/") if part]
        if any(part in (".", "..") or part.startswith(".") for part in parts):
            raise FileNotFoundError(errno.ENOENT, "not served", path)
        # the link is followed once, so that one answer is of one generation
        folder = self.server.channel.current()
        name = "/".join(parts)
        if not name:
            return _text(_page(self._address(), folder), "text/html; charset=utf-8")
        if name in environments.ADDRESSED:
            return _text(environments.readdress(folder, name, self._address()), _TYPES[Path(name).suffix])
        return _file(folder / name)

    def _address(self) -> str:
        """The channel's address as the client knows it."""
        host = self.headers.get("Host")
        if host is None:
            return self.server.address
        if not _HOST.fullmatch(host):
            raise ValueError(host)
        return f"http://{host}"

    def _send(self, found: _Answer, with_body: bool) -> None:
        tag = f'"{found.tag}"'
        if self._unchanged(found, tag):
            self.send_response(HTTPStatus.NOT_MODIFIED)
            self._send_common(found, tag)
            self.end_headers()
            return
        start, end = 0, found.size
        if wanted := self._range(found, tag):
            start, end = wanted
            if start >= end:
                self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                self.send_header("Content-Range", f"bytes */{found.size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{found.size}")
        else:
            self.send_response(HTTPStatus.OK)
        self._send_common(found, tag)
        self.send_header("Content-Type", found.type)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if with_body:
            self._send_body(found.body, start, end)

    def _send_common(self, found: _Answer, tag: str) -> None:
        self.send_header("ETag", tag)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        if found.modified is not None:
            self.send_header("Last-Modified", email.utils.formatdate(found.modified, usegmt=True))

    def _send_body(self, body: IO[bytes] | bytes, start: int, end: int) -> None:
        if isinstance(body, bytes):
            self.wfile.write(body[start:end])
            return
        body.seek(start)
        left = end - start
        while left:
            block = body.read(min(_CHUNK, left))
            if not block:
                # the length is promised; only a broken connection says that it is not kept
                self.close_connection = True
                return
            self.wfile.write(block)
            left -= len(block)

    def _unchanged(self, found: _Answer, tag: str) -> bool:
        if known := self.headers.get("If-None-Match"):
            return known.strip() == "*" or tag in (one.strip().removeprefix("W/") for one in known.split(","))
        since = self.headers.get("If-Modified-Since")
        if since is None or found.modified is None:
            return False
        try:
            return int(found.modified) <= email.utils.parsedate_to_datetime(since).timestamp()
        except (ValueError, TypeError, IndexError):
            return False

    def _range(self, found: _Answer, tag: str) -> tuple[int, int] | None:
        """The half-open range of bytes that is asked for; empty where it lies outside, None where all is wanted."""
        asked = _RANGE.fullmatch(self.headers.get("Range", "").strip())
        if not asked or asked.groups() == ("", "") or self.headers.get("If-Range", tag) != tag:
            return None
        first, last = asked.groups()
        if not first:
            return max(0, found.size - int(last)), found.size if int(last) else 0
        end = min(int(last) + 1, found.size) if last else found.size
        if last and int(last) < int(first):
            return None
        return int(first), end

    def _refuse(self, status: HTTPStatus, with_body: bool) -> None:
        text = f"{status.value} {status.phrase}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if with_body:
            self.wfile.write(text)


def _file(path: Path) -> _Answer:
    # names come from the network; a generation holds plain files alone
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise FileNotFoundError(errno.ENOENT, "no plain file", str(path))
    return _Answer(
        os.fdopen(handle, "rb"), found.st_size, f"{found.st_mtime_ns:x}-{found.st_size:x}",
        _TYPES.get(path.suffix, "application/octet-stream"), found.st_mtime,
    )  # fmt: skip


def _text(text: str, content_type: str) -> _Answer:
    body = text.encode()
    return _Answer(body, len(body), hashlib.sha256(body).hexdigest()[:32], content_type)


def _page(address: str, folder: Path) -> str:
    """The page that says how to use the channel."""
    lines = [f"conda env create -f {address}/{environments.ENVIRONMENT}"]
    if (folder / environments.ENVIRONMENT_CPU).exists():
        lines.append(f"conda env create -f {address}/{environments.ENVIRONMENT_CPU}     # without an NVIDIA GPU")
    commands = html.escape("\n".join(lines))
    exists = [name for name in (*environments.ADDRESSED, "channel-key.pub", "manifest.json") if (folder / name).exists()]
    links = " · ".join(f'<a href="{name}">{name}</a>' for name in exists)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<title>llama.cpp channel</title>"
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:3rem auto;padding:0 1rem}"
        "pre{background:#8881;padding:1rem;overflow:auto}</style>"
        "<h1>llama.cpp channel</h1><p>On another machine:</p>"
        f"<pre>{commands}</pre><p>{links}</p></html>\n"
    )

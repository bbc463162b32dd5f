"""The channel over HTTP, for other machines: read-only, always the current generation.

One thread serves all clients: an event loop, as a connection that waits costs it next to nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import html
import ipaddress
import os
import socket
import threading
from http import HTTPStatus
from pathlib import Path

from ..errors import ChannelNotFoundError, DistributionError, ServerError
from . import environment_files
from .connections import Connection, Connections, Limits
from .http_files import file_response, open_inside, text_response
from .http_messages import Refused, Request, Response, take_request
from .store import Channel

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, errno.ENXIO, errno.ENODEV,
           errno.EINVAL, errno.EILSEQ)  # fmt: skip
_NO_FILES_LEFT = (errno.EMFILE, errno.ENFILE)
_CHUNK = 1 << 17
_LARGEST_TEXT = 1 << 22
_BACKLOG = 1024
_TYPES = {".json": "application/json", ".yml": "text/yaml; charset=utf-8", ".txt": "text/plain; charset=utf-8"}
_BUSY = Refused(HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "2"})


class ChannelServer:
    """Serves one channel. ``serve_forever`` runs it; ``address`` is its URL.

    Attributes:
        server_address: where it listens, as of a socket: host and port come first.
    """

    def __init__(self, channel: Channel, host: str = "127.0.0.1", port: int = 8000, limits: Limits | None = None) -> None:
        """Bind to an address; port 0 takes any free one.

        Raises:
            ChannelNotFoundError: nothing was published yet.
            ServerError: the address is in use, or not this machine's; or the limits cannot be kept.
        """
        channel.current()
        self.channel = channel
        self._limits = limits or Limits.chosen()
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Task[None]] | None = None
        self._started, self._ended = threading.Event(), threading.Event()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host == "::" and socket.has_dualstack_ipv6()
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
        except (OSError, OverflowError, ValueError) as error:
            raise ServerError(
                f"cannot listen at {host}, port {port}: {getattr(error, 'strerror', None) or error}",
                "choose another --port, or --host 127.0.0.1 or 0.0.0.0",
            ) from None
        self._listener.setblocking(False)
        self.server_address = self._listener.getsockname()

    def __enter__(self) -> ChannelServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    @property
    def address(self) -> str:
        host, port = self.server_address[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def reachable_address(self) -> str:
        """The URL for another machine, where the server listens at every address of this one."""
        host, port = self.server_address[:2]
        return f"http://{socket.gethostname()}:{port}" if host in ("0.0.0.0", "::") else self.address

    @property
    def is_open(self) -> bool:
        """Whether other machines can reach it."""
        return not ipaddress.ip_address(self.server_address[0]).is_loopback

    def serve_forever(self) -> None:
        """Answer until ``shutdown``, or an exception in this thread as by Ctrl-C; connections end with it."""
        try:
            with contextlib.suppress(asyncio.CancelledError):
                asyncio.run(self._serve())
        finally:
            self._ended.set()

    def shutdown(self) -> None:
        """End ``serve_forever``, which runs in another thread or is about to, and wait for its end."""
        self._started.wait()
        # it may have ended by itself
        with contextlib.suppress(RuntimeError):
            if self._running:
                self._running[0].call_soon_threadsafe(self._running[1].cancel)
        self._ended.wait()

    async def _serve(self) -> None:
        task = asyncio.current_task()
        assert task
        self._running = asyncio.get_running_loop(), task
        self._started.set()
        refusal = _BUSY.response(with_text=False).head(keeps_alive=False)
        await Connections(self._limits, self._converse, refusal).serve(self._listener)

    async def _converse(self, connection: Connection) -> None:
        """Answer one client's requests, one after the other."""
        received = bytearray()
        keeps_alive = True
        while keeps_alive:
            connection.expect_request()
            request = None
            try:
                while not (request := take_request(received)):
                    if not (data := await connection.receive()):
                        return
                    received += data
                response = self._answer(request)
            except Refused as refused:
                # of a malformed request it is not known whether its answer may have a body
                response = refused.response(with_text=request is not None)
            keeps_alive = request is not None and request.keeps_alive
            with response:
                await connection.send(response.head(keeps_alive))
                if (not request or request.method != "HEAD") and not await _send_body(connection, response):
                    return
        await connection.finish()

    def _answer(self, request: Request) -> Response:
        """What a request gets.

        Raises:
            Refused: it does not get what it asks for.
        """
        try:
            return self._find(request)
        except OSError as error:
            if error.errno in _NO_FILES_LEFT:
                raise _BUSY from None
            if isinstance(error, ChannelNotFoundError) or error.errno in _ABSENT:
                raise Refused(HTTPStatus.NOT_FOUND) from None
            raise Refused(HTTPStatus.INTERNAL_SERVER_ERROR) from None
        except (DistributionError, UnicodeDecodeError):
            # an environment file was changed
            raise Refused(HTTPStatus.INTERNAL_SERVER_ERROR) from None

    def _find(self, request: Request) -> Response:
        if "\0" in request.path or "\\" in request.path:
            raise Refused(HTTPStatus.BAD_REQUEST)
        parts = [part for part in request.path.split("/") if part]
        if any(part.startswith(".") for part in parts):
            raise Refused(HTTPStatus.NOT_FOUND)
        # the link is followed once, so that one answer is of one generation
        folder = self.channel.current()
        address = f"http://{request.host}" if request.host else self.address
        if not parts:
            return text_response(request, _page(address, folder), "text/html; charset=utf-8")
        if len(parts) == 1 and parts[0] in environment_files.ADDRESSED:
            for name in (parts[0], environment_files.ENVIRONMENT):
                # what is read there by name must be there
                with open_inside(folder, [name]) as file:
                    if os.fstat(file.fileno()).st_size > _LARGEST_TEXT:
                        raise Refused(HTTPStatus.INTERNAL_SERVER_ERROR)
            return text_response(request, environment_files.readdress(folder, parts[0], address), _type(parts[0]))
        return file_response(request, open_inside(folder, parts), _type(parts[-1]))


def _type(name: str) -> str:
    return _TYPES.get(Path(name).suffix, "application/octet-stream")


async def _send_body(connection: Connection, response: Response) -> bool:
    """Send it; false where there is less of it than was promised."""
    if isinstance(response.body, bytes):
        await connection.send(response.body[response.start : response.end])
        return True
    response.body.seek(response.start)
    left = response.end - response.start
    while left:
        block = response.body.read(min(_CHUNK, left))
        if not block:
            # the length is promised; only a broken connection says that it is not kept
            return False
        await connection.send(block)
        left -= len(block)
    return True


def _page(address: str, folder: Path) -> str:
    """The page that says how to use the channel."""
    lines = [f"conda env create -f {address}/{environment_files.ENVIRONMENT}"]
    if (folder / environment_files.ENVIRONMENT_CPU).exists():
        lines.append(f"conda env create -f {address}/{environment_files.ENVIRONMENT_CPU}     # without an NVIDIA GPU")
    commands = html.escape("\n".join(lines))
    exists = [name for name in (*environment_files.ADDRESSED, "channel-key.pub", "manifest.json") if (folder / name).exists()]
    links = " · ".join(f'<a href="{name}">{name}</a>' for name in exists)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<title>llama.cpp channel</title>"
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:3rem auto;padding:0 1rem}"
        "pre{background:#8881;padding:1rem;overflow:auto}</style>"
        "<h1>llama.cpp channel</h1><p>On another machine:</p>"
        f"<pre>{commands}</pre><p>{links}</p></html>\n"
    )

"""Small files over HTTP, from servers that nobody has to trust.

``fetch_bytes(url, limit, seconds)`` returns the whole body or raises ``FetchError``. It follows redirects to http and https
alone, reads no more than ``limit`` bytes, and takes no longer than ``seconds`` from the first connection to the last byte.
``answers(url, seconds)`` only asks whether there is something.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import IO, Any, TypeVar

from .errors import FetchError

T = TypeVar("T")
_BLOCK = 1 << 16
_CONNECT = 15.0
"""Seconds for one attempt to connect: a host with many addresses gets one for each."""
_PART = re.compile(r"bytes (?P<start>[0-9]{1,18})-[0-9]{1,18}/(?P<all>[0-9]{1,18})")
# malformed addresses, proxies and answers show as any of a dozen kinds of exception, of urllib's and of http.client's
_MALFORMED = (OSError, http.client.HTTPException, ValueError, AttributeError, IndexError, KeyError)


def fetch_bytes(url: str, limit: int, seconds: float) -> bytes:
    """The body that a server answers with.

    Args:
        limit: bytes that it may have.
        seconds: how long all of it may take, redirects included. Only the look-up of a host's name is not counted.

    Raises:
        FetchError: the address is malformed or does not answer, or it answers with too much, too slowly, with less than it
            announced or with an error; ``status`` is the status it answered with.
    """
    return _ask(url, seconds, {}, lambda answer: _read(answer, limit))


def fetch_range(url: str, start: int, size: int, seconds: float) -> tuple[bytes, int]:
    """Up to ``size`` bytes from ``start`` on of what is at an address, and how many bytes there are in all.

    Fewer come where the file ends before. Otherwise as ``fetch_bytes``.

    Raises:
        FetchError: as there; or the server does not send parts of files.
    """

    def read(answer: http.client.HTTPResponse) -> tuple[bytes, int]:
        said = _PART.fullmatch(answer.headers.get("Content-Range", ""))
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT or not said or int(said["start"]) != start:
            raise FetchError(f"{url} answers with something else than the part that was asked for", "check the server")
        data, there = _read(answer, size), int(said["all"])
        if len(data) != min(size, there - start):
            raise FetchError(f"{url} answers with {len(data):,} bytes of the {size:,} that were asked for", "try again")
        return data, there

    return _ask(url, seconds, {"Range": f"bytes={start}-{start + size - 1}"}, read)


def _ask(url: str, seconds: float, headers: Mapping[str, str], read: Callable[[http.client.HTTPResponse], T]) -> T:
    deadline = time.monotonic() + seconds
    try:
        with contextlib.closing(_open(url, "GET", deadline, headers)) as answer:
            return read(answer)
    except FetchError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        # what urllib adds about a circle of redirects has several lines
        raise FetchError(f"{url} answers {error.code} {_one_line(error.reason)}", "check the address", error.code) from None
    except TimeoutError:
        raise _slow(url, seconds) from None
    except _MALFORMED as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, TimeoutError):
            raise _slow(url, seconds) from None
        raise FetchError(
            f"{url} cannot be fetched: {_one_line(reason)}", "check the address, the network, and that something serves there"
        ) from None


def answers(url: str, seconds: float) -> bool:
    """Whether a server says within ``seconds`` that it has something at an address. Nothing of that is read."""
    deadline = time.monotonic() + seconds
    try:
        with contextlib.closing(_open(url, "HEAD", deadline, {})):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except _MALFORMED:
        return False


def _open(url: str, method: str, deadline: float, headers: Mapping[str, str]) -> http.client.HTTPResponse:
    _check_scheme(url)
    # a space or a letter of another alphabet is sent as a browser would send it
    asked = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    request = urllib.request.Request(asked, headers=dict(headers), method=method)
    answer: http.client.HTTPResponse = _opener(deadline).open(request, timeout=_left(deadline))
    return answer


def _read(answer: http.client.HTTPResponse, limit: int) -> bytes:
    content = bytearray()
    while block := answer.read(min(_BLOCK, limit + 1 - len(content))):
        content += block
        if len(content) > limit:
            raise FetchError(f"{answer.url} answers with more than {limit:,} bytes", "check the address")
    if answer.length:
        raise FetchError(f"{answer.url} ends {answer.length:,} bytes too early", "try again")
    return bytes(content)


def _slow(url: str, seconds: float) -> FetchError:
    return FetchError(
        f"{url} did not answer completely within {seconds:.0f} s", "check the address and the network, and try again"
    )


def _one_line(reason: object) -> str:
    return (str(reason).strip().split("\n")[0] or type(reason).__name__)[:300]


def _check_scheme(url: str) -> None:
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme not in ("http", "https"):
        raise FetchError(f"{url} is no address that begins with http:// or https://", "check the address")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _opener(deadline: float) -> urllib.request.OpenerDirector:
    # not build_opener(): that reads file: and ftp: too
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
        _Timed(deadline),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage
    ) -> Any:
        # it would be read to its end otherwise, or be left open where the address is malformed
        fp.close()
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, request: urllib.request.Request, *answer: Any) -> urllib.request.Request | None:
        address = answer[-1]
        _check_scheme(address)
        if request.type == "https" and urllib.parse.urlsplit(address).scheme != "https":
            raise FetchError(f"{request.full_url} redirects from https to {address}", "check the address")
        return super().redirect_request(request, *answer)


class _Timed(urllib.request.HTTPSHandler):
    """Asks over http and https, until the deadline."""

    http_request = urllib.request.HTTPSHandler.https_request

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_connection(self._deadline), request)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_connection(self._deadline, tls=True), request)


def _connection(deadline: float, tls: bool = False) -> type[http.client.HTTPConnection]:
    """A connection whose every read ends at the deadline: a socket's own timeout begins anew with each byte."""

    class Response(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *arguments: Any, **more: Any) -> None:
            super().__init__(sock, *arguments, **more)
            self.fp.close()
            self.fp = _BoundedReader(_TimedReader(sock, deadline))

    class Connection(http.client.HTTPConnection):
        response_class = Response

        def connect(self) -> None:
            self.timeout = min(_CONNECT, _left(deadline))
            super().connect()
            self.sock.settimeout(_left(deadline))

    class TLSConnection(Connection, http.client.HTTPSConnection):
        pass

    return TLSConnection if tls else Connection


class _BoundedReader(io.BufferedReader):
    def read(self, size: int | None = -1) -> bytes:
        # a chunk of -1 bytes would be all that the server has
        if size is None or size < 0:
            raise ValueError(f"the server announces {size} bytes")
        return super().read(size)


class _TimedReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline
        # the socket stays open until both it and this are closed, as with socket.makefile()
        self._kept = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._deadline))
        return self._sock.recv_into(buffer)

    def close(self) -> None:
        if not self.closed:
            self._kept.close()
        super().close()

"""Requests and responses of HTTP/1.1, as far as a server of files needs them.

Read as strictly as RFC 9112 allows: whatever two programs could understand differently is refused. A pattern here never
tries a text in two ways. (h11 0.16 does: 16 KB of spaces in one header take it 3.6 s.)
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import BinaryIO
from urllib.parse import unquote

_LONGEST_HEAD = 1 << 14
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([!-~]+) HTTP/([0-9])\.([0-9])\r")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):([\t -~\x80-\xff]*)")
_ABSOLUTE = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE)
_HOST = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_METHODS = "GET", "HEAD"


class Refused(Exception):
    """A request that does not get what it asks for.

    Attributes:
        status: says why.
        headers: further ones of the answer.
    """

    def __init__(self, status: HTTPStatus, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers or {}

    def response(self, with_text: bool = True) -> Response:
        text = f"{self.status.value} {self.status.phrase}\n".encode() if with_text else b""
        headers = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-cache", **self.headers}
        return Response(self.status, headers, text, 0, len(text))


@dataclass(frozen=True)
class Request:
    """One request, without a body.

    Attributes:
        path: what the target names, decoded.
        host: by what name and port the client reached the server, if it says so.
        headers: by lower-case names; those of the same name in one line, as in a list.
        keeps_alive: whether another request may follow.
    """

    method: str
    path: str
    host: str | None
    headers: Mapping[str, str]
    keeps_alive: bool


@dataclass(frozen=True)
class Response:
    """What to send: ``body`` from byte ``start`` up to ``end``. It is closed at the end of a ``with``."""

    status: HTTPStatus
    headers: Mapping[str, str]
    body: BinaryIO | bytes = b""
    start: int = 0
    end: int = 0

    def head(self, keeps_alive: bool) -> bytes:
        """All that comes before the body."""
        fields = {"Date": email.utils.formatdate(usegmt=True), "Server": "llama-cpp-channel", **self.headers}
        if self.status is not HTTPStatus.NOT_MODIFIED:
            fields["Content-Length"] = str(self.end - self.start)
        if not keeps_alive:
            fields["Connection"] = "close"
        lines = [f"HTTP/1.1 {self.status.value} {self.status.phrase}", *(f"{name}: {text}" for name, text in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode()

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        if not isinstance(self.body, bytes):
            self.body.close()


def take_request(received: bytearray) -> Request | None:
    """Take the first request out of what was received; None while it is not complete.

    Raises:
        Refused: it is malformed, too long, or not to read a file; what follows it cannot be told from it.
    """
    # empty lines before a request are allowed
    del received[: len(received) - len(received.lstrip(b"\r\n"))]
    end = received.find(b"\r\n\r\n")
    first, complete, rest = bytes(received if end < 0 else received[: end + 2]).partition(b"\n")
    line = _REQUEST_LINE.fullmatch(first)
    # what is no HTTP at all, TLS for example, is told so without waiting for the end of its first line
    if (complete and not line) or (first and not first[:1].isalpha()):
        raise Refused(HTTPStatus.BAD_REQUEST)
    if (len(received) if end < 0 else end) > _LONGEST_HEAD:
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if complete else HTTPStatus.REQUEST_URI_TOO_LONG)
    if end < 0 or not line:
        return None
    del received[: end + 4]
    return _request(_fields(rest), *(one.decode() for one in line.groups()))


def _fields(lines: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines.split(b"\r\n")[:-1]:
        # a line that begins with a space, and so continues the one before, is none either
        if not (found := _FIELD.fullmatch(line)):
            raise Refused(HTTPStatus.BAD_REQUEST)
        name, text = found[1].decode().lower(), found[2].decode("latin-1").strip(" \t")
        fields[name] = f"{fields[name]}, {text}" if name in fields else text
    return fields


def _request(headers: dict[str, str], method: str, target: str, major: str, minor: str) -> Request:
    if major != "1":
        raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    # two of them are in one line here, and so match neither pattern
    host, length = headers.get("host"), headers.get("content-length")
    if (host is None and minor != "0") or (host is not None and not _HOST.fullmatch(host)):
        raise Refused(HTTPStatus.BAD_REQUEST)
    if length is not None and (not re.fullmatch(r"[0-9]+", length) or "transfer-encoding" in headers):
        raise Refused(HTTPStatus.BAD_REQUEST)
    if method not in _METHODS:
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": ", ".join(_METHODS)})
    if absolute := _ABSOLUTE.fullmatch(target):
        host, target = absolute.groups()
        if not _HOST.fullmatch(host):
            raise Refused(HTTPStatus.BAD_REQUEST)
    elif not target.startswith("/"):
        raise Refused(HTTPStatus.BAD_REQUEST)
    try:
        path = unquote(re.split(r"[?#]", target)[0], errors="strict")
    except UnicodeDecodeError:
        raise Refused(HTTPStatus.BAD_REQUEST) from None
    # a body is not read, and would be taken for the next request
    has_body = "transfer-encoding" in headers or bool((length or "").strip("0"))
    closes = "close" in re.split(r"[ \t]*,[ \t]*", headers.get("connection", "").lower())
    return Request(method, path, host, headers, minor != "0" and not has_body and not closes)

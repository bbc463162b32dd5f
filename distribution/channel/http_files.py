"""What a request for a file or a text gets: all of it, a range of it, or the word that it did not change."""

from __future__ import annotations

import email.utils
import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

from .http_messages import Request, Response

_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)")


def open_inside(folder: Path, parts: Sequence[str]) -> BinaryIO:
    """Open a plain file of a generation.

    Names come from the network, and the folder may hold what was not published: a link is followed nowhere on the way, and
    nothing is waited for.

    Raises:
        OSError: there is no such file, or something else of its name.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    handle = os.open(folder, flags | os.O_DIRECTORY)
    for number, part in enumerate(parts, 1):
        try:
            inner = os.open(part.encode(), flags | (os.O_DIRECTORY if number < len(parts) else 0), dir_fd=handle)
        finally:
            os.close(handle)
        handle = inner
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileNotFoundError(errno.ENOENT, "no plain file", parts[-1])
    return os.fdopen(handle, "rb")


def file_response(request: Request, file: BinaryIO, content_type: str) -> Response:
    """A file, which the response closes."""
    found = os.fstat(file.fileno())
    tag = f"{found.st_mtime_ns:x}-{found.st_size:x}"
    return _response(request, file, found.st_size, tag, {"Content-Type": content_type}, found.st_mtime)


def text_response(request: Request, text: str, content_type: str) -> Response:
    """A text that names the address it is read at."""
    body = text.encode()
    tag = hashlib.sha256(body).hexdigest()[:32]
    return _response(request, body, len(body), tag, {"Content-Type": content_type, "Vary": "Host"})


def _response(
    request: Request, body: BinaryIO | bytes, size: int, tag: str, headers: dict[str, str], modified: float | None = None
) -> Response:
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", **headers}
    headers["ETag"] = f'"{tag}"'
    # a date to come must not be sent, and one before 1970 need not be written
    if modified is not None and 0 <= modified <= time.time():
        headers["Last-Modified"] = email.utils.formatdate(modified, usegmt=True)
    if _is_known(request, headers["ETag"], headers.get("Last-Modified")):
        return Response(HTTPStatus.NOT_MODIFIED, headers, body)
    wanted = _range(request, size, headers["ETag"])
    if wanted is None:
        return Response(HTTPStatus.OK, headers, body, 0, size)
    start, end = wanted
    if start >= end:
        headers["Content-Range"] = f"bytes */{size}"
        return Response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers, body)
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return Response(HTTPStatus.PARTIAL_CONTENT, headers, body, start, end)


def _is_known(request: Request, tag: str, modified: str | None) -> bool:
    if known := request.headers.get("if-none-match"):
        return known == "*" or tag in (one.strip().removeprefix("W/") for one in known.split(","))
    since = request.headers.get("if-modified-since")
    if since is None or modified is None:
        return False
    try:
        return _date(modified) <= _date(since)
    except (ValueError, TypeError, IndexError, OverflowError):
        return False


def _date(text: str) -> datetime:
    found = email.utils.parsedate_to_datetime(text)
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def _range(request: Request, size: int, tag: str) -> tuple[int, int] | None:
    """The half-open range of bytes that is asked for; empty where it lies outside, None where all is wanted."""
    asked = _RANGE.fullmatch(request.headers.get("range", ""))
    if not asked or request.method != "GET" or request.headers.get("if-range", tag) != tag:
        return None
    first, last = (_number(text) if text else None for text in asked.groups())
    if first is None:
        return None if last is None else (max(0, size - last), size if last else 0)
    if last is not None and last < first:
        return None
    return first, size if last is None else min(last + 1, size)


def _number(digits: str) -> int:
    """The number, or one that is larger than any file."""
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) < 20 else 10**20

"""Small files over HTTP, from servers that misbehave in every way that ``damage_server`` knows."""

from __future__ import annotations

import gc
import http.server
import os
import threading
import time
import urllib.parse
import warnings
from collections.abc import Iterator

import pytest

import damage_server
from distribution.errors import ChannelUnreachableError, FetchError
from distribution.fetching import answers, fetch_bytes, fetch_range

PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")
LIMIT = 1 << 20


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    from damage_process import misbehaving_server

    with misbehaving_server() as address:
        yield address


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("behaviour", damage_server.BEHAVIOURS)
def test_a_server_that_misbehaves_is_given_up_in_time(url, behaviour):
    accepted = {
        "good": b"[]", "endless-redirect": b"[]", "zero": b"", "short-length": b"[1,", "not-gzip": b"abc",
        "not-text": b"\xff\xfe\x00\x01",
        "negative-length": b"abc", "odd-length": b"abc",
    }  # fmt: skip
    before = set(os.listdir("/proc/self/fd"))
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        try:
            assert fetch_bytes(f"{url}/{behaviour}/x", LIMIT, 1.0) == accepted.get(behaviour, "an error")
        except FetchError as error:
            assert behaviour not in accepted, error.message
            assert f"{url}/{behaviour}" in error.message or behaviour == "to-ftp"
            assert error.status == (int(behaviour) if behaviour.isdigit() else error.status)
            # what never ends is refused for its size, and not kept until the time is over
            assert ("completely within" in error.message) is (behaviour in damage_server.SLOW), error.message
        gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before
    # a machine with other work takes its time, too
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("behaviour", ["good", "zero", "404", "closes", "long-length", "circle", "silent", "endless"])
def test_a_server_that_does_not_send_parts_is_told_from_one_that_does(url, behaviour):
    began = time.monotonic()
    with pytest.raises(FetchError, match=f"{url}/{behaviour}"):
        fetch_range(f"{url}/{behaviour}/x", 0, 2, 1.0)
    assert time.monotonic() - began < 10


PARTS = {
    "good": (b"bc", "bytes 1-2/5"), "of-another-place": (b"bc", "bytes 2-3/5"), "too-short": (b"b", "bytes 1-2/5"),
    "too-long": (b"bcd", "bytes 1-2/5"), "past-the-end": (b"bc", "bytes 1-2/2"), "of-unknown": (b"bc", "bytes 1-2/*"),
    "of-nothing": (b"bc", ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def parts() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers["Range"] == "bytes=1-2"
            body, said = PARTS[self.path[1:]]
            self.send_response(206)
            self.send_header("Content-Range", said)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", PARTS)
def test_a_part_is_the_one_that_was_asked_for(parts, kind):
    if kind == "good":
        assert fetch_range(f"{parts}/good", 1, 2, 10) == (b"bc", 5)
        return
    with pytest.raises(FetchError, match="answers with"):
        fetch_range(f"{parts}/{kind}", 1, 2, 10)


def test_the_limit_is_exact(url):
    assert fetch_bytes(f"{url}/good", 2, 10) == b"[]"
    with pytest.raises(FetchError, match="more than 1 bytes"):
        fetch_bytes(f"{url}/good", 1, 10)


def test_the_status_tells_what_is_not_there_from_what_does_not_answer(url):
    with pytest.raises(ChannelUnreachableError) as missing:
        fetch_bytes(f"{url}/404/x", LIMIT, 10)
    with pytest.raises(ChannelUnreachableError) as silent:
        fetch_bytes("http://127.0.0.1:9/", LIMIT, 10)
    assert (missing.value.status, silent.value.status) == (404, None)


@pytest.mark.parametrize(
    "address",
    [
        "", "//x", "file:///etc/hostname", "ftp://127.0.0.1/", "http://", "http:///x", "http://[::1", "http://127.0.0.1:x/",
        "http://127.0.0.1:99999/",
        "http://a b/", "http://..", "http://x\0/", "http://\ud800/", "http://" + "a" * 10_000, "http://127.0.0.1:9/\n",
        "data:,x", "HTTP:", "https://127.0.0.1:9",
    ],
)  # fmt: skip
def test_malformed_addresses(address):
    with pytest.raises(FetchError):
        fetch_bytes(address, LIMIT, 5)


def test_an_address_is_sent_as_a_browser_sends_it(url):
    for path in ("good/ä b", "good/%20?a=b c#d", "good/\n"):
        assert fetch_bytes(f"{url}/{path}", LIMIT, 10) == b"[]"
    assert fetch_bytes(f"HTTP{url.removeprefix('http')}/good", LIMIT, 10) == b"[]"


@pytest.mark.parametrize(
    "proxy", ["x", "http://", "http://[", "::", " ", "file:///x", "socks5://127.0.0.1:9", "http://127.0.0.1:9"]
)
def test_a_proxy_that_is_none(proxy, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, proxy)
    for scheme in ("http", "https"):
        with pytest.raises(FetchError):
            fetch_bytes(f"{scheme}://example.invalid/", LIMIT, 5)


def test_a_proxy_is_used(url, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", url)
    with pytest.raises(FetchError) as caught:
        # what it makes of an absolute address is its own affair
        fetch_bytes("http://example.invalid/good", LIMIT, 5)
    assert caught.value.status == 404 and urllib.parse.urlsplit(url).port


@pytest.mark.parametrize(
    ("behaviour", "there"),
    [("good", True), ("endless", True), ("404", False), ("circle", False), ("to-file", False), ("garbage", False),
     ("silent", False), ("drips-status", False), ("drips-headers", False)],
)  # fmt: skip
def test_whether_something_is_there_is_known_in_time(url, behaviour, there):
    began = time.monotonic()
    assert answers(f"{url}/{behaviour}", 1.0) is there
    assert time.monotonic() - began < 10

"""What a lock's packages say about themselves is read in little memory, and from little of them."""

from __future__ import annotations

import bz2
import functools
import hashlib
import http.server
import io
import random
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("rattler")
pytest.importorskip("rattler_build")

import contextlib

from distribution.environment import lock, package_index
from distribution.errors import ChannelUnreachableError, HashMismatchError
from measuring import measured
from packed_by_hand import Model, add, at, claims, digest, model, raw_frame, write, zstd

PAYLOAD = 8 << 20


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "channel/linux-64"
    folder.mkdir(parents=True)
    return folder


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves parts of files where ``parts`` is set, and counts what it sends."""

    parts, sent = True, 0
    after_reading: Callable[[], object] = staticmethod(lambda: None)

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        data = Path(self.translate_path(self.path)).read_bytes()
        self.after_reading()
        if asked and self.parts:
            start, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
            data = data[start:end]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)
        type(self).sent += len(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(folder) -> Iterator[http.server.ThreadingHTTPServer]:
    handler = type("Handler", (_Handler,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder.parent)))
    server.handler = handler
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def entry(package: Path, server: http.server.ThreadingHTTPServer | None = None) -> str:
    """A lock of one package, in its folder or on a server."""
    channel = f"http://127.0.0.1:{server.server_address[1]}" if server else package.parent.parent.as_uri()
    return f"@EXPLICIT\n{channel}/linux-64/{package.name}#sha256:{hashlib.sha256(package.read_bytes()).hexdigest()}\n"


def large() -> Model:
    """A package with a payload that does not compress."""
    return add(model(), "big", random.Random(1).randbytes(PAYLOAD))


def bzipped(folder: Path, *members: tuple[str, bytes]) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    path = folder / "tool-1.0-h1_0.tar.bz2"
    path.write_bytes(bz2.compress(buffer.getvalue()))
    return path


INDEX = b'{"name": "tool", "version": "1.0", "build": "h1_0", "build_number": 0, "subdir": "linux-64", "depends": ["foo"]}'


@pytest.mark.parametrize("kind", ["folder", "server", "server without parts"])
def test_of_a_package_at_an_address_no_more_is_fetched_than_needed(folder, server, kind):
    path = write(folder, large())
    server.handler.parts = kind != "server without parts"
    [found] = lock.read(entry(path, server if "server" in kind else None), "dev.lock")
    assert found.depends == ["python >=3.10", "libfoo 1.2.* h*_0"] and found.sha256.hex() == digest(path.read_bytes())
    least, most = {"folder": (0, 0), "server": (1, 1 << 20), "server without parts": (PAYLOAD, 3 * PAYLOAD)}[kind]
    assert least <= server.handler.sent <= most


@pytest.mark.parametrize("remote", [False, True])
def test_packages_of_the_older_format(folder, server, remote):
    path = bzipped(folder, ("info/files", b"a\n"), ("info/index.json", INDEX), ("a", b"x" * 10_000))
    [found] = lock.read(entry(path, server if remote else None), "dev.lock")
    assert (found.name.normalized, found.depends, found.file_name) == ("tool", ["foo"], path.name)


def test_a_package_that_changes_while_it_is_read(folder, server):
    path = write(folder, large())
    text = entry(path, server)
    server.handler.after_reading = staticmethod(lambda: path.write_bytes(path.read_bytes() + b"x"))
    with pytest.raises(ChannelUnreachableError, match="changed while it was read"):
        lock.read(text, "dev.lock")


def test_a_reading_that_was_interrupted_fetches_nothing_more(folder, server):
    path = write(folder, large())
    file = package_index._Remote(f"http://127.0.0.1:{server.server_address[1]}/linux-64/{path.name}")
    assert file.open() == path.stat().st_size
    before = server.handler.sent
    file.stop()
    file.seek(PAYLOAD)
    with pytest.raises(ValueError, match="interrupted"):
        file.read(10)
    assert server.handler.sent == before


def test_a_whole_file_is_compared_with_the_lock(folder, server):
    path = bzipped(folder, ("info/index.json", INDEX))
    text = entry(path, server)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(HashMismatchError, match=r"not the package that .* the lock names"):
        lock.read(text, "dev.lock")


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ([("info/files", b"")], "has no info/index.json"),
        ([("info/index.json/x", b"")], "has no info/index.json"),
        ([("info/index.json", b"x" * (2 << 20))], "is a file of 2,097,152 bytes"),
        ([("info/index.json", b"{")], "cannot be read"),
    ],
)
def test_packages_without_a_usable_index(folder, members, complaint):
    with pytest.raises(ChannelUnreachableError, match=complaint):
        lock.read(entry(bzipped(folder, *members)), "dev.lock")


def test_data_that_is_not_bzip2(folder):
    path = bzipped(folder, ("info/index.json", INDEX))
    whole = path.read_bytes()
    for damaged in (b"", b"x" + whole, whole[:-20], whole[:30] + bytes(40) + whole[70:]):
        path.write_bytes(damaged)
        with pytest.raises(ChannelUnreachableError, match=r"bzip2 stream|data is damaged|is cut off"):
            lock.read(entry(path), "dev.lock")


# What it may cost.

GIB = 1 << 30


def expanding(start: bytes, size: int, compressor: zstd.ZstdCompressor | bz2.BZ2Compressor) -> bytes:
    """A little data that expands to ``size`` zeros behind ``start``."""
    block = bytes(1 << 20)
    return b"".join([compressor.compress(start), *(compressor.compress(block) for _ in range(size >> 20)), compressor.flush()])


def _conda(folder: Path, info: bytes) -> Path:
    return write(folder, model(), at("frame", lambda frames: {**frames, "info": info}))


def _bzip2(folder: Path, data: bytes) -> Path:
    path = folder / "tool-1.0-h1_0.tar.bz2"
    path.write_bytes(data)
    return path


BOMBS: dict[str, Callable[[Path], Path]] = {
    "an index that is larger than it may be": lambda folder: _conda(
        folder, expanding(claims(b"info/index.json", 7 * GIB), GIB, zstd.ZstdCompressor(level=1))
    ),
    "a file in front of the index": lambda folder: _conda(
        folder, expanding(claims(b"info/x", 7 * GIB), GIB, zstd.ZstdCompressor(level=1))
    ),
    "a long name": lambda folder: _conda(folder, expanding(claims(b"x", 7 * GIB, b"L"), GIB, zstd.ZstdCompressor(level=1))),
    "a window of 3 TB": lambda folder: _conda(folder, raw_frame(bytes(1024), 0xFF)),
    "bzip2: a long name": lambda folder: _bzip2(folder, expanding(claims(b"x", 7 * GIB, b"L"), 64 << 20, bz2.BZ2Compressor())),
    "bzip2: a file in front of the index": lambda folder: _bzip2(
        folder, expanding(claims(b"info/x", 7 * GIB), GIB // 2, bz2.BZ2Compressor())
    ),
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("remote", [False, True], ids=["folder", "server"])
def test_packages_that_expand_cost_neither_memory_nor_time(folder, server, make, remote):
    path = make(folder)
    assert path.stat().st_size < 1 << 20
    first, text = "from distribution.environment import lock", entry(path, server if remote else None)
    said, grown, seconds = measured(first, 'lock.read(sys.argv[1], "dev.lock")', "ChannelUnreachableError", text)
    # a frame's largest window is 128 MiB
    assert "cannot be read" in said and grown < 200 and seconds < 60, (said, grown, seconds)

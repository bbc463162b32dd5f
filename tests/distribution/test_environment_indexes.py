"""Indexes of channels that nobody signed: whoever sits between here and there may send anything in their place."""

from __future__ import annotations

import bz2
import gzip
import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rattler")

from measuring import measured  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from distribution.conda_archive import zstd  # noqa: E402

UNPACKED, LIMIT = 128 << 20, 16 << 20
FIRST = f"""\
import distribution.environment.solving as solving
solving.LARGEST_INDEX = {LIMIT}
from distribution.environment.specification import parse"""
CALL = 'solving.solve_environment(parse("dependencies: [python]", "here", channel=sys.argv[1]))'


def bomb(name: str) -> bytes:
    """An index of 128 MiB, packed as its name says."""
    start = b'{"info": {"subdir": "noarch"}, "packages": {}, "packages.conda": {}, "odd": "'
    blocks = [start, *[b"a" * (1 << 20)] * (UNPACKED >> 20), b'"}']
    if name.endswith(".zst"):
        packer = zstd.ZstdCompressor()
        return b"".join([*map(packer.compress, blocks), packer.flush()])
    if name.endswith(".bz2"):
        bzip2 = bz2.BZ2Compressor(1)
        return b"".join([*map(bzip2.compress, blocks), bzip2.flush()])
    return gzip.compress(b"".join(blocks), 1)


@pytest.fixture(params=["repodata.json.zst", "repodata.json.bz2", "repodata.json", "repodata_shards.msgpack.zst"])
def channel(request: pytest.FixtureRequest) -> Iterator[str]:
    name, content = request.param, bomb(request.param)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            there = self.path.endswith(f"/{name}")
            self.send_response(200 if there else 404)
            if there and name == "repodata.json":
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(content) if there else 0))
            self.end_headers()
            if there and self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # a scheme may be written so, too
        yield f"HTTP://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_an_index_that_unpacks_to_more_than_it_may(channel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATTLER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    """Neither memory nor the disk is filled."""
    said, grown, _ = measured(FIRST, CALL, "ChannelUnreachableError", channel)
    assert "cannot be read" in said and grown < 100
    assert sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file()) < LIMIT

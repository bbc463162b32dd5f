"""Indexes of channels that nobody signed: whoever sits between here and there may send anything in their place."""

from __future__ import annotations

import bz2
import datetime
import gzip
import http.server
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rattler")
pytest.importorskip("cryptography")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from distribution.conda_archive import zstd
from measuring import measured

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


NAMES = ["repodata.json.zst", "repodata.json.bz2", "repodata.json", "repodata_shards.msgpack.zst"]


@pytest.fixture(params=[*(f"HTTP {name}" for name in NAMES), *(f"HTTPS {name}" for name in NAMES)])
def channel(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    scheme, name = request.param.split()
    content = bomb(name)

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
        if scheme == "HTTPS":
            server.socket = with_tls(tmp_path, monkeypatch).wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # a scheme may be written so, too
        yield f"{scheme}://localhost:{server.server_address[1]}"
        server.shutdown()


def with_tls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """For a server of this machine, by an authority that py-rattler trusts from here on."""
    now = datetime.datetime.now(datetime.timezone.utc)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("authority", "localhost")}
    for name, key in keys.items():
        subject, issuer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (name, "authority"))
        made = (
            x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == "authority", path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(keys["authority"], hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / f"{name}.pem").write_bytes(made.public_bytes(pem) + secret)
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "authority.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "localhost.pem")
    return context


def test_an_index_that_unpacks_to_more_than_it_may(channel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATTLER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    """Neither memory nor the disk is filled."""
    said, grown, _ = measured(FIRST, CALL, "ChannelUnreachableError", channel)
    assert "cannot be read" in said and grown < 100
    assert sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file()) < LIMIT

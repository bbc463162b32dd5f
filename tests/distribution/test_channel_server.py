"""The channel over HTTP: solved and installed from, and asked for what it must not give."""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import rattler
import yaml
from conda_packages import ROOT, place, release, solve, solve_records, write_package  # noqa: F401

from distribution.channel.generations import Channel
from distribution.channel.server import ChannelServer
from distribution.errors import ChannelNotFoundError, ServerError

PACKAGE = "/linux-64/libllama-0.4.0-ha0_0.conda"


@pytest.fixture
def served(place, tmp_path) -> Iterator[ChannelServer]:
    place.publish(*release(tmp_path / "one", 0))
    with ChannelServer(place.channel, port=0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: ChannelServer, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_solved_and_installed_over_http(served, place, tmp_path):
    records = solve_records(served.address, "llama-cpp-python", "libggml-cuda", "llama.cpp")
    assert len(records) == 4 and all(record.url.startswith(served.address) for record in records)
    prefix = tmp_path / "prefix"
    asyncio.run(rattler.install(records, prefix, cache_dir=tmp_path / "cache", show_progress=False))
    assert (prefix / "lib/libggml-cuda.so").read_bytes() == b"no machine code"
    assert len(list((prefix / "conda-meta").glob("*.json"))) == 4
    place.publish(*release(tmp_path / "two", 1))
    assert solve(served.address, "llama-cpp-python") == {"llama-cpp-python": "ha1_1", "libllama": "ha1_1"}


def test_files_name_the_address_they_were_asked_under(served, place):
    port = served.server_address[1]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "build-machine.example", "[::1]:8000"):
        answer, body = ask(served, "/environment.yml", Host=host)
        assert answer.status == 200 and yaml.safe_load(body)["channels"] == [f"http://{host}"]
        assert f"conda env create -f http://{host}/environment.yml".encode() in body
        _, lock = ask(served, "/explicit.txt", Host=host)
        assert f"http://{host}/linux-64/libllama-0.4.0-ha0_0.conda#".encode() in lock and b"file:" not in lock
    assert b"libggml-cuda" not in ask(served, "/environment-cpu.yml")[1]
    assert place.channel.url.encode() in (place.channel.current() / "environment.yml").read_bytes()


@pytest.mark.parametrize("way", ["renamed", "copied", "linked"])
def test_a_channel_that_is_elsewhere_now_is_readdressed(place, tmp_path, way):
    place.publish(*release(tmp_path / "one", 0))
    before, now = place.channel.path.parent, tmp_path / "elsewhere"
    if way == "renamed":
        before.rename(now)
    elif way == "copied":
        shutil.copytree(before, now, symlinks=True)
    else:
        now.symlink_to(before)
    with ChannelServer(Channel.at(now / "channel"), port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("environment.yml", "environment-cpu.yml", "explicit.txt", "explicit-cpu.txt"):
            answer, body = ask(server, f"/{name}")
            assert answer.status == 200 and b"file://" not in body and server.address.encode() in body
        server.shutdown()


def test_a_damaged_environment_file_is_not_taken_for_a_wrong_request(served, place):
    (place.channel.current() / "environment.yml").write_text("channels: [evil]\n")
    for name in ("environment.yml", "explicit.txt"):
        answer, body = ask(served, f"/{name}")
        assert answer.status == 500 and b"evil" not in body and b"file:" not in body


@pytest.mark.parametrize("host", ['evil"><script>', "a b", "x/y", "user@host", "host:port", "", "a" * 300])
def test_a_malformed_host_is_not_repeated(served, host):
    answer, body = ask(served, "/environment.yml", Host=host)
    assert answer.status == 400 and b"script" not in body


def test_the_page_has_the_line_to_copy(served):
    answer, body = ask(served, "/")
    assert answer.headers["Content-Type"].startswith("text/html")
    assert f"conda env create -f {served.address}/environment.yml".encode() in body


def test_ranges(served, place):
    whole = (place.channel.current() / PACKAGE[1:]).read_bytes()
    size = len(whole)
    for asked, start, end in (
        ("bytes=0-99", 0, 100), ("bytes=100-", 100, size), ("bytes=-10", size - 10, size), (f"bytes=5-{size + 9}", 5, size),
    ):  # fmt: skip
        answer, body = ask(served, PACKAGE, Range=asked)
        assert answer.status == 206 and body == whole[start:end]
        assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
    for asked in (f"bytes={size}-", "bytes=-0"):
        answer, body = ask(served, PACKAGE, Range=asked)
        assert answer.status == 416 and body == b"" and answer.headers["Content-Range"] == f"bytes */{size}"
    for asked in ("bytes=9-5", "lines=1-2", "bytes=-", "bytes=0-1,3-4"):
        answer, body = ask(served, PACKAGE, Range=asked)
        assert answer.status == 200 and body == whole
    tag = ask(served, PACKAGE)[0].headers["ETag"]
    assert ask(served, PACKAGE, Range="bytes=0-9", If_Range=tag)[0].status == 206
    assert ask(served, PACKAGE, Range="bytes=0-9", If_Range='"other"')[0].status == 200


def test_head_and_what_is_known_already(served, place, tmp_path):
    answer, body = ask(served, PACKAGE, "HEAD")
    size = (place.channel.current() / PACKAGE[1:]).stat().st_size
    assert answer.status == 200 and body == b"" and answer.headers["Content-Length"] == str(size)
    for path in ("/linux-64/repodata.json", "/environment.yml"):
        first, _ = ask(served, path)
        assert ask(served, path, If_None_Match=first.headers["ETag"])[0].status == 304
        if modified := first.headers["Last-Modified"]:
            assert ask(served, path, If_Modified_Since=modified)[0].status == 304
            assert ask(served, path, If_Modified_Since="yesterday")[0].status == 200
    before = ask(served, "/linux-64/repodata.json")[0].headers["ETag"]
    place.publish(write_package(tmp_path, "tool"))
    answer, body = ask(served, "/linux-64/repodata.json", If_None_Match=before)
    assert answer.status == 200 and b"tool-1.0" in body
    # a package is the same file in every generation, and stays known
    assert ask(served, PACKAGE, If_None_Match=ask(served, PACKAGE)[0].headers["ETag"])[0].status == 304


@pytest.mark.parametrize(
    "path",
    [
        "/../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/linux-64/..%2f..%2f..%2fconfig/llama-cpp/signing-key.pem",
        "/..%5c..%5cetc", "//etc/passwd", "/etc/passwd", "/linux-64/", "/linux-64", "/.channel.generations/lock", "/nothing",
        "/linux-64/%00", "/%ff", "/linux-64/repodata.json/x", "/linux-64/outside", "/" + "a" * 5000,
    ],
)  # fmt: skip
def test_nothing_else_is_served(served, place, tmp_path, path):
    (place.channel.current() / "linux-64/outside").symlink_to(tmp_path / "config/llama-cpp/signing-key.pem")
    answer, body = ask(served, path)
    assert answer.status in (400, 404) and b"PRIVATE" not in body and b"root" not in body


def test_it_cannot_be_written_to(served):
    for method in ("PUT", "POST", "DELETE", "PATCH"):
        answer, _ = ask(served, PACKAGE, method, Content_Length="0")
        assert answer.status == 501


def test_a_connection_is_used_again(served):
    connection = http.client.HTTPConnection(*served.server_address[:2], timeout=30)
    for path, status in (("/linux-64/repodata.json", 200), ("/nothing", 404), (PACKAGE, 200), ("/noarch/repodata.json", 200)):
        connection.request("GET", path)
        kept = connection.sock
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status and connection.sock is kept
    connection.close()


def test_a_client_that_hangs_up_harms_nobody(served, capfd):
    with socket.create_connection(served.server_address[:2]) as connection:
        connection.sendall(f"GET {PACKAGE} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert ask(served, "/noarch/repodata.json")[0].status == 200
    assert "Traceback" not in capfd.readouterr().err


def test_addresses(place, tmp_path):
    with pytest.raises(ChannelNotFoundError):
        ChannelServer(place.channel, port=0)
    place.publish(*release(tmp_path / "one", 0))
    with ChannelServer(place.channel, port=0) as server:
        assert not server.is_open and server.address == f"http://127.0.0.1:{server.server_address[1]}"
        for host, port in (("127.0.0.1", server.server_address[1]), ("203.0.113.1", 0), ("127.0.0.1", 70_000)):
            with pytest.raises(ServerError) as caught:
                ChannelServer(place.channel, host, port)
            assert "--port" in caught.value.remedy
    with ChannelServer(place.channel, "0.0.0.0", 0) as server:
        assert server.is_open and socket.gethostname() in server.reachable_address


def test_command_line(place, tmp_path):
    place.publish(*release(tmp_path / "one", 0))
    command = [sys.executable, "-m", "distribution", "channel", "serve", "--host", "0.0.0.0", "--port", "0"]
    command += ["--channel", str(place.channel.path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stderr
        said = [process.stderr.readline() for _ in range(3)]
        assert "serving" in said[0] and "open to the network" in said[1] and "conda env create -f http://" in said[2]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0

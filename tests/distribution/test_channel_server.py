"""The channel over HTTP: solved and installed from, and asked for what it must not give."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import rattler
import yaml

from conda_packages import ROOT, release, solve, solve_records, write_package
from distribution.channel.server import ChannelServer
from distribution.channel.store import Channel
from distribution.errors import ChannelNotFoundError, ServerError
from llama_cpp import __version__ as VERSION

PACKAGE = f"/linux-64/libllama-{VERSION}-ha0_0.conda"


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
        assert f"http://{host}/linux-64/libllama-{VERSION}-ha0_0.conda#".encode() in lock and b"file:" not in lock
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
    digits = "9" * 5000
    for asked, start in ((f"bytes=7-{digits}", 7), (f"bytes=-{digits}", 0), (f"bytes={'0' * 5000}7-", 7)):
        answer, body = ask(served, PACKAGE, Range=asked)
        assert answer.status == 206 and body == whole[start:]
    assert ask(served, PACKAGE, "HEAD", Range="bytes=0-9")[0].status == 200
    for asked in (f"bytes={size}-", f"bytes={digits}-", "bytes=-0", "bytes=-" + "0" * 5000):
        answer, body = ask(served, PACKAGE, Range=asked)
        assert answer.status == 416 and body == b"" and answer.headers["Content-Range"] == f"bytes */{size}"
    many = "bytes=" + "0-1," * 3000 + "0-1"
    for asked in ("bytes=9-5", "lines=1-2", "bytes=-", "bytes=0-1,3-4", many, "bytes=-1-5", f"bytes={digits}-5"):
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
            before = [
                "yesterday", "Mon, 01 Jan 0001 00:00:00 +2359", "Thu, 01 Jan 1970 00:00:00", "9" * 5000,
                f"Thu, 01 Jan 1970 00:00:00 +{'9' * 20}",
            ]  # fmt: skip
            for date in before:
                assert ask(served, path, If_Modified_Since=date)[0].status == 200
            for date in ("Fri, 31 Dec 9999 23:59:59 -2359", "Fri, 31 Dec 9999 23:59:59", "Friday, 31-Dec-49 23:59:59 GMT"):
                assert ask(served, path, If_Modified_Since=date)[0].status == 304
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
    for method in ("PUT", "POST", "DELETE", "PATCH", "OPTIONS", "X"):
        answer, _ = ask(served, PACKAGE, method, Content_Length="0")
        assert answer.status == 405 and answer.headers["Allow"] == "GET, HEAD"


NOT_SERVED = {
    "a fifo": lambda path, elsewhere: os.mkfifo(path),
    "a socket": lambda path, elsewhere: listen_at(path),
    "a link to a file": lambda path, elsewhere: path.symlink_to(elsewhere / "secret"),
    "a dangling link": lambda path, elsewhere: path.symlink_to("nothing"),
    "a link to itself": lambda path, elsewhere: path.symlink_to(path),
    "a link to a file beside it": lambda path, elsewhere: path.symlink_to("repodata.json"),
    "a device": lambda path, elsewhere: path.symlink_to("/dev/zero"),
    "a folder": lambda path, elsewhere: path.mkdir(),
}


@pytest.mark.parametrize("what", NOT_SERVED)
def test_what_is_no_plain_file_is_not_there(served, place, tmp_path, what):
    (tmp_path / "secret").write_text("PRIVATE")
    for name in ("linux-64/x.conda", "environment.yml", "explicit.txt", "manifest.json", "linux-64/repodata.json"):
        path, aside = place.channel.current() / name, tmp_path / "aside"
        if path.exists():
            path.rename(aside)
        NOT_SERVED[what](path, tmp_path)
        answer, body = ask(served, f"/{name}")
        assert answer.status == 404 and b"PRIVATE" not in body, name
        if name == "environment.yml":
            # another text that is made from it
            assert ask(served, "/explicit.txt")[0].status == 404
        assert ask(served, "/noarch/repodata.json")[0].status == ask(served, "/")[0].status == 200
        path.rmdir() if path.is_dir() else path.unlink()
        if aside.exists():
            aside.rename(path)


def listen_at(path: Path) -> None:
    handle = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as connection:
        # the name of a socket must be short
        connection.bind(f"/proc/self/fd/{handle}/{path.name}")
    os.close(handle)


def test_no_folder_on_the_way_may_be_a_link(served, place, tmp_path):
    folder = place.channel.current()
    (tmp_path / "outside/inner").mkdir(parents=True)
    (tmp_path / "outside/inner/secret.conda").write_text("PRIVATE")
    (folder / "linux-64/outside").symlink_to(tmp_path / "outside")
    (folder / "win-64").symlink_to(tmp_path / "outside/inner")
    (folder / "again").symlink_to("linux-64")
    (folder / "real").mkdir()
    (folder / "real/there.conda").write_text("public")
    for path in ("linux-64/outside/inner/secret.conda", "win-64/secret.conda", "again/repodata.json"):
        answer, body = ask(served, f"/{path}")
        assert answer.status == 404 and b"PRIVATE" not in body
    assert ask(served, "/real/there.conda")[1] == b"public"
    # the folder of the generation itself
    moved = folder.rename(folder.parent / "moved")
    folder.symlink_to(moved)
    assert ask(served, "/real/there.conda")[0].status == 404


def test_environment_files_that_are_none(served, place):
    for text in (b"\xff\xfe", b"", b"#     conda env create -f x", b"#" * (1 << 23)):
        (place.channel.current() / "environment.yml").write_bytes(text)
        for name in ("environment.yml", "explicit.txt"):
            assert ask(served, f"/{name}")[0].status == 500
    assert ask(served, "/noarch/repodata.json")[0].status == 200


def test_odd_sizes_and_times_of_files(served, place):
    folder = place.channel.current()
    with (folder / "huge.bin").open("wb") as file:
        file.truncate(1 << 42)
    (folder / "empty.bin").touch()
    answer, _ = ask(served, "/huge.bin", "HEAD")
    assert answer.headers["Content-Length"] == str(1 << 42)
    assert ask(served, "/huge.bin", Range=f"bytes={(1 << 42) - 5}-{'9' * 5000}")[1] == bytes(5)
    assert ask(served, "/empty.bin")[1] == b"" and ask(served, "/empty.bin", Range="bytes=0-")[0].status == 416
    for seconds, dated in ((-(10**9), False), (0, True), (10**9, True), (10**10, False), (10**11, False)):
        os.utime(folder / "empty.bin", (seconds, seconds))
        # a file system may not know the time
        dated &= (folder / "empty.bin").stat().st_mtime == seconds
        answer, _ = ask(served, "/empty.bin", If_Modified_Since="Fri, 31 Dec 9999 23:59:59 GMT")
        assert answer.status == (304 if dated else 200) and bool(answer.headers["Last-Modified"]) == dated
        assert ask(served, "/empty.bin", If_None_Match=answer.headers["ETag"])[0].status == 304


def test_caches_are_told_what_depends_on_the_host(served):
    for path in ("/", "/environment.yml", "/explicit.txt"):
        answer, _ = ask(served, path)
        assert answer.headers["Vary"] == "Host"
        assert ask(served, path, If_None_Match=answer.headers["ETag"])[0].headers["Vary"] == "Host"
        assert ask(served, path, Host="x", If_None_Match=answer.headers["ETag"])[0].status == 200
        assert ask(served, path, Range="bytes=999999999-")[0].headers["Vary"] == "Host"
    assert ask(served, PACKAGE)[0].headers["Vary"] is None


def test_the_host_of_an_absolute_target_comes_first(served):
    answer, body = ask(served, "http://other:7/environment.yml?x#y", Host="x")
    assert answer.status == 200 and b"http://other:7/" in body and answer.headers["Vary"] == "Host"
    for target in ("http://a@b/environment.yml", "http:///environment.yml", "ftp://x/", "*", "x:80"):
        assert ask(served, target, Host="x")[0].status == 400


FRAMINGS = {
    "two lengths": (["Content-Length: 5", "Content-Length: 5"], 400),
    "two other lengths": (["Content-Length: 5", "Content-Length: 6"], 400),
    "a list of lengths": (["Content-Length: 5, 5"], 400),
    "a negative length": (["Content-Length: -5"], 400),
    "no number": (["Content-Length: 0x5"], 400),
    "a length and chunks": (["Content-Length: 5", "Transfer-Encoding: chunked"], 400),
    "no length and chunks": (["Content-Length: 0", "Transfer-Encoding: chunked"], 400),
    "a folded line": (["X: y", " Content-Length: 5"], 400),
    "a space before the colon": (["Content-Length : 5"], 400),
    "two hosts": (["Host: y"], 400),
    "a body": (["Content-Length: 5"], 200),
    "a body of any length": (["Content-Length: " + "9" * 5000], 200),
    "chunks": (["Transfer-Encoding: chunked"], 200),
    "a body to wait with": (["Content-Length: 5", "Expect: 100-continue"], 200),
}


def test_a_body_is_never_taken_for_a_request(served):
    first, second = ("GET /noarch/repodata.json HTTP/1.1", "Host: x"), ("GET /nothing HTTP/1.1", "Host: x", "", "")
    for what, (lines, status) in FRAMINGS.items():
        answers = exchange(served, *first, *lines, "", *second)
        assert answers.startswith(f"HTTP/1.1 {status} ".encode()) and answers.count(b"HTTP/1.1 ") == 1, what
        assert b"\r\nConnection: close\r\n" in answers, what


def test_requests_may_come_before_answers_are_read(served):
    one = ["GET /noarch/repodata.json HTTP/1.1", "Host: x", ""]
    missing, last = ["HEAD /nothing HTTP/1.1", "Host: x", ""], [*one[:2], "Connection: x, Close", ""]
    answers = exchange(served, *one, *missing, *one, "", *last, *one, "")
    assert re.findall(rb"HTTP/1.1 (\d+) ", answers) == [b"200", b"404", b"200", b"200"]


def test_a_client_that_closes_its_side_gets_its_answer(served, place):
    with socket.create_connection(served.server_address[:2], timeout=30) as connection:
        connection.sendall(f"GET {PACKAGE} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.endswith((place.channel.current() / PACKAGE[1:]).read_bytes())


VERSIONS = {
    "GET /": 400, "GET / HTTP/0.9": 505, "GET / HTTP/1.0": 200, "GET / HTTP/1.2": 400, "GET / HTTP/2.0": 505,
    "PRI * HTTP/2.0": 505, "GET / http/1.1": 400, "GET  / HTTP/1.1": 400, "GET / HTTP/1.1 ": 400, "\x16\x03\x01": 400,
    "GET /" + "a" * 20_000: 414,
}  # fmt: skip


def test_first_lines(served):
    for line, status in VERSIONS.items():
        answer = exchange(served, line, "", "") if len(line) < 20_000 else exchange(served, line)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()) and answer.count(b"HTTP/1.1") == 1, line


def test_heads_have_a_length(served):
    head = "GET / HTTP/1.1", "Host: x", "Connection: close"
    for padding, status in ((16_000, 200), (17_000, 431), (10**6, 431)):
        assert exchange(served, *head, "X: " + "y" * padding, "", "").startswith(f"HTTP/1.1 {status} ".encode())


def test_a_client_that_still_sends_when_it_is_refused_gets_the_answer(served):
    with socket.create_connection(served.server_address[:2], timeout=30) as connection:
        for _ in range(20):
            connection.sendall(b"a" * 5000)
            time.sleep(0.02)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 414 ")


def exchange(server: ChannelServer, *lines: str) -> bytes:
    """All that is answered to these lines until the server closes."""
    with socket.create_connection(server.server_address[:2], timeout=30) as connection:
        received = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall("\r\n".join(lines).encode("latin-1"))
        with contextlib.suppress(ConnectionResetError):
            while block := connection.recv(1 << 16):
                received += block
        return received


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
        taken = "127.0.0.1", server.server_address[1]
        for host, port in (taken, ("203.0.113.1", 0), ("127.0.0.1", 70_000), ("127.0.0.1", -1), ("a" * 300, 0), ("a:b", 0)):
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

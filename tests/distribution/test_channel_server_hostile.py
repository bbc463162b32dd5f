"""The channel over HTTP, sent what no client should send: a generator walks the ways to get HTTP wrong."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from distribution.channel.http_messages import Refused, take_request
from llama_cpp import __version__ as VERSION
from measures import least_seconds
from serving import PATIENCE, SMALL, Serving, eventually, read_all, request, serving

STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [A-Za-z][A-Za-z -]*")
FIELD = re.compile(rb"([A-Za-z-]+): ([ -~]*)")
PATHS = [
    SMALL, "/", "/environment.yml", "/explicit.txt", "/manifest.json", f"/noarch/llama-cpp-python-{VERSION}-ha0_0.conda",
    "/linux-64", "/nothing", "/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/%00", "/%ff", "/%", "/%zz", "/a%0d%0aX:%20y",
    "/\\..\\etc", "//etc/passwd", "/.channel.generations/lock", "/?" + "q" * 300, "/#", "/;a=b", "/linux-64/" + "../" * 50,
    "/" * 900, "/" + "a/" * 2000, "/" + "%41" * 400, "/linux-64/repodata.json/", "/%F0%9F%A6%99", "/" + "n" * 300,
]  # fmt: skip
NUMBERS = [
    "", "0", "1", "5", "-0", "-1", "+5", "0x10", "1e9", "1.5", "5,5", "5, 5", "5 5", "²", "١", "NaN", " ", "2147483648",
    str(2**63), str(2**64), str(2**64 + 5), "9" * 5000, "0" * 5000 + "1", "-" + "9" * 400, "1_000", "\x0b5",
]  # fmt: skip
DATES = [
    "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 -2359", "Mon, 01 Jan 0001 00:00:00 +2359", "yesterday", "0",
    "Mon, 00 Foo 99999999999999999999 25:61:61 GMT", "Thu, 01 Jan 1970 00:00:00 +99999999999999999999", "1" * 5000, ",",
    "Thursday, 01-Jan-70 00:00:00 GMT", "Thu Jan  1 00:00:00 1970", "Thu, 01 Jan 1970 00:00:00 -0000", "-1", "Jan",
    "Thu, 29 Feb 2023 12:00:00 GMT", "Thu, 01 Jan -5 00:00:00 GMT", ":" * 99, "(" * 999, "Thu, 01 Jan 2026 1:2:3:4:5 GMT",
]  # fmt: skip
HOSTS = [
    "x", "", "a b", "a,b", "x:99999999", "[::1]", "[::1", "u@h", "x/y", "x?y", '"><script>', "x" * 300, "%41", "\xff", ":", "[",
]  # fmt: skip
TAGS = ["*", '"', '""', "W/", 'W/""', '"a"' * 999, ", " * 999, '"\xff"', "*,*", "W/W/W/", '"a", *']
LINE_ENDS = ["\r\n", "\n", "\r", "\n\r", "\r\r\n", "\r\n ", "\r\n\t", "\x0b", "\x85", "\r\n\r\n"]
METHODS = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "PRI", "get", "G", "G\xc9T", "GET\t",
    " GET", "", "M-SEARCH", "PROPFIND", "X" * 5000, "GET/", "HEAD:", "\0GET",
]  # fmt: skip
VERSIONS = [
    "HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.10", "HTTP/11", "http/1.1", "HTTP/1.1 ", "HTTP/1.x", "HTTP/", "",
    "HTTP/-1.1", "HTTP/1.9", "HTTP/9.9", "HTTPS/1.1", "HTTP/" + "9" * 5000 + ".1", "ICY",
]  # fmt: skip
OTHERS = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(20),
    b"SSH-2.0-OpenSSH_9.2\r\n", b"\0\0\0\x2f\xffSMBr", b"\n" * 9, b"\r\n" * 9, b"\0" * 99, b"GET /\r\n",
    b"GET /\n\n", b"EHLO x\r\n", b"*1\r\n$4\r\nPING\r\n", b"\x80\x2e\x01\x03\x01", b"stats\r\n", b"", b"G", b"GET / HTTP/1.1",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + request("/"), b"\x05\x01\x00",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
]  # fmt: skip
ENCODINGS = [
    "chunked", "identity", "gzip, chunked", "chunked, chunked", "xchunked", "", "chunked\x0b", "Chunked", "\tchunked",
]  # fmt: skip
BODIES = [
    "", "12345", "0\r\n\r\n", "5\r\n12345\r\n0\r\n\r\n", "ffffffffffffffffffffff\r\n", "-1\r\n", "x" * 70_000,
    request("/nothing").decode(),
]  # fmt: skip
NAMES = ["X", "X ", " X", "", "X\0", "X:", "X y", "\xff", "x" * 5000, "X\t", "(", "X\r", "Host", "Cookie"]
TEXTS = [
    "", "y", "\0", "\x0b", "\x7f", "\xff", "y\r\n folded", "y\r\n\tfolded", "y\nZ: z", "y\rZ: z", " " * 15_000,
    " \t" * 7000 + "\x0b", "a " * 7000 + "\0",
]  # fmt: skip
CONNECTIONS = ["close", "keep-alive", "upgrade", "Close, x", ",,,", "x", "clos\xe9", "HTTP2-Settings", "," * 4000]


def message(line: str, *fields: str, end: str = "\r\n", body: str = "") -> bytes:
    return (end.join([line, *fields, "", ""]) + body).encode("latin-1", "replace")


def pick(rng: random.Random, *of: list[str]) -> str:
    return rng.choice(rng.choice(of))


def ranges(rng: random.Random) -> bytes:
    digits = [number for number in NUMBERS if number.isascii() and number.isdigit()]
    one = f"{pick(rng, NUMBERS, digits)}-{pick(rng, ['', '9' * 5000], digits)}"
    many = ",".join(f"{pick(rng, NUMBERS)[:99]}-{pick(rng, NUMBERS)[:99]}" for _ in range(rng.choice([2, 9, 99])))
    odd = [f"bytes={many}", f"bytes = {one}", one, f"lines={one}", "bytes=", "=", "bytes=--", "bytes=-" * 99]
    fields = [f"Range: {pick(rng, [f'bytes={one}'], odd)}"] * rng.choice([1, 1, 1, 2])
    if rng.random() < 0.3:
        fields.append(f"If-Range: {pick(rng, TAGS, DATES)}")
    return message(f"{rng.choice(['GET', 'GET', 'HEAD'])} {pick(rng, [SMALL], [SMALL], PATHS)} HTTP/1.1", "Host: x", *fields)


def conditions(rng: random.Random) -> bytes:
    names = "If-None-Match", "If-Range", "If-Unmodified-Since", "If-Match", "Date", "Range"
    odd = f"{rng.choice(names)}: {pick(rng, TAGS, NUMBERS)}"
    fields = [rng.choice([f"If-Modified-Since: {pick(rng, DATES, DATES, NUMBERS)}", odd]) for _ in range(rng.choice([1, 1, 2]))]
    return message(f"GET {pick(rng, [SMALL], PATHS)} HTTP/1.1", "Host: x", *fields)


def framing(rng: random.Random) -> bytes:
    fields = [
        rng.choice([
            f"Content-Length: {pick(rng, NUMBERS)}", f"Transfer-Encoding: {pick(rng, ENCODINGS)}", "Content-Length : 5",
            "Content-Length:0", "Trailer: Host",
        ])
        for _ in range(rng.choice([1, 1, 2, 2, 3]))
    ]  # fmt: skip
    line = f"{pick(rng, METHODS[:4])} {SMALL} HTTP/1.{rng.choice('01')}"
    return message(line, "Host: x", *fields, body=pick(rng, BODIES))


def hosts(rng: random.Random) -> bytes:
    target = rng.choice([
        "/environment.yml", f"http://{pick(rng, HOSTS)}/environment.yml", f"HTTP://{pick(rng, HOSTS)}", "http:///",
        "https://x//", "http:/x", "ftp://x/", "*", "x:80", "http://x?/", "file:///etc/passwd", "//x/environment.yml",
    ])  # fmt: skip
    fields = [f"Host: {pick(rng, HOSTS)}" for _ in range(rng.choice([0, 1, 1, 1, 2]))]
    return message(f"GET {target} HTTP/1.{rng.choice('011')}", *fields)


def lines(rng: random.Random) -> bytes:
    gap = rng.choice([" ", " ", " ", "  ", "\t", "", "\xa0", "\0"])
    line = gap.join([pick(rng, METHODS), pick(rng, PATHS), pick(rng, VERSIONS)])
    return message(line, "Host: x", end=rng.choice(LINE_ENDS[: rng.choice([1, 10])]))


def fields(rng: random.Random) -> bytes:
    count, colons = rng.choice([1, 2, 3]), [":", ": ", "", " : ", "::"]
    some = ["Host: x", *(f"{pick(rng, NAMES)}{rng.choice(colons)}{pick(rng, TEXTS)}" for _ in range(count))]
    rng.shuffle(some)
    return message(f"GET {SMALL} HTTP/1.1", *some)


def floods(rng: random.Random) -> bytes:
    length, count = rng.choice([16_300, 16_384, 70_000, 2_000_000]), rng.choice([90, 2000, 90_000])
    way = rng.randrange(9)
    if way < 4:
        flood = [["a:"] * 4000, [f"X{number}: y" for number in range(count)], ["X: y"] * count, ["X: " + "y" * length]][way]
        return message("GET / HTTP/1.1", "Host: x", *flood)
    return [message("GET /" + "a" * length + " HTTP/1.1", "Host: x"), b"GET /" + b"a" * length, b"A" * length,
            b"\r\n" * length, b"A: b\r\n" * count][way - 4]  # fmt: skip


def expectations(rng: random.Random) -> bytes:
    return message(
        f"{rng.choice(['GET', 'POST', 'HEAD'])} / HTTP/1.{rng.choice('011')}",
        "Host: x",
        "Expect: " + rng.choice(["100-continue", "100-Continue", "200-ok", "", "100-continue, 100-continue", "x" * 999]),
        "Content-Length: " + rng.choice(["0", "5", "999999999999"]),
        "Connection: " + pick(rng, CONNECTIONS),
        "Upgrade: " + rng.choice(["h2c", "websocket", "TLS/1.0"]),
        body=rng.choice(["", "12345"]),
    )


def pipelines(rng: random.Random) -> bytes:
    kinds = [ranges, conditions, hosts, lambda rng: request(pick(rng, PATHS)), lambda rng: request(SMALL)]
    return b"".join(rng.choice(kinds)(rng) for _ in range(rng.choice([2, 5, 30])))


def others(rng: random.Random) -> bytes:
    return rng.choice([rng.choice(OTHERS), rng.randbytes(rng.choice([1, 10, 1000]))])


def damaged(rng: random.Random) -> bytes:
    data = bytearray(rng.choice([ranges, conditions, framing, hosts, expectations])(rng))
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        way = rng.randrange(5)
        if way == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif way == 1:
            del data[at : min(to, at + 30)]
        elif way == 2:
            data[at:at] = data[at : min(to, at + 300)]
        elif way == 3:
            data[at:at] = rng.choice(LINE_ENDS).encode("latin-1")
        else:
            del data[to:]
    return bytes(data)


KINDS: list[Callable[[random.Random], bytes]] = [
    ranges, conditions, framing, hosts, lines, fields, floods, expectations, pipelines, others, damaged, damaged, damaged,
]  # fmt: skip


def deliver(server: Serving, rng: random.Random, data: bytes) -> bytes | None:
    """What the server says to it until it closes; None where the client did not wait for that."""
    with server.connect() as connection:
        pieces = [data]
        if len(data) < 5000 and rng.random() < 0.3:
            cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice([1, 5])))
            pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        # the server may close, and say why, before it has read all
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for number, piece in enumerate(pieces):
                time.sleep(0.002 * bool(number))
                connection.sendall(piece)
        end = rng.choices(["half", "wait", "reset", "close"], [80, 5, 10, 5])[0]
        if end == "half":
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        elif end == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return read_all(connection) if end in ("half", "wait") else None


def check(answers: bytes, bodiless: bool) -> None:
    """Every answer is well-formed and whole, and none blames the server."""
    while answers:
        head, found, answers = answers.partition(b"\r\n\r\n")
        first, *rest = head.split(b"\r\n")
        status, fields = STATUS.fullmatch(first), [FIELD.fullmatch(line) for line in rest]
        assert found and status and all(fields), head
        assert status[1] not in (b"500", b"503"), head
        named = {one[1].lower(): one[2] for one in fields if one}
        assert len(named) == len(fields) and named.keys() >= {b"date", b"server"}, head
        if status[1] == b"304":
            assert b"content-length" not in named, head
            continue
        length = int(named[b"content-length"])
        if bodiless and (not answers or answers.startswith(b"HTTP/1.1 ")):
            continue
        assert len(answers) >= length, head
        assert b"<script>" not in answers[:length] and b"root:" not in answers[:length]
        answers = answers[length:]


@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.generator])])
def test_whatever_is_sent_is_answered_in_form_or_closed(served_channel, count):
    with serving(served_channel, "--request-time", "1") as server:
        before, honest = server.idle(), server.ask().partition(b"\r\n\r\n")[2]
        assert honest.startswith(b"{")
        started = server.processor_time()
        slowest: list[tuple[float, int]] = []

        def one(number: int) -> None:
            rng = random.Random(number)
            data = KINDS[number % len(KINDS)](rng)
            began = time.monotonic()
            try:
                answers = deliver(server, rng, data)
                slowest.append((time.monotonic() - began, number))
                if answers is not None:
                    check(answers, b"HEAD" in data)
                assert server.ask().partition(b"\r\n\r\n")[2] == honest
            except Exception as error:
                raise AssertionError(f"number {number}: {data[:500]!r}") from error

        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(one, range(count)):
                pass
        assert max(slowest)[0] < PATIENCE, max(slowest)
        assert server.processor_time() - started < 1 + 0.05 * count
        assert eventually(lambda: server.held() == before), server.held()
        assert server.end() == (0, "")


@pytest.mark.parametrize("text", [b" ", b" \t", b"a ", b"\t", b",", b"\xff", b"\r\n ", b"a:\r\n", b"\r\n", b"%", b"/", b"="])
def test_a_long_head_takes_no_longer_than_a_short_one(text):
    """Where a pattern could try a text in two ways, 16 KB took seconds."""
    line = b"GET / HTTP/1.1\r\nHost: x\r\n"
    for start in (line, line + b"X:", line + b"Range: bytes=", b"GET /", b""):
        for end in (b"\r\n\r\n", b"\0\r\n\r\n", b" HTTP/1.1\r\n\r\n", b"\x0b"):

            def take(head: bytes = start + text * (16_000 // len(text)) + end) -> None:
                with contextlib.suppress(Refused):
                    take_request(bytearray(head))

            assert least_seconds(take) < 0.5, (start, end)


def test_a_head_that_comes_byte_by_byte_takes_little(served_channel):
    received = bytearray()
    for byte in message(f"GET {SMALL} HTTP/1.1", "Host: x", "X: " + "y" * 16_000):
        assert not take_request(received)
        received.append(byte)
    found = take_request(received)
    assert found and found.headers["x"] == "y" * 16_000


def test_clients_that_always_have_something_to_ask_leave_the_others_their_turn(served_channel):
    stop = threading.Event()

    def ask_on(server: Serving) -> None:
        with server.connect() as connection:

            def drain() -> None:
                with contextlib.suppress(OSError):
                    while connection.recv(1 << 20):
                        pass

            reader = threading.Thread(target=drain)
            reader.start()
            while not stop.is_set():
                connection.sendall(request(SMALL) * 50)
            connection.shutdown(socket.SHUT_RDWR)
            reader.join()

    with serving(served_channel) as server, ThreadPoolExecutor(4) as pool:
        busy = [pool.submit(ask_on, server) for _ in range(4)]
        try:
            for _ in range(5):
                assert server.ask().startswith(b"HTTP/1.1 200 OK\r\n")
        finally:
            stop.set()
        for one in busy:
            one.result()

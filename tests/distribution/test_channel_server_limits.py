"""The channel over HTTP while clients take all they can: connections, time, and what the process may open."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from conda_packages import ROOT
from distribution.__main__ import _parser
from distribution.channel.connections import Limits, client_of
from distribution.errors import ServerError
from serving import BIG, PATIENCE, SMALL, eventually, is_closed, read_all, read_one, request, serving

DRIPPING = b"GET / HTTP/1.1\r\nHost: x\r\nX: "
OK = b"HTTP/1.1 200 OK\r\n"


def one_address(number: int) -> str:
    return "127.0.0.1"


def many_addresses(number: int) -> str:
    return f"127.0.1.{1 + number // 2}"


@pytest.mark.parametrize("source", [one_address, many_addresses])
def test_connections_that_drip_keep_nobody_out(served_channel, source: Callable[[int], str]):
    with serving(served_channel, files=200) as server, contextlib.ExitStack() as stack:
        dripping = [stack.enter_context(server.connect(source(number))) for number in range(202)]
        began, before = time.monotonic(), server.processor_time()
        for _ in range(10):
            for number, connection in enumerate(dripping):
                try:
                    connection.sendall(DRIPPING if connection.getsockname()[1] % 2 else b"G")
                except OSError:
                    # who was dropped comes again
                    dripping[number] = stack.enter_context(server.connect(source(number)))
            asked = time.monotonic()
            assert server.ask(source="127.0.0.1").startswith(OK)
            assert server.ask(source="127.0.0.2").startswith(OK)
            assert time.monotonic() - asked < 2 * PATIENCE
            time.sleep(0.2)
        took = server.processor_time() - before
        assert took < 0.5 * (time.monotonic() - began)
        assert server.held()[0] < 150
        for connection in dripping:
            connection.close()
        assert eventually(lambda: server.held()[0] < 30)


@pytest.mark.parametrize("what", ["nothing", "drips", "drips after an answer", "drips of empty lines", "a fast flood"])
def test_a_request_has_so_long_in_all(served_channel, what):
    with serving(served_channel, "--request-time", "2") as server, server.connect() as connection:
        if what == "drips after an answer":
            connection.sendall(request(SMALL))
            assert read_one(connection).startswith(OK)
        began = time.monotonic()
        drip = {"nothing": b"", "drips of empty lines": b"\r\n", "a fast flood": b"\r\n" * 5000}.get(what, b"G")

        def dropped() -> bool:
            try:
                connection.sendall(drip)
            except BlockingIOError:
                pass
            except OSError:
                return True
            return is_closed(connection)

        assert eventually(dropped) and time.monotonic() - began > 1
        assert server.ask().startswith(OK)


def test_a_client_that_reads_is_waited_for_and_one_that_does_not_is_dropped(served_channel):
    # a block of 128 KiB has 2 seconds
    with serving(served_channel, "--minimum-rate", "65536") as server:
        idle = server.idle()[0]
        with contextlib.ExitStack() as stack:
            still, slow, steady = (stack.enter_context(server.connect()) for _ in range(3))
            for connection in (still, slow, steady):
                connection.sendall(request(BIG))
            # each has a connection and a file there
            assert eventually(lambda: server.held()[0] == idle + 6)
            until = time.monotonic() + PATIENCE
            while server.held()[0] > idle + 2 and time.monotonic() < until:
                slow.recv(512)
                for _ in range(50):
                    assert steady.recv(1 << 16)
                time.sleep(0.05)
            assert server.held()[0] == idle + 2
            assert all(steady.recv(1 << 16) for _ in range(100))
        assert eventually(lambda: server.held()[0] == idle)


def test_an_answer_under_way_stays_where_there_is_no_room(served_channel):
    limits = "--connections", "9", "--connections-per-address", "3"
    with serving(served_channel, *limits) as server, contextlib.ExitStack() as stack:
        downloads = [stack.enter_context(server.connect()) for _ in range(3)]
        for connection in downloads:
            connection.sendall(request(BIG))
            assert connection.recv(1 << 16).startswith(OK)
        taken, stop = [0, 0, 0], threading.Event()

        def take(number: int) -> None:
            while not stop.is_set() and (block := downloads[number].recv(1 << 20)):
                taken[number] += len(block)
                time.sleep(0.01)

        readers = [threading.Thread(target=take, args=[number]) for number in range(3)]
        for reader in readers:
            reader.start()
        refused = server.ask()
        assert refused.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: " in refused and b"\r\nConnection: close" in refused
        assert server.ask(source="127.0.0.2").startswith(OK)
        before = list(taken)
        assert eventually(lambda: all(now > then + (8 << 20) for now, then in zip(taken, before, strict=True)))
        stop.set()
        for reader in readers:
            reader.join()
        # and where nobody takes anything for a while, the newcomer has the place
        assert eventually(lambda: server.ask().startswith(OK), 3 * PATIENCE)


def test_the_one_that_waits_longest_of_who_holds_most_goes(served_channel):
    with (
        serving(served_channel, "--connections", "6", "--connections-per-address", "4") as server,
        contextlib.ExitStack() as stack,
    ):

        def connect(source: str) -> socket.socket:
            connection = stack.enter_context(server.connect(source))
            connection.sendall(request(SMALL))
            assert read_one(connection).startswith(OK)
            return connection

        one, two = [connect("127.0.0.1") for _ in range(2)], [connect("127.0.0.2") for _ in range(4)]
        one.append(connect("127.0.0.1"))
        assert eventually(lambda: is_closed(two[0]))
        two.append(connect("127.0.0.2"))
        assert eventually(lambda: is_closed(two[1]) or is_closed(one[0]))
        assert sum(map(is_closed, one + two)) == 2 and not is_closed(two[-1])


def test_no_processor_time_is_lost_where_files_run_out(served_channel):
    with serving(served_channel, "--request-time", "60") as server, contextlib.ExitStack() as stack:
        most = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        # as if the rest of the process, or of the machine, had opened all others
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (server.idle()[0], most[1]))
        for _ in range(50):
            stack.enter_context(server.connect()).sendall(request(SMALL))
        before = server.processor_time()
        time.sleep(3)
        assert server.processor_time() - before < 1
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, most)
        assert server.ask().startswith(OK)
        assert "Traceback" not in server.end()[1]


def test_a_file_that_cannot_be_opened_for_lack_of_files_is_asked_for_again(served_channel):
    with serving(served_channel) as server, server.connect() as connection:
        connection.sendall(request(SMALL))
        assert read_one(connection).startswith(OK)
        most = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (server.held()[0], most[1]))
        connection.sendall(request(SMALL))
        answer = read_one(connection)
        assert answer.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: " in answer


def test_ten_computers_behind_one_address(served_channel):
    """Each opens ten connections at once, as conda does, before it sends anything."""
    with serving(served_channel) as server, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(100)]
        for connection in connections:
            connection.sendall(request(SMALL, "Connection: close"))
        assert all(read_all(connection).startswith(OK) for connection in connections)


def test_a_burst_waits_its_turn(served_channel):
    """More connections at once than there may be: each that asks at once is answered."""
    with serving(served_channel, "--connections", "8") as server, contextlib.ExitStack() as stack:
        server.process.send_signal(signal.SIGSTOP)
        connections = [stack.enter_context(server.connect()) for _ in range(200)]
        for connection in connections:
            connection.sendall(request(SMALL, "Connection: close"))
        server.process.send_signal(signal.SIGCONT)
        answers = [read_all(connection) for connection in connections]
        assert all(answer.startswith((OK, b"HTTP/1.1 503 ")) for answer in answers)
        assert sum(answer.startswith(OK) for answer in answers) > 150


@pytest.mark.parametrize(("by", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_it_ends_at_once_with_connections_open(served_channel, by, status):
    with serving(served_channel) as server, contextlib.ExitStack() as stack:
        fresh, dripping, idle, loading = (stack.enter_context(server.connect()) for _ in range(4))
        dripping.sendall(DRIPPING)
        idle.sendall(request(SMALL))
        loading.sendall(request(BIG))
        assert read_one(idle).startswith(OK) and loading.recv(1 << 10).startswith(OK)
        assert server.end(by) == (status, "")
        assert is_closed(fresh) and is_closed(dripping) and is_closed(idle)


def test_clients_that_hang_up_leave_nothing_behind(served_channel):
    with serving(served_channel) as server:
        before = server.idle()
        for number in range(60):
            with server.connect() as connection:
                connection.sendall(request((BIG, SMALL, "/environment.yml")[number % 3]) * (1 + number % 4))
                if number % 2:
                    assert connection.recv(1 << 10).startswith(OK)
                if number % 5:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert eventually(lambda: server.held() == before)
        assert server.ask().startswith(OK)
        assert server.end() == (0, "")


def test_limits_go_with_the_files_a_process_may_open():
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    chosen = Limits.chosen()
    assert chosen.connections == min(512, files // 4) and chosen.per_client == chosen.connections // 2
    assert Limits.chosen(10, 50).per_client == 10
    options = _parser(["channel", "serve"]).parse_args(["channel", "serve"])
    assert (options.request_time, options.minimum_rate) == (chosen.request_time, chosen.minimum_rate)
    with pytest.raises(ServerError) as caught:
        Limits.chosen(connections=files)
    assert "--connections" in caught.value.remedy


@pytest.mark.parametrize("option", [["--connections", "100"], ["--request-time", "0"], ["--minimum-rate", "9" * 5000]])
def test_a_limit_that_cannot_be_kept_is_refused(served_channel, option):
    command = [sys.executable, "-m", "distribution", "channel", "serve", "--channel", str(served_channel), "--port", "0", *option]
    limited = ["sh", "-c", 'ulimit -n 200; exec "$@"', "sh", *command]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=3 * PATIENCE, check=False)
    assert done.returncode in (1, 2) and "--" in done.stderr and "Traceback" not in done.stderr


def test_who_counts_as_one_client():
    assert client_of("192.0.2.1") != client_of("192.0.2.2")
    assert client_of("::ffff:192.0.2.1") == client_of("192.0.2.1")
    assert client_of("2001:db8:1:2::1") == client_of("2001:db8:1:2:ffff::9%eth0") != client_of("2001:db8:1:3::1")


def test_over_ipv6(served_channel):
    if not socket.has_ipv6 or not can_bind("::1"):
        pytest.skip("this machine has no IPv6")
    with serving(served_channel, "--connections-per-address", "2", host="::1") as server, contextlib.ExitStack() as stack:
        first, *_ = (stack.enter_context(server.connect()) for _ in range(3))
        assert eventually(lambda: is_closed(first)) and server.ask().startswith(OK)
    # all addresses of a machine are those of IPv4, too
    with serving(served_channel, host="::") as server:
        server.host = "127.0.0.1"
        assert server.ask().startswith(OK)


def can_bind(address: str) -> bool:
    with contextlib.suppress(OSError), socket.create_server((address, 0), family=socket.AF_INET6):
        return True
    return False

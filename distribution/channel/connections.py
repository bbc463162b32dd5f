"""Who may hold a connection to a server, and for how long, so that no client keeps the others out.

A client is waited for within two limits that no single byte renews: so long for a whole request, and so long for each block
of an answer. Where their number has reached its limit, the connection goes that has waited longest, of the client that holds
most; an answer stays as long as it is being taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..console import say
from ..errors import ServerError

REQUEST_TIME = 15
MINIMUM_RATE = 4096

_MOST = 512
_FILES_EACH = 2  # the connection, and what is sent over it
_OTHER_FILES = 32
_BLOCK = 1 << 17
_STALLED = 5
_LINGER = 2
_LINGERING_READS = 64
_LOOK_AGAIN = 0.5
_NO_FILES_LEFT = 0.2


@dataclass(frozen=True)
class Limits:
    """What clients may take.

    Attributes:
        connections: at once, in all.
        per_client: at once, of one client, as in ``client_of``.
        request_time: seconds for a whole request, from the connection or the last answer on.
        minimum_rate: bytes a second that a client must take of an answer.
    """

    connections: int
    per_client: int
    request_time: float = REQUEST_TIME
    minimum_rate: float = MINIMUM_RATE

    @classmethod
    def chosen(
        cls,
        connections: int | None = None,
        per_client: int | None = None,
        request_time: float = REQUEST_TIME,
        minimum_rate: float = MINIMUM_RATE,
    ) -> Limits:
        """The limits asked for, and for the rest what goes with the number of files that this process may open.

        A quarter of that number is for the connections in all, which leaves half of it unused. Half of the connections are for
        one client: that is room for ten computers behind one address, with ten connections each.

        Raises:
            ServerError: this process may not open as many files.
        """
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = 1 << 30 if files == resource.RLIM_INFINITY else files
        connections = connections or max(1, min(_MOST, files // 4))
        if connections * _FILES_EACH + _OTHER_FILES > files:
            most = max(0, files - _OTHER_FILES) // _FILES_EACH
            raise ServerError(
                f"{connections} connections need more than the {files} files that this process may open",
                f"at most --connections {most}, or raise the limit (ulimit -n)",
            )
        return cls(connections, min(connections, per_client or max(1, connections // 2)), request_time, minimum_rate)


def client_of(address: str) -> str:
    """What counts as one client: an IPv4 address, or a /64 of IPv6, as one machine has all of that to itself.

    >>> client_of("::ffff:192.0.2.7"), client_of("2001:db8::7%eth0")
    ('192.0.2.7', '2001:db8::/64')
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))


class Connection:
    """A client's connection, and since when and until when something is awaited of the client."""

    def __init__(self, stream: socket.socket, client: str, limits: Limits) -> None:
        self.client = client
        self._stream = stream
        self._limits = limits
        self.expect_request()

    def expect_request(self) -> None:
        """A whole request must come in time from now on, however many bytes of it come in between."""
        self._await(self._limits.request_time, answering=False)

    async def receive(self) -> bytes:
        """What has arrived; nothing once the client has closed its side.

        Raises:
            OSError: the client is gone.
        """
        # whoever always has something for us leaves the others their turn
        await asyncio.sleep(0)
        return await asyncio.get_running_loop().sock_recv(self._stream, 1 << 14)

    async def send(self, data: bytes) -> None:
        """Send it all, at the rate of the client.

        Raises:
            OSError: the client is gone.
        """
        for start in range(0, len(data), _BLOCK):
            self._await(_BLOCK / self._limits.minimum_rate, answering=True)
            await asyncio.get_running_loop().sock_sendall(self._stream, memoryview(data)[start : start + _BLOCK])
            await asyncio.sleep(0)

    async def finish(self) -> None:
        """Say that nothing more comes, and give the client a moment to see it.

        What it still sends is read: closing over unread bytes would take the answer back.

        Raises:
            OSError: the client is gone.
        """
        self._await(_LINGER, answering=False)
        self._stream.shutdown(socket.SHUT_WR)
        for _ in range(_LINGERING_READS):
            if not await self.receive():
                return

    def close(self) -> None:
        self._stream.close()

    def waits(self, now: float) -> float | None:
        """The seconds since the client did something; None while it is taking an answer."""
        waited = now - self._since
        return None if self._answering and waited < _STALLED else waited

    def is_overdue(self, now: float) -> bool:
        return now > self._until

    def _await(self, seconds: float, answering: bool) -> None:
        self._answering = answering
        self._since = time.monotonic()
        self._until = self._since + seconds


class Connections:
    """All connections of a server. ``serve`` accepts them, and has ``converse`` talk with each."""

    def __init__(self, limits: Limits, converse: Callable[[Connection], Awaitable[None]], refusal: bytes) -> None:
        """``refusal`` is sent to a client for whom there is no room."""
        self._limits = limits
        self._converse = converse
        self._refusal = refusal
        self._open: dict[Connection, asyncio.Task[None]] = {}

    async def serve(self, listener: socket.socket) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_report)
        sweeper = loop.create_task(self._sweep())
        try:
            while True:
                # the last one has its first turn before the next one comes, and may be done by then
                await asyncio.sleep(0)
                try:
                    stream, address = await loop.sock_accept(listener)
                except ConnectionAbortedError:
                    continue
                except OSError:
                    # no file is left in this process or on this machine: asking again at once would take a core
                    self._drop_one_of(self._open)
                    await asyncio.sleep(_NO_FILES_LEFT)
                else:
                    self._admit(stream, client_of(address[0]))
        finally:
            sweeper.cancel()

    def _admit(self, stream: socket.socket, client: str) -> None:
        own = [one for one in self._open if one.client == client]
        crowded: Iterable[Connection] | None = None
        if len(own) >= self._limits.per_client:
            crowded = own
        elif len(self._open) >= self._limits.connections:
            crowded = self._open
        if crowded is not None and not self._drop_one_of(crowded):
            return self._refuse(stream)
        with contextlib.suppress(OSError):
            # an answer's last bytes are not held back until the client has confirmed the ones before
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(stream, client, self._limits)
        task = asyncio.get_running_loop().create_task(self._run(connection))
        self._open[connection] = task
        task.add_done_callback(lambda _: self._close(connection))

    async def _run(self, connection: Connection) -> None:
        # a client that hangs up is no error of ours
        with contextlib.suppress(OSError):
            await self._converse(connection)

    def _close(self, connection: Connection) -> None:
        # after its task, which may be ended before it began
        self._open.pop(connection, None)
        connection.close()

    def _refuse(self, stream: socket.socket) -> None:
        with stream:
            # closing over unread bytes would take the refusal back
            with contextlib.suppress(OSError):
                stream.recv(1 << 16)
            with contextlib.suppress(OSError):
                stream.send(self._refusal)

    def _drop_one_of(self, connections: Iterable[Connection]) -> bool:
        """End one of those that wait for their client; false where none does."""
        now = time.monotonic()
        held = Counter(one.client for one in self._open)
        waiting = [(held[one.client], waited, one) for one in connections if (waited := one.waits(now)) is not None]
        if waiting:
            self._drop(max(waiting, key=lambda row: row[:2])[2])
        return bool(waiting)

    def _drop(self, connection: Connection) -> None:
        self._open.pop(connection).cancel()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_AGAIN)
            now = time.monotonic()
            for connection in [one for one in self._open if one.is_overdue(now)]:
                self._drop(connection)


def _report(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    # Ctrl-C and its like arrive in any task, and end them all
    if error is None or isinstance(error, Exception):
        say(f"a client was not answered: {context['message']}: {error!r}")

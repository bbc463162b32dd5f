"""Following a request from a coroutine."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncIterator

from .requests import Generation, Request, RequestStream, TokenQueue


class AsyncTokenQueue(TokenQueue):
    """A token queue that a coroutine reads; its loop is woken once for all requests of a step."""

    def __init__(self) -> None:
        self._items: collections.deque[int | None] = collections.deque()
        self._loop = asyncio.get_running_loop()
        self._there = asyncio.Event()

    def put(self, token: int | None) -> None:
        """As in :class:`TokenQueue`."""
        self._items.append(token)

    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop it was made in."""
        return self._loop

    def wake(self) -> None:
        """Called in the loop's thread."""
        self._there.set()

    async def next(self) -> int | None:
        """The next token, waited for."""
        while not self._items:
            self._there.clear()
            await self._there.wait()
        return self._items.popleft()


class AsyncRequestStream(RequestStream):
    """A running request for ``async for`` and ``await``. To be made and used in one event loop."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._token_queue = AsyncTokenQueue()
        request.token_queue = self._token_queue

    async def __aiter__(self) -> AsyncIterator[int]:
        try:
            while (token := await self._token_queue.next()) is not None:
                yield token
            self._ended = True
            self._raise()
        finally:
            self.cancel()

    async def wait(self) -> Generation:
        """Waits for the end."""
        self._token_queue.streaming = False
        async for _ in self:
            pass
        return self.generation

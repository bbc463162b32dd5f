"""Tokens from a handle into an answer, for who waits in a thread and for who waits in an event loop."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import TYPE_CHECKING, Any

from ..capi.handle import Uncopyable
from ..errors import InvalidArgumentError
from .assembler import Assembler

if TYPE_CHECKING:
    from ..engine.async_stream import AsyncRequestStream  # it needs asyncio, which not everyone does
    from ..engine.requests import RequestStream


def pieces(assembler: Assembler, handle: RequestStream) -> Iterator[str]:
    """The text of a whole answer, piece by piece."""
    if not assembler.every_token:
        for token in handle.result().tokens:
            yield assembler.push(token)
        return
    for token in handle:
        yield assembler.push(token)
        if assembler.stopped:
            return


class Stream(Uncopyable):
    """The chunks of an answer, one by one, as they come.

    Any thread may :meth:`close` it, also while another one waits for the next chunk: that one is told that there is none.

    Example:
        >>> with llm.create_completion("Once", stream=True) as stream:
        ...     for chunk in stream:
        ...         print(chunk["choices"][0]["text"], end="")
    """

    def __init__(self, llm: object, assembler: Assembler, handle: RequestStream) -> None:
        self._llm = llm  # it lives for as long as somebody may ask for the next one
        self._handle = handle
        self._chunks = _chunks(assembler, handle)
        self._reading = threading.Lock()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> dict[str, Any]:
        self._handle.refuse_fork()
        with self._reading:
            return next(self._chunks)

    def close(self) -> None:
        """Ends the request; what comes after is the end. It does not wait for whoever reads."""
        self._handle.cancel()
        if self._reading.acquire(blocking=False):
            try:
                self._chunks.close()
            finally:
                self._reading.release()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _chunks(assembler: Assembler, handle: RequestStream) -> Generator[dict[str, Any], None, None]:
    yield from assembler.begin()
    for token in handle:
        if piece := assembler.push(token):
            yield from assembler.chunks(piece)
        if assembler.stopped:
            break
    if assembler.stopped or handle.aborted or not handle.cancelled:
        yield from assembler.end()


async def async_pieces(assembler: Assembler, handle: AsyncRequestStream) -> AsyncIterator[str]:
    """:func:`pieces` for an event loop."""
    if not assembler.every_token:
        for token in (await handle.wait()).tokens:
            yield assembler.push(token)
        return
    async for token in handle:
        yield assembler.push(token)
        if assembler.stopped:
            return


class AsyncStream(Uncopyable):
    """:class:`Stream` for an event loop: an asynchronous iterator, which any task may close."""

    def __init__(self, llm: object, assembler: Assembler, handle: AsyncRequestStream) -> None:
        self._llm = llm
        self._handle = handle
        self._chunks = _async_chunks(assembler, handle)
        self._n_reading = 0

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> dict[str, Any]:
        if self._n_reading:
            raise InvalidArgumentError("Another task waits for this stream's next chunk.", remedy="Let one task read it.")
        self._n_reading += 1
        try:
            return await anext(self._chunks)
        finally:
            self._n_reading -= 1

    async def aclose(self) -> None:
        """As :meth:`Stream.close`."""
        self._handle.cancel()
        if not self._n_reading:
            await self._chunks.aclose()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def _async_chunks(assembler: Assembler, handle: AsyncRequestStream) -> AsyncGenerator[dict[str, Any], None]:
    for chunk in assembler.begin():
        yield chunk
    async for token in handle:
        if piece := assembler.push(token):
            for chunk in assembler.chunks(piece):
                yield chunk
        if assembler.stopped:
            break
    if assembler.stopped or handle.aborted or not handle.cancelled:
        for chunk in assembler.end():
            yield chunk

"""The driver for event loops: runs a prepared request, and gives its response, or its chunks as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from ..capi.handle import Uncopyable
from ..engine.async_stream import AsyncRequestStream
from ..errors import InvalidArgumentError
from ..model_loading import LoadedModel
from .assembler import Assembler
from .prepare import Prepared


async def run(owner: object, loaded: LoadedModel, prepared: Prepared) -> dict[str, Any] | AsyncStream:
    """As :func:`~.streaming.run`; cancelling the task ends the request with the next batch."""
    tokens = AsyncRequestStream(prepared.request)
    loaded.engine.submit(prepared.request)
    if prepared.stream:
        return AsyncStream(owner, prepared.assembler, tokens)
    return prepared.assembler.whole("".join([piece async for piece in async_pieces(prepared.assembler, tokens)]))


async def async_pieces(assembler: Assembler, tokens: AsyncRequestStream) -> AsyncIterator[str]:
    """:func:`~.streaming.pieces` for an event loop."""
    if not assembler.every_token:
        for token in (await tokens.wait()).tokens:
            yield assembler.push(token)
        return
    async for token in tokens:
        yield assembler.push(token)
        if assembler.stopped:
            return


class AsyncStream(Uncopyable):
    """:class:`~.streaming.Stream` for an event loop: an asynchronous iterator, which any task may close."""

    def __init__(self, llm: object, assembler: Assembler, tokens: AsyncRequestStream) -> None:
        self._llm = llm
        self._tokens = tokens
        self._chunks = _async_chunks(assembler, tokens)
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
        """As :meth:`~.streaming.Stream.close`."""
        self._tokens.cancel()
        if not self._n_reading:
            await self._chunks.aclose()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def _async_chunks(assembler: Assembler, tokens: AsyncRequestStream) -> AsyncGenerator[dict[str, Any], None]:
    for chunk in assembler.begin():
        yield chunk
    async for token in tokens:
        if piece := assembler.push(token):
            for chunk in assembler.chunks(piece):
                yield chunk
        if assembler.stopped:
            break
    if assembler.stopped or tokens.aborted or not tokens.cancelled:
        for chunk in assembler.end():
            yield chunk

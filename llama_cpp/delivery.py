"""Tokens from a handle into an answer, for who waits in a thread and for who waits in an event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, AsyncIterator, Iterator

from .answers import Answer

if TYPE_CHECKING:
    from .engine.asynchronous import AsyncHandle  # it needs asyncio, which not everyone does
    from .engine.requests import Handle


def pieces(answer: Answer, handle: Handle) -> Iterator[str]:
    """The text of a whole answer, piece by piece."""
    if not answer.every_token:
        for token in handle.result().tokens:
            yield answer.push(token)
        return
    for token in handle:
        yield answer.push(token)
        if answer.stopped:
            return


def chunks(llm: object, answer: Answer, handle: Handle) -> Iterator[dict[str, Any]]:
    """The chunks of a streamed answer; ``llm`` lives for as long as somebody may ask for the next one."""
    yield from answer.begin()
    for token in handle:
        if piece := answer.push(token):
            yield from answer.chunks(piece)
        if answer.stopped:
            break
    yield from answer.end()


async def async_pieces(answer: Answer, handle: AsyncHandle) -> AsyncIterator[str]:
    """:func:`pieces` for an event loop."""
    if not answer.every_token:
        for token in (await handle.wait()).tokens:
            yield answer.push(token)
        return
    async for token in handle:
        yield answer.push(token)
        if answer.stopped:
            return


async def async_chunks(llm: object, answer: Answer, handle: AsyncHandle) -> AsyncIterator[dict[str, Any]]:
    """:func:`chunks` for an event loop."""
    for chunk in answer.begin():
        yield chunk
    async for token in handle:
        if piece := answer.push(token):
            for chunk in answer.chunks(piece):
                yield chunk
        if answer.stopped:
            break
    for chunk in answer.end():
        yield chunk

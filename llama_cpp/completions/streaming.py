"""The driver for threads: runs a prepared request, and gives its response, or its chunks as they come."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from ..capi.handle import Uncopyable
from ..engine.requests import RequestStream
from .assembler import Assembler

if TYPE_CHECKING:
    from ..model_loading import LoadedModel
    from .prepare import Prepared


def run(owner: object, loaded: LoadedModel, prepared: Prepared) -> dict[str, Any] | Stream:
    """Submits a request; waits for its response, or returns its chunks.

    Args:
        owner: what must live for as long as somebody may ask for the next chunk.

    Raises:
        ModelBusyError: too many requests wait. ModelClosedError, ForkedProcessError.
        While it runs: what the request failed with.
    """
    tokens = RequestStream(prepared.request, prepared.abort)
    loaded.engine.submit(prepared.request)
    if prepared.stream:
        return Stream(owner, prepared.assembler, tokens)
    return prepared.assembler.whole("".join(pieces(prepared.assembler, tokens)))


def pieces(assembler: Assembler, tokens: RequestStream) -> Iterator[str]:
    """The text of a whole answer, piece by piece."""
    if not assembler.every_token:
        for token in tokens.result().tokens:
            yield assembler.push(token)
        return
    for token in tokens:
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

    def __init__(self, llm: object, assembler: Assembler, tokens: RequestStream) -> None:
        self._llm = llm  # it lives for as long as somebody may ask for the next one
        self._tokens = tokens
        self._chunks = _chunks(assembler, tokens)
        self._reading = threading.Lock()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> dict[str, Any]:
        self._tokens.refuse_fork()
        with self._reading:
            return next(self._chunks)

    def close(self) -> None:
        """Ends the request; what comes after is the end. It does not wait for whoever reads."""
        self._tokens.cancel()
        if self._reading.acquire(blocking=False):
            try:
                self._chunks.close()
            finally:
                self._reading.release()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _chunks(assembler: Assembler, tokens: RequestStream) -> Generator[dict[str, Any], None, None]:
    yield from assembler.begin()
    for token in tokens:
        if piece := assembler.push(token):
            yield from assembler.chunks(piece)
        if assembler.stopped:
            break
    if assembler.stopped or tokens.aborted or not tokens.cancelled:
        yield from assembler.end()

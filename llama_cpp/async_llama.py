"""``AsyncLlama``: ``Llama`` for programs that use ``asyncio``."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import embeddings
from .capi.handle import Uncopyable
from .capi.interrupts import unwanted
from .completions.assembler import Assembler
from .completions.streaming import AsyncStream, async_pieces
from .engine.async_stream import AsyncRequestStream
from .engine.requests import Request
from .errors import InvalidArgumentError
from .llama import Llama

if TYPE_CHECKING:
    from .embeddings import Text


class _Preparing(Llama):
    """Makes requests and leaves running them to somebody else."""

    def _deliver(self, assembler: Assembler, request: Request, stream: bool, abort: Callable[[], bool] | None) -> Any:
        if abort is not None:
            raise InvalidArgumentError("abort_callback has no place in asynchronous programs.", remedy="Cancel the task instead.")
        return assembler, request, stream


class AsyncLlama(Uncopyable):
    """:class:`Llama` for ``asyncio``: the same arguments, and coroutines and asynchronous generators for methods.

    Cancelling a task, or leaving a stream early, ends its request with the next batch.

    Example:
        >>> async with AsyncLlama("model.gguf", n_ctx=4096) as llm:
        ...     async for chunk in await llm.create_chat_completion(messages, stream=True):
        ...         print(chunk["choices"][0]["delta"].get("content", ""), end="")
    """

    def __init__(self, model_path: str | os.PathLike[str], **arguments: Any) -> None:
        self._llama = _Preparing(model_path, **arguments)

    async def create_completion(
        self, prompt: str | Sequence[int], **arguments: Any
    ) -> dict[str, Any] | AsyncIterator[dict[str, Any]]:
        """As :meth:`Llama.create_completion`."""
        assembler: dict[str, Any] | AsyncIterator[dict[str, Any]]
        assembler = await self._run(self._llama.create_completion, prompt, **arguments)
        return assembler

    __call__ = create_completion

    async def create_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], **arguments: Any
    ) -> dict[str, Any] | AsyncIterator[dict[str, Any]]:
        """As :meth:`Llama.create_chat_completion`."""
        assembler: dict[str, Any] | AsyncIterator[dict[str, Any]]
        assembler = await self._run(self._llama.create_chat_completion, messages, **arguments)
        return assembler

    async def embed(
        self,
        input: str | Sequence[int] | Sequence[Text],
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
    ) -> Any:
        """As :meth:`Llama.embed`."""
        texts, single = await asyncio.to_thread(self._llama._texts, input, truncate)
        job = self._llama._open_embedder.submit(texts)  # here, so that nothing is computed for a task that was cancelled
        vectors = await asyncio.wrap_future(job.future)
        return await asyncio.to_thread(self._llama._listed, job, single, vectors, normalize, return_count)

    async def create_embedding(self, input: str | Sequence[int] | Sequence[Text], model: str | None = None) -> dict[str, Any]:
        """As :meth:`Llama.create_embedding`."""
        given: Any = [input] if embeddings.read_texts(input)[1] else input
        vectors, n = await self.embed(given, return_count=True)
        return embeddings.response(vectors, n, model or self._llama.model_path)

    async def _run(self, method: Any, *args: Any, **arguments: Any) -> Any:
        assembler, request, stream = await _in_thread(method, *args, **arguments)
        handle = AsyncRequestStream(request)
        self._llama._open_engine.submit(request)
        if stream:
            return AsyncStream(self, assembler, handle)
        return assembler.whole("".join([piece async for piece in async_pieces(assembler, handle)]))

    async def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As :meth:`Llama.tokenize`."""
        return await asyncio.to_thread(self._llama.tokenize, text, add_bos, special)

    async def detokenize(self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False) -> bytes:
        """As :meth:`Llama.detokenize`."""
        return await asyncio.to_thread(self._llama.detokenize, tokens, prev_tokens, special)

    async def reset(self) -> None:
        """As :meth:`Llama.reset`."""
        await asyncio.to_thread(self._llama.reset)

    async def close(self) -> None:
        """As :meth:`Llama.close`."""
        await asyncio.to_thread(self._llama.close)

    async def __aenter__(self) -> AsyncLlama:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __getattr__(self, name: str) -> Any:
        # what does not wait is the same: n_ctx(), metadata, token_eos() and so on
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._llama, name)


async def _in_thread(method: Callable[..., Any], *args: Any, **arguments: Any) -> Any:
    """As :func:`asyncio.to_thread`; in a task that is cancelled, templates, schemas and grammars are not read to the end.

    Threads are few, and what comes with a request could keep each of them for as long as its limits allow.
    """
    left = threading.Event()
    token = unwanted.set(left.is_set)  # to_thread() takes a copy along
    try:
        return await asyncio.to_thread(method, *args, **arguments)
    finally:
        left.set()
        unwanted.reset(token)

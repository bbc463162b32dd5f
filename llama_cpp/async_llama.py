"""``AsyncLlama``: ``Llama`` for programs that use ``asyncio``."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from . import embeddings, rerank
from .arguments import check_unknown, read_model_name
from .capi.interrupts import unwanted
from .completions.async_streaming import run
from .completions.prepare import Prepared, prepare
from .completions.requests import ChatCompletionRequest, CompletionRequest, takes
from .errors import InvalidArgumentError
from .model_front import ModelFront
from .tokens import detokenize, tokenize
from .values import flag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import ParamSpec, Unpack

    from .completions import types
    from .embeddings import Text

    P = ParamSpec("P")
T = TypeVar("T")


class AsyncLlama(ModelFront):
    """:class:`~llama_cpp.Llama` for ``asyncio``: the same arguments, and coroutines and asynchronous generators for methods.

    Cancelling a task, or leaving a stream early, ends its request with the next batch.

    Example:
        >>> async with AsyncLlama("model.gguf", n_ctx=4096) as llm:
        ...     async for chunk in await llm.create_chat_completion(messages, stream=True):
        ...         print(chunk["choices"][0]["delta"].get("content", ""), end="")
    """

    def _check(self, options: Mapping[str, Any]) -> None:
        if options["chat_handler"] is not None:
            raise InvalidArgumentError(
                "chat_handler has no place in asynchronous programs: it would wait in the event loop.",
                remedy="Give a chat_format, or use Llama in a thread.",
            )

    async def close(self) -> None:
        """As :meth:`Llama.close`."""
        await asyncio.to_thread(self._free)

    async def __aenter__(self) -> AsyncLlama:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def reset(self) -> None:
        """As :meth:`Llama.reset`."""
        await asyncio.to_thread(self.loaded.reset)

    # --- tokens ---

    async def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As :meth:`Llama.tokenize`."""
        if self.tokenizer_ is not None:
            return await asyncio.to_thread(self.tokenizer_.tokenize, text, add_bos, special)
        return await asyncio.to_thread(tokenize, self.loaded.model, text, add_bos, special)

    async def detokenize(self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False) -> bytes:
        """As :meth:`Llama.detokenize`."""
        if self.tokenizer_ is not None:
            return await asyncio.to_thread(self.tokenizer_.detokenize, tokens, prev_tokens=prev_tokens, special=special)
        return await asyncio.to_thread(detokenize, self.loaded.model, tokens, prev_tokens, special)

    # --- vectors ---

    async def embed(
        self,
        input: str | Sequence[int] | Sequence[Text],
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
        *,
        lora: Mapping[str, float] | None = None,
    ) -> Any:
        """As :meth:`Llama.embed`."""
        normalize, return_count = flag("normalize", normalize), flag("return_count", return_count)
        texts, vectors = await self._vectors(input, flag("truncate", truncate), lora)
        return await asyncio.to_thread(embeddings.output, self.loaded, texts, vectors, normalize, return_count)

    async def create_embedding(
        self,
        input: str | Sequence[int] | Sequence[Text],
        model: str | None = None,
        *,
        encoding_format: str = "float",
        lora: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As :meth:`Llama.create_embedding`."""
        check_unknown(inspect.signature(AsyncLlama.create_embedding).parameters, "create_embedding", kwargs)
        name, encoding = read_model_name(model, self.model_path), embeddings.read_encoding(encoding_format)
        texts, vectors = await self._vectors(input, True, lora)
        return await asyncio.to_thread(embeddings.response, self.loaded, texts, vectors, name, encoding)

    async def rerank(
        self, query: str, documents: Sequence[str], top_n: int | None = None, *, return_documents: bool = False
    ) -> dict[str, Any]:
        """As :meth:`Llama.rerank`."""
        return await in_thread(rerank.run, self.loaded, query, documents, top_n, return_documents)

    async def _vectors(self, input: Any, truncate: bool, lora: Mapping[str, float] | None) -> tuple[embeddings.Texts, Any]:
        texts = await asyncio.to_thread(embeddings.read, self.loaded, input, truncate)
        adapters = self.loaded.adapters.choose(lora)
        # here, so that nothing is computed for a task that was cancelled
        job = self.loaded.embedder.submit(texts.tokens, adapters)
        return texts, await asyncio.wrap_future(job.future)

    # --- completions ---

    if TYPE_CHECKING:

        @overload
        async def create_completion(
            self, prompt: str | Sequence[int], *, stream: Literal[False] = False, **keywords: Unpack[types.CompletionKeywords]
        ) -> types.CreateCompletionResponse: ...
        @overload
        async def create_completion(
            self, prompt: str | Sequence[int], *, stream: Literal[True], **keywords: Unpack[types.CompletionKeywords]
        ) -> AsyncIterator[types.CreateCompletionStreamResponse]: ...
        @overload
        async def create_completion(
            self, prompt: str | Sequence[int], *, stream: bool, **keywords: Unpack[types.CompletionKeywords]
        ) -> types.CreateCompletionResponse | AsyncIterator[types.CreateCompletionStreamResponse]: ...

    @takes(CompletionRequest)
    async def create_completion(self, *args: Any, **keywords: Any) -> Any:
        """As :meth:`Llama.create_completion`."""
        return await run(self, self.loaded, await in_thread(self._prepare, CompletionRequest, args, keywords))

    __call__ = create_completion

    if TYPE_CHECKING:

        @overload
        async def create_chat_completion(
            self,
            messages: Sequence[Mapping[str, Any]],
            *,
            stream: Literal[False] = False,
            **keywords: Unpack[types.ChatCompletionKeywords],
        ) -> types.CreateChatCompletionResponse: ...
        @overload
        async def create_chat_completion(
            self,
            messages: Sequence[Mapping[str, Any]],
            *,
            stream: Literal[True],
            **keywords: Unpack[types.ChatCompletionKeywords],
        ) -> AsyncIterator[types.CreateChatCompletionStreamResponse]: ...
        @overload
        async def create_chat_completion(
            self, messages: Sequence[Mapping[str, Any]], *, stream: bool, **keywords: Unpack[types.ChatCompletionKeywords]
        ) -> types.CreateChatCompletionResponse | AsyncIterator[types.CreateChatCompletionStreamResponse]: ...

    @takes(ChatCompletionRequest)
    async def create_chat_completion(self, *args: Any, **keywords: Any) -> Any:
        """As :meth:`Llama.create_chat_completion`."""
        return await run(self, self.loaded, await in_thread(self._prepare, ChatCompletionRequest, args, keywords))

    def _prepare(
        self, kind: type[CompletionRequest] | type[ChatCompletionRequest], args: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Prepared:
        wanted = kind.read(args, keywords)
        if wanted.abort_callback is not None:
            raise InvalidArgumentError("abort_callback has no place in asynchronous programs.", remedy="Cancel the task instead.")
        return prepare(wanted, self.loaded)


async def in_thread(function: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> T:
    """As :func:`asyncio.to_thread`; in a task that is cancelled, templates, schemas and grammars are not read to the end.

    Threads are few, and what comes with a request could keep each of them for as long as its limits allow.
    """
    left = threading.Event()
    token = unwanted.set(left.is_set)  # to_thread() takes a copy along
    try:
        return await asyncio.to_thread(function, *args, **keywords)
    finally:
        left.set()
        unwanted.reset(token)

"""``Llama``: a model that completes text and holds conversations, with llama-cpp-python's interface."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from . import embeddings, rerank
from .arguments import check_unknown, read_model_name
from .completions.prepare import prepare
from .completions.requests import ChatCompletionRequest, CompletionRequest, takes
from .completions.streaming import run
from .errors import InvalidArgumentError, MissingPackageError
from .low_level import LowLevel
from .tokens import detokenize, tokenize
from .values import flag

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from typing_extensions import Unpack

    from .completions import types
    from .embeddings import Text
    from .llama_tokenizer import LlamaTokenizer


class Llama(LowLevel):
    """A GGUF model, loaded and ready.

    Any thread may call it, and what several threads ask for is computed together. Use it as a context manager or call
    :meth:`close` to give the memory back at once.

    Args:
        model_path: the GGUF file (the first one of a split model).
        n_gpu_layers: layers to hold on the GPU; -1 is all of them (llama-cpp-python's 0 leaves the GPU idle).
        split_mode, main_gpu, tensor_split: how to spread over several GPUs (``LLAMA_SPLIT_MODE_*``; docs/guides/several-gpus.md).
        rpc_servers: ``host:port`` of llama.cpp's RPC servers, whose devices come before this machine's GPUs. What goes there
            is not encrypted, so only private addresses are taken, and a server that dies ends the process.
        vocab_only: load the vocabulary alone; it can tokenize and nothing else.
        use_mmap, use_mlock: map the file instead of reading it; keep it from being swapped out.
        kv_overrides: metadata to replace, by key.
        seed: for requests that bring none; None takes a random one for each.
        n_ctx: tokens a request can have, prompt and answer together; 0 is what the model was trained with.
        n_parallel: how many requests are computed at once; more wait. None is 8, or 2 where memory is set aside for each
            (sliding windows, recurrent states).
        n_kv: tokens the KV cache holds for all requests together; None is n_ctx, or n_ctx for each when n_parallel is
            given. Requests that do not fit in together wait for each other.
        kv_unified: let all requests share one KV cache, which lets them share beginnings without a copy; False gives each
            its own part of n_kv, which is faster when many long ones run. None shares unless there is n_ctx for each.
        n_batch, n_ubatch: prompt tokens handed to the engine at once, and computed at once.
        n_threads, n_threads_batch: for generation and for prompts; None asks the machine.
        rope_*, yarn_*, attention_type: context extension and the like, as llama.cpp has them.
        embedding: compute vectors of texts (:meth:`embed`) instead of generating. A batch has n_batch tokens, or n_ctx if that is
            more, of n_parallel texts (None is 64, or 2), each of n_ctx tokens at most. A context to generate with is made
            when that is asked for.
        pooling_type: how the vectors of tokens become one of a text (``LLAMA_POOLING_TYPE_*``), instead of the model's own way.
        offload_kqv, op_offload, swa_full: as llama.cpp has them.
        flash_attn: None lets the engine decide.
        batch_invariant: on a CPU, compute every token in one way, so that at temperature 0 an answer depends neither on what else
            is asked nor on what is cached. It needs flash attention. False has llama.cpp's own ways.
        repeatable: on a GPU, give a caller who is alone the same answer at temperature 0 each time, whatever was asked before and
            is cached. Prompts are reused up to multiples of n_ubatch tokens only, answers not at all, so later turns of a chat
            read more anew; in a cache that all share, only the last one is kept. On a CPU it is so already.
        last_n_tokens_size: how many tokens back the penalties look.
        spm_infill: whether create_completion(suffix=…) puts the suffix before the prompt, as some models learnt it.
        logits_all: keep the logits of every token that :meth:`eval` is given, in :attr:`scores`.
        tokenizer: an object of :mod:`llama_cpp.llama_tokenizer` for :meth:`tokenize` and :meth:`detokenize` to use instead of the
            model's vocabulary.
        draft_model: what drafts tokens for the model to check several at once, which changes speed and no answer: the path
            of a smaller model with the same vocabulary, "prompt-lookup" (what followed the last tokens before), "mtp"
            (the model's own heads for that), or an object (:mod:`llama_cpp.llama_speculative`). It is used while it pays.
        n_draft: tokens drafted at once at most.
        lora_path, lora_scale: a LoRA adapter that every request has unless it chooses others; its name is the file's.
        lora_adapters: more of them by name, for requests to choose from.
        lora_base: has no meaning any more, and must be None.
        numa: spread over the processors' memories (``GGML_NUMA_STRATEGY_*``); for the whole process, from the first model on.
        limits: what chat templates and grammars may cost; None is :class:`~llama_cpp.limits.Limits`' defaults.
        chat_format: a format's name, such as "chatml" or "llama-3", or a Jinja template's source, instead of the model's own
            template. A file can have several templates by name, and ``register_chat_format()`` gives names to formatters.
        chat_handler: a function that answers conversations in place of the model's own way (:mod:`llama_cpp.llama_chat_format`).
        type_k, type_v: data types of the KV cache (``GGML_TYPE_*``); None is f16.
        verbose: True prints the engine's log to stderr. None and False leave it to Python's ``logging``
            (logger ``llama_cpp``).
        kwargs: a keyword that there is not gives an IgnoredArgumentWarning with the nearest one; with ``LLAMA_CPP_STRICT=1`` in
            the environment it is an UnknownArgumentError.

    Raises:
        ModelFileError: a file that cannot be a model, one exception for each kind of damage.
        ModelLoadError, ContextCreationError: the engine could not load it, or had no memory for it.
        InvalidArgumentError, UnknownArgumentError: an argument's value or name. MetadataOverrideError: a kv_overrides entry.
        RemoteDeviceError: an RPC server cannot be reached.
        ForkedProcessError: a process forked after a GPU backend had been loaded cannot use the GPU.

    Example:
        >>> with Llama("model.gguf", n_ctx=4096) as llm:
        ...     llm.create_chat_completion([{"role": "user", "content": "Hello!"}])
    """

    # --- lifetime ---

    def close(self) -> None:
        """Frees the model and everything made from it. Closing twice is allowed; using it afterwards raises.

        Other threads may be using it: each of them ends what it is in the middle of, or gets a ModelClosedError.
        """
        self._free()

    def _registered(self, chat_format: str) -> Callable[..., Any] | None:
        # handlers stand on this class; who has registered one has imported them
        module: Any = sys.modules.get(f"{__package__}.chat_handlers")
        handlers = {} if module is None else module.LlamaChatCompletionHandlerRegistry()._chat_handlers
        found: Callable[..., Any] | None = handlers.get(chat_format) or handlers.get(chat_format.lower())
        return found

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- tokens ---

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of UTF-8 text.

        Args:
            add_bos: add BOS (and EOS) where the model's settings ask for it.
            special: read special tokens written out as tokens.
        """
        if self.tokenizer_ is not None:
            found: list[int] = self.tokenizer_.tokenize(text, add_bos, special)
            return found
        return self._tokenize_own(text, add_bos, special)

    def _tokenize_own(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As :meth:`tokenize`, by the model's own vocabulary whatever ``tokenizer`` is."""
        return tokenize(self.loaded.model, text, add_bos, special)

    def detokenize(self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False) -> bytes:
        """UTF-8 bytes of tokens; with ``prev_tokens``, what they add to the text of those."""
        if self.tokenizer_ is not None:
            found: bytes = self.tokenizer_.detokenize(tokens, prev_tokens=prev_tokens, special=special)
            return found
        return self._detokenize_own(tokens, prev_tokens, special)

    def _detokenize_own(self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False) -> bytes:
        """As :meth:`detokenize`, by the model's own vocabulary whatever ``tokenizer`` is."""
        return detokenize(self.loaded.model, tokens, prev_tokens, special)

    def tokenizer(self) -> LlamaTokenizer:
        """The model's tokenizer as an object."""
        from .llama_tokenizer import LlamaTokenizer

        return LlamaTokenizer(self)

    # --- vectors ---

    def embed(
        self,
        input: str | Sequence[int] | Sequence[Text],
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
        *,
        lora: Mapping[str, float] | None = None,
    ) -> Any:
        """Vectors of texts, for a model loaded with embedding=True. What several threads ask for is computed together.

        Args:
            input: a text or its token ids, or a list of such.
            normalize: scale them to a length of 1 (L2); a classifier's scores stay as they are.
            truncate: leave out the end of a text of more than n_ctx tokens, instead of raising.
            return_count: return the number of tokens, too.
            lora: scales of LoRA adapters by name, in place of lora_path's.

        Returns:
            A list of floats, of n_embd numbers, or of the scores of a model that ranks; with ``LLAMA_POOLING_TYPE_NONE`` a list
            of such lists, one for each token. For a list of texts, a list of that. With ``return_count``: that and the number.

        Raises:
            InvalidArgumentError: the model was not loaded for it, or the input. ContextLengthError: a text is too long.
            ModelBusyError: too many texts wait. DecodeError, ModelClosedError.
        """
        normalize, return_count = flag("normalize", normalize), flag("return_count", return_count)
        texts = embeddings.read(self.loaded, input, flag("truncate", truncate))
        job = self.loaded.embedder.submit(texts.tokens, self.loaded.adapters.choose(lora))
        return embeddings.output(self.loaded, texts, job.result(), normalize, return_count)

    def create_embedding(
        self,
        input: str | Sequence[int] | Sequence[Text],
        model: str | None = None,
        *,
        encoding_format: str = "float",
        lora: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Vectors of texts in OpenAI's form; see :meth:`embed`.

        Args:
            encoding_format: "float" for lists of numbers, "base64" for little-endian float32 in base64.
        """
        check_unknown(inspect.signature(Llama.create_embedding).parameters, "create_embedding", kwargs)
        name, encoding = read_model_name(model, self.model_path), embeddings.read_encoding(encoding_format)
        texts = embeddings.read(self.loaded, input, truncate=True)
        job = self.loaded.embedder.submit(texts.tokens, self.loaded.adapters.choose(lora))
        return embeddings.response(self.loaded, texts, job.result(), name, encoding)

    def rerank(
        self, query: str, documents: Sequence[str], top_n: int | None = None, *, return_documents: bool = False
    ) -> dict[str, Any]:
        """Sorts documents by how well they answer a query, best first.

        With embedding=True, a model that classifies (``LLAMA_POOLING_TYPE_RANK``) scores each pair. Any other model is asked
        whether the document answers the query: the score is the probability of "yes" against "no".

        Args:
            query, documents: texts. top_n: how many of the best; None is all.
            return_documents: give each result its text, too.

        Returns:
            ``{"results": [{"index", "relevance_score"}], "usage", …}`` in Jina's and Cohere's form; ``index`` is the place in
            ``documents``. A classifier's scores are its logits.

        Raises:
            InvalidArgumentError: an argument, or a model that computes vectors and does not classify.
            ContextLengthError: a pair does not fit. What :meth:`embed` and :meth:`create_completion` raise.
        """
        return rerank.run(self.loaded, query, documents, top_n, return_documents)

    # --- completions ---

    if TYPE_CHECKING:

        @overload
        def create_completion(
            self, prompt: str | Sequence[int], *, stream: Literal[False] = False, **keywords: Unpack[types.CompletionKeywords]
        ) -> types.CreateCompletionResponse: ...
        @overload
        def create_completion(
            self, prompt: str | Sequence[int], *, stream: Literal[True], **keywords: Unpack[types.CompletionKeywords]
        ) -> Iterator[types.CreateCompletionStreamResponse]: ...
        @overload
        def create_completion(
            self, prompt: str | Sequence[int], *, stream: bool, **keywords: Unpack[types.CompletionKeywords]
        ) -> types.CreateCompletionResponse | Iterator[types.CreateCompletionStreamResponse]: ...

    @takes(CompletionRequest)
    def create_completion(self, *args: Any, **keywords: Any) -> Any:
        """Continues a text.

        Args:
            prompt: text, or token ids.
            stream: yield chunks as they come.
            The others are those of :class:`~llama_cpp.completions.requests.CompletionRequest`, which describes them.

        Returns:
            A completion in OpenAI's form with ``usage`` and ``timings``, or an iterator of chunks.

        Raises:
            ContextLengthError: the prompt does not fit. InvalidArgumentError, UnknownArgumentError: an argument.
            ModelBusyError: too many requests wait. RequestAbortedError: abort_callback said so before it began.
            While it runs: DecodeError, GrammarError, ContextFullError, ModelClosedError, and what a logits processor or a
            stopping criterion raises.

        Example:
            >>> llm.create_completion("Once upon a time", max_tokens=32)["choices"][0]["text"]
        """
        return run(self, self.loaded, prepare(CompletionRequest.read(args, keywords), self.loaded))

    __call__ = create_completion

    if TYPE_CHECKING:

        @overload
        def create_chat_completion(
            self,
            messages: Sequence[Mapping[str, Any]],
            *,
            stream: Literal[False] = False,
            **keywords: Unpack[types.ChatCompletionKeywords],
        ) -> types.CreateChatCompletionResponse: ...
        @overload
        def create_chat_completion(
            self,
            messages: Sequence[Mapping[str, Any]],
            *,
            stream: Literal[True],
            **keywords: Unpack[types.ChatCompletionKeywords],
        ) -> Iterator[types.CreateChatCompletionStreamResponse]: ...
        @overload
        def create_chat_completion(
            self, messages: Sequence[Mapping[str, Any]], *, stream: bool, **keywords: Unpack[types.ChatCompletionKeywords]
        ) -> types.CreateChatCompletionResponse | Iterator[types.CreateChatCompletionStreamResponse]: ...

    @takes(ChatCompletionRequest)
    def create_chat_completion(self, *args: Any, **keywords: Any) -> Any:
        """Answers a conversation, with the model's own chat template.

        Args:
            messages: in OpenAI's form.
            stream: yield chunks as they come.
            The others are those of :class:`~llama_cpp.completions.requests.ChatCompletionRequest`, which describes them.

        Returns:
            A chat completion in OpenAI's form with ``usage`` and ``timings``, or an iterator of chunks.

        Raises:
            ChatTemplateError: the template refused the messages. ContextLengthError, InvalidArgumentError,
            UnknownArgumentError, GrammarError. While it runs: as :meth:`create_completion`.
            SchemaViolationError: the answer breaks a schema that no grammar could hold it to.

        Example:
            >>> llm.create_chat_completion([{"role": "user", "content": "Hello!"}])["choices"][0]["message"]["content"]
        """
        handler = self.chat_handler or self._chat_handlers.get(self.chat_format or "")
        if handler is None:
            return run(self, self.loaded, prepare(ChatCompletionRequest.read(args, keywords), self.loaded))
        wanted = ChatCompletionRequest.read(args, keywords)  # so that a handler gets what can be
        given = {**dict(zip(ChatCompletionRequest.ORDER, args)), **keywords}
        return handler(llama=self, **{"messages": wanted.messages, **given})

    def _answer(self, messages: Sequence[Mapping[str, Any]], keywords: Mapping[str, Any]) -> Any:
        """As :meth:`create_chat_completion` by the model's own template, whatever the handler is."""
        return run(self, self.loaded, prepare(ChatCompletionRequest.read((messages,), keywords), self.loaded))

    def create_chat_completion_openai_v1(self, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`create_chat_completion`, with objects of the package ``openai``.

        Returns:
            ``openai.types.chat.ChatCompletion``, or with ``stream=True`` an iterator of ``ChatCompletionChunk``.

        Raises:
            MissingPackageError: ``openai`` is not installed. As :meth:`create_chat_completion` does.
        """
        try:
            from openai.types.chat import ChatCompletion, ChatCompletionChunk
        except ImportError as error:
            raise MissingPackageError(
                "create_chat_completion_openai_v1() needs the package openai.", remedy="pip install openai"
            ) from error
        answer: Any = self.create_chat_completion(*args, **kwargs)
        if isinstance(answer, dict):
            return ChatCompletion(**answer)
        return (ChatCompletionChunk(**chunk) for chunk in answer)

    def _create_completion(self, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`create_completion`, as an iterator: of chunks with ``stream=True``, else of the whole response."""
        answer: Any = self.create_completion(*args, **kwargs)
        return iter([answer]) if isinstance(answer, dict) else answer

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None,
        additional_files: Sequence[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: bool | str = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Llama:
        """Opens a model of the Hugging Face hub. It comes in a later version, with models by name.

        Raises:
            InvalidArgumentError: always, until then.
        """
        raise InvalidArgumentError(
            f"from_pretrained() cannot download {repo_id!r} yet.",
            remedy="Download the file with huggingface_hub's hf_hub_download(), and give Llama() its path.",
        )

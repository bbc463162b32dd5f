"""``Llama``: a model that completes text and holds conversations, with llama-cpp-python's interface."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import embeddings
from .arguments import (
    check_unknown,
    read_bias,
    read_callback,
    read_creation,
    read_functions,
    read_grammar,
    read_logprobs,
    read_model_name,
    read_seed,
    read_stop,
    read_suffix,
    usage_wanted,
)
from .capi import llama as capi
from .capi.handle import Uncopyable
from .chat.request import ChatRequest
from .chat.templates import ChatTemplates
from .completions import openai_format as openai_format
from .completions.assembler import Assembler, ChatAssembler, TextAssembler
from .completions.streaming import Stream, pieces
from .engine.detokenizer import Detokenizer
from .engine.logits_processors import LogitsProcessor, StoppingCriteria
from .engine.requests import Request, RequestStream
from .engine.sampler_chain import Sampler
from .engine.sampling_params import SamplingParams
from .errors import InvalidArgumentError, LlamaCppError
from .limits import Limits, asking
from .model_loading import load_model
from .models.model import Model
from .values import flag, token_ids

if TYPE_CHECKING:
    import numpy as np

    from .embeddings import Text
    from .engine.embedder import Embedder, Job
    from .engine.prefix_cache.stores import BaseLlamaCache
    from .engine.scheduler import BatchingEngine

logger = logging.getLogger("llama_cpp")

#: What a request's keywords beyond a signature can be: samplers that llama-cpp-python does not have.
_SAMPLING = {field.name for field in dataclasses.fields(SamplingParams)}


class Llama(Uncopyable):
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
        draft_model: what drafts tokens for the model to check several at once, which changes speed and no answer: the path
            of a smaller model with the same vocabulary, "prompt-lookup" (what followed the last tokens before), or "mtp"
            (the model's own heads for that). It is used while it pays.
        n_draft: tokens drafted at once at most.
        lora_path, lora_scale: a LoRA adapter that every request has unless it chooses others; its name is the file's.
        lora_adapters: more of them by name, for requests to choose from.
        limits: what chat templates and grammars may cost; None is :class:`~llama_cpp.limits.Limits`' defaults.
        chat_format: "chatml" or another Jinja template's source, instead of the model's own template.
        type_k, type_v: data types of the KV cache (``GGML_TYPE_*``); None is f16.
        verbose: True prints the engine's log to stderr. None and False leave it to Python's ``logging``
            (logger ``llama_cpp``).

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

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        n_gpu_layers: int = -1,
        split_mode: int = capi.LLAMA_SPLIT_MODE_LAYER,
        main_gpu: int = 0,
        tensor_split: Sequence[float] | None = None,
        rpc_servers: str | Sequence[str] | None = None,
        vocab_only: bool = False,
        use_mmap: bool = True,
        use_mlock: bool = False,
        kv_overrides: Mapping[str, bool | int | float | str] | None = None,
        seed: int | None = None,
        n_ctx: int = 512,
        n_parallel: int | None = None,
        n_kv: int | None = None,
        kv_unified: bool | None = None,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        rope_scaling_type: int = capi.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED,
        embedding: bool = False,
        pooling_type: int = capi.LLAMA_POOLING_TYPE_UNSPECIFIED,
        attention_type: int = capi.LLAMA_ATTENTION_TYPE_UNSPECIFIED,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        yarn_ext_factor: float = -1.0,
        yarn_attn_factor: float = 1.0,
        yarn_beta_fast: float = 32.0,
        yarn_beta_slow: float = 1.0,
        yarn_orig_ctx: int = 0,
        offload_kqv: bool = True,
        flash_attn: bool | None = None,
        op_offload: bool | None = None,
        swa_full: bool | None = None,
        no_perf: bool = True,
        batch_invariant: bool = True,
        repeatable: bool = False,
        last_n_tokens_size: int = 64,
        spm_infill: bool = False,
        draft_model: str | os.PathLike[str] | None = None,
        n_draft: int = 8,
        lora_path: str | os.PathLike[str] | None = None,
        lora_scale: float = 1.0,
        lora_adapters: Mapping[str, str | os.PathLike[str]] | None = None,
        chat_format: str | None = None,
        limits: Limits | None = None,
        type_k: int | None = None,
        type_v: int | None = None,
        verbose: bool | None = None,
        **unknown: Any,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ("self", "unknown")}
        self._templates: ChatTemplates | None = None
        self._model: Model | None = None
        self._engine: BatchingEngine | None = None
        self._embedder: Embedder | None = None
        check_unknown(Llama.__init__, "Llama", unknown)
        options = read_creation(options)
        if options["verbose"]:
            _log_to_stderr()
        self.model_path = options["model_path"]
        self.verbose = bool(options["verbose"])
        self._seed = options["seed"]
        self._last_n_tokens_size = options["last_n_tokens_size"]
        self._suffix_first = options["spm_infill"]
        self._chat_template = options["chat_format"]
        self._limits: Limits = options["limits"] or Limits()
        self._opening = threading.Lock()
        self._model, self._adapters, self._engine, self._embedder, self._make_engine = load_model(options)

    # --- lifetime ---

    def close(self) -> None:
        """Frees the model and everything made from it. Closing twice is allowed; using it afterwards raises.

        Other threads may be using it: each of them ends what it is in the middle of, or gets a ModelClosedError.
        """
        for name in ("_templates", "_embedder", "_engine", "_model"):  # what is made from the model goes first
            part = getattr(self, name, None)
            if part is not None:
                part.close()
        self._templates = None

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # at interpreter exit the operating system takes the memory back, and modules are already half gone
        if not sys.is_finalizing():
            self.close()

    @property
    def _open_model(self) -> Model:
        assert self._model is not None
        self._model.in_use().require_open()
        return self._model

    def _require_open(self) -> None:
        self._open_model.in_use().require_open()

    def _require_engine(self) -> None:
        """Makes the engine where there is none yet, and raises where there cannot be one."""
        _ = self._open_engine

    @property
    def _open_engine(self) -> BatchingEngine:
        self._require_open()
        if self._engine is None and self._make_engine is not None:
            with self._opening:
                self._engine = self._engine or self._make_engine()
                try:
                    self._require_open()
                except LlamaCppError:  # closed meanwhile, by somebody who saw no engine
                    self._engine.close()
                    raise
        if self._engine is None:
            raise InvalidArgumentError("This model was loaded with vocab_only=True.", remedy="Load it without to generate text.")
        return self._engine

    @property
    def _open_embedder(self) -> Embedder:
        self._require_open()
        if self._embedder is None and self._engine is None:
            raise InvalidArgumentError("This model was loaded with vocab_only=True.", remedy="Load it without, for vectors.")
        if self._embedder is None:
            raise InvalidArgumentError("This model was loaded to generate.", remedy="Load it with embedding=True for vectors.")
        return self._embedder

    # --- what it is ---

    @property
    def metadata(self) -> dict[str, str]:
        """The file's key-value pairs as text."""
        return self._open_model.metadata()

    @property
    def model(self) -> int:
        """The ``llama_model *``, for the low-level API."""
        return self._open_model.pointer

    @property
    def ctx(self) -> int | None:
        """The ``llama_context *``, for the low-level API."""
        pointer: int | None = (self._embedder or self._open_engine).context_pointer
        return pointer

    def n_ctx(self) -> int:
        """Tokens the context holds."""
        self._require_open()
        return (self._embedder or self._open_engine).n_ctx

    def pooling_type(self) -> int:
        """How vectors of tokens become one of a text (``LLAMA_POOLING_TYPE_*``), of a model loaded with embedding=True."""
        return self._open_embedder.pooling_type

    def n_embd(self) -> int:
        return self._open_model.n_embd

    def n_vocab(self) -> int:
        return self._open_model.n_vocab

    def token_bos(self) -> int:
        return self._open_model.token_bos

    def token_eos(self) -> int:
        return self._open_model.token_eos

    def token_nl(self) -> int:
        return self._open_model.token_nl

    # --- tokens ---

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of UTF-8 text.

        Args:
            add_bos: add BOS (and EOS) where the model's settings ask for it.
            special: read special tokens written out as tokens.
        """
        if not isinstance(text, (bytes, bytearray)):
            raise InvalidArgumentError(f"tokenize() takes bytes, not {type(text).__name__}.", remedy='Call text.encode("utf-8").')
        flags = {"add_special": flag("add_bos", add_bos), "parse_special": flag("special", special)}
        return self._open_model.tokenize(bytes(text), **flags)

    def detokenize(self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False) -> bytes:
        """UTF-8 bytes of tokens; with ``prev_tokens``, what they add to the text of those."""
        model, special = self._open_model, flag("special", special)
        tokens, earlier = token_ids("tokens", tokens), [] if prev_tokens is None else token_ids("prev_tokens", prev_tokens)
        if not earlier:
            return model.detokenize(tokens, special=special)
        before = model.detokenize(earlier, special=special)
        return model.detokenize([*earlier, *tokens], special=special)[len(before) :]

    def reset(self) -> None:
        """Forgets what the cache holds."""
        self._require_open()
        if self._embedder is None or self._engine is not None:  # vectors leave nothing
            self._open_engine.reset()

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """Keeps what requests have computed in ``cache`` when the context has no room for it any more.

        With a :class:`~llama_cpp.engine.prefix_cache.stores.LlamaDiskCache` a long system prompt is there at the next start, too.
        """
        self._open_engine.keep_in(cache)

    def set_seed(self, seed: int | None) -> None:
        """The seed of requests that bring none."""
        self._seed = read_seed(seed)

    # --- vectors ---

    def embed(
        self,
        input: str | Sequence[int] | Sequence[Text],
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
    ) -> Any:
        """Vectors of texts, for a model loaded with embedding=True. What several threads ask for is computed together.

        Args:
            input: a text or its token ids, or a list of such.
            normalize: scale them to a length of 1 (L2); a classifier's scores stay as they are.
            truncate: leave out the end of a text of more than n_ctx tokens, instead of raising.
            return_count: return the number of tokens, too.

        Returns:
            A list of floats, of n_embd numbers, or of the scores of a model that ranks; with ``LLAMA_POOLING_TYPE_NONE`` a list
            of such lists, one for each token. For a list of texts, a list of that. With ``return_count``: that and the number.

        Raises:
            InvalidArgumentError: the model was not loaded for it, or the input. ContextLengthError: a text is too long.
            ModelBusyError: too many texts wait. DecodeError, ModelClosedError.
        """
        normalize, return_count = flag("normalize", normalize), flag("return_count", return_count)
        job, single = self._vectors(input, flag("truncate", truncate))
        return self._listed(job, single, job.result(), normalize, return_count)

    def create_embedding(self, input: str | Sequence[int] | Sequence[Text], model: str | None = None) -> dict[str, Any]:
        """Vectors of texts in OpenAI's form; see :meth:`embed`."""
        job, _ = self._vectors(input, truncate=True)
        vectors, n = self._listed(job, False, job.result(), False, True)
        return embeddings.response(vectors, n, read_model_name(model, self.model_path))

    # --- completions ---

    def create_completion(
        self,
        prompt: str | Sequence[int],
        *,
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        grammar: str | None = None,
        logit_bias: Mapping[int | str, float] | None = None,
        stream_options: Mapping[str, Any] | None = None,
        logprobs: int | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        stopping_criteria: StoppingCriteria | Sequence[StoppingCriteria] | None = None,
        abort_callback: Callable[[], bool] | None = None,
        context_full: str = "truncate",
        lora: Mapping[str, float] | None = None,
        speculate: bool = True,
        **samplers: Any,
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """Continues a text.

        Args:
            prompt: text, or token ids.
            suffix: what comes after the text, for a model that was trained to fill in (the prompt is what comes before).
            max_tokens: None or less than 1 runs until the model ends or the context is full.
            echo: begin the text with the prompt; with ``logprobs``, its tokens are scored, too. None is then taken from the
                cache, and they are read more slowly.
            stop: strings before the earliest of which the text ends.
            grammar: GBNF that the text must follow.
            stream: yield chunks as they come. ``stream_options={"include_usage": True}`` adds the token counts to a
                last chunk.
            logprobs: log-probabilities of each token and of so many most probable ones.
            logits_processor: functions of all tokens so far (int64) and the logits (float32, n_vocab) that return other
                logits. They run between the batches that all requests share.
            stopping_criteria: functions of all tokens so far and of the logits of the next one (as above, before any
                processor); when one of them says True, the text ends there, without that token.
            abort_callback: asked ten times a second while the answer is waited for; when it says True, the request ends there,
                also in the middle of its prompt, with what there is (``finish_reason`` "abort"); while a template, a schema or a
                grammar is read there is nothing yet: a RequestAbortedError. A stream can be closed by any thread as well.
            context_full: what to do when the answer fills n_ctx: "truncate" it, raise an "error", or "shift", which
                forgets the older half of what was said.
            lora: scales of LoRA adapters by name, in place of lora_path's; ``{}`` is the model without any.
            speculate: whether a model loaded with draft_model may draft for this request.
            The sampling parameters are those of :class:`~llama_cpp.engine.sampling_params.SamplingParams`; those that
            llama-cpp-python does not have (top_n_sigma, xtc_*, dynatemp_*, dry_*, adaptive_*) are taken, too.

        Returns:
            A completion in OpenAI's form with ``usage`` and ``timings``, or an iterator of chunks.

        Raises:
            ContextLengthError: the prompt does not fit. InvalidArgumentError, UnknownArgumentError: an argument.
            ModelBusyError: too many requests wait. RequestAbortedError: abort_callback said so before it began.
            While it runs: DecodeError, GrammarError, ContextFullError, ModelClosedError, and what a logits processor or a
            stopping criterion raises.
        """
        extra = {name: samplers.pop(name) for name in _SAMPLING & samplers.keys()}
        check_unknown(Llama.create_completion, "create_completion", samplers)
        stream, echo = flag("stream", stream, none=False), flag("echo", echo, none=False)
        gbnf, abort = read_grammar(grammar), read_callback(abort_callback)
        text, tokens = self._read_prompt(prompt, read_suffix(suffix))
        params = self._sampling(
            temperature=temperature, top_p=top_p, min_p=min_p, typical_p=typical_p, top_k=top_k, seed=seed,
            frequency_penalty=frequency_penalty, presence_penalty=presence_penalty, repeat_penalty=repeat_penalty,
            mirostat_mode=mirostat_mode, mirostat_tau=mirostat_tau, mirostat_eta=mirostat_eta, logit_bias=logit_bias,
            grammar={"grammar": gbnf} if gbnf else None, **extra,
        )  # fmt: skip
        request, stream_text = self._request(
            tokens, params, max_tokens, read_stop(stop), n_logprobs=read_logprobs(logprobs, self.n_vocab(), "logprobs"),
            processors=read_functions("logits_processor", logits_processor),
            criteria=read_functions("stopping_criteria", stopping_criteria), context_full=context_full, lora=lora,
            speculate=flag("speculate", speculate), scores_prompt=echo and not suffix, abort=abort,
        )  # fmt: skip
        head = (openai_format.new_id("cmpl"), openai_format.now(), read_model_name(model, self.model_path))
        assembler = TextAssembler(
            head, request.generation, stream_text, usage_wanted(stream_options), self._open_model, request.n_logprobs is not None,
            prompt=text, tokens=() if suffix else tokens, echo=echo,
        )  # fmt: skip
        return self._deliver(assembler, request, stream, abort)

    __call__ = create_completion

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        grammar: str | None = None,
        logit_bias: Mapping[int | str, float] | None = None,
        parallel_tool_calls: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        stream_options: Mapping[str, Any] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        abort_callback: Callable[[], bool] | None = None,
        context_full: str = "truncate",
        lora: Mapping[str, float] | None = None,
        speculate: bool = True,
        **samplers: Any,
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """Answers a conversation, with the model's own chat template.

        Args:
            messages: in OpenAI's form.
            tools, tool_choice, parallel_tool_calls: functions the model may call, read by the parser that belongs to
                its template; ``tool_choice`` is "auto", "required" or "none".
            response_format: ``{"type": "json_object"}`` or ``{"type": "json_schema", "json_schema": {"schema": …}}``.
            chat_template_kwargs: variables for the template; ``{"enable_thinking": False}`` switches reasoning off
                where the template can.
            logprobs, top_logprobs: log-probabilities of each token, and of so many most probable ones.
            The other arguments are those of :meth:`create_completion`.

        Returns:
            A chat completion in OpenAI's form with ``usage`` and ``timings``, or an iterator of chunks.

        Raises:
            ChatTemplateError: the template refused the messages. ContextLengthError, InvalidArgumentError,
            UnknownArgumentError. While reading the answer: ChatParseError.
        """
        extra = {name: samplers.pop(name) for name in _SAMPLING & samplers.keys()}
        check_unknown(Llama.create_chat_completion, "create_chat_completion", samplers)
        stream, logprobs = flag("stream", stream, none=False), flag("logprobs", logprobs, none=False)
        abort = read_callback(abort_callback)
        # close() in another thread takes the attribute away
        templates = self._templates
        if templates is None:
            with asking(abort):
                templates = self._templates = ChatTemplates(self._open_model, self._chat_template, limits=self._limits)
        self._require_engine()
        request = ChatRequest(
            messages, tools, tool_choice, parallel_tool_calls, response_format, read_grammar(grammar), chat_template_kwargs
        )
        with asking(abort):
            prompt = request.render(templates)
        tokens = self._open_model.tokenize(prompt.text.encode("utf-8", "replace"), add_special=True, parse_special=True)
        params = self._sampling(
            temperature=temperature, top_p=top_p, min_p=min_p, typical_p=typical_p, top_k=top_k, seed=seed,
            frequency_penalty=frequency_penalty, presence_penalty=presence_penalty, repeat_penalty=repeat_penalty,
            mirostat_mode=mirostat_mode, mirostat_tau=mirostat_tau, mirostat_eta=mirostat_eta, logit_bias=logit_bias,
            grammar=prompt.grammar, **extra,
        )  # fmt: skip
        n_top = read_logprobs(top_logprobs, self.n_vocab(), "top_logprobs")
        n_logprobs = (n_top or 0) if logprobs or n_top else None
        stops = (*read_stop(stop), *prompt.stop)
        generated, text = self._request(
            tokens, params, max_tokens, stops, prompt.preserved, n_logprobs=n_logprobs,
            processors=read_functions("logits_processor", logits_processor), context_full=context_full, lora=lora,
            speculate=flag("speculate", speculate), abort=abort,
        )  # fmt: skip
        head = (openai_format.new_id("chatcmpl"), openai_format.now(), read_model_name(model, self.model_path))
        assembler = ChatAssembler(
            head, generated.generation, text, usage_wanted(stream_options), self._open_model, n_logprobs is not None,
            parser=prompt.response_parser(),
        )  # fmt: skip
        return self._deliver(assembler, generated, stream, abort)

    # --- inside ---

    def _vectors(self, input: Any, truncate: bool) -> tuple[Job, bool]:
        """Texts on their way to vectors, and whether it is a single one."""
        texts, single = self._texts(input, truncate)
        return self._open_embedder.submit(texts), single

    def _texts(self, input: Any, truncate: bool) -> tuple[list[list[int]], bool]:
        """Token ids of texts, and whether it is a single one."""
        model, embedder = self._open_model, self._open_embedder
        texts, single = embeddings.read_texts(input)
        return [embeddings.tokens_of(model, text, embedder.n_ctx, truncate) for text in texts], single

    def _listed(self, job: Job, single: bool, vectors: list[np.ndarray], normalize: bool, return_count: bool) -> Any:
        found = embeddings.listed(vectors, normalize, self.pooling_type())
        output = found[0] if single else found
        return (output, sum(map(len, job.texts))) if return_count else output

    def _read_prompt(self, prompt: str | Sequence[int], suffix: str | None = None) -> tuple[str, list[int]]:
        """The prompt as text, and the tokens to begin with, those that ask to fill in before a suffix among them."""
        model = self._open_model
        self._require_engine()
        whole = suffix is None
        if isinstance(prompt, str):
            text, tokens = prompt, model.tokenize(prompt.encode("utf-8", "replace"), add_special=whole, parse_special=whole)
            if not tokens and whole and model.token_bos >= 0:
                tokens = [model.token_bos]
        else:
            if isinstance(prompt, (bytes, bytearray)) or not isinstance(prompt, Iterable):
                raise InvalidArgumentError(f"prompt is {type(prompt).__name__}.", remedy="Give a str or a list of tokens.")
            tokens = token_ids("prompt", prompt)
            text = model.detokenize(tokens, special=True).decode("utf-8", "replace")
        if suffix is not None:
            tokens = model.infill(tokens, suffix, suffix_first=self._suffix_first)
        return text, tokens

    def _sampling(self, *, seed: int | None, logit_bias: Mapping[int | str, float] | None, **rest: Any) -> SamplingParams:
        seed = self._seed if seed is None else read_seed(seed)
        if seed is not None and seed < 0:
            seed = None
        bias = read_bias(logit_bias)
        return SamplingParams.read(seed=seed, logit_bias=bias, **{"penalty_last_n": self._last_n_tokens_size, **rest})

    def _request(
        self,
        tokens: list[int],
        params: SamplingParams,
        max_tokens: int | None,
        stop: Sequence[str],
        preserved: Sequence[str] = (),
        lora: Mapping[str, float] | None = None,
        abort: Callable[[], bool] | None = None,
        **request: Any,
    ) -> tuple[Request, Detokenizer]:
        """A request, not yet submitted, and what turns its tokens into text."""
        model, engine = self._open_model, self._open_engine
        engine.check_prompt(tokens)
        assert self._adapters is not None  # they are there with an engine
        with asking(abort):
            sampler = Sampler(model, params, engine.n_ctx, self._limits)
        sampler.accept_prompt(tokens)
        single = (model.tokenize(text.encode(), add_special=False, parse_special=True) for text in preserved)
        text = Detokenizer(model, stop, [ids[0] for ids in single if len(ids) == 1])
        return Request(tokens, sampler, max_tokens, adapters=self._adapters.choose(lora), **request), text

    def _deliver(
        self, assembler: Assembler, request: Request, stream: bool, abort: Callable[[], bool] | None
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """Runs a request; returns its response, or its chunks as they come."""
        handle = RequestStream(request, abort)
        self._open_engine.submit(request)
        if stream:
            return Stream(self, assembler, handle)
        return assembler.whole("".join(pieces(assembler, handle)))


def _log_to_stderr() -> None:
    """What ``verbose=True`` asks for, unless the program has set logging up itself."""
    if not logger.handlers and not logging.getLogger().handlers:
        logger.addHandler(logging.StreamHandler())
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)

"""From what ``Llama()`` was asked for to an open model, and what generates with it or computes vectors."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .arguments import context_sizes, load_mode, read_adapters, read_servers
from .capi import llama as capi
from .capi.backends import has_gpu
from .capi.handle import Uncopyable
from .chat.formats import ChosenFormat, choose
from .chat.templates import ChatTemplates
from .engine.sampling_params import OWN_HEADS
from .errors import ContextCreationError, InvalidArgumentError, LlamaCppError, ModelLoadError
from .fit.measurement import check_host_memory, explained
from .fit.threads import default_batch_threads, default_threads
from .limits import Limits, asking
from .models.adapter import AdapterSet
from .models.model import Model
from .models.rpc import check_split_mode, note_user, remote_devices

if TYPE_CHECKING:
    from .engine.batching_engine import BatchingEngine
    from .engine.embedder import Embedder
    from .engine.private_sequence import PrivateSequence

_FLASH_ATTENTION = {
    None: capi.LLAMA_FLASH_ATTN_TYPE_AUTO,
    True: capi.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    False: capi.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}

#: Arguments that are fields of the same name in the engine's parameters.
_MODEL_FIELDS = ("n_gpu_layers", "split_mode", "main_gpu", "vocab_only")
_CONTEXT_FIELDS = (
    "n_batch", "rope_scaling_type", "pooling_type", "attention_type", "rope_freq_base", "rope_freq_scale",
    "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx", "offload_kqv", "op_offload",
    "swa_full", "no_perf", "type_k", "type_v",
)  # fmt: skip


class LoadedModel(Uncopyable):
    """A model with what is made from it: an engine that generates, what computes vectors, its chat templates.

    Any thread may use it. Everything is freed together, and what was asked for afterwards raises.

    Args:
        options: the arguments of :class:`~llama_cpp.Llama` by name, as ``read_creation()`` gives them.

    Attributes:
        model_path: the file.
        seed, penalty_last_n: of requests that bring none.
        logits_all: whether the low level keeps the logits of every token. making: held while its sequence is made.
        model_params: the fields of ``llama_model_params`` that it was loaded with.
        suffix_first: whether a prompt that is to be filled in begins with what comes after.
        limits: what templates and grammars may cost.

    Raises:
        ModelFileError, ModelLoadError, ContextCreationError, InvalidArgumentError, MetadataOverrideError,
        RemoteDeviceError, ForkedProcessError: as :class:`~llama_cpp.Llama` does.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.model_path: str = options["model_path"]
        self.seed: int | None = options["seed"]
        self.penalty_last_n: int = options["last_n_tokens_size"]
        self.suffix_first: bool = options["spm_infill"]
        self.limits: Limits = options["limits"] or Limits()
        self._chat_format = ChosenFormat(None)
        self._templates: ChatTemplates | None = None
        self._adapters: AdapterSet | None = None
        self._engine: BatchingEngine | None = None
        self._embedder: Embedder | None = None
        self._make_engine: Callable[[], BatchingEngine] | None = None
        self._opening, self.making = threading.Lock(), threading.Lock()
        self.logits_all: bool = options["logits_all"]
        self._options = options
        adapters = read_adapters(options["lora_path"], options["lora_scale"], options["lora_adapters"])
        self.model_params = model_params = _model_params(options)
        if options["numa"]:
            capi.llama_numa_init(options["numa"])
        try:
            self._model = Model(
                self.model_path, params=model_params, kv_overrides=options["kv_overrides"], tensor_split=options["tensor_split"]
            )
        except ModelLoadError as error:
            raise explained(error, self.model_path, model_params, {}) from error
        note_user(read_servers(options["rpc_servers"]), self._model.in_use())
        context_params: dict[str, Any] = {}
        try:
            if options["vocab_only"]:
                return
            if options["chat_handler"] is None:
                self._chat_format = choose(options["chat_format"], self._model.metadata())
            self._adapters = AdapterSet(self._model, *adapters)
            context_params = _generation_params(self._model, options)
            self._make_engine = functools.partial(_open_engine, self._model, model_params, context_params, options)
            if not options["embedding"]:
                self._engine = self._make_engine()
                return
            n_ctx, params = _embedding_params(self._model, options)
            # what is measured may be of other sizes, and those that do not divide each other end the process
            context_params = {**params, "n_seq_max": 1}
            check_host_memory(self._model, model_params, context_params)
            from .engine.embedder import Embedder

            self._embedder = Embedder(self._model, params, n_ctx, options["batch_invariant"], self._adapters.choose(None))
        except ContextCreationError as error:
            self._model.close()  # what would fit is a question of what is free without it
            raise explained(error, self.model_path, model_params, context_params) from error
        except BaseException:
            self._model.close()
            raise

    def close(self) -> None:
        """Frees the model and everything made from it. Closing twice is allowed; using it afterwards raises.

        Other threads may be using it: each of them ends what it is in the middle of, or gets a ModelClosedError.
        """
        for part in (self._templates, self._embedder, self._engine, self._model):  # what is made from the model goes first
            if part is not None:
                part.close()
        self._templates = None

    @property
    def model(self) -> Model:
        """The model.

        Raises:
            ModelClosedError, ForkedProcessError: it must not be used any more, or not here.
        """
        self._model.in_use().require_open()
        return self._model

    @property
    def engine(self) -> BatchingEngine:
        """What generates; made now, if the model was loaded for vectors.

        Raises:
            InvalidArgumentError: the model was loaded with vocab_only=True. ContextCreationError.
            ModelClosedError, ForkedProcessError.
        """
        self.require_open()
        if self._engine is None and self._make_engine is not None:
            with self._opening:
                self._engine = self._engine or self._make_engine()
                try:
                    self.require_open()
                except LlamaCppError:  # closed meanwhile, by somebody who saw no engine
                    self._engine.close()
                    raise
        if self._engine is None:
            raise InvalidArgumentError("This model was loaded with vocab_only=True.", remedy="Load it without to generate text.")
        return self._engine

    @property
    def generates(self) -> bool:
        """Whether the model was loaded to generate, and not for vectors."""
        return self._embedder is None

    @property
    def embedder(self) -> Embedder:
        """What computes vectors.

        Raises:
            InvalidArgumentError: the model was not loaded for that. ModelClosedError, ForkedProcessError.
        """
        self.require_open()
        if self._embedder is None and self._engine is None:
            raise InvalidArgumentError("This model was loaded with vocab_only=True.", remedy="Load it without, for vectors.")
        if self._embedder is None:
            raise InvalidArgumentError("This model was loaded to generate.", remedy="Load it with embedding=True for vectors.")
        return self._embedder

    def private_sequence(self) -> PrivateSequence:
        """A sequence in a context of its own, for a caller that does each step itself.

        Raises:
            InvalidArgumentError: the model was loaded with vocab_only=True. ContextCreationError.
            ModelClosedError, ForkedProcessError.
        """
        from .engine.private_sequence import PrivateSequence

        self.require_open()
        options = self._options
        if options["vocab_only"]:
            raise InvalidArgumentError("This model was loaded with vocab_only=True.", remedy="Load it without.")
        n_ctx = options["n_ctx"] or self._model.n_ctx_train
        params = {**_context_params(options), "n_ctx": n_ctx, "n_ubatch": min(options["n_ubatch"], options["n_batch"])}
        if options["embedding"]:
            params["embeddings"] = True
        return PrivateSequence(self._model, params, options["logits_all"], self.adapters.choose(None))

    @property
    def context(self) -> BatchingEngine | Embedder:
        """Whatever has a context: what computes vectors, if the model was loaded for them, else what generates."""
        self.require_open()
        return self._embedder or self.engine

    @property
    def adapters(self) -> AdapterSet:
        """The LoRA adapters that requests choose from."""
        assert self._adapters is not None  # they are there with an engine
        return self._adapters

    def templates(self, abort: Callable[[], bool] | None = None) -> ChatTemplates:
        """The chat templates, read when they are first asked for.

        Raises:
            ChatTemplateError: they cannot be read. RequestAbortedError: ``abort`` said so meanwhile. ModelClosedError.
        """
        templates = self._templates  # close() in another thread takes the attribute away
        if templates is None:
            with asking(abort):
                templates = self._templates = ChatTemplates(
                    self.model, self._chat_format.template, limits=self.limits, stop=self._chat_format.stop
                )
        return templates

    def reset(self) -> None:
        """Forgets what the cache holds."""
        self.require_open()
        if self._embedder is None or self._engine is not None:  # vectors leave nothing
            self.engine.reset()

    def require_open(self) -> None:
        """Raises ModelClosedError or ForkedProcessError where it must not be used any more, or not here."""
        self._model.in_use().require_open()

    def require_engine(self) -> None:
        """Makes the engine where there is none yet, and raises where there cannot be one."""
        _ = self.engine


def _model_params(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``llama_model_params`` that are not left to the engine."""
    params = {
        **{name: options[name] for name in _MODEL_FIELDS},
        "load_mode": load_mode(options["use_mmap"], options["use_mlock"]),
        "load_mtp": options["draft_model"] == OWN_HEADS,
    }
    check_split_mode(options["split_mode"])
    if servers := read_servers(options["rpc_servers"]):
        if options["draft_model"] == OWN_HEADS:
            raise InvalidArgumentError(
                "draft_model='mtp' needs a second context, which an RPC server cannot tell from the first."
            )
        params["devices"] = remote_devices(servers)
    return params


def _open_engine(
    model: Model, model_params: Mapping[str, Any], context_params: Mapping[str, Any], options: Mapping[str, Any]
) -> BatchingEngine:
    check_host_memory(model, model_params, context_params)
    from .engine.batching_engine import BatchingEngine  # numpy takes longer to import than all the rest
    from .engine.scheduler import Scheduler

    scheduler = Scheduler(
        model, context_params, _n_parallel(model, options, 8), options["n_ctx"],
        draft_source=options["draft_model"], n_draft=options["n_draft"], n_gpu_layers=options["n_gpu_layers"],
        batch_invariant=options["batch_invariant"],
        repeatable=options["repeatable"] and (has_gpu() or not options["batch_invariant"]),
    )  # fmt: skip
    return BatchingEngine(scheduler)


def _n_parallel(model: Model, options: Mapping[str, Any], otherwise: int) -> int:
    """How many requests or texts are computed at once."""
    from .engine.cache_kinds import pays_per_sequence

    n: int = options["n_parallel"] or (2 if pays_per_sequence(model) else otherwise)
    return n


def _generation_params(model: Model, options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``llama_context_params`` that are not left to the engine."""
    sizes = context_sizes(
        options["n_ctx"] or model.n_ctx_train, _n_parallel(model, options, 8), bool(options["n_parallel"]), options["n_kv"],
        options["kv_unified"],
    )  # fmt: skip
    return {**_context_params(options), "n_ubatch": min(options["n_ubatch"], options["n_batch"]), **sizes}


def _embedding_params(model: Model, options: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """How many tokens a text can have, and as _generation_params() for whole texts at once."""
    n_ctx = options["n_ctx"] or model.n_ctx_train
    if model.learnt_positions:
        n_ctx = min(n_ctx, model.n_ctx_train)
    if n_ctx <= 0:
        raise InvalidArgumentError(f"The model's file says that it was trained with {n_ctx} tokens.", remedy="Give n_ctx.")
    n_batch = max(n_ctx, options["n_batch"])
    n_texts = min(_n_parallel(model, options, 64), n_batch)  # the engine asserts that it is no more
    n_batch = -(-n_batch // n_texts) * n_texts  # the engine rounds up as well when it plans, but the tokens only, and asserts
    sizes = {"n_ctx": n_batch, "n_batch": n_batch, "n_ubatch": n_batch, "n_seq_max": n_texts}
    return n_ctx, {**_context_params(options), **sizes, "kv_unified": True, "embeddings": True}


def _context_params(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are the same for whatever is done with the model."""
    params = {
        **{name: options[name] for name in _CONTEXT_FIELDS},
        "n_threads": options["n_threads"] or default_threads(),
        "n_threads_batch": options["n_threads_batch"] or default_batch_threads(),
        "flash_attn_type": _FLASH_ATTENTION[options["flash_attn"]],
    }
    return {name: value for name, value in params.items() if value is not None}

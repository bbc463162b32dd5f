"""What ``Llama`` and ``AsyncLlama`` have in common: how a model is opened, and what can be said of it without waiting."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .arguments import check_unknown, read_creation, read_seed
from .capi import llama as capi
from .capi.handle import Uncopyable
from .limits import Limits
from .model_loading import LoadedModel

if TYPE_CHECKING:
    from .engine.prefix_cache.stores import BaseLlamaCache
    from .engine.speculative.draft_objects import LlamaDraftModel

logger = logging.getLogger("llama_cpp")


class ModelFront(Uncopyable):
    """An open model. The arguments are :class:`~llama_cpp.Llama`'s, and described there."""

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
        logits_all: bool = False,
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
        draft_model: str | os.PathLike[str] | LlamaDraftModel | None = None,
        n_draft: int = 8,
        lora_base: None = None,
        lora_path: str | os.PathLike[str] | None = None,
        lora_scale: float = 1.0,
        lora_adapters: Mapping[str, str | os.PathLike[str]] | None = None,
        numa: bool | int = False,
        chat_format: str | None = None,
        chat_handler: Callable[..., Any] | None = None,
        tokenizer: Any = None,
        limits: Limits | None = None,
        type_k: int | None = None,
        type_v: int | None = None,
        verbose: bool | None = None,
        **kwargs: Any,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}
        self._loaded: LoadedModel | None = None
        self._given = {name: value for name, value in options.items() if value is not _DEFAULTS[name]}
        check_unknown(inspect.signature(ModelFront.__init__).parameters, "Llama", kwargs)
        options = read_creation(options)
        if options["chat_handler"] is None and options["chat_format"] is not None:
            options["chat_handler"] = self._registered(options["chat_format"])
        self._check(options)
        if options["verbose"]:
            _log_to_stderr()
        self.model_path = options["model_path"]
        self.verbose = bool(options["verbose"])
        self.n_batch: int = options["n_batch"]
        self.last_n_tokens_size: int = options["last_n_tokens_size"]
        self.chat_format: str | None = options["chat_format"]
        self.chat_handler: Callable[..., Any] | None = options["chat_handler"]
        self._chat_handlers: dict[str, Callable[..., Any]] = {}
        self.draft_model = options["draft_model"]
        self.tokenizer_ = options["tokenizer"]
        self.cache: BaseLlamaCache | None = None
        self._loaded = LoadedModel(options)
        self._stack = contextlib.ExitStack()  # programs let it close what belongs to the model, and close the model by it
        self._stack.callback(_free_if_there, weakref.ref(self))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled, it is its path and arguments: whoever reads it opens the model again."""
        return _open_again, (type(self), self._given)

    def __copy__(self) -> Any:
        """Raises UncopyableError."""
        return super().__reduce_ex__(4)

    def __deepcopy__(self, memo: Any) -> Any:
        """Raises UncopyableError."""
        return super().__reduce_ex__(4)

    def _check(self, options: Mapping[str, Any]) -> None:
        """Raises InvalidArgumentError for what this kind of front cannot do."""

    def _registered(self, chat_format: str) -> Callable[..., Any] | None:
        """The chat handler that somebody gave this name."""
        return None

    def __del__(self) -> None:
        # at interpreter exit the operating system takes the memory back, and modules are already half gone
        if not sys.is_finalizing():
            self._free()

    def _free(self) -> None:
        if (stack := self.__dict__.pop("_stack", None)) is not None:
            stack.close()
        loaded = getattr(self, "_loaded", None)  # None where the constructor raised
        if loaded is not None:
            loaded.close()

    @property
    def loaded(self) -> LoadedModel:
        """What it is made of, for those who prepare and run requests themselves."""
        assert self._loaded is not None  # else the constructor raised
        return self._loaded

    # --- what it is ---

    @property
    def metadata(self) -> dict[str, str]:
        """The file's key-value pairs as text."""
        return self.loaded.model.metadata()

    @property
    def model(self) -> int:
        """The ``llama_model *``, for the low-level API."""
        return self.loaded.model.pointer

    def n_ctx(self) -> int:
        """Tokens the context holds."""
        return self.loaded.context.n_ctx

    def pooling_type(self) -> int:
        """How vectors of tokens become one of a text (``LLAMA_POOLING_TYPE_*``)."""
        return self.loaded.embedder.pooling_type

    def n_embd(self) -> int:
        return self.loaded.model.n_embd

    def n_vocab(self) -> int:
        return self.loaded.model.n_vocab

    def token_bos(self) -> int:
        return self.loaded.model.token_bos

    def token_eos(self) -> int:
        return self.loaded.model.token_eos

    def token_nl(self) -> int:
        return self.loaded.model.token_nl

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """Keeps what requests have computed in ``cache`` when the context has no room for it any more.

        With a :class:`~llama_cpp.engine.prefix_cache.stores.LlamaDiskCache` a long system prompt is there at the next start.
        """
        self.loaded.engine.keep_in(cache)
        self.cache = cache

    def set_seed(self, seed: int | None) -> None:
        """The seed of requests that bring none."""
        self.loaded.seed = read_seed(seed)


_DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(ModelFront.__init__).parameters.items()}


def _free_if_there(front: weakref.ref[ModelFront]) -> None:
    if (found := front()) is not None:
        found._free()


def _open_again(kind: type[ModelFront], given: Mapping[str, Any]) -> ModelFront:
    return kind(**given)


def _log_to_stderr() -> None:
    """What ``verbose=True`` asks for, unless the program has set logging up itself."""
    if not logger.handlers and not logging.getLogger().handlers:
        logger.addHandler(logging.StreamHandler())
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)

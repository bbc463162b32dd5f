"""From what ``Llama()`` was asked for to an open model, and what generates with it or computes vectors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .arguments import context_sizes, load_mode, read_adapters, read_servers
from .capi import llama as capi
from .capi.backends import has_gpu
from .engine.sampling_params import OWN_HEADS
from .errors import ContextCreationError, InvalidArgumentError, ModelLoadError
from .fit.measurement import check_host_memory, explained
from .fit.threads import default_batch_threads, default_threads
from .models.adapter import AdapterSet
from .models.model import Model
from .models.rpc import check_split_mode, note_user, remote_devices

if TYPE_CHECKING:
    from .engine.embedder import Embedder
    from .engine.scheduler import BatchingEngine

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


class LoadedModel(NamedTuple):
    """What a ``Llama`` is made of; of a vocabulary alone there is only the model.

    ``open_engine`` makes what generates, where that was not asked for; it raises as :func:`open_model` does.
    """

    model: Model
    adapters: AdapterSet | None
    engine: BatchingEngine | None
    embedder: Embedder | None
    open_engine: Callable[[], BatchingEngine] | None


def load_model(options: Mapping[str, Any]) -> LoadedModel:
    """Loads a model and makes its context.

    Args:
        options: the arguments of :class:`~llama_cpp.Llama` by name, as ``read_creation()`` gives them.

    Raises:
        ModelFileError, ModelLoadError, ContextCreationError, InvalidArgumentError, MetadataOverrideError,
        RemoteDeviceError, ForkedProcessError: as :class:`~llama_cpp.Llama` does.
    """
    path = options["model_path"]
    adapters = read_adapters(options["lora_path"], options["lora_scale"], options["lora_adapters"])
    model_params = {
        **{name: options[name] for name in _MODEL_FIELDS},
        "load_mode": load_mode(options["use_mmap"], options["use_mlock"]),
        "load_mtp": options["draft_model"] == OWN_HEADS,
    }
    check_split_mode(options["split_mode"])
    servers = read_servers(options["rpc_servers"])
    if servers:
        if options["draft_model"] == OWN_HEADS:
            raise InvalidArgumentError(
                "draft_model='mtp' needs a second context, which an RPC server cannot tell from the first."
            )
        model_params["devices"] = remote_devices(servers)
    try:
        model = Model(path, params=model_params, kv_overrides=options["kv_overrides"], tensor_split=options["tensor_split"])
    except ModelLoadError as error:
        raise explained(error, path, model_params, {}) from error
    note_user(servers, model.in_use())
    context_params: dict[str, Any] = {}
    try:
        if options["vocab_only"]:
            return LoadedModel(model, None, None, None, None)
        adapter_set = AdapterSet(model, *adapters)
        context_params = _generation_params(model, options)
        generate = functools.partial(_open_engine, model, model_params, context_params, options)
        if not options["embedding"]:
            return LoadedModel(model, adapter_set, generate(), None, None)
        n_ctx, params = _embedding_params(model, options)
        # what is measured may be of other sizes, and those that do not divide each other end the process
        context_params = {**params, "n_seq_max": 1}
        check_host_memory(model, model_params, context_params)
        from .engine.embedder import Embedder

        embedder = Embedder(model, params, n_ctx, options["batch_invariant"], adapter_set.choose(None))
        return LoadedModel(model, adapter_set, None, embedder, generate)
    except ContextCreationError as error:
        model.close()  # what would fit is a question of what is free without it
        raise explained(error, path, model_params, context_params) from error
    except BaseException:
        model.close()
        raise


def _open_engine(
    model: Model, model_params: Mapping[str, Any], context_params: Mapping[str, Any], options: Mapping[str, Any]
) -> BatchingEngine:
    check_host_memory(model, model_params, context_params)
    from .engine.scheduler import BatchingEngine  # numpy takes longer to import than all the rest

    return BatchingEngine(
        model, context_params, _n_parallel(model, options, 8), options["n_ctx"],
        draft_source=options["draft_model"], n_draft=options["n_draft"], n_gpu_layers=options["n_gpu_layers"],
        batch_invariant=options["batch_invariant"],
        repeatable=options["repeatable"] and (has_gpu() or not options["batch_invariant"]),
    )  # fmt: skip


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

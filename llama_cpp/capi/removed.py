"""Functions that llama.cpp has removed and programs still call, by way of what took their place, with a DeprecationWarning."""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from . import llama

F = TypeVar("F", bound=Callable[..., Any])


def _instead(name: str) -> Callable[[F], F]:
    """Marks a function in whose place another one is to be called."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any) -> Any:
            warnings.warn(f"llama.cpp has removed {function.__name__}(); call {name}().", DeprecationWarning, stacklevel=2)
            return function(*args)

        return call  # type: ignore[return-value]  # with the same parameters

    return decorate


# --- the memory of a context ---


@_instead("llama_get_memory")
def llama_get_kv_self(ctx: Any) -> Any:
    """The context's memory."""
    return llama.llama_get_memory(ctx)


@_instead("llama_memory_clear")
def llama_kv_self_clear(ctx: Any) -> None:
    """Forgets all sequences."""
    llama.llama_memory_clear(llama.llama_get_memory(ctx), True)


@_instead("llama_memory_seq_rm")
def llama_kv_self_seq_rm(ctx: Any, seq_id: int, p0: int, p1: int) -> bool:
    """Forgets a sequence from position ``p0`` on, before ``p1``; negative is without end."""
    return bool(llama.llama_memory_seq_rm(llama.llama_get_memory(ctx), seq_id, p0, p1))


@_instead("llama_memory_seq_cp")
def llama_kv_self_seq_cp(ctx: Any, seq_id_src: int, seq_id_dst: int, p0: int, p1: int) -> None:
    """Copies a part of a sequence to another one."""
    llama.llama_memory_seq_cp(llama.llama_get_memory(ctx), seq_id_src, seq_id_dst, p0, p1)


@_instead("llama_memory_seq_keep")
def llama_kv_self_seq_keep(ctx: Any, seq_id: int) -> None:
    """Forgets all other sequences."""
    llama.llama_memory_seq_keep(llama.llama_get_memory(ctx), seq_id)


@_instead("llama_memory_seq_add")
def llama_kv_self_seq_add(ctx: Any, seq_id: int, p0: int, p1: int, delta: int) -> None:
    """Moves a part of a sequence to other positions."""
    llama.llama_memory_seq_add(llama.llama_get_memory(ctx), seq_id, p0, p1, delta)


@_instead("llama_memory_seq_div")
def llama_kv_self_seq_div(ctx: Any, seq_id: int, p0: int, p1: int, d: int) -> None:
    """Divides the positions of a part of a sequence."""
    llama.llama_memory_seq_div(llama.llama_get_memory(ctx), seq_id, p0, p1, d)


@_instead("llama_memory_seq_pos_min")
def llama_kv_self_seq_pos_min(ctx: Any, seq_id: int) -> int:
    """The first position of a sequence; -1 of none."""
    return int(llama.llama_memory_seq_pos_min(llama.llama_get_memory(ctx), seq_id))


@_instead("llama_memory_seq_pos_max")
def llama_kv_self_seq_pos_max(ctx: Any, seq_id: int) -> int:
    """The last position of a sequence; -1 of none."""
    return int(llama.llama_memory_seq_pos_max(llama.llama_get_memory(ctx), seq_id))


@_instead("llama_memory_can_shift")
def llama_kv_self_can_shift(ctx: Any) -> bool:
    """Whether positions can be moved."""
    return bool(llama.llama_memory_can_shift(llama.llama_get_memory(ctx)))


@_instead("llama_memory_seq_pos_max")
def llama_kv_self_n_tokens(ctx: Any) -> int:
    """How many tokens all sequences have together."""
    memory = llama.llama_get_memory(ctx)
    return sum(
        int(llama.llama_memory_seq_pos_max(memory, seq)) - max(int(llama.llama_memory_seq_pos_min(memory, seq)), 0) + 1
        for seq in range(llama.llama_n_seq_max(ctx)) if llama.llama_memory_seq_pos_max(memory, seq) >= 0
    )  # fmt: skip


@_instead("llama_decode")
def llama_kv_self_defrag(ctx: Any) -> None:
    """Does nothing: the memory is kept in order by itself."""


@_instead("llama_decode")
def llama_kv_self_update(ctx: Any) -> None:
    """Does nothing: changes are made with the next batch."""


llama_kv_cache_clear = llama_kv_self_clear
llama_kv_cache_seq_rm = llama_kv_self_seq_rm
llama_kv_cache_seq_cp = llama_kv_self_seq_cp
llama_kv_cache_seq_keep = llama_kv_self_seq_keep
llama_kv_cache_seq_add = llama_kv_self_seq_add
llama_kv_cache_seq_div = llama_kv_self_seq_div
llama_kv_cache_seq_pos_max = llama_kv_self_seq_pos_max
llama_kv_cache_can_shift = llama_kv_self_can_shift
llama_kv_cache_defrag = llama_kv_self_defrag
llama_kv_cache_update = llama_kv_self_update
llama_get_kv_cache_token_count = llama_kv_self_n_tokens
llama_get_kv_cache_used_cells = llama_kv_self_used_cells = llama_kv_self_n_tokens

# --- adapters, of which a context has a set now ---

_adapters: dict[int, dict[int, float]] = {}


def _address(pointer: Any) -> int:
    found = pointer if isinstance(pointer, int) else ctypes.cast(pointer, ctypes.c_void_p).value
    return found or 0


def _set(ctx: Any, adapters: dict[int, float]) -> int:
    _adapters[_address(ctx)] = adapters
    n = len(adapters)
    pointers = (llama.llama_adapter_lora_p_ctypes * n)(*adapters)
    scales = (ctypes.c_float * n)(*adapters.values())
    return int(llama.llama_set_adapters_lora(ctx, pointers if n else None, n, scales if n else None))


@_instead("llama_set_adapters_lora")
def llama_set_adapter_lora(ctx: Any, adapter: Any, scale: float) -> int:
    """Adds an adapter to those that the context computes with."""
    return _set(ctx, {**_adapters.get(_address(ctx), {}), _address(adapter): scale})


@_instead("llama_set_adapters_lora")
def llama_rm_adapter_lora(ctx: Any, adapter: Any) -> int:
    """Takes an adapter away; -1 if it was not there."""
    there = dict(_adapters.get(_address(ctx), {}))
    if there.pop(_address(adapter), None) is None:
        return -1
    return _set(ctx, there)


@_instead("llama_set_adapters_lora")
def llama_clear_adapter_lora(ctx: Any) -> None:
    """Takes all adapters away."""
    _set(ctx, {})


@_instead("llama_set_adapter_cvec")
def llama_apply_adapter_cvec(ctx: Any, data: Any, len: int, n_embd: int, il_start: int, il_end: int) -> int:
    """Adds a control vector to the layers from ``il_start`` to ``il_end``."""
    return int(llama.llama_set_adapter_cvec(ctx, data, len, n_embd, il_start, il_end))


# --- the rest ---


@_instead("llama_perf_context_print")
def llama_print_timings(ctx: Any) -> None:
    """Logs how long a context has computed."""
    llama.llama_perf_context_print(ctx)


@_instead("llama_perf_context_reset")
def llama_reset_timings(ctx: Any) -> None:
    """Begins to measure anew."""
    llama.llama_perf_context_reset(ctx)


@_instead("llama_sampler_init_greedy")
def llama_sample_token_greedy(ctx: Any, candidates: Any) -> int:
    """The candidate with the greatest logit."""
    array = candidates.contents if hasattr(candidates, "contents") else getattr(candidates, "_obj", candidates)
    best = max(range(array.size), key=lambda i: array.data[i].logit)
    array.selected = best
    return int(array.data[best].id)


@_instead("llama_model_n_params")
def llama_get_model_n_params(model: Any) -> int:
    """How many parameters a model has."""
    return int(llama.llama_model_n_params(model))


@_instead("llama_adapter_lora_init")
def llama_lora_adapter_init(model: Any, path_lora: bytes) -> Any:
    """Loads an adapter."""
    return llama.llama_adapter_lora_init(model, path_lora)


llama_lora_adapter_set = llama_set_adapter_lora
llama_lora_adapter_remove = llama_rm_adapter_lora
llama_lora_adapter_clear = llama_clear_adapter_lora

__all__ = [name for name in dir() if name.startswith("llama_")]

"""What a model and a context take on each device, measured by the engine without loading weights or allocating memory."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..capi import llama
from ..capi import llama_common_c as native
from ..capi.status import call, take_string
from ..errors import ContextCreationError, LlamaCppError, NativeError
from ..models.model import Model, set_fields

_GIB = 1 << 30
_CELLS = 256  # what a context's size is rounded to
_MEASURED = 16 * 1024  # tokens
_one_at_a_time = threading.Lock()  # the engine's log is redirected meanwhile


@dataclass(frozen=True)
class Need:
    """What one device has, and what it would have to hold, in bytes.

    Attributes:
        name: the engine's, such as ``CUDA0``; ``CPU`` is the host's memory.
        weights, context, compute: of the model, of the KV cache and states, and of the largest batch. What a GPU's backend
            sets aside beyond that while it computes is not known before.
    """

    name: str
    free: int
    weights: int
    context: int
    compute: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.context + self.compute


@dataclass(frozen=True)
class Measurement:
    """Needs of all devices; the last one is the host. ``n_layer`` counts the model's layers."""

    needs: tuple[Need, ...]
    n_layer: int


def measure(path: str | os.PathLike[str], model_params: Mapping[str, Any], context_params: Mapping[str, Any]) -> Measurement:
    """Asks the engine what it would allocate.

    A long context is measured by two short ones: its needs grow evenly, and planning alone takes some bytes for each token.

    Args:
        model_params, context_params: fields of ``llama_model_params`` and ``llama_context_params`` by name.

    Raises:
        NativeError: the engine could not even plan it; the log has its reason.
    """
    n_ctx = context_params.get("n_ctx", 0)
    if n_ctx <= _MEASURED:
        return _measure(path, model_params, context_params)
    some = _measure(path, model_params, {**context_params, "n_ctx": _MEASURED // 2})
    more = _measure(path, model_params, {**context_params, "n_ctx": _MEASURED})
    times = (n_ctx - _MEASURED) / (_MEASURED - _MEASURED // 2)

    def grown(one: Need, other: Need) -> Need:
        context = other.context + int(times * (other.context - one.context))
        return replace(other, context=context, compute=other.compute + int(times * (other.compute - one.compute)))

    return replace(more, needs=tuple(map(grown, some.needs, more.needs)))


def _measure(path: str | os.PathLike[str], model_params: Mapping[str, Any], context_params: Mapping[str, Any]) -> Measurement:
    of_model, of_context = llama.llama_model_default_params(), llama.llama_context_default_params()
    set_fields(of_model, model_params)
    set_fields(of_context, context_params)
    result = ctypes.c_char_p()
    with _one_at_a_time:
        call(
            native.llama_common_measure, os.fsencode(path), ctypes.byref(of_model), ctypes.byref(of_context),
            ctypes.byref(result),
        )  # fmt: skip
    found = json.loads(take_string(result))
    needs = [Need(one["name"], one["free"], one["model"], one["context"], one["compute"]) for one in found["devices"]]
    needs[-1] = replace(needs[-1], free=host_memory())
    return Measurement(tuple(needs), found["n_layer"])


def host_memory() -> int:
    """Bytes of main memory that can still be had, by the kernel's account and by the limit of a container."""
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = [1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])]
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, min(free))


def check_host_memory(model: Model, model_params: Mapping[str, Any], context_params: Mapping[str, Any]) -> None:
    """Refuses a context that main memory cannot hold: the kernel would promise it, and end the process when it is used.

    Raises:
        ContextCreationError: with what would fit.
    """
    with model.in_use() as pointer:
        # keys and values of every layer in single precision, as wide as the embedding: hardly ever as much as that
        per_token = 2 * 4 * llama.llama_model_n_layer(pointer) * llama.llama_model_n_embd(pointer)
    # where vectors are computed every token has logits, too, which are not measured
    outputs = 4 * context_params["n_batch"] * model.n_vocab if context_params.get("embeddings") else 0
    mask = 4 * context_params["n_ubatch"] * context_params["n_ctx"]
    if per_token * context_params["n_ctx"] + outputs + mask < host_memory() // 2:
        return
    try:
        need = measure(model.path, model_params, context_params).needs[-1]
    except NativeError:
        return  # then the engine says why
    if need.context + need.compute + outputs > need.free:
        raise ContextCreationError(
            f"A context of {context_params['n_ctx']} tokens does not fit into memory.",
            remedy=what_would_fit(model.path, model_params, context_params) or "Ask for a smaller n_ctx.",
        )


def what_would_fit(path: str | os.PathLike[str], model_params: Mapping[str, Any], context_params: Mapping[str, Any]) -> str:
    """In words: which device is short of memory and what to ask for instead; empty when none seems to be."""
    try:
        found = measure(path, model_params, context_params)
        short = [need for need in found.needs if need.total > need.free]
        if not short:
            return ""
        worst = max(short, key=lambda need: need.total - need.free)
        parts = [f"{name} {value / _GIB:.1f}" for name, value in
                 (("weights", worst.weights), ("context", worst.context), ("compute", worst.compute))]  # fmt: skip
        text = f"{worst.name} has {worst.free / _GIB:.1f} GiB free and would need {worst.total / _GIB:.1f} ({', '.join(parts)}). "
        n_ctx = _context_that_fits(path, model_params, context_params, worst)
        if n_ctx:
            return text + (
                f"n_ctx={n_ctx} would fit." if context_params.get("embeddings") else f"{n_ctx} tokens in all (n_kv) would fit."
            )
        if worst is not found.needs[-1]:
            per_layer = max(worst.weights + worst.context, 1) / (found.n_layer + 1)
            n_layers = max(0, int((worst.free - worst.compute) * 0.95 / per_layer))
            return text + f"n_gpu_layers={min(n_layers, found.n_layer)} would leave the rest to the CPU."
        return text + "A smaller model, or one quantized further, would fit."
    except (LlamaCppError, OSError, MemoryError):
        return ""


def explained(
    error: LlamaCppError, path: str, model_params: Mapping[str, Any], context_params: Mapping[str, Any]
) -> LlamaCppError:
    """The error again, with what would fit where memory was the reason."""
    advice = what_would_fit(path, model_params, context_params)
    if not advice:
        return error
    return type(error)(str(error).removesuffix(error.remedy).strip(), remedy=advice)


def _context_that_fits(
    path: str | os.PathLike[str], model_params: Mapping[str, Any], context_params: Mapping[str, Any], short: Need
) -> int:
    """Tokens that all requests together can have on a device that is short of memory; 0 when that does not help."""
    n_ctx = context_params.get("n_ctx", 0)
    if n_ctx < 2 * _CELLS:
        return 0
    smaller = measure(path, model_params, {**context_params, "n_ctx": n_ctx // 2})
    half = next(need for need in smaller.needs if need.name == short.name)
    per_token = (short.total - half.total) / (n_ctx - n_ctx // 2)
    # some is left for what is not known before
    room = short.free * 0.95 - (short.total - per_token * n_ctx)
    return int(room / per_token) // _CELLS * _CELLS if per_token > 0 and room > 0 else 0

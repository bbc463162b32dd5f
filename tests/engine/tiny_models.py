"""Makes a small model of each kind of memory, with random weights, as a GGUF file.

Only the metadata is written here. Which tensors an architecture has, and of what shape, is asked of the engine, which
names them when it makes a model from metadata alone.
"""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from gguf_writer import ARR, F32, STR, T_F32, T_Q8_0, U32, Array, GGUFBuilder, add_vocabulary
from llama_cpp.capi import ggml, gguf, llama
from llama_cpp.gguf.types import TENSOR_TYPES

N_EMBD, N_HEAD, N_LAYER = 64, 2, 4

_ATTENTION = {"attention.head_count": N_HEAD, "attention.head_count_kv": N_HEAD}
_EXPERTS = {
    "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 64, "expert_shared_count": 1,
    "expert_gating_func": 2, "expert_shared_feed_forward_length": 64, "leading_dense_block_count": 1,
}  # fmt: skip
_STATE = {"ssm.conv_kernel": 4, "ssm.inner_size": 2 * N_EMBD, "ssm.state_size": 16, "ssm.time_step_rank": 4, "ssm.group_count": 1}
_LATENT = {
    "attention.q_lora_rank": 32, "attention.kv_lora_rank": 64, "attention.key_length": 80, "attention.value_length": 64,
    "attention.key_length_mla": 48, "attention.value_length_mla": 32, "rope.dimension_count": 16,
}  # fmt: skip
_PER_LAYER = [N_HEAD if layer % 2 else 0 for layer in range(N_LAYER)]

#: Architecture and metadata of each kind, below the architecture's name.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("qwen3", _ATTENTION),
    "experts": ("qwen3moe", {**_ATTENTION, **_EXPERTS}),
    "window": ("gemma3", {**_ATTENTION, "attention.sliding_window": 32, "block_count": 6}),
    "latent": ("deepseek2", {**_ATTENTION, **_LATENT, **_EXPERTS, "attention.head_count_kv": 1}),
    "state": ("mamba2", _STATE),
    "rwkv": ("rwkv7", {"wkv.head_size": 64, "attention.decay_lora_rank": 16, "attention.iclr_lora_rank": 16,
                       "attention.value_residual_mix_lora_rank": 16, "attention.gate_lora_rank": 16, "token_shift_count": 2}),
    "hybrid": ("granitehybrid", {**_STATE, "attention.head_count": N_HEAD, "attention.head_count_kv": _PER_LAYER}),
    "short convolution": ("lfm2", {"attention.head_count": N_HEAD, "attention.head_count_kv": _PER_LAYER,
                                   "shortconv.l_cache": 3}),
    "own heads": ("qwen35", {**_STATE, **_ATTENTION, "attention.key_length": 32, "attention.value_length": 32,
                             "ssm.state_size": 32, "ssm.inner_size": 128, "ssm.group_count": 2,
                             "rope.dimension_sections": [4, 4, 4, 4],
                             "full_attention_interval": 2, "nextn_predict_layers": 1, "block_count": 5}),
    "encoder": ("bert", _ATTENTION),
}  # fmt: skip

#: Odd ones, which only some tests ask for.
_MODERN = {**_ATTENTION, "attention.sliding_window": 32, "rope.freq_base_swa": 10000.0}
_RELATIVE = {
    **_ATTENTION,
    "attention.relative_buckets_count": 8,
    "attention.key_length": 32,
    "attention.value_length": 32,
    "decoder_start_token_id": 1,
}
ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "places": ("gpt2", {**_ATTENTION, "context_length": 64}),
    "wide vectors": ("qwen3", {**_ATTENTION, "embedding_length_out": 128}),
    "narrow vectors": ("qwen3", {**_ATTENTION, "embedding_length_out": 16}),
    "windows and all": ("modern-bert", _MODERN),
    "one layer": ("modern-bert", {**_MODERN, "block_count": 1}),
    "encoder and decoder": ("t5", _RELATIVE),
}  # fmt: skip


def write(kind: str, path: Path, seed: int = 0, merged: float | None = None, types: dict[str, int] | None = None) -> Path:
    """Writes a model of one of the KINDS, or an odd one; returns the path.

    Args:
        types: of tensors by name (``GGML_TYPE_*``), in place of those that they have otherwise.
        merged: add the adapter of :func:`write_adapter` with the seed 0 to the weights, at this scale, and store them in
            single precision.
    """
    file = _metadata(*{**KINDS, **ODD}[kind])
    shapes: dict[str, tuple[int, ...]] = {}

    @llama.llama_model_set_tensor_data_t
    def note(tensor: Any, _: Any) -> None:
        read = ctypes.cast(tensor, ctypes.POINTER(ggml.ggml_tensor)).contents
        shapes[read.name.decode()] = tuple(read.ne[: max(1, ggml.ggml_n_dims(tensor))])

    data = file.build()
    metadata = gguf.gguf_init_from_buffer(data, len(data), gguf.gguf_init_params(no_alloc=True, ctx=None))
    params = llama.llama_model_default_params()
    params.load_mtp = True
    model = llama.llama_model_init_from_user(metadata, note, None, params)
    assert model, kind
    llama.llama_model_free(model)
    gguf.gguf_free(metadata)
    for name, shape in shapes.items():
        if name.endswith("scale"):
            continue  # of quantized weights
        values = _weights(name, shape, seed)
        if merged and name in _ADAPTED:
            low, high = (_weights(name + part, shape, 0) for part, shape in _pair(shape))
            values = values + merged * ALPHA / RANK * (high.reshape(-1, RANK) @ low.reshape(RANK, -1)).ravel()
        file.tensors[name], file.weights[name] = (shape, T_F32), values.tobytes()
        if merged is None:
            file.tensors[name], file.weights[name] = _stored(name, shape, values)
        if types and name in types:
            file.tensors[name], file.weights[name] = encoded(types[name], shape, values)
    path.write_bytes(file.build())
    return path


def _stored(name: str, shape: tuple[int, ...], values: np.ndarray) -> tuple[tuple[tuple[int, ...], Any], bytes]:
    """A tensor's entry and its bytes: matrices in Q8_0, whose products the engine computes alike in batches of any size."""
    if len(shape) == 1 or shape[0] % 32 or any(part in name for part in _NEVER_QUANTIZED):
        return (shape, T_F32), values.tobytes()
    blocks = values.reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
    numbers = np.rint(blocks / np.maximum(scales.astype(np.float32), 1e-9)).astype(np.int8)
    return (shape, T_Q8_0), np.concatenate([scales.view(np.int8), numbers], axis=1).tobytes()


def encoded(type_id: int, shape: tuple[int, ...], values: np.ndarray) -> tuple[tuple[tuple[int, ...], Any], bytes]:
    """A tensor's entry and its bytes in any type; the numbers are only right where the type can hold them."""
    kind = TENSOR_TYPES[type_id]
    entry = shape, (type_id, kind.block_size, kind.type_size)
    if kind.name in _NUMPY:
        return entry, values.astype(_NUMPY[kind.name]).tobytes()
    if kind.name == "BF16":
        return entry, (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    n_bytes = values.size // kind.block_size * kind.type_size
    if kind.name not in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        return entry, bytes(n_bytes)
    out = (ctypes.c_uint8 * n_bytes)()
    numbers = np.ascontiguousarray(values, np.float32)
    source = numbers.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    ggml.ggml_quantize_chunk(type_id, source, out, 0, values.size // shape[0], shape[0], None)
    return entry, bytes(out)


_NUMPY = {
    "F32": np.float32,
    "F16": np.float16,
    "F64": np.float64,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
}

#: Operations on these want single precision.
_NEVER_QUANTIZED = ("conv", "gate_inp", "lerp", "time_mix_w", "time_mix_a", "time_mix_v1", "time_mix_v2", "time_mix_g", "ssm_a",
                    "ssm_d", "position_embd", "token_types", "r_k")  # fmt: skip

#: Of adapters: they are for dense models.
RANK, ALPHA = 4, 8.0
_ADAPTED = {f"blk.{layer}.{name}.weight" for layer in range(N_LAYER) for name in ("attn_q", "ffn_down")}


def write_adapter(
    path: Path,
    seed: int = 0,
    architecture: str = "qwen3",
    wrong: int = 0,
    types: dict[str, int] | None = None,
    metadata: dict[str, tuple[int, Any]] | None = None,
) -> Path:
    """Writes a LoRA adapter for the dense model; returns the path.

    Args:
        types: as of :func:`write`. metadata: type and value of keys, in place of theirs.
    """
    file = GGUFBuilder()
    file.set("general.architecture", STR, architecture).set("general.type", STR, "adapter")
    file.set("adapter.type", STR, "lora").set("adapter.lora.alpha", F32, ALPHA)
    for name in sorted(_ADAPTED):
        n_in, n_out = (N_EMBD, N_EMBD) if "attn_q" in name else (96, N_EMBD)
        for part, shape in _pair((n_in + wrong, n_out)):
            file.tensors[name + part] = (shape, T_F32)
            file.weights[name + part] = _weights(name + part, shape, seed).tobytes()
            if types and name + part in types:
                values = _weights(name + part, shape, seed)
                file.tensors[name + part], file.weights[name + part] = encoded(types[name + part], shape, values)
    for key, (type_, value) in (metadata or {}).items():
        file.set(key, type_, value)
    path.write_bytes(file.build())
    return path


def _pair(shape: tuple[int, ...]) -> list[tuple[str, tuple[int, int]]]:
    """The two matrices whose product is added to one of this shape."""
    n_in, n_out = shape
    return [(".lora_a", (n_in, RANK)), (".lora_b", (RANK, n_out))]


def _metadata(architecture: str, own: dict[str, Any]) -> GGUFBuilder:
    file = GGUFBuilder()
    file.set("general.architecture", STR, architecture)
    common = {
        "block_count": N_LAYER, "context_length": 512, "embedding_length": N_EMBD, "feed_forward_length": 96,
        "attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-5, "rope.freq_base": 10000.0,
    }  # fmt: skip
    for key, value in {**common, **own}.items():
        if isinstance(value, list):
            file.set(f"{architecture}.{key}", ARR, Array(U32, value))
        else:
            file.set(f"{architecture}.{key}", F32 if isinstance(value, float) else U32, value)
    add_vocabulary(file, "bert" if architecture == "bert" else "llama")
    file.set("tokenizer.ggml.token_type_count", U32, 2)
    return file


def _weights(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Spread so that no greatest logit is close to the next."""
    number = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little")
    values = np.random.default_rng(number).normal(0, 0.3, int(np.prod(shape))).astype(np.float32)
    if "norm" in name:
        values = 1 + values / 10
    if name.endswith("ssm_a"):  # a state decays
        values = -np.abs(values)
    return values

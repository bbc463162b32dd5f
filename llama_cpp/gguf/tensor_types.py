"""Which types of weights the engine can compute with. It asserts on others, or reads beyond their end, at the first token."""

from __future__ import annotations

import re

from .types import TENSOR_TYPES, TensorInfo

F32, F16, BF16, I32 = 0, 1, 30, 26

#: Vectors that are added or multiplied with, which a CPU does in half precision, too
#: (vendor/llama.cpp/patches/0011-small-weights-in-half-precision.patch).
_HALF = frozenset({F32, F16, BF16})
_ADDED = re.compile(r"norm|lerp|\.bias$|\.scale$")

#: Weights of operations that take single precision only: convolutions, states, sinks.
_SINGLE = re.compile(
    r"conv1d|shortconv\.conv|ssm_(a|d|dt)$|\.ssm_(a|d)(\.weight)?$|attn_sinks|rope_f|time_mix_(first|decay|w0|a0|v0|k_k|k_a|r_k)"
)
#: Numbers, and what others are turned into while they are multiplied.
_NO_PRODUCT = {"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"}
#: Tables of numbers.
_TABLES = re.compile(r"tid2eid")


#: Types (``GGML_TYPE_*``) of matrices that can be multiplied with: those that ggml's CPU backend has a product for
#: (``vec_dot``), which a test compares. What a GPU cannot multiply with, the engine does on the CPU.
MATRIX_TYPES = frozenset(type_id for type_id, kind in TENSOR_TYPES.items() if kind.name not in _NO_PRODUCT)


def allowed_types(tensor: TensorInfo) -> frozenset[int]:
    """Types (``GGML_TYPE_*``) that a tensor of this name and shape can have."""
    if _TABLES.search(tensor.name):
        return frozenset({I32})
    if _SINGLE.search(tensor.name):
        return frozenset({F32})
    if len(tensor.shape) == 1 or _ADDED.search(tensor.name):
        return _HALF if _ADDED.search(tensor.name) else frozenset({F32})
    return MATRIX_TYPES

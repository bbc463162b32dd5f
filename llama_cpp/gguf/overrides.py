"""Metadata given in place of the file's (``kv_overrides``), checked against what the engine would do with it.

The engine warns of an override of another type than it reads, or casts it, and goes on with the file's value or with
the rest of the bits; what it takes it trusts. Source: ``llama-model-loader.cpp``.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from ..capi import llama
from ..errors import InvalidArgumentError, MetadataOverrideError
from .types import GGUFFile, ValueType

Override: TypeAlias = bool | int | float | str

_MAX_BYTES = 127  # of a key or a string, without the NUL

_INTEGERS = frozenset(t for t in ValueType if t.name.startswith(("INT", "UINT")))

#: What the engine makes of each kind of value, the types it can stand for, and the field it is passed in.
_KINDS: dict[type, tuple[ValueType, frozenset[ValueType], int, str]] = {
    bool: (ValueType.BOOL, frozenset({ValueType.BOOL}), llama.LLAMA_KV_OVERRIDE_TYPE_BOOL, "val_bool"),
    int: (ValueType.UINT32, _INTEGERS, llama.LLAMA_KV_OVERRIDE_TYPE_INT, "val_i64"),
    float: (
        ValueType.FLOAT32,
        frozenset({ValueType.FLOAT32, ValueType.FLOAT64}),
        llama.LLAMA_KV_OVERRIDE_TYPE_FLOAT,
        "val_f64",
    ),
    str: (ValueType.STRING, frozenset({ValueType.STRING}), llama.LLAMA_KV_OVERRIDE_TYPE_STR, "val_str"),
}

#: Keys that are read per layer: the engine does not look at their override when the file does not have them.
_PER_LAYER = frozenset(
    [
        "attention.head_count",
        "attention.head_count_kv",
        "feed_forward_length",
        "expert_feed_forward_length",
        "expert_used_count",
        "attention.compress_ratios",
        "attention.indexer.types",
        "attention.recurrent_layers",
        "rope.dimension_sections",
        "swiglu_clamp_exp",
        "swiglu_clamp_shexp",
        "xielu.alpha_n",
        "xielu.alpha_p",
        "xielu.beta",
        "xielu.eps",
    ]
)


def check_overrides(overrides: Mapping[str, Override] | None) -> dict[str, Override]:
    """What was given as ``kv_overrides``, as a dictionary.

    Raises:
        InvalidArgumentError: no mapping.
        MetadataOverrideError: a key or a value that cannot be passed on, by key.
    """
    if overrides is None:
        return {}
    if not isinstance(overrides, Mapping):
        raise InvalidArgumentError(f"kv_overrides={overrides!r} must be a mapping from metadata keys to values.")
    for key in overrides:
        if not isinstance(key, str) or not key or not _fits(key):
            raise MetadataOverrideError(key, f"a key is 1 to {_MAX_BYTES} bytes of text without a NUL character")
    return {key: _check_value(key, value) for key, value in overrides.items()}


def apply_overrides(model: GGUFFile, overrides: Mapping[str, Override]) -> GGUFFile:
    """The header as the engine will see it.

    Raises:
        MetadataOverrideError: the engine would not take the override for the file's value.
    """
    metadata, types = dict(model.metadata), dict(model.types)
    for key, value in overrides.items():
        effective, stands_for, _, _ = _KINDS[type(value)]
        stored = types.get(key)
        if key.startswith("split.") or key == "general.alignment":
            raise MetadataOverrideError(key, "it describes the file, not the model")
        if stored is ValueType.ARRAY:
            raise MetadataOverrideError(key, "it is an array, which the engine reads from the file only")
        if stored is None and not _PER_LAYER.isdisjoint((key, key.partition(".")[2])):
            raise MetadataOverrideError(key, "the engine looks it up for each layer, in the file only, which lacks it")
        if stored is not None and stored not in stands_for:
            raise MetadataOverrideError(
                key, f"the file has it as {stored.name}, and the engine ignores {value!r}", remedy=_example(stored)
            )
        metadata[key], types[key] = value, effective
    return dataclasses.replace(model, metadata=metadata, types=types)


def native_overrides(overrides: Mapping[str, Override]) -> Any:
    """The array of ``llama_model_kv_override`` that stands for them, with the empty key that ends it."""
    array = (llama.llama_model_kv_override * (len(overrides) + 1))()
    for entry, (key, value) in zip(array, overrides.items()):
        _, _, entry.tag, field = _KINDS[type(value)]
        entry.key = key.encode()
        setattr(entry, field, value.encode() if isinstance(value, str) else value)
    return ctypes.cast(array, llama.llama_model_kv_override_p)


def _check_value(key: str, value: Any) -> Override:
    if not isinstance(value, tuple(_KINDS)) and hasattr(value, "dtype") and not value.shape:
        value = value.item()  # numpy's
    # bool before int, which it is too
    kind = next((kind for kind in _KINDS if isinstance(value, kind)), None)
    if kind is None:
        raise MetadataOverrideError(key, f"{value!r} is {type(value).__name__}", remedy="Give a bool, an int, a float or a str.")
    if kind is str and not _fits(value):
        raise MetadataOverrideError(key, f"a string has at most {_MAX_BYTES} bytes and no NUL character")
    if kind is int and not 0 <= value < 1 << 32:
        raise MetadataOverrideError(key, f"{value} is not an unsigned number of 32 bits, which the engine reads")
    if kind is float and not math.isfinite(ctypes.c_float(value).value):
        raise MetadataOverrideError(key, f"{value} is not a finite number of 32 bits, which the engine reads")
    checked: Override = kind(value)
    return checked


def _fits(text: str) -> bool:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return False
    return len(data) <= _MAX_BYTES and b"\0" not in data


def _example(stored: ValueType) -> str:
    if stored in _INTEGERS:
        return "Give an int."
    return {ValueType.BOOL: "Give True or False.", ValueType.STRING: "Give a str."}.get(stored, "Give a float, like 1.0.")

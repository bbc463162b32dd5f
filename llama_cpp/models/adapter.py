"""LoRA adapters: small changes to a model's weights, chosen for each request."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from ..capi import llama
from ..capi.handle import Uncopyable
from ..capi.interrupts import DeferredInterrupts
from ..errors import AdapterLoadError, InvalidArgumentError, InvalidGGUFError
from ..gguf import read_gguf
from ..gguf.tensor_types import MATRIX_TYPES
from ..gguf.types import GGUFFile, TensorInfo, ValueType
from ..values import number, refused
from .model import Model

_KEY_TYPES = {
    "general.type": ValueType.STRING,
    "general.architecture": ValueType.STRING,
    "adapter.type": ValueType.STRING,
    "adapter.lora.alpha": ValueType.FLOAT32,
}


class Adapter(Uncopyable):
    """A LoRA adapter of a model (Hu et al. 2021), in the engine's memory for as long as the model is.

    Args:
        path: a GGUF file, as llama.cpp's ``convert_lora_to_gguf.py`` writes it.

    Raises:
        ModelNotFoundError, InvalidGGUFError: the file is not there, or damaged.
        AdapterLoadError: it is not an adapter, or not one of this model.
    """

    def __init__(self, model: Model, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        check_adapter(read_gguf(self.path), model)
        with model.in_use() as pointer, DeferredInterrupts():
            self.pointer = llama.llama_adapter_lora_init(pointer, os.fsencode(self.path))
        if not self.pointer:
            raise AdapterLoadError(
                f"{self.path} is not an adapter of this model.",
                remedy="The log (logger 'llama_cpp.native') has the engine's reason.",
            )


def check_adapter(file: GGUFFile, model: Model) -> None:
    """Checks what the engine asserts on, or trusts, of an adapter.

    Raises:
        InvalidGGUFError: it is none, or has types that the engine ends the process on.
        AdapterLoadError: it was made for another model.
    """

    def invalid(
        what: str, remedy: str = "Convert the adapter again with llama.cpp's convert_lora_to_gguf.py."
    ) -> InvalidGGUFError:
        return InvalidGGUFError(f"{file.path} is not an adapter that can be used: {what}.", remedy=remedy)

    for key, expected in _KEY_TYPES.items():
        actual = file.types.get(key, expected)
        if actual is not expected:
            raise invalid(f"key '{key}' must be of type {expected.name}, but is {actual.name}")
    for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        if file.metadata.get(key) != wanted:
            raise invalid(f"key '{key}' is {file.metadata.get(key)!r}, not {wanted!r}", "Give a LoRA adapter converted to GGUF.")
    if file.architecture != model.architecture:
        raise AdapterLoadError(
            f"{file.path} is an adapter of a model of architecture {file.architecture!r}; this one is {model.architecture!r}."
        )
    pairs: dict[str, dict[str, TensorInfo]] = {}
    for tensor in file.tensors:
        if tensor.name.endswith("_norm.weight"):
            continue  # the engine leaves them out
        name, _, half = tensor.name.rpartition(".")
        if half not in ("lora_a", "lora_b"):
            raise invalid(f"tensor '{tensor.name}' is not one of a LoRA adapter")
        if tensor.type_id not in MATRIX_TYPES:
            raise invalid(f"tensor '{tensor.name}' is of type {tensor.type_name}, which the engine cannot multiply with")
        pairs.setdefault(name, {})[half] = tensor
    for name, pair in pairs.items():
        _check_pair(file, name, pair, model)


def _check_pair(file: GGUFFile, name: str, pair: Mapping[str, TensorInfo], model: Model) -> None:
    """Two matrices whose product has the shape of a tensor of the model; the engine asserts on some that do not."""
    if len(pair) < 2:
        raise InvalidGGUFError(f"{file.path}: of the pair for '{name}' there is only {next(iter(pair.values())).name!r}.")
    base = model.shapes.get(name)
    if base is None:
        raise AdapterLoadError(f"{file.path} has an adapter for '{name}', which the model does not have.")
    a, b, whole = ((*shape, 1, 1, 1, 1)[:4] for shape in (pair["lora_a"].shape, pair["lora_b"].shape, base))
    if name == "token_embd.weight":  # there the first is transposed
        fits = (b[1], a[1], a[0]) == (whole[0], whole[1], b[0]) and a[2:] == b[2:] == whole[2:]
    else:
        fits = (a[0], b[1], a[1]) == (whole[0], whole[1], b[0]) and a[2:] == b[2:] == whole[2:]
    if not fits:
        raise AdapterLoadError(
            f"{file.path}: the pair for '{name}' has the shapes {pair['lora_a'].shape} and {pair['lora_b'].shape}; "
            f"the model's is {base}.",
            remedy="The adapter was made for another model.",
        )


class AdapterSet(Uncopyable):
    """The adapters a model was loaded with, by name.

    Args:
        paths: files by name.
        default: scales by name for requests that do not choose.
    """

    def __init__(self, model: Model, paths: Mapping[str, str | os.PathLike[str]], default: Mapping[str, float]) -> None:
        self._adapters = {name: Adapter(model, path) for name, path in paths.items()}
        self._default = self.choose(default)

    @property
    def names(self) -> list[str]:
        """What a request can choose from."""
        return list(self._adapters)

    def choose(self, scales: Mapping[str, float] | None) -> tuple[tuple[int, float], ...]:
        """Adapters (``llama_adapter_lora *``) with their scales; None takes the default.

        Raises:
            InvalidArgumentError: there is no such adapter, or a scale is not a number.
        """
        if scales is None:
            return self._default
        if not isinstance(scales, Mapping):
            raise InvalidArgumentError(f"lora={scales!r} must be a mapping from adapters' names to scales.")
        for name in scales:
            if name not in self._adapters:
                raise InvalidArgumentError(
                    f"lora names the adapter {name!r}.", remedy=f"This model was loaded with: {', '.join(self.names) or 'none'}."
                )
        factors = {name: number(f"lora[{name!r}]", scale) for name, scale in scales.items()}
        for name, factor in factors.items():
            if not math.isfinite(factor):
                raise refused(f"lora[{name!r}]", factor, "a finite number")
        return tuple(sorted((int(self._adapters[name].pointer or 0), factor) for name, factor in factors.items() if factor))

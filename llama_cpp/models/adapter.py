"""LoRA adapters: small changes to a model's weights, chosen for each request."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from ..capi import llama
from ..capi.interrupts import DeferredInterrupts
from ..errors import AdapterLoadError, InvalidArgumentError, InvalidGGUFError
from .gguf import read_gguf
from .model import Model


class Adapter:
    """A LoRA adapter of a model (Hu et al. 2021), in the engine's memory for as long as the model is.

    Args:
        path: a GGUF file, as llama.cpp's ``convert_lora_to_gguf.py`` writes it.

    Raises:
        ModelNotFoundError, InvalidGGUFError: the file is not there, or damaged.
        AdapterLoadError: it is not an adapter, or not one of this model.
    """

    def __init__(self, model: Model, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        kind = read_gguf(self.path).metadata.get("general.type")
        if kind != "adapter":
            raise InvalidGGUFError(
                f"{self.path} is not an adapter: its general.type is {kind!r}.",
                remedy="Give a LoRA adapter converted with llama.cpp's convert_lora_to_gguf.py.",
            )
        with model.in_use() as pointer, DeferredInterrupts():
            self.pointer = llama.llama_adapter_lora_init(pointer, os.fsencode(self.path))
        if not self.pointer:
            raise AdapterLoadError(
                f"{self.path} is not an adapter of this model.",
                remedy="The log (logger 'llama_cpp.native') has the engine's reason.",
            )


class AdapterSet:
    """The adapters a model was loaded with, by name.

    Args:
        paths: files by name.
        default: scales by name for requests that do not choose.
    """

    def __init__(
        self, model: Model, paths: Mapping[str, str | os.PathLike[str]], default: Mapping[str, float]
    ) -> None:
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
        for name, scale in scales.items():
            if name not in self._adapters:
                raise InvalidArgumentError(
                    f"lora names the adapter {name!r}.", remedy=f"This model was loaded with: {', '.join(self.names) or 'none'}."
                )
            if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
                raise InvalidArgumentError(f"lora[{name!r}]={scale!r} is not a finite number.")
        chosen = ((self._adapters[name].pointer, float(scale)) for name, scale in scales.items() if scale)
        return tuple(sorted(chosen))

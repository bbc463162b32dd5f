"""llama.cpp compiled for the GPU you own, used from Python: a drop-in for llama-cpp-python.

``Llama`` is a model that completes text and holds conversations, ``AsyncLlama`` the same for asyncio. The low-level C API is
here too, under the names of the headers (``llama_cpp.llama_decode``). Nothing is loaded before it is used.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as typing has it, which takes longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any

    from .async_llama import AsyncLlama as AsyncLlama
    from .engine.logits_processors import LogitsProcessor as LogitsProcessor
    from .engine.logits_processors import LogitsProcessorList as LogitsProcessorList
    from .engine.logits_processors import MinTokensLogitsProcessor as MinTokensLogitsProcessor
    from .engine.logits_processors import StoppingCriteria as StoppingCriteria
    from .engine.logits_processors import StoppingCriteriaList as StoppingCriteriaList
    from .engine.prefix_cache.stores import BaseLlamaCache as BaseLlamaCache
    from .engine.prefix_cache.stores import LlamaCache as LlamaCache
    from .engine.prefix_cache.stores import LlamaDiskCache as LlamaDiskCache
    from .engine.prefix_cache.stores import LlamaRAMCache as LlamaRAMCache
    from .llama import Llama as Llama

# the one place; recipe.yaml cannot read it, and a test compares it
__version__ = "0.3.3600"

_HOME = {
    "Llama": ".llama",
    "AsyncLlama": ".async_llama",
    **dict.fromkeys(("BaseLlamaCache", "LlamaCache", "LlamaRAMCache", "LlamaDiskCache"), ".engine.prefix_cache.stores"),
    **dict.fromkeys(
        ("LogitsProcessor", "LogitsProcessorList", "MinTokensLogitsProcessor", "StoppingCriteria", "StoppingCriteriaList"),
        ".engine.logits_processors",
    ),
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name], __name__), name)
    elif name.startswith(("llama_", "ggml_", "gguf_", "LLAMA_", "GGML_", "GGUF_")):
        try:
            value = importlib.import_module(f".{name}", __name__)
        except ModuleNotFoundError:
            value = getattr(importlib.import_module(".llama_cpp", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOME]

"""llama.cpp compiled for the GPU you own, used from Python: a drop-in for llama-cpp-python.

``Llama`` is a model that completes text and holds conversations, ``AsyncLlama`` the same for asyncio. The low-level C API is
here too, under the names of the headers (``llama_cpp.llama_decode``). Nothing is loaded before it is used.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as typing has it, which takes longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any

    from ._internals import LlamaBatch as LlamaBatch
    from .async_llama import AsyncLlama as AsyncLlama
    from .engine.logits_processors import LogitsProcessor as LogitsProcessor
    from .engine.logits_processors import LogitsProcessorList as LogitsProcessorList
    from .engine.logits_processors import MinTokensLogitsProcessor as MinTokensLogitsProcessor
    from .engine.logits_processors import StoppingCriteria as StoppingCriteria
    from .engine.logits_processors import StoppingCriteriaList as StoppingCriteriaList
    from .engine.state import LlamaState as LlamaState
    from .llama import Llama as Llama
    from .llama_cache import BaseLlamaCache as BaseLlamaCache
    from .llama_cache import LlamaCache as LlamaCache
    from .llama_cache import LlamaDiskCache as LlamaDiskCache
    from .llama_cache import LlamaRAMCache as LlamaRAMCache
    from .llama_grammar import LlamaGrammar as LlamaGrammar
    from .llama_speculative import LlamaDraftModel as LlamaDraftModel
    from .llama_speculative import LlamaPromptLookupDecoding as LlamaPromptLookupDecoding
    from .llama_tokenizer import BaseLlamaTokenizer as BaseLlamaTokenizer
    from .llama_tokenizer import LlamaHFTokenizer as LlamaHFTokenizer
    from .llama_tokenizer import LlamaTokenizer as LlamaTokenizer
    from .llama_types import *  # noqa: F403

# the one place; recipe.yaml cannot read it, and a test compares it
__version__ = "0.3.3600"

_HOME = {
    "Llama": ".llama",
    "AsyncLlama": ".async_llama",
    "LlamaState": ".engine.state",
    "LlamaBatch": "._internals",
    "LlamaGrammar": ".llama_grammar",
    **dict.fromkeys(("LlamaDraftModel", "LlamaPromptLookupDecoding"), ".llama_speculative"),
    **dict.fromkeys(("BaseLlamaTokenizer", "LlamaHFTokenizer", "LlamaTokenizer"), ".llama_tokenizer"),
    **dict.fromkeys(("BaseLlamaCache", "LlamaCache", "LlamaRAMCache", "LlamaDiskCache"), ".llama_cache"),
    **dict.fromkeys(
        ("LogitsProcessor", "LogitsProcessorList", "MinTokensLogitsProcessor", "StoppingCriteria", "StoppingCriteriaList"),
        ".engine.logits_processors",
    ),
}
#: Modules that are attributes of the package without having been imported by name.
_MODULES = {
    "llama", "llama_cache", "llama_chat_format", "llama_cpp", "llama_grammar", "llama_speculative", "llama_tokenizer",
    "llama_types", "llava_cpp", "mtmd_cpp", "_ctypes_extensions", "_ggml", "_internals", "_logger", "_utils",
}  # fmt: skip
#: How names of the C API begin, and those that are none of it.
_C_API = ("llama_", "ggml_", "gguf_", "LLAMA_", "GGML_", "GGUF_")
#: How names begin that only :mod:`llama_cpp.llama_types` has.
_TYPES = ("ChatCompletion", "Completion", "Create", "Embedding", "JsonType")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name], __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    elif name.startswith(_C_API):
        value = getattr(importlib.import_module(".llama_cpp", __name__), name)
    elif name.startswith(_TYPES):
        value = getattr(importlib.import_module(".llama_types", __name__), name)
    elif name == "__all__":
        value = _all_names()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def _all_names() -> list[str]:
    """What ``from llama_cpp import *`` brings."""
    modules = [importlib.import_module(f".{name}", __name__) for name in ("llama_cpp", "llama_types")]
    return [*_HOME, *(name for module in modules for name in vars(module) if name.startswith((*_C_API, *_TYPES)))]


def __dir__() -> list[str]:
    return [*globals(), *_HOME, *_MODULES]

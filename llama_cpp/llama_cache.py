"""Caches of what requests have computed, under the names llama-cpp-python's users import."""

from .engine.prefix_cache.stores import BaseLlamaCache, LlamaCache, LlamaDiskCache, LlamaRAMCache

__all__ = ["BaseLlamaCache", "LlamaCache", "LlamaDiskCache", "LlamaRAMCache"]

"""What drafts tokens for a model to check several at once, under the names llama-cpp-python's users import."""

from .engine.speculative.draft_objects import LlamaDraftModel, LlamaPromptLookupDecoding

__all__ = ["LlamaDraftModel", "LlamaPromptLookupDecoding"]

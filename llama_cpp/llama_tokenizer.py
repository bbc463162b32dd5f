"""Tokenizers as objects, under the names llama-cpp-python's users import."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .errors import InvalidArgumentError, MissingPackageError

if TYPE_CHECKING:
    import os

    from .llama import Llama


class BaseLlamaTokenizer(abc.ABC):
    """Turns text into token ids and back; ``Llama(tokenizer=…)`` takes an instance of a subclass."""

    @abc.abstractmethod
    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of UTF-8 text.

        Args:
            add_bos: add BOS (and EOS) where the model's settings ask for it.
            special: read special tokens written out as tokens.
        """

    @abc.abstractmethod
    def detokenize(self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False) -> bytes:
        """UTF-8 bytes of tokens; with ``prev_tokens``, what they add to the text of those."""


class LlamaTokenizer(BaseLlamaTokenizer):
    """A model's own tokenizer.

    Args:
        llama: the model. It lives for as long as its tokenizer.
    """

    def __init__(self, llama: Llama) -> None:
        self._llama = llama
        self._model = llama._model  # what programs of llama-cpp-python's look for here

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """As in :class:`BaseLlamaTokenizer`."""
        return self._llama._tokenize_own(text, add_bos, special)

    def detokenize(self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False) -> bytes:
        """As in :class:`BaseLlamaTokenizer`."""
        return self._llama._detokenize_own(tokens, prev_tokens, special)

    def encode(self, text: str, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of a str."""
        if not isinstance(text, str):
            raise InvalidArgumentError(f"encode() takes a str, not {type(text).__name__}.", remedy="tokenize() takes bytes.")
        return self.tokenize(text.encode("utf-8", "replace"), add_bos=add_bos, special=special)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens; what is no UTF-8 is left out."""
        return self.detokenize(tokens).decode("utf-8", "ignore")

    @classmethod
    def from_ggml_file(cls, path: str | os.PathLike[str]) -> LlamaTokenizer:
        """The tokenizer of a GGUF file, of which nothing else is loaded."""
        from .llama import Llama

        return cls(Llama(path, vocab_only=True))


class LlamaHFTokenizer(BaseLlamaTokenizer):
    """A tokenizer of the Python package ``transformers``, for a GGUF file whose own is damaged or missing.

    Args:
        hf_tokenizer: what ``AutoTokenizer.from_pretrained()`` returns.
    """

    def __init__(self, hf_tokenizer: Any) -> None:
        self.hf_tokenizer = hf_tokenizer

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """As in :class:`BaseLlamaTokenizer`; what it adds comes with ``add_bos``."""
        given = text.decode("utf-8", "replace")
        return list(self.hf_tokenizer.encode(given, add_special_tokens=add_bos, split_special_tokens=not special))

    def detokenize(self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False) -> bytes:
        """As in :class:`BaseLlamaTokenizer`."""
        before = list(prev_tokens) if prev_tokens is not None else []
        whole = self._decode([*before, *tokens], special)
        return whole[len(self._decode(before, special)) :] if before else whole

    def _decode(self, tokens: list[int], special: bool) -> bytes:
        text: str = self.hf_tokenizer.decode(tokens, skip_special_tokens=not special)
        return text.encode("utf-8", "replace")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str) -> LlamaHFTokenizer:
        """Loads one from a folder, or from the Hugging Face hub.

        Raises:
            MissingPackageError: ``transformers`` is not installed.
        """
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise MissingPackageError(
                "LlamaHFTokenizer needs the package transformers.", remedy="pip install transformers"
            ) from error
        return cls(AutoTokenizer.from_pretrained(pretrained_model_name_or_path=pretrained_model_name_or_path))


__all__ = ["BaseLlamaTokenizer", "LlamaHFTokenizer", "LlamaTokenizer"]

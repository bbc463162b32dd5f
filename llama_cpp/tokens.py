"""Texts into token ids and back, as callers ask for it."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import InvalidArgumentError
from .models.model import Model
from .values import flag, token_ids


def tokenize(model: Model, text: bytes, add_bos: bool, special: bool) -> list[int]:
    """Token ids of UTF-8 text.

    Raises:
        InvalidArgumentError: it is not bytes.
    """
    if not isinstance(text, (bytes, bytearray)):
        raise InvalidArgumentError(f"tokenize() takes bytes, not {type(text).__name__}.", remedy='Call text.encode("utf-8").')
    return model.tokenize(bytes(text), add_special=flag("add_bos", add_bos), parse_special=flag("special", special))


def detokenize(model: Model, tokens: Sequence[int], prev_tokens: Sequence[int] | None, special: bool) -> bytes:
    """UTF-8 bytes of tokens; with ``prev_tokens``, what they add to the text of those."""
    special = flag("special", special)
    tokens, earlier = token_ids("tokens", tokens), [] if prev_tokens is None else token_ids("prev_tokens", prev_tokens)
    if not earlier:
        return model.detokenize(tokens, special=special)
    before = model.detokenize(earlier, special=special)
    return model.detokenize([*earlier, *tokens], special=special)[len(before) :]

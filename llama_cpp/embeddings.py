"""What ``embed()`` and ``create_embedding()`` take and give: texts to token ids, vectors to lists."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .capi import llama as capi
from .errors import ContextLengthError, InvalidArgumentError, TokenizationError
from .models.model import Model
from .values import items, refused, token_ids

if TYPE_CHECKING:
    import numpy as np

    from .model_loading import LoadedModel

#: A text: itself, or its token ids.
Text = str | Sequence[int]


def read_texts(given: Any) -> tuple[list[Text], bool]:
    """A list of texts, and whether it is one text that was given.

    Raises:
        InvalidArgumentError: it is neither.
    """
    if isinstance(given, str):
        return [given], True
    given_items = items("input", given, "a str, token ids, or a list of either")
    if given_items and not any(isinstance(item, Iterable) and getattr(item, "shape", True) for item in given_items):
        return [token_ids("input", given_items)], True
    found: list[Text] = []
    for number, text in enumerate(given_items):
        if not isinstance(text, str) and (isinstance(text, (bytes, bytearray, Mapping)) or not isinstance(text, Iterable)):
            raise InvalidArgumentError(f"input[{number}] is neither a str nor a list of token ids.")
        found.append(text if isinstance(text, str) else token_ids(f"input[{number}]", text))
    return found, False


def tokens_of(model: Model, text: Text, n_ctx: int, truncate: bool) -> list[int]:
    """Token ids of a text, no more than n_ctx.

    Args:
        truncate: leave out what is too much; what ends a text (EOS, SEP) stays at its end.

    Raises:
        ContextLengthError: it is too long. InvalidArgumentError: there is nothing, or not of this vocabulary. TokenizationError.
    """
    if isinstance(text, str):
        tokens = model.tokenize(text.encode("utf-8", "replace"), add_special=True, parse_special=False)
        if -1 in tokens:
            raise TokenizationError("The vocabulary has no token for a part of the text, nor one for what is unknown.")
    else:
        tokens = list(text)
    if not tokens:
        raise InvalidArgumentError("A text has no tokens.", remedy="Leave it out.")
    model.check_tokens(tokens)
    if len(tokens) <= n_ctx:
        return tokens
    if not truncate:
        raise ContextLengthError(len(tokens), n_ctx, answered=False)
    last = tokens[-1:] if tokens[-1] in model.closing_tokens else []
    return tokens[: n_ctx - len(last)] + last


def listed(vectors: list[np.ndarray], normalize: bool, pooling_type: int) -> list[Any]:
    """Vectors as lists of floats; of single tokens, as lists of such lists. ``normalize``: scaled to a length of 1 (L2)."""
    import numpy as np

    if normalize and pooling_type != capi.LLAMA_POOLING_TYPE_RANK:
        lengths = [np.linalg.norm(vector.astype(np.float64), axis=-1, keepdims=True) for vector in vectors]
        vectors = [vector / np.where(length == 0, 1, length) for vector, length in zip(vectors, lengths)]
    return [vector.tolist() for vector in vectors]


@dataclass(frozen=True)
class Texts:
    """Texts ready to be turned into vectors.

    Attributes:
        tokens: token ids of each. single: whether one text was given, and not a list.
    """

    tokens: list[list[int]]
    single: bool

    @property
    def n_tokens(self) -> int:
        """Tokens of all of them."""
        return sum(map(len, self.tokens))


def read(loaded: LoadedModel, given: Any, truncate: bool) -> Texts:
    """Texts as token ids.

    Args:
        truncate: leave out the end of a text that is too long, instead of raising.

    Raises:
        InvalidArgumentError: what was given, or the model was not loaded for vectors. ContextLengthError, TokenizationError.
    """
    model, embedder = loaded.model, loaded.embedder
    texts, single = read_texts(given)
    return Texts([tokens_of(model, text, embedder.n_ctx, truncate) for text in texts], single)


def output(loaded: LoadedModel, texts: Texts, vectors: list[np.ndarray], normalize: bool, return_count: bool) -> Any:
    """What ``embed()`` returns."""
    found = listed(vectors, normalize, loaded.embedder.pooling_type)
    result = found[0] if texts.single else found
    return (result, texts.n_tokens) if return_count else result


def read_encoding(given: Any) -> str:
    """How OpenAI's API is to write vectors: "float" or "base64".

    Raises:
        InvalidArgumentError: something else.
    """
    if given not in ("float", "base64"):
        raise refused("encoding_format", given, '"float" or "base64"')
    return str(given)


def response(loaded: LoadedModel, texts: Texts, vectors: list[np.ndarray], model: str, encoding: str = "float") -> dict[str, Any]:
    """What OpenAI's API answers; ``model`` is the name that it gives. With "base64" a vector is its float32, little-endian."""
    found: list[Any]
    if encoding == "base64":
        found = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    else:
        found = listed(vectors, False, loaded.embedder.pooling_type)
    data = [{"object": "embedding", "embedding": vector, "index": index} for index, vector in enumerate(found)]
    usage = {"prompt_tokens": texts.n_tokens, "total_tokens": texts.n_tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}

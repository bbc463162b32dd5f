"""Functions of the caller that are asked about every token of a request: other logits, or whether the text ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

#: From all tokens so far (int64) and the logits of the next one (float32, ``n_vocab``) to other logits.
LogitsProcessor = Callable[["np.ndarray", "np.ndarray"], "np.ndarray"]
#: From the same to whether the text ends here, without the next token.
StoppingCriteria = Callable[["np.ndarray", "np.ndarray"], bool]


class LogitsProcessorList(list[LogitsProcessor]):
    """Logits processors, one after the other."""

    def __call__(self, tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        for processor in self:
            logits = processor(tokens, logits)
        return logits


class StoppingCriteriaList(list[StoppingCriteria]):
    """Stopping criteria, one of which is enough."""

    def __call__(self, tokens: np.ndarray, logits: np.ndarray) -> bool:
        return any(criterion(tokens, logits) for criterion in self)


class MinTokensLogitsProcessor:
    """Forbids the end of the text until so many tokens were generated. One is for one request.

    Args:
        min_tokens: how many.
        token_eos: the token that ends a text (``Llama.token_eos()``).
    """

    def __init__(self, min_tokens: int, token_eos: int) -> None:
        self.min_tokens, self.token_eos = min_tokens, token_eos
        self._n_last: int | None = None
        self._n_generated = 0

    def __call__(self, tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        n = len(tokens)
        if self._n_last is not None:
            # a context that was shifted has fewer tokens than before, one of which is new
            self._n_generated += n - self._n_last if n >= self._n_last else 1
        self._n_last = n
        if self._n_generated < self.min_tokens:
            logits[self.token_eos] = float("-inf")
        return logits

"""Drafts by objects of the caller's, as llama-cpp-python has them."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

from ...errors import InvalidArgumentError
from ...values import integer

if TYPE_CHECKING:
    import numpy as np


class LlamaDraftModel(abc.ABC):
    """Drafts what follows: ``Llama(draft_model=…)`` takes an instance of a subclass.

    Example:
        >>> class Repeats(LlamaDraftModel):
        ...     def __call__(self, input_ids, /, **kwargs):
        ...         return input_ids[-5:]  # what came last comes again
    """

    @abc.abstractmethod
    def __call__(self, input_ids: np.ndarray, /, **kwargs: Any) -> np.ndarray:
        """Token ids that may follow.

        It runs in the engine's thread, between batches, and never for two requests at once. What it raises is logged, and the
        model goes on without it: a draft changes no answer.

        Args:
            input_ids: all tokens so far, int32, (n,).

        Returns:
            Token ids, (m,), m from 0 on.
        """


class LlamaPromptLookupDecoding(LlamaDraftModel):
    """Drafts what followed the last tokens where they came before (Saxena 2023).

    As an argument of ``Llama`` it stands for ``draft_model="prompt-lookup"``, which does it in C++.

    Args:
        max_ngram_size: how many last tokens are looked for, at most.
        num_pred_tokens: how many tokens are drafted, at most.

    Raises:
        InvalidArgumentError: one of them is no whole number, or less than 1.
    """

    def __init__(self, max_ngram_size: int = 2, num_pred_tokens: int = 10) -> None:
        self.max_ngram_size = integer("max_ngram_size", max_ngram_size, 1)
        self.num_pred_tokens = integer("num_pred_tokens", num_pred_tokens, 1)

    def __call__(self, input_ids: np.ndarray, /, **kwargs: Any) -> np.ndarray:
        """As in :class:`LlamaDraftModel`."""
        return self.find_candidate_pred_tokens(input_ids, self.max_ngram_size, self.num_pred_tokens)

    @staticmethod
    def find_candidate_pred_tokens(input_ids: np.ndarray, max_ngram_size: int, num_pred_tokens: int) -> np.ndarray:
        """What followed the last tokens where they came first, the longest of them that came before; int32, (m,)."""
        import numpy as np

        tokens = np.asarray(input_ids, np.intc)
        for size in range(min(max_ngram_size, len(tokens) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(tokens[:-1], size)
            found = np.flatnonzero((windows == tokens[-size:]).all(axis=1))
            if len(found):
                start = int(found[0]) + size
                following: np.ndarray = tokens[start : start + num_pred_tokens].copy()
                return following
        return np.empty(0, np.intc)


def read_draft(drafted: Any, n_vocab: int, n_most: int) -> list[int]:
    """The token ids that an object drafted, ``n_most`` at most.

    Raises:
        InvalidArgumentError: they are none of this vocabulary.
    """
    import numpy as np

    found = np.asarray(drafted)
    if found.size == 0:
        return []
    if found.ndim != 1 or found.dtype.kind not in "iu" or not ((found >= 0) & (found < n_vocab)).all():
        raise InvalidArgumentError("draft_model returned something else than token ids of this vocabulary.")
    return [int(token) for token in found[:n_most]]

"""What a kind of memory allows: where a sequence can be cut, and so how much of a cached one serves a new request."""

from __future__ import annotations

from ..capi import llama
from ..models.model import Model
from .decoder import Decoder


class FullAttention:
    """Every token's keys and values are there and stand for themselves: a sequence can be cut anywhere."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def usable(self, sequence: int, n_held: int, n_common: int) -> int:
        """How many of the first ``n_common`` tokens of a sequence that holds ``n_held`` another one can begin with."""
        return n_common


class SlidingWindow(FullAttention):
    """Some layers only keep the last tokens: the token after a cut must find all that it looks back at."""

    def usable(self, sequence: int, n_held: int, n_common: int) -> int:
        """As in :class:`FullAttention`."""
        oldest = self._decoder.oldest(sequence)
        return n_common if oldest <= max(0, n_common - self._decoder.n_window) else 0


class Recurrent(FullAttention):
    """A state that every token changed (recurrent and hybrid models): only the whole of a sequence can be continued."""

    def usable(self, sequence: int, n_held: int, n_common: int) -> int:
        """As in :class:`FullAttention`."""
        return n_held if n_common == n_held else 0


def kind_of(decoder: Decoder) -> FullAttention:
    """The kind that a model's memory is of."""
    if not decoder.unlimited_cut:
        return Recurrent(decoder)
    return SlidingWindow(decoder) if decoder.n_window else FullAttention(decoder)


def pays_per_sequence(model: Model) -> bool:
    """Whether memory is set aside for each possible sequence, used or not: for windows and states it is."""
    with model.in_use() as pointer:
        return bool(
            llama.llama_model_is_recurrent(pointer)
            or llama.llama_model_is_hybrid(pointer)
            or llama.llama_model_n_swa(pointer)
        )

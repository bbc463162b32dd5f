"""What a kind of memory allows: where a sequence can be cut, and so how much of a cached one serves a new request.

Memories that cannot be cut anywhere are copied to the host at a few places instead (checkpoints), from which a sequence
can be continued later.
"""

from __future__ import annotations

import collections
import logging

import numpy as np

from ..capi import llama
from ..errors import NativeError
from ..models.model import Model
from .decoder import Decoder, can_be_cut

logger = logging.getLogger("llama_cpp")

#: What all checkpoints of a context may take, in bytes of host memory.
CHECKPOINT_BYTES = 1 << 30
#: So many tokens before a prompt's end: what opens the answer often differs the next time, and the last token is always
#: computed for its logits.
BEFORE_THE_END = 4


class FullAttention:
    """Every token's keys and values are there and stand for themselves: a sequence can be cut anywhere.

    Attributes:
        whole: a copy of it serves only as a whole.
        in_order: a sequence that was cut, or is continued from a checkpoint, lies in cells as it would without.
    """

    whole = False
    in_order = True

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def usable(self, sequence: int, n_common: int) -> int:
        """How many of the first ``n_common`` tokens of a sequence another one can begin with."""
        return n_common

    def stops(self, n_held: int, n_common: int, n_prompt: int) -> list[int]:
        """Where to take checkpoints while a prompt is read, in order.

        Args:
            n_held: how much of it is there already.
            n_common: how much of it some earlier request had, too.
        """
        return []

    def checkpoint(self, sequence: int, n_held: int) -> None:
        """Keeps what a sequence of ``n_held`` tokens holds."""

    def copy(self, source: int, target: int, n: int) -> bool:
        """Lets the empty sequence ``target`` begin like ``source``, of which the first ``n`` tokens are usable.

        Returns:
            False when that was not possible.
        """
        self._decoder.copy(source, target)
        return True

    def cut(self, sequence: int, n: int) -> bool:
        """Forgets all but the first ``n`` tokens, which are usable; False when the memory could not."""
        return self._decoder.cut(sequence, n)

    def take_back(self, sequence: int, n: int) -> bool:
        """Forgets the last few tokens of a sequence, all but ``n``; False when that left nothing that can be used."""
        return self._decoder.cut(sequence, n)

    def trim(self, sequence: int, n: int) -> None:
        """Gives up what is not going to serve anybody: all but the first ``n`` tokens."""
        self._decoder.cut(sequence, n)

    def forget(self, sequence: int) -> None:
        """Empties a sequence."""
        self._decoder.forget(sequence)


class Checkpointed(FullAttention):
    """A sequence can be cut only where it is ``intact``, or where a checkpoint was taken."""

    whole = True

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder)
        # by sequence and number of tokens; the least recently used first
        self._checkpoints: collections.OrderedDict[tuple[int, int], np.ndarray] = collections.OrderedDict()

    def intact(self, sequence: int, n: int) -> bool:
        """Whether the first ``n`` tokens can be continued as the sequence is now."""
        raise NotImplementedError

    def usable(self, sequence: int, n_common: int) -> int:
        """As in :class:`FullAttention`."""
        if self.intact(sequence, n_common):
            return n_common
        return max((n for owner, n in self._checkpoints if owner == sequence and n <= n_common), default=0)

    def stops(self, n_held: int, n_common: int, n_prompt: int) -> list[int]:
        """As in :class:`FullAttention`: where requests parted, others will, and before a prompt's end."""
        return sorted(n for n in {n_common, n_prompt - BEFORE_THE_END} if n_held < n < n_prompt)

    def checkpoint(self, sequence: int, n_held: int) -> None:
        """As in :class:`FullAttention`."""
        try:
            state = self._decoder.save(sequence, partial=True)
        except (NativeError, MemoryError) as error:
            logger.warning("a checkpoint could not be taken (%s); going on without", error)
            return
        if 0 < len(state) <= CHECKPOINT_BYTES:
            self._checkpoints[sequence, n_held] = state
        while sum(map(len, self._checkpoints.values())) > CHECKPOINT_BYTES:
            self._checkpoints.popitem(last=False)

    def copy(self, source: int, target: int, n: int) -> bool:
        """As in :class:`FullAttention`."""
        if self.intact(source, n):
            super().copy(source, target, n)
        elif not self._decoder.copy_now(source, target):
            # at once, because the cut restores a checkpoint, and a copy between streams would come after that
            return False
        shared = {(target, n): state for (owner, n), state in self._checkpoints.items() if owner == source}
        self._checkpoints.update(shared)
        return True

    def cut(self, sequence: int, n: int) -> bool:
        """As in :class:`FullAttention`."""
        if not self.intact(sequence, n):
            self._checkpoints.move_to_end((sequence, n))
            if not self._decoder.restore(sequence, self._checkpoints[sequence, n], partial=True):
                return False
        self._drop_after(sequence, n)
        return super().cut(sequence, n)

    def take_back(self, sequence: int, n: int) -> bool:
        """As in :class:`FullAttention`."""
        if self._decoder.cut(sequence, n) and self.intact(sequence, n):
            return True
        self.forget(sequence)
        return False

    def trim(self, sequence: int, n: int) -> None:
        """As in :class:`FullAttention`; it goes when a checkpoint is restored."""

    def forget(self, sequence: int) -> None:
        """As in :class:`FullAttention`."""
        self._drop_after(sequence, 0)
        super().forget(sequence)

    def _drop_after(self, sequence: int, n_held: int) -> None:
        for key in [(owner, n) for owner, n in self._checkpoints if owner == sequence and n > n_held]:
            del self._checkpoints[key]


class SlidingWindow(Checkpointed):
    """Some layers only keep the last tokens: the token after a cut must find all that it looks back at."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder)
        # else new tokens take the cells of those that are left behind, wherever these are
        self.in_order = decoder.keeps_all

    def stops(self, n_held: int, n_common: int, n_prompt: int) -> list[int]:
        """As in :class:`Checkpointed`; none where those layers have room for all tokens, too, and so forget nothing."""
        return [] if self._decoder.keeps_all else super().stops(n_held, n_common, n_prompt)

    def intact(self, sequence: int, n: int) -> bool:
        """As in :class:`Checkpointed`."""
        return 0 <= self._decoder.oldest(sequence) <= max(0, n - self._decoder.n_window + 1)


class Recurrent(Checkpointed):
    """A state that every token changed (recurrent and hybrid models): it can be continued, and not taken back.

    Only after drafts that were wrong the engine goes back a few tokens, and then the sequence itself must go on: a copy
    would be of the state that was left.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder)
        self._taken_back: dict[int, int] = {}  # of a sequence: to how many tokens

    def intact(self, sequence: int, n: int) -> bool:
        """As in :class:`Checkpointed`."""
        return self._decoder.newest(sequence) == n - 1 and self._taken_back.get(sequence) != n

    def take_back(self, sequence: int, n: int) -> bool:
        """As in :class:`FullAttention`."""
        self._taken_back.pop(sequence, None)
        done = super().take_back(sequence, n)
        if done:
            self._taken_back[sequence] = n
        return done

    def _drop_after(self, sequence: int, n_held: int) -> None:
        super()._drop_after(sequence, n_held)
        self._taken_back.pop(sequence, None)


def cache_kind_of(decoder: Decoder) -> FullAttention:
    """The kind that a model's memory is of."""
    if not decoder.unlimited_cut:
        return Recurrent(decoder)
    return SlidingWindow(decoder) if decoder.n_window else FullAttention(decoder)


def pays_per_sequence(model: Model) -> bool:
    """Whether memory is set aside for each possible sequence, used or not: for windows and states it is."""
    with model.in_use() as pointer:
        return not can_be_cut(model) or llama.llama_model_n_swa(pointer) > 0

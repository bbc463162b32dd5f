"""Drafts of following tokens, for as long as they can be had: places for them in a batch, and which of them were right."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from ...errors import NativeError
from ..batches import BatchPart, Slot
from ..sampling import Statistics
from .drafter import Drafter

logger = logging.getLogger("llama_cpp")


class Verifier:
    """What the engine knows of drafts. What drafts may fail: then it goes on without, and what is sampled stays the same.

    Args:
        speculator: what drafts; None for nothing.
        statistics: where to count.
        sample: samples a token for each output, a request and its row.
        rollback: removes from a sequence what was computed of a draft and is not its own.
    """

    def __init__(
        self,
        drafter: Drafter | None,
        statistics: Statistics,
        sample: Callable[[Sequence[tuple[Slot, int]]], None],
        rollback: Callable[[Slot], None],
    ) -> None:
        self._drafter = drafter
        self._statistics = statistics
        self._sample, self._rollback = sample, rollback
        self._no_room = False

    @property
    def wanted(self) -> bool:
        """Whether there may be drafts."""
        return self._drafter is not None

    def close(self) -> None:
        """Frees what drafts."""
        if self._drafter is not None:
            self._drafter.close()
            self._drafter = None

    def draft(self, slots: Sequence[Slot], n_ctx: int) -> int:
        """Lets what follows the next tokens be drafted; returns how many places for that each sequence has in a batch."""
        no_room, self._no_room = self._no_room, False
        if self._drafter is None or no_room:
            return 0
        try:
            return self._drafter.draft(slots, n_ctx)
        except (NativeError, MemoryError) as error:
            self._give_up(error, slots)
            return 0

    def drop_drafts(self, parts: Sequence[BatchPart]) -> bool:
        """The cache has no room for a batch: leaves out its drafts, and any in the next one; False when there are none."""
        drafting = [part.slot for part in parts if part.slot and part.slot.draft]
        for slot in drafting:
            slot.draft = []
        self._no_room = bool(drafting)
        return self._no_room

    def process(self, n_tokens: int, slots: Sequence[Slot]) -> None:
        """Shows what drafts a batch that was computed."""
        if self._drafter is not None:
            try:
                self._drafter.process(n_tokens)
            except (NativeError, MemoryError) as error:
                self._give_up(error, slots)

    def verify(self, outputs: Sequence[tuple[Slot, int]]) -> None:
        """Samples tokens, and goes on in what was drafted for as long as that is what was sampled."""
        drafts = {slot: len(slot.draft) for slot, _ in outputs if slot.draft}
        n_accepted = dict.fromkeys(drafts, 0)
        left = list(outputs)
        while left:
            self._sample(left)
            following = []
            for slot, row in left:
                if slot.accept_draft():
                    n_accepted[slot] += 1
                    following.append((slot, row + 1))
                else:
                    self._rollback(slot)
            left = following
        for slot, n in drafts.items():
            if self._drafter is not None:
                self._drafter.learn(slot, n, n_accepted[slot])
            self._statistics.n_drafted += n
            self._statistics.n_accepted += n_accepted[slot]

    def note_time(self, n_sequences: int, n_tokens: int, seconds: float) -> None:
        """Notes how long a batch took in which so many sequences generated so many tokens; 0 when prompts were read in it."""
        if self._drafter is not None:
            self._drafter.note_time(n_sequences, n_tokens, seconds)

    def _give_up(self, error: Exception, slots: Sequence[Slot]) -> None:
        logger.error("drafting tokens failed (%s); going on without", error)
        self.close()
        for slot in slots:
            slot.draft = []

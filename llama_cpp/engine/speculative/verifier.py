"""Drafts of following tokens, for as long as they can be had: places for them in a batch, and how many were accepted."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ...errors import NativeError
from ..batches import BatchPart
from ..sampling import Statistics
from ..slots import Slot
from .drafter import Drafter

logger = logging.getLogger("llama_cpp")


class Verifier:
    """What the engine knows of drafts. What drafts may fail: then it goes on without, and what is sampled stays the same.

    Args:
        drafter: what drafts; None for nothing.
        statistics: where to count.
    """

    def __init__(self, drafter: Drafter | None, statistics: Statistics) -> None:
        self._drafter = drafter
        self._statistics = statistics
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

    def learn(self, slot: Slot, n_drafted: int, n_accepted: int) -> None:
        """Notes how many tokens of a draft were accepted."""
        if self._drafter is not None:
            self._drafter.learn(slot, n_drafted, n_accepted)
        self._statistics.n_drafted += n_drafted
        self._statistics.n_accepted += n_accepted

    def note_time(self, n_sequences: int, n_tokens: int, seconds: float) -> None:
        """Notes how long a batch took in which so many sequences generated so many tokens; 0 when prompts were read in it."""
        if self._drafter is not None:
            self._drafter.note_time(n_sequences, n_tokens, seconds)

    def _give_up(self, error: Exception, slots: Sequence[Slot]) -> None:
        logger.error("drafting tokens failed (%s); going on without", error)
        self.close()
        for slot in slots:
            slot.draft = []

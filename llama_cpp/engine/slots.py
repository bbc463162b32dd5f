"""A slot: a request in a sequence, and everything that changes about it while it runs."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .requests import Request


class SlotState(enum.Enum):
    """What a slot is doing. A request that waits has none yet."""

    PREFILLING = "prefilling"
    """Tokens of its prompt are not computed yet, or none of its answer is sampled."""
    GENERATING = "generating"
    """The token sampled last is computed next."""
    DEFERRED = "sampling deferred"
    """All is computed, and another thread samples what follows."""
    FINISHED = "finished"
    """Its sequence was given back."""


class Rewindable(Protocol):
    """What can forget the end of a sequence, as :class:`~.sequence_pool.PerSequencePool` can."""

    def take_back(self, sequence: int, n: int) -> bool:
        """Forgets what a sequence holds after its first ``n`` tokens; False when it holds nothing any more."""
        ...


@dataclass(eq=False, slots=True)
class Slot:
    """A request in a sequence, which holds the first ``n_held`` of its tokens, ``n_shared`` of them in others' cells.

    While its prompt is read, batches end at each of the ``stops``. While it generates, its next token can be followed by
    a ``draft``; what was computed of that (``n_ahead`` tokens) is held once it was accepted.

    The first ``n_whole`` tokens were read in whole batches that had nothing else in them, as they always are. ``alone`` is
    False once another request has run beside it.

    Between two steps the sequence's cells hold ``n_held + n_ahead`` tokens. Ahead may also be the token that was sampled last,
    where a batch of it was begun; it is held as soon as that batch is waited for. Whoever ends, or is deferred, first has what
    is ahead rolled back.

    Batches end before a media chunk of its prompt, too, which begins with the cell ``next_media``. Its next cell has the position
    ``n_held + n_skew``: media can take fewer positions than cells.
    """

    request: Request
    sequence: int
    n_held: int
    stops: list[int]
    n_shared: int = 0
    draft: list[int] = field(default_factory=list)
    n_ahead: int = 0
    n_whole: int = 0
    alone: bool = True
    finished: bool = False
    next_media: int = -1
    n_skew: int = 0

    def __post_init__(self) -> None:
        if self.request.prompt.media:
            self._look_for_media()

    def _look_for_media(self) -> None:
        prompt = self.request.prompt
        self.next_media, self.n_skew = prompt.next_media(self.n_held), prompt.position(self.n_held) - self.n_held

    @property
    def n_pending(self) -> int:
        """Tokens that are not computed yet: 1 while it generates, 0 while it is deferred, more while its prompt is read."""
        return len(self.request.tokens) - self.n_held

    @property
    def state(self) -> SlotState:
        """What it is doing, between two steps."""
        if self.finished:
            return SlotState.FINISHED
        if self.n_pending == 0:
            return SlotState.DEFERRED
        return SlotState.GENERATING if self.n_pending == 1 and self.request.generation.tokens else SlotState.PREFILLING

    # --- what a batch changes ---

    def advance(self, n: int, n_ahead: int = 0) -> bool:
        """``n`` more tokens are held, with ``n_ahead`` of a draft after them; True where a checkpoint is to be taken now."""
        self.n_held += n
        self.n_ahead = n_ahead
        if self.stops and self.n_held == self.stops[0]:
            del self.stops[0]
            return True
        return False

    def advance_media(self) -> None:
        """The media chunk that comes next is computed."""
        self.n_held += self.request.prompt.media[self.next_media].n_tokens
        self._look_for_media()

    def advance_whole(self, start: int, n: int, n_batch: int) -> None:
        """A batch had ``n`` tokens from ``start`` on and nothing else in it; whether it was a whole one like all before."""
        if n == n_batch and start == self.n_whole:
            self.n_whole += n_batch

    def advance_steps(self, tokens: Sequence[int], n_held: int, n_ahead: int) -> None:
        """These tokens were sampled and handed out in multi-step decoding; ``n_held`` of them are computed, too."""
        for token in tokens:
            self.request.count(token)
        self.request.n_left -= len(tokens)
        self.n_held += n_held
        self.n_ahead = n_ahead

    def accept_draft(self) -> bool:
        """Whether the token sampled last was drafted, so that what follows it is computed already; it is held then."""
        if not (self.n_ahead and self.draft and self.n_pending == 1 and self.request.tokens[-1] == self.draft[0]):
            return False
        del self.draft[0]
        self.n_held += 1
        self.n_ahead -= 1
        return True

    def rollback(self, pool: Rewindable) -> None:
        """Removes from its sequence what was computed of a draft and was not accepted."""
        if self.n_ahead and not pool.take_back(self.sequence, self.n_held):
            self.n_held = 0  # to be computed once more
        self.draft, self.n_ahead = [], 0

    def lose(self) -> None:
        """Nobody knows what its sequence holds."""
        self.n_held = self.n_ahead = 0

    def shift(self, n_kept: int, n: int) -> None:
        """Its tokens after the first ``n_kept`` lose the next ``n``: what remains was computed with them in sight."""
        request = self.request
        del request.tokens[n_kept : n_kept + n]
        # no other request may begin with it
        request.key, request.shares = object(), False

    # --- what a batch takes ---

    def n_next(self, n_most: int, n_outputs: int) -> int:
        """How many tokens to compute next, of ``n_most`` at most, and with ``n_outputs`` at most."""
        end = self.stops[0] if self.stops else len(self.request.tokens)
        if self.next_media >= 0:
            end = min(end, self.next_media)
        n = min(end - self.n_held, n_most)
        return min(n, n_outputs) if self.n_scored(n) else n

    def n_scored(self, n: int) -> int:
        """After how many of the next ``n`` tokens a token of the prompt follows that is to be scored; they are the first."""
        request = self.request
        if not request.scores_prompt or self.n_held < len(request.generation.prompt_logprobs):
            return 0
        return max(0, min(n, request.generation.n_prompt - 1 - self.n_held))

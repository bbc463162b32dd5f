"""Guesses of following tokens, for as long as they can be had: places for them in a batch, and which of them were right."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from ..errors import NativeError
from .batches import Part, Running
from .picking import Statistics
from .speculation import Speculator

logger = logging.getLogger("llama_cpp")


class Guesses:
    """What the engine knows of guesses. What guesses may fail: then it goes on without, and what is picked stays the same.

    Args:
        speculator: what guesses; None for nothing.
        statistics: where to count.
        pick: picks a token for each output, a request and its row.
        forget_ahead: removes from a sequence what was computed of a guess and is not its own.
    """

    def __init__(
        self,
        speculator: Speculator | None,
        statistics: Statistics,
        pick: Callable[[Sequence[tuple[Running, int]]], None],
        forget_ahead: Callable[[Running], None],
    ) -> None:
        self._speculator = speculator
        self._statistics = statistics
        self._pick, self._forget_ahead = pick, forget_ahead
        self._no_room = False

    @property
    def wanted(self) -> bool:
        """Whether there may be guesses."""
        return self._speculator is not None

    def close(self) -> None:
        """Frees what guesses."""
        if self._speculator is not None:
            self._speculator.close()
            self._speculator = None

    def guess(self, running: Sequence[Running], n_ctx: int) -> int:
        """Lets what follows the next tokens be guessed; returns how many places for that each sequence has in a batch."""
        no_room, self._no_room = self._no_room, False
        if self._speculator is None or no_room:
            return 0
        try:
            return self._speculator.guess(running, n_ctx)
        except (NativeError, MemoryError) as error:
            self._give_up(error, running)
            return 0

    def make_room(self, parts: Sequence[Part]) -> bool:
        """The cache has no room for a batch: leaves out its guesses, and any in the next one; False when there are none."""
        guessing = [part.running for part in parts if part.running and part.running.guess]
        for one in guessing:
            one.guess = []
        self._no_room = bool(guessing)
        return self._no_room

    def show(self, n_tokens: int, running: Sequence[Running]) -> None:
        """Shows what guesses a batch that was computed."""
        if self._speculator is not None:
            try:
                self._speculator.process(n_tokens)
            except (NativeError, MemoryError) as error:
                self._give_up(error, running)

    def check(self, outputs: Sequence[tuple[Running, int]]) -> None:
        """Picks tokens, and goes on in what was guessed for as long as that is what was picked."""
        guesses = {one: len(one.guess) for one, _ in outputs if one.guess}
        n_right = dict.fromkeys(guesses, 0)
        left = list(outputs)
        while left:
            self._pick(left)
            following = []
            for one, row in left:
                if one.is_as_guessed():
                    n_right[one] += 1
                    following.append((one, row + 1))
                else:
                    self._forget_ahead(one)
            left = following
        for one, n in guesses.items():
            if self._speculator is not None:
                self._speculator.learn(one, n, n_right[one])
            self._statistics.n_guessed += n
            self._statistics.n_right += n_right[one]

    def took(self, n_sequences: int, n_tokens: int, seconds: float) -> None:
        """Notes how long a batch took in which so many sequences generated so many tokens; 0 when prompts were read in it."""
        if self._speculator is not None:
            self._speculator.took(n_sequences, n_tokens, seconds)

    def _give_up(self, error: Exception, running: Sequence[Running]) -> None:
        logger.error("guessing tokens failed (%s); going on without", error)
        self.close()
        for one in running:
            one.guess = []

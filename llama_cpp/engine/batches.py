"""What goes into the next batch: which sequences, and how many of each one's tokens.

A sequence has tokens that are not computed yet: one while it generates, many while its prompt is read. Both are the
same here; only a sequence whose last token is in the batch has an output.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from .decoder import Decoder
from .requests import Adapters
from .slots import Slot

#: Prompt tokens that are read at once while others generate; more would stall them.
CHUNK = 128


@dataclass(slots=True)
class BatchPart:
    """Tokens of one sequence in a batch, from cell ``start`` on.

    Attributes:
        position: of the first token; where a prompt has media, it can be another number than the cell's.
        slot: whose tokens they are; None for what only fills a gap, and is forgotten again.
        n_outputs: how many of the last ones have an output.
        row: which of the batch's outputs is the first of theirs; -1 for none.
        n_scored: how many of the first ones have an output to score the next token of the prompt by.
        scored_row: as ``row``, for these.
    """

    sequence: int
    start: int
    tokens: list[int]
    position: int
    slot: Slot | None = None
    n_outputs: int = 0
    row: int = -1
    n_scored: int = 0
    scored_row: int = -1

    @classmethod
    def of(cls, slot: Slot, n: int) -> BatchPart:
        """The next n tokens of a request."""
        start = slot.n_held
        tokens = slot.request.tokens[start : start + n]
        n_outputs = int(slot.n_pending == n)
        return cls(slot.sequence, start, tokens, start + slot.n_skew, slot, n_outputs, n_scored=slot.n_scored(n))

    @classmethod
    def next_of(cls, slot: Slot, n: int = 0) -> BatchPart:
        """The next token of a request that generates, and its draft, made ``n`` tokens long.

        While the next token is still being sampled, any other keeps its place: a batch of the same shape as the last one
        needs no new graph, which on a GPU costs more than the token.
        """
        known, n_held = slot.request.tokens, slot.n_held
        position = n_held + slot.n_skew
        if len(known) == n_held:
            return cls(slot.sequence, n_held, [0] * (1 + n), position, n_outputs=1 + n)
        if not n:
            return cls(slot.sequence, n_held, known[-1:], position, slot, 1)
        tokens = [known[-1], *slot.draft[:n]]
        return cls(slot.sequence, n_held, tokens + [0] * (1 + n - len(tokens)), position, slot, n_outputs=1 + n)


class Burst:
    """Many prompts at once, which are read before anybody goes on generating.

    Taking turns would take longer for all: what is computed of the few that generate costs nearly as much as of many, and a
    GPU needs a new plan for every other number of them. So when more requests wait to be read than generate, and all of
    them are read within half a second, reading goes first. How fast that is, is measured while it goes. Afterwards those who
    generate go on for as long as they have waited: however many prompts come, half of the time is theirs.
    """

    SECONDS = 0.5

    def __init__(self) -> None:
        self._until: float | None = None
        self._began = self._not_before = 0.0
        # of late, and since the last batch that was waited for
        self._tokens = self._seconds = self._tokens_since = self._seconds_since = 0.0

    def goes_first(self, reading: Sequence[Slot], n_generating: int) -> bool:
        """Whether those who generate wait for those whose prompts are read."""
        now = time.perf_counter()
        if self._until is None:
            if not len(reading) > n_generating > 0 or now < self._not_before:
                return False
            self._began, self._until = now, now + self.SECONDS
        n_tokens = sum(slot.n_pending for slot in reading)
        return 0 < n_tokens * self._seconds <= (self._until - now) * self._tokens

    def note(self, parts: Sequence[BatchPart], seconds: float, waited: bool) -> None:
        """A batch took so long; a GPU goes on with one that was not ``waited`` for."""
        if self._until is None and not self._tokens_since and all(len(part.tokens) == part.n_outputs for part in parts):
            return
        self._tokens_since += sum(len(part.tokens) - part.n_outputs for part in parts if part.slot is not None)
        self._seconds_since += seconds
        if waited:
            if self._tokens_since:
                self._tokens = 0.9 * self._tokens + self._tokens_since
                self._seconds = 0.9 * self._seconds + self._seconds_since
            self._tokens_since = self._seconds_since = 0.0
        if self._until is not None and any(len(part.tokens) == part.n_outputs for part in parts):
            self._until = None  # those who generate had a turn
            now = time.perf_counter()
            self._not_before = now + (now - self._began)


class MixedBatches:
    """Where sequences of different lengths are computed together: who generates comes first, then prompts."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.burst = Burst()

    def choose(self, slots: Sequence[Slot], n_places: int = 0) -> list[BatchPart]:
        """What to compute next, with places for so many drafts in each sequence that generates."""
        on_device = self._decoder.on_device
        parts, chosen, reading, n_generating = [], [], [], 0
        for slot in slots:  # for every token of everybody: this is where the engine's time goes
            n_pending = len(slot.request.tokens) - slot.n_held
            if n_pending > 1:
                reading.append(slot)
            elif n_pending or on_device:
                chosen.append(slot)
                n_generating += n_pending
        if n_generating and not self.burst.goes_first(reading, n_generating):
            parts = [BatchPart.next_of(slot, n_places if on_device else len(slot.draft)) for slot in chosen]
        if not reading:
            return parts
        room = self._decoder.n_batch - sum(len(part.tokens) for part in parts)
        # each of those that read may need one
        n_outputs = self._decoder.n_outputs - sum(part.n_outputs for part in parts) - len(reading) + 1
        if parts:
            room = min(room, CHUNK)
        for slot in reading:
            n = slot.n_next(room, min(n_outputs, self._decoder.n_outputs_for_one))
            if n > 0:
                parts.append(BatchPart.of(slot, n))
                room -= n
                n_outputs -= max(parts[-1].n_scored - 1, 0)
        return parts


class Turns:
    """Which requests can be computed together: those with the same LoRA adapters, which a context has for all it computes.

    To change them costs time, so each set keeps its turn for a while.
    """

    #: Batches of one set while others wait.
    N_BATCHES = 16

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._adapters: Adapters = ()
        self._n_batches = 0

    def choose(self, slots: Sequence[Slot]) -> Sequence[Slot]:
        """Those whose turn it is."""
        if not any(slot.request.adapters != self._adapters for slot in slots):
            return slots
        wanted = list(dict.fromkeys(slot.request.adapters for slot in slots if slot.n_pending))
        if wanted and (self._adapters not in wanted or self._n_batches >= self.N_BATCHES):
            # the next one in the order in which requests came
            at = wanted.index(self._adapters) + 1 if self._adapters in wanted else 0
            self._adapters, self._n_batches = wanted[at % len(wanted)], 0
            self._decoder.set_adapters(self._adapters)
        self._n_batches += 1
        return [slot for slot in slots if slot.request.adapters == self._adapters]


class EqualBatches:
    """Where each sequence has a stream of its own, the engine computes neighbours with equally many tokens at once.

    So prompts and generating take turns (or one goes first in a burst), and while generating, one token of what lies between
    keeps the neighbours together: of a prompt that is being read, or any, which is then forgotten again.

    Args:
        fill: False for recurrent states with drafts: those of all others would have to be taken back, too, so only one run
            of neighbours is computed at a time. (More than one at once, and the engine takes back the wrong states.)
        whole: read prompts in batches of n_batch tokens, even while others generate, so that they are computed as always.
    """

    def __init__(self, decoder: Decoder, fill: bool = True, whole: bool = False) -> None:
        self._decoder = decoder
        self._fill = fill
        self._whole = whole
        self._chunk = decoder.n_batch if whole else min(CHUNK, decoder.n_batch)
        self._read_last = False
        self._last = -1
        self.burst = Burst()

    def choose(self, slots: Sequence[Slot], n_places: int = 0) -> list[BatchPart]:
        """What to compute next, with places for so many drafts in each sequence that generates."""
        generating, reading, places, by_sequence = [], [], [], {}
        for slot in slots:  # for every token of everybody: this is where the engine's time goes
            n_pending = len(slot.request.tokens) - slot.n_held
            by_sequence[slot.sequence] = slot
            if n_pending > 1:
                reading.append(slot)
                continue
            places.append(slot.sequence)
            if n_pending:
                generating.append(slot.sequence)
        alone = not generating or self.burst.goes_first(reading, len(generating))
        self._read_last = bool(reading) and (alone or not self._read_last)
        if self._read_last:
            return self._read(reading, self._decoder.n_batch if alone else self._chunk)
        if not generating:
            return []
        if not self._fill:
            span: Sequence[int] = self._next_run(sorted(generating))
        else:
            span = range(min(places), max(places) + 1)
        n_draft = 0 if reading else n_places
        if n_draft:
            # nobody may run over the end for the sake of others
            n_longest = max(self._decoder.newest(sequence) for sequence in span) + 1
            n_draft = max(0, min(n_draft, self._decoder.n_ctx - 1 - n_longest))
        return [self._part(sequence, by_sequence.get(sequence), n_draft) for sequence in span]

    def _next_run(self, sequences: Sequence[int]) -> Sequence[int]:
        """The neighbours that follow those that were computed last."""
        start = next((sequence for sequence in sequences if sequence > self._last), sequences[0])
        end = start + 1
        while end in sequences:
            end += 1
        self._last = end - 1
        return range(start, end)

    def _read(self, reading: Sequence[Slot], n_most: int) -> list[BatchPart]:
        first, room = reading[0], self._decoder.n_batch
        n = first.n_next(n_most, self._decoder.n_outputs_for_one)
        # none of those that score, and none whose whole batches would begin elsewhere
        by_sequence = {
            slot.sequence: slot
            for slot in reading
            if slot.n_next(n, 0) == n and not (self._whole and slot.n_next(self._decoder.n_batch, 0) > n)
        }
        parts = [BatchPart.of(first, n)]
        if parts[0].n_scored:
            return parts
        while (len(parts) + 1) * n <= room and (follower := by_sequence.get(parts[-1].sequence + 1)):
            parts.append(BatchPart.of(follower, n))
        return parts

    def _part(self, sequence: int, slot: Slot | None, n_draft: int) -> BatchPart:
        if slot is not None and slot.n_pending <= 1:
            return BatchPart.next_of(slot, n_draft)
        if slot is not None and not self._whole:
            return BatchPart.of(slot, 1)
        start = self._decoder.newest(sequence) + 1
        if start >= self._decoder.n_ctx:
            start = self._decoder.n_ctx - 1
            self._decoder.cut(sequence, start)
        return BatchPart(sequence, start, [0] * (1 + n_draft), start)


def write(decoder: Decoder, parts: Sequence[BatchPart]) -> int:
    """Fills the decoder's batch and gives outputs their rows; returns how many tokens it has."""
    n_rows = 0
    for part in parts:
        if part.n_scored:
            part.scored_row, n_rows = n_rows, n_rows + part.n_scored
        if part.n_outputs:
            part.row, n_rows = n_rows, n_rows + part.n_outputs
    n = len(parts)
    if sum(len(part.tokens) for part in parts) == n:
        decoder.tokens[:n] = [part.tokens[0] for part in parts]
        decoder.positions[:n] = [part.position for part in parts]
        decoder.sequences[:n] = [part.sequence for part in parts]
        decoder.outputs[:n] = [part.n_outputs or part.n_scored for part in parts]
        return n
    at = 0
    for part in parts:
        n = len(part.tokens)
        end = at + n
        decoder.tokens[at:end] = part.tokens
        decoder.positions[at:end] = [*range(part.position, part.position + n)]
        decoder.sequences[at:end] = [part.sequence] * n
        decoder.outputs[at:end] = [1] * part.n_scored + [0] * (n - part.n_scored - part.n_outputs) + [1] * part.n_outputs
        at = end
    return at

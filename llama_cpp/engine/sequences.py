"""Which sequence holds what: gives out sequences to requests, and keeps what they leave behind for the next ones."""

from __future__ import annotations

from typing import Hashable, NamedTuple, Sequence

from .decoder import Decoder
from .memory import kind_of
from .prefix_tree import PrefixTree


class Place(NamedTuple):
    """Where a request runs.

    Attributes:
        sequence: which it is given.
        n_held: how many of the request's tokens that holds already.
        stops: where checkpoints are to be taken while the rest of its prompt is read.
    """

    sequence: int
    n_held: int
    stops: list[int]


class InPlace:
    """What a request leaves stays where it is, until its sequence is given to another one.

    For caches where each sequence has memory of its own. Requests run in sequences 0 to n_active - 1.
    """

    def __init__(self, decoder: Decoder, n_active: int) -> None:
        self._decoder = decoder
        self._kind = kind_of(decoder)
        self._free: dict[int, None] = dict.fromkeys(range(n_active))  # the least recently used first
        self._held: dict[int, int] = {}  # how many tokens a sequence in the tree holds
        self._tree = PrefixTree()

    def take(self, tokens: Sequence[int], key: Hashable) -> Place | None:
        """A sequence for a request; None when all are taken.

        Its last token is always left to be computed, for its logits.
        """
        if not self._free:
            return None
        source, n, n_common = self._best(tokens, key)
        if n and self._is_best_continued(source, n):
            sequence = source
        else:
            sequence = self._least_useful()
            if sequence == source:
                n = 0
            self._drop(sequence)
            if n:
                self._kind.copy(source, sequence)
        del self._free[sequence]
        # also when all that is noted serves: a sequence that is in use has grown since
        if n and not self._kind.cut(sequence, n):
            self._kind.forget(sequence)
            n = 0
        self._forget_note(sequence)
        return Place(sequence, n, self._kind.stops(n, n_common, len(tokens)))

    def checkpoint(self, sequence: int, n_held: int) -> None:
        """Takes a checkpoint of a sequence in use that holds so many tokens."""
        self._kind.checkpoint(sequence, n_held)

    def note(self, sequence: int, tokens: Sequence[int], key: Hashable) -> None:
        """Lets others begin like a sequence that holds these tokens."""
        self._held[sequence] = len(tokens)
        self._tree.insert(sequence, tokens, key)

    def give_back(self, sequence: int, tokens: Sequence[int], key: Hashable) -> None:
        """Ends the use of a sequence that holds these tokens."""
        if tokens:
            self.note(sequence, tokens, key)
        else:
            self._drop(sequence)
        self._free[sequence] = None

    def evict(self) -> bool:
        """Gives up what was not used for the longest time; False when nothing is left to give up."""
        kept = next((sequence for sequence in self._free if sequence in self._held), None)
        if kept is None:
            return False
        self._drop(kept)
        return True

    def clear(self) -> None:
        """Gives up all that nobody uses."""
        while self.evict():
            pass

    @property
    def n_kept(self) -> int:
        """Sequences that are kept for later requests."""
        return sum(sequence in self._held for sequence in self._free)

    def _best(self, tokens: Sequence[int], key: Hashable) -> tuple[int, int, int]:
        """The sequence that serves a request best, how much of it, and how much any has in common with it.

        A free one needs no copy.
        """
        best, n_best, n_most = -1, 0, 0
        for sequence, n_common in self._tree.matches(tokens[:-1], key):
            n_most = max(n_most, n_common)
            if n_common < n_best:
                break
            n = self._kind.usable(sequence, n_common)
            if n and (n, sequence in self._free) > (n_best, best in self._free):
                best, n_best = sequence, n
        return best, n_best, n_most

    def _is_best_continued(self, source: int, n: int) -> bool:
        """Whether to go on in a sequence itself: a copy would keep all of it, which pays where much would be lost."""
        if source not in self._free:
            return False
        return 2 * n >= self._held[source] or all(sequence in self._held for sequence in self._free)

    def _least_useful(self) -> int:
        """An empty sequence, the lowest, so that those in use lie side by side; or the least recently used one."""
        empty = [sequence for sequence in self._free if sequence not in self._held]
        return min(empty) if empty else next(iter(self._free))

    def _drop(self, sequence: int) -> None:
        self._forget_note(sequence)
        self._kind.forget(sequence)

    def _forget_note(self, sequence: int) -> None:
        self._tree.remove(sequence)
        self._held.pop(sequence, None)


class Shelved(InPlace):
    """What a request leaves moves to a sequence of its own, where only the lack of room ends it.

    For a pool of cells that all sequences share (a unified KV cache): a copy there is only a second name for cells.

    Args:
        n_kept: how many are kept, in the sequences from n_active on.
    """

    def __init__(self, decoder: Decoder, n_active: int, n_kept: int) -> None:
        super().__init__(decoder, n_active)
        self._shelf = list(range(n_active, n_active + n_kept))
        self._kept: dict[int, None] = {}  # the least recently used first

    def take(self, tokens: Sequence[int], key: Hashable) -> Place | None:
        """As in :class:`InPlace`."""
        if not self._free:
            return None
        sequence = min(self._free)
        del self._free[sequence]
        source, n, _ = self._best(tokens, key)
        if n:
            self._decoder.copy(source, sequence, n)
        if source in self._kept:
            self._kept[source] = self._kept.pop(source)
        return Place(sequence, n, [])

    def give_back(self, sequence: int, tokens: Sequence[int], key: Hashable) -> None:
        """As in :class:`InPlace`."""
        self._forget_note(sequence)
        if tokens and (self._shelf or self.evict()):
            self._drop_beginnings(tokens, key)
            kept = self._shelf.pop()
            self._decoder.copy(sequence, kept)
            self._kept[kept] = None
            self.note(kept, tokens, key)
        self._decoder.forget(sequence)
        self._free[sequence] = None

    def evict(self) -> bool:
        """As in :class:`InPlace`."""
        if not self._kept:
            return False
        self._take_off(next(iter(self._kept)))
        return True

    @property
    def n_kept(self) -> int:
        """As in :class:`InPlace`."""
        return len(self._kept)

    def _drop_beginnings(self, tokens: Sequence[int], key: Hashable) -> None:
        """Drops what is only a beginning of these tokens."""
        for sequence, n_common in list(self._tree.matches(tokens, key)):
            if sequence in self._kept and n_common == self._held[sequence]:
                self._take_off(sequence)

    def _take_off(self, sequence: int) -> None:
        del self._kept[sequence]
        self._drop(sequence)
        self._shelf.append(sequence)

"""Which sequence holds what: gives out sequences to requests, and keeps what they leave behind for the next ones."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from .cache_kinds import cache_kind_of
from .decoder import Decoder
from .prefix_cache.prefix_tree import PrefixTree
from .prefix_cache.saved_states import N_LEAST, SavedStates

#: The key of requests that states are saved of: an adapter has no name that would be the same at the next start.
NO_ADAPTERS = ()


class Place(NamedTuple):
    """Where a request runs.

    Attributes:
        sequence: which it is given.
        n_held: how many of the request's tokens that holds already.
        stops: where checkpoints are to be taken while the rest of its prompt is read.
        n_shared: how many of the tokens it holds were copied from another sequence, and may lie in the same cells.
    """

    sequence: int
    n_held: int
    stops: list[int]
    n_shared: int = 0


class PerSequencePool:
    """What a request leaves stays where it is, until its sequence is given to another one.

    For caches where each sequence has memory of its own. Requests run in sequences 0 to n_active - 1.

    Args:
        unit: a request begins with a multiple of so many tokens of another one, and checkpoints are taken after as many; if
            that is more than one, what it begins with must lie in cells as it would otherwise.

    Attributes:
        saved: where what has to make room is kept; None for nowhere.
    """

    def __init__(self, decoder: Decoder, n_active: int, unit: int = 1) -> None:
        self._decoder = decoder
        self._unit = unit
        self._kind = cache_kind_of(decoder)
        self._reuses = unit == 1 or self._kind.in_order
        self._free: dict[int, None] = dict.fromkeys(range(n_active))  # the least recently used first
        self._texts: dict[int, tuple[Hashable, Sequence[int]]] = {}  # key and tokens of a sequence in the tree
        self.saved: SavedStates | None = None
        self._tree = PrefixTree()
        self._copied: set[int] = set()  # copies of others and what they were copied from

    def take(self, tokens: Sequence[int], key: Hashable, first: bool = False) -> Place | None:
        """A sequence for a request; None when all are taken.

        Its last token is always left to be computed, for its logits.

        Args:
            first: in a pool of cells, let it have the first ones. Nobody must be running.
        """
        if not self._free:
            return None
        source, n, n_common = self._best(tokens, key)
        state = self._find_saved(tokens, key, n)
        if first:
            self._give_up_all(None if state is not None else source)
        if state is not None:
            sequence = self._least_useful()
            self._drop(sequence)
            del self._free[sequence]
            n = self._restore(sequence, *state)
            return Place(sequence, n, self._stops(n, n_common, len(tokens)))
        n_shared = 0
        if n and (first or self._is_best_continued(source, n)):
            sequence = source
        else:
            sequence = self._least_useful()
            if sequence == source:
                n = 0
            self._drop(sequence)
            if n and not self._kind.copy(source, sequence, n):
                n = 0
            if n:
                self._copied |= {source, sequence}
            n_shared = n
        del self._free[sequence]
        # also when all that is noted serves: a sequence that is in use has grown since
        if n == 0 or not self._kind.cut(sequence, n):
            self._forget(sequence)
            n = n_shared = 0
        self._forget_note(sequence)
        return Place(sequence, n, self._stops(n, n_common, len(tokens)), n_shared)

    def checkpoint(self, sequence: int, n_held: int) -> None:
        """Takes a checkpoint of a sequence in use that holds so many tokens."""
        self._kind.checkpoint(sequence, n_held)

    def take_back(self, sequence: int, n: int) -> bool:
        """Forgets what a sequence in use holds after its first ``n`` tokens; False when it holds nothing any more."""
        done = self._kind.take_back(sequence, n)
        if not done:
            self._forget_note(sequence)
        return done

    def is_copied(self, sequence: int) -> bool:
        """Whether a sequence was copied, or is a copy: in a pool of cells, what is done to it is done to others, too."""
        return sequence in self._copied

    def settle(self) -> None:
        """Lets copies that wait be done when nobody is going to compute anything."""
        sequence = self._least_useful()
        self._drop(sequence)
        self._decoder.settle(sequence)

    def n_shareable(self, tokens: Sequence[int], key: Hashable) -> int:
        """How many of a request's tokens it would share the cells of with others, were it to begin now."""
        source, n, _ = self._best(tokens, key)
        return 0 if n and self._is_best_continued(source, n) else n

    def note(self, sequence: int, tokens: Sequence[int], key: Hashable) -> None:
        """Lets others begin like a sequence that holds these tokens."""
        self._texts[sequence] = key, tokens
        self._tree.insert(sequence, tokens, key)

    def give_back(self, sequence: int, tokens: Sequence[int], key: Hashable) -> None:
        """Ends the use of a sequence that holds these tokens."""
        if tokens:
            self.note(sequence, tokens, key)
            if self._unit > 1:
                self._kind.trim(sequence, len(tokens))
        else:
            self._drop(sequence)
        self._free[sequence] = None

    def save_all(self) -> None:
        """Saves what is kept for later requests, if that outlives the process."""
        if self.saved is not None and self.saved.persistent:
            for sequence in list(self._texts):
                self._save(sequence)

    def evict(self) -> bool:
        """Gives up what was not used for the longest time; False when nothing is left to give up."""
        kept = next(iter(self._all_kept()), None)
        if kept is None:
            return False
        self._give_up(kept)
        return True

    def _all_kept(self) -> list[int]:
        return [sequence for sequence in self._free if sequence in self._texts]

    def _give_up(self, kept: int) -> None:
        self._drop(kept)

    def _give_up_all(self, but: int | None) -> None:
        for kept in self._all_kept():
            if kept != but:
                self._give_up(kept)

    def clear(self) -> None:
        """Gives up all that nobody uses, for good."""
        saved, self.saved = self.saved, None
        while self.evict():
            pass
        self.saved = saved

    @property
    def n_free(self) -> int:
        """Sequences that a request could be given."""
        return len(self._free)

    @property
    def n_kept(self) -> int:
        """Sequences that are kept for later requests."""
        return len(self._all_kept())

    def _stops(self, n_held: int, n_common: int, n_prompt: int) -> list[int]:
        """Where to take checkpoints while a prompt is read."""
        stops = {n // self._unit * self._unit for n in self._kind.stops(n_held, n_common, n_prompt)}
        return sorted(n for n in stops if n > n_held)

    def _best(self, tokens: Sequence[int], key: Hashable) -> tuple[int, int, int]:
        """The sequence that serves a request best, how much of it, and how much any has in common with it.

        A free one needs no copy.
        """
        best, n_best, n_most = -1, 0, 0
        if not self._reuses:
            return -1, 0, 0
        for sequence, n_common in self._tree.matches(tokens[:-1], key):
            n_most = max(n_most, n_common)
            n_common -= n_common % self._unit
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
        return 2 * n >= len(self._texts[source][1]) or all(sequence in self._texts for sequence in self._free)

    def _least_useful(self) -> int:
        """An empty sequence, the lowest, so that those in use lie side by side; or the least recently used one."""
        empty = [sequence for sequence in self._free if sequence not in self._texts]
        return min(empty) if empty else next(iter(self._free))

    def _find_saved(self, tokens: Sequence[int], key: Hashable, n: int) -> tuple[np.ndarray, int] | None:
        """A saved state that serves a request much better than ``n`` tokens, and how many it serves."""
        if self.saved is None or key != NO_ADAPTERS or not self._reuses:
            return None
        entry, n_saved = self.saved.best(tokens[:-1], whole=self._kind.whole)
        n_usable = n_saved - n_saved % self._unit
        if n_usable < n + N_LEAST or (self._kind.whole and n_usable < n_saved):
            return None
        state = self.saved.load(entry)
        return None if state is None else (state, n_usable)

    def _restore(self, sequence: int, state: np.ndarray, n: int) -> int:
        """Gives an empty sequence the first ``n`` tokens of what was saved; returns how many it holds then."""
        if self._decoder.restore(sequence, state) and self._decoder.cut(sequence, n):
            return n
        self._forget(sequence)
        return 0

    def _save(self, sequence: int) -> None:
        key, tokens = self._texts.get(sequence, (None, ()))
        # not while a request goes on in it
        if self.saved is not None and tokens and key == NO_ADAPTERS and self._decoder.newest(sequence) == len(tokens) - 1:
            self.saved.save(tokens, lambda n_head: self._decoder.save(sequence, n_head=n_head))

    def _drop(self, sequence: int) -> None:
        if not self._decoder.copies_wait:  # it may be one that was copied, and whose state is not there yet
            self._save(sequence)
        self._forget_note(sequence)
        self._forget(sequence)

    def _forget(self, sequence: int) -> None:
        self._kind.forget(sequence)
        self._copied.discard(sequence)

    def _forget_note(self, sequence: int) -> None:
        self._tree.remove(sequence)
        self._texts.pop(sequence, None)


class SharedPool(PerSequencePool):
    """What a request leaves moves to a sequence of its own, where only the lack of room ends it.

    For a pool of cells that all sequences share (a unified KV cache): a copy there is only a second name for cells.

    Args:
        n_kept: how many are kept, in the sequences from n_active on.
    """

    def __init__(self, decoder: Decoder, n_active: int, n_kept: int, unit: int = 1) -> None:
        super().__init__(decoder, n_active, unit)
        self._shelf = list(range(n_active, n_active + n_kept))
        self._kept: dict[int, None] = {}  # the least recently used first

    def take(self, tokens: Sequence[int], key: Hashable, first: bool = False) -> Place | None:
        """As in :class:`PerSequencePool`."""
        if not self._free:
            return None
        sequence = min(self._free)
        del self._free[sequence]
        source, n, _ = self._best(tokens, key)
        if (state := self._find_saved(tokens, key, n)) is not None:
            if first:
                self._give_up_all(None)
            self._make_room_for(len(tokens))
            return Place(sequence, self._restore(sequence, *state), [])
        if n:
            self._decoder.copy(source, sequence, n)
            self._copied |= {source, sequence}
        if first:
            self._give_up_all(None)  # what follows the common beginning would lie between its cells and others of this request
            self._copied.discard(sequence)
            return Place(sequence, n, [])
        if source in self._kept:
            self._kept[source] = self._kept.pop(source)
        return Place(sequence, n, [], n_shared=n)

    def give_back(self, sequence: int, tokens: Sequence[int], key: Hashable) -> None:
        """As in :class:`PerSequencePool`."""
        self._forget_note(sequence)
        if tokens and (self._shelf or self.evict()):
            self._drop_beginnings(tokens, key)
            kept = self._shelf.pop()
            self._decoder.copy(sequence, kept, len(tokens) if self._unit > 1 else -1)
            self._kept[kept] = None
            if sequence in self._copied:
                self._copied.add(kept)
            self.note(kept, tokens, key)
        self._forget(sequence)
        self._free[sequence] = None

    def n_shareable(self, tokens: Sequence[int], key: Hashable) -> int:
        """As in :class:`PerSequencePool`."""
        return self._best(tokens, key)[1]

    def _all_kept(self) -> list[int]:
        return list(self._kept)

    def _make_room_for(self, n: int) -> None:
        """Gives up what is kept until n more tokens have room, even if nothing of what is held is shared."""
        while n + sum(len(tokens) for _, tokens in self._texts.values()) > self._decoder.n_ctx and self.evict():
            pass

    def _drop_beginnings(self, tokens: Sequence[int], key: Hashable) -> None:
        """Drops what is only a beginning of these tokens."""
        for sequence, n_common in list(self._tree.matches(tokens, key)):
            if sequence in self._kept and n_common == len(self._texts[sequence][1]):
                self._texts.pop(sequence)  # what holds more will be saved
                self._give_up(sequence)

    def _give_up(self, kept: int) -> None:
        del self._kept[kept]
        self._drop(kept)
        self._shelf.append(kept)

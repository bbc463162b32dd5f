"""Automata over characters: of patterns, of lengths, of texts that are left out; and what satisfies several of them at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Protocol

from . import characters
from .budget import STATES, Budget, tick_sometimes
from .characters import Characters
from .gbnf import NEVER, Expression, Grammar, any_of, seq, times
from .patterns import Tree

#: Calls of :meth:`Automaton.step` between two looks at the time.
_STEPS_BETWEEN_TICKS = 1000
#: The state of a text that is no longer the beginning of one that was listed.
_OUTSIDE = -1


class TooLarge(Exception):
    """It takes more states than there may be."""


class Automaton(Protocol):
    """Deterministic; ``step`` takes any character of a set that :attr:`sets` do not tell apart, and None is a dead end."""

    @property
    def sets(self) -> Iterable[Characters]:
        """What it looks for; characters that are in the same of them are all one to it."""
        ...

    def start(self) -> Hashable:
        """The first state; None where no text is accepted."""
        ...

    def step(self, state: Any, code: int) -> Hashable | None:
        """The state after a further character, given by its code point."""
        ...

    def accepts(self, state: Any) -> bool:
        """Whether a text may end in the state."""
        ...


class Matches:
    """The texts in which a pattern matches somewhere; or, ``negated``, those in which it does not."""

    def __init__(self, tree: Tree, negated: bool = False) -> None:
        self.negated = negated
        #: of each state: those that follow without a character, with the anchor that this takes, and those that follow with one
        self._free: list[list[tuple[int, str]]] = []
        self._moves: list[list[tuple[Characters, int]]] = []
        self._known: dict[tuple[frozenset[int], int], frozenset[int] | None] = {}
        self._start, self._end = self._state(), self._state()
        self._add(tree, self._start, self._end)
        self.sets = {found for moves in self._moves for found, _ in moves}
        # where it begins, and what follows it, can be anything
        self._first = self._closed({self._start}, True)

    def start(self) -> Hashable:
        """As in :class:`Automaton`."""
        return self._first

    def step(self, state: Any, code: int) -> Hashable | None:
        """As in :class:`Automaton`."""
        key = state, code
        if key not in self._known:
            self._known[key] = self._step(*key)
        return self._known[key]

    def _step(self, state: frozenset[int], code: int) -> frozenset[int] | None:
        if self._end in state:
            return frozenset((self._end,)) if not self.negated else None
        found = {target for one in state for allowed, target in self._moves[one] if characters.holds(allowed, code)}
        return self._closed(found | {self._start}, False)

    def accepts(self, state: Any) -> bool:
        """As in :class:`Automaton`."""
        return (self._end in state or self._end in self._closed(set(state), False, True)) != self.negated

    def _closed(self, states: set[int], at_start: bool, at_end: bool = False) -> frozenset[int]:
        todo, found = list(states), set(states)
        while todo:
            for target, anchor in self._free[todo.pop()]:
                if target not in found and (not anchor or (at_start if anchor == "start" else at_end)):
                    found.add(target)
                    todo.append(target)
        return frozenset((self._end,)) if self._end in found else frozenset(found)

    def _state(self) -> int:
        self._free.append([])
        self._moves.append([])
        if len(self._free) > 4 * STATES:
            raise TooLarge
        tick_sometimes()
        return len(self._free) - 1

    def _add(self, tree: Tree, first: int, last: int) -> None:
        kind = tree[0]
        if kind == "set":
            self._moves[first].append((tree[1], last))
        elif kind in ("start", "end"):
            self._free[first].append((last, kind))
        elif kind == "any":
            for part in tree[1]:
                self._add(part, first, last)
        elif kind == "seq":
            for part in tree[1]:
                middle = self._state()
                self._add(part, first, middle)
                first = middle
            self._free[first].append((last, ""))
        else:
            part, least, most = tree[1:]
            if least > STATES or (most or 0) > STATES:
                raise TooLarge
            for _ in range(least):
                middle = self._state()
                self._add(part, first, middle)
                first = middle
            if most is None:
                loop = self._state()
                self._free[first].append((loop, ""))
                middle = self._state()
                self._add(part, loop, middle)
                self._free[middle].append((loop, ""))
                first = loop
            for _ in range((most or least) - least):
                self._free[first].append((last, ""))
                middle = self._state()
                self._add(part, first, middle)
                first = middle
            self._free[first].append((last, ""))


class Length:
    """Texts of so many characters."""

    sets: tuple[Characters, ...] = ()

    def __init__(self, least: int, most: int | None) -> None:
        self.least, self.most = least, most
        if max(least, most or 0) > STATES:
            raise TooLarge

    def start(self) -> Hashable:
        """As in :class:`Automaton`."""
        return 0

    def step(self, state: Any, code: int) -> Hashable | None:
        """As in :class:`Automaton`."""
        if self.most is None:
            return min(int(state) + 1, self.least)
        return int(state) + 1 if state < self.most else None

    def accepts(self, state: Any) -> bool:
        """As in :class:`Automaton`."""
        return bool(state >= self.least)


class LengthModulo:
    """Texts whose length leaves a certain rest: texts of different rests are never the same."""

    sets: tuple[Characters, ...] = ()

    def __init__(self, modulus: int, rest: int) -> None:
        self.modulus, self.rest = modulus, rest

    def start(self) -> Hashable:
        """As in :class:`Automaton`."""
        return 0

    def step(self, state: Any, code: int) -> Hashable | None:
        """As in :class:`Automaton`."""
        return (int(state) + 1) % self.modulus

    def accepts(self, state: Any) -> bool:
        """As in :class:`Automaton`."""
        return bool(state == self.rest)


class Until:
    """Texts behind which ``end`` comes for the first time, when it is written there."""

    def __init__(self, end: str) -> None:
        self._end = end
        self.sets = {characters.of(char) for char in end}

    def start(self) -> Hashable:
        """As in :class:`Automaton`."""
        return 0

    def step(self, state: Any, code: int) -> Hashable | None:
        """As in :class:`Automaton`."""
        text = self._end[:state] + chr(code)
        while not self._end.startswith(text):
            text = text[1:]
        return len(text) if text != self._end else None

    def accepts(self, state: Any) -> bool:
        """As in :class:`Automaton`."""
        for char in self._end[:-1]:
            state = self.step(state, ord(char))
            if state is None:
                return False
        return True


class Absent:
    """Texts in which another one is not."""

    def __init__(self, text: str) -> None:
        self._until = Until(text)
        self.sets = self._until.sets

    def start(self) -> Hashable:
        """As in :class:`Automaton`."""
        return 0

    def step(self, state: Any, code: int) -> Hashable | None:
        """As in :class:`Automaton`."""
        return self._until.step(state, code)

    def accepts(self, state: Any) -> bool:
        """As in :class:`Automaton`."""
        return True


class NotJson:
    """Texts that no reader takes for JSON: they begin with no number, text, list or object, and are no word of it."""

    def __init__(self) -> None:
        self._words = Excluded(("true", "false", "null"))
        self._first = characters.of('{["-0123456789 \t\n\r')
        self.sets = {*self._words.sets, self._first}

    def start(self) -> Hashable:
        """As in :class:`Automaton`."""
        return self._words.start()

    def step(self, state: Any, code: int) -> Hashable | None:
        """As in :class:`Automaton`."""
        return None if state == 0 and characters.holds(self._first, code) else self._words.step(state, code)

    def accepts(self, state: Any) -> bool:
        """As in :class:`Automaton`."""
        return self._words.accepts(state)


class Excluded:
    """All texts but some."""

    def __init__(self, texts: Iterable[str]) -> None:
        #: the tree of their beginnings: a node's number and a character give the next node
        self._nodes: dict[tuple[int, str], int] = {}
        self._ends = {self._add(text) for text in texts}
        self.sets = {characters.of(char) for _, char in self._nodes}

    def _add(self, text: str) -> int:
        node = 0
        for char in text:
            node = self._nodes.setdefault((node, char), len(self._nodes) + 1)
            if node > 8 * STATES:
                raise TooLarge
        return node

    def start(self) -> Hashable:
        """As in :class:`Automaton`."""
        return 0 if self._ends else _OUTSIDE

    def step(self, state: Any, code: int) -> Hashable | None:
        """As in :class:`Automaton`."""
        return self._nodes.get((state, chr(code)), _OUTSIDE)

    def accepts(self, state: Any) -> bool:
        """As in :class:`Automaton`."""
        return state not in self._ends


class Listed:
    """Some texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._excluded = Excluded(texts)
        self.sets = self._excluded.sets

    def start(self) -> Hashable:
        """As in :class:`Automaton`."""
        return 0

    def step(self, state: Any, code: int) -> Hashable | None:
        """As in :class:`Automaton`."""
        found = self._excluded.step(state, code)
        return None if found == _OUTSIDE else found

    def accepts(self, state: Any) -> bool:
        """As in :class:`Automaton`."""
        return not self._excluded.accepts(state)


def accepts(automaton: Automaton, text: str) -> bool:
    """Whether it accepts a text."""
    state: Hashable | None = automaton.start()
    for char in text:
        state = automaton.step(state, ord(char))
        if state is None:
            return False
    return automaton.accepts(state)


class Table:
    """What several automata accept at once: its states are numbers, 0 is the first, and each leads to an end.

    Attributes:
        moves: of each state, the characters that lead to another one. ends: the states that accept.

    Raises:
        TooLarge: more than ``most`` states.
    """

    def __init__(self, automata: Sequence[Automaton], budget: Budget, most: int = STATES) -> None:
        self.moves: list[dict[int, Characters]] = [{}]
        self.ends: set[int] = set()
        self.empty = False
        counting = [automaton for automaton in automata if isinstance(automaton, (Length, LengthModulo))]
        if counting and len(counting) < len(automata):
            # the rest is made small first: counting makes many states of each
            rest = Table([automaton for automaton in automata if automaton not in counting], budget, most)
            automata = [rest, *counting]
        kinds = _kinds({found for automaton in automata for found in automaton.sets}, budget)
        first = tuple(automaton.start() for automaton in automata)
        if None in first:
            automata, first = [], ()
            self.empty = True
            return
        numbers: dict[Any, int] = {first: 0}
        todo, ends = [first], set()
        moves: list[dict[int, Characters]] = []
        steps = 0
        while len(moves) < len(todo):
            state = todo[len(moves)]
            if all(automaton.accepts(one) for automaton, one in zip(automata, state)):
                ends.add(len(moves))
            found: dict[int, list[Characters]] = {}
            for code, kind in kinds:
                steps += len(automata)
                if steps >= _STEPS_BETWEEN_TICKS:  # a step may be of thousands of automata at once
                    steps = 0
                    budget.tick()
                following = tuple(automaton.step(one, code) for automaton, one in zip(automata, state))
                if None in following:
                    continue
                number = numbers.setdefault(following, len(numbers))
                if number == len(todo):
                    if number >= most:
                        raise TooLarge
                    todo.append(following)
                found.setdefault(number, []).append(kind)
            moves.append({number: characters.union(*sets) for number, sets in found.items()})
        self._keep(moves, ends, budget, small=not counting)

    def start(self) -> Hashable:
        """As in :class:`Automaton`."""
        return 0 if not self.empty else None

    def step(self, state: Any, code: int) -> Hashable | None:
        """As in :class:`Automaton`."""
        for target, found in self.moves[state].items():
            if characters.holds(found, code):
                return int(target)
        return None

    def accepts(self, state: Any) -> bool:
        """As in :class:`Automaton`."""
        return state in self.ends

    @property
    def sets(self) -> set[Characters]:
        """As in :class:`Automaton`."""
        return {found for moves in self.moves for found in moves.values()}

    def _keep(self, moves: list[dict[int, Characters]], ends: set[int], budget: Budget, small: bool) -> None:
        """Leaves out what leads nowhere, and takes states together that accept the same."""
        back: list[list[int]] = [[] for _ in moves]
        for state, found in enumerate(moves):
            for target in found:
                back[target].append(state)
        alive, todo = set(ends), list(ends)
        while todo:
            for state in back[todo.pop()]:
                if state not in alive:
                    alive.add(state)
                    todo.append(state)
        order = sorted(alive)
        block = {state: int(state in ends) if small else state for state in order}
        count = len(set(block.values()))
        while small:
            budget.tick()
            signs: dict[Any, int] = {}
            new = {}
            for state in order:
                joined: dict[int, list[Characters]] = {}
                for target, chars in moves[state].items():
                    if target in alive:
                        joined.setdefault(block[target], []).append(chars)
                sign = (
                    block[state],
                    frozenset((target, characters.union(*sets) if len(sets) > 1 else sets[0]) for target, sets in joined.items()),
                )
                new[state] = signs.setdefault(sign, len(signs))
            block = new
            if len(signs) == count:
                break
            count = len(signs)
        if not small:
            block = {state: n for n, state in enumerate(order)}
        self.empty = 0 not in alive
        self.moves = [{} for _ in range(count)]
        for state in order:
            joined = {}
            for target, chars in moves[state].items():
                if target in alive:
                    joined.setdefault(block[target], []).append(chars)
            self.moves[block[state]] = {target: characters.union(*sets) for target, sets in joined.items()}
        self.ends = {block[state] for state in ends if state in alive}

    def expression(
        self, grammar: Grammar, hint: str, written: Callable[[Characters], Expression], close: Expression
    ) -> Expression:
        """The texts it accepts, each character as ``written`` has it, with ``close`` at the end."""
        if self.empty:
            return NEVER
        entered = [0] * len(self.moves)
        for state, found in enumerate(self.moves):
            for target in found:
                entered[target] += target != state
        entered[0] += entered[0] > 0  # the start is a place that enters it, too
        # a state that is entered from one place is written there, as long as that does not nest too deeply
        names: dict[int, str] = {}
        todo: list[int] = []

        def of(state: int, depth: int, own: bool = False) -> Expression:
            if not own and (entered[state] > 1 or depth > 40):
                if state not in names:
                    names[state] = grammar.name(hint)
                    todo.append(state)
                return ("rule", names[state])
            found = dict(self.moves[state])
            loop = found.pop(state, None)
            parts = [seq(written(chars), of(target, depth + 1)) for target, chars in found.items()]
            if state in self.ends:
                parts.append(close)
            rest = any_of(parts)
            return seq(times(written(loop)), rest) if loop else rest

        expression = of(0, 0, own=True)
        while todo:
            state = todo.pop()
            grammar.rules[names[state]] = of(state, 0, own=True)
        return expression


def _kinds(sets: set[Characters], budget: Budget) -> list[tuple[int, Characters]]:
    """All characters, divided by which of the sets hold them; each with one that it holds."""
    edges = sorted({edge for found in (*sets, characters.ALL) for first, last in found for edge in (first, last + 1)})
    listed = sorted(sets)
    signs: dict[int, list[tuple[int, int]]] = {}
    at = [0] * len(listed)
    for first, after in itertools.pairwise(edges):
        if 0xD800 <= first <= 0xDFFF:
            continue
        budget.tick()
        sign = 0
        for index, found in enumerate(listed):
            while at[index] < len(found) and found[at[index]][1] < first:
                at[index] += 1
            if at[index] < len(found) and found[at[index]][0] <= first:
                sign |= 1 << index
        signs.setdefault(sign, []).append((first, after - 1))
    return [(found[0][0], characters.ranges(found)) for found in signs.values()]

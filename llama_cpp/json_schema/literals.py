"""Values that are listed: JSON texts, written by their beginnings."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from .characters import HALVES
from .gbnf import EMPTY, Expression, Grammar, any_of, literal, seq

#: How deep groups are nested before a rule of its own begins.
_DEPTH = 8


def text_of(value: Any) -> str:
    """JSON as models write it in one line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # halves of surrogate pairs cannot be written as UTF-8
    return text if text.isascii() or not HALVES.search(text) else json.dumps(value, separators=(",", ":"))


def _alike(one: str, other: str, start: int) -> int:
    """How far two texts are alike, which are up to ``start``."""
    least, most = start, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        if one.startswith(other[start:middle], start):
            least = middle
        else:
            most = middle - 1
    return least


def one_of(texts: Iterable[str], grammar: Grammar, end: Expression = EMPTY) -> Expression:
    """One of some texts: whoever follows it never has more ways to go on than there are next characters."""
    listed = sorted(set(texts))
    waiting: list[tuple[str, int, int, int]] = []

    def rest(first: int, last: int, start: int, depth: int) -> Expression:
        """Those from ``first`` on to ``last``, which are alike up to ``start``."""
        if depth > _DEPTH:
            name = grammar.name("one-of")
            waiting.append((name, first, last, start))
            return ("rule", name)
        grammar.budget.tick()
        parts = []
        at = first
        if len(listed[at]) == start:  # the shortest comes first
            parts.append(end)
            at += 1
        while at < last:
            following, char = at + 1, listed[at][start]
            while following < last and listed[following][start] == char:
                following += 1
            one, other = listed[at], listed[following - 1]
            stop = start + 1
            stop = len(one) if following - at == 1 else _alike(one, other, stop)
            grammar.budget.spend(stop - start)
            parts.append(seq(literal(one[start:stop]), rest(at, following, stop, depth + 1) if following - at > 1 else end))
            at = following
        return any_of(parts)

    found = rest(0, len(listed), 0, 0)
    while waiting:
        grammar.budget.tick()
        name, first, last, start = waiting.pop()
        grammar.rules[name] = rest(first, last, start, 0)
    return found

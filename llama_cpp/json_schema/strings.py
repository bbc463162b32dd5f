"""Strings: patterns, lengths, formats and what is left out, all at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import characters, patterns
from .automata import Automaton, Excluded, Length, Matches, Table, TooLarge
from .budget import tick_sometimes
from .characters import Characters
from .gbnf import EMPTY, NEVER, Expression, Grammar, any_of, literal, seq, times
from .patterns import Tree

#: As many states as are better than the pattern itself, which may leave several ways to go on open.
_FEW = 300
_QUOTE = literal('"')


@dataclass
class StringRules:
    """What a string has to satisfy.

    Attributes:
        matches: trees of patterns. mismatches: of patterns that must not match, parsed ``wide``. formats: of each, trees of which
            every next one holds less, and shorter texts.
    """

    least: int = 0
    most: int | None = None
    matches: list[Tree] = field(default_factory=list)
    mismatches: list[Tree] = field(default_factory=list)
    formats: list[tuple[Tree, ...]] = field(default_factory=list)
    excluded: set[str] = field(default_factory=set)

    def anything(self) -> bool:
        """Whether nothing is asked for."""
        return self == StringRules()

    def automata(self) -> list[Automaton]:
        """The same as automata.

        Raises:
            TooLarge.
        """
        found: list[Automaton] = [Matches(tree) for tree in self.matches]
        found += [Matches(trees[0]) for trees in self.formats]
        found += [Matches(tree, negated=True) for tree in self.mismatches]
        if self.least or self.most is not None:
            found.append(Length(self.least, self.most))
        if self.excluded:
            found.append(Excluded(self.excluded))
        return found


def expression(rules: StringRules, grammar: Grammar, hint: str) -> Expression:
    """The strings that satisfy the rules, as JSON.

    Raises:
        TooLarge: together they take more states than there may be.
    """
    if rules.most is not None and rules.most < rules.least:
        return NEVER
    if not rules.matches and not rules.formats and not rules.mismatches and not rules.excluded:
        if rules.anything():
            return string(grammar)
        return seq(_QUOTE, times(char(grammar), rules.least, rules.most), _QUOTE)
    simple = _simple(rules, grammar)
    if simple is not None:
        return seq(_QUOTE, simple, _QUOTE)
    table = Table(rules.automata(), grammar.budget)
    if table.empty:
        return NEVER
    return seq(_QUOTE, table.expression(grammar, hint, lambda found: _one(found, grammar), _QUOTE))


def raw(rules: StringRules, grammar: Grammar, hint: str, *more: Automaton) -> Expression:
    """The strings that satisfy the rules and automata, as they are.

    Raises:
        TooLarge: together they take more states than there may be.
    """
    if rules.most is not None and rules.most < rules.least:
        return NEVER
    return Table([*rules.automata(), *more], grammar.budget).expression(grammar, hint, characters.raw, EMPTY)


def char(grammar: Grammar) -> Expression:
    """Any character, in any way in which JSON writes it; each counts as one."""
    plain = characters.bracket(characters.without(characters.ALL, characters.union(characters.ESCAPED, ((0x7F, 0x7F),))))
    escaped = r'"\\" (["\\bfnrt] | "u" ([0-9a-cA-CefEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2}))'
    return grammar.shared("char", "char", lambda: ("text", f"{plain} | {escaped}"))


def string(grammar: Grammar) -> Expression:
    """Any string."""
    return grammar.shared("string", "string", lambda: seq(_QUOTE, times(char(grammar)), _QUOTE))


def _one(found: Characters, grammar: Grammar) -> Expression:
    """One of some characters; where that takes several ways of writing, or is long, it is a rule."""
    written = characters.in_json(found)
    if written[0] == "text" and len(written[1]) < 60:
        return written
    return grammar.shared(("characters", found), "char", lambda: written)


def _simple(rules: StringRules, grammar: Grammar) -> Expression | None:
    """A pattern written as it is, where nothing else is asked for that it does not have anyway."""
    if len(rules.matches) + len(rules.formats) != 1 or rules.mismatches or rules.excluded:
        return None
    for tree in rules.formats[0] if rules.formats else ():
        low, high = patterns.lengths(tree)
        if rules.least <= low and (rules.most is None or (high is not None and high <= rules.most)):
            return _written(patterns.unanchored(tree)[0], grammar)  # type: ignore[index]
    if rules.formats:
        return None
    found = patterns.unanchored(rules.matches[0])
    if found is None:
        return None
    tree, start, end = found
    low, high = patterns.lengths(tree)
    bounded = rules.least > 0 or rules.most is not None
    if start and end:
        if rules.least <= low and (rules.most is None or (high is not None and high <= rules.most)):
            return _written(tree, grammar)
        limited = _limited(tree, rules)
        if limited is not None:
            return _written(limited, grammar)
        return None
    if bounded:
        return None
    # several ways to go on are open in these, so an automaton is better, where it is small
    try:
        table = Table([Matches(rules.matches[0])], grammar.budget, _FEW)
    except TooLarge:
        anything = times(_one(characters.ALL, grammar))
        return seq(EMPTY if start else anything, _written(tree, grammar), EMPTY if end else anything)
    return table.expression(grammar, "text", lambda found: _one(found, grammar), EMPTY)


def _limited(tree: Tree, rules: StringRules) -> Tree | None:
    """A pattern with the lengths in it, where one repetition alone says how long a text is."""
    parts = tree[1] if tree[0] == "seq" else (tree,)
    sizes = [patterns.lengths(part) for part in parts]
    varying = [at for at, (low, high) in enumerate(sizes) if low != high]
    if len(varying) != 1 or parts[varying[0]][0] != "times":
        return None
    at = varying[0]
    _, part, least, most = parts[at]
    size, largest = patterns.lengths(part)
    if size != largest or size == 0:
        return None
    others = sum(low for low, _ in sizes) - sizes[at][0]
    least = max(least, -(-(rules.least - others) // size))
    limit = None if rules.most is None else (rules.most - others) // size
    ends = [end for end in (most, limit) if end is not None]
    most = min(ends) if ends else None
    if most is not None and most < least:
        return ("any", ())
    return ("seq", (*parts[:at], ("times", part, least, most), *parts[at + 1 :]))


def _written(tree: Tree, grammar: Grammar) -> Expression:
    tick_sometimes()
    kind = tree[0]
    if kind == "set":
        return _one(tree[1], grammar) if tree[1] else NEVER
    if kind == "any":
        return any_of(_written(part, grammar) for part in tree[1])
    if kind == "times":
        return times(_written(tree[1], grammar), tree[2], tree[3])
    # characters that follow each other are one literal
    parts: list[Expression] = []
    text = ""
    for part in (*tree[1], None):
        tick_sometimes()
        if part is not None and part[0] == "set" and len(part[1]) == 1 and part[1][0][0] == part[1][0][1]:
            text += chr(part[1][0][0])
            continue
        if text:
            parts.append(characters.text_in_gbnf(text))
            text = ""
        if part is not None:
            parts.append(_written(part, grammar))
    return seq(*parts)

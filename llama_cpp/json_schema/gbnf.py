"""The grammar while it is made: rules of expressions, which of them lead to a text at all, and how they are written.

An expression is a tuple: ``("text", gbnf)`` (any GBNF that refers to no rule made here), ``("rule", name)``, ``("seq", parts)``,
``("any", parts)`` (one of them) or ``("times", part, least, most)``; ``most`` None is no limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .budget import Budget, tick_sometimes

Expression = tuple[Any, ...]

#: No text at all, and the empty one.
NEVER: Expression = ("any", ())
EMPTY: Expression = ("seq", ())

_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
_TO_ESCAPE = re.compile(r'[\x00-\x1f"\\\x7f\ud800-\udfff\u2028\u2029]')


def quoted(text: str) -> str:
    """A GBNF literal."""
    return '"' + _TO_ESCAPE.sub(lambda found: _ESCAPES.get(found[0]) or f"\\u{ord(found[0]):04x}", text) + '"'


def literal(text: str) -> Expression:
    """A text, as it is."""
    return ("text", quoted(text)) if text else EMPTY


def rule(name: str) -> Expression:
    """The rule of that name."""
    return ("rule", name)


def seq(*parts: Expression) -> Expression:
    """One after the other."""
    flat: list[Expression] = []
    for part in parts:
        if part == NEVER:
            return NEVER
        flat.extend(part[1] if part[0] == "seq" else (part,))
    return flat[0] if len(flat) == 1 else ("seq", tuple(flat))


def any_of(parts: Iterable[Expression]) -> Expression:
    """One of several."""
    flat: dict[Expression, None] = {}
    for part in parts:
        flat.update(dict.fromkeys(part[1] if part[0] == "any" else (part,)))
    return next(iter(flat)) if len(flat) == 1 else ("any", tuple(flat))


def times(part: Expression, least: int = 0, most: int | None = None) -> Expression:
    """As often as that."""
    if most is not None and most < least:
        return NEVER
    if most == 0 or part == EMPTY:
        return EMPTY
    if part == NEVER:
        return EMPTY if least == 0 else NEVER
    return part if least == most == 1 else ("times", part, least, most)


class Grammar:
    """Rules by name.

    Args:
        prefix: what the name of each rule begins with.
    """

    def __init__(self, budget: Budget, prefix: str = "") -> None:
        self.budget = budget
        self.rules: dict[str, Expression] = {}
        self._prefix = prefix
        self._named: dict[Any, str] = {}
        self._counts: dict[str, int] = {}

    def name(self, hint: str) -> str:
        """A name that no rule has yet."""
        tick_sometimes()
        base = self._prefix + (re.sub(r"[^a-zA-Z0-9]+", "-", hint).strip("-")[:60] or "rule")
        name = base
        while name in self.rules:
            self._counts[base] = self._counts.get(base, 1) + 1
            name = f"{base}-{self._counts[base]}"
        self.rules[name] = NEVER
        self.budget.spend(40)
        return name

    def shared(self, key: Any, hint: str, make: Callable[[], Expression]) -> Expression:
        """The rule of that key, made when it is first asked for."""
        name = self._named.get(key)
        if name is None:
            name = self._named[key] = self.name(hint)
            self.rules[name] = make()
        return rule(name)

    def productive(self) -> set[str]:
        """Names of the rules that lead to a text."""
        needed_by: dict[str, list[str]] = {}
        for name, expression in self.rules.items():
            for other in names(expression):
                needed_by.setdefault(other, []).append(name)
        found: set[str] = set()
        todo = list(self.rules)
        while todo:
            name = todo.pop()
            if len(todo) % 64 == 0:
                self.budget.tick()
            if name not in found and _leads(self.rules[name], found):
                found.add(name)
                todo.extend(needed_by.get(name, ()))
        return found

    def write(self, root: str, productive: set[str]) -> str:
        """The rules that ``root`` needs, it first; a rule that is just another's name is left out."""
        aliases: dict[str, str] = {}

        def target(name: str) -> str:
            path = []
            while name not in aliases:
                found = _pruned(self.rules[name], productive)
                if found[0] != "rule" or found[1] == name or found[1] in path:
                    aliases[name] = name
                    break
                path.append(name)
                name = found[1]
            end = aliases[name]
            aliases.update(dict.fromkeys(path, end))
            return end

        lines, todo, done = [], [root], {root}
        while todo:
            name = todo.pop()
            needs: list[str] = []
            body = _pruned(self.rules[name], productive)

            def named(other: str, needs: list[str] = needs) -> str:
                other = target(other)
                short = self.rules[other]
                if short[0] == "text" and len(short[1]) < 40 and " " not in short[1]:
                    return str(short[1])
                needs.append(other)
                return other

            text = _written(body, "any", named)
            lines.append(f"{name} ::= {text}")
            self.budget.spend(len(lines[-1]) + 1)
            if len(lines) % 64 == 0:
                self.budget.tick()
            for other in reversed(needs):
                if other not in done:
                    done.add(other)
                    todo.append(other)
        return "\n".join(lines) + "\n"


def names(expression: Expression) -> Iterator[str]:
    """The rules that an expression refers to."""
    tick_sometimes()
    if expression[0] == "rule":
        yield expression[1]
    elif expression[0] in ("seq", "any"):
        for part in expression[1]:
            yield from names(part)
    elif expression[0] == "times":
        yield from names(expression[1])


def _leads(expression: Expression, productive: set[str]) -> bool:
    tick_sometimes()
    kind = expression[0]
    if kind == "text":
        return True
    if kind == "rule":
        return expression[1] in productive
    if kind == "seq":
        return all(_leads(part, productive) for part in expression[1])
    if kind == "any":
        return any(_leads(part, productive) for part in expression[1])
    return expression[2] == 0 or _leads(expression[1], productive)


def _pruned(expression: Expression, productive: set[str]) -> Expression:
    """Without what leads to no text."""
    tick_sometimes()
    kind = expression[0]
    if kind == "rule":
        return expression if expression[1] in productive else NEVER
    if kind == "seq":
        return seq(*(_pruned(part, productive) for part in expression[1]))
    if kind == "any":
        return any_of(found for part in expression[1] if (found := _pruned(part, productive)) != NEVER)
    if kind == "times":
        return times(_pruned(expression[1], productive), *expression[2:])
    return expression


def _written(expression: Expression, where: str, named: Callable[[str], str]) -> str:
    tick_sometimes()
    kind = expression[0]
    if kind == "text":
        return str(expression[1])
    if kind == "rule":
        return named(expression[1])
    if kind == "times":
        least, most = expression[2:]
        inner = _written(expression[1], "times", named)
        signs = {(0, None): "*", (1, None): "+", (0, 1): "?"}
        bounds = f"{least}" if least == most else f"{least},{'' if most is None else most}"
        return inner + (signs.get((least, most)) or f"{{{bounds}}}")
    parts = expression[1]
    if kind == "seq":
        text = " ".join(_written(part, "seq", named) for part in parts) or '""'
        return f"({text})" if where == "times" and len(parts) > 1 else text
    text = " | ".join(_written(part, "any", named) for part in parts)
    return f"({text})" if where != "any" else text

"""Random texts of a GBNF grammar, drawn from the grammar itself, without a model."""

from __future__ import annotations

import random
from typing import Any

#: Repetitions without a limit stop here.
MANY = 3


class Walker:
    """Reads a grammar and draws texts that it admits.

    Raises:
        ValueError: it is none.
    """

    def __init__(self, grammar: str) -> None:
        self._rules: dict[str, Any] = {}
        for line in grammar.splitlines():
            name, _, body = line.partition("::=")
            if name.strip() in self._rules:
                raise ValueError(f"two rules are named {name.strip()}")
            reader = _Reader(body)
            self._rules[name.strip()] = reader.choice()
            if reader.at < len(reader.text):
                raise ValueError(f"what is {reader.text[reader.at :][:40]!r} in {line[:80]!r}?")
        self._depths = self._shortest()

    def draw(self, rng: random.Random, depth: int = 30) -> str:
        """A text; below ``depth`` rules it takes the shortest way to the end."""
        found: list[str] = []
        todo: list[tuple[Any, int]] = [(("rule", "root"), 0)]
        while todo:
            node, level = todo.pop()
            kind = node[0]
            if kind == "text":
                found.append(node[1])
            elif kind == "class":
                found.append(_character(node, rng))
            elif kind == "rule":
                todo.append((self._rules[node[1]], level + 1))
            elif kind == "seq":
                todo.extend((part, level) for part in reversed(node[1]))
            elif kind == "any":
                parts = node[1]
                if level > depth or len(found) > 3000:
                    least = min(map(self._depth, parts))
                    parts = [part for part in parts if self._depth(part) == least]
                todo.append((rng.choice(parts), level))
            else:
                least, most = node[2:]
                stop = (
                    least if level > depth or len(found) > 3000 else min(least + MANY, most if most is not None else least + MANY)
                )
                # the bounds themselves are where faults are
                n = rng.choice([least, stop, rng.randint(least, stop)]) if least <= 3000 else least
                if most is not None and most <= 60 and level <= depth and rng.random() < 0.2:
                    n = most
                todo.extend([(node[1], level)] * min(n, 100_000))
        return "".join(found)

    def _shortest(self) -> dict[str, float]:
        depths = dict.fromkeys(self._rules, float("inf"))
        self._depths = depths
        changed = True
        while changed:
            changed = False
            for name, node in reversed(self._rules.items()):
                new = 1 + self._depth(node)
                if new < depths[name]:
                    depths[name], changed = new, True
        if depths["root"] == float("inf"):
            raise ValueError("the grammar has no text")
        return depths

    def _depth(self, node: Any) -> float:
        kind = node[0]
        if kind == "rule":
            return self._depths[node[1]]
        if kind == "seq":
            return max(map(self._depth, node[1]), default=0)
        if kind == "any":
            return min(map(self._depth, node[1]))
        if kind == "times":
            return 0 if node[2] == 0 else self._depth(node[1])
        return 0


def _character(node: Any, rng: random.Random) -> str:
    _, negated, ranges = node
    if not negated:
        first, last = rng.choice(ranges)
        return chr(rng.choice([first, last, rng.randint(first, last)]))
    edges = [edge for first, last in ranges for edge in (first - 1, last + 1)]
    while True:
        code = rng.choice(
            [*edges, rng.randint(0x20, 0x7E), rng.randint(0x20, 0x7E), rng.randint(0, 0x2FF), rng.randint(0, 0x10FFFF)]
        )
        if 0 <= code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF and not any(first <= code <= last for first, last in ranges):
            return chr(code)


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.space()

    def space(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in " \t":
            self.at += 1

    def choice(self) -> Any:
        parts = [self.sequence()]
        while self.text[self.at : self.at + 1] == "|":
            self.at += 1
            self.space()
            parts.append(self.sequence())
        return parts[0] if len(parts) == 1 else ("any", parts)

    def sequence(self) -> Any:
        parts = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self.repeated(self.atom()))
        return ("seq", parts)

    def atom(self) -> Any:
        char = self.text[self.at]
        if char == "(":
            self.at += 1
            self.space()
            node = self.choice()
            if self.text[self.at : self.at + 1] != ")":
                raise ValueError("a ( is not closed")
            self.at += 1
        elif char == '"':
            self.at += 1
            found = ""
            while self.text[self.at] != '"':
                found += chr(self.code())
            self.at += 1
            node = ("text", found)
        elif char == "[":
            self.at += 1
            negated = self.text[self.at] == "^"
            self.at += negated
            ranges = []
            while self.text[self.at] != "]":
                first = last = self.code()
                if self.text[self.at] == "-" and self.text[self.at + 1] != "]":
                    self.at += 1
                    last = self.code()
                if last < first or 0xD800 <= first <= 0xDFFF or 0xD800 <= last <= 0xDFFF:
                    raise ValueError("a range ends before it begins, or is no character")
                ranges.append((first, last))
            self.at += 1
            if not ranges:
                raise ValueError("a class of nothing")
            node = ("class", negated, ranges)
        elif char == ".":
            self.at += 1
            node = ("class", True, [(0x110000, 0x110000)])
        else:
            start = self.at
            while self.at < len(self.text) and (self.text[self.at].isalnum() or self.text[self.at] == "-"):
                self.at += 1
            if start == self.at:
                raise ValueError(f"what is {self.text[self.at :][:40]!r}?")
            node = ("rule", self.text[start : self.at])
        self.space()
        return node

    def repeated(self, node: Any) -> Any:
        while self.at < len(self.text) and self.text[self.at] in "*+?{":
            char = self.text[self.at]
            self.at += 1
            if char == "{":
                end = self.text.index("}", self.at)
                least, comma, most = self.text[self.at : end].partition(",")
                self.at = end + 1
                node = ("times", node, int(least), int(most) if most else None if comma else int(least))
                if node[3] is not None and node[3] < node[2]:
                    raise ValueError("a repetition's most is less than its least")
            else:
                node = ("times", node, int(char == "+"), 1 if char == "?" else None)
            self.space()
        return node

    def code(self) -> int:
        char = self.text[self.at]
        self.at += 1
        if char != "\\":
            return ord(char)
        char = self.text[self.at]
        self.at += 1
        if char in "xuU":
            n = {"x": 2, "u": 4, "U": 8}[char]
            self.at += n
            return int(self.text[self.at - n : self.at], 16)
        return ord({"n": "\n", "r": "\r", "t": "\t"}.get(char) or {c: c for c in '\\"[]-'}[char])

"""Sets of characters, as sorted ranges of code points, and how JSON and GBNF write them."""

from __future__ import annotations

import bisect
import functools
import json
import re
import unicodedata
from collections.abc import Iterable

from .gbnf import Expression, any_of, quoted, seq

#: Ranges of code points, sorted, with a gap between each and the next.
Characters = tuple[tuple[int, int], ...]

LAST = 0x10FFFF
HALVES = re.compile("[\ud800-\udfff]")
#: What a string can hold: halves of surrogate pairs are no characters.
ALL: Characters = ((0, 0xD7FF), (0xE000, LAST))
#: What JSON does not allow as it is.
ESCAPED: Characters = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))
_SHORT = {0x22: '"', 0x5C: "\\", 8: "b", 12: "f", 10: "n", 13: "r", 9: "t"}


def ranges(found: Iterable[tuple[int, int]]) -> Characters:
    """Sorted and joined."""
    result: list[tuple[int, int]] = []
    for first, last in sorted(found):
        if result and first <= result[-1][1] + 1:
            result[-1] = result[-1][0], max(last, result[-1][1])
        else:
            result.append((first, last))
    return tuple(result)


def of(text: str) -> Characters:
    """The characters of a text."""
    return ranges((ord(char), ord(char)) for char in text)


def union(*sets: Characters) -> Characters:
    """What is in any of the sets."""
    return ranges(item for one in sets for item in one)


def without(one: Characters, other: Characters) -> Characters:
    """What is in one set and not in the other."""
    result = []
    at = 0
    for first, last in one:
        while at < len(other) and other[at][1] < first:
            at += 1
        next_at = at
        while next_at < len(other) and other[next_at][0] <= last:
            if other[next_at][0] > first:
                result.append((first, other[next_at][0] - 1))
            first = other[next_at][1] + 1
            next_at += 1
        if first <= last:
            result.append((first, last))
    return tuple(result)


def common(one: Characters, other: Characters) -> Characters:
    """What is in both."""
    return without(one, without(ALL, other))


def inverse(one: Characters) -> Characters:
    """All other characters."""
    return without(ALL, one)


def holds(one: Characters, code: int) -> bool:
    """Whether a set has the character of that code point."""
    at = bisect.bisect_right(one, (code, LAST + 1)) - 1
    return at >= 0 and one[at][0] <= code <= one[at][1]


@functools.lru_cache(maxsize=1)
def _categories() -> dict[str, list[tuple[int, int]]]:
    """Ranges of each general category."""
    found: dict[str, list[tuple[int, int]]] = {}
    # planes of which nothing is assigned, or all to private use, need no look at each
    known = [*range(0x34000), *range(0xE0000, 0xE1000)]
    start, last, before = 0, -1, "Cc"
    for code in known:
        name = unicodedata.category(chr(code))
        if name != before or code != last + 1:
            found.setdefault(before, []).append((start, last))
            start, before = code, name
        last = code
    found.setdefault(before, []).append((start, last))
    found.setdefault("Cn", []).extend([(0x34000, 0xDFFFF), (0xE1000, 0xEFFFF), (0xFFFFE, 0xFFFFF), (0x10FFFE, 0x10FFFF)])
    found["Co"] += [(0xF0000, 0xFFFFD), (0x100000, 0x10FFFD)]
    return found


@functools.lru_cache(maxsize=64)
def category(name: str) -> Characters:
    """The characters of a general category ("Lu"), or of a group of them ("L")."""
    return common(ranges(item for one, listed in _categories().items() if one.startswith(name) for item in listed), ALL)


def bracket(characters: Characters) -> str:
    """A GBNF class of characters.

    It says what is in it: what a class leaves out (``[^…]``) would also let bytes pass that are no character.
    """
    return "[" + "".join(map(_range, characters)) + "]"


def _range(found: tuple[int, int]) -> str:
    first, last = found
    if first == last:
        return _code(first)
    return _code(first) + ("-" if last > first + 1 else "") + _code(last)


def _code(code: int) -> str:
    if chr(code).isascii() and chr(code).isalnum():
        return chr(code)
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


@functools.lru_cache(maxsize=4096)
def in_json(characters: Characters) -> Expression:
    """One of the characters, as JSON writes it within a string; each is written in one way."""
    plain, escaped = without(characters, ESCAPED), common(characters, ESCAPED)
    found: list[Expression] = []
    if plain:
        found.append(("text", bracket(plain)))
    if escaped:
        codes = [code for first, last in escaped for code in range(first, last + 1)]
        short = "".join(_code(ord(_SHORT[code])) for code in codes if code in _SHORT)
        if short:
            found.append(seq(("text", r'"\\"'), ("text", f"[{short}]")))
        for high in ("0", "1"):
            low = "".join(f"{code & 15:x}" for code in codes if code not in _SHORT and f"{code >> 4:x}" == high)
            if low:
                found.append(seq(("text", rf'"\\u00{high}"'), ("text", f"[{low}]")))
    return any_of(found)


def raw(characters: Characters) -> Expression:
    """One of the characters, as it is."""
    return ("text", bracket(characters)) if characters else any_of(())


def text_in_json(text: str) -> str:
    """What JSON writes between quotation marks."""
    return json.dumps(text, ensure_ascii=HALVES.search(text) is not None)[1:-1]


def text_in_gbnf(text: str) -> Expression:
    """A text as JSON writes it within a string, as a literal."""
    return ("text", quoted(text_in_json(text))) if text else seq()

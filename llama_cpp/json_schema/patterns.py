"""Regular expressions as JSON Schema means them (ECMA-262, with ``u``), parsed into trees.

Dialects disagree about some classes: ``\\d`` holds every script's digits for Python, and ASCII's alone for JavaScript. What is
parsed as it is holds the characters that all agree on, so that no reader refuses the text; what is parsed to be excluded
(``wide``) holds those of any of them.

A tree is a tuple: ``("set", characters)``, ``("seq", parts)``, ``("any", parts)``, ``("times", part, least, most)``,
``("start",)`` or ``("end",)``.
"""

from __future__ import annotations

import functools
from typing import Any

from ..errors import GrammarError
from . import characters
from .budget import tick, tick_sometimes
from .characters import Characters

Tree = tuple[Any, ...]

_DIGITS: Characters = ((0x30, 0x39),)
_WORD: Characters = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE = characters.of("\t\n\v\f\r \xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))))
_LINE_ENDS = characters.of("\n\r\u2028\u2029")
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_GROUPS = {
    "Letter": "L", "Lowercase_Letter": "Ll", "Uppercase_Letter": "Lu", "Titlecase_Letter": "Lt", "Modifier_Letter": "Lm",
    "Other_Letter": "Lo",
    "Mark": "M", "Number": "N", "Decimal_Number": "Nd", "Letter_Number": "Nl", "Punctuation": "P", "Symbol": "S",
    "Separator": "Z",
    "Space_Separator": "Zs", "Other": "C", "Control": "Cc",
}  # fmt: skip
_CATEGORIES = {
    "L", "Ll", "Lu", "Lt", "Lm", "Lo", "M", "Mn", "Mc", "Me", "N", "Nd", "Nl", "No", "P", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf",
    "Po",
    "S", "Sm", "Sc", "Sk", "So", "Z", "Zs", "Zl", "Zp", "C", "Cc", "Cf", "Co", "Cn",
}  # fmt: skip
#: No text is longer.
MOST = 1 << 60
_DEPTH = 100


class Unsupported(Exception):
    """The pattern is valid, and more than a grammar can express."""


@functools.lru_cache(maxsize=512)
def parse(pattern: str, wide: bool = False) -> Tree:
    """The tree of a pattern.

    Raises:
        GrammarError: it is none. Unsupported.
    """
    parser = _Parser(pattern, wide)
    tree = parser.alternatives(0)
    if parser.at < len(pattern):
        raise parser.wrong("a ) that nothing opens")
    return tree


class _Parser:
    def __init__(self, text: str, wide: bool) -> None:
        self.text, self.at, self.wide = text, 0, wide
        self.n_atoms = 0

    def wrong(self, why: str) -> GrammarError:
        return GrammarError(f"{self.text[:80]!r} is no regular expression: {why}, at character {self.at + 1}.")

    def unsupported(self, what: str) -> Unsupported:
        return Unsupported(f"{what} (at character {self.at + 1} of {self.text[:80]!r}) cannot be expressed by a grammar")

    def take(self, text: str) -> bool:
        if self.text.startswith(text, self.at):
            self.at += len(text)
            return True
        return False

    def next(self) -> str:
        if self.at >= len(self.text):
            raise self.wrong("it breaks off")
        self.at += 1
        return self.text[self.at - 1]

    def alternatives(self, depth: int) -> Tree:
        if depth > _DEPTH:
            raise self.wrong(f"groups are nested more than {_DEPTH} deep")
        found = [self.sequence(depth)]
        while self.take("|"):
            found.append(self.sequence(depth))
        return found[0] if len(found) == 1 else ("any", tuple(found))

    def sequence(self, depth: int) -> Tree:
        parts: list[Tree] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            part = self.atom(depth)
            parts.append(self.repeated(part))
        return parts[0] if len(parts) == 1 else ("seq", tuple(parts))

    def atom(self, depth: int) -> Tree:
        self.n_atoms += 1
        if self.n_atoms % 64 == 0:
            tick()
        char = self.next()
        if char == "^":
            return ("start",)
        if char == "$":
            # for Python the end is also before a line end that comes last
            return ("end",) if not self.wide else ("any", (("end",), ("seq", (("set", characters.of("\n")), ("end",)))))
        if char == "(":
            return self.group(depth)
        if char == "[":
            return ("set", self.bracket())
        if char == ".":
            return ("set", characters.inverse(characters.of("\n") if self.wide else _LINE_ENDS))
        if char == "\\":
            return self.escaped()
        if char in "*+?":
            raise self.wrong("nothing to repeat")
        return ("set", characters.of(char))

    def group(self, depth: int) -> Tree:
        if self.take("?"):
            if self.text[self.at : self.at + 1] in ("=", "!") or self.text[self.at : self.at + 2] in ("<=", "<!"):
                raise self.unsupported("looking ahead or behind")
            if self.take("<") or self.take("P<"):
                end = self.text.find(">", self.at)
                if end < 0:
                    raise self.wrong("a group's name does not end")
                self.at = end + 1
            elif not self.take(":"):
                raise self.wrong("an unknown kind of group")
        tree = self.alternatives(depth + 1)
        if not self.take(")"):
            raise self.wrong("a ( that nothing closes")
        return tree

    def repeated(self, part: Tree) -> Tree:
        if self.take("*"):
            least, most = 0, None
        elif self.take("+"):
            least, most = 1, None
        elif self.take("?"):
            least, most = 0, 1
        elif (found := self.counts()) is not None:
            least, most = found
            if most is not None and most < least:
                raise self.wrong(f"a repetition's most, {most}, is less than its least, {least}")
        else:
            return part
        self.take("?")  # how much is taken first does not matter for what matches
        if self.text[self.at : self.at + 1] in ("*", "+", "?"):
            raise self.wrong("nothing to repeat")
        if part[0] in ("start", "end"):
            raise self.unsupported("a repeated anchor")
        return ("times", part, least, most)

    def counts(self) -> tuple[int, int | None] | None:
        end = self.text.find("}", self.at)
        if not self.text.startswith("{", self.at) or end < 0:
            return None
        least, comma, most = self.text[self.at + 1 : end].partition(",")
        if not (least.isascii() and least.isdigit()) or (most and not (most.isascii() and most.isdigit())):
            return None  # braces that are no counts stand for themselves
        self.at = end + 1
        # more digits than that mean more than there is
        low = min(MOST, int(least[-4000:])) if len(least) < 4000 else MOST
        if not comma:
            return low, low
        return low, (min(MOST, int(most)) if len(most) < 4000 else MOST) if most else None

    def escaped(self) -> Tree:
        char = self.text[self.at : self.at + 1]
        if char in ("b", "B"):
            raise self.unsupported("the end of a word (\\b)")
        if char in "123456789" and char:
            raise self.unsupported("a reference to a group")
        if char == "k" and self.text[self.at + 1 : self.at + 2] == "<":
            raise self.unsupported("a reference to a group")
        return ("set", self.escape())

    def escape(self) -> Characters:
        """What follows a backslash, in a class or outside."""
        char = self.next()
        if char in "dDwWsS":
            return self.kind(char)
        if char in "pP":
            return self.category(char == "P")
        if char in _CONTROLS:
            code = _CONTROLS[char]
        elif char == "c" and self.text[self.at : self.at + 1].isascii() and self.text[self.at : self.at + 1].isalpha():
            code = ord(self.next()) & 31
        elif char == "x":
            code = self.hexadecimal(2)
        elif char == "u":
            code = self.unicode()
        elif char.isascii() and char.isalnum():
            raise self.wrong(f"\\{char} means nothing")
        else:
            code = ord(char)
        if 0xD800 <= code <= 0xDFFF:
            raise self.unsupported("half of a surrogate pair")
        return ((code, code),)

    def kind(self, char: str) -> Characters:
        ascii_only = {"d": _DIGITS, "w": _WORD, "s": _SPACE}[char.lower()]
        if self.wide != char.isupper():
            if char in "dD":
                ascii_only = characters.category("Nd")
            elif char in "wW":
                ascii_only = characters.union(_WORD, *map(characters.category, ("L", "N", "M", "Pc", "Cf")))
            else:
                ascii_only = characters.union(_SPACE, ((0x1C, 0x1F), (0x85, 0x85), (0xFEFF, 0xFEFF)))
        return characters.inverse(ascii_only) if char.isupper() else ascii_only

    def category(self, negated: bool) -> Characters:
        if not self.take("{"):
            raise self.wrong("\\p needs a category in braces")
        end = self.text.find("}", self.at)
        name = self.text[self.at : end] if end >= 0 else ""
        short = name.removeprefix("General_Category=").removeprefix("gc=")
        short = _GROUPS.get(short, short)
        if short not in _CATEGORIES:
            raise self.unsupported(f"\\p{{{name}}}")
        self.at = end + 1
        found = characters.category(short)
        return characters.inverse(found) if negated else found

    def hexadecimal(self, n: int) -> int:
        digits = self.text[self.at : self.at + n]
        if len(digits) < n or any(digit not in "0123456789abcdefABCDEF" for digit in digits):
            raise self.wrong(f"{n} hexadecimal digits are missing")
        self.at += n
        return int(digits, 16)

    def unicode(self) -> int:
        if self.take("{"):
            end = self.text.find("}", self.at)
            code = self.hexadecimal(end - self.at) if self.at < end <= self.at + 8 else -1
            if not 0 <= code <= characters.LAST or not self.take("}"):
                raise self.wrong("\\u{…} is no character")
            return code
        code = self.hexadecimal(4)
        if 0xD800 <= code < 0xDC00 and self.take("\\u"):
            low = self.hexadecimal(4)
            if not 0xDC00 <= low <= 0xDFFF:
                raise self.wrong("half of a surrogate pair")
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
        return code

    def bracket(self) -> Characters:
        negated = self.take("^")
        # what is left out of a negated class is to be left out for every reader
        self.wide ^= negated
        found: list[tuple[int, int]] = []
        while not self.take("]"):
            first = self.member()
            if self.text.startswith("-", self.at) and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                last = self.member()
                single = len(first) == len(last) == 1 and first[0][0] == first[0][1] and last[0][0] == last[0][1]
                if not single:
                    # a class beside a hyphen: all of them stand for themselves
                    found += [*first, (0x2D, 0x2D), *last]
                    continue
                if last[0][0] < first[0][0]:
                    raise self.wrong("a range ends before it begins")
                found.append((first[0][0], last[0][0]))
            else:
                found += first
        self.wide ^= negated
        result = characters.common(characters.ranges(found), characters.ALL)
        return characters.inverse(result) if negated else result

    def member(self) -> Characters:
        char = self.next()
        if char != "\\":
            if "\ud800" <= char <= "\udfff":
                raise self.unsupported("half of a surrogate pair")
            return characters.of(char)
        if self.take("b"):
            return ((8, 8),)
        return self.escape()


def lengths(tree: Tree) -> tuple[int, int | None]:
    """The fewest and the most characters that a tree stands for."""
    tick_sometimes()
    kind = tree[0]
    if kind == "set":
        return 1, 1
    if kind in ("start", "end"):
        return 0, 0
    if kind == "times":
        low, high = lengths(tree[1])
        least, most = tree[2:]
        return low * least, 0 if high == 0 else None if most is None or high is None else high * most
    found = [lengths(part) for part in tree[1]]
    highs = [high for _, high in found if high is not None]
    none = len(highs) < len(found)
    if kind == "seq":
        return sum(low for low, _ in found), None if none else sum(highs)
    return min(low for low, _ in found), None if none else max(highs)


def unanchored(tree: Tree) -> tuple[Tree, bool, bool] | None:
    """A tree without its anchors, and whether it begins and ends with one; None where they are elsewhere."""
    if tree[0] == "any":
        found = [item for part in tree[1] if (item := unanchored(part)) is not None]
        if len(found) < len(tree[1]) or len({item[1:] for item in found}) != 1:
            return None
        return ("any", tuple(item[0] for item in found)), found[0][1], found[0][2]
    parts: tuple[Tree, ...] = tree[1] if tree[0] == "seq" else (tree,)
    start = bool(parts) and parts[0] == ("start",)
    end = len(parts) > 0 and parts[-1] == ("end",)
    inner = parts[1:] if start else parts
    inner = inner[:-1] if end and inner else inner
    if any(map(_anchored, inner)):
        # a group of all that stands between them
        if len(inner) == 1 and (found_inner := unanchored(inner[0])) is not None:
            return found_inner[0], start or found_inner[1], end or found_inner[2]
        return None
    return (inner[0] if len(inner) == 1 else ("seq", tuple(inner))), start, end


def _anchored(tree: Tree) -> bool:
    tick_sometimes()
    if tree[0] in ("start", "end"):
        return True
    if tree[0] == "times":
        return _anchored(tree[1])
    return tree[0] in ("seq", "any") and any(map(_anchored, tree[1]))

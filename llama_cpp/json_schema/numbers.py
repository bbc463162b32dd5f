"""Numbers: bounds, multiples, and what is left out, digit by digit.

A number is looked at as a whole one of so many digits, the last ``places`` of which stand behind the point. Its digits are read
from the left by an automaton that knows whether it is still at the lower or at the upper bound, and the rest of the division.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

from .budget import STEPS
from .gbnf import EMPTY, NEVER, Expression, Grammar, any_of, literal, seq, times

#: Digits of a number without bounds.
_DIGITS = 16
#: Digits that a double tells apart, whatever they are.
_EXACT = 15
#: Digits that a bound may have.
MOST_DIGITS = 100
#: Rests of a division that an automaton may tell apart.
_RESTS = 2000
#: Rules that a limit on their digits may take, where there is no bound.
_COUNTED = 1500


class TooManyDigits(Exception):
    """A bound, or a multiple, is longer than a grammar is made for."""


@dataclass
class NumberRules:
    """What a number has to satisfy; the bounds are in it, unless they are ``open``.

    Attributes:
        whole: True for whole numbers, False for others, None for both.
    """

    whole: bool | None = None
    least: Fraction | None = None
    least_open: bool = False
    most: Fraction | None = None
    most_open: bool = False
    multiple: Fraction | None = None
    excluded: set[Fraction] = field(default_factory=set)

    def at_least(self, bound: Fraction, is_open: bool) -> None:
        """Adds a lower bound."""
        if self.least is None or bound > self.least or (bound == self.least and is_open):
            self.least, self.least_open = bound, is_open

    def at_most(self, bound: Fraction, is_open: bool) -> None:
        """Adds an upper bound."""
        if self.most is None or bound < self.most or (bound == self.most and is_open):
            self.most, self.most_open = bound, is_open

    def multiple_of(self, divisor: Fraction) -> None:
        """Adds a divisor."""
        one = self.multiple
        if one is None:
            self.multiple = divisor
        else:
            numerator = math.lcm(one.numerator * divisor.denominator, divisor.numerator * one.denominator)
            self.multiple = Fraction(numerator, one.denominator * divisor.denominator)


def expression(rules: NumberRules, grammar: Grammar) -> Expression:
    """The numbers that satisfy the rules.

    Raises:
        TooManyDigits.
    """
    bounded = rules.least is not None or rules.most is not None or bool(rules.excluded)
    if not bounded and rules.multiple is None:
        return _any(rules.whole, grammar)
    divisor = rules.multiple
    if rules.whole:
        divisor = (
            Fraction(1) if divisor is None else Fraction(math.lcm(divisor.numerator, divisor.denominator), divisor.denominator)
        )
    if divisor is not None and divisor.denominator == 1:
        if rules.whole is False:
            return NEVER
        return _scaled(rules, grammar, 0, divisor.numerator)
    if rules.whole is False:
        raise TooManyDigits  # bounds of what is not whole are rare enough
    if divisor is not None:
        places = _places(divisor)
        return _scaled(rules, grammar, places, int(divisor * 10**places))
    return _scaled(rules, grammar, _fraction_places(rules), 1)


def _any(whole: bool | None, grammar: Grammar) -> Expression:
    digits = grammar.shared("integral-part", "integral-part", lambda: ("text", "[0] | [1-9] [0-9]{0,15}"))
    signed = seq(times(literal("-"), 0, 1), digits)
    if whole:
        return grammar.shared("integer", "integer", lambda: signed)
    if whole is False:
        return grammar.shared("fraction", "fraction", lambda: seq(signed, ("text", '"." [0-9]{0,14} [1-9]')))
    # larger exponents are more than a double can hold
    rest = ("text", '("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?')
    return grammar.shared("number", "number", lambda: seq(signed, rest))


def _places(value: Fraction) -> int:
    """Decimal places that a value has."""
    places = 0
    while value.denominator != 1:
        value *= 10
        places += 1
        if places > MOST_DIGITS:
            raise TooManyDigits
    return places


def _fraction_places(rules: NumberRules) -> int:
    """How many decimal places numbers between bounds have: what is written must not be rounded onto an open bound."""
    values = [*rules.excluded, *(bound for bound in (rules.least, rules.most) if bound is not None)]
    needed = max(map(_places, values), default=0)
    strict = [
        *rules.excluded,
        *(b for b, is_open in ((rules.least, rules.least_open), (rules.most, rules.most_open)) if b is not None and is_open),
    ]
    whole_digits = max((len(str(abs(int(value)))) for value in strict), default=1)
    return max(needed, _EXACT - whole_digits, 0)


def _scaled(rules: NumberRules, grammar: Grammar, places: int, divisor: int) -> Expression:
    scale = 10**places
    least = (
        None
        if rules.least is None
        else math.floor(rules.least * scale) + 1
        if rules.least_open
        else math.ceil(rules.least * scale)
    )
    most = (
        None if rules.most is None else math.ceil(rules.most * scale) - 1 if rules.most_open else math.floor(rules.most * scale)
    )
    # what has no bound has fewer digits than that
    most = None if most is not None and most >= 10**MOST_DIGITS else most
    least = None if least is not None and least <= -(10**MOST_DIGITS) else least
    if (least or 0) >= 10**MOST_DIGITS or (most or 0) <= -(10**MOST_DIGITS):
        raise TooManyDigits
    excluded = sorted(int(value * scale) for value in rules.excluded if (value * scale).denominator == 1)
    if least is not None and most is not None:
        first, last = -(-least // divisor), most // divisor
        if last < first:
            return NEVER
        if divisor > 1 and last - first < 2 * _RESTS and (last - first < 64 or divisor > _RESTS):
            multiples = (k * divisor for k in range(first, last + 1))
            return _listed((value for value in multiples if value not in set(excluded)), places, grammar)
    if places == 0 and divisor % 10 == 0:
        return _with_zeros(grammar, least, most, divisor, excluded)
    if divisor > _RESTS:
        raise TooManyDigits
    digits = _Digits(grammar, places, divisor)
    found = []
    for low, high in _gaps(least, most, excluded):
        positive = max(low, 0) if low is not None else 0
        if high is None or high >= positive:
            found.append(digits.between(positive, high))
        if low is None or low < 0:
            smallest = max(1, -high) if high is not None and high < 0 else 1
            found.append(seq(literal("-"), digits.between(smallest, None if low is None else -low)))
    digits.finish()
    return any_of(found)


def _with_zeros(grammar: Grammar, least: int | None, most: int | None, divisor: int, excluded: list[int]) -> Expression:
    """Multiples of 10, 100, …: what stands before the zeros, and them."""
    zeros = len(str(divisor)) - len(str(divisor).rstrip("0"))
    power = 10**zeros
    rules = NumberRules(whole=True, excluded={Fraction(0), *(Fraction(value, power) for value in excluded)})
    rules.least = None if least is None else Fraction(-(-least // power))
    rules.most = None if most is None else Fraction(most // power)
    found = []
    if (least is None or least <= 0) and (most is None or most >= 0) and 0 not in excluded:
        found.append(literal("0"))
    if least is None or most is None or rules.least <= rules.most:  # type: ignore[operator]
        found.append(seq(_scaled(rules, grammar, 0, divisor // power), literal("0" * zeros)))
    return any_of(found)


def _gaps(least: int | None, most: int | None, excluded: Iterable[int]) -> Iterable[tuple[int | None, int | None]]:
    """Ranges between what is left out."""
    low = least
    for point in excluded:
        if (low is not None and point < low) or (most is not None and point > most):
            continue
        if low is None or low <= point - 1:
            yield low, point - 1
        low = point + 1
    if low is None or most is None or low <= most:
        yield low, most


def _listed(values: Iterable[int], places: int, grammar: Grammar) -> Expression:
    from .literals import one_of

    texts = []
    for value in values:
        digits = str(abs(value)).rjust(places + 1, "0")
        text = digits[: len(digits) - places]
        fraction = digits[len(digits) - places :].rstrip("0")
        texts.append(("-" if value < 0 else "") + text + (f".{fraction}" if fraction else ""))
    return one_of(texts, grammar)


class _Digits:
    """Texts of whole numbers from one to another, with a point before the last ``places`` digits, that ``divisor`` divides."""

    def __init__(self, grammar: Grammar, places: int, divisor: int) -> None:
        self.grammar, self.places, self.divisor = grammar, places, divisor
        self.steps = 0
        self.names: dict[tuple[int, int, int, int], str] = {}
        self.todo: list[tuple[int, int, int, int]] = []

    def between(self, least: int, most: int | None) -> Expression:
        if most is not None and most < least:
            return NEVER
        found = []
        n = max(len(str(least)), self.places + 1)
        last = n if most is None else max(len(str(most)), self.places + 1)
        for length in range(n, last + 1):
            first = 0 if length == self.places + 1 else 10 ** (length - 1)
            low, high = max(least, first), 10**length - 1 if most is None else min(most, 10**length - 1)
            if (low, high) == (first, 10**length - 1) and length > self.places + 1:
                # numbers of any of these lengths
                longest = max(_DIGITS + self.places, length + 1) if most is None else last - (most != 10**last - 1)
                found.append(self.longer(length - self.places, self.extra(longest - length, most is None)))
                if longest < last:
                    found.append(self.tight(10 ** (last - 1), most or 0, last))
                return any_of(found)
            if low <= high:
                found.append(self.tight(low, high, length))
        if most is None:
            found.append(self.longer(last + 1 - self.places, self.extra(max(_DIGITS, last + 1) - last - 1, True)))
        return any_of(found)

    def extra(self, n: int, endless: bool) -> int:
        """How many further digits there may be; -1 is any number, where counting them takes too many rules."""
        return -1 if endless and self.divisor * n > _COUNTED else n

    def tight(self, low: int, high: int, length: int) -> Expression:
        return self.of(str(low).rjust(length, "0"), str(high).rjust(length, "0"), 0, length - self.places)

    def longer(self, whole: int, extra: int) -> Expression:
        """Numbers of so many digits before the point, or up to ``extra`` more."""
        if self.divisor == 1:
            return seq(("text", "[1-9]"), times(("text", "[0-9]"), whole - 1, whole - 1 + extra), self.fraction())
        parts: dict[Expression, list[int]] = {}
        for digit in range(1, 10):
            following = self.free(whole - 1 + self.places, digit % self.divisor, whole - 1, extra)
            if following != NEVER:
                parts.setdefault(following, []).append(digit)
        return any_of(seq(("text", _digits(digits)), following) for following, digits in parts.items())

    def of(self, low: str, high: str, rest: int, whole: int) -> Expression:
        """What follows, of numbers from ``low`` to ``high``: ``whole`` of their digits stand before the point, -1 behind it."""
        self.steps += 1
        if self.steps > STEPS:
            raise TooManyDigits
        n = len(low)
        if n == 0:
            return EMPTY if rest == 0 else NEVER
        free = low == "0" * n and high == "9" * n
        if free:
            return self.free(n, rest, whole)
        if whole == 0:
            found = [seq(literal("."), self.of(low, high, rest, -1))]
            if low == "0" * n and (rest * 10**n) % self.divisor == 0:
                found.append(EMPTY)
            return any_of(found)
        parts: dict[Expression, list[int]] = {}
        first, last = int(low[0]), int(high[0])
        for digit in range(first, last + 1):
            next_low = low[1:] if digit == first else "0" * (n - 1)
            next_high = high[1:] if digit == last else "9" * (n - 1)
            following = self.of(next_low, next_high, (rest * 10 + digit) % self.divisor, whole - 1 if whole > 0 else -1)
            if following == NEVER:
                continue
            ends = next_low == "0" * (n - 1) and ((rest * 10 + digit) * 10 ** (n - 1)) % self.divisor == 0
            if whole == -1 and n > 1 and ends and following[0] != "times":
                following = any_of([EMPTY, following])
            parts.setdefault(following, []).append(digit)
        return any_of(seq(("text", _digits(digits)), following) for following, digits in parts.items())

    def free(self, n: int, rest: int, whole: int, extra: int = 0) -> Expression:
        """``n`` digits of any kind follow, ``whole`` of them before the point; and up to ``extra`` more of these.

        -1 stands for any number of them.
        """
        if self.divisor == 1:
            if whole < 0:
                # zeros at the end can be left out
                return ("times", ("text", "[0-9]"), 0, n)
            return seq(times(("text", "[0-9]"), whole, whole), self.fraction() if n > whole else EMPTY)
        if n == 0 and extra == 0:
            return EMPTY if rest == 0 else NEVER
        state = n, rest, whole, extra
        if state not in self.names:
            self.names[state] = self.grammar.name("digits")
            self.todo.append(state)
        return ("rule", self.names[state])

    def finish(self) -> None:
        """Makes the rules that are referred to."""
        while self.todo:
            self.grammar.budget.tick()
            state = self.todo.pop()
            self.grammar.rules[self.names[state]] = self.follow(*state)

    def follow(self, n: int, rest: int, whole: int, extra: int) -> Expression:
        self.steps += 1
        if self.steps > STEPS:
            raise TooManyDigits
        found: list[Expression] = []
        if whole == 0:
            if n:
                found.append(seq(literal("."), self.free(n, rest, -1)))
            if (rest * 10**n) % self.divisor == 0:
                found.append(EMPTY)
            if extra == 0:
                return any_of(found)
        parts: dict[Expression, list[int]] = {}
        for digit in range(10):
            new = (rest * 10 + digit) % self.divisor
            if whole == 0:
                following = self.free(n, new, 0, extra - 1 if extra > 0 else -1)
            else:
                following = self.free(n - 1, new, whole - 1 if whole > 0 else -1, extra)
            if whole == -1 and n > 1 and (new * 10 ** (n - 1)) % self.divisor == 0:
                following = any_of([EMPTY, following])
            if following != NEVER:
                parts.setdefault(following, []).append(digit)
        return any_of([*found, *(seq(("text", _digits(digits)), following) for following, digits in parts.items())])

    def fraction(self) -> Expression:
        return ("text", f'("." [0-9]{{1,{self.places}}})?') if self.places else EMPTY


def _digits(digits: list[int]) -> str:
    if len(digits) == 1:
        return f'"{digits[0]}"'
    if digits == list(range(digits[0], digits[-1] + 1)):
        return f"[{digits[0]}-{digits[-1]}]"
    return "[" + "".join(map(str, digits)) + "]"

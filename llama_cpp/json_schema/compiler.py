"""Schemas into the rules of a grammar: one rule for each set of schemas that hold for the same value."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

from ..errors import GrammarError
from . import arrays, literals, numbers, objects, patterns, strings
from .alternatives import ALL_TYPES, ASSERTIONS, Alternative, Expander, Member, is_free
from .automata import Absent, Automaton, Listed, NotJson, TooLarge, Until, accepts
from .budget import DEPTH
from .document import Document, Node, exact
from .formats import FORMATS
from .gbnf import NEVER, Expression, Grammar, any_of, literal, names, rule, seq, times
from .numbers import NumberRules
from .strings import StringRules
from .validation import Validator, key_of, type_of

_log = logging.getLogger(__name__)

#: White space where JSON allows it, as llama.cpp has it.
SPACE_RULE = r'space ::= | " " | "\n"{1,2} [ \t]{0,20}'
SPACE = rule("space")
COMMA = seq(literal(","), SPACE)


class Compiler:
    """Makes the rules.

    Args:
        strict: whether what cannot be expressed is an error; else it is left out, and the log says so.
    """

    def __init__(self, document: Document, grammar: Grammar, strict: bool = True) -> None:
        self.document, self.grammar, self.strict = document, grammar, strict
        self.validator = Validator(document)
        self.expander = Expander(document, grammar.budget, self.unsupported, strict)
        self._states: dict[frozenset[Node], str] = {}
        self._waiting: list[tuple[str, tuple[Node, ...]]] = []
        self._current = self._any = ""
        #: why a rule leads to no text
        self._reasons: dict[str, tuple[str, str]] = {}
        grammar.rules["space"] = ("text", SPACE_RULE.partition(" ::= ")[2])

    def compile(self, node: Node, name: str) -> str:
        """The grammar of the values that a schema accepts; ``name`` is its first rule's.

        Raises:
            GrammarError: it cannot be expressed, or no value satisfies it.
        """
        self.grammar.rules[name] = NEVER
        self._states[frozenset((node,))] = name
        self._waiting.append((name, (node,)))
        return self._finish(name)

    def compile_raw(self, node: Node, name: str, end: str, *, with_end: bool, mixed: bool, absent: str = "") -> str:
        """The same for a string that is written as it is, until ``end``, which is written, too, ``with_end``.

        Args:
            mixed: whether what reads as JSON is taken for that; other values are written so then. absent: what must not be in it.
        """
        self._current = name
        self.grammar.rules[name] = NEVER
        parts = []
        for one in self.expander.expand([node]):
            others = one.types - {"string"}
            if mixed and others:
                parts.append(self.alternative(Alternative(one.members, others), node.place))
            if "string" in one.types:
                parts.append(
                    self._raw(
                        one, node.place, [Until(end), *((Absent(absent),) if absent else ()), *((NotJson(),) if mixed else ())]
                    )
                )
        self.grammar.rules[name] = seq(any_of(parts), literal(end) if with_end else seq())
        return self._finish(name)

    def _raw(self, one: Alternative, place: str, automata: list[Automaton]) -> Expression:
        listed = self.listed(one)
        try:
            if listed is not None:
                texts = [
                    value
                    for value in self.grammar.budget.each(listed)
                    if isinstance(value, str) and all(accepts(automaton, value) for automaton in automata)
                ]
                found = literals.one_of(texts, self.grammar) if texts else NEVER
            else:
                found = strings.raw(self.string_rules(one.members), self.grammar, "text", *automata)
        except TooLarge:
            self.unsupported(place, "pattern", "pattern, format and lengths together are too much for a grammar")
            found = strings.raw(StringRules(), self.grammar, "text", *automata)
        return found if found != NEVER else self.never(place, "no text satisfies it that this chat template can write.")

    def _finish(self, name: str) -> str:
        """Makes the rules that wait, and writes all of them."""
        while self._waiting:
            self._current, nodes = self._waiting.pop()
            self.grammar.budget.tick()
            self.grammar.rules[self._current] = self._state(nodes)
        productive = self.grammar.productive()
        if name not in productive:
            place, why = self._reason(name)
            raise GrammarError(f"{place}: {why}", remedy="Nothing can satisfy the schema.")
        return self.grammar.write(name, productive)

    def unsupported(self, place: str, keyword: str, why: str) -> None:
        """What a grammar cannot express: an error, or left out."""
        if self.strict:
            raise GrammarError(
                f"{place}: {why}.", remedy="Leave it out, or give strict=False: then it is checked when the answer is there."
            )
        _log.warning("%s: %s. It is left out of the grammar.", place, why)

    def never(self, place: str, why: str) -> Expression:
        """Nothing, for that reason."""
        self._reasons.setdefault(self._current, (place, why))
        return NEVER

    def _reason(self, name: str) -> tuple[str, str]:
        todo, seen = [name], {name}
        while todo:
            at = todo.pop(0)
            if at in self._reasons:
                return self._reasons[at]
            for other in names(self.grammar.rules[at]):
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        places = [node.place for nodes, state in self._states.items() if state == name for node in nodes]
        return (places or ["#"])[0], "every value that satisfies it would hold another one, without end."

    # --- values ---

    def value(self, nodes: Iterable[Node]) -> Expression:
        """A value that satisfies all of the schemas."""
        kept = dict.fromkeys(node for node in map(self._target, nodes) if not is_free(self._checked(node)))
        false = [node for node in kept if node.schema is False]
        if false:
            return self.never(false[0].place, "it is false, which nothing satisfies.")
        if not kept:
            return self.any_value()
        key = frozenset(kept)
        name = self._states.get(key)
        if name is None:
            first = next(iter(kept))
            name = self._states[key] = self.grammar.name(_hint(first.place))
            self._waiting.append((name, tuple(kept)))
        return rule(name)

    def _target(self, node: Node) -> Node:
        """What a schema that is nothing but a reference leads to."""
        for _ in range(DEPTH):
            schema = self._checked(node)
            if isinstance(schema, bool) or "$ref" not in schema or (len(schema) > 1 and not _SAY_NOTHING.issuperset(schema)):
                break
            node = self.document.follow(node)
        return node

    def _checked(self, node: Node) -> Any:
        self.document.check(node)
        return node.schema

    def any_value(self) -> Expression:
        """Any JSON."""
        if not self._any:
            self._any = self.grammar.name("value")
            kinds = [
                self.any_object(),
                self.any_array(),
                strings.string(self.grammar),
                numbers.expression(NumberRules(), self.grammar),
            ]
            self.grammar.rules[self._any] = any_of([*kinds, self.boolean(), literal("null")])
        return rule(self._any)

    def any_object(self) -> Expression:
        """Any object."""

        def make() -> Expression:
            pair = seq(strings.string(self.grammar), literal(":"), SPACE, self.any_value())
            return seq(literal("{"), SPACE, times(seq(pair, times(seq(COMMA, pair)), SPACE), 0, 1), literal("}"))

        return self.grammar.shared("object", "object", make)

    def any_array(self) -> Expression:
        """Any array."""

        def make() -> Expression:
            items = seq(self.any_value(), times(seq(COMMA, self.any_value())), SPACE)
            return seq(literal("["), SPACE, times(items, 0, 1), literal("]"))

        return self.grammar.shared("array", "array", make)

    def boolean(self) -> Expression:
        """true or false."""
        return self.grammar.shared("boolean", "boolean", lambda: any_of([literal("true"), literal("false")]))

    def _state(self, nodes: tuple[Node, ...]) -> Expression:
        alternatives = self.expander.expand(nodes)
        if not alternatives:
            return self.never(nodes[0].place, "its parts contradict each other.")
        if len(alternatives) == 1:
            return self.alternative(alternatives[0], nodes[0].place)
        parts = []
        for alternative in alternatives:
            place = alternative.members[-1].node.place if alternative.members else nodes[0].place
            key = (
                alternative if _unevaluated(alternative) else (frozenset(m.node for m in alternative.members), alternative.types)
            )
            parts.append(self.grammar.shared(key, _hint(place), functools.partial(self.alternative, alternative, place)))
        return any_of(parts)

    def alternative(self, one: Alternative, place: str) -> Expression:
        """A value that satisfies all members of an alternative."""
        if not one.members and one.types == ALL_TYPES:
            return self.any_value()
        listed = self.listed(one)
        if listed is not None:
            if not listed:
                return self.never(place, "none of the values that it lists satisfies the rest of it.")
            return literals.one_of(map(literals.text_of, self.grammar.budget.each(listed)), self.grammar)
        excluded = [value for member in one.members for value in member.node.schema.get("$excluded", ())]
        excluded_keys = {key_of(value) for value in self.grammar.budget.each(excluded)}
        parts = []
        if "object" in one.types:
            if any(isinstance(value, dict) for value in excluded):
                self.unsupported(place, "not", "an object cannot be left out of others by a grammar")
            parts.append(objects.expression(self, one, place))
        if "array" in one.types:
            if any(isinstance(value, list) for value in excluded):
                self.unsupported(place, "not", "an array cannot be left out of others by a grammar")
            parts.append(arrays.expression(self, one, place))
        if "string" in one.types:
            parts.append(self._string(one, place))
        if one.types & {"integer", "$fraction"}:
            parts.append(self._number(one, place, [value for value in excluded if type_of(value) in ("integer", "number")]))
        if "boolean" in one.types:
            truths = [value for value in (True, False) if key_of(value) not in excluded_keys]
            parts.append(self.boolean() if len(truths) == 2 else any_of(literal(str(value).lower()) for value in truths))
        if "null" in one.types and key_of(None) not in excluded_keys:
            parts.append(literal("null"))
        return any_of(parts)

    def listed(self, one: Alternative) -> list[Any] | None:
        """The values that are left, where they are listed."""
        lists = [
            (member.node, word, member.node.schema[word] if word == "enum" else [member.node.schema[word]])
            for member in one.members for word in ("const", "enum") if word in member.node.schema
        ]  # fmt: skip
        if not lists:
            return None
        source, source_word, values = min(lists, key=lambda found: len(found[2]))
        checks = [
            (member.node, word)
            for member in one.members for word in member.node.schema
            if word in _CHECKED and not (member.node is source and word == source_word)
        ]  # fmt: skip
        each = self.grammar.budget.each
        keys = [{key_of(value) for value in each(found)} for node, word, found in lists if (node, word) != (source, source_word)]
        checks = [(node, word) for node, word in checks if word not in ("const", "enum")]
        return [
            value for value in each(values)
            if {"number": "$fraction"}.get(kind := type_of(value), kind) in one.types
            and all(key_of(value) in found for found in keys)
            and all(self._satisfies(node, word, value) for node, word in checks)
        ]  # fmt: skip

    def _satisfies(self, node: Node, word: str, value: Any) -> bool:
        try:
            return self.validator.keyword(node, word, value, 0)
        except GrammarError as error:
            if self.strict:
                raise
            _log.warning("%s It is left out of the grammar.", error)
            return True

    # --- strings ---

    def string_rules(self, members: Sequence[Member]) -> StringRules:
        """What members say about strings."""
        rules = StringRules()
        for member in members:
            schema = member.node.schema
            rules.least = max(rules.least, int(schema.get("minLength", 0)))
            if "maxLength" in schema:
                most = int(schema["maxLength"])
                rules.most = most if rules.most is None else min(rules.most, most)
            rules.excluded |= {value for value in schema.get("$excluded", ()) if isinstance(value, str)}
            for word, wide in (("pattern", False), ("$mismatch", True)):
                if word in schema:
                    tree = self.pattern(schema[word], member.node.at("pattern"), wide)
                    if tree is not None:
                        (rules.mismatches if wide else rules.matches).append(tree)
            if isinstance(schema.get("format"), str) and schema["format"] in FORMATS:
                rules.formats.append(tuple(map(patterns.parse, FORMATS[schema["format"]])))
        rules.matches, rules.formats = list(dict.fromkeys(rules.matches)), list(dict.fromkeys(rules.formats))
        return rules

    def pattern(self, pattern: str, place: str, wide: bool = False) -> patterns.Tree | None:
        """A pattern as a tree; None where it is left out."""
        self.grammar.budget.tick()
        try:
            return patterns.parse(pattern, wide)
        except GrammarError as error:
            raise GrammarError(f"{place}: {error}", remedy="Patterns are those of ECMA-262.") from None
        except patterns.Unsupported as error:
            self.unsupported(place, "pattern", str(error))
            return None

    def _string(self, one: Alternative, place: str) -> Expression:
        rules = self.string_rules(one.members)
        if rules.most is not None and rules.most < rules.least:
            return self.never(place, f"maxLength {rules.most} is less than minLength {rules.least}.")
        try:
            found = strings.expression(rules, self.grammar, _hint(place))
        except TooLarge:
            self.unsupported(
                place,
                "pattern",
                "pattern, format and lengths together are too much for a grammar (shorter repetitions and lengths take less)",
            )
            return strings.expression(StringRules(rules.least, rules.most), self.grammar, _hint(place))
        return found if found != NEVER else self.never(place, "no string satisfies its pattern, format and lengths together.")

    def keys(self, nodes: Sequence[Node], place: str) -> list[list[Automaton]]:
        """The strings that satisfy all of the schemas, as lists of automata; those of one of them accept."""
        if not nodes:
            return [[]]
        found: list[list[Automaton]] = []
        for one in self.expander.expand(nodes):
            if "string" not in one.types:
                continue
            listed = self.listed(one)
            found.append(
                self.string_rules(one.members).automata() if listed is None else [Listed(v for v in listed if isinstance(v, str))]
            )
        return found

    # --- numbers ---

    def _number(self, one: Alternative, place: str, excluded: list[Any]) -> Expression:
        both = {"integer", "$fraction"} <= one.types
        rules = NumberRules(None if both else "integer" in one.types, excluded={exact(value) for value in excluded})
        for member in one.members:
            schema = member.node.schema
            if "minimum" in schema:
                rules.at_least(exact(schema["minimum"]), schema.get("exclusiveMinimum") is True)
            if "maximum" in schema:
                rules.at_most(exact(schema["maximum"]), schema.get("exclusiveMaximum") is True)
            if not isinstance(schema.get("exclusiveMinimum", True), bool):
                rules.at_least(exact(schema["exclusiveMinimum"]), True)
            if not isinstance(schema.get("exclusiveMaximum", True), bool):
                rules.at_most(exact(schema["exclusiveMaximum"]), True)
            if "multipleOf" in schema:
                rules.multiple_of(exact(schema["multipleOf"]))
        try:
            found = numbers.expression(rules, self.grammar)
        except numbers.TooManyDigits:
            words = [word for word in _NUMBER_WORDS if any(word in member.node.schema for member in one.members)] or ["not"]
            where = next((m.node.at(words[0]) for m in one.members if words[0] in m.node.schema), place)
            self.unsupported(where, words[0], f"{' and '.join(words)} with so many digits cannot be expressed by a grammar")
            return numbers.expression(NumberRules(rules.whole), self.grammar)
        if found != NEVER:
            return found
        return self.never(place, f"no {'integer' if rules.whole else 'number'} is {_range(rules)}.")


#: What listed values are compared with.
_CHECKED = ASSERTIONS - {"type"}
#: Keywords beside a reference that change nothing.
_SAY_NOTHING = {"$ref", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
_NUMBER_WORDS = ("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def _unevaluated(one: Alternative) -> bool:
    return any("unevaluatedProperties" in m.node.schema or "unevaluatedItems" in m.node.schema for m in one.members)


def _range(rules: NumberRules) -> str:
    def shown(value: Fraction) -> str:
        return str(value.numerator if value.denominator == 1 else float(value))

    said = []
    if rules.least is not None:
        said.append(f"{'above' if rules.least_open else 'at least'} {shown(rules.least)}")
    if rules.most is not None:
        said.append(f"{'below' if rules.most_open else 'at most'} {shown(rules.most)}")
    if rules.multiple is not None:
        said.append(f"a multiple of {shown(rules.multiple)}")
    if rules.excluded:
        said.append("none of those that are left out")
    return " and ".join(said)


def _hint(place: str) -> str:
    words = [word for word in place.split("/")[1:] if word not in ("properties", "$defs", "definitions")]
    return "-".join(words[-3:]) or "schema"

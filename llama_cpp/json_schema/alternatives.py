"""Schemas that hold for the same value, taken apart: without references, ``allOf``, ``anyOf``, ``oneOf``, ``not`` and ``if``.

What is left are alternatives. A value that satisfies all the keywords of all the schemas of one of them satisfies the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import GrammarError
from .budget import ALTERNATIVES, DEPTH, Budget
from .document import TYPES, Document, Node
from .negation import Opposite, disjoint

#: Keywords that are looked at here; a schema of no others says nothing more.
_TAKEN_APART = {
    "$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentRequired",
    "dependentSchemas", "dependencies",
}  # fmt: skip
#: Keywords that say what a value must be, whatever else there may be.
ASSERTIONS = {
    "type", "const", "enum", "$excluded", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minLength", "maxLength",
    "pattern", "$mismatch", "format", "minItems", "maxItems", "uniqueItems", "items", "prefixItems", "additionalItems",
    "contains",
    "unevaluatedItems", "minProperties", "maxProperties", "required", "properties", "patternProperties",
    "additionalProperties", "propertyNames",
    "unevaluatedProperties",
}  # fmt: skip
ALL_TYPES = frozenset((*TYPES, "$fraction")) - {"number"}

Report = Callable[[str, str, str], None]


@dataclass(frozen=True)
class Member:
    """A schema of an alternative; ``inside`` are those which it is a part of, without a value between."""

    node: Node
    inside: frozenset[Node]


@dataclass(frozen=True)
class Alternative:
    """Schemas all of which hold. ``types``: the names of the types that they leave."""

    members: tuple[Member, ...]
    types: frozenset[str]


@dataclass(frozen=True)
class _Step:
    node: Node
    above: _Step | None
    depth: int
    counts: bool  # whether what it looks at is evaluated, for unevaluatedProperties


@dataclass(frozen=True)
class _Partial:
    todo: tuple[_Step, ...]
    members: tuple[Member, ...]
    seen: frozenset[Node]
    types: frozenset[str]


class Expander:
    """Takes schemas apart.

    Args:
        unsupported: is told place, keyword and reason of what cannot be expressed; raises, or lets it be left out.
        strict: whether it raises.
    """

    def __init__(self, document: Document, budget: Budget, unsupported: Report, strict: bool) -> None:
        self._document, self._budget, self._unsupported, self._strict = document, budget, unsupported, strict
        self._left_out: tuple[str, str] | None = None

    def expand(self, nodes: Sequence[Node]) -> list[Alternative]:
        """The alternatives of schemas that hold together.

        Raises:
            GrammarError: what cannot be taken apart, with its place.
        """
        self._left_out = None
        first = tuple(_Step(node, None, 0, True) for node in nodes)
        stack, found = [_Partial(first, (), frozenset(), ALL_TYPES)], []
        while stack:
            partial = stack.pop()
            while partial.todo and partial.types:
                ways = self._take(partial)
                if len(ways) != 1:
                    stack.extend(reversed(ways[1:]))
                    if not ways:
                        break
                partial = ways[0]
            else:
                if partial.types:
                    found.append(Alternative(partial.members, partial.types))
            if len(found) + len(stack) > ALTERNATIVES:
                raise GrammarError(
                    f"{nodes[0].place}: its anyOf, oneOf, if and not can be combined in more than {ALTERNATIVES} ways.",
                    remedy="Nest fewer of them into each other.",
                )
        if not found and self._left_out is not None:
            # there may be values, and none that could be found
            place, word = self._left_out
            self._unsupported(place, word, f"the opposite of {word} cannot be expressed by a grammar")
        return found

    def _take(self, partial: _Partial) -> list[_Partial]:
        """What one further schema makes of it."""
        self._budget.tick()
        step, todo = partial.todo[0], partial.todo[1:]
        node = step.node
        above = step.above
        while above is not None:
            if above.node is node:
                raise GrammarError(f"{node.place}: it refers to itself without a value between: nothing says what it is.")
            above = above.above
        if step.depth > DEPTH:
            raise GrammarError(f"{node.place}: schemas for the same value are nested more than {DEPTH} deep.")
        if node in partial.seen or node.schema is True:
            return [_Partial(todo, partial.members, partial.seen, partial.types)]
        if node.schema is False:
            return []
        self._document.check(node)
        members, types, schema = partial.members, partial.types, node.schema
        if not ASSERTIONS.isdisjoint(schema):
            members = (*members, Member(node, _ancestors(step)))
            if "type" in schema:
                types &= _types(schema["type"])
        more, forks = self._parts(step)
        partials = [_Partial((*more, *todo), members, partial.seen | {node}, types)]
        for fork in forks:
            partials = [_Partial((*way, *one.todo), one.members, one.seen, one.types) for one in partials for way in fork]
            if len(partials) > ALTERNATIVES:
                break
        return partials

    def _parts(self, step: _Step) -> tuple[list[_Step], list[list[list[_Step]]]]:
        """Schemas that hold, too, and lists of ways, of each of which one must."""
        node, document = step.node, self._document
        schema = node.schema
        if _TAKEN_APART.isdisjoint(schema):
            return [], []

        def below(other: Node, counts: bool = step.counts) -> _Step:
            return _Step(other, step, step.depth + 1, counts)

        more: list[_Step] = []
        forks: list[list[list[_Step]]] = []
        for word in ("$ref", "$dynamicRef", "$recursiveRef"):
            if word in schema:
                if word != "$ref" and not document.single:
                    self._unsupported(node.at(word), word, "references that depend on who refers are not followed")
                    continue
                more.append(below(document.follow(node, word)))
        for n in self._budget.each(range(len(schema.get("allOf", ())))):
            more.append(below(document.child(node, "allOf", n)))
        if "anyOf" in schema:
            forks.append([[below(document.child(node, "anyOf", n))] for n in self._budget.each(range(len(schema["anyOf"])))])
        if "oneOf" in schema:
            forks.append(self._one_of(node, below))
        if "not" in schema:
            forks.append([[below(other, False)] for other in self._opposite(document.child(node, "not"), node.at("not"))])
        if "if" in schema:
            forks.append(self._condition(node, below))
        for word in ("dependentRequired", "dependentSchemas", "dependencies"):
            for name, needs in schema.get(word, {}).items():
                listed = needs if isinstance(needs, list) else []
                absent = document.made(node, (word, name, "absent"), {"properties": {name: False}})
                there = document.made(node, (word, name, "there"), {"type": "object", "required": [name, *listed]})
                way = [] if isinstance(needs, list) else [below(document.child(node, word, name))]
                forks.append([[below(absent, False)], [below(there, False), *way]])
        return more, forks

    def _one_of(self, node: Node, below: Callable[..., _Step]) -> list[list[_Step]]:
        """Each alternative, without what the others accept as well."""
        document = self._document
        branches = [document.child(node, "oneOf", n) for n in range(len(node.schema["oneOf"]))]
        apart: dict[tuple[int, int], bool] = {}
        for n, one in enumerate(branches):
            self._budget.tick()
            for m in range(n):
                apart[n, m] = apart[m, n] = disjoint(document, one, branches[m])
        ways = []
        for n, branch in enumerate(branches):
            way = [below(branch)]
            for m, other in enumerate(branches):
                if m != n and not apart[n, m]:
                    opposite = document.made(other, "not", {"not": other})
                    try:
                        self._opposite(other, node.at("oneOf"))
                    except GrammarError as error:
                        first, second = sorted((n, m))
                        raise GrammarError(
                            f"{node.at('oneOf')}: a value may satisfy both the alternatives {first} and {second}, "
                            f"which oneOf forbids, and a grammar cannot rule that out ({error}).",
                            remedy='Use "anyOf", or give each a required member with a "const" of its own.',
                        ) from None
                    way.append(below(opposite, False))
            ways.append(way)
        return ways

    def _condition(self, node: Node, below: Callable[..., _Step]) -> list[list[_Step]]:
        document, schema = self._document, node.schema
        if "then" not in schema and "else" not in schema:
            return [[]]
        met = document.child(node, "if")
        ways = [[below(met), *([below(document.child(node, "then"))] if "then" in schema else [])]]
        missed = document.made(met, "not", {"not": met})
        ways.append([below(missed, False), *([below(document.child(node, "else"))] if "else" in schema else [])])
        return ways

    def _opposite(self, node: Node, place: str) -> list[Node]:
        """Schemas, one of which accepts what ``node`` refuses."""
        opposite = Opposite(self._document, node)
        if opposite.left_out and not any(way is not False for way in opposite.ways):
            self._unsupported(
                place, opposite.left_out[0], f"the opposite of {opposite.left_out[0]} cannot be expressed by a grammar"
            )
            return [self._document.made(node, ("opposite", "any"), True)]
        if opposite.left_out:
            self._left_out = place, opposite.left_out[0]
        if opposite.left_out and not self._strict:
            return [self._document.made(node, ("opposite", "any"), True)]
        return [
            way if isinstance(way, Node) else self._document.made(node, ("opposite", n), way)
            for n, way in enumerate(opposite.ways)
        ]


def _ancestors(step: _Step) -> frozenset[Node]:
    found = {step.node}
    while step.counts and step.above is not None:
        step = step.above
        found.add(step.node)
    return frozenset(found)


def _types(given: Any) -> frozenset[str]:
    listed = [given] if isinstance(given, str) else given
    found = set(listed) - {"number"}
    if "number" in listed:
        found |= {"integer", "$fraction"}
    return frozenset(found)


def is_free(schema: Mapping[str, Any] | bool) -> bool:
    """Whether a schema accepts everything."""
    return schema is True or (isinstance(schema, Mapping) and ASSERTIONS.isdisjoint(schema) and _TAKEN_APART.isdisjoint(schema))

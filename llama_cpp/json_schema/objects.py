"""Objects: members in the order of the schema, then those that it does not name."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from . import patterns
from .alternatives import Alternative, Member
from .automata import Automaton, Excluded, LengthModulo, Matches, Table, TooLarge
from .budget import STEPS
from .characters import in_json, text_in_json
from .document import Node
from .gbnf import EMPTY, NEVER, Expression, any_of, literal, rule, seq, times

if TYPE_CHECKING:
    from .compiler import Compiler

#: What says something about objects.
KEYWORDS = {
    "minProperties", "maxProperties", "required", "properties", "patternProperties", "additionalProperties", "propertyNames",
    "unevaluatedProperties",
}  # fmt: skip
_SPACE = rule("space")
_COMMA = seq(literal(","), _SPACE)
_END = seq(_SPACE, literal("}"))
#: Patterns of which all combinations are written; of more, a name matches one alone, or none.
_COMBINED = 4


def expression(compiler: Compiler, one: Alternative, place: str) -> Expression:
    """The objects that satisfy an alternative."""
    members = [member for member in one.members if not KEYWORDS.isdisjoint(member.node.schema)]
    if not members:
        return compiler.any_object()
    return _Object(compiler, members, place).expression()


class _Object:
    def __init__(self, compiler: Compiler, members: list[Member], place: str) -> None:
        self.compiler, self.members, self.place = compiler, members, place
        self.grammar = compiler.grammar
        schemas = [member.node.schema for member in members]
        self.required = dict.fromkeys(name for schema in schemas for name in schema.get("required", ()))
        self.names = dict.fromkeys(name for schema in schemas for name in schema.get("properties", ()))
        self.declared = len(self.names)
        self.names.update(self.required)
        self.least = max((int(schema.get("minProperties", 0)) for schema in schemas), default=0)
        bounds = [int(schema["maxProperties"]) for schema in schemas if "maxProperties" in schema]
        self.most = min(bounds) if bounds else None
        self.name_schemas = [
            compiler.document.child(m.node, "propertyNames") for m in members if "propertyNames" in m.node.schema
        ]
        self.patterns = list(dict.fromkeys(pattern for schema in schemas for pattern in schema.get("patternProperties", ())))

    def expression(self) -> Expression:
        if self.most is not None and self.most < max(self.least, len(self.required)):
            what = (
                f"minProperties {self.least}" if self.least > self.most else f"the {len(self.required)} names that are required"
            )
            return self.compiler.never(self.place, f"maxProperties {self.most} is less than {what}.")
        pairs: list[tuple[Expression, bool]] = []
        for name in self.names:
            self.grammar.budget.tick()
            self.grammar.budget.spend(40 + len(name))
            needed = name in self.required
            value = self._named(name, needed)
            if value == NEVER:
                if needed:
                    return NEVER
                continue
            key = literal(f'"{text_in_json(name)}"')
            pairs.append((seq(key, _SPACE, literal(":"), _SPACE, value), needed))
        return seq(literal("{"), _SPACE, self._listed(pairs))

    # --- which values members have ---

    def _named(self, name: str, needed: bool) -> Expression:
        """The value of a member by its name."""
        compiler = self.compiler
        for node in self.name_schemas:
            if not compiler.validator.accepts(node, name):
                return (
                    compiler.never(node.place, f"the name {name!r} is required, and propertyNames does not allow it.")
                    if needed
                    else NEVER
                )
        sure, possible = set(), set()
        for pattern in self.patterns:
            place = self.place
            if self._tree(pattern, True) is None:
                continue
            if compiler.validator.matches(pattern, name, wide=True, place=place):
                possible.add(pattern)
                if compiler.validator.matches(pattern, name, place=place):
                    sure.add(pattern)
        nodes = self._schemas(name, sure, possible)
        false = [node for node in nodes if node.schema is False]
        if false:
            # what is not required is not there then
            return compiler.never(false[0].place, f"it does not allow {name!r}, which is required.") if needed else NEVER
        return compiler.value(nodes)

    def _schemas(self, name: str | None, sure: set[str], possible: set[str]) -> list[Node]:
        """All that is said about the value of a name (None is one that no schema has) that matches these patterns."""
        child, found = self.compiler.document.child, []
        for member in self.members:
            schema = member.node.schema
            hit = name is not None and name in schema.get("properties", ())
            if hit:
                found.append(child(member.node, "properties", name))  # type: ignore[arg-type]
            for pattern in schema.get("patternProperties", ()):
                if pattern in possible:
                    found.append(child(member.node, "patternProperties", pattern))
                    hit = hit or pattern in sure
            if not hit and "additionalProperties" in schema:
                found.append(child(member.node, "additionalProperties"))
        for member in self.members:
            if "unevaluatedProperties" in member.node.schema and not self._evaluated(member, name, sure):
                found.append(child(member.node, "unevaluatedProperties"))
        return found

    def _evaluated(self, owner: Member, name: str | None, sure: set[str]) -> bool:
        for member in self.members:
            schema = member.node.schema
            if owner.node not in member.inside:
                continue
            if name is not None and name in schema.get("properties", ()):
                return True
            if any(pattern in sure for pattern in schema.get("patternProperties", ())):
                return True
            if "additionalProperties" in schema or (member is not owner and "unevaluatedProperties" in schema):
                return True
        return False

    # --- names that are not listed ---

    def _tree(self, pattern: str, wide: bool) -> patterns.Tree | None:
        return self.compiler.pattern(pattern, f"{self.place}/patternProperties", wide)

    def _others(self, wanted: bool, *more: Automaton) -> Expression:
        """A member whose name is not listed, or matches a pattern; ``wanted``: also where no schema asks for such ones."""
        kinds = []
        n = len(self.patterns)
        subsets: Iterable[tuple[str, ...]]
        if n <= _COMBINED:
            subsets = itertools.chain.from_iterable(itertools.combinations(self.patterns, k) for k in range(n, -1, -1))
        else:
            subsets = itertools.chain(((pattern,) for pattern in self.patterns), ((),))
        for subset in subsets:
            chosen = set(subset)
            if not chosen and not wanted and not self._open():
                continue
            nodes = self._schemas(None, chosen, chosen)
            if any(node.schema is False for node in nodes):
                continue
            key = self._key(chosen, more)
            if key != NEVER:
                kinds.append(seq(key, _SPACE, literal(":"), _SPACE, self.compiler.value(nodes)))
        return any_of(kinds)

    def _open(self) -> bool:
        """Whether names that no schema has are written: where one speaks of them, or none has names or patterns of its own."""
        if not self.declared and not self.patterns:
            return True
        schemas = [member.node.schema for member in self.members]
        return any(
            schema.get(word, False) is not False
            for schema in schemas
            for word in ("additionalProperties", "unevaluatedProperties")
        )

    def _key(self, chosen: set[str], more: tuple[Automaton, ...]) -> Expression:
        compiler, grammar = self.compiler, self.grammar
        plain = not (self.names or self.patterns or self.name_schemas or more)
        if plain:
            from .strings import string

            return string(grammar)
        automata: list[Automaton] = [Excluded(self.names)] if self.names else []
        try:
            for pattern in self.patterns:
                tree = self._tree(pattern, pattern not in chosen)
                if tree is not None:
                    automata.append(Matches(tree, negated=pattern not in chosen))
            found = []
            for keys in compiler.keys(self.name_schemas, self.place):
                table = Table([*automata, *keys, *more], grammar.budget)
                found.append(table.expression(grammar, "key", self._character, literal('"')))
        except TooLarge:
            compiler.unsupported(
                self.place, "propertyNames", "propertyNames, patternProperties and properties together are too much for a grammar"
            )
            from .strings import string

            return string(grammar)
        return seq(literal('"'), any_of(found)) if found else NEVER

    def _character(self, found: tuple[tuple[int, int], ...]) -> Expression:
        written = in_json(found)
        if written[0] == "text" and len(written[1]) < 60:
            return written
        return self.grammar.shared(("characters", found), "char", lambda: written)

    # --- how many there are ---

    def _listed(self, pairs: list[tuple[Expression, bool]]) -> Expression:
        """Members, one after the other, and the end."""
        n_needed = sum(needed for _, needed in pairs)
        # other names may be needed to have enough
        distinct = max(0, self.least - len(pairs))
        others = self._others(wanted=distinct > 0)
        counted = self.least > n_needed or (self.most is not None and (others != NEVER or self.most < len(pairs)))
        if not counted:
            return self._uncounted(pairs, others)
        if others == NEVER and distinct:
            return self.compiler.never(self.place, f"it has {len(pairs)} names at most, and minProperties is {self.least}.")
        return self._counted(pairs, others, n_needed)

    def _uncounted(self, pairs: list[tuple[Expression, bool]], others: Expression) -> Expression:
        first = seq(times(seq(others, times(seq(_COMMA, others)), _SPACE), 0, 1), literal("}"))
        later = seq(times(seq(_COMMA, others)), _END)
        for at in range(len(pairs) - 1, -1, -1):
            pair, needed = pairs[at]
            if needed:
                first, later = seq(pair, later), seq(_COMMA, pair, later)
                continue
            # what follows is referred to twice
            later = self._rule(later)
            first, later = any_of([seq(pair, later), first]), any_of([seq(_COMMA, pair, later), later])
        return first

    def _rule(self, expression: Expression) -> Expression:
        if expression[0] == "rule":
            return expression
        name = self.grammar.name(f"{_last(self.place)}-rest")
        self.grammar.rules[name] = expression
        return rule(name)

    def _counted(self, pairs: list[tuple[Expression, bool]], others: Expression, n_needed: int) -> Expression:
        """The same, with the number of members so far.

        Names that nobody lists are told apart by their lengths where several are needed: twice the same would count once.
        """
        cap = max(self.least, self.most or 0)
        if (len(pairs) + 1) * (min(cap, len(pairs)) + 1) > STEPS or self.least - n_needed > 64 + len(pairs):
            self.compiler.unsupported(
                self.place, "minProperties", "minProperties and maxProperties that large cannot be expressed by a grammar"
            )
            return self._uncounted(pairs, others)
        ends = [self._rule(self._rest(others, count)) if count <= len(pairs) else NEVER for count in range(len(pairs) + 1)]
        for at in range(len(pairs) - 1, -1, -1):
            pair, needed = pairs[at]
            following = []
            for count in range(at + 1):
                taken = NEVER
                if self.most is None or count < self.most:
                    taken = seq(*([_COMMA] if count else []), pair, ends[count + 1])
                following.append(self._rule(taken if needed else any_of(part for part in (taken, ends[count]) if part != NEVER)))
            ends = following
        return ends[0]

    def _rest(self, others: Expression, count: int) -> Expression:
        """Members whose names nobody lists, after ``count`` others."""
        need = max(0, self.least - count)
        room = None if self.most is None else self.most - count
        if room is not None and room < need:
            return NEVER
        if others == NEVER:
            return NEVER if need else _END if count else literal("}")
        parts = []
        for n in range(need):
            one = others if need == 1 else self._others(True, LengthModulo(need, n))
            parts.append(seq(*([_COMMA] if count or n else []), one))
        room = None if room is None else room - need
        if count or need:
            return seq(*parts, times(seq(_COMMA, others), 0, room), _END)
        more = times(seq(_COMMA, others), 0, None if room is None else room - 1)
        return seq(times(seq(others, more, _SPACE), 0, 1) if room != 0 else EMPTY, literal("}"))


def _last(place: str) -> str:
    return place.rsplit("/", 1)[-1]

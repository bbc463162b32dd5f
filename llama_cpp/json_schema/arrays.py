"""Arrays: items by their place, how many there are, what they contain, and that none is there twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import literals
from .alternatives import Alternative, Member
from .budget import STEPS
from .document import Node
from .gbnf import EMPTY, NEVER, Expression, any_of, literal, rule, seq, times
from .validation import key_of

if TYPE_CHECKING:
    from .compiler import Compiler

#: What says something about arrays.
KEYWORDS = {
    "minItems", "maxItems", "uniqueItems", "items", "prefixItems", "additionalItems", "contains", "unevaluatedItems",
}  # fmt: skip
_SPACE = rule("space")
_COMMA = seq(literal(","), _SPACE)
_BEGIN = seq(literal("["), _SPACE)
_END = seq(_SPACE, literal("]"))


def expression(compiler: Compiler, one: Alternative, place: str) -> Expression:
    """The arrays that satisfy an alternative."""
    members = [member for member in one.members if not KEYWORDS.isdisjoint(member.node.schema)]
    if not members:
        return compiler.any_array()
    return _Array(compiler, members, place).expression()


class _Array:
    def __init__(self, compiler: Compiler, members: list[Member], place: str) -> None:
        self.compiler, self.members, self.place = compiler, members, place
        self.grammar = compiler.grammar
        schemas = [member.node.schema for member in members]
        self.least = max(int(schema.get("minItems", 0)) for schema in schemas)
        bounds = [int(schema["maxItems"]) for schema in schemas if "maxItems" in schema]
        self.most = min(bounds) if bounds else None
        self.unique = any(schema.get("uniqueItems") for schema in schemas)
        self._prefixes = {member.node: _prefix(member.node) for member in members}
        self.n_first = max(map(len, self._prefixes.values()))

    def expression(self) -> Expression:
        never = self.compiler.never
        if self.most is not None and self.most < self.least:
            return never(self.place, f"maxItems {self.most} is less than minItems {self.least}.")
        self.grammar.budget.spend(40 * self.n_first)
        first = [self._schemas(at) for at in self.grammar.budget.each(range(self.n_first))]
        rest = self._schemas(self.n_first)
        # where nothing can follow, it ends
        for at, nodes in enumerate([*first, rest]):
            if any(node.schema is False for node in nodes):
                self.most = at if self.most is None else min(self.most, at)
                break
        if self.most is not None and self.most < self.least:
            return never(self.place, f"no item is allowed at place {self.most}, and minItems is {self.least}.")
        if self.unique and not (self.most is not None and self.most <= 1):
            return self._unique(first, rest)
        contained = [member for member in self.members if "contains" in member.node.schema and self._asks(member.node)]
        if contained:
            return self._containing(contained, first, rest)
        return self._all(first, rest)

    def _all(self, first: list[list[Node]], rest: list[Node]) -> Expression:
        items = self._listed([self.compiler.value(nodes) for nodes in self._used(first)], rest)
        # nothing, or items with a space behind them
        if items[0] == "times" and items[2:] == (0, 1):
            return seq(_BEGIN, times(seq(items[1], _SPACE), 0, 1), literal("]"))
        return seq(_BEGIN, literal("]")) if items == EMPTY else seq(_BEGIN, items, _END)

    def _used(self, first: list[list[Node]]) -> list[list[Node]]:
        return first if self.most is None else first[: self.most]

    def _schemas(self, at: int) -> list[Node]:
        """All that is said about the item at a place; the place behind the last that is said to be one is all of the rest."""
        child, found = self.compiler.document.child, []
        for member in self.members:
            node = member.node
            prefix = self._prefixes[node]
            if at < len(prefix):
                found.append(child(node, *prefix[at]))
            elif (word := _rest(node)) is not None:
                found.append(child(node, word))
        for member in self.members:
            if "unevaluatedItems" in member.node.schema and not self._evaluated(member, at):
                found.append(self._unevaluated(member))
        return found

    def _unevaluated(self, owner: Member) -> Node:
        """What is said about an item that nothing else is said about: those that ``contains`` finds are evaluated by it."""
        document = self.compiler.document
        node = document.child(owner.node, "unevaluatedItems")
        seen = [member.node for member in self.members if owner.node in member.inside and "contains" in member.node.schema]
        if not seen:
            return node
        found = [document.child(one, "contains") for one in seen]
        return document.made(node, ("or", *found), {"anyOf": [*found, node]})

    def _evaluated(self, owner: Member, at: int) -> bool:
        for member in self.members:
            if owner.node in member.inside:
                if at < len(self._prefixes[member.node]) or _rest(member.node) is not None:
                    return True
                if member is not owner and "unevaluatedItems" in member.node.schema:
                    return True
        return False

    def _listed(self, first: list[Expression], rest: list[Node]) -> Expression:
        """Items, one after the other."""
        n = len(first)
        most = None if self.most is None else self.most - n
        if most == 0:
            more = EMPTY
        else:
            item = self.compiler.value(rest)
            least = max(0, self.least - n)
            if n == 0:
                inner = seq(item, times(seq(_COMMA, item), max(0, least - 1), None if most is None else most - 1))
                return inner if least else times(inner, 0, 1)
            more = times(seq(_COMMA, item), least, most)
        for at in self.grammar.budget.each(range(n - 1, -1, -1)):
            more = seq(*([_COMMA] if at else []), first[at], more)
            if at >= self.least:
                more = times(more, 0, 1)
                if at % 8 == 7:
                    more = self._rule(more)
        return more

    def _rule(self, expression: Expression) -> Expression:
        name = self.grammar.name("items")
        self.grammar.rules[name] = expression
        return rule(name)

    # --- uniqueItems ---

    def _unique(self, first: list[list[Node]], rest: list[Node]) -> Expression:
        """Items of a list of values, in its order; of others nothing says that none comes twice."""
        compiler = self.compiler
        one_kind = not first or all(set(nodes) == set(rest) for nodes in first)
        values = self._values(rest) if one_kind else None
        if any("contains" in member.node.schema and self._asks(member.node) for member in self.members):
            values = None
        if values is None:
            if first and self.most is not None and self.most <= len(first) and self._apart(first[: self.most]):
                return self._all(first, rest)
            compiler.unsupported(
                next(m.node.at("uniqueItems") for m in self.members if m.node.schema.get("uniqueItems")), "uniqueItems",
                "that no item comes twice can be expressed by a grammar where the items' values are listed (enum, boolean), "
                "not for others",
            )  # fmt: skip
            return self._all(first, rest)
        if len(values) < self.least:
            return compiler.never(self.place, f"there are {len(values)} different values, and minItems is {self.least}.")
        if (len(values) + 1) ** 2 > STEPS and (self.least or self.most is not None):
            compiler.unsupported(
                self.place,
                "uniqueItems",
                f"uniqueItems with {len(values)} values and a number of items is too much for a grammar",
            )
        return seq(_BEGIN, self._subsets(list(map(literals.text_of, values))), _END)

    def _subsets(self, texts: list[str]) -> Expression:
        n = len(texts)
        counted = self.least > 0 or (self.most is not None and self.most < n)
        limit = max(self.least, min(self.most if self.most is not None else n, n)) if counted else 1
        # what follows when `count` items are there; the last state stands for all greater ones where nothing counts them
        ends = [EMPTY if count >= self.least else NEVER for count in range(limit + 1)]
        for at in range(n - 1, -1, -1):
            following = []
            for count in range(min(at, limit) + 1):
                more = min(count + 1, limit) if not counted else count + 1
                taken = NEVER
                if more < len(ends) and (not counted or self.most is None or more <= self.most):
                    taken = seq(*([_COMMA] if count else []), literal(texts[at]), ends[more])
                parts = [part for part in (taken, ends[count] if count < len(ends) else NEVER) if part != NEVER]
                following.append(self._rule(any_of(parts)) if parts else NEVER)
            ends = following + ends[len(following) :]
        return ends[0]

    def _values(self, nodes: list[Node]) -> list[object] | None:
        """All values of an item, where there are only so many."""
        found: dict[object, object] = {}
        for one in self.compiler.expander.expand(nodes):
            values = self.compiler.listed(one)
            if values is None:
                if not one.types <= {"boolean", "null"}:
                    return None
                gone = {key_of(value) for member in one.members for value in member.node.schema.get("$excluded", ())}
                values = [*((True, False) if "boolean" in one.types else ()), *((None,) if "null" in one.types else ())]
                values = [value for value in values if key_of(value) not in gone]
            found.update((key_of(value), value) for value in values)
        return list(found.values())

    def _apart(self, first: list[list[Node]]) -> bool:
        from .negation import disjoint

        return all(
            any(disjoint(self.compiler.document, one, other) for one in first[n] for other in first[m])
            for n in range(len(first))
            for m in range(n)
        )

    # --- contains ---

    def _asks(self, node: Node) -> bool:
        return int(node.schema.get("minContains", 1)) > 0 or "maxContains" in node.schema

    def _containing(self, contained: list[Member], first: list[list[Node]], rest: list[Node]) -> Expression:
        """Items of which some satisfy another schema: an automaton counts both."""
        compiler, document = self.compiler, self.compiler.document
        owner = contained[0].node
        if len(contained) > 1:
            compiler.unsupported(
                contained[1].node.at("contains"), "contains", "several contains for one array cannot be expressed by a grammar"
            )
        schema = owner.schema
        fewest, most_of = int(schema.get("minContains", 1)), schema.get("maxContains")
        most_of = None if most_of is None else int(most_of)
        if most_of is not None and most_of < fewest:
            return compiler.never(owner.at("maxContains"), f"maxContains {most_of} is less than minContains {fewest}.")
        node = document.child(owner, "contains")
        other = document.made(node, "not", {"not": node})
        length = self.most if self.most is not None else max(self.least, self.n_first)
        hits = fewest if most_of is None else most_of
        if (length + 2) * (hits + 2) > STEPS:
            compiler.unsupported(owner.at("contains"), "contains", "contains with so many items cannot be expressed by a grammar")
            return self._all(first, rest)
        names: dict[tuple[int, int], str] = {}
        todo: list[tuple[int, int]] = []

        def follow(n: int, k: int) -> Expression:
            """What follows ``n`` items, ``k`` of which satisfy it."""
            if self.most is None:
                n = min(n, max(length, 1))
            if most_of is None:
                k = min(k, fewest)
            if (n, k) not in names:
                names[n, k] = self.grammar.name("items")
                todo.append((n, k))
            return rule(names[n, k])

        start = follow(0, 0)
        while todo:
            n, k = todo.pop()
            parts = []
            if n >= self.least and k >= fewest:
                parts.append(EMPTY)
            if self.most is None or n < self.most:
                nodes = first[n] if n < len(first) else rest
                comma = [_COMMA] if n else []
                if most_of is None:
                    parts.append(seq(*comma, compiler.value(nodes), follow(n + 1, k)))
                else:
                    parts.append(seq(*comma, compiler.value([*nodes, other]), follow(n + 1, k)))
                if k < fewest or (most_of is not None and k < most_of):
                    parts.append(seq(*comma, compiler.value([*nodes, node]), follow(n + 1, k + 1)))
            self.grammar.rules[names[n, k]] = any_of(parts)
        return seq(_BEGIN, start, _END)


def _prefix(node: Node) -> list[tuple[str | int, ...]]:
    """Keywords that lead to the schemas of the first items."""
    schema = node.schema
    if "prefixItems" in schema:
        return [("prefixItems", n) for n in range(len(schema["prefixItems"]))]
    if isinstance(schema.get("items"), list):
        return [("items", n) for n in range(len(schema["items"]))]
    return []


def _rest(node: Node) -> str | None:
    """The keyword for all items behind them."""
    schema = node.schema
    if isinstance(schema.get("items"), list) and "prefixItems" not in schema:
        return "additionalItems" if "additionalItems" in schema else None
    return "items" if "items" in schema and not isinstance(schema["items"], list) else None

"""What a schema refuses, as a schema: for ``not``, ``if`` and ``oneOf``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .document import TYPES, Document, Node
from .formats import FORMATS

#: Keywords whose opposite is left out, because no schema says it: what is refused for their sake alone is not found.
_WITHOUT_OPPOSITE = {
    "additionalItems", "additionalProperties", "dependencies", "multipleOf", "patternProperties", "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties", "uniqueItems", "maxContains", "$dynamicRef", "$recursiveRef",
}  # fmt: skip


class Opposite:
    """A schema that accepts what another one refuses.

    Attributes:
        ways: schemas, any of which is enough. left_out: keywords for whose sake alone a value may be refused, too, and that none
            of ``ways`` speaks of: with them there is more that is refused.
    """

    def __init__(self, document: Document, node: Node) -> None:
        self._document, self._node = document, node
        self.left_out: list[str] = []
        self.ways: list[Any] = []
        document.check(node)
        if isinstance(node.schema, bool):
            self.ways = [not node.schema]
        else:
            for keyword, value in node.schema.items():
                self.ways += self._of(keyword, value)

    def _not(self, *keywords: str | int) -> Node:
        inner = self._document.child(self._node, *keywords)
        return self._document.made(inner, "not", {"not": inner})

    def _of(self, keyword: str, value: Any) -> Iterator[Any]:
        schema = self._node.schema
        if keyword == "type":
            listed = [value] if isinstance(value, str) else value
            others = [name for name in TYPES if name not in listed and not (name == "integer" and "number" in listed)]
            if "integer" in listed and "number" not in listed:
                others[others.index("number")] = "$fraction"
            elif "number" not in listed and "integer" in others:
                others.remove("integer")
            yield {"type": others} if others else False
        elif keyword in ("const", "enum"):
            yield {"$excluded": [value] if keyword == "const" else value}
        elif keyword == "$ref":
            target = self._document.follow(self._node)
            yield self._document.made(target, "not", {"not": target})
        elif keyword == "not":
            yield self._document.child(self._node, "not")
        elif keyword == "allOf":
            yield from (self._not("allOf", n) for n in range(len(value)))
        elif keyword in ("anyOf", "oneOf"):
            yield {"allOf": [self._not(keyword, n) for n in range(len(value))]}
            if keyword == "oneOf":
                for n in range(len(value)):
                    for m in range(n):
                        yield {
                            "allOf": [self._document.child(self._node, keyword, n), self._document.child(self._node, keyword, m)]
                        }
        elif keyword == "if":
            condition = self._document.child(self._node, "if")
            if "then" in schema:
                yield {"allOf": [condition, self._not("then")]}
            if "else" in schema:
                yield {"allOf": [self._not("if"), self._not("else")]}
        elif (
            keyword in _BOUNDS
            and not isinstance(value, bool)
            and not isinstance(schema.get(f"exclusive{keyword[0].upper()}{keyword[1:]}"), bool)
        ):
            yield {"type": "number", _BOUNDS[keyword]: value}
        elif keyword in ("minLength", "minItems", "minProperties"):
            yield {"type": _COUNTED[keyword[3:]], f"max{keyword[3:]}": value - 1} if value >= 1 else False
        elif keyword in ("maxLength", "maxItems", "maxProperties"):
            yield {"type": _COUNTED[keyword[3:]], f"min{keyword[3:]}": value + 1}
        elif keyword == "pattern":
            yield {"type": "string", "$mismatch": value}
        else:
            yield from self._of_parts(keyword, value)

    def _of_parts(self, keyword: str, value: Any) -> Iterator[Any]:
        schema = self._node.schema
        if keyword == "required":
            for name in value:
                yield {"type": "object", "properties": {name: False}}
        elif keyword == "properties":
            for name in value:
                yield {"type": "object", "required": [name], "properties": {name: self._not("properties", name)}}
        elif keyword == "items" and not isinstance(value, list) and "prefixItems" not in schema:
            yield {"type": "array", "contains": self._not("items")}
        elif keyword == "prefixItems":
            for n in range(len(value)):
                yield {"type": "array", "minItems": n + 1, "prefixItems": [*[True] * n, self._not("prefixItems", n)]}
        elif keyword == "contains" and "minContains" not in schema:
            yield {"type": "array", "items": self._not("contains")}
        elif keyword == "dependentRequired":
            for name, others in value.items():
                for other in others:
                    yield {"type": "object", "required": [name], "properties": {other: False}}
        elif keyword == "dependentSchemas":
            for name in value:
                yield {"allOf": [{"type": "object", "required": [name]}, self._not("dependentSchemas", name)]}
        elif (
            keyword in _WITHOUT_OPPOSITE
            or keyword in ("items", "contains")
            or keyword in _BOUNDS
            or (keyword == "format" and isinstance(value, str) and value in FORMATS)
        ):
            self.left_out.append(keyword)


_BOUNDS = {
    "minimum": "exclusiveMaximum",
    "maximum": "exclusiveMinimum",
    "exclusiveMinimum": "maximum",
    "exclusiveMaximum": "minimum",
}
_COUNTED = {"Length": "string", "Items": "array", "Properties": "object"}


def disjoint(document: Document, one: Node, other: Node) -> bool:
    """Whether no value can satisfy both, as far as types, listed values and members that tell them apart show it at a glance."""
    ways = [_glance(document, one, 8), _glance(document, other, 8)]
    return all(_apart(document, first, second, 4) for first in ways[0] for second in ways[1])


def _glance(document: Document, node: Node, depth: int) -> list[list[Node]]:
    """Lists of schemas; whatever satisfies the node satisfies all of those in one of the lists."""
    schema = node.schema
    if not isinstance(schema, Mapping) or depth == 0:
        return [[node]]
    document.check(node)
    found: list[list[Node]] = [[node]]
    more = []
    if "$ref" in schema:
        more.append(_glance(document, document.follow(node), depth - 1))
    for n in range(len(schema.get("allOf", ()))):
        more.append(_glance(document, document.child(node, "allOf", n), depth - 1))
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            more.append(
                [
                    way
                    for n in range(len(schema[keyword]))
                    for way in _glance(document, document.child(node, keyword, n), depth - 1)
                ]
            )
    for ways in more:
        if len(found) * len(ways) > 64:
            continue  # what is not looked at is not told apart
        found = [[*first, *second] for first in found for second in ways]
    return found


def _apart(document: Document, one: list[Node], other: list[Node], depth: int) -> bool:
    if any(node.schema is False for node in (*one, *other)):
        return True
    schemas = [[node.schema for node in nodes if isinstance(node.schema, Mapping)] for nodes in (one, other)]
    types = [_types(listed) for listed in schemas]
    if not types[0] & types[1]:
        return True
    values = [_values(listed) for listed in schemas]
    if values[0] is not None and values[1] is not None:
        from .validation import key_of

        if {key_of(value) for value in values[0]}.isdisjoint(key_of(value) for value in values[1]):
            return True
    if depth and types[0] & types[1] == {"object"}:
        required = [{name for schema in listed for name in schema.get("required", ())} for listed in schemas]
        for name in required[0] | required[1]:
            ways = []
            for nodes in (one, other):
                members = [
                    document.child(node, "properties", name)
                    for node in nodes
                    if isinstance(node.schema, Mapping) and name in node.schema.get("properties", ())
                ]
                ways.append(
                    [
                        [inner for way in found for inner in way]
                        for found in _products([_glance(document, member, 4) for member in members])
                    ]
                )
            # where one requires it, it is there in what satisfies both
            if all(_apart(document, first, second, depth - 1) for first in ways[0] for second in ways[1]):
                return True
    return False


def _products(listed: list[list[list[Node]]]) -> list[list[list[Node]]]:
    found: list[list[list[Node]]] = [[]]
    for ways in listed:
        if len(found) * len(ways) > 64:
            continue
        found = [[*first, second] for first in found for second in ways]
    return found


def _types(schemas: list[Mapping[str, Any]]) -> set[str]:
    found = set(TYPES)
    for schema in schemas:
        if "type" in schema:
            listed = [schema["type"]] if isinstance(schema["type"], str) else list(schema["type"])
            found &= {*listed, *(("integer",) if "number" in listed else ()), *(("number",) if "$fraction" in listed else ())}
        for values in ([schema["const"]] if "const" in schema else None, schema.get("enum")):
            if values is not None:
                found &= {name for value in values for name in _type_of(value)}
    return found


def _type_of(value: Any) -> tuple[str, ...]:
    if value is None:
        return ("null",)
    if isinstance(value, bool):
        return ("boolean",)
    if isinstance(value, (int, float)):
        return ("integer", "number")
    return ("string",) if isinstance(value, str) else ("array",) if isinstance(value, list) else ("object",)


def _values(schemas: list[Mapping[str, Any]]) -> list[Any] | None:
    for schema in schemas:
        if "const" in schema:
            return [schema["const"]]
    for schema in schemas:
        if "enum" in schema and len(schema["enum"]) <= 100:
            return list(schema["enum"])
    return None

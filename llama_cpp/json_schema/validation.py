"""Whether a schema accepts a value, for values that schemas list and for names of members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import GrammarError
from . import patterns
from .automata import Matches, TooLarge, accepts
from .budget import DEPTH
from .document import Document, Node, exact
from .formats import FORMATS


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal for JSON Schema: 1 is 1.0 and not true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return exact(one) == exact(other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)


def key_of(value: Any) -> Any:
    """What is equal for values that are the same, and can be looked up."""
    if value is None or isinstance(value, (bool, str)):
        return type(value).__name__, value
    if isinstance(value, (int, float)):
        return "number", exact(value)
    if isinstance(value, list):
        return "array", tuple(map(key_of, value))
    return "object", frozenset((name, key_of(item)) for name, item in value.items())


def type_of(value: Any) -> str:
    """Its type, whole numbers being integers."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    if isinstance(value, float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, (list, tuple)) else "object"


class Validator:
    """Compares values with schemas of one document."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._matchers: dict[tuple[str, bool], Matches] = {}
        #: of each list of values, by its identity: the list, which is held so that no other takes its place, and its keys
        self._listed: dict[int, tuple[list[Any], frozenset[Any]]] = {}

    def matches(self, pattern: str, text: str, wide: bool = False, place: str = "") -> bool:
        """Whether a pattern matches somewhere in a text.

        Raises:
            GrammarError: it is none, or too large.
        """
        key = pattern, wide
        if key not in self._matchers:
            try:
                self._matchers[key] = Matches(patterns.parse(pattern, wide))
            except (patterns.Unsupported, TooLarge) as error:
                raise GrammarError(
                    f"{place}: the pattern {pattern[:80]!r} cannot be looked for: {error or 'it is too large'}."
                ) from None
            except GrammarError as error:
                raise GrammarError(f"{place}: {error}") from None
        return accepts(self._matchers[key], text)

    def accepts(self, node: Node, value: Any, depth: int = 0) -> bool:
        """Whether the schema accepts the value.

        Raises:
            GrammarError: a keyword is none, or one that is not looked at here.
        """
        self._document.check(node)
        schema = node.schema
        if isinstance(schema, bool):
            return schema
        if depth > DEPTH:
            raise GrammarError(f"{node.place}: schemas refer to each other more than {DEPTH} deep.")
        return all(self.keyword(node, word, value, depth + 1) for word in schema)

    def _is_listed(self, values: list[Any], value: Any) -> bool:
        known = self._listed.get(id(values))
        if known is None:
            known = self._listed[id(values)] = values, frozenset(map(key_of, values))
        return key_of(value) in known[1]

    def keyword(self, node: Node, word: str, value: Any, depth: int = 0) -> bool:
        """Whether one keyword of the schema accepts the value; errors as in :meth:`accepts`."""
        schema, found, child = node.schema, node.schema[word], self._document.child
        if word == "type":
            listed = [found] if isinstance(found, str) else found
            kind = type_of(value)
            return kind in listed or (kind == "integer" and "number" in listed) or (kind == "number" and "$fraction" in listed)
        if word == "const":
            return same(found, value)
        if word == "enum":
            return self._is_listed(found, value)
        if word == "$excluded":
            return not self._is_listed(found, value)
        if word in ("$ref", "$dynamicRef", "$recursiveRef"):
            return self.accepts(self._document.follow(node, word), value, depth)
        if word == "allOf":
            return all(self.accepts(child(node, word, n), value, depth) for n in range(len(found)))
        if word == "anyOf":
            return any(self.accepts(child(node, word, n), value, depth) for n in range(len(found)))
        if word == "oneOf":
            return sum(self.accepts(child(node, word, n), value, depth) for n in range(len(found))) == 1
        if word == "not":
            return not self.accepts(child(node, word), value, depth)
        if word == "if":
            branch = "then" if self.accepts(child(node, word), value, depth) else "else"
            return branch not in schema or self.accepts(child(node, branch), value, depth)
        if isinstance(value, str):
            return self._string(node, word, found, value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return _number(schema, word, found, value)
        if isinstance(value, list):
            return self._array(node, word, found, value, depth)
        if isinstance(value, Mapping):
            return self._object(node, word, found, value, depth)
        return True

    def _string(self, node: Node, word: str, found: Any, value: str) -> bool:
        if word == "minLength":
            return bool(len(value) >= found)
        if word == "maxLength":
            return bool(len(value) <= found)
        if word == "pattern":
            return self.matches(found, value, place=node.at(word))
        if word == "$mismatch":
            return not self.matches(found, value, wide=True, place=node.at(word))
        return not (word == "format" and isinstance(found, str) and found in FORMATS) or self.matches(FORMATS[found][0], value)

    def _array(self, node: Node, word: str, found: Any, value: Sequence[Any], depth: int) -> bool:
        schema, child = node.schema, self._document.child
        if word == "minItems":
            return bool(len(value) >= found)
        if word == "maxItems":
            return bool(len(value) <= found)
        if word == "uniqueItems":
            return not found or len(set(map(key_of, value))) == len(value)
        if word == "prefixItems" or (word == "items" and isinstance(found, list)):
            return all(self.accepts(child(node, word, n), item, depth) for n, item in enumerate(value[: len(found)]))
        if word == "items":
            return all(self.accepts(child(node, word), item, depth) for item in value[len(schema.get("prefixItems", ())) :])
        if word == "additionalItems" and isinstance(schema.get("items"), list):
            return all(self.accepts(child(node, word), item, depth) for item in value[len(schema["items"]) :])
        if word == "contains":
            n = sum(self.accepts(child(node, word), item, depth) for item in value)
            return bool(schema.get("minContains", 1) <= n <= schema.get("maxContains", n))
        if word == "unevaluatedItems":
            raise self._unknown(node, word)
        return True

    def _object(self, node: Node, word: str, found: Any, value: Mapping[str, Any], depth: int) -> bool:
        schema, child = node.schema, self._document.child
        if word == "minProperties":
            return bool(len(value) >= found)
        if word == "maxProperties":
            return bool(len(value) <= found)
        if word == "required":
            return all(name in value for name in found)
        if word == "properties":
            return all(self.accepts(child(node, word, name), value[name], depth) for name in found if name in value)
        if word == "patternProperties":
            return all(
                self.accepts(child(node, word, pattern), item, depth)
                for pattern in found for name, item in value.items() if self.matches(pattern, name, place=node.at(word))
            )  # fmt: skip
        if word == "additionalProperties":
            others = [name for name in value if name not in schema.get("properties", ())]
            others = [
                name
                for name in others
                if not any(self.matches(p, name, place=node.at(word)) for p in schema.get("patternProperties", ()))
            ]
            return all(self.accepts(child(node, word), value[name], depth) for name in others)
        if word == "propertyNames":
            return all(self.accepts(child(node, word), name, depth) for name in value)
        if word in ("dependentRequired", "dependentSchemas", "dependencies"):
            for name, needs in found.items():
                if name in value:
                    if isinstance(needs, list):
                        if not all(other in value for other in needs):
                            return False
                    elif not self.accepts(child(node, word, name), value, depth):
                        return False
            return True
        if word == "unevaluatedProperties":
            raise self._unknown(node, word)
        return True

    @staticmethod
    def _unknown(node: Node, word: str) -> GrammarError:
        return GrammarError(f"{node.at(word)}: {word} cannot be combined with listed values.", remedy="Leave it out there.")


def _number(schema: Mapping[str, Any], word: str, found: Any, value: Any) -> bool:
    if word not in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf") or isinstance(found, bool):
        return True
    one, other = exact(value), exact(found)
    if word == "multipleOf":
        return (one / other).denominator == 1
    if word == "minimum":
        return one > other or (one == other and schema.get("exclusiveMinimum") is not True)
    if word == "maximum":
        return one < other or (one == other and schema.get("exclusiveMaximum") is not True)
    return one > other if word == "exclusiveMinimum" else one < other

"""A schema document: places in it, what references lead to, and whether its keywords are what they must be."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeAlias
from urllib.parse import unquote, urldefrag, urljoin

from ..errors import GrammarError
from .budget import tick_sometimes

Schema: TypeAlias = Mapping[str, Any] | bool

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_SCHEMAS = (
    "additionalItems", "additionalProperties", "contains", "else", "if", "not", "propertyNames", "then", "unevaluatedItems",
    "unevaluatedProperties",
)  # fmt: skip
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPPINGS = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
_COUNTS = ("maxContains", "maxItems", "maxLength", "maxProperties", "minContains", "minItems", "minLength", "minProperties")
_NUMBERS = ("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum")
#: What of a schema is data, and no schema.
_DATA = ("const", "default", "enum", "example", "examples")


class Node:
    """A schema and where it stands. Schemas made of others have no place of their own: :attr:`place` is that of their origin.

    Attributes:
        place: a JSON pointer that begins with #. resource: the schema that references in it begin at.
        checked: whether :meth:`Document.check` has seen it.
    """

    __slots__ = ("checked", "made", "place", "resource", "schema")

    def __init__(self, schema: Any, place: str, resource: Node | None, made: bool = False) -> None:
        self.schema, self.place, self.made, self.checked = schema, place, made, False
        self.resource: Node = resource or self

    def at(self, *keywords: object) -> str:
        """The JSON pointer of one of its keywords, or of what is below."""
        return "/".join([self.place, *(str(word).replace("~", "~0").replace("/", "~1") for word in keywords)])


def exact(value: Any) -> Fraction:
    """A number as it is written."""
    return Fraction(Decimal(repr(value))) if isinstance(value, float) else Fraction(value)


class Document:
    """A schema with all that it refers to."""

    def __init__(self, schema: Any) -> None:
        self._nodes: dict[str, Node] = {}
        self._made: dict[Any, Node] = {}
        self.root = self._nodes["#"] = Node(schema, "#", None)
        self._base = schema.get("$id", "") if isinstance(schema, Mapping) and isinstance(schema.get("$id"), str) else ""

    def child(self, node: Node, *keywords: str | int) -> Node:
        """A schema within a schema."""
        tick_sometimes()
        found = node.schema
        for keyword in keywords:
            found = found[keyword]
        if isinstance(found, Node):
            return found
        if node.made:
            return self.made(node, keywords, found)
        place = node.at(*keywords)
        known = self._nodes.get(place)
        if known is None:
            own = isinstance(found, Mapping) and isinstance(found.get("$id"), str) and not found["$id"].startswith("#")
            known = self._nodes[place] = Node(found, place, None if own else node.resource)
        return known

    def made(self, origin: Node, what: Any, schema: Any) -> Node:
        """A schema that says something about others; ``what`` tells it from other ones of the same origin."""
        key = (origin, what)
        if key not in self._made:
            self._made[key] = Node(schema, origin.place, origin.resource, made=True)
        return self._made[key]

    def locate(self, place: str) -> Node:
        """The schema at a JSON pointer that begins with #, as llama.cpp gives it.

        Raises:
            GrammarError: there is none.
        """
        node, value = self.root, self.root.schema
        words: list[str | int] = []
        for word in place.split("/")[1:]:
            if isinstance(value, list) and word.isdigit() and int(word) < len(value) and words[-1:] == ["type"]:
                # one of several types, each of which it takes for a schema of its own
                holder = self._below(node, words[:-1])
                node, words = self.made(holder, ("type", word), {**holder.schema, "type": value[int(word)]}), []
                value = node.schema
                continue
            key: str | int = word
            if isinstance(value, list) and word.isdigit():
                key = int(word)
            elif isinstance(value, Mapping) and word not in value:
                key = word.replace("~1", "/").replace("~0", "~")
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                raise GrammarError(f"{place}: there is no such schema.") from None
            words.append(key)
        return self._below(node, words)

    # --- references ---

    def follow(self, node: Node, keyword: str = "$ref") -> Node:
        """What a reference leads to.

        Raises:
            GrammarError: nowhere, or out of the document.
        """
        reference, place = node.schema[keyword], node.at(keyword)
        if not isinstance(reference, str):
            raise GrammarError(f"{place}: it must be a text.")
        base, fragment = urldefrag(reference)
        resource = node.resource
        if base:
            own = resource.schema.get("$id", "") if isinstance(resource.schema, Mapping) else ""
            target = urldefrag(urljoin(urljoin(self._base, own if isinstance(own, str) else ""), base))[0]
            known = self._resources.get(target)
            if known is None:
                raise GrammarError(
                    f"{place}: {reference!r} leads out of the document.", remedy='Put the schema into "$defs", and refer to that.'
                )
            resource = known
        fragment = unquote(fragment)
        if not fragment:
            return resource
        if not fragment.startswith("/"):
            found = self._anchors.get((id(resource), fragment))
            if found is None:
                raise GrammarError(f"{place}: no schema has the anchor {fragment!r}.")
            return found
        words: list[str | int] = []
        value = resource.schema
        for word in fragment.split("/")[1:]:
            word = word.replace("~1", "/").replace("~0", "~")
            if isinstance(value, Mapping) and word in value:
                words.append(word)
                value = value[word]
            elif (
                isinstance(value, (list, tuple))
                and word.isascii()
                and word.isdigit()
                and len(word) < 9
                and int(word) < len(value)
            ):
                words.append(int(word))
                value = value[int(word)]
            else:
                raise GrammarError(f"{place}: {reference!r} leads nowhere: there is no {word!r}.")
        return self._below(resource, words)

    def _below(self, node: Node, words: list[str | int]) -> Node:
        """A descendant, with the resource that it is in."""
        value, start = node.schema, 0
        for n, word in enumerate(words, 1):
            value = value[word]
            if isinstance(value, Mapping) and isinstance(value.get("$id"), str):
                node, start = self.child(node, *words[start:n]), n
        return self.child(node, *words[start:]) if start < len(words) else node

    @functools.cached_property
    def single(self) -> bool:
        """Whether no schema in it is a document of its own."""
        return len(self._resources) <= 1

    @functools.cached_property
    def _resources(self) -> dict[str, Node]:
        found = {urldefrag(self._base)[0]: self.root}
        for node in self._all:
            if isinstance(node.schema.get("$id"), str) and not node.schema["$id"].startswith("#"):
                found[urldefrag(urljoin(self._base, node.schema["$id"]))[0]] = node
        return found

    @functools.cached_property
    def _anchors(self) -> dict[tuple[int, str], Node]:
        found = {}
        for node in self._all:
            for keyword in ("$anchor", "$dynamicAnchor"):
                if isinstance(node.schema.get(keyword), str):
                    found[id(node.resource), node.schema[keyword]] = node
            identifier = node.schema.get("$id")
            if isinstance(identifier, str) and identifier.startswith("#"):  # draft-07's anchors
                found[id(node.resource), identifier[1:]] = node
        return found

    @functools.cached_property
    def _all(self) -> list[Node]:
        found = []
        todo: list[Node] = [self.root]
        while todo:
            node = todo.pop()
            if not isinstance(node.schema, Mapping):
                continue
            found.append(node)
            for word, value in node.schema.items():
                if word in _DATA:
                    continue
                if isinstance(value, Mapping):
                    todo += [self.child(node, word), *(self.child(node, word, name) for name in value)]
                elif isinstance(value, (list, tuple)):
                    todo += [self.child(node, word, n) for n in range(len(value))]
        return found

    # --- what keywords must be ---

    def check(self, node: Node) -> None:
        """Whether the keywords of a schema are what they must be.

        Raises:
            GrammarError: one is not; it is named with its place.
        """
        if node.checked:
            return
        tick_sometimes()
        schema = node.schema
        if isinstance(schema, bool):
            return
        if not isinstance(schema, Mapping):
            raise GrammarError(f"{node.place}: a schema must be an object or a truth value, and not {_shown(schema)}.")
        for word, must in _mistakes(schema):
            raise GrammarError(f"{node.at(word)}: it must be {must}, and not {_shown(schema[word])}.")
        node.checked = True


def _mistakes(schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for word, value in schema.items():
        if word in _SCHEMAS:
            if not isinstance(value, (Mapping, bool, Node)):
                yield word, "a schema"
        elif word in _LISTS:
            if not isinstance(value, (list, tuple)) or not value:
                yield word, "a list of schemas, with at least one"
        elif word in _MAPPINGS:
            if not isinstance(value, Mapping):
                yield word, "an object with schemas"
        elif word in _COUNTS:
            if not _number(value) or value < 0 or value != math.floor(value):
                yield word, "a whole number, 0 or more"
        elif word in _NUMBERS:
            if not _number(value) and not (isinstance(value, bool) and word.startswith("exclusive")):
                yield word, "a number"
        else:
            yield from _mistakes_of_others(word, value)


def _mistakes_of_others(word: str, value: Any) -> Iterator[tuple[str, str]]:
    if word == "type":
        listed = value if isinstance(value, (list, tuple)) else [value]
        if not listed or any(not isinstance(one, str) or one not in (*TYPES, "$fraction") for one in listed):
            yield word, f"one of {', '.join(TYPES)}, or a list of them"
    elif word == "items":
        if not isinstance(value, (Mapping, bool, Node, list, tuple)):
            yield word, "a schema, or a list of them"
    elif word == "enum":
        if not isinstance(value, (list, tuple)) or not value:
            yield word, "a list of values, with at least one"
    elif word == "required":
        if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
            yield word, "a list of names"
    elif word == "pattern":
        if not isinstance(value, str):
            yield word, "a text"
    elif word == "multipleOf":
        if not _number(value) or value <= 0:
            yield word, "a number above 0"
    elif word == "uniqueItems":
        if not isinstance(value, bool):
            yield word, "true or false"
    elif word in ("dependentRequired", "dependencies") and not isinstance(value, Mapping):
        yield word, "an object"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "…"

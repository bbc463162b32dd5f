"""JSON schemas of every kind, alone, combined and nested, for hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = ["a", "b", "kind", "x1", 'q"', "é"]
PATTERNS = [
    "^a", "b$", "^[a-z]{2,4}$", r"\d", r"^\d{3}-\d{4}$", r"^\w+$", "x|y", "^(?:ab|cd)+$", r"^[^\s]*$", r"^\/a\/?$", 'x"y',
    r"^\\$", "", ".", "^.{2,5}$",
    r"\u0041+", r"^\p{L}+$", "^(a|b)*?c$", r"[\W]", r"^\D+$", "[^a]", "^$", r"\n", "^a|b$", r"[\]\-]", "^(0|[1-9][0-9]*)$",
    r"\x41", "(?<n>q)+", "^[😀-😂é]{1,2}$",
]  # fmt: skip
FORMATS = [
    "date", "time", "date-time", "uuid", "ipv4", "ipv6", "email", "hostname", "uri", "duration", "made-up",
    "json-pointer", "uri-reference",
]  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-20, 120),
    st.sampled_from([0.5, -2.25, 1.0, 1e20]),
    st.sampled_from(["", "a", "ab", "b", 'q"', "\n", "é😀"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=2), max_leaves=3
)
BOUNDS = st.one_of(st.integers(-30, 300), st.sampled_from([0.5, -0.25, 1e-3, 12.345, 99.99, -7.5, 10**18, -(10**17), 2.0]))


@st.composite
def some(draw: Any, **keywords: Any) -> dict[str, Any]:
    """Some of the keywords; mostly few."""
    names = draw(st.lists(st.sampled_from(sorted(keywords)), unique=True, max_size=4))
    return {name.replace("ref_", "$"): draw(keywords[name]) for name in names}


NUMBERS = some(
    minimum=BOUNDS, maximum=BOUNDS, exclusiveMinimum=BOUNDS, exclusiveMaximum=BOUNDS,
    multipleOf=st.sampled_from([1, 2, 3, 7, 10, 25, 0.5, 0.01, 0.1, 1.5, 2.0, 60, 1000]),
)  # fmt: skip
COUNTS = st.integers(0, 5)
STRINGS = some(minLength=COUNTS, maxLength=st.integers(0, 12), pattern=st.sampled_from(PATTERNS), format=st.sampled_from(FORMATS))


def arrays(schemas: Any) -> Any:
    return some(
        items=schemas, prefixItems=st.lists(schemas, min_size=1, max_size=3), minItems=st.integers(0, 3),
        maxItems=st.integers(0, 5),
        uniqueItems=st.booleans(), contains=schemas, minContains=st.integers(0, 2), maxContains=st.integers(0, 3),
        unevaluatedItems=schemas,
    )  # fmt: skip


def objects(schemas: Any) -> Any:
    names = st.sampled_from(NAMES)
    return some(
        properties=st.dictionaries(names, schemas, max_size=4), required=st.lists(names, unique=True, max_size=3),
        additionalProperties=schemas,
        patternProperties=st.dictionaries(st.sampled_from(PATTERNS[:8]), schemas, max_size=2), propertyNames=schemas | STRINGS,
        minProperties=st.integers(0, 3), maxProperties=st.integers(0, 4), unevaluatedProperties=schemas,
        dependentRequired=st.dictionaries(names, st.lists(names, unique=True, max_size=2), max_size=2),
        dependentSchemas=st.dictionaries(names, schemas, max_size=1),
    )  # fmt: skip


@st.composite
def nodes(draw: Any, schemas: Any) -> Any:
    """One schema: of one type mostly, sometimes of several or none, with what combines schemas."""
    kind = draw(
        st.sampled_from(
            ["number", "integer", "string", "array", "object", "object", "array", "any", "listed", "combined", "reference"]
        )
    )
    if kind == "reference":
        return {
            "$ref": draw(st.sampled_from(["#", "#/$defs/one", "#/$defs/two%20words~1", "#here"])),
            **draw(some(description=st.just("x"), required=st.just(["a"]))),
        }
    schema: dict[str, Any] = {}
    if kind in ("number", "integer"):
        schema = {"type": kind, **draw(NUMBERS)}
    elif kind == "string":
        schema = {"type": kind, **draw(STRINGS)}
    elif kind == "array":
        schema = {"type": kind, **draw(arrays(schemas))}
    elif kind == "object":
        schema = {"type": kind, **draw(objects(schemas))}
    elif kind == "any":
        schema = {**draw(NUMBERS), **draw(STRINGS), **draw(arrays(schemas)), **draw(objects(schemas))}
        if draw(st.booleans()):
            schema["type"] = draw(
                st.lists(
                    st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"]),
                    min_size=1,
                    unique=True,
                )
            )
    elif kind == "listed":
        schema = draw(
            some(
                const=VALUES,
                enum=st.lists(VALUES, min_size=1, max_size=6),
                minimum=BOUNDS,
                minLength=COUNTS,
                pattern=st.sampled_from(PATTERNS),
            )
        )
    if kind == "combined" or draw(st.integers(0, 9)) == 0:
        several = st.lists(schemas, min_size=1, max_size=3)
        schema |= draw(some(
            allOf=several, anyOf=several, oneOf=several, **{"not": schemas, "if": schemas, "then": schemas, "else": schemas},
            type=st.sampled_from(["object", "string", "integer", "array"]),
        ))  # fmt: skip
    return schema


SCHEMAS = st.recursive(
    st.booleans() | st.builds(lambda kind: {"type": kind}, st.sampled_from(["null", "boolean", "integer", "number", "string"]))
    | STRINGS.map(lambda found: {"type": "string", **found}) | NUMBERS.map(lambda found: {"type": "integer", **found}),
    nodes, max_leaves=6,
)  # fmt: skip


@st.composite
def documents(draw: Any) -> Any:
    """A whole document, with definitions that references lead to."""
    schema = draw(SCHEMAS)
    if isinstance(schema, dict):
        schema = {
            **schema,
            "$defs": {
                "one": draw(SCHEMAS),
                "two words/": draw(SCHEMAS),
                "three": {"$anchor": "here", "type": ["integer", "null"]},
            },
        }
    return schema

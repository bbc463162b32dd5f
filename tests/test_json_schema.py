"""JSON schemas into grammars: what an answer is held to, what is refused and how, and schemas as programs send them."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import re
import tracemalloc

import pytest

from gbnf_walker import Walker
from llama_cpp.chat.templates import json_schema_to_grammar
from llama_cpp.errors import GrammarError, InvalidArgumentError, LimitReachedError
from llama_cpp.limits import Limits
from measures import calls


def texts(schema, n: int = 60, seed: int = 1, **how) -> list[str]:
    """Texts that the grammar of a schema admits."""
    walker, rng = Walker(json_schema_to_grammar(schema, **how)), random.Random(seed)
    return [walker.draw(rng) for _ in range(n)]


def values(schema, n: int = 60, **how) -> list:
    return [json.loads(text) for text in texts(schema, n, **how)]


# --- the issue's examples ---


@pytest.mark.parametrize(
    "pattern, text", [('^x"y$', r'"x\"y"'), (r"^\\$", r'"\\"'), (r"^\n$", r'"\n"'), (r"^\/a$", '"/a"'), (r"^\u0041$", '"A"'),
        ("^\x01$", r'"\u0001"')]
)  # fmt: skip
def test_characters_that_json_escapes_are_escaped(pattern, text):
    assert set(texts({"type": "string", "pattern": pattern})) == {text}


@pytest.mark.parametrize("pattern", [".", "^.*$", "^[^a]{1,5}$", "[^b]", r"^[\s\S]{3}$", r"\W", r"^\D\S$"])
def test_classes_hold_what_json_escapes_and_write_it_so(pattern):
    found = values({"type": "string", "pattern": pattern}, 300)
    assert all(re.search(pattern, text) for text in found)
    assert any('"' in text or "\\" in text for text in found)


@pytest.mark.parametrize(
    "pattern", ["b", "^b", "b$", r"\d", r"^\d{3}$", r"x|^y$", r"^(?:ab|c)+?$", "^a|b$", "(a|b)*c", r"^[\w.]+@[\w.]+$",
        r"^[A-Z]{2}\d{2}$", "", r"^[+-]?\d+$"]
)  # fmt: skip
def test_patterns_mean_what_they_mean_in_json_schema(pattern):
    found = values({"type": "string", "pattern": pattern}, 200)
    assert all(re.search(pattern, text) for text in found) and len(set(found)) > 3


@pytest.mark.parametrize(
    "pattern, what",
    [(r"(?=a)b", "ahead"), (r"(?<!a)b", "behind"), (r"(a)\1", "reference"), (r"\bfoo", "word"), (r"\p{Script=Greek}", "Script")],
)
def test_what_no_grammar_expresses_of_patterns_is_named(pattern, what):
    with pytest.raises(GrammarError, match=what) as caught:
        json_schema_to_grammar({"type": "object", "properties": {"x": {"type": "string", "pattern": pattern}}})
    assert "#/properties/x/pattern" in str(caught.value)


@pytest.mark.parametrize("pattern", ["(", "a)", "[a", "a{3,2}", "*", "[b-a]", r"\x1", "a**", r"\u{110000}"])
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(GrammarError, match="#/pattern"):
        json_schema_to_grammar({"type": "string", "pattern": pattern})


def test_a_pattern_and_lengths_hold_together():
    found = values({"type": "string", "pattern": "^[a-z]+(-[a-z]+)*$", "minLength": 4, "maxLength": 6}, 200)
    assert {len(text) for text in found} == {4, 5, 6} and all(re.fullmatch("[a-z]+(-[a-z]+)*", text) for text in found)
    assert len(values({"type": "string", "pattern": "^a*$", "minLength": 4294967296 - 1, "maxLength": 4294967296}, 0)) == 0


@pytest.mark.parametrize(
    "schema, holds",
    [
        ({"type": "number", "minimum": 0.5, "maximum": 0.75}, lambda x: 0.5 <= x <= 0.75),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, lambda x: 0 < x < 1),
        ({"type": "number", "minimum": -1.25, "exclusiveMaximum": 100}, lambda x: -1.25 <= x < 100),
        ({"type": "number", "minimum": 0}, lambda x: x >= 0),
        ({"type": "number", "maximum": -3.5}, lambda x: x <= -3.5),
        ({"type": "number", "multipleOf": 0.01}, lambda x: round(x * 100) == pytest.approx(x * 100)),
        ({"type": "integer", "multipleOf": 7}, lambda x: x % 7 == 0 and isinstance(x, int)),
        ({"type": "integer", "multipleOf": 86400, "minimum": 1}, lambda x: x % 86400 == 0 and x > 0),
        ({"type": "integer", "multipleOf": 12, "minimum": -100, "maximum": 1000}, lambda x: x % 12 == 0 and -100 <= x <= 1000),
        ({"type": "number", "multipleOf": 0.5, "minimum": 1, "maximum": 3}, lambda x: x in (1, 1.5, 2, 2.5, 3)),
        ({"type": "integer", "minimum": 1.5, "maximum": 3.5}, lambda x: x in (2, 3)),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 3}, lambda x: x in (1, 2, 3)),
        ({"type": "integer", "not": {"enum": [1, 2]}, "minimum": 0, "maximum": 4}, lambda x: x in (0, 3, 4)),
        ({"minimum": 5, "type": "integer", "allOf": [{"maximum": 6}]}, lambda x: x in (5, 6)),
    ],
    ids=lambda found: json.dumps(found) if isinstance(found, dict) else "",
)
def test_bounds_of_numbers_hold(schema, holds):
    found = texts(schema, 400)
    assert all(holds(json.loads(text)) for text in found)
    assert not any(re.match(r"-?0\d", text) or re.fullmatch(r"-0(\.0*)?", text) for text in found)
    assert len(set(found)) > 1


def test_every_number_between_bounds_can_be_said():
    """Each is admitted: what is generated is not a part of it only."""
    for schema, expected in [
        ({"type": "integer", "minimum": -12, "maximum": 23}, set(range(-12, 24))),
        ({"type": "integer", "multipleOf": 5, "exclusiveMinimum": -20, "maximum": 110}, set(range(-15, 111, 5))),
        ({"type": "number", "multipleOf": 0.25, "minimum": -0.5, "maximum": 1}, {-0.5, -0.25, 0, 0.25, 0.5, 0.75, 1}),
    ]:
        assert set(values(schema, 6000)) == expected


@pytest.mark.parametrize(
    "schema, holds",
    [
        ({"type": "object", "required": ["a"]}, lambda x: "a" in x),
        ({"type": "object", "properties": {"b": {"type": "null"}}, "required": ["a", "b"]},
         lambda x: "a" in x and x["b"] is None),
        ({"type": "object", "minProperties": 2}, lambda x: len(x) >= 2),
        ({"type": "object", "minProperties": 4, "propertyNames": {"pattern": "^[a-c]+$"}},
         lambda x: len(x) >= 4 and all(set(k) <= set("abc") for k in x)),
        ({"properties": {"a": {}, "b": {}, "c": {}}, "type": "object", "minProperties": 2, "maxProperties": 2},
         lambda x: len(x) == 2),
        ({"type": "object", "patternProperties": {"^n_": {"type": "integer"}}, "additionalProperties": False},
         lambda x: all(k.startswith("n_") and type(v) is int for k, v in x.items())),
        ({"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "boolean"}},
         lambda x: all(type(v) is (int if k == "a" else bool) for k, v in x.items())),
        ({"type": "object", "properties": {"a": True, "b": True}, "dependentRequired": {"a": ["b"]}},
         lambda x: "a" not in x or "b" in x),
        ({"type": "object", "properties": {"a": True, "b": True}, "dependencies": {"a": ["b"]}},
         lambda x: "a" not in x or "b" in x),
        ({"type": "object", "properties": {"a": False, "b": True}}, lambda x: "a" not in x),
        ({"type": "array", "contains": {"const": 7}, "items": {"type": "integer"}}, lambda x: 7 in x),
        ({"type": "array", "contains": {"const": 7}, "minContains": 2, "maxContains": 3, "items": {"enum": [7, 8]}},
         lambda x: 2 <= x.count(7) <= 3),
        ({"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": False, "minItems": 1},
         lambda x: x in ([1], [1, 2])),
        ({"type": "array", "items": [{"const": 1}], "additionalItems": {"const": 3}},
         lambda x: x[:1] in ([], [1]) and set(x[1:]) <= {3}),
        ({"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True, "minItems": 2},
         lambda x: len(set(x)) == len(x) >= 2),
        ({"type": "array", "unevaluatedItems": {"type": "boolean"}, "contains": {"const": 7}},
         lambda x: 7 in x and all(type(v) is bool or v == 7 for v in x)),
        ({"type": "array", "unevaluatedItems": False, "allOf": [{"contains": {"const": 7}, "minContains": 0}]},
         lambda x: set(x) <= {7}),
        ({"oneOf": [{"type": "integer", "multipleOf": 3}, {"type": "string"}]}, lambda x: isinstance(x, str) or x % 3 == 0),
        ({"oneOf": [{"type": "integer", "minimum": 0, "maximum": 10}, {"type": "integer", "minimum": 8, "maximum": 20}]},
         lambda x: 0 <= x < 8 or 10 < x <= 20),
        ({"not": {"type": ["string", "object", "array", "number"]}}, lambda x: x in (True, False, None)),
        ({"enum": [1, "a", None, 12], "type": "integer", "minimum": 2}, lambda x: x == 12),
        ({"enum": ["ab", "b", "abc"], "pattern": "^a", "maxLength": 2}, lambda x: x == "ab"),
        ({"type": "string", "not": {"enum": ["a", "b"]}, "pattern": "^[abc]$"}, lambda x: x == "c"),
        ({"if": {"properties": {"k": {"const": 1}}, "required": ["k"]}, "then": {"required": ["z"]}, "else": {"required": ["y"]},
          "type": "object", "properties": {"k": {"enum": [1, 2]}, "z": {"type": "null"}, "y": {"type": "null"}}},
         lambda x: "z" in x if x.get("k") == 1 else "y" in x),
        ({"allOf": [{"type": "object", "properties": {"a": {"minimum": 3}}},
          {"properties": {"a": {"type": "integer", "maximum": 4}}, "required": ["a"]}]}, lambda x: x["a"] in (3, 4)),
        ({"allOf": [{"properties": {"a": {"type": "null"}}}], "properties": {"b": {"type": "null"}}, "type": "object",
          "unevaluatedProperties": False}, lambda x: set(x) <= {"a", "b"}),
    ],
    ids=lambda found: json.dumps(found)[:70] if isinstance(found, dict) else "",
)  # fmt: skip
def test_keywords_hold(schema, holds):
    found = values(schema, 200)
    assert all(map(holds, found)), [value for value in found if not holds(value)][:3]


def test_a_name_is_not_given_twice_in_another_writing():
    """What is not listed is told apart from what is, also escaped: "a" again would replace the member that was checked."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": {"type": "null"},
    }
    for text in texts(schema, 500):
        names = json.loads(text, object_pairs_hook=lambda pairs: [name for name, _ in pairs])
        assert names.count("a") == 1


# --- references ---


@pytest.mark.parametrize(
    "schema, expected",
    [
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": 1}}}, {1}),
        ({"$ref": "#/$defs/a%20b", "$defs": {"a b": {"const": 1}}}, {1}),
        ({"$ref": "#/$defs/t~0", "$defs": {"t~": {"const": 1}}}, {1}),
        ({"$ref": "#/definitions/x/anyOf/1", "definitions": {"x": {"anyOf": [{"const": 0}, {"const": 1}]}}}, {1}),
        ({"$ref": "#here", "$defs": {"x": {"$anchor": "here", "const": 1}}}, {1}),
        ({"$id": "https://example.org/root", "$ref": "other",
          "$defs": {"x": {"$id": "other", "$ref": "#/$defs/y", "$defs": {"y": {"const": 1}}}}}, {1}),
        ({"$ref": "#/$defs/a", "minimum": 2, "$defs": {"a": {"enum": [1, 2]}}}, {2}),
    ],
)  # fmt: skip
def test_references(schema, expected):
    assert set(values(schema)) == expected


def test_a_schema_refers_to_itself():
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["x"]}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["name", "next"],
    }
    for value in values(schema):
        while value is not None:
            assert value["name"] == "x"
            value = value["next"]


@pytest.mark.parametrize(
    "schema, place",
    [
        ({"properties": {"a": {"$ref": "#/$defs/no"}}}, "#/properties/a/$ref"),
        ({"items": {"$ref": "https://example.org/x"}}, "#/items/$ref"),
        ({"items": {"$ref": "#nowhere"}}, "#/items/$ref"),
        ({"$ref": "#"}, "refers to itself"), ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "refers to itself"),
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, "#/properties/a/uniqueItems"),
        ({"properties": {"a": {"minimum": "3"}}}, "#/properties/a/minimum"),
        ({"properties": {"a/b": {"multipleOf": 0}}}, "#/properties/a~1b/multipleOf"),
        ({"properties": {"a": {"type": "text"}}}, "#/properties/a/type"),
        ({"oneOf": [{"type": "array", "uniqueItems": True},
          {"type": "array", "items": {"multipleOf": 3, "type": "integer"}, "minItems": 1}], "type": "array"}, "#/oneOf"),
        ({"not": {"multipleOf": 3, "type": "number"}, "type": "integer"}, "#/not"),
        ({"type": "integer", "multipleOf": 123457}, "#/multipleOf"),
        ({"properties": {"a": {"required": "a"}}}, "#/properties/a/required"),
    ],
    ids=lambda found: json.dumps(found)[:60],
)  # fmt: skip
def test_errors_name_the_keyword_and_its_place(schema, place):
    with pytest.raises(GrammarError) as caught:
        json_schema_to_grammar(schema)
    assert place in str(caught.value), str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "schema",
    [
        False, {"enum": [1], "type": "string"}, {"allOf": [{"type": "string"}, {"type": "null"}]},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "string", "pattern": "^a{4}$", "maxLength": 3}, {"type": "integer", "minimum": 1, "maximum": 2, "multipleOf": 3},
        {"minItems": 2, "type": "array", "items": False},
        {"type": "object", "required": ["a", "b"], "maxProperties": 1},
        {"type": "object", "required": ["a"], "properties": {"a": False}},
        {"type": "object", "required": ["a"], "propertyNames": {"maxLength": 0}}, {"not": {}},
        {"type": "string", "format": "date", "maxLength": 9}, {"type": "number", "exclusiveMinimum": 1, "maximum": 1},
        {"type": "array", "contains": {"type": "null"}, "items": {"type": "string"}}, {"type": "boolean", "enum": [0, 1]},
        {"oneOf": [{"const": 1}, {"const": 1}]},
    ],
    ids=repr,
)  # fmt: skip
def test_what_nothing_satisfies_is_refused_at_once(schema):
    with pytest.raises(GrammarError, match="#"):
        json_schema_to_grammar({"type": "object", "properties": {"x": schema}, "required": ["x"]})
    assert values({"type": "object", "properties": {"x": schema}, "additionalProperties": False}, 5) == [{}] * 5


# --- what is left out ---


def test_what_is_not_strict_is_left_out_and_said(caplog, capfd):
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "minItems": 1}
    with caplog.at_level(logging.WARNING, "llama_cpp"):
        assert all(isinstance(value, list) and value for value in values(schema, strict=False))
    assert "#/uniqueItems" in caplog.text and capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "schema",
    [{"type": "string", "format": "made-up"}, {"type": "string", "contentEncoding": "base64"}, {"x-mine": 1, "type": "null"}],
)
def test_annotations_are_no_constraints(schema):
    assert values(schema, 3)


# --- limits ---


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"anyOf": [{"properties": {f"p{i}": {"const": j}}} for j in range(4)]} for i in range(40)]},
        {"type": "string", "allOf": [{"pattern": f"a.{{{n}}}b"} for n in range(12, 20)]},
        {"type": "string", "pattern": "^(a{1,1000}){1,1000}$", "minLength": 5},
        {"type": "object", "properties": {f"p{i}": {} for i in range(3000)}, "minProperties": 1500, "maxProperties": 1600},
        {"oneOf": [{"properties": {f"p{i}": {"type": "integer"}}} for i in range(100)]},
        {"type": "array", "contains": {"const": 1}, "minContains": 100000},
        {"type": "array", "items": {"type": "boolean"}, "contains": {"const": True}, "minItems": 10**9},
        {"enum": [str(i) * 100 for i in range(20000)]},
    ],
    ids=lambda schema: json.dumps(schema)[:60],
)  # fmt: skip
def test_hostile_schemas_end(schema):
    with contextlib.suppress(GrammarError, LimitReachedError):
        json_schema_to_grammar(schema, Limits(seconds=3))


def test_the_size_of_a_grammar_is_limited():
    with pytest.raises(LimitReachedError, match="bytes"):
        json_schema_to_grammar({"enum": [f"{i} value" for i in range(1000)]}, Limits(grammar_bytes=1000))


def test_nesting_is_limited():
    deep: dict = {}
    for _ in range(5000):
        deep = {"anyOf": [deep]}
    with pytest.raises((GrammarError, InvalidArgumentError)):
        json_schema_to_grammar(deep)
    chain = {
        "$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(5000)} | {"d5000": {}},
        "$ref": "#/$defs/d0",
        "type": "null",
    }
    with pytest.raises(GrammarError, match="deep"):
        json_schema_to_grammar(chain)


def test_ten_thousand_values_are_read_quickly():
    """0.2 s on an idle machine; twice as many take twice as much."""

    def cost(n: int) -> int:
        schema = {"type": "string", "enum": [f"value number {i}" for i in range(n)]}
        return calls(lambda: json_schema_to_grammar(schema))[0]

    assert cost(10_000) < 2.5 * cost(5_000) and cost(10_001) < 1_500_000
    assert len(json_schema_to_grammar({"type": "string", "enum": [f"value number {i}" for i in range(10_000)]})) < 200_000


@pytest.mark.parametrize(
    "schema",
    [
        lambda n: {"oneOf": [{"enum": [f"a{i}" for i in range(n)]}, {"enum": [f"b{i}" for i in range(n)]}]},
        lambda n: {"enum": [f"a{i}" for i in range(n)], "not": {"enum": [f"b{i}" for i in range(n)]}},
        lambda n: {"anyOf": [{"enum": [f"a{i}" for i in range(n)]}, {"enum": [f"a{i}" for i in range(n)]}]},
        lambda n: {"enum": [{"name": f"a{i}"} for i in range(n)], "not": {"enum": [[f"b{i}"] for i in range(n)]}},
        lambda n: {"enum": list(range(n)), "oneOf": [{"enum": list(range(n))}, {"enum": list(range(n, 2 * n))}]},
    ],
    ids=["one of two lists", "but another list", "any of two lists", "objects but arrays", "numbers in one of two lists"],
)
def test_lists_of_values_are_compared_in_linear_time(schema):
    def cost(n: int) -> int:
        return calls(lambda: json_schema_to_grammar(schema(n)))[0]

    assert cost(2000) < 2.5 * cost(1000)


@pytest.mark.parametrize("text", ["x" * 40_000, "x" * 4_000_000], ids=["long", "longer"])
def test_a_long_text_that_is_left_out_takes_no_memory_to_speak_of(text):
    tracemalloc.start()
    try:
        with pytest.raises((GrammarError, LimitReachedError)):
            json_schema_to_grammar({"type": "string", "not": {"const": text}}, Limits(grammar_bytes=100_000_000))
        assert tracemalloc.get_traced_memory()[1] < 100_000_000  # all its beginnings would be 800 MB, and 8 TB
    finally:
        tracemalloc.stop()


# --- as programs send them ---

#: As pydantic 2 writes models.
PYDANTIC = {
    "nested": {
        "$defs": {"Address": {"properties": {"street": {"title": "Street", "type": "string"},
            "zip": {"pattern": r"^\d{5}$", "title": "Zip", "type": "string"}},
            "required": ["street", "zip"], "title": "Address", "type": "object"}},
        "properties": {"name": {"maxLength": 50, "minLength": 1, "title": "Name", "type": "string"},
            "address": {"$ref": "#/$defs/Address"},
            "nickname": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None, "title": "Nickname"},
            "others": {"items": {"$ref": "#/$defs/Address"}, "title": "Others", "type": "array"}},
        "required": ["name", "address", "others"], "title": "Person", "type": "object",
    },
    "literal and enum": {
        "$defs": {"Color": {"enum": ["red", "green"], "title": "Color", "type": "string"}},
        "properties": {"kind": {"const": "a", "title": "Kind", "type": "string"},
            "level": {"enum": [1, 2, 3], "title": "Level", "type": "integer"},
            "color": {"$ref": "#/$defs/Color", "default": "red"}},
        "required": ["kind", "level"], "title": "M", "type": "object", "additionalProperties": False,
    },
    "discriminated union": {
        "$defs": {"Cat": {"properties": {"pet_type": {"const": "cat", "title": "Pet Type", "type": "string"},
            "meows": {"title": "Meows", "type": "integer"}}, "required": ["pet_type", "meows"], "title": "Cat", "type": "object"},
            "Dog": {"properties": {"pet_type": {"const": "dog", "title": "Pet Type", "type": "string"},
                "barks": {"title": "Barks", "type": "number"}}, "required": ["pet_type", "barks"], "title": "Dog",
                "type": "object"}},
        "properties": {"pet": {"discriminator": {"mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"},
            "propertyName": "pet_type"}, "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}], "title": "Pet"}},
        "required": ["pet"], "title": "M", "type": "object",
    },
    "dates": {
        "properties": {"at": {"format": "date-time", "title": "At", "type": "string"},
            "day": {"format": "date", "title": "Day", "type": "string"},
            "time": {"format": "time", "title": "T", "type": "string"},
            "took": {"format": "duration", "title": "Took", "type": "string"},
            "id": {"format": "uuid", "title": "Id", "type": "string"}},
        "required": ["at", "day", "time", "took", "id"], "title": "M", "type": "object",
    },
    "numbers": {
        "properties": {"price": {"anyOf": [{"exclusiveMinimum": 0, "type": "number"},
            {"pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", "type": "string"}], "title": "Price"}},
        "required": ["price"], "title": "M", "type": "object",
    },
    "bounded numbers": {
        "properties": {"age": {"maximum": 120, "minimum": 0, "title": "Age", "type": "integer"},
            "ratio": {"exclusiveMaximum": 1.0, "exclusiveMinimum": 0.0, "title": "Ratio", "type": "number"},
            "step": {"multipleOf": 5, "title": "Step", "type": "integer"},
            "temperature": {"maximum": 2.0, "minimum": 0.0, "default": 0.7, "type": "number"}},
        "required": ["age", "ratio", "step", "temperature"], "title": "M", "type": "object",
    },
    "mappings and tuples": {
        "properties": {"counts": {"additionalProperties": {"type": "integer"}, "title": "Counts", "type": "object"},
            "pair": {"maxItems": 2, "minItems": 2, "prefixItems": [{"type": "integer"}, {"type": "string"}], "title": "Pair",
                "type": "array"},
            "anything": {"additionalProperties": True, "title": "Anything", "type": "object"},
            "any": {"title": "Any"}},
        "required": ["counts", "pair", "anything", "any"], "title": "M", "type": "object",
    },
    "recursive": {
        "$defs": {"Node": {"properties": {"value": {"title": "Value", "type": "integer"},
            "children": {"default": [], "items": {"$ref": "#/$defs/Node"}, "title": "Children", "type": "array"}},
            "required": ["value"], "title": "Node", "type": "object"}},
        "$ref": "#/$defs/Node",
    },
    "addresses": {
        "properties": {"email": {"format": "email", "title": "Email", "type": "string"},
            "url": {"format": "uri", "maxLength": 2083, "minLength": 1, "title": "Url", "type": "string"},
            "ip": {"format": "ipv4", "title": "Ip", "type": "string"},
            "short": {"format": "email", "maxLength": 40, "title": "S", "type": "string"}},
        "required": ["email", "url", "ip", "short"], "title": "M", "type": "object",
    },
    "set of literals": {"properties": {"tags": {"items": {"enum": ["a", "b", "c"], "type": "string"}, "title": "Tags",
        "type": "array", "uniqueItems": True, "minItems": 1}}, "required": ["tags"], "title": "M", "type": "object"},
    "strict mode of openai": {
        "type": "object", "properties": {"steps": {"type": "array",
            "items": {"type": "object", "properties": {"explanation": {"type": "string"}, "output": {"type": "string"}},
                "required": ["explanation", "output"], "additionalProperties": False}},
            "final_answer": {"type": "string"},
            "unit": {"type": ["string", "null"], "enum": ["F", "C", None]}},
        "required": ["steps", "final_answer", "unit"], "additionalProperties": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(PYDANTIC) - {"numbers"}))
def test_schemas_as_pydantic_writes_them(name):
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(PYDANTIC[name], format_checker=Draft202012Validator.FORMAT_CHECKER)
    for value in values(PYDANTIC[name], 200):
        validator.validate(value)


def test_pydantic_s_decimal_is_refused_by_its_pattern_s_place():
    """It looks ahead; `strict=False` takes it."""
    with pytest.raises(GrammarError, match=r"#/properties/price/anyOf/1/pattern.*strict=False"):
        json_schema_to_grammar(PYDANTIC["numbers"])
    assert values(PYDANTIC["numbers"], 20, strict=False)


@pytest.mark.parametrize(
    "pattern, least, most", [("^[A-Z][a-z]*$", 3, 5000), ("^[a-z ]+$", 2, 500), (r"^(\d{3} )*\d$", 5, 4000), ("^x?$", 1, 9),
        ("^[A-Z][a-z]{2,5}!$", 6, 6)]
)  # fmt: skip
def test_one_repetition_and_lengths_of_any_size(pattern, least, most):
    for text in values({"type": "string", "pattern": pattern, "minLength": least, "maxLength": most}, 50):
        assert least <= len(text) <= most and re.search(pattern, text)


def test_names_are_kept_apart_for_every_reader():
    """For Python ``$`` matches before a last line end, too, and ``\\w`` holds every script's letters."""
    schema = {"type": "object", "patternProperties": {r"^\w+$": {"type": "integer"}}, "additionalProperties": {"type": "null"}}
    for text in texts(schema, 800):
        for name, value in json.loads(text).items():
            assert isinstance(value, int) == bool(re.search(r"^\w+$", name)), name

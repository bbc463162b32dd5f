"""Schemas of every kind → texts that their grammars admit → the package jsonschema accepts them.

Texts are drawn from the grammar itself, which reaches all of it, and from a random model, as answers are.
"""

from __future__ import annotations

import collections
import json
import os
import random
import re
from decimal import Decimal, InvalidOperation

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from gbnf_walker import Walker
from gguf_writer import tiny_model
from llama_cpp import Llama
from llama_cpp.chat.templates import json_schema_to_grammar
from llama_cpp.errors import GrammarError, LimitReachedError
from llama_cpp.json_schema import Written, rules, standing_alone
from schema_strategies import NAMES, documents

#: How many schemas the long runs take.
MANY = int(os.environ.get("LLAMA_CPP_TEST_SCHEMAS", "20000"))
MANY_BY_MODEL = int(os.environ.get("LLAMA_CPP_TEST_SCHEMAS_BY_MODEL", "3000"))

long_run = [pytest.mark.slow, pytest.mark.generator]


def exactly(text: str):
    """JSON, with numbers as they are written."""
    return json.loads(text, parse_float=Decimal)


def validator(schema):
    """A validator of the schema; None where Python's regular expressions cannot read its patterns."""
    for pattern in re.findall(r'"(?:pattern"|patternProperties": {)[^}]*', json.dumps(schema)):
        if "p{" in pattern or "(?<" in pattern:
            return None
    kind = jsonschema.Draft202012Validator
    return kind(exactly(json.dumps(schema)), format_checker=kind.FORMAT_CHECKER)


def broken(checker, text: str) -> str:
    """Why a text breaks its schema; empty when it does not."""
    try:
        found = next(checker.iter_errors(exactly(text)), None)
    except RecursionError:  # a value nested deeper than Python's own reader goes
        return ""
    except InvalidOperation:  # a number so large that the package cannot divide it
        return ""
    except ValueError as error:
        return f"not JSON: {error}"
    return found.message if found else ""


def walk(n: int, start: int, examine) -> collections.Counter:
    """Hands ``n`` schemas to ``examine``, each with its grammar, and counts what came of them."""
    counts: collections.Counter = collections.Counter()

    @seed(start)
    @settings(max_examples=n, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(documents())
    def each(schema):
        counts["schemas"] += 1
        try:
            grammar = json_schema_to_grammar(schema)
        except (GrammarError, LimitReachedError) as error:
            assert "#" in str(error) or isinstance(error, LimitReachedError)
            counts["refused"] += 1
            return
        checker = validator(schema)
        if checker is not None:
            counts["texts"] += examine(schema, grammar, checker)

    each()
    return counts


@pytest.mark.parametrize("n", [700, pytest.param(MANY, marks=long_run)])
def test_what_a_grammar_admits_its_schema_accepts(n):
    rng = random.Random(n)

    def examine(schema, grammar, checker) -> int:
        walker = Walker(grammar)
        for _ in range(5):
            text = walker.draw(rng)
            why = broken(checker, text)
            assert not why, f"{json.dumps(schema)}\n{text[:500]}\n{why}"
        return 5

    counts = walk(n, n, examine)
    print(dict(counts))
    assert counts["texts"] > 2.5 * counts["schemas"], "most schemas are refused: there is little to be seen"


@pytest.mark.parametrize("n", [60, pytest.param(MANY // 4, marks=long_run)])
def test_what_is_written_raw_its_schema_accepts(n):
    """Strings as they are, until their end, which they must not hold; other values as JSON, and no string is taken for one."""
    rng, end = random.Random(n), "</x>"
    counts: collections.Counter = collections.Counter()

    @seed(n)
    @settings(max_examples=n, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(documents())
    def each(schema):
        for written in (Written("string", end, True), Written("mixed", end, False, "<!")):
            try:
                name, lines = rules(json.dumps(schema), "#", written)
            except (GrammarError, LimitReachedError):
                continue
            checker, walker = validator(schema), Walker(standing_alone(name, lines))
            for text in [walker.draw(rng) for _ in range(3)] if checker is not None else []:
                raw = text.removesuffix(end)
                assert end not in raw and text.endswith(end) == written.with_end
                told = json.dumps(raw)
                if written.raw == "mixed":
                    assert "<!" not in raw or raw[0] in '{["'
                    try:
                        exactly(raw)
                        told = raw
                    except (ValueError, RecursionError):
                        pass  # a string
                assert not broken(checker, told), f"{json.dumps(schema)}\n{text}"
                counts["texts"] += 1

    each()
    assert counts["texts"] > n


def some_value(rng: random.Random, depth: int = 0):
    """JSON of the kind that the schemas speak of."""
    kind = rng.randrange(7 if depth < 3 else 5)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.choice([0, 1, 2, 3, 5, 7, 10, 20, 25, 50, 60, 100, -1, -5, 1000, 17, 10**18])
    if kind == 2:
        return rng.choice([0.5, -2.25, 12.5, 99.99, 1.5, 0.25, 12.345])
    if kind in (3, 4):
        return rng.choice(["", "a", "b", "ab", "abcd", 'x"y', "c", "cab", "A", "123-4567", "12", "\\", "\n", "é", "q", "/a/"])
    if kind == 5:
        return [some_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(NAMES): some_value(rng, depth + 1) for _ in range(rng.randrange(4))}


@pytest.mark.parametrize("n", [200, pytest.param(MANY // 4, marks=long_run)])
def test_what_is_said_to_be_impossible_is(n):
    """A schema that is refused because nothing satisfies it accepts none of many values."""
    rng = random.Random(n)
    pool = [exactly(json.dumps(some_value(rng))) for _ in range(1000)]
    counts: collections.Counter = collections.Counter()

    @seed(n)
    @settings(max_examples=n, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(documents())
    def each(schema):
        if '"format"' in json.dumps(schema):
            return  # of formats only a part is written
        try:
            json_schema_to_grammar(schema)
        except GrammarError as error:
            checker = validator(schema) if "Nothing can satisfy" in str(error) else None
            if checker is not None:
                counts["refused"] += 1
                for value in pool:
                    assert not checker.is_valid(value), f"{json.dumps(schema)}\n{value}\n{error}"
        except LimitReachedError:
            pass

    each()
    assert counts["refused"] >= n / 30


@pytest.fixture(scope="module")
def babbling(tmp_path_factory):
    """A model of random weights, which says anything."""
    path = tmp_path_factory.mktemp("babbling") / "model.gguf"
    path.write_bytes(tiny_model().build())
    with Llama(path, n_ctx=1024) as llm:
        yield llm


@pytest.mark.parametrize("n", [300, pytest.param(MANY_BY_MODEL, marks=long_run)])
def test_what_a_model_answers_its_schema_accepts(babbling, n):
    ended = 0

    def examine(schema, grammar, checker) -> int:
        nonlocal ended
        choice = babbling.create_completion(
            "x", grammar=grammar, temperature=1, top_k=0, top_p=1, min_p=0, seed=n, max_tokens=120
        )["choices"][0]
        if choice["finish_reason"] != "stop":
            return 0
        ended += 1
        why = broken(checker, choice["text"])
        assert not why, f"{json.dumps(schema)}\n{choice['text'][:500]}\n{why}"
        return 1

    counts = walk(n, n + 1, examine)
    print(dict(counts), "ended:", ended)
    assert ended > n / 4

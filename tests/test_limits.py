"""What templates and grammars cost has a limit, Ctrl-C is heard in them, and every repetition that can be written works."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from gguf_writer import tiny_model
from llama_cpp import Llama
from llama_cpp.chat.templates import ChatTemplates, json_schema_to_grammar
from llama_cpp.errors import GrammarError, InvalidArgumentError, LimitReachedError, LlamaCppError, RequestAbortedError
from llama_cpp.json_schema import budget
from llama_cpp.json_schema.budget import Budget
from llama_cpp.limits import Limits
from measures import calls

ASKED = {"messages": [{"role": "user", "content": "Hi"}]}

#: Templates that cost too much, each in a way of its own.
GREEDY = {
    "nested loops": "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}x"
    "{% endfor %}{% endfor %}{% endfor %}",
    "macros that fan out": "".join(
        f"{{% macro m{i}() %}}{{{{ m{i + 1}() }}}}{{{{ m{i + 1}() }}}}{{{{ m{i + 1}() }}}}{{% endmacro %}}" for i in range(40)
    )
    + "{% macro m40() %}x{% endmacro %}{{ m0() }}",
    "text that doubles": "{% set n = namespace(s='x') %}{% for i in range(100) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "text times a number": "{{ 'x' * 10000000000000 }}",
    "replacements": "{% set s = 'a' * 100000 %}{{ s | replace('a', s) | replace('a', s) }}",
    "replacement of nothing": "{% set s = 'a' * 100000 %}{{ s | replace('', s) | replace('', s) }}",
    "a join": "{{ range(1000000) | join('x' * 10000) }}",
    "an indent": "{{ 'a\nb' | indent(10000000000000) }}",
    "an indented document": "{{ messages | tojson(indent=1000000000) }}",
    "a range": "{{ range(1000000000) | length }}",
    "a range without an end": "{{ range(0, 9223372036854775807, 2) | length }}",
    "a list that doubles": "{% set n = namespace(l=[1]) %}{% for i in range(100) %}{% set n.l = n.l + n.l %}{% endfor %}"
    "{{ n.l | length }}",
    "replacements of much": "{% set s = 'ab' * 10000000 %}{{ s | replace('a', 'xyz') | length }}",
}


@pytest.mark.parametrize("name", GREEDY)
def test_a_greedy_template_is_ended(name):
    before = time.monotonic()
    with pytest.raises(LimitReachedError) as caught:
        ChatTemplates(None, GREEDY[name], limits=Limits(seconds=2, template_bytes=1 << 24, template_values=100_000)).apply(ASKED)
    assert "template" in str(caught.value)
    assert time.monotonic() - before < 60  # without a limit it would be hours, or all memory


@pytest.mark.parametrize("name", ["nested loops", "text that doubles", "a range"])
def test_a_model_has_limits_by_default(smollm2, name):
    with Llama(smollm2, n_ctx=64, chat_format=GREEDY[name], limits=Limits(seconds=1)) as llm:
        with pytest.raises(LimitReachedError):
            llm.create_chat_completion(ASKED["messages"])
        assert llm.create_completion("x", max_tokens=1)


@pytest.mark.parametrize(
    "how", [{"seconds": 0}, {"seconds": float("inf")}, {"template_bytes": -1}, {"grammar_stacks": 1.5}, {"seconds": "1"}]
)
def test_limits_that_are_none(how):
    with pytest.raises(InvalidArgumentError):
        Limits(**how)


def test_limits_are_arguments_of_a_model(smollm2):
    with pytest.raises(InvalidArgumentError, match="limits"):
        Llama(smollm2, limits={"seconds": 1})


def test_what_a_long_conversation_needs_is_allowed(llm):
    """A thousand turns, and a text of two million characters."""
    messages = [{"role": "user" if i % 2 else "assistant", "content": f"turn {i}"} for i in range(1000)]
    prompt = ChatTemplates(llm.loaded.model).apply({"messages": [*messages, {"role": "user", "content": "word " * 400_000}]})
    assert len(prompt.text) > 2_000_000


class Pressed(Exception):
    """What a handler of Ctrl-C raises here."""


@pytest.fixture
def ctrl_c():
    """Presses Ctrl-C after half a second."""

    def handler(_number, _frame):
        raise Pressed

    before = signal.signal(signal.SIGINT, handler)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    yield
    timer.cancel()
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_heard_in_a_template(ctrl_c):
    before = time.monotonic()
    with pytest.raises(Pressed):
        ChatTemplates(None, GREEDY["nested loops"], limits=Limits(seconds=600)).apply(ASKED)
    assert time.monotonic() - before < 300


# --- grammars ---

AMBIGUOUS = {
    "nothing in many ways": "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(30)) + '\nr30 ::= "a"?\nroot ::= r0 "b"',
    "a in many ways": 'root ::= x x x x x x x x x x x x x x x x x x x x x x x x "b"\n'
    'x ::= "a"? "a"? "a"? "a"? "a"? "a"? "a"? "a"?',
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_an_ambiguous_grammar_is_ended(quick, name):
    with Llama(quick.model_path, n_ctx=64, limits=Limits(grammar_stacks=20_000)) as llm:
        with pytest.raises(LlamaCppError) as caught:
            llm.create_completion(
                "x", max_tokens=50, grammar=AMBIGUOUS[name], temperature=0, logit_bias={llm.tokenize(b"a")[-1]: 5.0}
            )
        assert isinstance(caught.value, LimitReachedError), caught.value
        assert llm.create_completion("x", max_tokens=1)  # nobody else is harmed


#: Each way to go on takes long to look at, so that counting them alone would not end it in a minute.
DEEP = "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(40)) + '\nr40 ::= "a"?\nroot ::= r0 "b"'
EVERY_WAY = {"template_bytes": 1 << 40, "grammar_stacks": 1 << 50}


def test_a_grammar_takes_no_longer_than_it_may(quick):
    before = time.monotonic()
    with (
        Llama(quick.model_path, n_ctx=64, limits=Limits(seconds=1, **EVERY_WAY)) as llm,
        pytest.raises(LimitReachedError, match="too long"),
    ):
        llm.create_completion("x", grammar=DEEP)
    assert time.monotonic() - before < 30


def test_a_grammar_takes_no_longer_for_a_token(quick):
    """It would hold up everybody."""
    before = time.monotonic()
    with Llama(quick.model_path, n_ctx=64, limits=Limits(seconds=1, **EVERY_WAY)) as llm:
        with pytest.raises(LimitReachedError, match="too many ways"):
            llm.create_completion("x", grammar=DEEP.replace("root ::= r0", 'root ::= "a" r0'))
        assert llm.create_completion("x", max_tokens=1)
    assert time.monotonic() - before < 30


def test_a_rule_that_is_named_twice_is_looked_at_once(quick):
    """Else 64 of them in a row take longer than anybody waits, and no limit is heard."""
    chain = "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1} | r{i + 1}\n" for i in range(64)) + 'r64 ::= "a"'
    with Llama(quick.model_path, n_ctx=64) as llm:
        assert llm.create_completion("x", grammar=chain, max_tokens=4)["choices"][0]["text"] == "a"


def test_ctrl_c_is_heard_in_a_grammar(quick, ctrl_c):
    with Llama(quick.model_path, n_ctx=64, limits=Limits(seconds=60, **EVERY_WAY)) as llm:
        before = time.monotonic()
        with pytest.raises(Pressed):
            llm.create_completion("x", grammar=DEEP)
    assert time.monotonic() - before < 30


#: Requests that are read for minutes before anything is computed.
LONG_READ = {
    "a template": ({"chat_format": GREEDY["nested loops"]}, {}),
    "a grammar": ({}, {"grammar": DEEP}),
    "a schema": ({}, {"response_format": {"type": "json_schema", "schema": {"enum": [f"{i}" for i in range(100_000)]}}}),
}


@pytest.mark.parametrize("name", LONG_READ)
def test_abort_callback_is_asked_while_a_request_is_read(quick, name):
    """Else nobody could end it but by Ctrl-C."""
    loaded, asked = LONG_READ[name]
    n = 0

    def third():
        nonlocal n
        n += 1
        return n == 3

    def failing():
        raise Pressed

    before = time.monotonic()
    with Llama(quick.model_path, n_ctx=64, **{"chat_format": "chatml", **loaded}, limits=Limits(seconds=600, **EVERY_WAY)) as llm:
        with pytest.raises(RequestAbortedError):
            llm.create_chat_completion(ASKED["messages"], abort_callback=third, **asked)
        assert n == 3
        with pytest.raises(Pressed):
            llm.create_chat_completion(ASKED["messages"], abort_callback=failing, **asked)
        assert llm.create_completion("x", max_tokens=1, abort_callback=lambda: False)
    assert time.monotonic() - before < 60


VALUES = [f"value number {i}" for i in range(4000)]
ITEMS = [{"type": "integer"}] * 4000


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": VALUES}, {"enum": VALUES, "pattern": "^v.*1$"}, {"allOf": [{"enum": VALUES}, {"enum": VALUES}]},
        {"type": "array", "prefixItems": ITEMS}, {"type": "array", "prefixItems": ITEMS, "minItems": 4000},
        {"type": "string", "pattern": "|".join(VALUES)},
        {"type": "string", "allOf": [{"pattern": f"{value}|other {value}"} for value in VALUES[:100]]},
    ],
    ids=["enum", "enum and pattern", "two enums", "items", "required items", "pattern", "patterns"],
)  # fmt: skip
def test_the_time_is_looked_at_all_along(schema, monkeypatch):
    """While values are compared and written, too: at most a few calls for each of 4,000 of them come between two looks."""
    # the clock is one of looks, so that a quick machine and a slow one come equally far
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=itertools.count().__next__))

    def make() -> None:
        with contextlib.suppress(GrammarError, LimitReachedError):
            json_schema_to_grammar(schema, Limits(seconds=20_000))

    assert calls(make, look=Budget.tick)[1] < 20_000


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A model that generates thousands of tokens in a second, of single bytes."""
    path = tmp_path_factory.mktemp("limits") / "tiny.gguf"
    path.write_bytes(tiny_model().build())
    with Llama(path, n_ctx=8192) as model:
        yield model


def follows(llm, grammar, **how):
    answer = llm.create_completion("x", grammar=grammar, **{"max_tokens": 300, "temperature": 0, **how})["choices"][0]
    return answer["text"], answer["finish_reason"]


@pytest.mark.parametrize(
    "repetition, least, most",
    [("{3}", 3, 3), ("{0,2}", 0, 2), ("{2,}", 2, None), ("{1999}", 1999, 1999), ("{2000}", 2000, 2000), ("{2001}", 2001, 2001),
     ("{2001,2003}", 2001, 2003), ("{2000,}", 2000, None), ("{5000,5001}", 5000, 5001), ("{0,4294967296}", 0, None),
     ("{4294967296}", 1 << 32, None), ("{99999999999999999999999999}", 1 << 60, None)],
)  # fmt: skip
def test_repetitions(quick, repetition, least, most):
    """Exactly as often as it says, whether the model would like more or less."""
    for bias in (-50.0, 50.0):
        ends = {quick.tokenize(b"!", add_bos=False)[-1]: bias}
        text, reason = follows(quick, f'root ::= [ab]{repetition} "!"', max_tokens=2100, logit_bias=ends, temperature=1, seed=1)
        n = len(text.rstrip("!"))
        assert set(text) <= set("ab!") and text.count("!") == (reason == "stop")
        assert most is None or n <= most
        if reason == "stop":
            assert least <= n and (n == least or bias < 0) and (n == most or bias > 0)
        else:
            assert n == 2100 and (most is None or most > 2100)


@pytest.mark.parametrize("repetition", ["{3,2}", "{1,0}", "{2001,2000}", "{4294967296,1}", "{99999999999999999999,5}"])
def test_a_repetition_that_contradicts_itself(llm, repetition):
    with pytest.raises(GrammarError, match="less than the least"):
        llm.create_completion("x", grammar=f'root ::= "a"{repetition}')


def test_nested_repetitions_cost_nothing(quick):
    before = time.monotonic()
    text, _ = follows(quick, 'root ::= ((("a"{1000} "b"){1000} "c"){1000} "d"){1000}', max_tokens=20)
    assert set(text) == {"a"}
    assert time.monotonic() - before < 60


@pytest.mark.parametrize(
    "schema",
    [{"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 2},
     {"type": "string", "minLength": 3, "maxLength": 2},
     {"type": "string", "pattern": "^a{3,2}$"}, {"type": "integer", "minimum": 5, "maximum": 4},
     {"type": "integer", "exclusiveMinimum": 5, "exclusiveMaximum": 6}, {"type": "string", "minLength": -1},
     {"type": "string", "minLength": 1.5}, {"type": "string", "minLength": "3"}],
)  # fmt: skip
def test_bounds_that_contradict_each_other(schema):
    with pytest.raises(GrammarError):
        json_schema_to_grammar({"type": "object", "properties": {"a": schema}, "required": ["a"]})


@pytest.mark.parametrize("n", [0, 1, 1999, 2000, 2001, 2002, 5000, 4294967296, 10**30, 3.0])
def test_every_bound_works(quick, n):
    for schema in (
        {"type": "array", "items": {"type": "boolean"}, "maxItems": n},
        {"type": "array", "items": {"type": "boolean"}, "minItems": n},
        {"type": "string", "minLength": n}, {"type": "string", "maxLength": n},
    ):  # fmt: skip
        text, reason = follows(quick, json_schema_to_grammar(schema), max_tokens=40, temperature=1, seed=1)
        assert text
        if "minLength" in schema and reason == "stop":
            assert len(text) - 2 >= n


def test_a_grammar_s_place_is_told(llm):
    with pytest.raises(GrammarError, match="line 2, column 1"):
        llm.create_completion("x", grammar='root ::= "a"\n%')
    with pytest.raises(GrammarError, match="left recursion"):
        llm.create_completion("x", grammar='root ::= root "a"')
    with pytest.raises(GrammarError, match="'b'"):
        llm.create_completion("x", grammar="root ::= b")
    with pytest.raises(GrammarError, match="root"):
        llm.create_completion("x", grammar='a ::= "b"')


def test_nothing_is_written_to_stderr(llm, capfd):
    for grammar in ("root ::= (", 'a ::= "b"', "root ::= root"):
        with pytest.raises(GrammarError):
            llm.create_completion("x", grammar=grammar)
    json_schema_to_grammar({"type": "string", "pattern": "unanchored"})
    assert capfd.readouterr().err == ""


def test_a_large_enum_is_read_at_once(llm):
    names = [f"value number {i}" for i in range(10_000)]
    given = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": names}}}
    answer = llm.create_chat_completion([{"role": "user", "content": "Hi"}], max_tokens=20, temperature=0, response_format=given)
    assert answer["choices"][0]["message"]["content"].strip('"').split()[0] == "value"


@pytest.mark.parametrize("n", [40, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.generator])])
def test_one_of_some_values_is_generated(quick, n):
    """Values that begin alike, that begin another one, and that differ within a character."""
    rng = random.Random(n)
    parts = ["a", "ab", "b", "é", "è", "中", "丮", "😀", "😁", '"', "\\", "\n", " ", "", "0", "{"]
    for _ in range(n):
        values = ["".join(rng.choice(parts) for _ in range(rng.randrange(4))) for _ in range(rng.randrange(1, 8))]
        values += rng.sample([1, 10, 100, -1, 1.5, True, None, [1], {"a": "b"}], rng.randrange(3))
        text, reason = follows(
            quick, json_schema_to_grammar({"enum": values}), temperature=2, seed=rng.randrange(1 << 30), max_tokens=60
        )
        assert reason == "stop" and any(
            type(value) is type(json.loads(text)) and value == json.loads(text) for value in values
        ), text

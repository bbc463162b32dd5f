"""Schemas of tools and formats in the chat templates of the engine's source, and what is checked when an answer is there."""

from __future__ import annotations

import json
import random
import sys

import jsonschema
import pytest

from gbnf_walker import Walker
from llama_cpp.chat.request import ChatRequest
from llama_cpp.chat.templates import ChatTemplates
from llama_cpp.errors import ChatTemplateError, GrammarError, InvalidArgumentError, MissingPackageError, SchemaViolationError

ASKED = [{"role": "user", "content": "Hi"}]

#: What arguments are made of, each a schema that llama.cpp's own converter does not hold an answer to, or not in every format.
PARAMETERS = {
    "type": "object",
    "properties": {
        "unit": {"enum": ["celsius", "kelvin"]},
        "code": {"type": "string", "pattern": r"^[A-Z]{2}\d+$"},
        "quoted": {"type": "string", "pattern": '^"x\\\\"$'},
        "day": {"type": "string", "format": "date"},
        "short": {"type": "string", "minLength": 2, "maxLength": 4},
        "free": {"type": "string"},
        "ratio": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
        "step": {"type": "integer", "multipleOf": 5, "minimum": 10},
        "perhaps": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
        "either": {"anyOf": [{"type": "integer", "minimum": 100}, {"type": "string", "pattern": "^[a-z0-9]+$"}]},
        "place": {"$ref": "#/$defs/place"},
        "sizes": {"type": "array", "items": {"type": "integer", "maximum": 3}, "minItems": 2, "maxItems": 3},
        "on": {"type": "boolean"},
    },
    "required": ["unit", "code", "step", "place", "perhaps", "either", "sizes"],
    "additionalProperties": False,
    "$defs": {"place": {"type": "object", "properties": {"x": {"type": "integer", "not": {"enum": [0]}},
        "name": {"enum": ["a b", "c"]}}, "required": ["x"]}},
}  # fmt: skip


def tool(parameters, name="f", **more) -> dict:
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters, **more}}


@pytest.fixture(scope="module")
def shipped(llama_source):
    """Every template that the engine's source ships."""
    found = {}
    for path in sorted((llama_source / "models/templates").glob("*.jinja")):
        found[path.stem] = ChatTemplates(None, path.read_text(), bos_token="<s>", eos_token="</s>")
    assert len(found) > 50
    return found


def drawn(prompt, n: int, rng: random.Random):
    """Answers that the grammar of a conversation admits, without what the prompt has of them already.

    Where that is not fixed in the grammar (thoughts that are empty), hardly a text begins so, and there may be none.
    """
    walker, begun = Walker(prompt.grammar["grammar"]), prompt.grammar.get("generation_prompt", "")
    for _ in range(40 * n):
        text = walker.draw(rng)
        if text.startswith(begun):
            yield text[len(begun) :]
            n -= 1
        if n == 0:
            return


#: Templates whose arguments no grammar holds to a schema: they are compared when the answer is there.
COMPARED = ("gemma-4", "lfm2", "kimi-k3")


CHECKER = jsonschema.Draft202012Validator(PARAMETERS, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)


def rendered(shipped, **how):
    for name, templates in shipped.items():
        try:
            yield name, ChatRequest(ASKED, chat_template_kwargs={"enable_thinking": False}, **how).render(templates)
        except ChatTemplateError:
            continue


def test_arguments_follow_their_schema_with_every_template(shipped):
    """Texts are drawn from the grammar of a required call, and read as answers are.

    Some readers refuse white space that their grammars allow: such a text is no call, and so nothing to look at here.
    """
    rng, wrong, n_called, compared = random.Random(5), [], 0, []
    for name, prompt in rendered(shipped, tools=[tool(PARAMETERS)], tool_choice="required"):
        if prompt.checks is not None:
            compared.append(name)
            continue
        called = thought = n = 0
        for text in drawn(prompt, 12, rng):
            n += 1
            message = prompt.response_parser().whole(text, truncated=False)
            thought += bool(message.get("reasoning_content"))
            for call in message.get("tool_calls", ()):
                called += 1
                problem = next(CHECKER.iter_errors(json.loads(call["function"]["arguments"])), None)
                if problem:
                    wrong.append((name, text[:400], problem.message))
        if n and not called and not thought:
            wrong.append((name, "no call is read"))
        n_called += called
    assert wrong == [], wrong[:3]
    assert n_called > 300
    assert compared and all(any(known in name.lower() for known in COMPARED) for name in compared), compared


def test_a_format_follows_its_schema_with_every_template(shipped):
    rng, wrong, n = random.Random(6), [], 0
    for how in ({}, {"tools": [tool(PARAMETERS)], "tool_choice": "none"}):
        for name, prompt in rendered(shipped, response_format={"type": "json_schema", "schema": PARAMETERS}, **how):
            for text in drawn(prompt, 4, rng):
                message = prompt.response_parser().whole(text, truncated=False)
                if not message.get("content") and message.get("reasoning_content"):
                    continue  # where a template always thinks, its reader takes what is not told from thoughts for them
                try:
                    problem = next(CHECKER.iter_errors(json.loads(message["content"])), None)
                except ValueError as error:
                    problem = error
                n += 1
                if problem:
                    wrong.append((name, text[:300], str(problem)[:200]))
    assert wrong == [], (len(wrong), wrong[:3])
    assert n > 300


@pytest.mark.parametrize(
    "schema, place",
    [
        ({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}, "#/properties/a/uniqueItems"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/no"}}}, "#/properties/a/$ref"),
        ({"type": "object", "properties": {"a": {"pattern": "(?=x)"}}}, "#/properties/a/pattern"),
        ({"type": "object", "properties": {"a": {"minimum": 2, "maximum": 1, "type": "number"}}, "required": ["a"]},
         "#/properties/a"),
    ],
)  # fmt: skip
def test_errors_say_which_schema_of_the_request(shipped, schema, place):
    templates = next(iter(shipped.values()))
    with pytest.raises(GrammarError) as caught:
        ChatRequest(ASKED, tools=[tool({}), tool(schema, "g")]).render(templates)
    assert f'tools[1]["function"]["parameters"]: {place}' in str(caught.value)
    with pytest.raises(GrammarError) as caught:
        ChatRequest(ASKED, response_format={"type": "json_schema", "schema": schema}).render(templates)
    assert f"response_format: {place}" in str(caught.value)


@pytest.mark.parametrize(
    "parameters, place",
    [
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]}, "#/required"),
        ({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "minProperties": 1},
         "#/minProperties"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "if": {"required": ["a"]}, "then": {"maxProperties": 3}},
         "#/if"),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}}},
         "#/$ref"),
        ({"anyOf": [{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, {"type": "object"}]},
         "#/anyOf"),
    ],
)  # fmt: skip
def test_what_is_written_one_by_one_says_what_it_cannot_keep(shipped, parameters, place):
    """Qwen3-Coder's arguments stand side by side: nothing looks at all of them."""
    templates = next(found for name, found in shipped.items() if "Qwen3-Coder" in name)
    with pytest.raises(GrammarError) as caught:
        ChatRequest(ASKED, tools=[tool(parameters)], tool_choice="required").render(templates)
    assert place in str(caught.value)


def test_a_tool_may_refer_to_itself_and_have_true_for_a_schema(shipped):
    node = {"type": "object", "properties": {"value": True, "next": {"$ref": "#"}}, "required": ["value"]}
    for name, templates in shipped.items():
        try:
            prompt = ChatRequest(ASKED, tools=[tool(node)], tool_choice="required").render(templates)
        except ChatTemplateError:
            continue
        assert prompt.grammar["grammar"], name


# --- strict=False ---

#: Its grammar admits ["x", "x"], which it does not accept.
LOOSE = {
    "type": "object",
    "properties": {
        "tags": {
            "type": "array",
            "items": {"type": "string", "pattern": "^x$"},
            "minItems": 2,
            "maxItems": 2,
            "uniqueItems": True,
        }
    },
    "required": ["tags"],
}
#: Its grammar admits what it accepts.
FINE = {
    "type": "object",
    "properties": {
        "tags": {
            "type": "array",
            "items": {"type": "string", "pattern": "^x$"},
            "minItems": 1,
            "maxItems": 1,
            "uniqueItems": True,
        },
        "w": {"pattern": "(?=a)a", "enum": ["a"]},
    },
    "required": ["tags"],
}


def asked_loosely(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "strict": False, "schema": schema}}


def test_an_answer_that_breaks_its_schema_is_not_lost(llm):
    with pytest.raises(GrammarError, match="uniqueItems"):
        llm.create_chat_completion(ASKED, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": LOOSE}})
    with pytest.raises(SchemaViolationError) as caught:
        llm.create_chat_completion(ASKED, response_format=asked_loosely(LOOSE), max_tokens=200, temperature=0)
    error = caught.value
    assert (
        json.loads(error.answer) == {"tags": ["x", "x"]}
        and error.place == "/tags"
        and error.schema_place.endswith("/uniqueItems")
    )
    assert error.response["choices"][0]["message"]["content"] == error.answer and isinstance(error, ValueError)


def test_a_stream_raises_at_its_end(llm):
    text = ""
    with pytest.raises(SchemaViolationError) as caught:
        for chunk in llm.create_chat_completion(
            ASKED, response_format=asked_loosely(LOOSE), max_tokens=200, temperature=0, stream=True
        ):
            choice = chunk["choices"][0]
            text += choice["delta"].get("content") or ""
            reason = choice["finish_reason"]
    assert text == caught.value.answer and reason == "stop"


def test_an_answer_that_follows_is_given(llm):
    answer = llm.create_chat_completion(ASKED, response_format=asked_loosely(FINE), max_tokens=200, temperature=0)
    assert json.loads(answer["choices"][0]["message"]["content"])["tags"] == ["x"]
    # one that was cut off is not compared
    cut = llm.create_chat_completion(ASKED, response_format=asked_loosely(LOOSE), max_tokens=3, temperature=0)
    assert cut["choices"][0]["finish_reason"] == "length"


def test_arguments_of_a_tool_that_is_not_strict_are_compared(llm):
    with pytest.raises(SchemaViolationError) as caught:
        llm.create_chat_completion(
            ASKED, tools=[tool(LOOSE, strict=False)], tool_choice="required", max_tokens=300, temperature=0
        )
    assert json.loads(caught.value.answer) == {"tags": ["x", "x"]} and "'f'" in str(caught.value)
    assert caught.value.response["choices"][0]["message"]["tool_calls"]


def test_the_package_that_compares_is_asked_for_before_anything_is_computed(llm, monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MissingPackageError, match="pip install jsonschema"):
        llm.create_chat_completion(ASKED, response_format=asked_loosely(LOOSE))


@pytest.mark.parametrize("strict", ["no", 5, []])
def test_strict_is_true_or_false(strict):
    with pytest.raises(InvalidArgumentError, match="strict"):
        ChatRequest(ASKED, response_format={"type": "json_schema", "json_schema": {"strict": strict, "schema": FINE}})._schema()


def test_a_real_model_follows_a_schema_of_many_keywords(llm):
    answer = llm.create_chat_completion(
        [{"role": "user", "content": "Describe a person as JSON."}], temperature=0, max_tokens=400,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": PARAMETERS}},
    )["choices"][0]  # fmt: skip
    if answer["finish_reason"] == "stop":
        jsonschema.Draft202012Validator(PARAMETERS).validate(json.loads(answer["message"]["content"]))

"""Messages, tools and formats as programs give them: nulls are absent, and what is wrong is named by its place."""

from __future__ import annotations

import json

import pytest

from llama_cpp import Llama
from llama_cpp.chat.messages import choose_tools, read_messages, read_response_format, read_tools
from llama_cpp.chat.request import ChatRequest
from llama_cpp.chat.templates import ChatTemplates
from llama_cpp.errors import ChatTemplateError, InvalidArgumentError

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def test_nulls_are_absent(llm):
    """As OpenAI's client writes an answer's message down."""
    call = {"id": None, "type": None, "function": {"name": "f", "arguments": ""}, "index": None}
    answered = {
        "role": "assistant", "content": None, "refusal": None, "name": None, "tool_call_id": None, "reasoning_content": None,
        "tool_calls": [call], "function_call": None, "audio": None,
    }  # fmt: skip
    read = read_messages([answered, {"role": "tool", "content": "5", "tool_call_id": None}])
    assert read == [
        {
            "role": "assistant",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}],
            "content": None,
        },
        {"role": "tool", "content": "5"},
    ]
    answer = llm.create_chat_completion(
        [{**answered, "tool_calls": None}, {"role": "user", "content": "Hi", "name": None}], max_tokens=2
    )
    assert answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "arguments, read", [("", "{}"), (" ", "{}"), (None, "{}"), ({"a": 1}, '{"a": 1}'), ('{"a": 1}', '{"a": 1}')]
)
def test_arguments_of_a_call(arguments, read):
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    assert read_messages([message])[0]["tool_calls"][0]["function"]["arguments"] == read


@pytest.mark.parametrize(
    "messages, place",
    [
        ([{"role": "user"}], 'messages[0]["content"]'),
        ([{"role": "user", "content": "x"}, {"content": "x"}], 'messages[1]["role"]'),
        ([{"role": 5, "content": "x"}], 'messages[0]["role"]'),
        ([{"role": "user", "content": 5}], 'messages[0]["content"]'),
        ([{"role": "user", "content": [{"type": "text"}]}], 'messages[0]["content"][0]["text"]'),
        ([{"role": "user", "content": [{"text": "x"}]}], 'messages[0]["content"][0]["type"]'),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], 'messages[0]["content"][0]'),
        ([{"role": "user", "content": "x", "name": ["a"]}], 'messages[0]["name"]'),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], 'messages[0]["tool_calls"][0]["function"]["name"]'),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]}], '["function"]["arguments"]'),
        ([{"role": "assistant", "tool_calls": [{"id": 5, "function": {"name": "f"}}]}], '["tool_calls"][0]["id"]'),
        ([{"role": "assistant", "tool_calls": {"a": 1}}], 'messages[0]["tool_calls"]'),
        ([5], "messages[0]"), ("x", "messages"), (5, "messages"), ({"role": "user"}, "messages"), ([], "messages"),
        ([{5: 5}], "messages[0]"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_place(messages, place):
    with pytest.raises(InvalidArgumentError) as caught:
        read_messages(messages)
    assert place in str(caught.value) and caught.value.remedy is not None


@pytest.mark.parametrize(
    "tools", ["f", {"type": "function"}, [5], [{"type": "web_search"}], [{"type": "function"}], [{"function": {"name": ""}}],
              [{"function": {"name": "f", "parameters": 5}}], [{"function": {"name": "f", "parameters": "{"}}],
              [{"function": {"name": "f", "description": 5}}]],
)  # fmt: skip
def test_tools_that_are_none(tools):
    with pytest.raises(InvalidArgumentError, match="tools"):
        read_tools(tools)


def test_tools_are_filled_up():
    (tool,) = read_tools([{"function": {"name": "f", "strict": None, "parameters": None, "description": None}}])
    assert tool == {
        "type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}},
    }  # fmt: skip


@pytest.mark.parametrize(
    "choice, expected",
    [(None, "auto"), ("auto", "auto"), ("none", "none"), ("required", "required"), ("any", "required"),
     ({"type": "auto"}, "auto"),
     ({"type": "function", "function": {"name": "f"}}, "required"), ({"type": "function", "name": "f"}, "required"),
     ({"function": {"name": "f"}}, "required")],
)  # fmt: skip
def test_choices_of_tools(choice, expected):
    assert choose_tools([TOOL], choice) == ([TOOL], expected)


@pytest.mark.parametrize("choice", ["always", 5, {"type": "function"}, {"type": "function", "function": {"name": "g"}}, {}, []])
def test_choices_that_are_none(choice):
    with pytest.raises(InvalidArgumentError, match="tool_choice"):
        choose_tools([TOOL], choice)


@pytest.mark.parametrize("choice", ["required", "any", {"type": "function", "function": {"name": "f"}}])
def test_there_must_be_tools_to_be_required(llm, choice):
    with pytest.raises(InvalidArgumentError, match="tool"):
        llm.create_chat_completion([{"role": "user", "content": "Hi"}], tool_choice=choice)


@pytest.mark.parametrize(
    "given",
    [
        {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}},
        {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
        {"type": "json_schema", "json_schema": SCHEMA},
        {"type": "json_schema", "schema": SCHEMA},
        {"type": "json_object", "schema": SCHEMA},
        {"type": "json_object", "json_schema": SCHEMA},
        {"type": "json_object", "json_schema": {"schema": SCHEMA}, "schema": None},
        {"type": "json_schema", "json_schema": json.dumps(SCHEMA)},
        {"type": "json_object", "schema": json.dumps(SCHEMA)},
    ],
)
def test_a_schema_is_taken_from_where_it_is_given(llm, given):
    assert read_response_format(given) == SCHEMA
    answer = llm.create_chat_completion([{"role": "user", "content": "Hi"}], temperature=0, max_tokens=30, response_format=given)
    assert answer["choices"][0]["message"]["content"].lstrip().startswith("{")


@pytest.mark.parametrize("schema", [True, {}])
def test_a_schema_that_allows_anything_asks_for_json(llm, schema):
    given = {"type": "json_schema", "json_schema": {"name": "any", "schema": schema}}
    answer = llm.create_chat_completion(
        [{"role": "user", "content": "Say the number five."}], temperature=0, max_tokens=200, response_format=given
    )
    choice = answer["choices"][0]
    assert choice["message"]["content"].lstrip()[0] in '{["-0123456789tfn'
    if choice["finish_reason"] == "stop":
        json.loads(choice["message"]["content"])


@pytest.mark.parametrize(
    "given",
    [5, "json_object", ["json"], {"type": "xml"}, {"type": 5}, {"type": "json_schema"},
     {"type": "json_schema", "json_schema": {"name": "x"}},
     {"type": "json_schema", "schema": 5}, {"type": "json_schema", "schema": "{"}, {"type": "json_object", "schema": [1]},
     {"type": "json_schema", "schema": SCHEMA, "json_schema": SCHEMA}, {"type": "text", "schema": SCHEMA}, {"schema": SCHEMA},
     {"type": "json_schema", "schema": "5"}],
)  # fmt: skip
def test_formats_that_are_none(given):
    with pytest.raises(InvalidArgumentError, match="response_format"):
        read_response_format(given)


def test_nothing_follows_the_schema_false(llm):
    with pytest.raises(InvalidArgumentError, match="false"):
        llm.create_chat_completion([{"role": "user", "content": "Hi"}], response_format={"type": "json_schema", "schema": False})


# --- templates that cannot express tools ---

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather", "description": "The weather of a place.",
        "parameters": {
            "type": "object", "properties": {"place": {"$ref": "#/$defs/place"}}, "required": ["place"],
            "$defs": {"place": {"enum": ["Paris", "Rome"]}},
        },
    },
}  # fmt: skip
TIME = {
    "type": "function",
    "function": {
        "name": "time",
        "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC"]}}, "required": ["zone"]},
    },
}
ASKED = [{"role": "user", "content": "How is the weather in Paris?"}]


@pytest.mark.parametrize(
    "choice, names", [("required", {"weather", "time"}), ({"type": "function", "function": {"name": "time"}}, {"time"})]
)
def test_a_tool_that_is_required_is_called(llm, choice, names):
    """SmolLM2's own template knows nothing of tools: they are described in the first message, and the grammar enforces a call."""
    how = {"tools": [WEATHER, TIME], "tool_choice": choice, "temperature": 0, "max_tokens": 200}
    answer = llm.create_chat_completion(ASKED, **how)["choices"][0]
    (call,) = answer["message"]["tool_calls"]
    assert answer["finish_reason"] == "tool_calls" and answer["message"]["content"] is None
    assert call["id"].startswith("call_") and call["type"] == "function" and call["function"]["name"] in names
    arguments = json.loads(call["function"]["arguments"])
    assert arguments in ({"place": "Paris"}, {"place": "Rome"}, {"zone": "UTC"})
    chunks = list(llm.create_chat_completion(ASKED, stream=True, **how))
    (delta,) = [chunk["choices"][0]["delta"] for chunk in chunks if "tool_calls" in chunk["choices"][0]["delta"]]
    assert delta["tool_calls"][0]["function"] == call["function"] and chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_the_tools_are_in_the_prompt(llm):
    prompt = ChatRequest(ASKED, tools=[WEATHER, TIME], tool_choice="required").render(ChatTemplates(llm.loaded.model))
    assert '"weather"' in prompt.text and "The weather of a place." in prompt.text and prompt.how == "tools"
    none = ChatRequest(ASKED, tools=[WEATHER], tool_choice="none").render(ChatTemplates(llm.loaded.model))
    assert none.grammar is None


def test_a_conversation_with_calls_goes_on(llm):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Paris"}'}}
    messages = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
    ]
    prompt = ChatRequest(messages, tools=[WEATHER]).render(ChatTemplates(llm.loaded.model))
    assert "Sunny." in prompt.text and '"place": "Paris"' in prompt.text
    answer = llm.create_chat_completion(messages, tools=[WEATHER], temperature=0, max_tokens=300)["choices"][0]["message"]
    assert answer.get("content") or answer.get("tool_calls")


# --- grammars of one's own, where a template thinks ---


def test_the_answer_of_a_grammar_is_the_content(smollm2, llama_source):
    template = (llama_source / "models/templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja").read_text()
    with Llama(smollm2, n_ctx=512, chat_format=template) as llm:
        answer = llm.create_chat_completion(ASKED, grammar='root ::= "sunny"', temperature=0)["choices"][0]["message"]
        assert answer == {"role": "assistant", "content": "sunny"}
        parts = [
            chunk["choices"][0]["delta"] for chunk in llm.create_chat_completion(ASKED, grammar='root ::= "sunny"', stream=True)
        ]
        assert "".join(part.get("content") or "" for part in parts) == "sunny" and not any(
            "reasoning_content" in part for part in parts
        )


def test_a_schema_holds_with_every_template(quick_templates):
    """For each template in the engine's source: a schema, with and without tools, is followed, or the template refuses."""
    wrong = []
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    given = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for name, templates in quick_templates:
        for how in ({}, {"tools": [TOOL], "tool_choice": "none"}, {"tools": [TOOL], "tool_choice": "auto"}):
            try:
                prompt = ChatRequest(ASKED, response_format=given, chat_template_kwargs={"enable_thinking": False}, **how).render(
                    templates
                )
            except ChatTemplateError:
                continue
            if not prompt.grammar or prompt.grammar.get("grammar_lazy") or "a" not in prompt.grammar["grammar"]:
                wrong.append((name, how))
    assert wrong == []


def test_required_tools_are_enforced_with_every_template(quick_templates):
    wrong = []
    for name, templates in quick_templates:
        for choice in ("required", {"type": "function", "function": {"name": "f"}}):
            try:
                prompt = ChatRequest(ASKED, tools=[TOOL], tool_choice=choice).render(templates)
            except ChatTemplateError:
                continue
            if not prompt.grammar or prompt.grammar.get("grammar_lazy"):
                wrong.append((name, choice))
    assert wrong == []


@pytest.fixture(scope="module")
def quick_templates(llama_source):
    """Every template that the engine's source ships."""
    found = []
    for path in sorted((llama_source / "models/templates").glob("*.jinja")):
        found.append((path.name, ChatTemplates(None, path.read_text(), bos_token="<s>", eos_token="</s>")))
    assert len(found) > 50
    return found

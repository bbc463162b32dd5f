"""Conversations: templates, tool calls, reasoning, schemas, and templates that mean harm."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from llama_cpp import Llama
from llama_cpp.chat.templates import ChatParser, ChatTemplates, json_schema_to_grammar
from llama_cpp.errors import ChatParseError, ChatTemplateError, GrammarError, InvalidArgumentError

_SOURCE = Path(os.environ.get("LLAMA_CPP_SOURCE_DIR") or Path(__file__).parents[1] / "vendor/llama.cpp/source")
_TEMPLATES = {path.stem: path for path in sorted((_SOURCE / "models" / "templates").glob("*.jinja"))}

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["child", "adult"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


def templates(source, **tokens):
    return ChatTemplates(None, template=source, **{"bos_token": "<s>", "eos_token": "</s>", **tokens})


def family(name):
    return templates(_TEMPLATES[name].read_text(encoding="utf-8"))


def streamed(parser, answer):
    """All deltas of an answer that arrives a character at a time."""
    deltas = []
    for end in range(1, len(answer) + 1):
        deltas += parser.update(answer[:end], partial=True)
    return deltas + parser.update(answer, partial=False)


def joined(deltas, key):
    return "".join(delta.get(key) or "" for delta in deltas)


# --- with a model ---


@pytest.fixture(scope="module")
def expected(llm):
    """What the model says to QUESTION, asked without any of our chat code."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    turns = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{QUESTION[0]['content']}<|im_end|>\n"
    return llm.create_completion(turns + "<|im_start|>assistant\n", max_tokens=12, temperature=0)


@pytest.mark.cpu  # what is expected ends there
def test_a_chat_completion_has_openai_s_shape(llm, expected):
    answer = llm.create_chat_completion(QUESTION, max_tokens=12, temperature=0)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected["choices"][0]["text"]}
    assert choice["finish_reason"] == "length"
    usage = answer["usage"]
    assert usage["prompt_tokens"] == expected["usage"]["prompt_tokens"]
    assert usage["completion_tokens"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert json.loads(json.dumps(answer)) == answer


@pytest.mark.cpu
def test_stream_deltas_join_to_the_same_text(llm):
    request = {"max_tokens": 12, "temperature": 0}
    whole = llm.create_chat_completion(QUESTION, **request)
    chunks = list(llm.create_chat_completion(QUESTION, stream=True, stream_options={"include_usage": True}, **request))
    *chunks, last = chunks
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {}
    assert joined(deltas, "content") == whole["choices"][0]["message"]["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_the_model_s_template_is_used(llm):
    """SmolLM2's has a system message of its own, and the turn's end is no text."""
    n_plain = len(llm.tokenize(QUESTION[0]["content"].encode(), add_bos=False))
    answer = llm.create_chat_completion(QUESTION, max_tokens=1)
    assert answer["usage"]["prompt_tokens"] > n_plain + 20


def test_a_template_of_one_s_own_takes_its_place(smollm2):
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with Llama(smollm2, n_ctx=256, chat_format=source) as llm:
        answer = llm.create_chat_completion(
            [{"role": "user", "content": "The capital of France is"}], max_tokens=1, temperature=0
        )
        assert answer["choices"][0]["message"]["content"].strip() == "Paris"
        assert answer["usage"]["prompt_tokens"] == 5


def test_json_schema_is_obeyed(llm):
    answer = llm.create_chat_completion(
        [{"role": "user", "content": "Describe a person named Bob."}], temperature=0, max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}},
    )  # fmt: skip
    assert answer["choices"][0]["finish_reason"] == "stop"
    person = json.loads(answer["choices"][0]["message"]["content"])
    assert set(person) == {"name", "age", "kind"}
    assert isinstance(person["name"], str) and len(person["name"]) <= 12
    assert 0 <= person["age"] <= 120
    assert person["kind"] in ("child", "adult")


@pytest.mark.parametrize("schema", [{"type": "boolean"}, {"const": "fixed"}, {"enum": [1, 2]}], ids=str)
def test_json_object_with_a_schema_is_llama_cpp_python_s_form(llm, schema):
    answer = llm.create_chat_completion(
        QUESTION, temperature=0, max_tokens=8, response_format={"type": "json_object", "schema": schema}
    )
    value = json.loads(answer["choices"][0]["message"]["content"])
    assert value in ([True, False] if schema == {"type": "boolean"} else [schema.get("const"), *schema.get("enum", [])])


def test_the_end_of_a_turn_is_a_stop(llm):
    answer = llm.create_chat_completion(QUESTION, max_tokens=12, temperature=0, logit_bias={llm.token_eos(): 100})
    assert answer["choices"][0]["message"]["content"] == ""
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.fixture(scope="module")
def caller(smollm2):
    """The model with a template whose grammar leaves it nothing but to call a tool, and a request that asks for it."""
    source = _TEMPLATES["meetkai-functionary-medium-v3.2"].read_text(encoding="utf-8")
    tool = json.loads(json.dumps(WEATHER))
    tool["function"]["parameters"]["properties"]["city"] = {"enum": ["Bern", "Rome"]}
    with Llama(smollm2, n_ctx=1024, flash_attn=True, chat_format=source) as llm:
        yield llm, {"tools": [tool], "tool_choice": "required", "temperature": 0}


def test_a_call_cut_by_max_tokens_ends_with_length(caller):
    """Its arguments are no JSON; who reads "tool_calls" would parse them."""
    llm, request = caller
    messages = [{"role": "user", "content": "What is the weather in Bern?"}]
    (choice,) = llm.create_chat_completion(messages, max_tokens=8, **request)["choices"]
    assert choice["finish_reason"] == "length"
    *_, last = llm.create_chat_completion(messages, max_tokens=8, stream=True, **request)
    assert last["choices"][0]["finish_reason"] == "length"


def test_a_required_tool_is_called(caller):
    llm, request = caller
    request = {**request, "max_tokens": 60}
    messages = [{"role": "user", "content": "What is the weather in Bern?"}]
    (choice,) = llm.create_chat_completion(messages, **request)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    function = choice["message"]["tool_calls"][0]["function"]
    assert function["name"] == "get_weather"
    assert list(json.loads(function["arguments"])) == ["city"]

    chunks = [chunk["choices"][0] for chunk in llm.create_chat_completion(messages, stream=True, **request)]
    calls = [call for chunk in chunks for call in chunk["delta"].get("tool_calls", [])]
    assert "".join(call["function"]["arguments"] for call in calls) == function["arguments"]
    assert chunks[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    "messages",
    [[], "hello", None, [{}], [{"role": "user"}], [{"content": "x"}], ["hello"], [5], [{"role": 5, "content": "x"}],
     [{"role": "user", "content": 5}], [{"role": "user", "content": [{"type": "nonsense"}]}],
     [{"role": "user", "content": {1, 2}}]],
    ids=repr,
)  # fmt: skip
def test_messages_that_are_none_are_refused(llm, messages):
    with pytest.raises(InvalidArgumentError):
        llm.create_chat_completion(messages, max_tokens=1)


@pytest.mark.parametrize(
    "arguments",
    [{"tools": [WEATHER], "tool_choice": "sometimes"}, {"tools": [{}]}, {"tools": [{"type": "function"}]}, {"tools": ["x"]},
     {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}},
     {"response_format": {"type": "xml"}}, {"chat_template_kwargs": {"enable_thinking": "yes"}},
     {"grammar": 'root ::= "x"', "response_format": {"type": "json_object"}}],
    ids=repr,
)  # fmt: skip
def test_requests_that_contradict_themselves_are_refused(llm, arguments):
    with pytest.raises(InvalidArgumentError):
        llm.create_chat_completion(QUESTION, max_tokens=1, **arguments)


# --- templates ---


def test_the_source_brings_templates():
    assert len(_TEMPLATES) > 50


@pytest.mark.parametrize("name", _TEMPLATES)
def test_every_known_template_renders(name):
    prompt = family(name).apply({"messages": [{"role": "user", "content": "What about kumquats?"}]})
    assert prompt.text.count("What about kumquats?") == 1


@pytest.mark.parametrize("name", _TEMPLATES)
def test_every_known_template_takes_a_conversation(name):
    system = [] if "gemma-2" in name else [{"role": "system", "content": "Be brief."}]
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}, *QUESTION]
    text = family(name).apply({"messages": system + turns}).text
    assert text.index("Hello there") < text.index("What is the capital of France?")
    assert not system or "Be brief." in text


def test_chatml_is_known_by_name():
    text = templates("chatml").apply({"messages": QUESTION}).text
    assert text == "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


def test_a_bos_that_tokenization_adds_is_not_in_the_prompt(llama_source):
    """Llama 2's vocabulary adds it; Mistral's template writes it."""
    source = _TEMPLATES["mistralai-Mistral-Nemo-Instruct-2407"].read_text(encoding="utf-8")
    with Llama(llama_source / "models" / "ggml-vocab-llama-spm.gguf", vocab_only=True) as llm:
        with_model = ChatTemplates(llm.loaded.model, template=source)
        text = with_model.apply({"messages": QUESTION}).text
        with_model.close()
        assert text.startswith("[INST]")
        assert llm.tokenize(text.encode(), special=True).count(llm.token_bos()) == 1
    assert templates(source).apply({"messages": QUESTION}).text == "<s>" + text


def test_a_template_describes_itself():
    thinking = family("Qwen-Qwen3-0.6B").describe()
    assert thinking["supports_thinking"] is True
    assert thinking["source"].startswith("{%- if tools %}")
    assert thinking["capabilities"]["supports_tools"] is True
    assert family("google-gemma-2-2b-it").describe()["supports_thinking"] is False


def test_what_a_user_writes_cannot_end_its_message_in_the_template():
    """Text goes in as it is; a template is not rendered twice."""
    text = templates("chatml").apply({"messages": [{"role": "user", "content": "{{ 7 * 7 }} {% raw %}"}]}).text
    assert "{{ 7 * 7 }} {% raw %}" in text


def test_template_variables_reach_the_template():
    request = {"messages": QUESTION, "chat_template_kwargs": {"shout": True, "name": "Ann"}}
    assert templates("{{ messages[0].content }} {{ name }} {% if shout %}!{% endif %}").apply(request).text.endswith("Ann !")


# --- tool calls and reasoning ---

_DEEPSEEK = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
_HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
CALLS = {
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": _HERMES,
    "Qwen-Qwen2.5-7B-Instruct": _HERMES,
    "Qwen-Qwen3-0.6B": f"<think>\nhmm\n</think>\n\n{_HERMES}",
    "Qwen3-Coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nZürich\n</parameter>\n</function>\n</tool_call>",
    "meta-llama-Llama-3.1-8B-Instruct": '{"name": "get_weather", "parameters": {"city": "Zürich"}}',
    "mistralai-Mistral-Nemo-Instruct-2407": (
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Zürich"}, "id": "123456789"}]'
    ),
    "llama-cpp-deepseek-r1": "hmm</think>"
    + _DEEPSEEK.format('function<｜tool▁sep｜>get_weather\n```json\n{"city": "Zürich"}```'),
    "deepseek-ai-DeepSeek-V3.1": "hmm</think>" + _DEEPSEEK.format('get_weather<｜tool▁sep｜>{"city": "Zürich"}'),
    "openai-gpt-oss-120b": "<|channel|>analysis<|message|>hmm<|end|><|start|>assistant<|channel|>commentary"
    ' to=functions.get_weather <|constrain|>json<|message|>{"city": "Zürich"}',
    "meetkai-functionary-medium-v3.1": '<function=get_weather>{"city": "Zürich"}</function>',
    "meetkai-functionary-medium-v3.2": 'get_weather\n{"city": "Zürich"}',
    "fireworks-ai-llama-3-firefunction-v2": ' functools[{"name": "get_weather", "arguments": {"city": "Zürich"}}]',
    "google-gemma-4-31B-it": '<|tool_call>call:get_weather{city:<|"|>Zürich<|"|>}<tool_call|>',
    "moonshotai-Kimi-K2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
    '<|tool_call_argument_begin|>{"city": "Zürich"}<|tool_call_end|><|tool_calls_section_end|>',
}


@pytest.mark.parametrize("name", CALLS)
def test_a_tool_call_is_read_in_each_family_s_syntax(name):
    prompt = family(name).apply({"messages": QUESTION, "tools": [WEATHER]})
    message = ChatParser(prompt.format).parse(CALLS[name])
    (call,) = message["tool_calls"]
    assert call["type"] == "function" and call["id"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Zürich"}
    assert not message.get("content")
    assert (message.get("reasoning_content") or "").strip() == ("hmm" if "hmm" in CALLS[name] else "")


@pytest.mark.parametrize("name", CALLS)
def test_a_streamed_tool_call_joins_to_the_same(name):
    prompt = family(name).apply({"messages": QUESTION, "tools": [WEATHER]})
    whole = ChatParser(prompt.format).parse(CALLS[name])
    deltas = streamed(ChatParser(prompt.format), CALLS[name])
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert {call["index"] for call in calls} == {0}
    assert [call["function"]["name"] for call in calls if "name" in call["function"]] == ["get_weather"]
    assert len([call["id"] for call in calls if "id" in call]) == 1
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert arguments == whole["tool_calls"][0]["function"]["arguments"]
    assert joined(deltas, "reasoning_content") == whole.get("reasoning_content", "")
    assert joined(deltas, "content") == ""
    assert len(calls) > 2, "arguments arrive as they are written"


def test_two_calls_of_one_answer_have_ids_of_their_own():
    prompt = family("Qwen-Qwen2.5-7B-Instruct").apply({"messages": QUESTION, "tools": [WEATHER], "parallel_tool_calls": True})
    answer = _HERMES + "\n" + _HERMES.replace("Zürich", "Bern")
    calls = ChatParser(prompt.format).parse(answer)["tool_calls"]
    assert [json.loads(call["function"]["arguments"])["city"] for call in calls] == ["Zürich", "Bern"]
    assert len({call["id"] for call in calls}) == 2
    deltas = streamed(ChatParser(prompt.format), answer)
    assert {call["index"] for delta in deltas for call in delta.get("tool_calls", [])} == {0, 1}


def test_text_before_a_call_is_content():
    prompt = family("Qwen-Qwen2.5-7B-Instruct").apply({"messages": QUESTION, "tools": [WEATHER]})
    message = ChatParser(prompt.format).parse("Let me see.\n" + _HERMES)
    assert message["content"].strip() == "Let me see."
    assert len(message["tool_calls"]) == 1


@pytest.mark.parametrize(
    "name, answer",
    [
        ("Qwen-Qwen3-0.6B", "<think>\nIt is in Europe.\n</think>\n\nParis."),
        ("Qwen-QwQ-32B", "It is in Europe.\n</think>\n\nParis."),
        ("llama-cpp-deepseek-r1", "It is in Europe.\n</think>\n\nParis."),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "It is in Europe.\n</think>\n\nParis."),
        (
            "openai-gpt-oss-120b",
            "<|channel|>analysis<|message|>It is in Europe.<|end|><|start|>assistant<|channel|>final<|message|>Paris.",
        ),
    ],
)
def test_reasoning_is_kept_from_the_content(name, answer):
    prompt = family(name).apply({"messages": QUESTION})
    message = ChatParser(prompt.format).parse(answer)
    assert message["reasoning_content"].strip() == "It is in Europe."
    assert message["content"].strip() == "Paris."
    deltas = streamed(ChatParser(prompt.format), answer)
    assert joined(deltas, "reasoning_content").strip() == "It is in Europe."
    assert joined(deltas, "content").strip() == "Paris."


def test_reasoning_can_be_switched_off():
    def text(enabled):
        return family("Qwen-Qwen3-0.6B").apply({"messages": QUESTION, "enable_thinking": enabled}).text

    assert text(False) != text(True)
    assert "</think>" in text(False)


def test_a_plain_parser_gives_the_text_back():
    assert ChatParser({}).parse("<b>&\n") == {"role": "assistant", "content": "<b>&\n"}
    assert joined(streamed(ChatParser({}), "Zürich 🦙"), "content") == "Zürich 🦙"


def test_an_answer_that_breaks_its_format_is_a_parse_error():
    prompt = family("openai-gpt-oss-120b").apply({"messages": QUESTION, "tools": [WEATHER]})
    with pytest.raises(ChatParseError):
        ChatParser(prompt.format).parse("no channel at all")


def test_a_call_that_breaks_off_is_no_call_unless_it_may():
    prompt = family("Qwen-Qwen2.5-7B-Instruct").apply({"messages": QUESTION, "tools": [WEATHER]})
    answer = _HERMES[: _HERMES.index("city")]
    (call,) = ChatParser(prompt.format).parse(answer, partial=True)["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    with pytest.raises(ChatParseError):
        ChatParser(prompt.format).parse(answer, partial=False)


@pytest.mark.parametrize("format", [{"format": 999}, {"format": -1}, {"format": "x"}, {"parser": "junk"}], ids=str)
def test_a_format_that_is_none_is_refused(format):
    with pytest.raises(InvalidArgumentError):
        ChatParser(format)


# --- templates that are broken, or mean harm ---


@pytest.mark.parametrize(
    "source, named",
    [
        ("{% if %}", "%}"),
        ("{% for m in messages %}{{ m.content }}", ""),
        ("{{ messages[0].content ", ""),
        ("{% nonsense %}", "nonsense"),
        ("{{ no_such_function(messages) }}", "no_such_function"),
        ("{{ messages | no_such_filter }}", "no_such_filter"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ],
)
def test_a_broken_template_is_an_exception_that_names_the_fault(source, named):
    with pytest.raises(ChatTemplateError) as caught:
        templates(source).apply({"messages": QUESTION})
    assert named in str(caught.value)
    assert caught.value.remedy


def test_a_template_cannot_reach_the_file_system_or_python():
    for source in ("{% include '/etc/passwd' %}", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ open('x') }}"):
        with pytest.raises(ChatTemplateError):
            templates(source).apply({"messages": QUESTION})


HARMFUL = {
    "macro calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macros call each other": "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
    "parentheses": "{{ " + "(" * 200_000 + " }}",
    "balanced parentheses": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "members": "{{ a" + ".b" * 100_000 + " }}",
    "additions": "{{ 1" + "+1" * 100_000 + " }}",
    "concatenations": "{{ 'a'" + "~'a'" * 50_000 + " }}",
    "filters": "{{ 'a'" + "|trim" * 50_000 + " }}",
    "not": "{{ " + "not " * 60_000 + "1 }}",
    "minus": "{{ " + "-" * 200_000 + "1 }}",
    "lists": "{{ " + "[" * 120_000 + "]" * 120_000 + " }}",
    "conditions": "{% if 1 %}" * 12_000 + "{% endif %}" * 12_000,
    "elif": "{% if 0 %}" + "{% elif 0 %}" * 20_000 + "{% endif %}",
    "too large": "x" * 300_000,
}
SELF_CONTAINING = {
    "list in itself": "{% set l = [] %}{{ l.append(l) }}{{ l }}",
    "list in itself as JSON": "{% set l = [] %}{{ l.append(l) }}{{ l | tojson }}",
    "list in itself compared": "{% set l = [] %}{{ l.append(l) }}{{ l == l }}",
    "namespace in itself": "{% set n = namespace() %}{% set n.n = n %}{{ n }}",
}
BOMBS = {
    "range": "{{ range(1000000000) | length }}",
    "string times": "{{ 'a' * 2000000000 }}",
    "doubling": "{% set n = namespace(s='x') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
}


def _apply_in_child(source, run_python, tmp_path, seconds=60):
    """How rendering ends in a process of its own, with 3 GiB more of address space and so many seconds of processor time."""
    (tmp_path / "template").write_text(source)
    script = """
import resource, sys
from pathlib import Path
from llama_cpp.chat.templates import ChatTemplates
from llama_cpp.errors import LlamaCppError
chatml = ChatTemplates(None, template="chatml")  # opens the libraries
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()  # a GPU's driver reserves much
resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30), used + (3 << 30)))
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]), int(sys.argv[2]) + 60))
messages = [{"role": "user", "content": "Hi"}]
try:
    ChatTemplates(None, template=Path(sys.argv[1]).read_text()).apply({"messages": messages})
    print("rendered")
except (LlamaCppError, MemoryError) as error:
    print(type(error).__name__, str(error)[:300])
assert "Hi" in chatml.apply({"messages": messages}).text
print("alive")
"""
    return run_python(script, str(tmp_path / "template"), str(seconds))


@pytest.mark.parametrize("name", HARMFUL)
def test_a_template_that_nests_without_end_is_refused(name, run_python, tmp_path):
    done = _apply_in_child(HARMFUL[name], run_python, tmp_path)
    assert done.returncode == 0, (done.returncode, done.stdout[-500:], done.stderr[-2000:])
    assert done.stdout.endswith("alive\n")
    # what is long, but within bounds, may also be rendered
    assert done.stdout.startswith(("ChatTemplateError", "rendered"))
    if name.startswith(("macro", "too large")) or name == "parentheses":
        assert done.stdout.startswith("ChatTemplateError")


@pytest.mark.parametrize("name", SELF_CONTAINING)
def test_a_value_that_contains_itself_kills_nothing(name, run_python, tmp_path):
    done = _apply_in_child(SELF_CONTAINING[name], run_python, tmp_path)
    assert done.returncode == 0, (done.returncode, done.stdout[-500:], done.stderr[-2000:])
    assert done.stdout.endswith("alive\n")


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_asks_for_too_much_does_not_crash(name, run_python, tmp_path):
    """Memory it cannot have is an exception. Nothing bounds the processor time it burns but the host's own limit."""
    done = _apply_in_child(BOMBS[name], run_python, tmp_path, seconds=4)
    if done.returncode != -signal.SIGXCPU:
        assert done.returncode == 0, (done.returncode, done.stdout[-500:], done.stderr[-2000:])
        assert done.stdout.endswith("alive\n")


def test_a_template_with_a_nul_is_refused():
    with pytest.raises(InvalidArgumentError):
        templates("a\0b")


# --- JSON schema to grammar ---

SCHEMAS = [
    PERSON,
    True,
    {},
    {"type": "string", "pattern": "^[a-z]{2,4}$"},
    {"type": "string", "format": "date-time"},
    {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "string"}}}, {"properties": {"b": {"type": "integer"}}}]},
    {"$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}, "$ref": "#/$defs/tree"},
    {"type": ["string", "null"]},
    {"const": 'Zürich "🦙"'},
]


@pytest.fixture(scope="module")
def small(smollm2):
    with Llama(smollm2, n_ctx=256, flash_attn=True) as model:
        yield model


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_a_schema_s_grammar_is_one_the_engine_takes(schema, small):
    grammar = json_schema_to_grammar(schema)
    assert "root ::=" in grammar
    small.create_completion("JSON: ", max_tokens=1, temperature=0, grammar=grammar)


def test_a_schema_s_grammar_follows_the_schema(small):
    grammar = json_schema_to_grammar({"type": "array", "items": {"enum": [7, 8]}, "minItems": 2, "maxItems": 2})
    answer = small.create_completion("JSON: ", max_tokens=20, temperature=0, grammar=grammar)
    assert len(json.loads(answer["choices"][0]["text"])) == 2
    assert set(json.loads(answer["choices"][0]["text"])) <= {7, 8}


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "#/$defs/nowhere"}, {"type": "nonsense"}, {"type": "string", "pattern": "^(a$"},
     {"$ref": "https://example.org/schema.json"}, "{", "", "nonsense", "[1,", {"type": 5}, {"properties": 5},
     {"type": "array", "items": 5}, {"enum": 5}, {"anyOf": 5}, "a\0b"],
    ids=repr,
)  # fmt: skip
def test_a_schema_that_is_none_is_refused(schema):
    with pytest.raises((GrammarError, InvalidArgumentError)) as caught:
        json_schema_to_grammar(schema)
    assert len(str(caught.value)) > 20


@pytest.mark.parametrize(
    "schema",
    ['"[" * 1000000', '\'{"type":"array","items":\' * 2000 + "{}" + "}" * 2000', '\'{"not":\' * 100000 + "{}" + "}" * 100000',
     '\'{"anyOf":[\' * 2000 + "{}" + "]}" * 2000',
     '\'{"type":"string","pattern":"^\' + "(" * 10000 + "a" + ")" * 10000 + \'$"}\'',
     '\'{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}\'',
     '\'{"allOf":[{"$ref":"#"}]}\'', '\'{"type":"string","minLength":1000000000}\''],
)  # fmt: skip
def test_a_schema_that_nests_without_end_kills_nothing(schema, run_python, smollm2):
    done = run_python(
        f"""
import sys
from llama_cpp import Llama
from llama_cpp.chat.templates import json_schema_to_grammar
from llama_cpp.errors import LlamaCppError
with Llama(sys.argv[1], n_ctx=256) as llm:
    try:
        llm.create_completion("Hi", max_tokens=1, grammar=json_schema_to_grammar({schema}))
    except LlamaCppError as error:
        print(type(error).__name__, str(error)[:200])
    json_schema_to_grammar({{}})
print("alive")
""",
        str(smollm2),
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-2000:])
    assert done.stdout.endswith("alive\n")

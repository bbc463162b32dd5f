"""Chat formats by name, formatters and handlers, as programs of llama-cpp-python use them."""

from __future__ import annotations

import inspect
import json

import pytest

from llama_cpp import Llama, llama_chat_format
from llama_cpp.chat.formats import FORMATS, WITH_TOOLS
from llama_cpp.chat.jinja_templates import JinjaTemplate
from llama_cpp.chat.request import ChatRequest
from llama_cpp.chat.templates import ChatTemplates
from llama_cpp.errors import ChatTemplateError, InvalidArgumentError, LimitReachedError, LlamaCppError, MediaNotSupportedError
from llama_cpp.limits import Limits
from llama_cpp.llama_chat_format import (
    ChatFormatterResponse,
    Jinja2ChatFormatter,
    LlamaChatCompletionHandlerRegistry,
    get_chat_completion_handler,
    hf_tokenizer_config_to_chat_formatter,
    register_chat_completion_handler,
    register_chat_format,
)
from llama_cpp.media_handlers import HANDLERS

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Who are you?"},
]
TOOL = {
    "type": "function",
    "function": {"name": "get", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
}
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}, {"type": "text", "text": "What?"}]}]

#: The conversation above, as the models of each format were trained to read it.
WRITTEN = {
    "llama-2": "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Who are you? [/INST]",
    "vicuna": "Be brief. USER: Hi ASSISTANT: Hello.</s>USER: Who are you? ASSISTANT:",
    "zephyr": "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello.</s>\n"
    "<|user|>\nWho are you?</s>\n<|assistant|>\n",
    "alpaca": "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello.\n\n### Instruction:\nWho are you?\n\n### Response:\n",
    "mistral-instruct": "[INST] Be brief.\n\nHi [/INST] Hello.</s>[INST] Who are you? [/INST]",
    "openchat": "Be brief.<|end_of_turn|>GPT4 Correct User: Hi<|end_of_turn|>GPT4 Correct Assistant: Hello.<|end_of_turn|>"
    "GPT4 Correct User: Who are you?<|end_of_turn|>GPT4 Correct Assistant:",
    "gemma": "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
    "<start_of_turn>user\nWho are you?<end_of_turn>\n<start_of_turn>model\n",
}
NAMES = [
    "llama-2", "llama-3", "alpaca", "qwen", "vicuna", "oasst_llama", "baichuan-2", "baichuan", "openbuddy", "redpajama-incite",
    "snoozy", "phind", "intel", "open-orca", "mistrallite", "zephyr", "pygmalion", "chatml", "mistral-instruct", "chatglm3",
    "openchat", "saiga", "gemma",
]  # fmt: skip


@pytest.mark.offers(*(f'chat_format="{name}"' for name in NAMES), how="better", note="data, rendered by llama.cpp's own engine")
@pytest.mark.parametrize("name", NAMES)
def test_named_formats(name):
    found = FORMATS[name]
    prompt = ChatRequest(TALK).render(ChatTemplates(None, found.template(), stop=found.stop))
    assert prompt.stop[-len(found.stop) :] == found.stop and found.stop
    assert prompt.text == JinjaTemplate(found.template()).render(TALK)
    places = [prompt.text.index(message["content"]) for message in TALK]
    assert places == sorted(places) and prompt.text == WRITTEN.get(name, prompt.text)


@pytest.mark.offers("Llama(chat_format=…)", how="better", note="in any case of letters; names of the file's templates")
@pytest.mark.parametrize("name", ["ChatML", "llama-2", "VICUNA", *WITH_TOOLS])
def test_a_model_takes_a_format_by_name(smollm2, name):
    with Llama(smollm2, n_ctx=512, chat_format=name) as llm:
        answer = llm.create_chat_completion(TALK, max_tokens=4, temperature=0)["choices"][0]["message"]
        assert answer["role"] == "assistant" and isinstance(answer["content"], str)
        called = llm.create_chat_completion(TALK, max_tokens=100, temperature=0, tools=[TOOL], tool_choice=TOOL)["choices"][0]
        if called["finish_reason"] == "tool_calls":
            assert isinstance(json.loads(called["message"]["tool_calls"][0]["function"]["arguments"])["a"], int)


def test_a_name_that_there_is_not(smollm2):
    with pytest.raises(InvalidArgumentError, match="'chatml'"):
        Llama(smollm2, chat_format="chatnl")


@pytest.fixture
def registered():
    known = dict(LlamaChatCompletionHandlerRegistry()._chat_handlers)
    yield
    LlamaChatCompletionHandlerRegistry()._chat_handlers = known


@pytest.mark.offers("register_chat_format", "ChatFormatterResponse", how="same")
def test_a_format_of_ones_own(smollm2, registered):
    @register_chat_format("mine")
    def mine(messages, **kwargs):
        return ChatFormatterResponse(prompt=f"Q: {messages[-1]['content']}\nA:", stop=["\n"])

    with Llama(smollm2, n_ctx=256, chat_format="mine") as llm:
        whole = llm.create_chat_completion(TALK, max_tokens=20, temperature=0)
        text = llm.create_completion("Q: Who are you?\nA:", max_tokens=20, temperature=0, stop=["\n"])["choices"][0]["text"]
        assert whole["choices"][0]["message"] == {"role": "assistant", "content": text}
        chunks = list(llm.create_chat_completion(messages=TALK, max_tokens=20, temperature=0, stream=True))
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
        assert chunks[0]["object"] == "chat.completion.chunk" and chunks[-1]["choices"][0]["finish_reason"]
        called = llm.create_chat_completion(TALK, max_tokens=200, temperature=0, tools=[TOOL], tool_choice="required")
        calls = called["choices"][0]["message"].get("tool_calls")
        assert called["choices"][0]["finish_reason"] == "length" or calls[0]["function"]["name"] == "get"
        json_only = llm.create_chat_completion(
            TALK, max_tokens=60, temperature=0, response_format={"type": "json_object", "schema": {"enum": [{"a": 1}]}}
        )
        assert json.loads(json_only["choices"][0]["message"]["content"]) == {"a": 1}


@pytest.mark.offers("register_chat_completion_handler", "get_chat_completion_handler", "Llama.chat_handler", how="same")
def test_a_handler_of_ones_own(smollm2, registered):
    seen = []

    @register_chat_completion_handler("echo")
    def echo(*, llama, messages, **kwargs):
        seen.append((llama, messages, kwargs))
        return {"choices": []}

    assert get_chat_completion_handler("echo") is echo
    with Llama(smollm2, n_ctx=256, chat_format="echo") as llm:
        assert llm.create_chat_completion(TALK, temperature=0.5, stop=["x"]) == {"choices": []}
        assert seen[0][0] is llm and seen[0][1] == TALK and seen[0][2] == {"temperature": 0.5, "stop": ["x"]}
        llm.chat_handler = get_chat_completion_handler("chatml")  # assigned later
        assert llm.create_chat_completion(TALK, max_tokens=3)["choices"][0]["message"]["content"]
        llm.chat_handler = None
        assert llm.create_chat_completion(TALK, max_tokens=3)["choices"][0]["message"]["content"]
    with pytest.raises(InvalidArgumentError):
        get_chat_completion_handler("no such")
    with pytest.raises(InvalidArgumentError):
        LlamaChatCompletionHandlerRegistry().register_chat_completion_handler("echo", echo)


@pytest.mark.offers("Jinja2ChatFormatter", "hf_tokenizer_config_to_chat_formatter", how="better", note="sandboxed, with limits")
def test_formatters(real):
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}bot:{% endif %}"
    formatter = Jinja2ChatFormatter(template=template, eos_token="</s>", bos_token="<s>", stop_token_ids=[5])
    found = formatter(messages=TALK[1:2])
    assert (found.prompt, found.stop, found.added_special) == ("<s>user: Hi</s>bot:", ["</s>"], True)
    assert found.stopping_criteria([1, 5], None) and not found.stopping_criteria([5, 1], None)
    config = {"chat_template": template, "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    assert hf_tokenizer_config_to_chat_formatter(config)(messages=TALK[1:2]).prompt == found.prompt
    answer = formatter.to_chat_handler()(llama=real, messages=TALK, max_tokens=4)
    assert answer["object"] == "chat.completion" and answer["choices"][0]["message"]["content"]
    with pytest.raises(InvalidArgumentError, match="chat_template"):
        hf_tokenizer_config_to_chat_formatter({})


@pytest.mark.parametrize("template", ["{{ bos_token }}{{ messages[0].content }}", "{{ messages[0].content }}"])
def test_bos_is_there_once(tiny, template):
    """Whether a template writes it or not."""
    with Llama(tiny, n_ctx=64) as llm:
        bos = llm._model._text(llm.token_bos()).decode()
        assert llm._model.add_bos_token()
        from llama_cpp.chat_handlers import tokens_of

        prompt = Jinja2ChatFormatter(template, "", bos)(messages=[{"role": "user", "content": "a"}]).prompt
        assert tokens_of(llm, prompt).count(llm.token_bos()) == 1


#: Templates that would take all memory, or all time, or reach outside.
HOSTILE = {
    "a loop": "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "text that doubles": "{% set n = namespace(s='x') %}{% for i in range(100) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "text that doubles by ~": "{% set n = namespace(s='x') %}{% for i in range(100) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "a list that doubles": "{% set n = namespace(s=[1]) %}{% for i in range(100) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "text times a number": "{{ 'x' * 10000000000000 }}",
    "ljust": "{{ 'x'.ljust(10000000000000) }}",
    "center": "{{ 'x' | center(10000000000000) }}",
    "replace": "{% set s = 'a' * 100000 %}{{ s.replace('a', s) }}",
    "the filter replace": "{% set s = 'a' * 100000 %}{{ s | replace('a', s) }}",
    "join": "{{ range(100000) | join('x' * 100000) }}",
    "the method join": "{{ ('x' * 100000).join(['a'] * 100000) }}",
    "indent": "{{ 'a\nb' | indent(10000000000000) }}",
    "format": "{{ '{:10000000000000}'.format(1) }}",
    "percent": "{{ '%10000000000000d' % 1 }}",
    "a power": "{{ 10 ** 100000000 }}",
    "a range": "{{ range(1000000000) | list }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "functions": "{{ raise_exception.__globals__ }}",
    "changing messages": "{{ messages.append(1) }}",
    "changing a message": "{{ messages[0].update({'role': 'x'}) }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates(name):
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises((ChatTemplateError, LimitReachedError)):
        found = JinjaTemplate(HOSTILE[name], limits=Limits(seconds=1)).render(messages)
        if name in ("classes", "functions"):
            raise ChatTemplateError(f"nothing came of it: {found!r}") if not found.strip("[]") else AssertionError(found)
    assert messages == [{"role": "user", "content": "a"}]


@pytest.mark.offers(*HANDLERS, how="later", note="text alone is answered; images say that they come in a later version")
@pytest.mark.parametrize("name", HANDLERS)
def test_handlers_of_models_that_see(real, name):
    kind = getattr(llama_chat_format, name)
    assert {"clip_model_path", "verbose", "use_gpu"} <= set(inspect.signature(kind.__init__).parameters)
    handler = kind(clip_model_path=real.model_path, verbose=False)
    answer = handler(llama=real, messages=TALK, max_tokens=3)
    assert answer["choices"][0]["message"]["content"]
    with pytest.raises(MediaNotSupportedError, match="images"):
        handler(llama=real, messages=IMAGE)
    with pytest.raises((FileNotFoundError, ValueError)):
        kind(clip_model_path="no such file")


def test_a_handler_derived_from_llava15(smollm2):
    """The extension point that programs use."""

    class Mine(llama_chat_format.Llava15ChatHandler):
        CHAT_FORMAT = "{% for m in messages %}{{ m.role }}>{{ m.content }}\n{% endfor %}assistant>"
        DEFAULT_SYSTEM_MESSAGE = "Be kind."

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.loaded = []

        def load_image(self, image_url):
            self.loaded.append(image_url)
            return b""

    handler = Mine(clip_model_path=str(smollm2))
    with Llama(smollm2, n_ctx=256, chat_handler=handler) as llm:
        answer = llm.create_chat_completion([{"role": "user", "content": "Hi"}], max_tokens=4, temperature=0)
        prompt = "system>Be kind.\nuser>Hi\nassistant>"
        assert answer["choices"][0]["message"]["content"] == llm(prompt, max_tokens=4, temperature=0)["choices"][0]["text"]
        with pytest.raises(MediaNotSupportedError):
            llm.create_chat_completion(IMAGE)
    assert handler.loaded == ["data:,x"] and Mine.get_image_urls(IMAGE) == ["data:,x"]
    assert Mine.split_text_on_image_urls("a data:,x b", ["data:,x"]) == [("text", "a "), ("image_url", "data:,x"), ("text", " b")]


@pytest.mark.offers("_convert_completion_to_chat", "_convert_text_completion_logprobs_to_chat", "_grammar_for_response_format",
                    "_get_system_message", "_format_no_colon_single", "format_llama2", "guess_chat_format_from_gguf_metadata",
                    how="same")  # fmt: skip
def test_pieces(real):
    assert llama_chat_format._get_system_message(TALK) == "Be brief."
    assert llama_chat_format._format_no_colon_single("s", [("u", "x"), ("a", None)], "|") == "sux|a"
    assert llama_chat_format.format_llama2(messages=TALK).prompt == WRITTEN["llama-2"]
    assert llama_chat_format.guess_chat_format_from_gguf_metadata(real.metadata) == "chatml"
    completion = real.create_completion("x", max_tokens=2, logprobs=1)
    chat = llama_chat_format._convert_completion_to_chat(completion)
    assert chat["object"] == "chat.completion" and chat["choices"][0]["message"]["content"] == completion["choices"][0]["text"]
    assert len(chat["choices"][0]["logprobs"]["content"]) == 2
    assert llama_chat_format._grammar_for_response_format({"type": "json_object"})._grammar


@pytest.mark.parametrize("wrong", [{"chat_format": 5}, {"chat_handler": 5}, {"chat_format": "{% if %}"}])
def test_what_is_refused(smollm2, wrong):
    with pytest.raises(LlamaCppError):
        Llama(smollm2, n_ctx=64, **wrong).create_chat_completion(TALK)

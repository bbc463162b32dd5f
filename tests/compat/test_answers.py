"""Completions, chats, vectors and rankings in the forms that programs of llama-cpp-python read."""

from __future__ import annotations

import base64
import json
import struct
import warnings

import numpy as np
import pytest

import tiny_models
from llama_cpp import Llama
from llama_cpp.errors import IgnoredArgumentWarning, InvalidArgumentError, LlamaCppError

TALK = [{"role": "user", "content": "What is 2 + 2?"}]
ADD = {
    "name": "add", "description": "Adds.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a"]},
}  # fmt: skip
TOOL = {"type": "function", "function": ADD}
CALLED = [
    *TALK,
    {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 2}'}},
    {"role": "function", "name": "add", "content": "4"},
]


def message(answer):
    return answer["choices"][0]["message"]


@pytest.mark.offers("tool_choice=", how="better", note="every form, enforced by a grammar")
@pytest.mark.parametrize(
    "choice",
    ["required", "any", True, "add", TOOL, {"type": "function", "function": {"name": "add"}}, {"type": "function", "name": "add"}
    ],
    ids=str,
)  # fmt: skip
def test_a_call_that_is_wanted(real, choice):
    answer = real.create_chat_completion(TALK, tools=[TOOL], tool_choice=choice, temperature=0, max_tokens=100)
    assert answer["choices"][0]["finish_reason"] == "tool_calls" and message(answer)["content"] is None
    (call,) = message(answer)["tool_calls"]
    assert (
        call["type"] == "function" and call["function"]["name"] == "add" and json.loads(call["function"]["arguments"])["a"] <= 9
    )
    chunks = list(real.create_chat_completion(TALK, tools=[TOOL], tool_choice=choice, temperature=0, max_tokens=100, stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert all(one["index"] == 0 for one in calls) and [bool(one.get("id")) for one in calls] == [True] + [False] * (
        len(calls) - 1
    )
    assert json.loads("".join(one["function"]["arguments"] for one in calls)) == json.loads(call["function"]["arguments"])
    assert all(delta["content"] is not None for delta in deltas if "content" in delta)


@pytest.mark.parametrize("how", [{"tools": []}, {"tools": [], "tool_choice": "none"}, {"tools": [TOOL], "tool_choice": False},
                                 {"tools": [TOOL], "tool_choice": "none"}, {"tools": None}], ids=str)  # fmt: skip
def test_no_call_is_wanted(real, how):
    answer = real.create_chat_completion(TALK, temperature=0, max_tokens=20, **how)
    assert isinstance(message(answer)["content"], str) and "tool_calls" not in message(answer)


@pytest.mark.offers("functions=", "function_call=", 'role "function"', how="same")
def test_functions_in_the_older_form(real):
    answer = real.create_chat_completion(TALK, functions=[ADD], function_call={"name": "add"}, temperature=0, max_tokens=100)
    assert answer["choices"][0]["finish_reason"] == "function_call" and "tool_calls" not in message(answer)
    call = message(answer)["function_call"]
    assert call["name"] == "add" and json.loads(call["arguments"])["a"] <= 9
    chunks = real.create_chat_completion(
        TALK, functions=[ADD], function_call={"name": "add"}, temperature=0, max_tokens=100, stream=True
    )
    pieces = [delta["function_call"] for chunk in chunks if "function_call" in (delta := chunk["choices"][0]["delta"])]
    assert pieces[0]["name"] == "add" and "".join(piece["arguments"] for piece in pieces) == call["arguments"]
    for further in ({}, {"functions": [ADD]}, {"functions": [ADD], "function_call": "none"}):
        assert message(real.create_chat_completion(CALLED, temperature=0, max_tokens=5, **further))["role"] == "assistant"
    for wrong in (
        {"functions": [ADD], "function_call": {"name": "other"}},
        {"functions": [ADD], "tools": [TOOL]},
        {"functions": 5},
    ):
        with pytest.raises(InvalidArgumentError):
            real.create_chat_completion(TALK, **wrong)


@pytest.mark.offers('role "developer"', 'role "system" anywhere', 'role "tool" anywhere', how="better",
                    note="nothing is left out: a template that expects it elsewhere reads it as said by the user")  # fmt: skip
def test_roles_anywhere(llama_source):
    from llama_cpp.chat.request import ChatRequest
    from llama_cpp.chat.templates import ChatTemplates

    talks = {
        "developer": [{"role": "developer", "content": "RULE"}, {"role": "user", "content": "U1"}],
        "two": [{"role": "system", "content": "SYS"}, {"role": "developer", "content": "RULE"},
                {"role": "user", "content": "U1"}],
        "late": [{"role": "system", "content": "SYS"}, {"role": "user", "content": "U1"}, {"role": "assistant", "content": "A1"},
                 {"role": "system", "content": "RULE"}, {"role": "user", "content": "U2"}],
        "last": [{"role": "user", "content": "U1"}, {"role": "system", "content": "RULE"}],
        "function": [{"role": "user", "content": "U1"}, *CALLED[1:], {"role": "user", "content": "U2"}],
        "tool": [{"role": "user", "content": "U1"}, {"role": "tool", "tool_call_id": "x", "content": "RESULT"}],
    }  # fmt: skip
    for path in sorted((llama_source / "models/templates").glob("*.jinja")):
        templates = ChatTemplates(None, path.read_text())
        for name, talk in talks.items():
            for tools in (None, [TOOL]) if name in ("function", "tool") else (None,):
                text = ChatRequest(talk, tools=tools).render(templates).text
                left_out = [one["content"] for one in talk if one["content"] and one["content"] not in text]
                assert not left_out, (path.name, name, left_out)


@pytest.mark.offers("reasoning_content", how="better", note="also as `reasoning`, and taken back; a budget")
def test_thoughts(smollm2, llama_source):
    template = (llama_source / "models/templates/Qwen-QwQ-32B.jinja").read_text()
    with Llama(smollm2, n_ctx=512, chat_format=template) as llm:
        answer = message(llm.create_chat_completion(TALK, temperature=0, max_tokens=60, reasoning_budget_tokens=8))
        assert answer["reasoning"] == answer["reasoning_content"] != ""
        off = message(llm.create_chat_completion(TALK, temperature=0, max_tokens=10, reasoning_effort="none"))
        assert off["role"] == "assistant"
        for name in ("reasoning", "reasoning_content"):
            talk = [*TALK, {"role": "assistant", "content": "4", name: "easy"}, {"role": "user", "content": "Sure?"}]
            assert llm.create_chat_completion(talk, max_tokens=3)


@pytest.mark.offers("seed=", how="better", note="0 is a seed; -1 and 2³² - 1 are random")
def test_seeds(real):
    def texts(seed):
        return {real("The", max_tokens=12, temperature=1.5, seed=seed)["choices"][0]["text"] for _ in range(3)}

    assert len(texts(0)) == len(texts(7)) == 1 and texts(0) != texts(7)
    assert len(texts(-1)) > 1 and len(texts(2**32 - 1)) > 1


@pytest.mark.offers("stop=", "max_tokens=", "logit_bias=", how="better", note="the earliest stop string ends a text")
def test_what_ends_a_text(real):
    text = real("One two three four five", max_tokens=12, temperature=0)["choices"][0]["text"]
    words = [word for word in text.split() if word][:2]
    cut = real("One two three four five", max_tokens=12, temperature=0, stop=words[::-1])["choices"][0]
    assert cut["text"] == text[: text.index(words[0])] and cut["finish_reason"] == "stop"
    assert real("Once", max_tokens=10**6, temperature=0)["usage"]["total_tokens"] <= 512

    def processor(ids, logits):
        logits[:] = 0
        return logits

    both = real("x", max_tokens=2, temperature=0, logit_bias={"5": 100.0}, logits_processor=processor, logprobs=0)
    assert both["choices"][0]["logprobs"]["tokens"] == [real._model.detokenize([5], special=True).decode()] * 2


def test_a_pydantic_object_of_openai(real):
    import openai

    answer = real.create_chat_completion_openai_v1(messages=TALK, max_tokens=3)
    assert isinstance(answer, openai.types.chat.ChatCompletion)
    chunks = list(real.create_chat_completion_openai_v1(messages=TALK, max_tokens=3, stream=True))
    assert all(isinstance(chunk, openai.types.chat.ChatCompletionChunk) for chunk in chunks)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    path = tiny_models.write("dense", tmp_path_factory.mktemp("vectors") / "model.gguf")
    with Llama(path, n_ctx=64, embedding=True, pooling_type=1) as llm:
        yield llm


@pytest.mark.offers("Llama.create_embedding", "Llama.embed", how="better", note="many callers in one batch; base64; LoRA")
def test_vectors(vectors):
    plain = vectors.create_embedding([[5, 6], [7]])
    assert [type(item["embedding"]) for item in plain["data"]] == [list, list] and plain["usage"]["total_tokens"] > 0
    coded = vectors.create_embedding([[5, 6], [7]], encoding_format="base64")
    for item, other in zip(plain["data"], coded["data"]):
        raw = base64.b64decode(other["embedding"])
        assert np.allclose(struct.unpack(f"<{len(raw) // 4}f", raw), item["embedding"], atol=1e-6)
    with pytest.warns(IgnoredArgumentWarning, match="embedding"):
        vectors.create_embedding([5], embedding=True)  # as superduper does
    with pytest.raises(InvalidArgumentError, match="encoding_format"):
        vectors.create_embedding([5], encoding_format="hex")


def test_vectors_with_adapters_of_ones_choice(tmp_path):
    path = tiny_models.write("dense", tmp_path / "m.gguf")
    adapter = tiny_models.write_adapter(tmp_path / "a.gguf")
    with Llama(path, n_ctx=32, embedding=True, pooling_type=1, lora_adapters={"a": adapter}) as llm:
        texts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
        plain, changed = llm.embed(texts), llm.embed(texts, lora={"a": 1.0})
        assert not np.allclose(plain, changed)
        jobs = [llm.loaded.embedder.submit(texts, llm.loaded.adapters.choose(lora)) for lora in ({}, {"a": 1.0}, {}, {"a": 1.0})]
        for job, expected in zip(jobs, (plain, changed, plain, changed)):
            assert np.allclose(job.result(), expected, atol=1e-5)
        with pytest.raises(InvalidArgumentError):
            llm.embed(texts, lora={"b": 1.0})


@pytest.mark.offers("Llama.rerank", how="better", note="upstream has none")
def test_ranking_by_asking(real):
    documents = ["Bananas are yellow.", "Paris is the capital of France.", "The cat sat on the mat."]
    answer = real.rerank("What is the capital of France?", documents, return_documents=True)
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True) and all(0 < score < 1 for score in scores)
    assert sorted(result["index"] for result in answer["results"]) == [0, 1, 2]
    assert all(result["document"]["text"] == documents[result["index"]] for result in answer["results"])
    assert len(real.rerank("x", documents, top_n=1)["results"]) == 1 and real.rerank("x", [])["results"] == []
    again = real.rerank("What is the capital of France?", documents)
    assert [result["relevance_score"] for result in again["results"]] == scores
    for wrong in (lambda: real.rerank(5, documents), lambda: real.rerank("x", "text"), lambda: real.rerank("x", [5]),
                  lambda: real.rerank("x", documents, top_n=-1), lambda: real.rerank("x", ["word " * 2000])):  # fmt: skip
        with pytest.raises(LlamaCppError):
            wrong()


def test_ranking_needs_a_model_that_classifies(vectors):
    with pytest.raises(InvalidArgumentError, match="classify"):
        vectors.rerank("x", ["y"])


def test_what_only_upstream_had_warns(real):
    with pytest.warns(IgnoredArgumentWarning, match="tfs_z"):
        real("x", max_tokens=1, tfs_z=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        real("x", max_tokens=1, tfs_z=1.0)

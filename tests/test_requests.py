"""Requests: frozen values that hold each parameter once, and what signatures and type checkers are told of them."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from llama_cpp import AsyncLlama, Llama
from llama_cpp.completions import types
from llama_cpp.completions.requests import ChatCompletionRequest, CompletionRequest
from llama_cpp.errors import IgnoredArgumentWarning, InvalidArgumentError, UnknownArgumentError

KINDS = {
    CompletionRequest: (types.CompletionKeywords, "prompt", "create_completion"),
    ChatCompletionRequest: (types.ChatCompletionKeywords, "messages", "create_chat_completion"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_type_checkers_are_told_of_every_parameter(kind):
    keywords, first, _ = KINDS[kind]
    fields = {field.name: field.type for field in dataclasses.fields(kind) if field.name not in (first, "stream")}
    told = {name: getattr(hint, "__forward_arg__", hint) for name, hint in keywords.__annotations__.items()}
    assert told == fields


@pytest.mark.parametrize("front", [Llama, AsyncLlama])
@pytest.mark.parametrize("kind", KINDS)
def test_signatures_show_every_parameter(kind, front):
    _, first, method = KINDS[kind]
    parameters = inspect.signature(getattr(front, method)).parameters
    fields = {field.name for field in dataclasses.fields(kind)}
    assert list(parameters)[:2] == ["self", first] and set(parameters) == {"self", "kwargs", *fields}
    assert list(parameters)[1 : 1 + len(kind.ORDER)] == list(kind.ORDER)
    assert parameters["temperature"].default == (0.2 if kind is ChatCompletionRequest else 0.8)
    mocked = mock.create_autospec(front, instance=True)
    with pytest.raises(TypeError):
        getattr(mocked, method)(*["x"] * (2 + len(kind.ORDER)))


def test_a_request_is_a_value():
    wanted = CompletionRequest("x", stop="a", temperature=np.float32(0.5), logit_bias={"5": 1}, max_tokens=np.int64(3))
    assert (wanted.stop, wanted.temperature, wanted.logit_bias, wanted.max_tokens) == (("a",), 0.5, {5: 1.0}, 3)
    assert type(wanted.temperature) is float and type(wanted.max_tokens) is int
    with pytest.raises(dataclasses.FrozenInstanceError):
        wanted.stop = ()
    assert dataclasses.replace(wanted, seed=3).seed == 3 and wanted.seed is None


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": "warm"}, {"stop": 5}, {"context_full": "explode"}, {"max_tokens": 1.5}, {"logit_bias": [1]},
     {"stream": "yes"}, {"abort_callback": 5}, {"logits_processor": 5}, {"seed": "x"}, {"penalty_last_n": "all"},
     {"echo": 3}, {"suffix": 3}],
    ids=str,
)  # fmt: skip
def test_values_are_checked_when_a_request_is_made(wrong):
    with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
        CompletionRequest("x", **wrong)


@pytest.mark.parametrize("prompt", [b"bytes", 5, None, ["a"], [1.5]])
def test_a_prompt_is_text_or_tokens(prompt):
    with pytest.raises(InvalidArgumentError, match="prompt"):
        CompletionRequest(prompt)


def test_keywords_that_nobody_has_are_told_with_the_nearest(monkeypatch):
    with pytest.warns(IgnoredArgumentWarning, match="'temperature'"):
        assert CompletionRequest.read(("x",), {"temprature": 1}).temperature == 0.8
    monkeypatch.setenv("LLAMA_CPP_STRICT", "1")
    with pytest.raises(UnknownArgumentError, match="temperature"):
        CompletionRequest.read(("x",), {"temprature": 1})
    with pytest.raises(TypeError, match="prompt"):
        CompletionRequest.read((), {})


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="pip install llama_cpp_python[lint]")
def test_type_checkers_know_what_comes_back(tmp_path):
    """A whole answer without stream=True, chunks with it; and they refuse what is no parameter."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", program]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    revealed = [
        line.partition("Revealed type is ")[2].strip('"').replace("builtins.", "") for line in lines if "Revealed" in line
    ]
    assert revealed == ["float", "str", "str", CHUNK], done.stdout
    errors = [line for line in lines if ": error:" in line]
    at = PROGRAM[: PROGRAM.index("no_such")].count("\n") + 1
    assert errors and all(f"{program.name}:{at}:" in line for line in errors), done.stdout


CHUNK = "Literal['chat.completion.chunk']"
PROGRAM = """
from llama_cpp import AsyncLlama, Llama

llm = Llama("model.gguf")
whole = llm.create_completion("x", max_tokens=5, top_n_sigma=1.0)
reveal_type(whole["timings"]["prompt_ms"])
for chunk in llm.create_completion("x", stream=True):
    reveal_type(chunk["choices"][0]["text"])
answer = llm.create_chat_completion([{"role": "user", "content": "x"}], tools=[])
reveal_type(answer["choices"][0]["finish_reason"])


async def main() -> None:
    model = AsyncLlama("model.gguf")
    async for piece in await model.create_chat_completion([], stream=True):
        reveal_type(piece["object"])


llm.create_completion("x", no_such=5)
"""

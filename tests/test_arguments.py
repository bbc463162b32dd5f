"""What callers give: numbers of numpy are numbers, other kinds are errors of ours, and no call ends in a bare TypeError."""

from __future__ import annotations

import copy
import fractions
import inspect
import pickle
import random
import warnings
from typing import Any

import numpy as np
import pytest

from gguf_writer import tiny_model
from llama_cpp import AsyncLlama, Llama
from llama_cpp.chat.templates import ChatTemplates
from llama_cpp.errors import IgnoredArgumentWarning, InvalidArgumentError, LlamaCppError, UncopyableError

MESSAGES = [{"role": "user", "content": "Hi"}]

#: One of each kind that somebody might give by mistake.
ODD: list[Any] = [
    None, True, 0, -1, 7, 10**400, -(10**400), 0.5, float("nan"), float("inf"), 1e300, 1j, "", "3", "x\0y", "\ud800", b"x", [],
    [1], ["a"], [None], (), {}, {"a": 1}, {1: 2}, {"type": "json_object"}, {None: None}, set(), object(), print, int,
    np.int64(3), np.float32(0.5), np.bool_(True), np.array([1, 2]), np.array(3), np.array(["a"]), np.array([]), np.float64("nan"),
    fractions.Fraction(1, 2), range(3), [[1]], [{"role": "user"}], [{"role": "user", "content": None}],
    [{"role": 5, "content": []}], iter([1]), memoryview(b"x"), Ellipsis,
]  # fmt: skip
ENOUGH = {"max_tokens": 1}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """A model that answers at once, and has no room for long answers."""
    path = tmp_path_factory.mktemp("arguments") / "tiny.gguf"
    path.write_bytes(tiny_model().build())
    with Llama(path, n_ctx=64, chat_format="{% for m in messages %}{{ m.content }}{% endfor %}") as model:
        yield model


def calls(llm: Llama) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Functions, each with arguments that do."""
    return {
        "create_completion": (llm.create_completion, {"prompt": "Once", **ENOUGH}),
        "create_chat_completion": (llm.create_chat_completion, {"messages": MESSAGES, **ENOUGH}),
        "tokenize": (llm.tokenize, {"text": b"Once"}),
        "detokenize": (llm.detokenize, {"tokens": [1, 2]}),
        "set_seed": (llm.set_seed, {"seed": 1}),
    }


def parameters() -> list[tuple[str, str]]:
    """Each parameter of each function."""
    names = ("create_completion", "create_chat_completion", "tokenize", "detokenize", "set_seed")
    return [
        (name, parameter)
        for name in names
        for parameter, found in inspect.signature(getattr(Llama, name)).parameters.items()
        if parameter != "self" and found.kind is not found.VAR_KEYWORD
    ]


def attempt(function: Any, arguments: dict[str, Any]) -> None:
    """A call ends, or raises an error of ours; a stream is read to its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IgnoredArgumentWarning)
        try:
            answer = function(**arguments)
            if not isinstance(answer, (dict, list, bytes, int, type(None))):
                for _ in answer:
                    pass
        except LlamaCppError as error:
            assert str(error)


@pytest.mark.parametrize("name, parameter", parameters())
def test_other_kinds_are_errors_of_ours(llm, name, parameter):
    function, arguments = calls(llm)[name]
    calls_it = parameter in ("logits_processor", "stopping_criteria", "abort_callback")  # what that raises is its caller's own
    for value in ODD:
        if calls_it and callable(value):
            continue
        attempt(function, {**arguments, parameter: value})
    llm.set_seed(None)


def test_several_odd_values_at_once(llm):
    several(llm, range(150))


@pytest.mark.slow
@pytest.mark.generator
def test_several_odd_values_at_once_at_length(llm):
    several(llm, range(1000, 21000))


def several(llm, seeds):
    for seed in seeds:
        rng = random.Random(seed)
        name = rng.choice(["create_completion", "create_chat_completion"])
        function, arguments = calls(llm)[name]
        own = [parameter for function_name, parameter in parameters() if function_name == name]
        given = [value for value in ODD if not callable(value)]
        chosen = {parameter: rng.choice(given) for parameter in rng.sample(own, rng.choice((2, 3)))}
        attempt(function, {**arguments, **chosen})


@pytest.mark.parametrize(
    "how",
    [{"stop": 5}, {"seed": "3"}, {"grammar": b"root"}, {"temperature": 10**400}, {"top_k": 1.5}, {"max_tokens": True},
     {"stream": "yes"},
     {"logit_bias": {"a": 1}}, {"logit_bias": [1]}, {"top_p": None}, {"model": 5}, {"lora": 5}, {"echo": "no"}, {"stop": b"x"},
     {"stream_options": 5}, {"prompt": [1, None]}, {"prompt": [1.5]}, {"prompt": np.array([0.5])}, {"abort_callback": 5},
     {"dry_multiplier": 1, "dry_sequence_breakers": "ab"}, {"logprobs": 1.0}],
)  # fmt: skip
def test_what_is_refused(llm, how):
    with pytest.raises(InvalidArgumentError):
        llm.create_completion(**{"prompt": "x", **ENOUGH, **how})


def test_numbers_of_numpy_are_numbers(llm):
    plain = {"max_tokens": 3, "temperature": 0.5, "seed": 3, "top_k": 5, "logprobs": 1, "logit_bias": {1: -1.0}}
    numpy = {
        "max_tokens": np.int32(3), "temperature": np.float32(0.5), "seed": np.uint32(3), "top_k": np.array(5),
        "logprobs": np.int8(1), "logit_bias": {np.int64(1): np.float16(-1)},
    }  # fmt: skip
    tokens = llm.tokenize(b"the hello a of")
    asked = llm.create_completion(tokens, **plain)["choices"]
    assert llm.create_completion(np.array(tokens, np.int32), **numpy)["choices"] == asked
    assert llm.detokenize(np.array(tokens)) == llm.detokenize(tokens) != b""
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [np.int64(5)]}},
        "required": ["a"],
        "additionalProperties": np.bool_(False),
    }
    answer = llm.create_chat_completion(
        MESSAGES, temperature=0, max_tokens=40, response_format={"type": "json_object", "schema": schema}
    )
    assert "".join(answer["choices"][0]["message"]["content"].split()).startswith('{"a":5')


def test_a_model_takes_numbers_of_numpy(smollm2):
    with Llama(
        smollm2, n_ctx=np.int64(300), n_batch=np.uint16(32), rope_freq_base=np.float32(10000), use_mmap=np.bool_(True)
    ) as llm:
        assert llm.n_ctx() == 300


@pytest.mark.parametrize(
    "name", [name for name in inspect.signature(Llama.__init__).parameters if name not in ("self", "kwargs", "model_path")]
)
def test_a_model_refuses_other_kinds(smollm2, name):
    for value in ("x\0y", 1j, object(), {None: None}, b"\xff", -(10**400), np.array(["a"])):
        if name in ("draft_model", "lora_path") and isinstance(value, bytes):
            continue  # that is a path
        if name == "chat_format" and isinstance(value, str):
            continue  # it is looked at with the file's own names, which takes more than a vocabulary
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IgnoredArgumentWarning)
            with pytest.raises(LlamaCppError):
                Llama(smollm2, **{"n_ctx": 64, "vocab_only": True, name: value})


# --- n_ctx is what was asked for ---


@pytest.mark.parametrize("n_ctx", [2, 3, 10, 100, 257])
@pytest.mark.parametrize("n_parallel", [None, 2])
def test_a_request_has_exactly_so_many_tokens(llm, n_ctx, n_parallel):
    with Llama(llm.model_path, n_ctx=n_ctx, n_parallel=n_parallel) as llm:
        assert llm.n_ctx() == n_ctx
        endless = {"max_tokens": None, "temperature": 0, "logit_bias": {llm.token_eos(): -100, 0: -100}}
        answer = llm.create_completion([5], **endless)
        assert answer["usage"]["total_tokens"] == n_ctx and answer["choices"][0]["finish_reason"] == "length"
        with pytest.raises(LlamaCppError, match=f"{n_ctx} tokens; the context holds {n_ctx}"):
            llm.create_completion([5] * n_ctx, **endless)
        shifted = llm.create_completion([5], **{**endless, "max_tokens": 2 * n_ctx}, context_full="shift")
        if n_ctx > 3:  # else there is nothing to forget
            assert shifted["usage"]["completion_tokens"] == 2 * n_ctx


# --- copies ---


def test_what_owns_native_memory_is_not_copied(smollm2):
    with Llama(smollm2, n_ctx=64) as llm:
        stream = llm.create_completion("x", stream=True, max_tokens=2)
        owned = [
            llm.loaded.model,
            llm.loaded.engine,
            llm.loaded.engine.scheduler.decoder,
            llm.loaded.model.in_use(),
            stream,
            ChatTemplates(None, "{{ messages }}"),
        ]
        for thing in owned:
            for copied in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(UncopyableError, match=type(thing).__name__):
                    copied(thing)
        assert llm.create_completion("x", max_tokens=1)["usage"]["completion_tokens"] == 1
        assert list(stream)


def test_an_async_model_is_not_copied(smollm2):
    llm = AsyncLlama(smollm2, n_ctx=64)
    with pytest.raises(UncopyableError):
        copy.copy(llm)
    llm.loaded.close()

"""Grammars and the bytes of an answer: what is no UTF-8 does not pass, and what wakes a lazy grammar is found in any answer."""

from __future__ import annotations

import ctypes
import json

import pytest

from gguf_writer import tiny_model
from llama_cpp import Llama
from llama_cpp.capi import llama, llama_common_c
from llama_cpp.capi.status import call
from llama_cpp.models.model import Model
from measures import least_seconds

PATTERN, PATTERN_FULL, WORD = 2, 3, 1  # of common_grammar_trigger_type


def test_what_a_grammar_lets_pass_is_utf_8(tmp_path):
    """A model that says anything, byte by byte: no character in more bytes than it needs, no half pair, none above 10FFFF."""
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_model().build())
    with Llama(path, n_ctx=256) as llm:
        how = {"grammar": 'root ::= [^"\\uFFFD]{8}', "temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "max_tokens": 64}
        answers = [llm.create_completion("x", seed=seed, **how)["choices"][0] for seed in range(150)]
    ended = [choice["text"] for choice in answers if choice["finish_reason"] == "stop"]
    assert len(ended) > 75
    assert not [text for text in ended if "\ufffd" in text]
    assert sum(not text.isascii() for text in ended) > len(ended) / 2, "characters of several bytes are still there"


class Lazy:
    """A lazy grammar of the sample model's vocabulary that wakes at ``trigger`` and then allows digits."""

    def __init__(self, model: Model, kind: int, trigger: str) -> None:
        triggers = [{"type": kind, "value": trigger, "token": -1}]
        format = {"grammar": 'root ::= "wake" [0-9]+', "grammar_lazy": True, "grammar_triggers": triggers, "preserved_tokens": []}
        self._model, self._sampler = model, ctypes.POINTER(llama.llama_sampler)()
        call(
            llama_common_c.llama_common_grammar_init,
            model.vocab_pointer,
            json.dumps(format).encode(),
            None,
            ctypes.byref(self._sampler),
        )

    def accept(self, text: str) -> None:
        for token in self._model.tokenize(text.encode(), add_special=False, parse_special=False):
            llama.llama_sampler_accept(self._sampler, token)

    def allows(self, text: str) -> bool:
        (token,) = self._model.tokenize(text.encode(), add_special=False, parse_special=False)
        data = (llama.llama_token_data * 1)(llama.llama_token_data(token, 1.0, 0.0))
        candidates = llama.llama_token_data_array(data, 1, -1, False)
        llama.llama_sampler_apply(self._sampler, ctypes.byref(candidates))
        return data[0].logit > -1e30


@pytest.mark.parametrize(
    ("kind", "trigger"),
    [(WORD, "wake"), (PATTERN, r"(wake)"), (PATTERN, r"\s+(wake)"), (PATTERN_FULL, r"\s*(wake)"), (PATTERN, "^wake$")],
)
def test_a_lazy_grammar_waits_as_long_as_it_takes(smollm2, run_with_stack, kind, trigger):
    """Behind 60,000 spaces and more, in a thread with a small stack, in time that grows with the answer and no faster."""
    model = Model(smollm2, params={})
    anchored = trigger.startswith("^") or kind == PATTERN_FULL
    seconds, found = {}, []

    def wait():
        for n in (20_000, 60_000):
            text = "x" + " " * n if anchored else " " * n
            seconds[n] = least_seconds(lambda text=text: Lazy(model, kind, trigger).accept(text), tries=2)
            lazy = Lazy(model, kind, trigger)
            lazy.accept(text)
            assert lazy.allows("x")
            lazy.accept(" \nwake")
            found.append(lazy.allows("7") and not lazy.allows("x"))

    run_with_stack(1 << 20, wait)
    model.close()
    assert found == [not anchored] * 2, "what must begin the answer does not come later"
    assert seconds[60_000] < 6 * seconds[20_000] + 0.5


def test_a_lazy_grammar_that_begins_the_answer(smollm2):
    model = Model(smollm2, params={})
    for kind, trigger in ((PATTERN, "^wake$"), (PATTERN_FULL, r"\s*(wake)"), (WORD, "wake")):
        lazy = Lazy(model, kind, trigger)
        lazy.accept("wake")
        assert lazy.allows("7") and not lazy.allows("x"), trigger
    model.close()

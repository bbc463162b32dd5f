"""What a model thinks before it answers ends in time, and a grammar that waits for a call does not wake in it."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from llama_cpp import Llama
from llama_cpp.capi import llama_common_c as native
from llama_cpp.capi.status import call
from llama_cpp.engine.sampler_chain import Sampler
from llama_cpp.engine.sampling_params import SamplingParams
from llama_cpp.errors import InvalidArgumentError

#: Tags that are tokens of this vocabulary, and tags that are none.
TAGS = {
    "several tokens": ("<think>", "</think>"),
    "one token": ("<|im_start|>", "<|im_end|>"),
    "plain words": ("I think:", "So:"),
}
QUESTION = [{"role": "user", "content": "Think about the sea."}]


@pytest.fixture(scope="module")
def llm(smollm2):
    with Llama(smollm2, n_ctx=512, n_parallel=1) as model:
        yield model


class Writer:
    """Feeds a sampler with texts that a model would have written, and takes what is forced in between."""

    def __init__(
        self, llm: Llama, tags: tuple[str, str], budget: int | None, message: str = "", begun: str = "", **grammar
    ) -> None:
        self.llm = llm
        thinking = {
            "thinking_start_tag": tags[0], "thinking_end_tags": ["never", tags[1]] if grammar else [tags[1]],
            "generation_prompt": begun, "grammar_lazy": bool(grammar.get("grammar_lazy")),
        }  # fmt: skip
        self.sampler = Sampler(
            llm.loaded.model,
            SamplingParams(
                temperature=0, thinking=thinking, reasoning_budget_tokens=budget, reasoning_budget_message=message,
                grammar=grammar or None,
            ),
            512,
        )  # fmt: skip

    def step(self, token: int) -> int:
        """The token that is sampled where the model wants this one."""
        logits = np.zeros(self.llm.n_vocab(), np.float32)
        logits[token] = 10
        sampled = ctypes.c_int32()
        pointer = logits.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        call(native.llama_common_sample_from, pointer, len(logits), self.sampler.pointer, ctypes.byref(sampled))
        return sampled.value

    def write(self, text: str) -> list[int]:
        return [self.step(token) for token in self.tokens(text)]

    def tokens(self, text: str) -> list[int]:
        return self.llm.tokenize(text.encode(), add_bos=False, special=True)

    def forced(self) -> str:
        """What is written although the model wants something else."""
        wanted, found = self.tokens(" and")[0], []
        while (token := self.step(wanted)) != wanted and len(found) < 20:
            found.append(token)
        return self.llm.detokenize(found, special=True).decode()


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("begun", [False, True], ids=["the model begins", "the prompt begins"])
def test_thoughts_end_after_so_many_tokens(llm, tags, begun):
    start, end = tags
    writer = Writer(llm, tags, 4, " Enough. ", begun=f"{start}\n" if begun else "")
    if not begun:
        text = f"Well, {start}"
        assert writer.write(text) == writer.tokens(text)
    assert writer.write(" one two three four") == writer.tokens(" one two three four")
    assert writer.forced() == f" Enough. {end}"
    assert writer.write(" five six seven eight nine") == writer.tokens(" five six seven eight nine")  # it speaks now


def test_each_time_it_thinks_it_may_think_as_much(llm):
    writer = Writer(llm, TAGS["several tokens"], 3)
    for _ in range(2):
        writer.write("<think> one two three")
        assert writer.forced() == "</think>"
        writer.write(" said")


def test_thoughts_that_end_by_themselves_are_left_alone(llm):
    writer = Writer(llm, TAGS["several tokens"], 5, begun="<think>\n")
    text = " one</think> and what follows is as long as it likes to be, with nothing forced in between"
    assert writer.write(text) == writer.tokens(text)


def test_a_budget_of_nothing(llm):
    assert Writer(llm, TAGS["several tokens"], 0, begun="<think>\n").forced() == "</think>"
    writer = Writer(llm, TAGS["several tokens"], 0)
    writer.write("<think>")
    assert writer.forced() == "</think>"


def test_no_character_is_torn(llm):
    """Tokens that are parts of a character are completed before thoughts end."""
    writer = Writer(llm, TAGS["several tokens"], 1, begun="<think>\n")
    parts = writer.tokens("\U0001fae1")  # a vocabulary of this age has no token for it
    assert len(parts) > 1
    assert [writer.step(token) for token in parts] == parts
    assert writer.forced() == "</think>"


def test_a_grammar_that_waits_does_not_wake_in_thoughts(llm):
    lazy = {
        "grammar": 'root ::= "CALL" "(1)"', "grammar_lazy": True, "preserved_tokens": [],
        "grammar_triggers": [{"type": 1, "value": "CALL"}],
    }  # fmt: skip
    writer = Writer(llm, TAGS["several tokens"], None, begun="<think>\n", **lazy)
    text = "I could CALL a friend.</think>"
    assert writer.write(text) == writer.tokens(text)
    writer.write(" CALL")
    assert writer.forced().startswith("(1)<|endoftext|>")  # it is awake, and allows nothing else


def test_a_chat(smollm2, llama_source):
    template = (llama_source / "models/templates/Qwen-QwQ-32B.jinja").read_text()  # its prompts end within a thought
    with Llama(smollm2, n_ctx=512, chat_format=template) as llm:
        thought = {}
        for budget in (None, -1, 40, 3, 0):
            answer = llm.create_chat_completion(QUESTION, temperature=0, max_tokens=60, reasoning_budget_tokens=budget)
            message = answer["choices"][0]["message"]
            thought[budget] = llm.tokenize(message.get("reasoning_content", "").encode(), add_bos=False)
            chunks = llm.create_chat_completion(
                QUESTION, temperature=0, max_tokens=60, reasoning_budget_tokens=budget, stream=True
            )
            deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
            for name in ("reasoning_content", "content"):
                assert "".join(delta.get(name, "") for delta in deltas) == message.get(name, "")
        n = {budget: len(tokens) for budget, tokens in thought.items()}  # read again, a text may have a token more
        assert n[None] == n[-1] > 41 >= n[40] > 4 >= n[3] > n[0] == 0


@pytest.mark.parametrize(
    "how", [{"reasoning_budget_tokens": "3"}, {"reasoning_budget_message": 5}, {"reasoning_budget_tokens": 2**31}]
)
def test_what_is_refused(llm, how):
    with pytest.raises(InvalidArgumentError):
        llm.create_chat_completion(QUESTION, max_tokens=1, **how)

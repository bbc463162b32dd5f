"""A caller who is alone gets the same answer each time, whatever was asked before: repeatable=True.

On a GPU, and on a CPU with llama.cpp's own kernels, which depend as well on what is computed together and on where cells lie.
"""

import concurrent.futures
import math
import random

import pytest

import memory_kinds
from llama_cpp import LlamaRAMCache
from memory_kinds import CHECKPOINTED, GENERATIVE

UNIT = 64
"""Tokens of a batch: beginnings of prompts are reused up to multiples of it."""
CACHES = [
    {},
    {"kv_unified": False, "n_kv": 2048},
    {"n_parallel": 1},
    {"n_kv": 700},
    {"kv_unified": False, "n_kv": 512, "n_parallel": 1},
]


def load(model_files, kind, **arguments):
    arguments = {"n_batch": UNIT, "n_parallel": 4, "batch_invariant": False, "repeatable": True, **arguments}
    return memory_kinds.load(model_files, kind, **arguments)


def answer(llm, prompt, n=12):
    """The tokens of an answer and their log-probabilities, which differ in the last bit where anything was computed otherwise."""
    found = llm.create_completion(
        prompt, max_tokens=n, temperature=0, logprobs=2, logit_bias={llm.token_eos(): -1e9}
    )["choices"][0]["logprobs"]  # fmt: skip
    return found["tokens"], found["token_logprobs"], found["top_logprobs"]


class Caller:
    """Asks what somebody asks: prompts that begin alike, the next turns of chats, alone and several at once."""

    def __init__(self, llm, seed):
        self.llm = llm
        self.numbers = random.Random(seed)
        self.text = [self.numbers.randrange(3, 270) for _ in range(330)]
        self.chats = [self.new()]

    def new(self):
        shared = self.text[: self.numbers.choice((0, 30, UNIT, 100, 2 * UNIT, 200, 300))]
        return shared + self.numbers.choices(range(3, 270), k=self.numbers.randrange(1, 150))

    def prompt(self):
        """One that was asked before, or goes on after that, or a new one."""
        if self.numbers.random() < 0.6:
            self.chats.append(self.new())
        elif self.numbers.random() < 0.7:
            turn = self.numbers.choice(self.chats) + self.numbers.choices(range(3, 270), k=self.numbers.randrange(1, 40))
            self.chats.append(turn if len(turn) < 480 else self.new())
        else:
            self.chats.append(self.numbers.choice(self.chats))
        return self.chats[-1]

    def ask(self):
        """A question of somebody who is alone, with its answer."""
        prompt = self.prompt()
        return prompt, answer(self.llm, prompt)

    def disturb(self, pool):
        """What is asked meanwhile, by several at once."""
        if self.numbers.random() < 0.5:
            list(
                pool.map(lambda prompt: answer(self.llm, prompt, 6), [self.prompt() for _ in range(self.numbers.randrange(2, 6))])
            )


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("kind", [*GENERATIVE, "window, short"])
def test_who_is_alone_gets_the_same_answer(model_files, kind, cache):
    with load(model_files, kind, **cache) as llm, concurrent.futures.ThreadPoolExecutor(6) as pool:
        caller = Caller(llm, seed=1)
        asked = [(*caller.ask(), caller.disturb(pool))[:2] for _ in range(12)]
    with load(model_files, kind, **cache) as llm:
        for number, (prompt, found) in enumerate(asked):
            llm.reset()
            assert answer(llm, prompt) == found, f"number {number}, of {len(prompt)} tokens"
    assert any(len(prompt) > 2 * UNIT for prompt, _ in asked) and math.isfinite(asked[0][1][1][0])


def cached(llm, prompt):
    return llm.create_completion(prompt, max_tokens=3)["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("kind", ["dense", *CHECKPOINTED])
def test_whole_batches_are_reused(model_files, kind, cache):
    prompt = [3 + i % 200 for i in range(3 * UNIT + 10)]
    with load(model_files, kind, **cache) as llm:
        if kind == "window, short":
            assert cached(llm, prompt) == cached(llm, prompt) == 0, "a window's cells lie where others were left behind"
            return
        assert cached(llm, prompt) == 0
        assert cached(llm, prompt) == 3 * UNIT
        assert cached(llm, [*prompt, *range(3, 3 + UNIT)]) == 3 * UNIT, "not the rest of the prompt, and no answer"
        assert cached(llm, [*prompt[: 2 * UNIT + 1], *range(9, 50)]) in ((0, 2 * UNIT) if kind in CHECKPOINTED else (2 * UNIT,))


def test_where_each_has_its_own_cells_others_do_not_matter(model_files):
    """Prompts are read in whole batches, which others have no part in, so they are kept for who begins alike."""
    prompts = [[3 + (seed + i) % (200 + seed) for i in range(3 * UNIT + 10)] for seed in range(4)]
    with load(model_files, "dense", kv_unified=False, n_kv=2048) as llm, concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda prompt: answer(llm, prompt, 20), prompts))
        assert [cached(llm, prompt) for prompt in prompts] == [3 * UNIT] * 4


def test_what_comes_back_from_outside(model_files):
    prompts = [[3 + (seed + i) % (200 + seed) for i in range(3 * UNIT + 10)] for seed in range(4)]
    for cache in ({}, {"kv_unified": False, "n_kv": 512, "n_parallel": 1}):
        with load(model_files, "dense", **cache) as llm:
            expected = [answer(llm, prompt) for prompt in prompts]
        with load(model_files, "dense", **cache) as llm:
            llm.set_cache(LlamaRAMCache(1 << 30))
            assert [answer(llm, prompt) for prompt in prompts] == expected
            assert [answer(llm, prompt) for prompt in prompts] == expected
            assert [cached(llm, prompt) for prompt in prompts] == [3 * UNIT] * 4


@pytest.mark.parametrize("draft", ["prompt-lookup", "a model"])
@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_with_speculative_decoding(model_files, cache, draft):
    draft = {"draft_model": model_files["dense"] if draft == "a model" else draft, "n_draft": 3}
    with load(model_files, "dense", **cache, **draft) as llm, concurrent.futures.ThreadPoolExecutor(6) as pool:
        caller = Caller(llm, seed=2)
        asked = [(*caller.ask(), caller.disturb(pool))[:2] for _ in range(8)]
    with load(model_files, "dense", **cache, **draft) as llm:
        for number, (prompt, found) in enumerate(asked):
            llm.reset()
            assert answer(llm, prompt) == found, f"number {number}, of {len(prompt)} tokens"

"""What sequences share: the cells of one pool, and copies between streams that are made later."""

import concurrent.futures
import random
import threading
import time

import numpy as np
import pytest

import tiny_models
from llama_cpp import LlamaRAMCache
from llama_cpp.engine.decoder import Decoder
from llama_cpp.engine.sequence_pool import PerSequencePool
from memory_kinds import answer, load, prompts

#: As a user has it who asks for nothing: the kinds that share a pool of cells, without the batch-invariant switch.
POOL = {"kv_unified": True, "n_kv": 4096, "flash_attn": True}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharing")
    return {kind: tiny_models.write(kind, folder / f"{number}.gguf") for number, kind in enumerate(tiny_models.KINDS)}


def in_one_round(llm, asked):
    """Asks for several prompts that the engine takes in at once; returns what each one was answered."""
    engine, held, go_on = llm.loaded.engine, threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go_on.wait()

    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        engine.scheduler.worker.post(hold)
        assert held.wait(60)  # else it counts as one of those that were asked for
        found = []
        for n, prompt in enumerate(asked):
            found.append(pool.submit(answer, llm, prompt))
            while engine.snapshot().n_asked <= n:
                time.sleep(0.001)
        go_on.set()
        return [one.result() for one in found]


def worst(alone, prompt, tokens):
    """How far below the best logit the tokens of an answer are where the model reads them alone.

    In a pool, cells lie in another order, so that sums round otherwise, and two tokens that are almost equally probable
    may change places.
    """
    below = []

    def follow(seen, logits):
        token = tokens[len(seen) - len(prompt)]
        below.append(float(logits.max() - logits[token]))
        forced = np.full_like(logits, -1e9)
        forced[token] = 0
        return forced

    alone.reset()
    bias = {alone.token_eos(): -1e9}
    alone.create_completion(prompt, max_tokens=len(tokens), temperature=0, logits_processor=follow, logit_bias=bias)
    return max(below)


def check_pool(models, kind):
    """Together, one after the other and with what was left, in a pool, all is as alone."""
    asked = prompts(seed=3)
    with load(models, kind, n_parallel=1) as alone, load(models, kind, **POOL) as llm:
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            rounds = [(asked, [answer(llm, prompt) for prompt in asked])]
            rounds.append((asked, list(pool.map(lambda prompt: answer(llm, prompt), asked))))
            turns = [[*prompt, *tokens, 5, 6, 7] for prompt, tokens in zip(*rounds[0])]
            rounds.append((turns, list(pool.map(lambda prompt: answer(llm, prompt), turns))))
        found = [worst(alone, prompt, tokens) for texts, answers in rounds for prompt, tokens in zip(texts, answers)]
        assert max(found) < 0.5, sorted(found)


# (experts and latent attention of random weights make a lot of a little: whole units of a logit with flash attention or without)
@pytest.mark.parametrize("kind", ["dense", "window", "state", "hybrid"])
def test_in_one_pool_it_is_as_alone(models, kind):
    check_pool(models, kind)


def test_a_wrong_beginning_would_be_seen(models, monkeypatch):
    """The test above must fail when a request begins with what others computed for another text."""
    best = PerSequencePool._best

    def greedy(self, tokens, key):
        source, n, n_common = best(self, tokens, key)
        return source, min(n + 3, len(tokens) - 1, len(self._texts[source][1])) if n else 0, n_common

    monkeypatch.setattr(PerSequencePool, "_best", greedy)
    with pytest.raises(AssertionError):
        check_pool(models, "dense")


@pytest.mark.cpu
@pytest.mark.parametrize("kind", ["dense", "window"])
def test_a_shift_does_nothing_to_what_others_hold(models, kind):
    first = [11 + i % 200 for i in range(300)]
    with load(models, kind, **POOL) as llm:
        bias = {llm.token_eos(): -1e9}
        following = answer(llm, first, logit_bias=bias)
        second = [*first, *following, 7, 8, 9]
        expected = (llm.reset(), answer(llm, second, logit_bias=bias))[1]
        llm.reset()
        answer(llm, first, logit_bias=bias)
        shifted = llm.create_completion(second, max_tokens=400, context_full="shift", temperature=0, logit_bias=bias)
        assert shifted["usage"]["completion_tokens"] == 400
        assert answer(llm, second, logit_bias=bias) == expected, "what it began with is as it was"
        stream = llm.create_completion(second, max_tokens=420, context_full="shift", temperature=0, logit_bias=bias, stream=True)
        next(stream)
        assert answer(llm, second, 40, logit_bias=bias)[:16] == expected, "beside one that shifts"
        list(stream)


def test_what_is_shifted_goes_on_as_if_it_were_read_anew(models):
    """In a pool whose cells others hold, too, a shift reads again; the answer is that of the text that is left."""
    first = [11 + i % 200 for i in range(400)]
    sampled = []

    def note(tokens, logits):
        sampled.append(int(tokens[-1]))
        return logits

    with load(models, "dense", **POOL) as llm:
        how = {"logit_bias": {llm.token_eos(): -1e9}, "temperature": 0}
        answer(llm, first, logit_bias=how["logit_bias"])
        n_before = llm.loaded.engine.statistics.n_tokens
        llm.create_completion(first, max_tokens=150, context_full="shift", logits_processor=note, **how)
        assert llm.loaded.engine.statistics.n_tokens - n_before > 150 + 200, "it has not read anything again"
        text = [*first, *sampled[1:]]
        left = [text[0], *text[1 + (511 - 1) // 2 : 512]]
        assert worst(llm, left, text[512:]) < 0.5


def test_a_checkpoint_survives_the_copy_to_another_stream(models):
    """A window has gone on since the checkpoint: a copy of all of it must not come after what was restored."""
    prompt = [11 + i % 200 for i in range(120)]
    other = [*prompt[:116], 5, 6, 7]
    with load(models, "window, short", n_ctx=1024, n_parallel=3) as llm:
        bias = {llm.token_eos(): -1e9}
        expected = (llm.reset(), answer(llm, other))[1]
        llm.reset()
        stream = llm.create_completion(prompt, max_tokens=900, temperature=0, stream=True, logit_bias=bias)
        for _ in range(450):
            next(stream)  # longer than its ring of cells
        assert answer(llm, other) == expected
        stream.close()


@pytest.mark.cpu
def test_what_is_restored_does_not_reach_a_copy(models):
    """Copies between streams are made with the next batch: until then nothing may be restored where they come from."""
    numbers = random.Random(8)
    a, b, c = ([*numbers.choices(range(3, 270), k=200)] for _ in range(3))
    with load(models, "dense") as llm:
        llm.set_cache(LlamaRAMCache())
        asked = [[*a[:80], *c[:50]], [*b, 9, 10]]
        expected = [(llm.reset(), answer(llm, prompt))[1] for prompt in asked]
        llm.reset()
        engine = llm.loaded.engine
        answer(llm, b)
        engine.scheduler.worker.post(lambda: engine.scheduler.sequences._drop(0))  # it has to make room
        answer(llm, a)
        answer(llm, c)
        # the first is a copy of 0 in 2, which is empty; then 0 is the one that was not used for the longest time
        assert in_one_round(llm, asked) == expected


def test_a_copy_that_nobody_waits_for_is_no_harm(models):
    numbers = random.Random(9)
    a, b = ([*numbers.choices(range(3, 270), k=200)] for _ in range(2))
    with load(models, "dense", n_parallel=2, n_ctx=1024) as llm:
        expected = (llm.reset(), answer(llm, b))[1]
        llm.reset()
        answer(llm, a)
        engine = llm.loaded.engine
        decode = engine.scheduler.decoder.decode
        with pytest.MonkeyPatch.context() as patch:
            # who had the copy leaves before anything was computed
            patch.setattr(Decoder, "decode", lambda self, n: -2 if self.copies_wait else decode(n))
            with pytest.raises(Exception, match="-2"):
                answer(llm, [*a[:80], 5, 6])
        assert engine.scheduler.decoder.copies_wait
        assert answer(llm, b) == expected
        assert not engine.scheduler.decoder.copies_wait

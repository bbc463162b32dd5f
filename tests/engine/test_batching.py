"""Many requests at once: each one's answer is what it is alone, and none keeps anything when it ends."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
import traceback

import numpy as np
import pytest

from gguf_writer import tiny_model
from llama_cpp import Llama
from llama_cpp.engine import batches
from llama_cpp.engine.decoder import Decoder
from llama_cpp.engine.prefix_cache.prefix_tree import PrefixTree
from llama_cpp.engine.requests import Request, RequestStream
from llama_cpp.engine.sampler_chain import Sampler
from llama_cpp.engine.sampling_params import SamplingParams
from llama_cpp.errors import ContextFullError, InvalidArgumentError, ModelBusyError, ModelClosedError

WORDS = [
    "the", "hello", "a", "of", "and", "to", "in", "world", "that", "is", "was", "for", "on", "are", "with", "they", "be", "at",
    "one", "have", "this",
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("batching") / "tiny.gguf"
    path.write_bytes(tiny_model().build())
    return path


@pytest.fixture(params=["as on a CPU", "as on a GPU"])
def small(request, smollm2):
    """What a test may fill or break. As on a GPU, a batch is begun before anything is known of the one before it."""
    with Llama(smollm2, n_ctx=512, n_parallel=4) as model:
        model.loaded.engine.scheduler.multi_step.begins = request.param == "as on a GPU"
        yield model


def text(llm, prompt, **arguments):
    return llm.create_completion(prompt, **{"max_tokens": 8, "temperature": 0, **arguments})["choices"][0]["text"]


def at_once(run, n):
    """Runs n functions in threads; returns their results or what they raised."""
    results = [None] * n

    def one(i):
        try:
            results[i] = run(i)
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=one, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def idle(llm):
    """Waits until the engine has nothing to do."""
    engine = llm.loaded.engine
    for _ in range(600):
        if engine.snapshot().is_idle:
            return engine
        time.sleep(0.05)
    raise AssertionError("the engine is still busy")


def prompts(n, seed=0):
    numbers = random.Random(seed)
    shared = " ".join(numbers.choices(WORDS, k=40))
    return [
        (shared if numbers.random() < 0.5 else "") + " ".join(numbers.choices(WORDS, k=numbers.randrange(1, 60)))
        for _ in range(n)
    ]


# --- the same as alone ---


def check_alone_and_together(llm, n=24):
    asked = prompts(n)
    alone = []
    for prompt in asked:
        llm.reset()
        alone.append(text(llm, prompt))
    assert len(set(alone)) > n // 2
    llm.reset()
    assert at_once(lambda i: text(llm, asked[i]), n) == alone
    assert at_once(lambda i: text(llm, asked[i]), n) == alone, "with what the first ones left"
    engine = idle(llm)
    assert sorted(engine.scheduler.sequences._free) == list(range(4))


@pytest.mark.cpu
def test_answers_are_those_of_the_request_alone(small):
    check_alone_and_together(small)


def _swap_sequences(monkeypatch):
    write = batches.write

    def swapped(decoder, parts):
        n = write(decoder, parts)
        if len({part.sequence for part in parts}) > 1 and all(len(part.tokens) == 1 for part in parts):
            for array in (decoder.sequences, decoder.positions):
                array[0], array[1] = array[1], array[0]
        return n

    monkeypatch.setattr("llama_cpp.engine.scheduler.write", swapped)


def _shift_a_position(monkeypatch):
    take = "llama_cpp.engine.sequence_pool.PerSequencePool.take"
    from llama_cpp.engine.sequence_pool import PerSequencePool

    original = PerSequencePool.take

    def one_too_many(self, tokens, key, first=False):
        taken = original(self, tokens, key, first)
        if taken and taken[1]:
            self._decoder.cut(taken[0], taken[1] - 1)
            self._decoder.tokens[0], self._decoder.positions[0] = tokens[taken[1]], taken[1] - 1
            self._decoder.sequences[0], self._decoder.outputs[0] = taken[0], 0
            self._decoder.decode(1)
        return taken

    monkeypatch.setattr(take, one_too_many)


def _stale_prefix(monkeypatch):
    original = PrefixTree.matches

    def too_long(self, tokens, key=None):
        return [(owner, min(n + 4, len(tokens), self.lengths[owner])) for owner, n in original(self, tokens, key)]

    def insert(self, owner, tokens, key=None, insert=PrefixTree.insert):
        self.lengths = {**getattr(self, "lengths", {}), owner: len(tokens)}
        insert(self, owner, tokens, key)

    monkeypatch.setattr(PrefixTree, "matches", too_long)
    monkeypatch.setattr(PrefixTree, "insert", insert)


def _keep_a_sampler(monkeypatch):
    kept = []
    original = Sampler.__init__

    def again(self, *arguments):
        original(self, *arguments)
        if kept:
            self.pointer, kept[0].pointer = kept[0].pointer, self.pointer
        kept[:] = [self]

    monkeypatch.setattr(Sampler, "__init__", again)


SABOTAGE = {
    "swapped sequences": _swap_sequences,
    "a position off by one": _shift_a_position,
    "a stale prefix": _stale_prefix,
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_the_test_would_see(name, small, monkeypatch):
    SABOTAGE[name](monkeypatch)
    with pytest.raises(AssertionError):
        check_alone_and_together(small, n=16)


def check_seeds(llm):
    def one(i):
        return text(llm, "Once upon a time", temperature=1.3, seed=i % 3, frequency_penalty=0.7)

    alone = [one(i) for i in range(3)]
    assert len(set(alone)) == 3
    assert at_once(one, 12) == [alone[i % 3] for i in range(12)]


@pytest.mark.cpu
def test_random_answers_are_those_of_the_seed(small):
    check_seeds(small)


def test_a_sampler_s_state_left_over_would_be_seen(small, monkeypatch):
    _keep_a_sampler(monkeypatch)
    with pytest.raises(AssertionError):
        check_seeds(small)


# --- the cache ---


@pytest.mark.parametrize("unified", [True, False])
def test_a_request_begins_with_what_an_earlier_one_left(smollm2, unified):
    with Llama(smollm2, n_ctx=1024, n_parallel=2, kv_unified=unified, flash_attn=True) as llm:
        system = "You are a helpful assistant. " * 30
        first = llm.create_completion(system + "one", max_tokens=4)["usage"]
        again = llm.create_completion(system + "two", max_tokens=4)["usage"]
        assert first["prompt_tokens_details"]["cached_tokens"] == 0
        assert again["prompt_tokens_details"]["cached_tokens"] >= again["prompt_tokens"] - 3
        turns = llm.tokenize((system + "one").encode())
        branch = llm.create_completion([*turns, 400, 500], max_tokens=4)["usage"]
        assert branch["prompt_tokens_details"]["cached_tokens"] >= len(turns) - 1
        other = llm.create_completion([500, 600, 700], max_tokens=4)["usage"]
        assert other["prompt_tokens_details"]["cached_tokens"] == 0
        llm.reset()
        assert llm.create_completion(system, max_tokens=1)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize("unified", [True, False])
def test_a_running_request_s_prompt_serves_others(smollm2, unified):
    with Llama(smollm2, n_ctx=1024, n_parallel=3, kv_unified=unified, flash_attn=True) as llm:
        prompt = llm.tokenize(b"The quick brown fox jumps over the lazy dog. " * 10)
        stream = llm.create_completion(prompt, max_tokens=200, stream=True, temperature=0)
        for _ in range(5):
            next(stream)
        used = llm.create_completion([*prompt, 400], max_tokens=1)["usage"]
        assert used["prompt_tokens_details"]["cached_tokens"] == len(prompt)
        stream.close()


def test_the_least_recently_used_goes_first(tiny):
    with Llama(tiny, n_ctx=256, n_parallel=2, n_kv=256) as llm:
        cached = lambda p: llm.create_completion(p, max_tokens=1)["usage"]["prompt_tokens_details"]["cached_tokens"]
        n_vocab = llm.n_vocab()
        texts = [[10 + i] * 60 for i in range(3)]
        assert max(30 + len(texts), 13) < n_vocab
        assert [cached(p) for p in texts] == [0, 0, 0]
        assert cached(texts[0]) == 59
        assert cached([20] * 100) == 0  # needs the room of one that is kept: the second
        assert cached(texts[0]) == 59
        assert cached(texts[1]) == 0


def test_many_requests_share_too_small_a_cache(tiny, caplog):
    """None fails: those that do not fit in wait, or begin again; and nobody is warned of what is dealt with."""
    with Llama(tiny, n_ctx=256, n_parallel=8, n_kv=512, flash_attn=True) as llm:
        bias = {llm.token_eos(): -1e9}
        results = at_once(lambda i: text(llm, [10 + i] * 100, max_tokens=100, logit_bias=bias), 16)
        assert [type(result) for result in results] == [str] * 16, results
        idle(llm)
    assert not [record for record in caplog.records if "memory slot" in record.getMessage() and record.levelno > 10]


# --- ends ---


@pytest.mark.cpu
def test_sixty_four_threads_of_all_kinds(llm):
    """Lengths, samplers, streams left early, stop strings, grammars and failing callbacks, mixed."""
    asked = prompts(64, seed=1)
    greedy = {i: text(llm, asked[i]) for i in range(0, 64, 4)}

    def fail(tokens, logits):
        if len(tokens) > 10:
            raise LookupError("this callback fails")
        return logits

    def run(i):
        if i % 4 == 0:
            return text(llm, asked[i])
        if i % 16 == 1:
            return text(llm, "a b c d e f g h i j k l", logits_processor=fail)
        if i % 4 == 1:
            stream = llm.create_completion(asked[i], stream=True, max_tokens=30, seed=i)
            next(stream)
            return stream.close()
        if i % 8 == 2:
            return text(llm, asked[i], grammar="root ::= [0-9]+", max_tokens=4)
        if i % 8 == 6:
            return text(llm, asked[i], stop=["e", " "], temperature=1.0, seed=i)
        return text(llm, asked[i], temperature=0.5 + i / 64, top_p=0.9, seed=i, max_tokens=3 + i % 9, presence_penalty=0.3)

    results = at_once(run, 64)
    for i, result in enumerate(results):
        if i % 4 == 0:
            assert result == greedy[i]
        elif i % 16 == 1:
            assert isinstance(result, LookupError)
        else:
            assert result is None or isinstance(result, str), result
        if i % 8 == 2:
            assert result.isdigit()
        if i % 8 == 6:
            assert not set("e ") & set(result)
    engine = idle(llm)
    assert sorted(engine.scheduler.sequences._free) == list(range(4))


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize(("seconds", "n_prompts", "in_between"), [(1e6, 5, False), (0.0, 5, True), (1e6, 1, True)])
def test_many_prompts_go_first_and_a_long_one_takes_turns(tiny, monkeypatch, unified, seconds, n_prompts, in_between):
    monkeypatch.setattr(batches.Burst, "SECONDS", seconds)
    kinds = []  # of the batches: "r" for reading, "g" for generating, "rg" for both

    def counted(choose, *arguments):
        parts = choose(*arguments)
        own = [part for part in parts if part.slot]
        reads, generates = any(len(p.tokens) > 1 for p in own), any(p.n_outputs == len(p.tokens) for p in own)
        kinds.append("r" * reads + "g" * generates)
        return parts

    for kind in (batches.MixedBatches, batches.EqualBatches):
        monkeypatch.setattr(kind, "choose", lambda *arguments, choose=kind.choose: counted(choose, *arguments))
    with Llama(tiny, n_ctx=512, n_parallel=6, n_batch=64, kv_unified=unified, n_kv=3072) as llm:
        engine, held, go_on = llm.loaded.engine, threading.Event(), threading.Event()
        prompts = [random.Random(i).choices(range(3, 30), k=300 if n_prompts == 1 else 60) for i in range(n_prompts)]
        stream = llm.create_completion([5, 6, 7], max_tokens=400, temperature=0, stream=True, logit_bias={2: -1e9})
        next(stream)

        def hold() -> None:
            held.set()
            go_on.wait()

        engine.scheduler.worker.post(hold)
        assert held.wait(60)  # else it counts as one of those that were asked for
        threads = [threading.Thread(target=llm.create_completion, args=(prompt,), kwargs={"max_tokens": 1}) for prompt in prompts]
        for thread in threads:
            thread.start()
        while engine.snapshot().n_asked < n_prompts:
            time.sleep(0.01)
        kinds.clear()
        go_on.set()
        for thread in threads:
            thread.join()
        stream.close()
    reading = [at for at, kind in enumerate(kinds) if "r" in kind]
    assert len(reading) >= 5
    assert any("g" in kind for kind in kinds[reading[0] : reading[-1] + 1]) == in_between


def test_an_abandoned_stream_gives_its_sequence_back(small):
    streams = [small.create_completion("Once", stream=True, max_tokens=400) for _ in range(4)]
    for stream in streams:
        next(stream)
    before = small.loaded.engine.statistics.n_tokens
    del stream, streams
    assert text(small, "The capital of France is").startswith(" Paris")
    engine = idle(small)
    assert engine.statistics.n_tokens - before < 300


@pytest.fixture
def multi_step(smollm2, monkeypatch):
    """A model with multi-step decoding; and how many batches it was told to compute."""
    counted = []
    decode = Decoder.decode
    monkeypatch.setattr(Decoder, "decode", lambda self, n: (counted.append(n), decode(self, n))[1])
    with Llama(smollm2, n_ctx=512, n_parallel=4) as model:
        model.loaded.engine.scheduler.multi_step.begins = True
        counted.clear()
        yield model, counted


def test_it_goes_on_by_itself(multi_step):
    llm, counted = multi_step
    steps = llm.loaded.engine.statistics
    assert len(text(llm, "Once upon a time", max_tokens=40)) > 40
    assert steps.n_steps == 40 and len(counted) == 2, "the prompt and the first token"
    counted.clear()
    before = steps.n_steps
    answer = llm.create_completion("Once upon a time", max_tokens=10, temperature=0, logprobs=1)
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 10
    assert steps.n_steps - before == 10 and len(counted) == 2, "each is begun before the last one's logits are looked at"
    counted.clear()
    ended = llm.create_completion("Once", max_tokens=40, logit_bias={llm.token_eos(): 1e9})
    assert ended["choices"][0]["finish_reason"] == "stop" and len(counted) == 1
    # as on a CPU, where only what is waited for is computed
    llm.reset()
    llm.loaded.engine.scheduler.multi_step.begins = False
    counted.clear()
    assert len(text(llm, "Once upon a time", max_tokens=40)) > 40
    assert len(counted) == 3, "the prompt, the first token, and the one after 32 more"


@pytest.mark.cpu
def test_log_probabilities_are_the_same_beside_others(small):
    asked = prompts(6, seed=4)

    def run(i):
        wanted = {} if i % 3 == 2 else {"logprobs": 3 if i else 150}  # so many are counted beside the others
        if i % 3 == 1:
            wanted["grammar"] = "root ::= [0-9]+"  # not what the model would say: its whole vocabulary is looked at
        answer = small.create_completion(asked[i], max_tokens=12, temperature=0.8, seed=i, **wanted)
        return answer["choices"][0]

    small.reset()
    alone = []
    for i in range(6):
        alone.append(run(i))
        small.reset()
    assert at_once(run, 6) == alone
    for choice in alone:
        if found := choice["logprobs"]:
            assert len(found["token_logprobs"]) == 12 and max(found["token_logprobs"]) <= 0
            # the chosen one is among them, or beside them
            assert all(len(top) in (3, 4) or len(top) > 100 for top in found["top_logprobs"])


def check_what_is_left_behind(llm):
    """Streams are left early, alone and beside others, and what they leave is what they have said."""
    asked = prompts(6, seed=3)
    alone = []
    for prompt in asked:
        llm.reset()
        alone.append(text(llm, prompt, max_tokens=24))
    llm.reset()

    def leave(i):
        stream = llm.create_completion(asked[i], stream=True, max_tokens=200, temperature=0)
        seen = ""
        while len(seen) < 10:
            seen += next(stream)["choices"][0]["text"]
        time.sleep(0.03)  # into the middle of a batch
        stream.close()
        return seen

    for i in range(3):
        leave(i)
        engine = idle(llm)
        for sequence, (_, tokens) in engine.scheduler.sequences._texts.items():
            assert engine.scheduler.decoder.newest(sequence) == len(tokens) - 1
    llm.reset()
    assert at_once(lambda i: (leave(i), text(llm, asked[i], max_tokens=24))[1], len(asked)) == alone


@pytest.mark.cpu
def test_what_was_computed_of_a_stream_that_ended_is_forgotten(multi_step, monkeypatch):
    monkeypatch.setattr("llama_cpp.engine.multi_step.N_MOST", 0)  # then each batch is begun while the last one is handed out
    check_what_is_left_behind(multi_step[0])


def test_a_token_computed_ahead_and_left_would_be_seen(multi_step, monkeypatch):
    monkeypatch.setattr("llama_cpp.engine.multi_step.N_MOST", 0)
    monkeypatch.setattr("llama_cpp.engine.slots.Slot.rollback", lambda self, pool: None)
    with pytest.raises(AssertionError):
        check_what_is_left_behind(multi_step[0])


def test_cancelling_stops_a_prompt_that_is_being_read(smollm2):
    with Llama(smollm2, n_ctx=4096, flash_attn=True, n_batch=64) as llm:
        engine = llm.loaded.engine
        request = Request([400] * 4000, Sampler(llm.loaded.model, SamplingParams(), 4096), 10)
        handle = RequestStream(request)
        engine.submit(request)
        while not engine.statistics.n_tokens:
            time.sleep(0.01)
        handle.cancel()
        idle(llm)
        assert engine.statistics.n_tokens < 3000
        assert list(handle) == [] and handle.generation.finish_reason is None


def test_closing_ends_every_request(smollm2):
    llm = Llama(smollm2, n_ctx=512, n_parallel=2)
    threads_before = threading.active_count()
    results = []
    closer = threading.Timer(0.5, llm.close)
    closer.start()
    results = at_once(lambda i: text(llm, "Once upon a time", max_tokens=400), 6)
    closer.join()
    assert any(isinstance(result, ModelClosedError) for result in results), results
    assert all(isinstance(result, (str, ModelClosedError)) for result in results), results
    assert threading.active_count() < threads_before
    with pytest.raises(ModelClosedError):
        text(llm, "x")


def test_too_many_waiting_requests_are_refused(smollm2):
    with Llama(smollm2, n_ctx=512, n_parallel=1) as llm:
        llm.loaded.engine._max_waiting = 3
        stream = llm.create_completion("Once", stream=True, max_tokens=500, logit_bias={llm.token_eos(): -1e9})
        next(stream)
        results = at_once(lambda i: text(llm, "the", max_tokens=1), 12) if next(stream) else []
        stream.close()
        refused = [result for result in results if isinstance(result, ModelBusyError)]
        assert len(refused) + sum(isinstance(result, str) for result in results) == 12
        assert len(refused) >= 8


def test_a_request_that_waits_can_be_cancelled(smollm2):
    with Llama(smollm2, n_ctx=512, n_parallel=1) as llm:
        engine, bias = llm.loaded.engine, {llm.token_eos(): -1e9}
        stream = llm.create_completion("Once", stream=True, max_tokens=400, logit_bias=bias)
        next(stream)
        waiting = [Request([400], Sampler(llm.loaded.model, SamplingParams(temperature=0), 512), 10) for _ in range(3)]
        handles = [RequestStream(request) for request in waiting]
        for request in waiting:
            engine.submit(request)
        handles[1].cancel()
        assert list(handles[1]) == []
        assert engine.snapshot().n_waiting == 2, "it made room for others while the first one still runs"
        stream.close()
        assert [len(list(handle)) for handle in (handles[0], handles[2])] == [10, 10]


def test_what_happens_when_the_context_is_full(small):
    prompt, bias = "Hi there " * 200, {small.token_eos(): -1e9}
    cut = small.create_completion(prompt, max_tokens=None, temperature=0, logit_bias=bias)
    assert cut["choices"][0]["finish_reason"] == "length" and cut["usage"]["total_tokens"] == 512
    with pytest.raises(ContextFullError, match="512"):
        small.create_completion(prompt, max_tokens=None, context_full="error", logit_bias=bias)
    shifted = small.create_completion(prompt, max_tokens=300, context_full="shift", temperature=0, logit_bias=bias)
    assert shifted["usage"]["completion_tokens"] == 300
    with pytest.raises(InvalidArgumentError, match="elsewhere"):
        small.create_completion(prompt, context_full="elsewhere")
    assert text(small, "The capital of France is").startswith(" Paris")


def test_a_shifted_sequence_serves_no_other_request(small):
    prompt = [400] * 500
    small.create_completion(prompt, max_tokens=30, context_full="shift", logit_bias={small.token_eos(): -1e9})
    used = small.create_completion([400] * 400, max_tokens=1)["usage"]
    assert used["prompt_tokens_details"]["cached_tokens"] == 0


# --- what a request brings ---


def test_a_logits_processor_decides(llm):
    seen = []

    def only_x(tokens, logits):
        seen.append((tokens.dtype, len(tokens), logits.dtype, logits.shape))
        logits[:] = -1e9
        logits[llm.tokenize(b"x", add_bos=False)[0]] = 0
        return logits

    assert text(llm, [400, 500], logits_processor=only_x, max_tokens=3) == "xxx"
    assert seen == [(np.int64, 2 + i, np.float32, (llm.n_vocab(),)) for i in range(3)]
    assert text(llm, [400, 500], logits_processor=[only_x, only_x], max_tokens=2) == "xx"
    with pytest.raises(InvalidArgumentError, match="logits_processor"):
        text(llm, "x", logits_processor=5)


def test_an_idle_engine_uses_no_processor(llm):
    idle(llm)
    for patience in (1.0, 5.0):  # the threads that compute look out for more for a moment; a slow machine ends other things
        time.sleep(patience)
        before, began = thread_times(), time.process_time()
        time.sleep(1.0)
        used, after = time.process_time() - began, thread_times()
        if used < 0.2:
            return
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    stacks = {thread.native_id: sys._current_frames().get(thread.ident) for thread in threading.enumerate()}
    busy = [
        f"{names.get(tid, tid)}: {after[tid] - before.get(tid, 0):.2f} s\n{''.join(traceback.format_stack(stacks.get(tid)))}"
        for tid in after
        if after[tid] - before.get(tid, 0) > 0.05
    ]
    pytest.fail(f"{used:.2f} s of processor in a second\n" + "\n".join(busy))


def thread_times():
    """Seconds of processor of each thread of this process, by its id."""
    found = {}
    for tid in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{tid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
            found[int(tid)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found

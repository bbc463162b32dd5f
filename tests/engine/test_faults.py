"""What goes wrong with one request, or in code that is not ours, stays there: the others go on and nobody waits for ever."""

import functools
import random
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

import llama_cpp
import tiny_models
from llama_cpp import Llama, LlamaRAMCache
from llama_cpp.engine import batches, scheduler
from llama_cpp.engine.decoder import Decoder
from llama_cpp.engine.requests import Request, RequestStream
from llama_cpp.engine.sampler_chain import Sampler
from llama_cpp.engine.sampling_params import SamplingParams
from llama_cpp.errors import (
    ContextFullError,
    DecodeError,
    InvalidArgumentError,
    ModelBusyError,
    ModelClosedError,
    NativeError,
)
from memory_kinds import answer, cached, load

PROMPT = [11, 12, 13, 14]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    return {kind: tiny_models.write(kind, folder / f"{kind}.gguf") for kind in ("dense",)}


@pytest.fixture
def llm(models):
    with load(models, "dense") as model:
        yield model


def at_once(*functions):
    """What each of them returned or raised, run in threads that must end."""
    found = [None] * len(functions)

    def run(i):
        try:
            found[i] = functions[i]()
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    return found


def raising(error):
    def processor(tokens, logits):
        raise error

    return processor


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ZeroDivisionError()], ids=repr)
def test_whatever_a_processor_raises_reaches_its_caller(llm, error):
    expected = answer(llm, PROMPT)
    bad = lambda: llm.create_completion([9, 9], max_tokens=9, logits_processor=raising(error))
    assert at_once(bad, lambda: answer(llm, PROMPT)) == [error, expected]
    assert llm.loaded.engine.snapshot().n_free == 3


@pytest.mark.parametrize("change", [lambda x: x[None], lambda x: np.append(x, 9e9), lambda x: x[:-1], lambda x: None])
def test_logits_of_another_shape_are_refused(llm, change):
    expected = answer(llm, PROMPT)

    def bad():
        return llm.create_completion([9, 9], max_tokens=9, logits_processor=lambda tokens, logits: change(logits))

    error, other = at_once(bad, lambda: answer(llm, PROMPT))
    assert isinstance(error, InvalidArgumentError) and "shape" in str(error)
    assert other == expected


@pytest.mark.parametrize("wrong", [20.0, 2.5, "9"])
def test_a_number_of_tokens_is_an_int(llm, wrong):
    expected = answer(llm, PROMPT)
    with pytest.raises(InvalidArgumentError, match="max_tokens"):
        llm.create_completion(PROMPT, max_tokens=wrong)
    assert answer(llm, PROMPT) == expected


@pytest.mark.parametrize("type_k, can", [("GGML_TYPE_F16", True), ("GGML_TYPE_BF16", False), ("GGML_TYPE_Q8_0", False)])
def test_keys_that_cannot_be_moved_end_a_request_and_not_the_process(models, type_k, can):
    """Heads of 32: only those of a multiple of 64 are rotated, which quantized keys need to be moved."""
    endless = {"max_tokens": 700, "context_full": "shift"}
    with load(models, "dense", type_k=getattr(llama_cpp, type_k)) as llm:
        bias = {llm.token_eos(): -1e9}
        if can:
            assert llm.create_completion(PROMPT, logit_bias=bias, **endless)["usage"]["completion_tokens"] == 700
            keys = [key for key, _ in llm.loaded.engine.scheduler.sequences._texts.values()]
            assert all(isinstance(key, tuple) for key in keys), "what it leaves serves nobody, and takes up no room"
        else:
            with pytest.raises(ContextFullError, match="shift"):
                llm.create_completion(PROMPT, logit_bias=bias, **endless)
        assert len(answer(llm, PROMPT)) > 0


def test_keys_of_a_draft_are_to_be_moved_as_well(models, tmp_path, monkeypatch):
    heads = {"attention.key_length": 64, "attention.value_length": 64}
    monkeypatch.setitem(tiny_models.KINDS, "heads of 64", ("qwen3", {**tiny_models._ATTENTION, **heads}))
    rotated = tiny_models.write("heads of 64", tmp_path / "rotated.gguf")
    types = {"type_k": llama_cpp.GGML_TYPE_Q8_0, "n_parallel": 2, "n_ctx": 512, "n_threads": 1}
    for draft, can in ((None, True), (rotated, True), (models["dense"], False)):
        with Llama(rotated, draft_model=draft, **types) as llm:
            assert llm.loaded.engine.scheduler.decoder.can_shift == can
            never_ending = {"max_tokens": 700, "context_full": "shift", "logit_bias": {llm.token_eos(): -1e9}}
            ask = functools.partial(llm.create_completion, PROMPT, **never_ending)
            if can:
                assert ask()["usage"]["completion_tokens"] == 700
            else:
                with pytest.raises(ContextFullError, match="shift"):
                    ask()


def test_what_nobody_has_foreseen_ends_who_runs_and_nobody_else(llm, monkeypatch):
    expected = answer(llm, PROMPT)
    engine = llm.loaded.engine
    for where in ("_step", "_admit"):
        with monkeypatch.context() as patched:
            failing, real = [ZeroDivisionError("a defect")], getattr(engine.scheduler, where)

            def fail(failing=failing, real=real):
                if failing:
                    raise failing.pop()
                return real()

            patched.setattr(engine.scheduler, where, fail)
            with pytest.raises(DecodeError, match="a defect"):
                answer(llm, PROMPT)
            assert answer(llm, PROMPT) == expected and engine.snapshot().n_free == 3


def test_a_processor_that_closes_the_model_ends_its_request(models):
    llm = load(models, "dense")

    def close(tokens, logits):
        llm.close()
        return logits

    with pytest.raises(ModelClosedError):
        llm.create_completion(PROMPT, logits_processor=close, grammar="root ::= [a-z0-9A-Z ]*")


def test_who_would_wait_for_itself_is_told(models):
    with load(models, "dense", n_parallel=1) as llm:

        def ask(tokens, logits):
            llm.create_completion([9, 8], max_tokens=2)
            return logits

        with pytest.raises(ModelBusyError, match="Raise n_parallel"):
            llm.create_completion(PROMPT, logits_processor=ask)
        assert len(answer(llm, PROMPT)) > 0


def test_a_thread_that_generates_when_the_main_thread_ends_does_so_to_its_end(models, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import threading, time
from llama_cpp import Llama
from llama_cpp.engine.decoder import Decoder
decode = Decoder.decode
Decoder.decode = lambda self, n: (time.sleep(0.02), decode(self, n))[1]
llm = Llama({str(models["dense"])!r}, n_ctx=512, n_threads=1, verbose=False)
bias = {{llm.token_eos(): -1e9}}
def work():
    answer = llm.create_completion([11, 12, 13], max_tokens=20, stopping_criteria=lambda t, l: False, logit_bias=bias)
    print(answer["usage"]["completion_tokens"])
threading.Thread(target=work).start()
time.sleep(0.2)
"""
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "20\n"), done.stderr


def test_who_waited_for_room_behind_one_that_was_cancelled_waits_no_longer(models):
    with load(models, "dense", n_parallel=3, n_kv=512, kv_unified=True) as llm:
        bias = {llm.token_eos(): -1e9}
        first = llm.create_completion(PROMPT, max_tokens=None, context_full="shift", stream=True, logit_bias=bias)
        next(first)  # it ends when it is closed
        engine = llm.loaded.engine
        large = Request([9] * 510, Sampler(llm.loaded.model, SamplingParams(), 512), 5)
        handle = RequestStream(large)
        engine.submit(large)
        deadline = time.monotonic() + 30
        while not engine.scheduler._blocked and time.monotonic() < deadline:
            time.sleep(0.001)
        assert engine.scheduler._blocked
        handle.cancel()
        small = llm.create_completion([9, 8], max_tokens=2, logit_bias=bias)
        assert small["usage"]["completion_tokens"] > 0 and engine.snapshot().slots, "the first one goes on"
        first.close()


def test_who_generates_has_half_of_the_time_however_many_prompts_come():
    """Of a clock that goes as long as what is computed is said to take."""
    now, waited = [0.0], 0.0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(batches.time, "perf_counter", lambda: now[0])
        burst = batches.Burst()
        reading = [types.SimpleNamespace(n_pending=100) for _ in range(5)]
        generating = [batches.BatchPart(0, 0, [1], 0, None, n_outputs=1)]
        prompt = [batches.BatchPart(1, 0, [1] * 100, 0, types.SimpleNamespace(), n_outputs=0)]
        for _ in range(1000):
            goes_first = burst.goes_first(reading, 1)
            seconds = 0.02 if goes_first else 0.005
            now[0] += seconds
            waited += seconds * goes_first
            burst.note(prompt if goes_first else generating + prompt, seconds, waited=True)
    assert 0.3 * now[0] < waited < 0.6 * now[0]


def test_a_stream_keeps_its_model(models):
    def ask():
        return load(models, "dense").create_completion(PROMPT, max_tokens=20, stream=True, logit_bias={2: -1e9})

    assert list(ask())[-1]["choices"][0]["finish_reason"] == "length"


def test_a_request_the_engine_refuses_ends_alone(llm, monkeypatch):
    """A batch with a wrong position in it is refused as a whole, and computed again one by one."""
    expected = answer(llm, PROMPT)
    write = scheduler.write

    def wrong(decoder, parts):
        n, at = write(decoder, parts), 0
        for part in parts:
            if part.slot is not None and part.slot.request.tokens[0] == 99 and len(part.tokens) == 1:
                decoder.positions[at] += 7
            at += len(part.tokens)
        return n

    monkeypatch.setattr(scheduler, "write", wrong)
    how = {"max_tokens": 200, "logit_bias": {llm.token_eos(): -1e9}, "temperature": 0}
    bad = lambda: llm.create_completion([99, 8, 7], **how)
    long = lambda: llm.create_completion([5, 6], **how)["usage"]["completion_tokens"]
    error, n, found = at_once(bad, long, lambda: answer(llm, PROMPT))
    assert isinstance(error, DecodeError) and "-1" in str(error)
    assert (n, found) == (200, expected)


def test_an_exception_of_the_engine_ends_what_was_computed_and_nothing_else(llm, monkeypatch):
    expected = answer(llm, PROMPT)
    decode, left = Decoder.decode, [NativeError("no memory"), MemoryError()]

    def failing(self, n):
        if left:
            raise left.pop()
        return decode(self, n)

    monkeypatch.setattr(Decoder, "decode", failing)
    for _ in range(2):
        with pytest.raises(DecodeError, match=r"failed \("):
            answer(llm, PROMPT)
    assert answer(llm, PROMPT) == expected


def test_what_cannot_be_read_ends_its_batch_and_nothing_else(llm, monkeypatch):
    expected = answer(llm, PROMPT)
    sample, failing = Decoder.sample, [True]

    def fail(self, *args, **how):
        if failing and failing.pop():
            raise MemoryError("none left")
        sample(self, *args, **how)

    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "sample", fail)
        with pytest.raises(DecodeError, match="none left"):
            answer(llm, PROMPT)
    assert answer(llm, PROMPT) == expected and llm.loaded.engine.snapshot().n_free == 3

    def not_numbers(logits, token, n_top):
        raise NativeError("not numbers")

    monkeypatch.setattr("llama_cpp.engine.sampling.logprobs_of", not_numbers)
    bad = lambda: llm.create_completion([9, 9], max_tokens=9, logprobs=3)
    error, found = at_once(bad, lambda: answer(llm, PROMPT))
    assert isinstance(error, NativeError) and found == expected
    assert answer(llm, PROMPT) == expected and llm.loaded.engine.snapshot().n_free == 3


@pytest.mark.parametrize("broken", ["put", "get", "names", "type"])
def test_a_cache_that_fails_costs_time_only(llm, broken, caplog):
    class Broken(LlamaRAMCache):
        fails = False

        def _or_fail(self, name, *arguments):
            if self.fails and name == broken:
                raise OSError(28, "No space left on device")
            return getattr(LlamaRAMCache, name)(self, *arguments)

        def put(self, *arguments):
            return self._or_fail("put", *arguments)

        def get(self, *arguments):
            return 5 if self.fails and broken == "type" else self._or_fail("get", *arguments)

        def names(self):
            return self._or_fail("names")

    texts = [[20 + i] * 200 for i in range(70)]
    cache = Broken()
    llm.set_cache(cache)
    expected = [answer(llm, text, 2) for text in texts[:5]]
    cache.fails = True
    assert [answer(llm, text, 2) for text in [*texts[:5], *texts]][:5] == expected
    assert "going on without" in caplog.text


def test_states_of_a_model_with_other_overrides_are_others(models):
    cache, text = LlamaRAMCache(), random.Random(1).choices(range(3, 270), k=200)
    changed = {"kv_overrides": {"qwen3.rope.freq_base": 77.0}}
    with load(models, "dense", **changed) as llm:
        expected = answer(llm, text)
    with load(models, "dense") as llm:
        llm.set_cache(cache)
        assert answer(llm, text) != expected
        for other in range(4):
            answer(llm, [30 + other] * 200)
    assert list(cache.names())
    with load(models, "dense", **changed) as llm:
        llm.set_cache(cache)
        assert cached(llm, text) == 0
        assert answer(llm, text) == expected


def test_who_closes_may_be_in_any_thread(models):
    """The garbage collector may end a model in its engine's thread, and a processor may close it."""
    before = threading.active_count()
    for close_in in ("the engine's thread", "a processor"):
        llm = load(models, "dense")

        def close(tokens, logits, llm=llm):
            llm.close()
            return logits

        stream = llm.create_completion(PROMPT, max_tokens=400, stream=True, logit_bias={llm.token_eos(): -1e9})
        next(stream)
        engine = llm.loaded.engine
        if close_in == "a processor":
            with pytest.raises(ModelClosedError):
                llm.create_completion([9], max_tokens=3, logits_processor=close)
        else:
            engine.scheduler.worker.post(llm.close)
        with pytest.raises(ModelClosedError):
            list(stream)
        engine.scheduler.worker.join(30)
        for thread in threading.enumerate():
            if thread.name.startswith("llama-cpp"):
                thread.join(10)  # a processor's is still closing when the engine's has ended
        assert (
            not engine.scheduler.worker.is_alive
            and engine.scheduler.decoder._handle.closed
            and not engine.scheduler.decoder._handle._owned
        )
        llm.close()
    assert threading.active_count() <= before


def test_processors_may_ask_the_model(llm):
    def asking(tokens, logits):
        text = llm.create_completion([9, 8], max_tokens=2, grammar="root ::= [0-9]+", temperature=0)["choices"][0]["text"]
        assert text.isdigit()
        return logits

    bias = {llm.token_eos(): -1e9}
    run = lambda: llm.create_completion(PROMPT, max_tokens=2, logits_processor=asking, logit_bias=bias)["usage"]
    for found in at_once(run, run):
        assert found["completion_tokens"] == 2, found


def test_a_stopping_criterion_ends_the_text_before_its_token(llm):
    whole = llm.create_completion(PROMPT, max_tokens=8, temperature=0, logprobs=0)["choices"][0]
    seen = []

    def fifth(tokens, logits):
        seen.append((len(tokens), logits.shape))
        logits[:] = 0  # its own copy
        return len(tokens) >= len(PROMPT) + 4

    never = lambda tokens, logits: False
    stop = lambda: llm.create_completion(PROMPT, max_tokens=8, temperature=0, logprobs=0, stopping_criteria=[never, fifth])
    go_on = lambda: llm.create_completion(PROMPT, max_tokens=8, temperature=0)["usage"]["completion_tokens"]
    answer, others = at_once(stop, go_on)
    choice = answer["choices"][0]
    assert (choice["finish_reason"], answer["usage"]["completion_tokens"], others) == ("stop", 4, 8)
    assert choice["logprobs"]["tokens"] == whole["logprobs"]["tokens"][:4] and whole["text"].startswith(choice["text"])
    assert seen == [(len(PROMPT) + i, (llm.n_vocab(),)) for i in range(5)]


def test_at_once_and_with_a_stream_a_stopping_criterion_ends_it_too(llm):
    chunks = list(llm.create_completion(PROMPT, max_tokens=8, stream=True, stopping_criteria=lambda tokens, logits: True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == ""
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_what_a_stopping_criterion_raises_is_its_requests_error(llm):
    def broken(tokens, logits):
        raise ZeroDivisionError("of the criterion")

    with pytest.raises(ZeroDivisionError, match="of the criterion"):
        llm.create_completion(PROMPT, max_tokens=2, stopping_criteria=broken)
    after = llm.create_completion(PROMPT, max_tokens=2, logit_bias={llm.token_eos(): -1e9})
    assert after["usage"]["completion_tokens"] == 2


def test_lists_of_functions_are_functions(llm):
    at = lambda n: lambda tokens, logits: len(tokens) >= len(PROMPT) + n
    criteria = llama_cpp.StoppingCriteriaList([at(6), at(3)])
    assert criteria(np.zeros(len(PROMPT) + 3, np.int64), np.zeros(1, np.float32)) is True
    for given in (at(3), criteria):
        answer = llm.create_completion(PROMPT, max_tokens=8, temperature=0, stopping_criteria=given)
        assert answer["usage"]["completion_tokens"] == 3

    def only(token):
        def forbid(tokens, logits):
            others = np.full_like(logits, -np.inf)
            others[token] = 0
            return others

        return forbid

    eos, other = llm.token_eos(), 5
    either = llama_cpp.LogitsProcessorList(
        [only(eos), lambda tokens, logits: np.where(np.arange(len(logits)) == other, -1, logits)]
    )
    assert llm.create_completion(PROMPT, max_tokens=8, logits_processor=either, temperature=0)["usage"]["completion_tokens"] == 0
    either.append(llama_cpp.MinTokensLogitsProcessor(3, eos))
    answer = llm.create_completion(PROMPT, max_tokens=8, logits_processor=either, temperature=0)
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (3, "stop")
    at_least = llama_cpp.MinTokensLogitsProcessor(4, 0)
    # the context was shifted after the second token; the last position is asked about twice
    lengths = [100, 101, 52, 53, 54, 54]
    assert [at_least(np.zeros(n, np.int64), np.zeros(2, np.float32))[0] == 0 for n in lengths] == [False] * 4 + [True] * 2


def test_cancelling_wakes_the_engine(models):
    with load(models, "dense", n_parallel=1) as llm:
        entered, go_on = threading.Event(), threading.Event()

        def slow(tokens, logits):
            entered.set()
            go_on.wait(60)
            return logits

        working = threading.Thread(
            target=llm.create_completion, args=(PROMPT,), kwargs={"max_tokens": 2, "logits_processor": slow}
        )
        working.start()
        entered.wait(60)
        request = Request([9], Sampler(llm.loaded.model, SamplingParams(), 512), 10)
        handle = RequestStream(request)
        llm.loaded.engine.submit(request)
        while not llm.loaded.engine.snapshot().n_waiting:
            time.sleep(0.01)
        handle.cancel()
        assert at_once(lambda: list(handle)) == [[]], "it waited for the other one's Python"
        go_on.set()
        working.join()


def test_as_many_sequences_as_the_engine_has(models):
    with load(models, "dense", n_parallel=200, kv_unified=True, n_kv=8192, n_batch=256) as llm:
        assert len(answer(llm, PROMPT)) == 16
    with pytest.raises(InvalidArgumentError):
        Llama(models["dense"], n_parallel=257)

"""One private sequence, evaluated and sampled from by the caller, as programs of llama-cpp-python do it."""

from __future__ import annotations

import ctypes
import os
import pickle
import threading

import numpy as np
import pytest

import llama_cpp
import tiny_models
from llama_cpp import Llama, LogitsProcessorList, StoppingCriteriaList
from llama_cpp.errors import ContextFullError, InvalidArgumentError, LlamaCppError, ModelClosedError
from memory_kinds import GENERATIVE as KINDS

PROMPT = b"Once upon a time"


@pytest.fixture(scope="module")
def llm(smollm2):
    with Llama(smollm2, n_ctx=256, logits_all=True) as model:
        yield model


@pytest.fixture(autouse=True)
def fresh(request):
    if "llm" in request.fixturenames:
        request.getfixturevalue("llm").reset()


def greedy(llm, tokens, n, **how):
    found = []
    for token in llm.generate(tokens, temp=0.0, **how):
        found.append(token)
        if len(found) == n:
            return found


@pytest.mark.offers("Llama.eval", "Llama.sample", how="same")
def test_evaluating_and_sampling_is_what_a_completion_does(llm):
    tokens = llm.tokenize(PROMPT)
    llm.eval(tokens)
    found = []
    for _ in range(12):
        found.append(llm.sample(temp=0.0))
        llm.eval(found[-1:])
    assert (
        llm.detokenize(found).decode()
        == llm.create_completion(PROMPT.decode(), max_tokens=12, temperature=0)["choices"][0]["text"]
    )
    assert llm.n_tokens == len(tokens) + 12 and list(llm.eval_tokens) == tokens + found
    assert llm.input_ids[: llm.n_tokens].tolist() == tokens + found


@pytest.mark.offers("Llama.generate", how="better", note="what is held of the tokens is not evaluated again, for every model")
def test_generating(llm):
    tokens = llm.tokenize(PROMPT)
    expected = greedy(llm, tokens, 8)
    assert greedy(llm, tokens, 8) == expected  # from what is held
    assert greedy(llm, tokens + expected[:3], 5) == expected[3:]
    generator = llm.generate(tokens, temp=0.0)
    assert next(generator) == expected[0]
    assert generator.send(expected[1:3]) == expected[3]  # tokens put behind it
    llm.reset()
    llm.eval(tokens[:2])
    assert greedy(llm, tokens[2:], 8, reset=False) == expected


@pytest.mark.offers("Llama.scores", "Llama._scores", "Llama.eval_logits", "logits_all=True", how="better",
                    note="only rows that were computed take memory")  # fmt: skip
def test_scores_of_all_tokens(llm):
    """As lmql reads them; the same as logits of prompts that end there."""
    tokens = llm.tokenize(PROMPT)
    llm.eval(tokens)
    scores = llm.scores[: llm.n_tokens].copy()
    assert scores.shape == (len(tokens), llm.n_vocab()) and scores.dtype == np.single and llm._scores.shape == scores.shape
    assert len(llm.eval_logits) == len(tokens) and np.allclose(llm.eval_logits[-1], scores[-1])
    for n in range(1, len(tokens) + 1):
        llm.reset()
        llm.eval(tokens[:n])
        assert np.allclose(llm.scores[n - 1], scores[n - 1], atol=1e-3)
    assert np.allclose(np.exp(Llama.logits_to_logprobs(scores)).sum(axis=-1), 1, atol=1e-4)


def test_scores_of_the_last_token_alone(smollm2):
    with Llama(smollm2, n_ctx=64) as llm:
        tokens = llm.tokenize(PROMPT)
        llm.eval(tokens)
        assert llm.scores.shape == (64, llm.n_vocab()) and len(llm.eval_logits) == 1
        assert llm.scores[llm.n_tokens - 1].any() and not llm.scores[0].any()
        assert int(np.argmax(llm.eval_logits[-1])) == llm.sample(temp=0.0)


def test_scores_take_the_memory_of_what_was_computed(smollm2):
    """n_ctx × n_vocab floats would be 1.6 GB."""

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with Llama(smollm2, n_ctx=8192, logits_all=True, n_batch=64) as llm:
        llm.eval([1])
        before = resident()
        llm.eval([2] * 20)
        assert llm.scores.nbytes > 1.5e9 and resident() - before < 200e6


@pytest.mark.offers("Llama.n_tokens = n", how="same")
@pytest.mark.parametrize("kind", KINDS)
def test_rewinding(kind, tiny_kinds):
    """Of every kind of memory, also of those that cannot be cut."""
    with Llama(tiny_kinds[kind], n_ctx=64, logits_all=True) as llm:
        tokens = [5, 6, 7, 8, 9, 10]
        llm.eval(tokens)
        expected = llm.scores[5].copy()
        llm.n_tokens = 3
        llm.eval([20, 21])
        assert llm.n_tokens == 5 and list(llm.eval_tokens) == [5, 6, 7, 20, 21]
        llm.n_tokens = 3
        llm.eval([8, 9, 10])
        assert np.allclose(llm.scores[5], expected, atol=1e-3)


@pytest.fixture(scope="module")
def tiny_kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    return {kind: tiny_models.write(kind, folder / f"{number}.gguf") for number, kind in enumerate(KINDS)}


@pytest.mark.offers(
    "Llama.save_state", "Llama.load_state", "LlamaState", how="better", note="as large as what is held, and checked"
)
def test_states(llm):
    tokens = llm.tokenize(PROMPT)
    llm.eval(tokens)
    expected = greedy(llm, tokens, 8)
    llm.n_tokens = 0
    llm.eval(tokens)
    state = pickle.loads(pickle.dumps(llm.save_state()))
    assert state.n_tokens == len(tokens) and state.llama_state_size == len(state.llama_state) < 1_000_000
    assert state.scores.shape == (1, llm.n_vocab())
    llm.reset()
    llm.eval([5] * 30)
    llm.load_state(state)
    assert list(llm.eval_tokens) == tokens and llm.sample(temp=0.0) == expected[0]
    assert greedy(llm, tokens, 8) == expected


@pytest.mark.parametrize("damage", ["cut", "changed", "nothing", "another"])
def test_a_damaged_state_is_refused(llm, damage):
    llm.eval(llm.tokenize(PROMPT))
    state = llm.save_state()
    data = state.llama_state
    state.llama_state = {
        "cut": data[:-10], "changed": data[:100] + b"\x55" + data[101:], "nothing": b"", "another": b"x" * 500,
    }[damage]  # fmt: skip
    with pytest.raises(InvalidArgumentError, match="state"):
        llm.load_state(state)
    llm.reset()
    llm.eval(llm.tokenize(PROMPT))
    assert llm.sample(temp=0.0) > 0


@pytest.mark.offers("Llama.longest_token_prefix", "Llama.logits_to_logprobs", how="same")
def test_helpers():
    assert Llama.longest_token_prefix([1, 2, 3], [1, 2, 4]) == 2 and Llama.longest_token_prefix([], [1]) == 0
    found = Llama.logits_to_logprobs([0.0, float("-inf"), 0.0])
    assert np.allclose(found, [-0.6931472, -np.inf, -0.6931472])


@pytest.mark.offers("Llama._ctx", "Llama._model", "Llama._batch", "Llama.context_params", "Llama.model_params", how="same")
def test_private_names_that_programs_reach_for(llm):
    tokens = llm.tokenize(PROMPT)
    llm.eval(tokens)
    assert llm._ctx.kv_cache_seq_rm(-1, 2, -1) and llm._ctx.n_ctx() == 256
    llm.n_tokens = 2
    llm.eval(tokens[2:])
    assert llm._model.token_get_text(llm.token_eos()) and llm._model.n_vocab() == llm.n_vocab()
    assert llm._model.add_bos_token() in (True, False) and "general.architecture" in llm._model.metadata()
    assert llm.context_params.n_ctx == 256 and llm.context_params.n_seq_max == 1 and llm.model_params.n_gpu_layers
    assert llm.n_batch == 512 and llm.last_n_tokens_size == 64
    batch = llm._batch
    batch.set_batch(batch=tokens, n_past=0, logits_all=False)
    assert batch.n_tokens() == len(tokens) and batch.batch.token[0] == tokens[0]
    llm._ctx.memory_clear(True)
    llm._ctx.decode(batch)
    logits = np.ctypeslib.as_array(ctypes.cast(llm._ctx.get_logits_ith(-1), ctypes.POINTER(ctypes.c_float)), (llm.n_vocab(),))
    assert logits.any()
    other = type(llm._ctx)(model=llm._model, params=llm.context_params)
    other.decode(batch)
    other.close()
    batch.reset()
    assert batch.n_tokens() == 0


@pytest.mark.offers("Llama.ctx", "llama_decode(Llama.ctx, …)", how="same")
def test_a_batch_of_the_c_api_as_guidance_does_it(llm):
    n_batch, n_vocab = llm.n_batch, llm.n_vocab()
    tokens = llm.tokenize(PROMPT)
    batch = llama_cpp.llama_batch_init(n_batch, 0, llm.n_ctx())
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, True
        batch.seq_id[i][0] = 0
    batch.n_tokens = len(tokens)
    memory = llama_cpp.llama_get_memory(llm.ctx)
    llama_cpp.llama_memory_seq_rm(memory, -1, 0, -1)
    assert llama_cpp.llama_decode(llm.ctx, batch) == 0
    rows = np.ctypeslib.as_array(
        ctypes.cast(llama_cpp.llama_get_logits(llm.ctx), ctypes.POINTER(ctypes.c_float)), (len(tokens), n_vocab)
    )
    found = rows.copy()
    llama_cpp.llama_batch_free(batch)
    llm.reset()
    llm.eval(tokens)
    assert np.allclose(found, llm.scores[: len(tokens)], atol=1e-3)


@pytest.mark.offers("logits_processor=", "stopping_criteria=", how="same")
def test_functions_that_are_asked(llm):
    tokens = llm.tokenize(PROMPT)
    seen = []

    def only_seven(ids, scores):
        seen.append(ids.tolist())
        scores[:] = -np.inf
        scores[7] = 0
        return scores

    found = []
    for token in llm.generate(
        tokens, temp=0.0, logits_processor=LogitsProcessorList([only_seven]),
        stopping_criteria=StoppingCriteriaList([lambda ids, logits: len(ids) >= len(tokens) + 3]),
    ):  # fmt: skip
        found.append(token)
    assert found == [7, 7, 7] and seen[1] == [*tokens, 7]
    assert llm.scores[llm.n_tokens - 1].max() > 0  # the processor had a copy


def test_a_grammar(llm):
    found = b""
    for token in llm.generate(
        llm.tokenize(b"2 + 2 ="), temp=0.0, grammar=llama_cpp.LlamaGrammar.from_string('root ::= " yes" " no"')
    ):
        if token == llm.token_eos() or len(found) > 10:
            break
        found += llm.detokenize([token])
    assert found.startswith(b" yes no")


def test_many_threads_are_answered_meanwhile(llm):
    """The engine never decodes in the private sequence's context, nor the other way round."""
    tokens = llm.tokenize(PROMPT)
    expected = greedy(llm, tokens, 20)
    alone = llm.create_completion("The sea is", max_tokens=12, temperature=0)["choices"][0]["text"]
    answers = []

    def ask():
        answers.append(llm.create_completion("The sea is", max_tokens=12, temperature=0)["choices"][0]["text"])

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    llm._ctx.memory_clear()
    llm.n_tokens = 0
    assert greedy(llm, tokens, 20) == expected
    for thread in threads:
        thread.join()
    assert answers == [alone] * 3


@pytest.mark.parametrize(
    "wrong",
    [lambda llm: llm.eval([10**6]), lambda llm: llm.eval([-1]), lambda llm: llm.eval("text"), lambda llm: llm.eval([1] * 300),
     lambda llm: setattr(llm, "n_tokens", -1), lambda llm: setattr(llm, "n_tokens", 10**6), lambda llm: llm.sample(),
     lambda llm: next(llm.generate([])), lambda llm: llm.sample(temp="hot"), lambda llm: llm._ctx.kv_cache_seq_rm(5, 0, -1),
     lambda llm: llm._batch.set_batch(batch=[1] * 1000, n_past=0, logits_all=True), lambda llm: llm._model.token_get_text(10**6)],
)  # fmt: skip
def test_what_cannot_be(llm, wrong):
    with pytest.raises(LlamaCppError):
        wrong(llm)


def test_the_context_is_full(smollm2):
    with Llama(smollm2, n_ctx=16) as llm:
        n = 0
        with pytest.raises(ContextFullError):
            for _ in llm.generate([1] * 10, temp=0.0):
                n += 1
        assert n == 7  # the last of them is not evaluated


def test_a_closed_model(tiny):
    llm = Llama(tiny, n_ctx=32)
    llm.eval([1, 2])
    context, generator = llm._ctx, llm.generate([1, 2])
    next(generator)
    llm.close()
    llm.close()
    for use in (lambda: llm.eval([1]), lambda: context.n_ctx() and context.ctx, lambda: next(generator), llm.save_state):
        with pytest.raises(ModelClosedError):
            use()


@pytest.mark.offers("Llama._stack", how="same")
def test_the_stack_closes_what_belongs_to_a_model(tiny):
    import contextlib

    closed = []
    with Llama(tiny, n_ctx=32) as llm:
        llm._stack.enter_context(contextlib.closing(type("Thing", (), {"close": lambda self: closed.append("thing")})()))
    assert closed == ["thing"]
    llm = Llama(tiny, n_ctx=32)
    llm._stack.close()
    with pytest.raises(ModelClosedError):
        llm.eval([1])
    llm.close()

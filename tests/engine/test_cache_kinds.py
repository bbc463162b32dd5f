"""Each kind of memory: what is computed together with others, or begins with what was cached, is what it is alone."""

import concurrent.futures

import pytest

from closeness import are_answers, is_answer, skip_where_routes_flip
from llama_cpp.engine import cache_kinds as memory
from llama_cpp.errors import ContextCreationError, ContextFullError
from memory_kinds import CHECKPOINTED, GENERATIVE, answer, cached, load, prompts


@pytest.mark.parametrize(
    "cache", [{"kv_unified": False}, {"kv_unified": True, "n_kv": 1536}, {"kv_unified": True, "n_kv": 768}], ids=str
)
@pytest.mark.parametrize("kind", [*GENERATIVE, "window, short"])
def test_together_and_cached_is_as_alone(model_files, kind, cache):
    """In a cache of each one's own, in a shared one, and in a shared one where room must be made all the time."""
    skip_where_routes_flip(kind)
    asked = prompts(seed=1)
    with load(model_files, kind, n_parallel=1) as llm:
        alone = [(llm.reset(), answer(llm, prompt))[1] for prompt in asked]
        turns = [(llm.reset(), answer(llm, [*p, *a, 5, 6, 7]))[1] for p, a in zip(asked, alone)]
    assert len({tuple(tokens) for tokens in alone}) > len(asked) // 2

    with load(model_files, kind, **cache) as llm, concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert are_answers(llm, asked, [answer(llm, prompt) for prompt in asked], alone), "one after the other"
        assert are_answers(llm, asked, list(pool.map(lambda p: answer(llm, p), asked)), alone), "together"
        again = [[*prompt, *tokens, 5, 6, 7] for prompt, tokens in zip(asked, alone)]
        assert are_answers(llm, again, list(pool.map(lambda p: answer(llm, p), again)), turns), "second turns"
        for prompt, expected in zip(asked, alone):
            answer(llm, prompt[:-20] or [9], 4)
            assert is_answer(llm, prompt, answer(llm, prompt), expected), "after another one that begins so"


@pytest.mark.parametrize("kind", CHECKPOINTED)
def test_a_memory_that_cannot_be_cut_serves_again(model_files, kind):
    with load(model_files, kind) as llm:
        prompt = prompts(seed=2)[0][:1] + [11 + i % 200 for i in range(399)]
        assert cached(llm, prompt) == 0
        assert cached(llm, prompt) >= 395, "the same again"
        first = answer(llm, prompt)
        assert cached(llm, [*prompt, *first, 7, 8]) >= 400, "the next turn"
        assert cached(llm, [*prompt[:100], 5, 6]) == 0, "nobody knew that they would part here"
        assert cached(llm, [*prompt[:100], 7, 8]) == 100
        assert cached(llm, [*prompt[:100], 9]) == 100


def test_what_cannot_be_shifted_says_so(model_files):
    with load(model_files, "own heads") as llm, pytest.raises(ContextFullError, match="cannot be shifted"):
        llm.create_completion([9] * 500, max_tokens=50, context_full="shift", logit_bias={llm.token_eos(): -1e9})


def test_checkpoints_have_a_limit(model_files, monkeypatch):
    with load(model_files, "state") as llm:
        cached(llm, [9] * 100)
        kind = llm.loaded.engine.scheduler.sequences._kind
        size = next(iter(kind._checkpoints.values())).nbytes
        monkeypatch.setattr(memory, "CHECKPOINT_BYTES", int(2.5 * size))
        for i in range(6):
            cached(llm, [20 + i] * 100)
            assert len(kind._checkpoints) <= 2
        monkeypatch.setattr(memory, "CHECKPOINT_BYTES", size - 1)
        cached(llm, [40] * 100)
        assert not kind._checkpoints


def test_a_window_that_forgets_nothing_needs_no_checkpoints(model_files):
    prompt = prompts(seed=2)[0][:1] + [11 + i % 200 for i in range(299)]
    for kind, needed in (("window", False), ("window, short", True)):
        with load(model_files, kind) as llm:
            cached(llm, prompt)
            assert bool(llm.loaded.engine.scheduler.sequences._kind._checkpoints) == needed
            assert cached(llm, [*prompt[:7], 9]) == (0 if needed else 7)


def test_a_stale_checkpoint_would_be_seen(model_files, monkeypatch):
    """The first test must fail when a sequence goes on from what another one left."""
    monkeypatch.setattr(memory.Checkpointed, "_drop_after", lambda self, sequence, n: None)
    with pytest.raises(AssertionError):
        test_together_and_cached_is_as_alone(model_files, "state", {})


def test_an_encoder_generates_nothing(model_files):
    with pytest.raises(ContextCreationError, match="encoder"):
        load(model_files, "encoder")

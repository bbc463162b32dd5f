"""Verifier change how fast an answer comes, and nothing in it."""

import concurrent.futures
import random

import pytest

import tiny_models
from llama_cpp import Llama
from llama_cpp.engine import slots
from llama_cpp.engine.speculative.draft_length import DraftLength
from llama_cpp.errors import ContextFullError, DecodeError, InvalidArgumentError, ModelNotFoundError
from memory_kinds import GENERATIVE, answer, load, prompts


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drafting")
    return {kind: tiny_models.write(kind, folder / f"{number}.gguf") for number, kind in enumerate(tiny_models.KINDS)}


@pytest.fixture(autouse=True)
def drafts_of_any_length(monkeypatch):
    """Where the clock would decide, chance does."""
    numbers = random.Random(0)
    monkeypatch.setattr(DraftLength, "number", lambda self, n_sequences: numbers.randrange(7))


#: The models' answers are random texts; of three letters, so that some of it comes again.
FEW_TOKENS = dict.fromkeys((3 + ord("x"), 3 + ord("y"), 3 + ord("z")), 30.0)


def repetitive(seed):
    """Prompts in which what came before comes again."""
    numbers = random.Random(seed)
    phrases = [numbers.choices(range(3, 270), k=8) for _ in range(3)]
    return [
        [token for phrase in numbers.choices(phrases, k=6) for token in phrase] + numbers.choices(range(3, 270), k=i % 3)
        for i in range(8)
    ]


def statistics(llm):
    return llm.loaded.engine.statistics


#: States that the engine cannot take back.
WITHOUT = ["state", "rwkv", "hybrid"]

CASES = [
    *((kind, source) for kind in [*GENERATIVE, "window, short"] if kind not in WITHOUT for source in ("itself", "prompt-lookup")),
    ("dense", "another"),
    ("own heads", "mtp"),
]


@pytest.mark.cpu
@pytest.mark.parametrize("kind, source", CASES)
def test_the_answers_are_the_same(models, kind, source, tmp_path):
    check(models, kind, source, tmp_path)


def check(models, kind, source, tmp_path):
    asked = [*repetitive(1), *prompts(seed=3, n=4)]
    with load(models, kind) as llm:
        alone = [answer(llm, prompt, n=24, logit_bias=FEW_TOKENS) for prompt in asked]
    path = models[kind.partition(",")[0]]
    draft = {"itself": path, "another": tmp_path / "draft.gguf"}.get(source, source)
    if source == "another":
        tiny_models.write(kind, draft, seed=1)

    with load(models, kind, draft_model=draft) as llm, concurrent.futures.ThreadPoolExecutor(6) as pool:

        def continued(prompt):
            found = llm.create_completion(prompt, max_tokens=24, temperature=0, logit_bias=FEW_TOKENS)
            return found["choices"][0]["text"]

        texts = [llm.detokenize(tokens).decode() for tokens in alone]
        assert list(map(continued, asked)) == texts, "one after the other"
        assert list(pool.map(continued, asked)) == texts, "together, with what the first ones left"
        found = statistics(llm)
        assert source == "prompt-lookup" or found.n_drafted > 20
        assert found.n_accepted <= found.n_drafted


@pytest.mark.cpu
def test_a_model_drafts_for_itself(models):
    with load(models, "dense", draft_model=models["dense"]) as llm:
        for prompt in prompts(seed=4):
            llm.create_completion(prompt, max_tokens=24, temperature=0)
        assert statistics(llm).n_accepted == statistics(llm).n_drafted > 100


def test_a_draft_reads_a_long_prompt_bit_by_bit(models):
    """Nobody waits for it: there is no draft until it has read what came before, a batch at a time."""
    with load(models, "dense", draft_model=models["dense"], n_batch=64) as llm:
        engine = llm.loaded.engine
        numbers, draft = [], engine.scheduler.verifier._drafter._draft_for

        def counted(wanting, n):
            drafts = draft(wanting, n)
            numbers.append(len(drafts[0]))
            return drafts

        engine.scheduler.verifier._drafter._draft_for = counted
        prompt = random.Random(2).choices(range(3, 270), k=300)
        llm.create_completion(prompt, max_tokens=60, temperature=0, logit_bias={llm.token_eos(): -1e9})
    assert numbers[:4] == [0] * 4 and any(numbers), "299 tokens in batches of 64"


def test_what_came_before_is_a_draft(models):
    """A model that can only repeat itself."""
    with load(models, "dense", draft_model="prompt-lookup") as llm:
        llm.create_completion([9, 8, 7] * 30, max_tokens=200, temperature=0, grammar='root ::= "abcdefghijklmnopqrstuvwxyz" root')
        assert statistics(llm).n_accepted > 20


def test_a_draft_accepted_unchecked_would_be_seen(models, monkeypatch, tmp_path):
    def believe(one):
        if not (one.n_ahead and one.draft and one.n_pending == 1):
            return False
        one.request.tokens[-1] = one.request.generation.tokens[-1] = one.draft.pop(0)
        one.n_held += 1
        one.n_ahead -= 1
        return True

    monkeypatch.setattr(slots.Slot, "accept_draft", believe)
    with pytest.raises(AssertionError):
        check(models, "dense", "another", tmp_path)


def test_what_was_drafted_wrong_and_stays_would_be_seen(models, monkeypatch, tmp_path):
    monkeypatch.setattr("llama_cpp.engine.sequence_pool.PerSequencePool.take_back", lambda self, sequence, n: True)
    with pytest.raises((AssertionError, DecodeError)):
        check(models, "dense", "another", tmp_path)


@pytest.mark.cpu
def test_samplers_grammars_and_the_like_go_on(llm, smollm2, run_python):
    """The same requests to the same model, without and with drafts by itself."""
    from llama_cpp import Llama

    text = "one two three, one two three, one two"
    requests = [
        {"temperature": 1.2, "seed": 7, "repeat_penalty": 1.1},
        {"temperature": 0, "grammar": 'root ::= " "? ("three" | "two")+ [0-9]*', "max_tokens": 12},
        {"temperature": 0, "logprobs": 2},
        {"temperature": 0, "stop": ["two"]},
        {"temperature": 0.9, "seed": 3, "mirostat_mode": 2},
        {"temperature": 0, "logits_processor": lambda tokens, logits: logits},
        {"temperature": 0, "speculate": False},
    ]

    def run(model, arguments):
        return model.create_completion(text, **{"max_tokens": 24, **arguments})["choices"][0]

    expected = [run(llm, arguments) for arguments in requests]
    with Llama(smollm2, n_ctx=512, n_parallel=4, draft_model=smollm2) as drafting:
        assert [run(drafting, arguments) for arguments in requests] == expected
        with concurrent.futures.ThreadPoolExecutor(7) as pool:
            assert list(pool.map(lambda arguments: run(drafting, arguments), requests)) == expected
        assert statistics(drafting).n_accepted > 20


def test_a_request_can_do_without(models):
    with load(models, "dense", draft_model="prompt-lookup") as llm:
        for prompt in repetitive(2):
            llm.create_completion(prompt, max_tokens=20, temperature=0, speculate=False)
        assert statistics(llm).n_drafted == 0


def test_drafts_end_with_the_context(models):
    bias = {"logit_bias": {2: -1e9}, "temperature": 0, "max_tokens": None}
    prompt = [9, 10, 11, 12] * 100
    with load(models, "dense", draft_model=models["dense"]) as llm:
        cut = llm.create_completion(prompt, **bias)
        assert cut["usage"]["total_tokens"] == 512
        with pytest.raises(ContextFullError):
            llm.create_completion(prompt, context_full="error", **bias)
        shifted = llm.create_completion(prompt, context_full="shift", **{**bias, "max_tokens": 300})
        assert shifted["usage"]["completion_tokens"] == 300
        some = llm.create_completion(prompt[:50], **{**bias, "max_tokens": 5})
        assert some["usage"]["completion_tokens"] == 5


def test_what_cannot_draft_is_refused(models, tmp_path):
    with pytest.raises(ModelNotFoundError):
        load(models, "dense", draft_model=tmp_path / "missing.gguf")
    with pytest.raises(InvalidArgumentError, match="no heads"):
        load(models, "dense", draft_model="mtp")
    for kind in WITHOUT:
        with pytest.raises(InvalidArgumentError, match="taken back"):
            load(models, kind, draft_model="prompt-lookup")
    with pytest.raises(InvalidArgumentError, match="is no draft model"):
        load(models, "dense", draft_model=models["encoder"])
    with pytest.raises(InvalidArgumentError, match="draft_model"):
        load(models, "dense", draft_model=object())
    for n in (0, 65, True):
        with pytest.raises(InvalidArgumentError, match="n_draft"):
            load(models, "dense", draft_model="prompt-lookup", n_draft=n)


def test_only_what_pays_is_drafted(monkeypatch):
    monkeypatch.undo()

    def run(pace, seconds, right, n):
        """Batches on a clock of our own, with drafts of which each is right with a probability; how many were chosen."""
        numbers, chosen = random.Random(0), []
        for _ in range(n):
            chosen.append(pace.number(1))
            if pace.wants_probe():
                pace.probed(sum(numbers.random() < right for _ in range(2)) / 2)
            n_accepted = 0
            while n_accepted < chosen[-1] and numbers.random() < right:
                n_accepted += 1
            pace.note(1, 1 + n_accepted, seconds(chosen[-1]), 8)
        return chosen

    cheap, dear = (lambda n: 1.0 + 0.01 * n), (lambda n: 1.0 + n)
    assert run(DraftLength(), cheap, 1.0, 300)[-100:] == [8] * 100, "drafts cost little and are right"
    assert run(DraftLength(), cheap, 0.5, 2000)[-1] >= 2, "and where every other one is"
    never = run(DraftLength(), cheap, 0.0, 2000)
    assert never == [0] * 2000, "drafts that are never right are only looked at"
    slow = run(DraftLength(), dear, 0.9, 2000)
    assert 0 < 2000 - slow.count(0) < 200 and set(slow) == {0, 2}, "they cost more than they bring; now and then it tries"
    pace = DraftLength()
    run(pace, dear, 0.9, 1000)
    assert run(pace, cheap, 0.9, 3000)[-1] == 8, "and finds that it has changed"
    assert run(pace, cheap, 0.0, 1000)[-1] == 0, "back, too"
    run(pace, cheap, 1.0, 3000)
    assert pace.number(1) == 8
    assert pace.number(32) == 0, "another load is another question"


@pytest.mark.parametrize(("kind", "n_ubatch"), [("own heads", 1), ("short convolution", 7)])
def test_batches_smaller_than_what_may_be_taken_back(models, kind, n_ubatch):
    """The engine asserts that they are not."""
    arguments = {"n_ctx": 256, "n_batch": n_ubatch, "n_ubatch": n_ubatch, "n_parallel": 2, "n_threads": 1, "n_threads_batch": 1}
    with Llama(models[kind], draft_model="prompt-lookup", **arguments) as llm:
        made = llm.create_completion([5, 6, 7, 8] * 9, max_tokens=12, logit_bias={llm.token_eos(): -1e9})
        assert made["usage"]["completion_tokens"] == 12

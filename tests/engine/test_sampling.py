"""Looking at the best tokens only gives what looking at the whole vocabulary gives."""

from __future__ import annotations

import dataclasses
import math
import random
import re

import numpy as np
import pytest

from llama_cpp.capi.llama_common_c import LLAMA_COMMON_NEEDS_ALL
from llama_cpp.engine.decoder import Decoder, logprobs_of, sample_from
from llama_cpp.engine.sampler_chain import Sampler, _n_needed
from llama_cpp.engine.sampling_params import SamplingParams
from llama_cpp.errors import InvalidArgumentError, NativeError
from llama_cpp.models.model import Model

N_CTX = 512


@pytest.fixture(scope="module")
def model(smollm2):
    model = Model(smollm2, params={})
    yield model
    model.close()


@pytest.fixture(scope="module")
def decoder(model):
    params = {"n_ctx": N_CTX, "n_batch": 64, "n_ubatch": 64, "n_seq_max": 1, "n_threads": 1, "n_threads_batch": 1}
    decoder = Decoder(model, params, 1)
    yield decoder
    decoder.close()


def decode(decoder, tokens, start=0):
    n = len(tokens)
    decoder.tokens[:n], decoder.positions[:n], decoder.sequences[:n] = tokens, range(start, start + n), [0] * n
    decoder.outputs[:n] = [0] * (n - 1) + [1]
    assert decoder.decode(n) == 0


def sample(decoder, sampler):
    decoder.samplers[0], decoder.rows[0] = sampler.pointer, 0
    decoder.sample(1)
    assert decoder.results[0] == 0
    return int(decoder.sampled[0])


def random_params(numbers, n_vocab):
    bias = {numbers.randrange(n_vocab): numbers.choice([-math.inf, -5.0, 3.0]) for _ in range(numbers.choice([0, 0, 3]))}
    return SamplingParams(
        temperature=numbers.choice([0, 0.3, 0.8, 1.5, -1]),
        top_k=numbers.choice([0, 1, 5, 40, 100, 1000]),
        top_p=numbers.choice([1.0, 0.95, 0.5]),
        min_p=numbers.choice([0.0, 0.05]),
        typical_p=numbers.choice([1.0, 0.9]),
        repeat_penalty=numbers.choice([1.0, 1.3, 0.8]),
        frequency_penalty=numbers.choice([0.0, 0.5]),
        presence_penalty=numbers.choice([0.0, 0.5, -0.5]),
        top_n_sigma=numbers.choice([-1.0, -1.0, 1.5]),
        xtc_probability=numbers.choice([0.0, 0.0, 0.5]),
        dynatemp_range=numbers.choice([0.0, 0.3]),
        dry_multiplier=numbers.choice([0.0, 0.8]),
        mirostat_mode=numbers.choice([0, 0, 0, 1, 2]),
        adaptive_target=numbers.choice([-1.0, -1.0, 0.3]),
        logit_bias=bias,
        seed=numbers.randrange(1 << 32),
    )


@pytest.mark.parametrize("seed", range(60))
def test_the_best_tokens_decide_as_the_whole_vocabulary_does(model, decoder, seed):
    params = random_params(random.Random(seed), model.n_vocab)
    prompt = model.tokenize(b"Once upon a time there was a time there was a", add_special=True, parse_special=False)
    quick, whole = Sampler(model, params, N_CTX), Sampler(model, params, N_CTX)
    for sampler in (quick, whole):
        sampler.accept_prompt(prompt)
    decoder.forget(0)
    decode(decoder, prompt)
    for position in range(len(prompt), len(prompt) + 6):
        expected = sample_from(decoder.logits(0), whole.pointer)
        token = sample(decoder, quick)
        assert token == expected
        decode(decoder, [token], position)


def test_what_needs_the_whole_vocabulary_says_so():
    default = SamplingParams()
    assert _n_needed(default) == 40
    assert _n_needed(dataclasses.replace(default, temperature=0)) == 1
    for name, value in {
        "top_k": 0, "mirostat_mode": 2, "top_n_sigma": 1.0, "temperature": -1.0, "repeat_penalty": 0.9,
        "frequency_penalty": -0.1, "presence_penalty": -0.1, "logit_bias": {5: 1.0},
    }.items():  # fmt: skip
        assert _n_needed(dataclasses.replace(default, **{name: value})) == 0, name


def test_forbidding_the_best_tokens_leaves_the_next(model, decoder):
    """More of them than are looked at in a first attempt."""
    decoder.forget(0)
    decode(decoder, model.tokenize(b"The capital of France is", add_special=True, parse_special=False))
    order = np.argsort(-decoder.logits(0), kind="stable")
    for n in (1, 30, 64, 65, 300, 5000):
        params = SamplingParams(temperature=0, logit_bias={int(token): -math.inf for token in order[:n]})
        assert sample(decoder, Sampler(model, params, N_CTX)) == order[n]


def test_a_grammar_is_asked_about_the_token_that_was_chosen(model, decoder):
    decoder.forget(0)
    decode(decoder, model.tokenize(b"The capital of France is", add_special=True, parse_special=False))
    free = sample(decoder, Sampler(model, SamplingParams(temperature=0), N_CTX))
    allowing = Sampler(model, SamplingParams(temperature=0, grammar={"grammar": "root ::= [ a-zA-Z]+"}), N_CTX)
    assert sample(decoder, allowing) == free
    forbidding = Sampler(model, SamplingParams(temperature=0, grammar={"grammar": "root ::= [0-9]+"}), N_CTX)
    assert model.token_to_piece(sample(decoder, forbidding)).isdigit()


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize("wanted", ["[ a-zA-Z]", "[ a-m]", "[0-9]", "[A-D]"])
def test_what_a_grammar_leaves_of_the_best_tokens_decides_where_that_is_enough(model, decoder, wanted, temperature):
    """As it does of the whole vocabulary; and where it is not, that is said."""
    decoder.forget(0)
    decode(decoder, model.tokenize(b"My favourite numbers and letters are", add_special=True, parse_special=False))
    logits = decoder.logits(0)
    allowed = np.array([bool(re.fullmatch(wanted.encode() + b"+", model.token_to_piece(i))) for i in range(model.n_vocab)])
    masked = np.where(allowed, logits, -np.float32(np.inf))
    n_needed = 40 if temperature else 1
    enough = allowed[np.argsort(-logits)[: n_needed + 128]].sum() >= n_needed
    n_forbidden = n_decided = 0
    for seed in range(40):
        params = SamplingParams(temperature=temperature, top_k=40, top_p=1.0, min_p=0.0, seed=seed)
        free = Sampler(model, params, N_CTX)
        expected = sample_from(logits, free.pointer)
        if not allowed[expected]:
            n_forbidden += 1
            expected = sample_from(masked, free.pointer)  # the same generator's second number
        for only_best in (True, False):
            asked = Sampler(model, dataclasses.replace(params, grammar={"grammar": f"root ::= {wanted}+"}), N_CTX)
            decoder.samplers[0], decoder.rows[0] = asked.pointer, 0
            decoder.sample(1, only_best=only_best)
            if decoder.results[0] != LLAMA_COMMON_NEEDS_ALL:
                assert (decoder.results[0], decoder.sampled[0]) == (0, expected)
                n_decided += only_best
            else:
                assert only_best
    assert n_forbidden > 0
    assert n_decided == 40 if enough else n_decided < 40


def test_logits_that_are_not_numbers_are_an_error(model, decoder):
    with pytest.raises(NativeError, match="not numbers"):
        sample_from(np.full(model.n_vocab, np.nan, np.float32), Sampler(model, SamplingParams(), N_CTX).pointer)


@pytest.mark.parametrize("one", [
    {}, {"min_p": 0.0}, {"top_k": 0, "top_p": 1.0, "min_p": 0.0}, {"top_k": 200}, {"typical_p": 0.9}, {"mirostat_mode": 1},
    {"mirostat_mode": 2}, {"top_n_sigma": 1.0}, {"adaptive_target": 0.3}, {"temperature": 0}, {"repeat_penalty": 1.3},
])  # fmt: skip
def test_a_token_that_a_function_made_infinite_is_taken(model, decoder, one):
    decoder.forget(0)
    decode(decoder, model.tokenize(b"Once upon a time", add_special=True, parse_special=False))
    logits = decoder.logits(0)
    logits[77] = np.inf
    for seed in range(5):
        assert sample_from(logits, Sampler(model, SamplingParams(**one, seed=seed), N_CTX).pointer) == 77


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-31, 1e-29, 1e-9])
def test_next_to_no_temperature_takes_the_most_probable(model, decoder, temperature):
    decoder.forget(0)
    decode(decoder, model.tokenize(b"Once upon a time", add_special=True, parse_special=False))
    best = int(decoder.logits(0).argmax())
    for one in ({}, {"top_k": 0}, {"dynatemp_range": 2 * temperature, "dynatemp_exponent": 20.0}):
        assert sample(decoder, Sampler(model, SamplingParams(temperature=temperature, seed=1, **one), N_CTX)) == best


def test_log_probabilities_of_what_are_no_numbers_are_an_error():
    for n in (0, 1, 3):
        logits = np.full(49152, np.nan, np.float32)
        logits[:n] = 1
        with pytest.raises(NativeError, match="not numbers"):
            logprobs_of(logits, 0, 5)


def test_logprobs_are_those_of_the_logits(model, decoder):
    decoder.forget(0)
    decode(decoder, model.tokenize(b"Water boils at", add_special=True, parse_special=False))
    logits = decoder.logits(0)
    expected = logits.astype(np.float64) - logits.max()
    expected -= np.log(np.exp(expected).sum())
    order = np.argsort(-expected, kind="stable")
    for n in (0, 1, 20, 1000):
        value, top = logprobs_of(logits, 17, n)
        assert value == pytest.approx(expected[17], abs=1e-4)
        assert [token for token, _ in top] == order[:n].tolist()
        np.testing.assert_allclose([p for _, p in top], expected[order[:n]], atol=1e-4)
    copy = decoder.logits_buffer()
    decoder.samplers[0], decoder.rows[0] = (sampler := Sampler(model, SamplingParams(temperature=0), N_CTX)).pointer, 0
    decoder.sample(1, logits=[copy])
    np.testing.assert_array_equal(copy, logits)
    assert decoder.sampled[0] == order[0] and sampler.pointer
    with pytest.raises(InvalidArgumentError):
        logprobs_of(logits, model.n_vocab, 1)
    with pytest.raises(InvalidArgumentError):
        decoder.logits(1)


@pytest.mark.parametrize("name, value", [
    ("xtc_probability", 1.5), ("dynatemp_range", -1.0), ("dry_multiplier", -0.1), ("dry_penalty_last_n", -2),
    ("adaptive_decay", 2.0), ("top_n_sigma", math.nan),
])  # fmt: skip
def test_parameters_the_samplers_would_misread_are_refused(name, value):
    with pytest.raises(InvalidArgumentError, match=name):
        SamplingParams(**{name: value}).validate(100)

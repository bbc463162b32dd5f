"""How near two ways of computing must come: on a CPU they give the same bits, on a GPU the same but for rounding."""

from __future__ import annotations

import numpy as np
import pytest

from llama_cpp.capi.backends import has_gpu

#: What logits may differ by on a GPU, where products are of 8 bits; they range over 10 to 40.
LOGITS = 1.0


def gap(llm, before, token, logit_bias):
    """By how much the best logit behind ``before`` exceeds that of ``token``."""
    seen = []
    llm.create_completion(before, max_tokens=1, logits_processor=lambda _, logits: (seen.append(logits), logits)[1])
    logits = seen[0].copy()
    for other, bias in logit_bias.items():
        logits[other] += bias
    return float(logits.max() - logits[token])


def skip_where_routes_flip(kind):
    """Experts are chosen by numbers that are nearly equal in a random model: on a GPU rounding takes a token to others."""
    if has_gpu() and kind in ("experts", "latent"):
        pytest.skip("experts are chosen by rounding; test_repeatable.py has them")


def is_answer(llm, prompt, found, expected, logit_bias=None):
    """Whether tokens are the answer at temperature 0.

    On a CPU those that are expected. On a GPU each one nearly the most probable behind those before it: once two are nearly as
    probable, all that follows may differ.

    Args:
        logit_bias: what was asked for, by token.
    """
    found, expected = list(found), list(expected)
    if found == expected or not has_gpu():
        return found == expected
    bias = {llm.token_eos(): -1e9} if logit_bias is None else logit_bias
    return all(gap(llm, [*prompt, *found[:i]], token, bias) < LOGITS for i, token in enumerate(found))


def are_answers(llm, prompts, found, expected, logit_bias=None):
    """As :func:`is_answer`, of several."""
    return len(found) == len(prompts) and all(
        is_answer(llm, *one, logit_bias=logit_bias) for one in zip(prompts, found, expected)
    )


def are_vectors(found, expected):
    """Whether vectors are those of the same texts: on a CPU to the last bit, on a GPU to a tenth of their length."""
    if not has_gpu():
        return found == expected
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(found, expected)]
    if len(found) != len(expected) or any(a.shape != b.shape for a, b in pairs):
        return False
    apart = max(float(np.linalg.norm(a - b, axis=-1).max() / np.linalg.norm(b, axis=-1).max()) for a, b in pairs)
    if apart > 0.1:
        print(f"vectors differ by {apart:.2f} of their length")
    return apart <= 0.1

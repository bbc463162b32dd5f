"""What single architectures demand of their hyperparameters, where the engine asserts or divides by zero.

Keys are named without the architecture in front; a key that is missing counts as 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

Numbers = Callable[[str], float]


class Rule(NamedTuple):
    """``holds`` gets a function from a key to its number; ``text`` says what must be true."""

    text: str
    holds: Callable[[Numbers], bool]


def _positive(key: str) -> Rule:
    return Rule(f"{key} must be greater than 0", lambda n: n(key) > 0)


def _equal_or_zero(key: str, other: str) -> Rule:
    return Rule(f"{key} must be 0 or equal to {other}", lambda n: n(key) in (0, n(other)))


def _head_size(n: Numbers, key: str) -> float:
    """The engine's value of attention.key_length or value_length."""
    heads = n("attention.head_count")
    return (n(key) or n("embedding_length") // heads) if heads else 0


def _rope_smaller_than_head(n: Numbers) -> bool:
    head = _head_size(n, "attention.key_length")
    mla = n("attention.key_length_mla") if n("attention.value_length_mla") else 0
    rope = (n("rope.dimension_count") or head) if head else 0
    return rope < (mla or head)


def _same_head_sizes(n: Numbers) -> bool:
    return _head_size(n, "attention.key_length") == _head_size(n, "attention.value_length")


def _hrm_layers(n: Numbers) -> bool:
    slots = n("hrm.layers_per_stack") * n("hrm.h_cycles") * (n("hrm.l_cycles") + 1)
    return n("block_count") - n("nextn_predict_layers") == slots


_HEADS = _positive("attention.head_count")
_EXPERTS = _positive("expert_count")
_TWICE = Rule("ssm.inner_size must be twice embedding_length", lambda n: n("ssm.inner_size") == 2 * n("embedding_length"))
_ROPE_PART = Rule("rope.dimension_count must be less than the head size", _rope_smaller_than_head)

_SAME_HEADS = Rule("attention.key_length must equal attention.value_length", _same_head_sizes)

RULES: dict[str, tuple[Rule, ...]] = {
    "gemma2": (_HEADS,),
    "gemma3": (_HEADS,),
    "olmo2": (_HEADS,),
    "phimoe": (_HEADS,),
    "bailingmoe2": (_EXPERTS,),
    "glm4moe": (_EXPERTS,),
    "llada-moe": (_EXPERTS,),
    "smallthinker": (_EXPERTS,),
    "grovemoe": (_EXPERTS, _positive("experts_per_group")),
    "jamba": (_TWICE,),
    "granitehybrid": (_TWICE,),
    "gemma-embedding": (
        _equal_or_zero("dense_2_feat_in", "embedding_length"),
        _equal_or_zero("dense_3_feat_out", "embedding_length"),
    ),
    "lfm2": (_SAME_HEADS,),
    "lfm2moe": (_SAME_HEADS,),
    "bailingmoe3": (
        _positive("kda.safe_gate"),
        Rule("kda.gate_lower_bound must be negative", lambda n: n("kda.gate_lower_bound") < 0),
    ),
    "deepseek2": (_ROPE_PART,),
    "mistral4": (_ROPE_PART,),
    "hy_v4": (_positive("attention.key_length_mla"), _positive("attention.value_length_mla"), _ROPE_PART),
    "hrm_text": (
        _positive("hrm.layers_per_stack"),
        _positive("hrm.h_cycles"),
        _positive("hrm.l_cycles"),
        Rule("layers_per_stack * h_cycles * (l_cycles + 1) of hrm must be the number of layers", _hrm_layers),
    ),
    "minimax-m3": (_positive("attention.indexer.block_size"),),
    "glm5-next": (
        Rule("attention.indexer.kpool must be greater than 1", lambda n: n("attention.indexer.kpool") > 1),
        Rule(
            "attention.indexer.top_k must be a multiple of attention.indexer.kpool",
            lambda n: n("attention.indexer.top_k") % n("attention.indexer.kpool") == 0,
        ),
        Rule("hyper_connection.count must be 4", lambda n: n("hyper_connection.count") == 4),
    ),
    "nanbeige": (Rule("block_count * num_loops must be at most 512", lambda n: n("block_count") * n("num_loops") <= 512),),
}


def broken_rule(architecture: str, numbers: Numbers) -> str:
    """The first rule of ``architecture`` that does not hold, in words; empty if all do."""
    for rule in RULES.get(architecture, ()):
        if not rule.holds(numbers):
            return rule.text
    return ""

"""What one request asks of the sampler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InvalidArgumentError
from ..values import integer, number, refused

#: Ways to draft what follows that need no other model: to look for the last tokens in what came before (Saxena 2023), and
#: the model's own extra heads.
PROMPT_LOOKUP, OWN_HEADS = "prompt-lookup", "mtp"

_INT32_MAX = 0x7FFFFFFF
_FLOAT_MAX = 3.4028234e38  # of the engine's numbers, which have 32 bits
_INTEGERS = ("top_k", "penalty_last_n", "dry_allowed_length", "dry_penalty_last_n", "mirostat_mode")
_NUMBERS = (
    "temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "frequency_penalty", "presence_penalty", "mirostat_tau",
    "mirostat_eta", "top_n_sigma", "xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exponent", "dry_multiplier",
    "dry_base", "adaptive_target", "adaptive_decay",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """How the next token is chosen, under the names llama.cpp gives these parameters.

    Attributes:
        temperature: 0 takes the most probable token; negative samples from the unchanged distribution.
        top_k: keep the k most probable tokens; 0 or less keeps all.
        top_p: keep the smallest set of tokens whose probabilities add up to p (Holtzman et al. 2019).
        min_p: keep tokens at least p times as probable as the best one.
        typical_p: keep tokens of typical information content (Meister et al. 2022); 1 keeps all.
        repeat_penalty: divides the logits of tokens among the last ``penalty_last_n``; 1 is none.
        frequency_penalty, presence_penalty: subtracted from logits, per occurrence and once.
        top_n_sigma: keep tokens whose logit is within n standard deviations of the greatest (Tang et al. 2024); 0 or
            less is off.
        xtc_probability, xtc_threshold: how often all tokens at least ``xtc_threshold`` probable but the last of them
            are removed.
        dynatemp_range, dynatemp_exponent: the temperature moves by up to the range with the distribution's entropy
            (Zhu et al. 2024).
        dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n, dry_sequence_breakers: penalties that grow with
            the length of a repetition ("don't repeat yourself"); a multiplier of 0 is off.
        adaptive_target, adaptive_decay: choose tokens near this probability (adaptive-p); a negative target is off.
        mirostat_mode: 0 off, 1 or 2; replaces the truncating samplers (Basu et al. 2020).
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1


@dataclass(frozen=True, kw_only=True)
class SamplingParams(SamplerOptions):
    """Parameters of one request's sampler chain.

    Attributes:
        penalty_last_n: how many tokens back the penalties look; -1 is the whole context.
        logit_bias: added to the logits of tokens; ``-inf`` forbids one.
        seed: for the random choice; None takes a random one.
        grammar: what the answer must follow, as ``llama_common_grammar_init()`` reads it: ``{"grammar": GBNF}`` with,
            for a chat format's own, its triggers and generation prompt; None is no grammar.
        thinking: the tags around what the model thinks, as ``llama_common_thinking_init()`` reads them; None where it does not.
        reasoning_budget_tokens: tokens that it may think; None is no limit. reasoning_budget_message: written after those.
    """

    penalty_last_n: int = 64
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    grammar: Mapping[str, Any] | None = None
    thinking: Mapping[str, Any] | None = None
    reasoning_budget_tokens: int | None = None
    reasoning_budget_message: str = ""

    @staticmethod
    def checked(given: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters by name as Python's own values; a caller may give numpy's numbers as well.

        Raises:
            InvalidArgumentError: one of another kind.
        """
        read: dict[str, Any] = {}
        for name, value in given.items():
            if name in _INTEGERS:
                value = integer(name, value, -_INT32_MAX - 1, _INT32_MAX)
            elif name in _NUMBERS:
                value = number(name, value)
            elif name == "dry_sequence_breakers":
                if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, str) for one in value):
                    raise refused(name, value, "a list of str")
                if any("\0" in one for one in value):
                    raise refused(name, value, "a list of str", "None of them can have a NUL character.")
            read[name] = value
        return read

    def validate(self, n_vocab: int) -> None:
        """Raises InvalidArgumentError for a value the samplers would misread or crash on."""
        for name in _NUMBERS:
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not abs(value) <= _FLOAT_MAX:
                raise refused(name, value, "a finite number")
        for name in ("top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold", "adaptive_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidArgumentError(f"{name}={getattr(self, name)} is not a probability (0 to 1).")
        if self.repeat_penalty <= 0:
            raise InvalidArgumentError(f"repeat_penalty={self.repeat_penalty} must be positive.", remedy="1.0 means no penalty.")
        if self.mirostat_mode not in (0, 1, 2):
            raise InvalidArgumentError(f"mirostat_mode={self.mirostat_mode} does not exist.", remedy="Use 0, 1 or 2.")
        for name in ("penalty_last_n", "dry_penalty_last_n"):
            if getattr(self, name) < -1:
                raise InvalidArgumentError(f"{name}={getattr(self, name)}.", remedy="-1 is the whole context.")
        for name in ("dynatemp_range", "dry_multiplier", "dry_allowed_length"):
            if getattr(self, name) < 0:
                raise InvalidArgumentError(f"{name}={getattr(self, name)} must not be negative.")
        for token, bias in self.logit_bias.items():
            if not 0 <= token < n_vocab:
                raise InvalidArgumentError(
                    f"logit_bias names token {token}.", remedy=f"This model's tokens run from 0 to {n_vocab - 1}."
                )
            if math.isnan(bias) or bias > _FLOAT_MAX:
                raise InvalidArgumentError(f"logit_bias[{token}]={bias} is not a number a logit can be moved by.")

"""What one request asks of the sampler."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Mapping

from ..errors import InvalidArgumentError


@dataclass(frozen=True)
class SamplingParams:
    """Parameters of one request's sampler chain, under the names llama.cpp gives them.

    Attributes:
        temperature: 0 takes the most probable token; negative samples from the unchanged distribution.
        top_k: keep the k most probable tokens; 0 or less keeps all.
        top_p: keep the smallest set of tokens whose probabilities add up to p (Holtzman et al. 2019).
        min_p: keep tokens at least p times as probable as the best one.
        typical_p: keep tokens of typical information content (Meister et al. 2022); 1 keeps all.
        repeat_penalty: divides the logits of tokens among the last ``penalty_last_n``; 1 is none.
        frequency_penalty, presence_penalty: subtracted from logits, per occurrence and once.
        penalty_last_n: how many tokens back the penalties look; -1 is the whole context.
        mirostat_mode: 0 off, 1 or 2; replaces the truncating samplers (Basu et al. 2020).
        logit_bias: added to the logits of tokens; ``-inf`` forbids one.
        seed: for the random choice; None takes a random one.
        grammar: what the answer must follow, as ``llama_common_grammar_init()`` reads it: ``{"grammar": GBNF}`` with,
            for a chat format's own, its triggers and generation prompt; None is no grammar.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    grammar: Mapping[str, Any] | None = None

    def validate(self, n_vocab: int) -> None:
        """Raises InvalidArgumentError for a value the samplers would misread or crash on."""
        for name in ("temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "frequency_penalty",
                     "presence_penalty", "mirostat_tau", "mirostat_eta"):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise InvalidArgumentError(f"{name}={value!r} is not a finite number.")
        for name in ("top_p", "min_p", "typical_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidArgumentError(f"{name}={getattr(self, name)} is not a probability (0 to 1).")
        if self.repeat_penalty <= 0:
            raise InvalidArgumentError(
                f"repeat_penalty={self.repeat_penalty} must be positive.", remedy="1.0 means no penalty."
            )
        if self.mirostat_mode not in (0, 1, 2):
            raise InvalidArgumentError(f"mirostat_mode={self.mirostat_mode} does not exist.", remedy="Use 0, 1 or 2.")
        if self.penalty_last_n < -1:
            raise InvalidArgumentError(f"penalty_last_n={self.penalty_last_n}.", remedy="-1 is the whole context.")
        for token, bias in self.logit_bias.items():
            if not 0 <= token < n_vocab:
                raise InvalidArgumentError(
                    f"logit_bias names token {token}.", remedy=f"This model's tokens run from 0 to {n_vocab - 1}."
                )
            if math.isnan(bias) or bias == math.inf:
                raise InvalidArgumentError(f"logit_bias[{token}]={bias} is not a number a logit can be moved by.")

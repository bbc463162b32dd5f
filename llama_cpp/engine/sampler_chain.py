"""A request's sampler, made of llama.cpp's samplers in the order that llama.cpp's own tools use."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..capi import llama
from ..capi import llama_common_c as native
from ..capi.handle import Uncopyable
from ..capi.interrupts import DeferredInterrupts
from ..capi.status import call
from ..errors import InvalidArgumentError
from ..limits import Limits
from ..models.model import Model
from .sampling_params import SamplingParams

_SEED_MASK = 0xFFFFFFFF


class Sampler(Uncopyable):
    """Owns a ``llama_common_sampler``: what changes logits, a grammar, and what truncates and chooses.

    Attributes:
        pointer: the native object.
        has_grammar, has_bias: what can leave no token to choose from; a limit of what is thought counts as a grammar.
    """

    def __init__(self, model: Model, params: SamplingParams, n_ctx: int, limits: Limits = Limits()) -> None:
        params.validate(model.n_vocab)
        self._model = model
        self._n_ctx = n_ctx
        limits_thinking = params.thinking is not None and (
            params.reasoning_budget_tokens is not None or bool(params.grammar and params.grammar.get("grammar_lazy"))
        )
        self.has_grammar, self.has_bias = bool(params.grammar) or limits_thinking, bool(params.logit_bias)
        self.pointer = native.llama_common_sampler_p_ctypes()
        with model.in_use(), DeferredInterrupts() as interrupts:
            before, after = _Chain(), _Chain()
            self._penalty_window = 0
            self._change(before, params)
            self._truncate_and_choose(after, params)
            grammar = self._grammar(params.grammar, limits.native(interrupts)) if params.grammar else None
            if limits_thinking:
                grammar = self._thinking(params, grammar)
            call(
                native.llama_common_sampler_init,
                before.release() if before else None,
                grammar,
                after.release(),
                _n_needed(params),
                ctypes.byref(limits.native(interrupts)),
                ctypes.byref(self.pointer),
            )

    def close(self) -> None:
        pointer, self.pointer = self.pointer, native.llama_common_sampler_p_ctypes()
        if pointer:
            native.llama_common_sampler_free(pointer)

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self.close()

    def accept_prompt(self, tokens: Sequence[int]) -> None:
        """Lets the penalties see the end of the prompt."""
        if self._penalty_window:
            tokens = tokens[-self._penalty_window :]
            call(native.llama_common_sampler_accept, self.pointer, (ctypes.c_int32 * len(tokens))(*tokens), len(tokens))

    def _change(self, chain: _Chain, p: SamplingParams) -> None:
        n_vocab = self._model.n_vocab
        if p.logit_bias:
            entries = [llama.llama_logit_bias(token, bias) for token, bias in p.logit_bias.items()]
            array = (llama.llama_logit_bias * len(entries))(*entries)
            chain.add(llama.llama_sampler_init_logit_bias(n_vocab, len(entries), array))
        if p.repeat_penalty != 1 or p.frequency_penalty or p.presence_penalty:
            window = self._window(p.penalty_last_n)
            chain.add(
                llama.llama_sampler_init_penalties(n_vocab, window, p.repeat_penalty, p.frequency_penalty, p.presence_penalty)
            )
        if p.dry_multiplier:
            window = self._window(p.dry_penalty_last_n)
            breakers = [text.encode() for text in p.dry_sequence_breakers]
            texts = (ctypes.c_char_p * len(breakers))(*breakers)
            sampler = ctypes.POINTER(llama.llama_sampler)()
            call(
                native.llama_common_dry_init, self._model.vocab_pointer, p.dry_multiplier, p.dry_base, p.dry_allowed_length,
                window, texts, len(breakers), ctypes.byref(sampler),
            )  # fmt: skip
            chain.add(sampler)

    def _window(self, last_n: int) -> int:
        window = self._n_ctx if last_n < 0 else min(last_n, self._n_ctx)
        self._penalty_window = max(self._penalty_window, window)
        return window

    def _truncate_and_choose(self, chain: _Chain, p: SamplingParams) -> None:
        n_vocab = self._model.n_vocab
        seed = llama.LLAMA_DEFAULT_SEED if p.seed is None else p.seed & _SEED_MASK
        if _takes_the_best(p):
            chain.add(llama.llama_sampler_init_greedy())
        elif p.temperature < 0:
            chain.add(llama.llama_sampler_init_dist(seed))
        elif p.mirostat_mode == 1:
            chain.add(llama.llama_sampler_init_temp(p.temperature))
            chain.add(llama.llama_sampler_init_mirostat(n_vocab, seed, p.mirostat_tau, p.mirostat_eta, 100))
        elif p.mirostat_mode == 2:
            chain.add(llama.llama_sampler_init_temp(p.temperature))
            chain.add(llama.llama_sampler_init_mirostat_v2(seed, p.mirostat_tau, p.mirostat_eta))
        else:
            if p.top_n_sigma > 0:
                chain.add(llama.llama_sampler_init_top_n_sigma(p.top_n_sigma))
            if p.top_k > 0:
                chain.add(llama.llama_sampler_init_top_k(p.top_k))
            if p.typical_p < 1:
                chain.add(llama.llama_sampler_init_typical(p.typical_p, 1))
            if p.top_p < 1:
                chain.add(llama.llama_sampler_init_top_p(p.top_p, 1))
            if p.min_p > 0:
                chain.add(llama.llama_sampler_init_min_p(p.min_p, 1))
            if p.xtc_probability > 0:
                chain.add(llama.llama_sampler_init_xtc(p.xtc_probability, p.xtc_threshold, 1, seed))
            if p.dynatemp_range > 0:
                chain.add(llama.llama_sampler_init_temp_ext(p.temperature, p.dynatemp_range, p.dynatemp_exponent))
            else:
                chain.add(llama.llama_sampler_init_temp(p.temperature))
            if p.adaptive_target >= 0:
                chain.add(llama.llama_sampler_init_adaptive_p(p.adaptive_target, p.adaptive_decay, seed))
            else:
                chain.add(llama.llama_sampler_init_dist(seed))

    def _grammar(self, grammar: Mapping[str, Any], limits: native.llama_common_limits) -> Any:
        if "\0" in grammar["grammar"]:
            raise InvalidArgumentError("The grammar contains a NUL character.", remedy="GBNF has no use for one.")
        sampler = ctypes.POINTER(llama.llama_sampler)()
        call(
            native.llama_common_grammar_init,
            self._model.vocab_pointer,
            json.dumps(grammar).encode(),
            ctypes.byref(limits),
            ctypes.byref(sampler),
        )
        return sampler

    def _thinking(self, p: SamplingParams, grammar: Any) -> Any:
        budget = -1 if p.reasoning_budget_tokens is None else p.reasoning_budget_tokens
        sampler = ctypes.POINTER(llama.llama_sampler)()
        call(
            native.llama_common_thinking_init, self._model.vocab_pointer, json.dumps(p.thinking).encode(), budget,
            p.reasoning_budget_message.encode("utf-8", "replace"), grammar, ctypes.byref(sampler),
        )  # fmt: skip
        return sampler


class _Chain(Uncopyable):
    """Owns a ``llama_sampler`` chain until it is handed over; created with the first sampler in it."""

    def __init__(self) -> None:
        self._pointer: Any = None

    def __bool__(self) -> bool:
        return bool(self._pointer)

    def add(self, sampler: Any) -> None:
        if not self._pointer:
            params = llama.llama_sampler_chain_default_params()
            params.no_perf = True
            self._pointer = llama.llama_sampler_chain_init(params)
        llama.llama_sampler_chain_add(self._pointer, sampler)

    def release(self) -> Any:
        pointer, self._pointer = self._pointer, None
        return pointer

    def __del__(self) -> None:
        if self._pointer:
            llama.llama_sampler_free(self._pointer)


def _takes_the_best(p: SamplingParams) -> bool:
    # logits divided by less than that may be infinite
    return 0 <= p.temperature < 1e-30


def _n_needed(p: SamplingParams) -> int:
    """How many of the most probable tokens decide the choice; 0 when all do.

    A change that only lowers logits leaves the others where they are known to be: below the best ones.
    """
    raises = any(bias > 0 for bias in p.logit_bias.values()) or p.repeat_penalty < 1
    if raises or p.frequency_penalty < 0 or p.presence_penalty < 0:
        return 0
    if _takes_the_best(p):
        return 1
    if p.temperature < 0 or p.mirostat_mode or p.top_n_sigma > 0:
        return 0
    return max(p.top_k, 0)

"""A request's sampler chain, made of llama.cpp's samplers."""

from __future__ import annotations

import ctypes
import json
from typing import Any, Mapping, Sequence

from ..capi import llama
from ..capi import llama_common_c as native
from ..capi.interrupts import DeferredInterrupts
from ..capi.status import call
from ..errors import InvalidArgumentError
from ..models.model import Model
from .params import SamplingParams

_SEED_MASK = 0xFFFFFFFF


class Sampler:
    """Owns one ``llama_sampler`` chain, in the order llama.cpp's own tools use."""

    def __init__(self, model: Model, params: SamplingParams, n_ctx: int) -> None:
        params.validate(model.n_vocab)
        self._model = model
        self._token = ctypes.c_int32()
        self._token_pointer = ctypes.byref(self._token)
        chain_params = llama.llama_sampler_chain_default_params()
        chain_params.no_perf = True
        self.pointer: Any = llama.llama_sampler_chain_init(chain_params)
        try:
            with model.in_use(), DeferredInterrupts():
                self._build(params, n_ctx)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        pointer, self.pointer = self.pointer, None
        if pointer:
            llama.llama_sampler_free(pointer)

    def __del__(self) -> None:
        # a generator that was never started has no finally clause to run
        if getattr(self, "pointer", None):
            self.close()

    def sample(self, context: int) -> int:
        """Picks a token from the logits of the last output of a ``llama_context *`` and remembers it.

        Raises:
            GrammarError: the grammar allows no token here.
        """
        call(native.llama_common_sample, self.pointer, context, -1, self._token_pointer)
        return self._token.value

    def accept_prompt(self, tokens: Sequence[int]) -> None:
        """Lets the penalties see the end of the prompt."""
        for token in tokens[-self._penalty_window :] if self._penalty_window else ():
            llama.llama_sampler_accept(self._penalties, token)

    def _add(self, sampler: Any) -> Any:
        llama.llama_sampler_chain_add(self.pointer, sampler)
        return sampler

    def _build(self, p: SamplingParams, n_ctx: int) -> None:
        n_vocab = self._model.n_vocab
        seed = llama.LLAMA_DEFAULT_SEED if p.seed is None else p.seed & _SEED_MASK
        if p.logit_bias:
            entries = [llama.llama_logit_bias(token, bias) for token, bias in p.logit_bias.items()]
            array = (llama.llama_logit_bias * len(entries))(*entries)
            self._add(llama.llama_sampler_init_logit_bias(n_vocab, len(entries), array))
        self._penalty_window = 0
        if p.repeat_penalty != 1 or p.frequency_penalty or p.presence_penalty:
            self._penalty_window = n_ctx if p.penalty_last_n < 0 else min(p.penalty_last_n, n_ctx)
            self._penalties = self._add(
                llama.llama_sampler_init_penalties(
                    n_vocab, self._penalty_window, p.repeat_penalty, p.frequency_penalty, p.presence_penalty
                )
            )
        if p.grammar:
            self._add(self._grammar(p.grammar))
        if p.temperature == 0:
            self._add(llama.llama_sampler_init_greedy())
        elif p.temperature < 0:
            self._add(llama.llama_sampler_init_dist(seed))
        elif p.mirostat_mode == 1:
            self._add(llama.llama_sampler_init_temp(p.temperature))
            self._add(llama.llama_sampler_init_mirostat(n_vocab, seed, p.mirostat_tau, p.mirostat_eta, 100))
        elif p.mirostat_mode == 2:
            self._add(llama.llama_sampler_init_temp(p.temperature))
            self._add(llama.llama_sampler_init_mirostat_v2(seed, p.mirostat_tau, p.mirostat_eta))
        else:
            if p.top_k > 0:
                self._add(llama.llama_sampler_init_top_k(p.top_k))
            if p.typical_p < 1:
                self._add(llama.llama_sampler_init_typical(p.typical_p, 1))
            if p.top_p < 1:
                self._add(llama.llama_sampler_init_top_p(p.top_p, 1))
            if p.min_p > 0:
                self._add(llama.llama_sampler_init_min_p(p.min_p, 1))
            self._add(llama.llama_sampler_init_temp(p.temperature))
            self._add(llama.llama_sampler_init_dist(seed))

    def _grammar(self, grammar: Mapping[str, Any]) -> Any:
        if "\0" in grammar["grammar"]:
            raise InvalidArgumentError("The grammar contains a NUL character.", remedy="GBNF has no use for one.")
        sampler = ctypes.POINTER(llama.llama_sampler)()
        call(
            native.llama_common_grammar_init,
            self._model.vocab_pointer,
            json.dumps(grammar).encode(),
            ctypes.byref(sampler),
        )
        return sampler

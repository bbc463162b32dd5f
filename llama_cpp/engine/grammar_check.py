"""Whether a text is a grammar, without a model."""

from __future__ import annotations

import ctypes
import json

from ..capi import llama
from ..capi import llama_common_c as native
from ..capi.interrupts import DeferredInterrupts
from ..capi.status import call
from ..errors import GrammarError
from ..limits import Limits


def check_grammar(grammar: str, limits: Limits = Limits()) -> None:
    """Reads GBNF. Tokens of a vocabulary that it names are not looked at.

    Raises:
        GrammarError: it does not parse, with the line and the column. LimitReachedError: it costs too much.
    """
    if "\0" in grammar:
        raise GrammarError("The grammar contains a NUL character.", remedy="GBNF has no use for one.")
    if not grammar.strip():
        raise GrammarError("The grammar is empty.", remedy="Its first rule is root ::= …")
    sampler = ctypes.POINTER(llama.llama_sampler)()
    with DeferredInterrupts() as interrupts:
        allowed = limits.native(interrupts)
        text = json.dumps({"grammar": grammar}).encode()
        call(native.llama_common_grammar_init, None, text, ctypes.byref(allowed), ctypes.byref(sampler))
    if sampler:
        llama.llama_sampler_free(sampler)

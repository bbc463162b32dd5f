"""One context: the KV cache of one sequence and what is known to be in it."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Mapping, Sequence

from ..capi import llama
from ..errors import ContextCreationError, DecodeError
from ..models.model import Model, set_fields

_SEQUENCE = 0


class Context:
    """Owns one ``llama_context`` and decodes one sequence in it.

    Args:
        params: fields of ``llama_context_params`` by name; the others keep the engine's defaults.

    Raises:
        ContextCreationError: most often for lack of memory.
    """

    def __init__(self, model: Model, params: Mapping[str, Any]) -> None:
        self.model = model
        native = llama.llama_context_default_params()
        set_fields(native, params)
        self.pointer: int | None = llama.llama_init_from_model(model.pointer, native)
        self._pid = os.getpid()
        if not self.pointer:
            raise ContextCreationError(
                f"The engine could not create a context of {native.n_ctx or model.n_ctx_train} tokens.",
                remedy="Ask for a smaller n_ctx, or a smaller type_k and type_v; the log (llama_cpp.native) has more.",
            )
        self._memory = llama.llama_get_memory(self.pointer)
        self.n_ctx: int = llama.llama_n_ctx(self.pointer)
        self.n_batch: int = llama.llama_n_batch(self.pointer)
        self.tokens: list[int] = []
        self._certain = True

    def close(self) -> None:
        pointer, self.pointer = self.pointer, None
        if pointer and os.getpid() == self._pid:
            llama.llama_free(pointer)

    def advance_to(self, tokens: Sequence[int]) -> int:
        """Makes the cache hold exactly ``tokens``, with logits for the last one; returns how many were there already.

        Raises:
            DecodeError: the engine failed; the cache then holds what it held before, or nothing.
        """
        if self._certain and len(tokens) == len(self.tokens) + 1 and tokens[:-1] == self.tokens:
            self._decode(tokens[-1:])
            return len(tokens) - 1
        # the last token must be computed again to obtain its logits
        n_kept = min(common_prefix_length(self.tokens, tokens), len(tokens) - 1)
        n_kept = self._trim(n_kept)
        for start in range(n_kept, len(tokens), self.n_batch):
            self._decode(tokens[start : start + self.n_batch])
        return n_kept

    def _trim(self, n_kept: int) -> int:
        """Removes everything after the first ``n_kept`` tokens, or everything where the memory kind cannot be cut."""
        self._certain = False
        if not (n_kept and llama.llama_memory_seq_rm(self._memory, _SEQUENCE, n_kept, -1)):
            llama.llama_memory_clear(self._memory, True)
            n_kept = 0
        del self.tokens[n_kept:]
        self._certain = True
        return n_kept

    def _decode(self, tokens: Sequence[int]) -> None:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        # An exception can arrive here from outside (Ctrl-C): until the tokens are noted, the cache may hold more
        # than is known, and the next call trims it.
        self._certain = False
        status = llama.llama_decode(self.pointer, llama.llama_batch_get_one(array, len(tokens)))
        if status != 0:
            llama.llama_memory_clear(self._memory, True)
            self.tokens.clear()
            self._certain = True
            raise DecodeError(
                f"llama_decode() returned {status} for {len(tokens)} tokens"
                + (": no room in the KV cache." if status == 1 else "."),
                remedy="The cache was cleared and the model can be used again; the log (llama_cpp.native) has more.",
            )
        self.tokens.extend(tokens)
        self._certain = True


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences share from the start."""
    for index, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return index
    return min(len(a), len(b))

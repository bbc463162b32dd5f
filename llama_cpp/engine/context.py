"""One context: the KV cache of one sequence and what is known to be in it."""

from __future__ import annotations

import ctypes
from typing import Any, Mapping, Sequence

from ..capi import llama
from ..capi.handle import Handle
from ..capi.interrupts import DeferredInterrupts
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
        try:
            with model.in_use() as model_pointer, DeferredInterrupts():
                pointer = llama.llama_init_from_model(model_pointer, native)
                if pointer:
                    self._handle = Handle(pointer, llama.llama_free, parent=model.in_use())
                    self._read_properties(pointer, model_pointer)
        except BaseException:
            # who keeps the traceback of Ctrl-C must not keep the memory
            if hasattr(self, "_handle"):
                self.close()
            raise
        if not pointer:
            raise ContextCreationError(
                f"The engine could not create a context of {native.n_ctx or model.n_ctx_train} tokens.",
                remedy="Ask for a smaller n_ctx, or a smaller type_k and type_v; the log (llama_cpp.native) has more.",
            )
        self.tokens: list[int] = []
        self._certain = True

    def _read_properties(self, pointer: int, model_pointer: int) -> None:
        self._memory = llama.llama_get_memory(pointer)
        if not self._memory or llama.llama_model_has_encoder(model_pointer):
            # the engine asserts when such a model is decoded
            raise ContextCreationError(
                "This model does not generate text token by token (it is an encoder or a diffusion model).",
                remedy="Load it with vocab_only=True to tokenize with it.",
            )
        self.n_ctx: int = llama.llama_n_ctx(pointer)
        # a model without causal attention must see a batch at once, which is what n_ubatch holds
        self.n_batch: int = min(llama.llama_n_batch(pointer), llama.llama_n_ubatch(pointer))
        self._n_window: int = llama.llama_model_n_swa(model_pointer)

    @property
    def pointer(self) -> int:
        """The ``llama_context *``.

        Raises:
            ModelClosedError, ForkedProcessError: it must not be used any more, or not here.
        """
        return self._handle.pointer

    def close(self) -> None:
        self._handle.close()

    def advance_to(self, tokens: Sequence[int]) -> int:
        """Makes the cache hold exactly ``tokens``, with logits for the last one; returns how many were there already.

        Raises:
            DecodeError: the engine failed; the cache is then empty.
            ModelClosedError: somebody closed it meanwhile. ForkedProcessError.
        """
        self.pointer
        if self._certain and len(tokens) == len(self.tokens) + 1 and tokens[:-1] == self.tokens:
            self._decode(tokens[-1:])
            return len(tokens) - 1
        # the last token must be computed again to obtain its logits
        n_kept = min(common_prefix_length(self.tokens, tokens), len(tokens) - 1)
        n_kept = self._trim(n_kept if self._can_cut(n_kept) else 0)
        for start in range(n_kept, len(tokens), self.n_batch):
            self._decode(tokens[start : start + self.n_batch])
        return n_kept

    def _trim(self, n_kept: int) -> int:
        """Removes everything after the first ``n_kept`` tokens, or everything where the memory kind cannot be cut."""
        # Ctrl-C can arrive between any two lines: what is noted must never be more than what is there
        self._certain = False
        del self.tokens[n_kept:]
        if not (n_kept and llama.llama_memory_seq_rm(self._memory, _SEQUENCE, n_kept, -1)):
            self.tokens.clear()
            n_kept = 0
            llama.llama_memory_clear(self._memory, True)
        self._certain = True
        return n_kept

    def _can_cut(self, n_kept: int) -> bool:
        """Whether the cache still holds what the token after ``n_kept`` looks back at (a sliding window may not)."""
        if not self._n_window:
            return True
        oldest = llama.llama_memory_seq_pos_min(self._memory, _SEQUENCE)
        return oldest <= max(0, n_kept - self._n_window)

    def _decode(self, tokens: Sequence[int]) -> None:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        # An exception can arrive between any two lines (Ctrl-C): until the tokens are noted, the cache may hold more
        # than is known, and the next call trims it.
        self._certain = False
        with DeferredInterrupts():
            status = llama.llama_decode(self.pointer, llama.llama_batch_get_one(array, len(tokens)))
        if status != 0:
            self.tokens.clear()
            llama.llama_memory_clear(self._memory, True)
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

"""One sequence in a context of its own, decoded in the caller's thread: for programs that do each step themselves.

The batching engine never decodes in this context. It shares the model, so it costs a KV cache of one sequence.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..capi import llama
from ..capi import llama_common_c as native
from ..capi.handle import NativeHandle, Uncopyable
from ..capi.interrupts import DeferredInterrupts
from ..capi.status import call
from ..errors import ContextCreationError, ContextFullError, DecodeError, InvalidArgumentError
from ..models.model import Model, set_fields
from .requests import Adapters
from .sampler_chain import Sampler

_FLOAT = ctypes.POINTER(ctypes.c_float)
_INT32 = ctypes.POINTER(ctypes.c_int32)
_INT8 = ctypes.POINTER(ctypes.c_int8)
_UINT8 = ctypes.POINTER(ctypes.c_uint8)
_WHOLE = llama.LLAMA_STATE_SEQ_FLAGS_NONE


class PrivateSequence(Uncopyable):
    """A context of one sequence, the tokens it holds, and their logits.

    One thread at a time decodes; others wait.

    Args:
        params: fields of ``llama_context_params`` by name; the others keep the engine's defaults.
        keeps_all: whether logits of every token are computed and kept, and not of the last one of each call alone.
        adapters: LoRA adapters, each with its scale.

    Attributes:
        input_ids: int32, (n_ctx,); the first ``n_tokens`` are held.
        scores: float32, (n_ctx, n_vocab). Only rows that were computed take memory; the others are 0.
        n_tokens: how many tokens are held. A smaller number forgets those behind it with the next :meth:`eval`.

    Raises:
        ContextCreationError: most often for lack of memory. ModelClosedError, ForkedProcessError.
    """

    def __init__(self, model: Model, params: Mapping[str, Any], keeps_all: bool = False, adapters: Adapters = ()) -> None:
        from .decoder import set_adapters

        self._model = model
        self._keeps_all = keeps_all
        self._lock = threading.RLock()
        wanted = llama.llama_context_default_params()
        set_fields(wanted, {**params, "n_seq_max": 1, "kv_unified": True})
        if keeps_all:
            wanted.n_outputs_max = wanted.n_outputs_max_per_seq = wanted.n_batch
        with model.in_use() as pointer, DeferredInterrupts():
            context = llama.llama_init_from_model(pointer, wanted)
            if not context:
                raise ContextCreationError(
                    f"The engine could not create a context of {wanted.n_ctx} tokens for a sequence of its own.",
                    remedy="Ask for a smaller n_ctx; the log (llama_cpp.native) has more.",
                )
            self._decoder = native.llama_common_decoder_p_ctypes()
            self.handle = NativeHandle(context, self._free, parent=model.in_use())
            call(native.llama_common_decoder_init, context, None, 1, ctypes.byref(self._decoder))
            if adapters:
                set_adapters(context, adapters)
        self.params = wanted
        self.n_ctx: int = min(int(llama.llama_n_ctx(context)), params["n_ctx"] or model.n_ctx_train)
        self.n_batch: int = llama.llama_n_batch(context)
        self.input_ids = np.zeros(self.n_ctx, np.intc)
        self._n_tokens = 0
        # pages are there once something is written to them
        size = self.n_ctx * model.n_vocab * 4
        self._rows = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
        self.scores = np.frombuffer(self._rows, np.float32).reshape(self.n_ctx, model.n_vocab)

    def _free(self, context: Any) -> None:
        native.llama_common_decoder_free(self._decoder)
        llama.llama_free(context)

    @property
    def pointer(self) -> Any:
        """The ``llama_context *``.

        Raises:
            ModelClosedError, ForkedProcessError.
        """
        return self.handle.pointer

    def close(self) -> None:
        """Frees the context. Closing twice is allowed."""
        self.handle.close()

    @property
    def n_tokens(self) -> int:
        """How many tokens are held."""
        return self._n_tokens

    @n_tokens.setter
    def n_tokens(self, n: int) -> None:
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or not 0 <= n <= self.n_ctx:
            raise InvalidArgumentError(f"n_tokens={n!r} must be a whole number from 0 to {self.n_ctx}.")
        self._n_tokens = int(n)

    def reset(self) -> None:
        """Forgets everything."""
        with self._lock, self.handle as context:
            self._n_tokens = 0
            llama.llama_memory_clear(llama.llama_get_memory(context), True)

    def eval(self, tokens: Sequence[int]) -> None:
        """Decodes further tokens, behind the first :attr:`n_tokens` of those that are held.

        Raises:
            InvalidArgumentError: a token is not of this vocabulary. ContextFullError: they do not fit.
            DecodeError: the engine failed; what was held before the call still is.
        """
        self._model.check_tokens(tokens)
        with self._lock, self.handle as context:
            n_past, n = self._n_tokens, len(tokens)
            if n_past + n > self.n_ctx:
                raise ContextFullError(self.n_ctx, can_shift=False)
            start = self._rewind(context, n_past)
            self.input_ids[n_past : n_past + n] = tokens
            for at in range(start, n_past + n, self.n_batch):
                self._decode(context, at, min(at + self.n_batch, n_past + n))
            self._n_tokens = n_past + n

    def _rewind(self, context: Any, n: int) -> int:
        """Leaves the first ``n`` tokens; returns how many of them are left where the memory cannot be cut."""
        memory = llama.llama_get_memory(context)
        held = llama.llama_memory_seq_pos_max(memory, 0) + 1
        if held == n or (held > n and llama.llama_memory_seq_rm(memory, 0, n, -1)):
            return n
        # recurrent, or somebody has removed some: what is known of the tokens is read again
        llama.llama_memory_clear(memory, True)
        return 0

    def _decode(self, context: Any, start: int, end: int) -> None:
        n = end - start
        tokens, positions = self.input_ids[start:end].copy(), np.arange(start, end, dtype=np.int32)
        outputs = np.full(n, self._keeps_all, np.int8)
        outputs[-1] = 1
        result = ctypes.c_int32()
        with DeferredInterrupts():
            call(
                native.llama_common_decode, self._decoder, n, tokens.ctypes.data_as(_INT32), positions.ctypes.data_as(_INT32),
                np.zeros(n, np.int32).ctypes.data_as(_INT32), outputs.ctypes.data_as(_INT8), ctypes.byref(result),
            )  # fmt: skip
        if result.value != 0:
            raise DecodeError(
                f"llama_decode() returned {result.value} for {n} tokens from position {start} on.",
                remedy="Call reset(); the log (llama_cpp.native) has more.",
            )
        first = start if self._keeps_all else end - 1
        for row in range(end - first):
            call(native.llama_common_get_logits, self._decoder, row, self.scores[first + row].ctypes.data_as(_FLOAT))

    def logits(self, row: int) -> np.ndarray:
        """The logits of a token that is held; float32, (n_vocab,). It is a view.

        Raises:
            InvalidArgumentError: there are none.
        """
        if not self._n_tokens:
            raise InvalidArgumentError("Nothing was evaluated.", remedy="Call eval() first.")
        if not -self._n_tokens <= row < self._n_tokens:
            raise InvalidArgumentError(f"There is no token {row}; {self._n_tokens} are held.")
        found: np.ndarray = self.scores[row if row >= 0 else self._n_tokens + row]
        return found

    def sample(self, sampler: Sampler, logits: np.ndarray) -> int:
        """A token from logits (float32, (n_vocab,)), which stay as they are.

        Raises:
            GrammarError: nothing is allowed. InvalidArgumentError: they are of another size.
        """
        given = np.ascontiguousarray(logits, np.float32)
        if given.shape != (self._model.n_vocab,):
            raise InvalidArgumentError(f"The logits have the shape {given.shape}; it must be ({self._model.n_vocab},).")
        token = ctypes.c_int32()
        with self._model.in_use():
            call(native.llama_common_sample_from, given.ctypes.data_as(_FLOAT), len(given), sampler.pointer, ctypes.byref(token))
        return token.value

    def save(self) -> bytes:
        """The state of the tokens that are held, in the engine's form."""
        with self._lock, self.handle as context:
            self._rewind_only(context)
            size = llama.llama_state_seq_get_size_ext(context, 0, _WHOLE)
            data = np.empty(size, np.uint8)
            n = llama.llama_state_seq_get_data_ext(context, data.ctypes.data_as(_UINT8), size, 0, _WHOLE)
            if n == 0:
                raise DecodeError("The engine could not save the state.", remedy="The log (llama_cpp.native) has more.")
            return data[:n].tobytes()

    def _rewind_only(self, context: Any) -> None:
        start = self._rewind(context, self._n_tokens)
        for at in range(start, self._n_tokens, self.n_batch):
            self._decode(context, at, min(at + self.n_batch, self._n_tokens))

    def load(self, state: bytes, tokens: np.ndarray, last: np.ndarray | None) -> None:
        """Takes a state that :meth:`save` gave, with its tokens (int32) and the logits of the last one.

        Raises:
            InvalidArgumentError: it is none, or one of another model or context; nothing is held then.
        """
        self._model.check_tokens(tokens.tolist())
        if len(tokens) > self.n_ctx:
            raise ContextFullError(self.n_ctx, can_shift=False)
        data = np.frombuffer(state, np.uint8)
        with self._lock, self.handle as context:
            self.reset()
            n = llama.llama_state_seq_set_data_ext(context, data.ctypes.data_as(_UINT8), len(data), 0, _WHOLE)
            if n != len(data):
                self.reset()
                raise InvalidArgumentError("The state is damaged, or of another model or context.", remedy="Evaluate its tokens.")
            self.input_ids[: len(tokens)] = tokens
            self._n_tokens = len(tokens)
            if last is not None and len(tokens):
                self.scores[len(tokens) - 1] = last

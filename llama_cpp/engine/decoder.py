"""One context: batches go in, tokens come out, and sequences are cut and copied."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..capi import ggml, ggml_backend, ggml_cpu, llama
from ..capi import llama_common_c as native
from ..capi.backends import has_gpu
from ..capi.binding import bind_plugin
from ..capi.handle import NativeHandle, Uncopyable
from ..capi.interrupts import DeferredInterrupts
from ..capi.loader import libraries
from ..capi.status import call
from ..errors import ContextCreationError, InvalidArgumentError, MediaNotSupportedError
from ..models.model import Model, set_fields
from .prompt import MediaChunk

_UINT8 = ctypes.POINTER(ctypes.c_uint8)
_FLOAT = ctypes.POINTER(ctypes.c_float)

_STATE_FLAGS = {True: llama.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY, False: llama.LLAMA_STATE_SEQ_FLAGS_NONE}


@bind_plugin("CPU", None, ctypes.c_bool)
def ggml_cpu_set_batch_invariant(value: bool, /) -> None:
    """void ggml_cpu_set_batch_invariant(bool value), of vendor/llama.cpp/patches/0004-batch-invariant-cpu.patch

    For the graphs that the calling thread computes on the CPU; on unless switched off.
    """


def can_be_cut(model: Model) -> bool:
    """Whether a model's memory can be cut anywhere: that of recurrent and hybrid ones can not."""
    with model.in_use() as pointer:
        return not (llama.llama_model_is_recurrent(pointer) or llama.llama_model_is_hybrid(pointer))


def keys_can_shift(model: Model, type_k: int) -> bool:
    """Whether keys of a type can be moved to other positions.

    The engine ends the process where it cannot: with bfloat16, and with quantized keys that it does not rotate
    (``llama_kv_cache``: heads of one size, a multiple of 64).
    """
    if type_k in (ggml.GGML_TYPE_F16, ggml.GGML_TYPE_F32):
        return True
    if not ggml.ggml_is_quantized(type_k) or os.environ.get("LLAMA_ATTN_ROT_DISABLE"):
        return False
    metadata = model.metadata()
    about = f"{metadata.get('general.architecture')}.attention."
    try:
        length = int(metadata.get(about + "key_length") or model.n_embd // int(metadata[about + "head_count"]))
        return length % 64 == 0 and int(metadata.get(about + "key_length_swa", length)) == length
    except (KeyError, ValueError):
        return False  # not the same in all layers


def attach_threads(context: Any) -> list[Any]:
    """Gives a context threads that stay: without them it starts new ones for every batch.

    Returns:
        What to free after the context, with :func:`free_threads`.
    """
    pools: list[Any] = []
    numbers = llama.llama_n_threads(context), llama.llama_n_threads_batch(context)
    for n in dict.fromkeys(numbers):
        wanted = ggml.ggml_threadpool_params_default(n)
        pool = ggml_cpu.ggml_threadpool_new(ctypes.byref(wanted))
        if not pool:
            return pools  # the context has its own way
        pools.append(pool)
    llama.llama_attach_threadpool(context, pools[0], pools[-1])
    return pools


def free_threads(pools: Sequence[Any]) -> None:
    """Ends the threads that a context had."""
    for pool in pools:
        ggml_cpu.ggml_threadpool_free(pool)


def set_adapters(context: Any, adapters: Sequence[tuple[int, float]]) -> None:
    """Lets a context compute with these LoRA adapters (``llama_adapter_lora *``), each with its scale."""
    n = len(adapters)
    pointers = (llama.llama_adapter_lora_p_ctypes * n)(*(pointer for pointer, _ in adapters))
    scales = (ctypes.c_float * n)(*(scale for _, scale in adapters))
    llama.llama_set_adapters_lora(context, pointers if n else None, n, scales if n else None)


def _generates_nothing() -> ContextCreationError:
    return ContextCreationError(
        "This model does not generate text token by token (it is an encoder or a diffusion model).",
        remedy="Load it with embedding=True for its vectors, or with vocab_only=True to tokenize with it.",
    )


class Decoder(Uncopyable):
    """Owns a ``llama_context`` and the buffers of a batch. For one thread at a time.

    Args:
        params: fields of ``llama_context_params`` by name; the others keep the engine's defaults.
        n_active: sequences 0 to n_active - 1 may have outputs; the others only keep what they hold.
        n_draft: how many outputs more than one a sequence may have in a batch.

    Attributes:
        n_ctx: tokens that one sequence can hold.
        n_batch: tokens of a batch at most; it is computed at once. n_outputs: outputs of a batch at most.
        n_outputs_for_one: outputs of one sequence in a batch at most, without those of a draft.
        tokens, positions, sequences, outputs: a batch, to be written before :meth:`decode`. ctypes arrays of n_batch.
        samplers: ``llama_common_sampler *``, one for each output to be sampled from; a ctypes array of n_active.
        rows: which output each of them looks at. sampled, results: what :meth:`sample` found.
        keeps_all: a sliding window's layers have room for all tokens, too.
        on_device: the best tokens are found on a GPU; then a batch must be one the engine computes at once.
        copies_wait: a sequence was copied to another stream, which the engine does when it next computes: until then what
            is restored into either of them would be lost.

    Raises:
        ContextCreationError: most often for lack of memory.
    """

    def __init__(self, model: Model, params: Mapping[str, Any], n_active: int, n_draft: int = 0) -> None:
        self.model = model
        self._native = native.llama_common_decoder_p_ctypes()
        self._top_k = native.llama_common_top_k_p_ctypes()
        self._thread_pools: list[Any] = []
        self._stop = ctypes.c_int32()
        wanted = llama.llama_context_default_params()
        set_fields(wanted, params)
        wanted.abort_callback = ctypes.cast(libraries()["llama-common-c"].llama_common_is_set, ggml.ggml_abort_callback)
        wanted.abort_callback_data = ctypes.addressof(self._stop)
        # the engine asserts that it is no less; a few can have all their drafts, many are quicker without
        self.n_outputs = wanted.n_outputs_max = max(n_active, wanted.n_seq_max) + min(n_active, 4) * n_draft
        wanted.n_outputs_max_per_seq = 1 + n_draft
        self._repeated: Any = None
        self._has_streams = not wanted.kv_unified
        self.keeps_all = wanted.swa_full
        self._keys_can_shift = keys_can_shift(model, wanted.type_k)
        self.copies_wait = False
        try:
            with model.in_use() as model_pointer, DeferredInterrupts():
                if llama.llama_model_has_encoder(model_pointer):
                    raise _generates_nothing()  # the engine asserts when it plans for several sequences
                self.unlimited_cut = can_be_cut(model)
                if self.unlimited_cut and has_gpu() and params.get("split_mode") != llama.LLAMA_SPLIT_MODE_TENSOR:
                    call(native.llama_common_top_k_init, n_active, ctypes.byref(self._top_k))
                    wanted.samplers = native.llama_common_top_k_configs(self._top_k)
                    wanted.n_samplers = n_active
                pointer = llama.llama_init_from_model(model_pointer, wanted)
                if pointer:
                    # what belongs to the context is freed with it
                    self._handle = NativeHandle(pointer, self._free, parent=model.in_use())
                    self._read_properties(pointer, model_pointer)
                    if not has_gpu():
                        self._thread_pools = attach_threads(pointer)
                    call(native.llama_common_decoder_init, pointer, self._top_k, n_active, ctypes.byref(self._native))
        except BaseException:
            # who keeps the traceback of Ctrl-C must not keep the memory
            if hasattr(self, "_handle"):
                self.close()
            raise
        if not pointer:
            native.llama_common_top_k_free(self._top_k)
            raise ContextCreationError(
                f"The engine could not create a context of {wanted.n_ctx or model.n_ctx_train} tokens.",
                remedy="Ask for a smaller n_ctx or n_parallel, or a smaller type_k and type_v; the log "
                "(llama_cpp.native) has more.",
            )
        self.on_device: bool = native.llama_common_decoder_on_device(self._native)
        # who finds the best tokens there takes no more of a sequence
        self.n_outputs_for_one = 1 if self.on_device else self.n_outputs
        self._make_buffers(n_active)
        if has_gpu():
            self._warm_up()

    def _read_properties(self, pointer: llama.llama_context_p, model_pointer: llama.llama_model_p) -> None:
        self._memory = llama.llama_get_memory(pointer)
        if not self._memory:
            raise _generates_nothing()
        self.n_ctx: int = llama.llama_n_ctx_seq(pointer)
        if self.model.learnt_positions:
            self.n_ctx = min(self.n_ctx, self.model.n_ctx_train)
        # a batch that is computed at once is never split, and a model without causal attention must see all of it
        self.n_batch: int = min(llama.llama_n_batch(pointer), llama.llama_n_ubatch(pointer))
        self.n_window: int = llama.llama_model_n_swa(model_pointer)
        self.can_shift: bool = llama.llama_memory_can_shift(self._memory) and self._keys_can_shift

    def _make_buffers(self, n_active: int) -> None:
        # not numpy: for a few numbers its calls cost more, most of all once the model has emptied the processor's caches
        in_batch, active = ctypes.c_int32 * self.n_batch, ctypes.c_int32 * n_active
        self.tokens: ctypes.Array[Any] = in_batch()
        self.positions: ctypes.Array[Any] = in_batch()
        self.sequences: ctypes.Array[Any] = in_batch()
        self.outputs: ctypes.Array[Any] = (ctypes.c_int8 * self.n_batch)()
        self.rows, self.sampled, self.results = active(), active(), active()
        self.samplers = (native.llama_common_sampler_p_ctypes * n_active)()
        self._where: ctypes.Array[Any] = (_FLOAT * n_active)()
        self._status = ctypes.c_int32()
        self._status_pointer = ctypes.byref(self._status)

    def _warm_up(self) -> None:
        """Computes a batch as large as any, once.

        A GPU's backend sets memory aside when it computes, and ends the process where there is none: now, then, and not
        in the middle of somebody's request. It also compiles and loads what it needs.
        """
        n = min(self.n_batch, self.n_ctx)
        zeros = [0] * n
        self.tokens[:n], self.positions[:n], self.sequences[:n], self.outputs[:n] = zeros, [*range(n)], zeros, zeros
        self.outputs[n - 1] = True
        status = self.decode(n)
        llama.llama_synchronize(self.pointer)
        self.clear()
        if status != 0:
            self.close()
            raise ContextCreationError(
                f"A batch of {n} tokens could not be computed: llama_decode() returned {status}.",
                remedy="Most often memory is short: ask for a smaller n_batch, n_ctx or n_parallel, or fewer n_gpu_layers.",
            )

    def _free(self, context: Any) -> None:
        native.llama_common_decoder_free(self._native)
        llama.llama_free(context)
        free_threads(self._thread_pools)
        native.llama_common_top_k_free(self._top_k)

    @property
    def pointer(self) -> llama.llama_context_p:
        """The ``llama_context *``.

        Raises:
            ModelClosedError, ForkedProcessError: it must not be used any more, or not here.
        """
        pointer: llama.llama_context_p = self._handle.pointer
        return pointer

    def in_use(self) -> NativeHandle:
        """What to enter while the context is used: until it is left, :meth:`close` frees nothing."""
        return self._handle

    def close(self) -> None:
        """Frees the context, as soon as nobody uses it."""
        self._handle.close()

    def stop(self, wanted: bool) -> None:
        """Lets a CPU stop in the middle of a batch, or not any more. Any thread may call it."""
        self._stop.value = wanted

    def decode(self, n_tokens: int) -> int:
        """Computes the first ``n_tokens`` of the batch; on a GPU it returns at once.

        Returns:
            What ``llama_decode()`` does: 0, or 1 when the cache has no room and nothing was computed, 2 when it was stopped,
            or an error.
        """
        call(
            native.llama_common_decode, self._native, n_tokens, self.tokens, self.positions, self.sequences,
            self.outputs, self._status_pointer,
        )  # fmt: skip
        self.copies_wait = False
        return self._status.value

    def decode_media(self, chunk: MediaChunk, sequence: int, position: int) -> None:
        """Computes the embeddings of an image or a sound, which begin at a position of a sequence.

        Raises:
            MediaNotSupportedError: this version does not do that yet.
        """
        raise MediaNotSupportedError(
            f"The prompt holds media ({chunk.n_tokens} embeddings), which this version cannot read yet.",
            remedy="Send text alone.",
        )

    def sample(
        self,
        n: int,
        only_best: bool = False,
        multi_step: native.llama_common_multi_step | None = None,
        logits: Sequence[np.ndarray | None] | None = None,
    ) -> None:
        """Waits for the batch and fills the first ``n`` of ``sampled`` and ``results`` with the help of ``samplers``.

        Args:
            only_best: leave out those that take a look at the whole vocabulary (``LLAMA_COMMON_NEEDS_ALL``).
            multi_step: how far to decode what was sampled as the next batch, and so on, if all tokens of this one have an output.
            logits: where to put those of each output, float32, n_vocab; of the last batch that was sampled from.
        """
        where = None
        if logits is not None:
            where = self._where
            where[:n] = [None if array is None else array.ctypes.data_as(_FLOAT) for array in logits]
        call(
            native.llama_common_sample, self._native, n, self.rows, self.samplers, where, only_best, self.sampled,
            self.results, multi_step,
        )  # fmt: skip
        if multi_step is not None and multi_step.n:
            self.copies_wait = False

    def logits(self, row: int, into: np.ndarray | None = None) -> np.ndarray:
        """A copy of an output's logits: float32, n_vocab; ``into`` is where to put it, for memory that is new costs time."""
        logits = np.empty(self.model.n_vocab, np.float32) if into is None else into
        call(native.llama_common_get_logits, self._native, row, logits.ctypes.data_as(_FLOAT))
        return logits

    def logits_buffer(self) -> np.ndarray:
        """Memory for :meth:`logits`, to be used again and again: float32, n_vocab. A GPU copies into it by itself."""
        n = self.model.n_vocab
        gpu = ggml_backend.ggml_backend_dev_by_type(ggml_backend.GGML_BACKEND_DEVICE_TYPE_GPU) if self.on_device else None
        kind = gpu and ggml_backend.ggml_backend_dev_host_buffer_type(gpu)
        buffer = ggml_backend.ggml_backend_buft_alloc_buffer(kind, n * np.float32().nbytes) if kind else None
        address = ggml_backend.ggml_backend_buffer_get_base(buffer) if buffer else None
        if not address:
            return np.empty(n, np.float32)
        memory = (ctypes.c_float * n).from_address(address)
        weakref.finalize(memory, ggml_backend.ggml_backend_buffer_free, buffer).atexit = False
        return np.frombuffer(memoryview(memory), np.float32)

    def set_adapters(self, adapters: Sequence[tuple[int, float]]) -> None:
        """Computes with these LoRA adapters from now on; it costs the engine a new plan of its memory."""
        set_adapters(self.pointer, adapters)

    # --- memory ---

    def repeat_in(self, memory: Any, keys_can_shift: bool = True) -> None:
        """Does in a draft's memory, too, what is done from here on; None ends that."""
        self._repeated = memory
        self.can_shift = self._keys_can_shift and keys_can_shift and all(map(llama.llama_memory_can_shift, self._memories))

    @property
    def _memories(self) -> list[Any]:
        return [self._memory, self._repeated] if self._repeated else [self._memory]

    def cut(self, sequence: int, start: int) -> bool:
        """Forgets a sequence from a position on; False when the memory cannot do that."""
        if self._repeated:
            llama.llama_memory_seq_rm(self._repeated, sequence, start, -1)
        return llama.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def forget(self, sequence: int) -> None:
        """Empties a sequence."""
        for memory in self._memories:
            llama.llama_memory_seq_rm(memory, sequence, -1, -1)

    def copy(self, source: int, target: int, end: int = -1) -> None:
        """Lets the empty sequence ``target`` begin like ``source``; a copy between streams is always of the whole."""
        for memory in self._memories:
            llama.llama_memory_seq_cp(memory, source, target, -1, end)
        self.copies_wait = self._has_streams

    def copy_now(self, source: int, target: int) -> bool:
        """As :meth:`copy`, and done when it returns: between streams by way of the host. False when it could not be."""
        if not self._has_streams:
            self.copy(source, target)
            return True
        if self._repeated:
            llama.llama_memory_seq_cp(self._repeated, source, target, -1, -1)
        return self.restore(target, self.save(source))

    def settle(self, sequence: int) -> None:
        """Lets copies that wait be done, by computing a token in an empty sequence, which is empty again then."""
        self.tokens[0], self.positions[0], self.sequences[0], self.outputs[0] = 0, 0, sequence, False
        self.decode(1)
        self.forget(sequence)

    def shift(self, sequence: int, start: int, n: int) -> None:
        """Removes ``n`` tokens of a sequence from ``start`` on and moves up what follows."""
        for memory in self._memories:
            llama.llama_memory_seq_rm(memory, sequence, start, start + n)
            llama.llama_memory_seq_add(memory, sequence, start + n, -1, -n)

    def oldest(self, sequence: int) -> int:
        """The first position a sequence still holds; a sliding window forgets."""
        return llama.llama_memory_seq_pos_min(self._memory, sequence)

    def newest(self, sequence: int) -> int:
        """The last position a sequence holds; -1 for none."""
        return llama.llama_memory_seq_pos_max(self._memory, sequence)

    def save(self, sequence: int, partial: bool = False, n_head: int = 0) -> np.ndarray:
        """What a sequence holds, as uint8, to be restored in a context like this one; empty when it could not be had.

        Args:
            n_head: bytes in front of it that are the caller's.
            partial: leave out the keys and values of full attention, which can be cut anywhere.
        """
        size = llama.llama_state_seq_get_size_ext(self.pointer, sequence, _STATE_FLAGS[partial])
        room = np.empty(n_head + size, np.uint8)
        n = llama.llama_state_seq_get_data_ext(
            self.pointer, room[n_head:].ctypes.data_as(_UINT8), size, sequence, _STATE_FLAGS[partial]
        )
        return room if n == size else room[:0]

    def restore(self, sequence: int, state: np.ndarray, partial: bool = False) -> bool:
        """Gives a sequence what was saved; False when there is no room, and then it holds nothing that counts."""
        n = llama.llama_state_seq_set_data_ext(
            self.pointer, state.ctypes.data_as(_UINT8), len(state), sequence, _STATE_FLAGS[partial]
        )
        return n == len(state)

    def clear(self) -> None:
        """Empties everything."""
        for memory in self._memories:
            llama.llama_memory_clear(memory, True)


def sample_from(logits: np.ndarray, sampler: Any) -> int:
    """Samples a token from logits (float32, n_vocab) instead of an output's. In any thread.

    Raises:
        GrammarError: none is possible. NativeError: the logits are not numbers.
    """
    token = ctypes.c_int32()
    logits = np.ascontiguousarray(logits, np.float32)
    call(native.llama_common_sample_from, logits.ctypes.data_as(_FLOAT), len(logits), sampler, ctypes.byref(token))
    return token.value


def logprobs_of(logits: np.ndarray, token: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
    """Log-probability of a token, and the ``n_top`` most probable tokens with theirs, from logits (float32, n_vocab).

    In any thread.

    Raises:
        InvalidArgumentError: there is no such token, or there are not so many.
    """
    if not 0 <= token < len(logits):
        raise InvalidArgumentError(f"Token {token} is not in the vocabulary.", remedy=f"Tokens run from 0 to {len(logits) - 1}.")
    with np.errstate(invalid="ignore"):  # a damaged model's logits may be anything
        best = logits.max()
        shifted = logits - best
        log_sum = best + np.log(np.exp(shifted, out=shifted).sum())
    top, values = (ctypes.c_int32 * n_top)(), (ctypes.c_float * n_top)()
    if n_top:
        call(native.llama_common_top_logits, logits.ctypes.data_as(_FLOAT), len(logits), n_top, top, values)
    return float(logits[token] - log_sum), [(one, float(value - log_sum)) for one, value in zip(top, values)]

"""Texts to vectors: what any number of callers ask for is computed in the same batches."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

import numpy as np

from ..capi import ggml, llama
from ..capi import llama_common_c as native
from ..capi.backends import has_gpu
from ..capi.handle import NativeHandle, Uncopyable
from ..capi.interrupts import DeferredInterrupts
from ..capi.loader import libraries
from ..capi.status import call
from ..errors import ContextCreationError, DecodeError, InvalidArgumentError, ModelBusyError, ModelClosedError
from ..models.model import Model, set_fields
from .decoder import attach_threads, free_threads, ggml_cpu_set_batch_invariant, set_adapters
from .requests import Adapters
from .worker import Worker, model_closed

logger = logging.getLogger("llama_cpp")

_FLOAT = ctypes.POINTER(ctypes.c_float)

#: How vectors of tokens become one of a text; rank is a classifier's score.
_POOLINGS = (
    llama.LLAMA_POOLING_TYPE_NONE, llama.LLAMA_POOLING_TYPE_MEAN, llama.LLAMA_POOLING_TYPE_CLS, llama.LLAMA_POOLING_TYPE_LAST,
    llama.LLAMA_POOLING_TYPE_RANK,
)  # fmt: skip


class Job:
    """The texts of one caller on their way to vectors.

    Attributes:
        texts: token ids of each; the first ``n_begun`` were computed, or are being. vectors: theirs, float32, as they come.
        adapters: LoRA adapters to compute them with, each with its scale.
        future: what becomes the list of vectors. Who cancels it no longer wants them.
    """

    def __init__(self, texts: Sequence[Sequence[int]], adapters: Adapters = ()) -> None:
        self.texts = texts
        self.adapters = adapters
        self.vectors: list[np.ndarray | None] = [None] * len(texts)
        self.n_begun = 0
        self.future: Future[list[np.ndarray]] = Future()
        self._n_left = len(texts)

    def result(self) -> list[np.ndarray]:
        """Waits for all vectors; whoever is interrupted meanwhile does not want them any more.

        Raises:
            DecodeError, MemoryError, ModelClosedError: what it failed with.
        """
        try:
            return self.future.result()
        except BaseException:
            self.future.cancel()
            raise

    def take(self, number: int, vector: np.ndarray) -> None:
        """Notes the vector of a text."""
        self.vectors[number] = vector
        self._n_left -= 1
        if not self._n_left:
            self._settle(lambda: self.future.set_result([one for one in self.vectors if one is not None]))

    def fail(self, error: BaseException) -> None:
        """Ends it: its caller gets an exception."""
        self._settle(lambda: self.future.set_exception(error))

    def _settle(self, action: Callable[[], None]) -> None:
        with contextlib.suppress(InvalidStateError):  # cancelled, or failed with another of its texts
            action()


class Embedder(Uncopyable):
    """Computes vectors of texts. Any thread may ask; one thread owns the context.

    Texts are taken in turn from everybody who has asked, whole, for as long as a batch has room.

    Args:
        params: fields of ``llama_context_params`` by name. A batch has up to ``n_batch`` tokens of ``n_seq_max`` texts; the first
            must be a multiple of the second, and no more than n_ctx and n_ubatch.
        n_ctx: tokens of one text at most, no more than ``n_batch``.
        batch_invariant: a CPU computes a text in one way, whatever else is in its batch. Mean vectors are pooled here then: the
            engine sums over the whole batch, whose size changes how it rounds.
        adapters: LoRA adapters that most texts are computed with.

    Attributes:
        n_ctx: tokens of one text at most.
        pooling_type: ``LLAMA_POOLING_TYPE_*``. width: numbers in a vector.

    Raises:
        InvalidArgumentError: the model cannot be pooled so. ContextCreationError: most often for lack of memory.
    """

    #: Texts that may wait.
    MAX_WAITING = 1 << 20

    def __init__(
        self, model: Model, params: Mapping[str, Any], n_ctx: int, batch_invariant: bool = True, adapters: Adapters = ()
    ) -> None:
        self.n_ctx = n_ctx
        self._adapters = adapters  # that the context has
        self._n_batch: int = params["n_batch"]
        self._n_texts: int = params["n_seq_max"]
        self.pooling_type = _pooling_of(model, params)
        self._batch_invariant = batch_invariant
        self._means = batch_invariant and not has_gpu() and self.pooling_type == llama.LLAMA_POOLING_TYPE_MEAN
        self._thread_pools: list[Any] = []
        self._jobs: collections.deque[Job] = collections.deque()
        self._computing: list[tuple[Job, int]] = []
        self._n_waiting, self._counting = 0, threading.Lock()
        self._stopped = ctypes.c_int32()  # whether to stop, for the engine in the middle of a batch
        self._worker: Worker[Job] = Worker("llama-cpp-embedder", self._run, lambda: None)
        wanted = llama.llama_context_default_params()
        pooling_type = llama.LLAMA_POOLING_TYPE_NONE if self._means else self.pooling_type
        set_fields(wanted, {**params, "pooling_type": pooling_type})
        wanted.abort_callback = ctypes.cast(libraries()["llama-common-c"].llama_common_is_set, ggml.ggml_abort_callback)
        wanted.abort_callback_data = ctypes.addressof(self._stopped)
        try:
            with model.in_use() as model_pointer, DeferredInterrupts():
                self._open(model, model_pointer, wanted)
            self._worker.start(self)
        except BaseException:
            # who keeps the traceback of Ctrl-C must not keep the memory
            if hasattr(self, "_handle"):
                self._handle.close()
            raise

    def _open(self, model: Model, model_pointer: llama.llama_model_p, wanted: llama.llama_context_params) -> None:
        scores = self.pooling_type == llama.LLAMA_POOLING_TYPE_RANK
        self.width: int = (llama.llama_model_n_cls_out if scores else llama.llama_model_n_embd_out)(model_pointer)
        if not scores and self.width != model.n_embd and not model.projects:
            raise InvalidArgumentError(
                f"The model's file says that its vectors have {self.width} numbers, and its layers have {model.n_embd}.",
                remedy="Its embedding_length_out must be that; kv_overrides can replace it.",
            )
        pointer = llama.llama_init_from_model(model_pointer, wanted)
        if not pointer:
            raise ContextCreationError(
                f"The engine could not create a context for texts of {self.n_ctx} tokens.",
                remedy="Ask for a smaller n_ctx or n_batch; the log (llama_cpp.native) has more.",
            )
        self._handle = NativeHandle(pointer, self._free, parent=model.in_use())
        self._thread_pools = [] if has_gpu() else attach_threads(pointer)
        if self._adapters:
            set_adapters(pointer, self._adapters)
        if has_gpu():
            # a GPU's backend ends the process where there is no memory: now, then, and not in the middle of a request
            self._compute(pointer, [[0] * self.n_ctx] * min(self._n_texts, self._n_batch // self.n_ctx))

    def _free(self, context: Any) -> None:
        llama.llama_free(context)
        free_threads(self._thread_pools)

    @property
    def context_pointer(self) -> Any:
        """The ``llama_context *``, for calls this package does not wrap."""
        return self._handle.pointer

    def submit(self, texts: Sequence[Sequence[int]], adapters: Adapters = ()) -> Job:
        """Queues texts, each of 1 to n_ctx tokens of the vocabulary; the job's future gets their vectors.

        What has the same ``adapters`` can be in the same batch.

        A vector is float32, (width,), or with LLAMA_POOLING_TYPE_NONE (tokens, width).

        Raises:
            ModelBusyError: too many texts wait. ModelClosedError, ForkedProcessError.
            Of the future: DecodeError, MemoryError, ModelClosedError.
        """
        self._handle.require_open()
        job = Job(texts, adapters)
        if not texts:
            job.future.set_result([])
            return job
        with self._counting:
            if self._n_waiting + len(texts) > self.MAX_WAITING:
                raise ModelBusyError(f"{self._n_waiting} texts are waiting already.", remedy="Ask for fewer at once.")
            self._n_waiting += len(texts)
        try:
            self._worker.post(job)
        except ModelClosedError as error:
            job.fail(error)
        return job

    def close(self) -> None:
        """Ends what is asked for with a ModelClosedError and frees the context. In a forked child it only forgets."""
        self.stop()
        self._handle.close()

    def stop(self, exiting: bool = False) -> None:
        """Ends what is asked for with a ModelClosedError; in a forked child, where there is no thread, it does nothing.

        Args:
            exiting: the interpreter ends, and only daemon threads can still wait: they are left waiting.
        """
        if self._worker.is_here:
            self._stopped.value = 1
        self._worker.stop(exiting)

    # --- its thread ---

    def _run(self) -> None:
        ggml_cpu_set_batch_invariant(self._batch_invariant)
        # the garbage collector may end a model in any thread, this one included
        with self._handle as pointer:
            while not self._worker.closing:
                try:
                    self._take_in()
                    self._step(pointer)
                except Exception as error:  # nobody shall wait for ever
                    logger.exception("computing vectors failed")
                    self._end_all(error)
        if not self._worker.exiting:
            self._end_all()

    def _take_in(self) -> None:
        inbox = self._worker.inbox
        while (not self._jobs and not self._worker.closing) or not inbox.empty():
            job = inbox.get()
            if job is not None:
                self._jobs.append(job)

    def _choose(self) -> list[tuple[Job, int]]:
        """The texts of the next batch, with the same adapters: one from each who has asked, in turn, as long as there is room."""
        chosen = self._computing
        room, n_dropped, n_passed = self._n_batch, 0, 0
        while self._jobs and len(chosen) < self._n_texts:
            job = self._jobs[0]
            if job.future.done():  # cancelled, or failed
                self._jobs.popleft()
                n_dropped += len(job.texts) - job.n_begun
                continue
            if chosen and job.adapters != chosen[0][0].adapters:
                n_passed += 1
                if n_passed == len(self._jobs):
                    break
                self._jobs.rotate(-1)
                continue
            n_passed = 0
            n = len(job.texts[job.n_begun])
            if n > room:
                break
            room -= n
            chosen.append((job, job.n_begun))
            job.n_begun += 1
            self._jobs.rotate(-1)
            if job.n_begun == len(job.texts):
                self._jobs.pop()
        with self._counting:
            self._n_waiting -= len(chosen) + n_dropped
        return chosen

    def _step(self, pointer: Any) -> None:
        chosen = self._choose()
        if not chosen:
            return
        adapters = chosen[0][0].adapters
        if adapters != self._adapters:
            set_adapters(pointer, adapters)
            self._adapters = adapters
        try:
            vectors = self._compute(pointer, [job.texts[number] for job, number in chosen])
        except Exception as error:
            if self._worker.closing:
                return
            if len(chosen) > 1:
                self._one_by_one(pointer, chosen)
            else:
                chosen[0][0].fail(error)
        else:
            for (job, number), vector in zip(chosen, vectors):
                job.take(number, vector)
        if not self._worker.closing:  # then _end_all() looks at them
            self._computing = []

    def _one_by_one(self, pointer: Any, chosen: Sequence[tuple[Job, int]]) -> None:
        """One of them is refused, or all take too much memory together."""
        for job, number in chosen:
            if self._worker.closing or job.future.done():
                continue
            try:
                job.take(number, self._compute(pointer, [job.texts[number]])[0])
            except Exception as error:
                if not self._worker.closing:
                    job.fail(error)

    def _compute(self, pointer: Any, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        lengths = np.array([len(text) for text in texts], np.int32)
        tokens = np.concatenate([np.asarray(text, np.int32) for text in texts])
        by_token = self._means or self.pooling_type == llama.LLAMA_POOLING_TYPE_NONE
        vectors = np.empty((len(tokens) if by_token else len(texts), self.width), np.float32)
        result = ctypes.c_int32()
        integers = ctypes.POINTER(ctypes.c_int32)
        call(
            native.llama_common_embed, pointer, len(texts), lengths.ctypes.data_as(integers),
            tokens.ctypes.data_as(integers), vectors.ctypes.data_as(_FLOAT), vectors.size, ctypes.byref(result),
        )  # fmt: skip
        if result.value != 0:
            raise DecodeError(
                f"llama_decode() returned {result.value} for {len(texts)} texts of {len(tokens)} tokens.",
                remedy="The model can be used again; the log (llama_cpp.native) has more.",
            )
        if not by_token:
            return [vector.copy() for vector in vectors]  # who keeps one must not keep them all
        of_texts = np.split(vectors, np.cumsum(lengths)[:-1])
        return [own.mean(axis=0) for own in of_texts] if self._means else [own.copy() for own in of_texts]

    def _end_all(self, error: BaseException | None = None) -> None:
        """Ends whatever was asked for: a text that was chosen for a batch may be the last one of its job."""
        while not self._worker.inbox.empty():
            job = self._worker.inbox.get()
            if job is not None:
                self._jobs.append(job)
        with self._counting:
            self._n_waiting -= sum(len(job.texts) - job.n_begun for job in self._jobs)
        for job in [job for job, _ in self._computing] + list(self._jobs):
            job.fail(model_closed() if error is None else DecodeError(f"Computing vectors failed ({error!r})."))
        self._computing = []
        self._jobs.clear()


def _pooling_of(model: Model, params: Mapping[str, Any]) -> int:
    """How vectors are pooled: as was asked for, or as the model's file says, or not at all."""
    pooling: int = params.get("pooling_type", llama.LLAMA_POOLING_TYPE_UNSPECIFIED)
    if pooling == llama.LLAMA_POOLING_TYPE_UNSPECIFIED:
        metadata = model.metadata()
        key = f"{metadata.get('general.architecture')}.pooling_type"
        own = str(model.overrides.get(key, metadata.get(key, "")))
        pooling = int(own) if own.lstrip("-").isdigit() else llama.LLAMA_POOLING_TYPE_NONE
        if pooling == llama.LLAMA_POOLING_TYPE_UNSPECIFIED:
            pooling = llama.LLAMA_POOLING_TYPE_NONE
        if pooling not in _POOLINGS:  # the engine ends the process
            raise InvalidArgumentError(
                f"The model's pooling_type is {own}, which does not exist.", remedy="Give another pooling_type."
            )
    if pooling == llama.LLAMA_POOLING_TYPE_RANK and not model.classifies:
        raise InvalidArgumentError("LLAMA_POOLING_TYPE_RANK needs a model that classifies.", remedy="Give another pooling_type.")
    return pooling

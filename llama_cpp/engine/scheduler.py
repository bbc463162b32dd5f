"""The batching engine: one thread owns the context, and everybody's requests share its batches.

A turn of its loop takes in what was asked meanwhile, gives free sequences to waiting requests, computes a batch, samples a
token for each output and hands the tokens out. As long as nobody comes or goes, the call that samples goes on from batch to
batch by itself, without Python. On a GPU the tokens of one batch are handed out while the next is computed.
"""

from __future__ import annotations

import collections
import functools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..capi import llama
from ..capi.handle import Uncopyable
from ..errors import (
    ContextFullError,
    ContextLengthError,
    DecodeError,
    InvalidArgumentError,
    ModelBusyError,
    ModelClosedError,
    NativeError,
)
from ..models.model import Model
from .batches import BatchPart, EqualBatches, MixedBatches, Slot, Turns, write
from .cache_kinds import pays_per_sequence
from .decoder import Decoder, can_be_cut, ggml_cpu_set_batch_invariant
from .multi_step import MultiStep
from .prefix_cache.saved_states import SavedStates, fingerprint_of
from .prefix_cache.stores import BaseLlamaCache
from .requests import Request, put_all
from .sampling import BatchSampler, Statistics, in_sampling_thread, score_prompt
from .sequence_pool import PerSequencePool, SharedPool
from .speculative.drafter import Drafter
from .speculative.verifier import Verifier
from .worker_threads import stop_at_exit

logger = logging.getLogger("llama_cpp")

# what llama_decode() returns when the cache has none; when it was stopped; when it refuses a batch and computes nothing
_NO_ROOM, _STOPPED, _INVALID = 1, 2, -1


class BatchingEngine(Uncopyable):
    """Generates for any number of requests at once. Any thread may call it.

    Args:
        params: fields of ``llama_context_params`` by name, without the numbers of sequences.
        n_parallel: how many requests are computed at once; others wait.
        n_ctx: tokens of one request at most; 0 is what a sequence can hold.
        n_kept: how many earlier requests' tokens are kept for those that begin alike; None is n_parallel, at least 8.
        max_waiting: how many requests may wait.
        draft_source: where drafts of following tokens come from, as :class:`~.speculative.drafter.Drafter` takes it.
        n_draft: how many tokens are drafted at most.
        batch_invariant: a CPU computes a token in one way, whatever else is in its batch or in the cache.
        repeatable: what a lone request's tokens are computed with does not depend on what was asked before: prompts are read
            from multiples of n_batch tokens on, and what was computed in other ways is not kept.

    Attributes:
        n_ctx: tokens of one request at most.
        statistics: what was done; read it from any thread.

    Raises:
        ContextCreationError: as :class:`~llama_cpp.engine.decoder.Decoder` does.
    """

    def __init__(
        self,
        model: Model,
        params: Mapping[str, Any],
        n_parallel: int,
        n_ctx: int = 0,
        n_kept: int | None = None,
        max_waiting: int = 4096,
        draft_source: str | os.PathLike[str] | None = None,
        n_draft: int = 0,
        n_gpu_layers: int = -1,
        batch_invariant: bool = True,
        repeatable: bool = False,
    ) -> None:
        self._model = model
        self._rounding = batch_invariant, repeatable
        self._repeatable = repeatable
        self._max_waiting = max_waiting
        unified = params["kv_unified"]
        n_kept = min(max(n_parallel, 8), llama.llama_max_parallel_sequences() - n_parallel) if n_kept is None else n_kept
        in_place = not unified or pays_per_sequence(model)
        # each of those that generate must find its place in a batch
        at_least = {name: max(params[name], n_parallel) for name in ("n_batch", "n_ubatch") if name in params}
        n_sequences = n_parallel + (0 if in_place else n_kept)
        params = {**params, **at_least, "n_seq_max": n_sequences}
        n_draft = n_draft if draft_source else 0
        if n_draft and not can_be_cut(model):
            params["n_rs_seq"] = n_draft  # states to go back to
            # what may be taken back is never split, and the engine asserts that a batch is larger
            params.update({name: max(params[name], n_draft + 2) for name in at_least})
        self._decoder = Decoder(model, params, n_parallel, n_draft)
        unit = self._decoder.n_batch if repeatable else 1
        if in_place:
            self._sequences = PerSequencePool(self._decoder, n_parallel, unit)
        else:
            self._sequences = SharedPool(self._decoder, n_parallel, n_kept, unit)
        self._batches: MixedBatches | EqualBatches = MixedBatches(self._decoder)
        if not unified and self._decoder.unlimited_cut:
            self._batches = EqualBatches(self._decoder, whole=repeatable)
        elif n_draft and not self._decoder.unlimited_cut:
            self._batches = EqualBatches(self._decoder, fill=False, whole=repeatable)
        self._params = params
        self._turns = Turns(self._decoder)
        drafter: Drafter | None = None
        if draft_source and n_draft:
            try:
                drafter = Drafter(self._decoder, params, draft_source, n_draft, n_gpu_layers, always=repeatable)
            except BaseException:
                self._decoder.close()
                raise
        # exactly so many: the engine's cache has room for more, as it rounds up
        self.n_ctx = min(self._decoder.n_ctx, n_ctx or self._decoder.n_ctx)
        self.statistics = Statistics()
        self._is_end = functools.cache(model.is_end)  # the engine is asked once for each token
        self._n_cells = params["n_ctx"] if unified else None  # of which all requests take theirs
        self._multi_step = MultiStep(self._decoder, n_parallel)
        self._verifier = Verifier(drafter, self.statistics, self._sample, self._rollback)
        self._suspects: list[Slot] = []
        self._cancelled_meanwhile = False
        self._computing: list[Request] = []  # whose tokens are in the batch that the engine's thread waits for
        self._stopping = threading.RLock()  # of who waits for that; the garbage collector may cancel in any thread
        self._blocked = False  # who waits does so for room, until somebody ends
        self._waiting: collections.deque[Request] = collections.deque()
        self._slots: list[Slot] = []
        self._outgoing: list[tuple[Request, int | None]] = []
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._batch_sampler = BatchSampler(
            self._decoder, n_parallel, self.statistics, self._give, self._end, self._lose, self._later
        )
        self._closing = self._exiting = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="llama-cpp-engine", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._verifier.close()
            self._decoder.close()
            raise
        stop_at_exit(self)

    # --- for everybody ---

    @property
    def context_pointer(self) -> Any:
        """The ``llama_context *``, for calls this package does not wrap."""
        return self._decoder.pointer

    def check_prompt(self, prompt: Sequence[int]) -> None:
        """Raises InvalidArgumentError or ContextLengthError for a prompt that cannot be continued."""
        if not prompt:
            raise InvalidArgumentError("The prompt has no tokens to begin with.", remedy="Give some text.")
        self._model.check_tokens(prompt)
        if len(prompt) >= self.n_ctx:
            raise ContextLengthError(len(prompt), self.n_ctx)

    def submit(self, request: Request) -> None:
        """Queues a request whose prompt was checked; its token_queue gets the tokens.

        Raises:
            ModelBusyError: too many requests wait, or this one would wait for who waits for it.
            ModelClosedError, ForkedProcessError.
        """
        self._decoder.in_use().require_open()
        if in_sampling_thread() and not self._sequences.n_free and all(slot.request.calls_python for slot in list(self._slots)):
            raise ModelBusyError(
                "Every request that is computed waits for Python code, "
                "and this one, which is asked by such code, for one of them.",
                remedy="Raise n_parallel.",
            )
        n_waiting = len(self._waiting) + self._inbox.qsize()
        if n_waiting >= self._max_waiting:
            raise ModelBusyError(f"{n_waiting} requests are waiting already.", remedy="Try again when some have ended.")
        request.wake = self._cancelled
        self._post(lambda: self._waiting.append(request))

    def reset(self) -> None:
        """Forgets what earlier requests left in the cache."""
        self._decoder.in_use().require_open()
        done = threading.Event()

        def clear() -> None:
            self._sequences.clear()
            done.set()

        self._post(clear)
        while not done.wait(0.1) and self._thread.is_alive():
            pass

    def keep_in(self, cache: BaseLlamaCache | None) -> None:
        """Keeps in ``cache`` what has to make room, and finds there what was kept; None ends that."""
        self._decoder.in_use().require_open()
        saved = None if cache is None else SavedStates(cache, fingerprint_of(self._model, self._params, *self._rounding))

        def change() -> None:
            self._sequences.saved = saved

        self._post(change)

    def close(self) -> None:
        """Ends every request with a ModelClosedError and frees the context. In a forked child it only forgets."""
        self.stop()
        self._decoder.close()

    def stop(self, exiting: bool = False) -> None:
        """Ends every request with a ModelClosedError. In a forked child, where there is no thread, it does nothing.

        Args:
            exiting: the interpreter ends. Only daemon threads can still wait for a request then; they are left waiting, to end
                as silently as they would otherwise.
        """
        self._exiting = self._exiting or exiting
        self._closing = True
        if os.getpid() != self._pid:
            return
        self._inbox.put(lambda: None)
        self._multi_step.hold_back()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        self._batch_sampler.close(self._exiting)

    def _cancelled(self) -> None:
        if os.getpid() != self._pid:
            return  # a forked child, which may have inherited the lock held
        self._inbox.put(self._note_cancelled)
        self._multi_step.hold_back()
        with self._stopping:
            if self._computing and all(request.cancelled for request in self._computing):
                self._decoder.stop(True)  # nobody wants what is computed

    def _post(self, action: Callable[[], None]) -> None:
        self._inbox.put(action)
        self._multi_step.hold_back()
        if self._closing:
            if self._exiting and threading.current_thread() is not threading.main_thread():
                threading.Event().wait()  # a daemon thread, which the interpreter is about to end
            raise ModelClosedError("The model is closed.", remedy="Create a new Llama.")

    # --- the engine's thread ---

    def _run(self) -> None:
        ggml_cpu_set_batch_invariant(self._rounding[0])
        # the garbage collector may end a model in any thread, this one included
        with self._decoder.in_use():
            self._work()
            self._verifier.close()

    def _work(self) -> None:
        try:
            worked = False
            while not self._closing:
                try:
                    self._take_in(wait=not worked)
                    started = time.perf_counter()
                    self._admit()
                    worked = self._step()
                    self.statistics.seconds += time.perf_counter() - started
                except Exception as error:
                    worked = True
                    self._recover(error)
        except BaseException as error:
            self._closing = True
            logger.exception("the engine's thread failed")
            self._end_all(error)
        finally:
            self._end_all(ModelClosedError("The model is closed.", remedy="Create a new Llama."))
            self._sequences.save_all()

    def _take_in(self, wait: bool) -> None:
        """Does what was asked of the engine; waits for something to be asked when there is nothing else to do."""
        if wait:
            self._hand_out()
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()
        for slot in [slot for slot in self._slots if slot.request.cancelled]:
            self._end(slot)
        if self._cancelled_meanwhile:
            self._cancelled_meanwhile = False
            self._blocked = False  # whoever it was for may be among them
            self._outgoing += [(request, None) for request in self._waiting if request.cancelled]
            self._waiting = collections.deque(request for request in self._waiting if not request.cancelled)

    def _note_cancelled(self) -> None:
        self._cancelled_meanwhile = True

    def _admit(self) -> None:
        """Gives free sequences to those that wait and fit in, first come, first served."""
        while self._waiting and not self._blocked:
            request = self._waiting[0]
            if request.cancelled:
                self._waiting.popleft()
                self._outgoing.append((request, None))
                continue
            if self._decoder.copies_wait:
                if self._slots:
                    return  # what they compute next settles it
                try:
                    self._sequences.settle()
                except (NativeError, MemoryError) as error:
                    request.error = DecodeError(f"llama_decode() failed ({error}).", remedy="Try again, or open the model anew.")
                    self._outgoing.append((self._waiting.popleft(), None))
                    continue
            if not self._fits(request):
                self._blocked = True
                return
            first = self._repeatable and self._n_cells is not None and not self._slots
            taken = self._sequences.take(request.tokens, request.key, first)
            if taken is None:
                return
            slot = Slot(request, *taken, n_whole=taken.n_held)
            self._waiting.popleft()
            self._slots.append(slot)
            if len(self._slots) > 1:
                for beside in self._slots:
                    beside.alone = False
            if not request.begun:
                request.begun = time.perf_counter()
                request.generation.n_cached = slot.n_held

    def _fits(self, request: Request) -> bool:
        """Whether there is room for another request beside those that run, if all that is kept is given up."""
        if self._n_cells is None or not self._slots:
            return True
        n_own = len(request.tokens) - self._sequences.n_shareable(request.tokens, request.key)
        return bool(n_own + sum(len(slot.request.tokens) - slot.n_shared for slot in self._slots) < self._n_cells)

    def _step(self) -> bool:
        """Computes a batch and samples what follows; False when there was nothing to compute."""
        started = time.perf_counter()
        status: int | Exception
        parts, status = self._multi_step.take_begun(self._slots)
        if not parts:
            parts, status = self._begin()
        if not parts:
            return False
        n_tokens = sum(len(part.tokens) for part in parts)
        n_steps = self.statistics.n_steps
        self.statistics.n_steps += 1
        self.statistics.n_tokens += n_tokens
        self._hand_out()
        if status == _STOPPED:
            self._end_stopped(parts)
            return True
        if status == _NO_ROOM:
            if not self._verifier.drop_drafts(parts):
                self._make_room()
            return True
        if status == _INVALID and len(parts) > 1:
            # one of them, and each alone will tell which
            self._suspects = [part.slot for part in parts if part.slot]
            return True
        if status != 0:
            self._fail(parts, status)
            return True
        self._verifier.process(n_tokens, self._slots)
        for part in parts:
            if part.slot is None:
                self._decoder.cut(part.sequence, part.start)
            else:
                part.slot.n_ahead = max(part.n_outputs - 1, 0)
                self._count(part.slot, len(part.tokens) - part.slot.n_ahead)
                # cells that are shared have others between them, or behind, when somebody else runs
                if self._repeatable and len(parts) == 1 and (part.slot.alone or self._n_cells is None):
                    part.slot.count_whole(part, self._decoder.n_batch)
        lost = [part for part in parts if part.n_scored and not self._score(part)]
        outputs = [(part.slot, part.row) for part in parts if part.slot and part.row >= 0 and part not in lost]
        n_before = self.statistics.n_outputs
        if max(part.n_outputs for part in parts) > 1:
            self._verifier.verify(outputs)
        else:
            self._sample(outputs, parts if n_tokens == len(outputs) and self._may_multi_step(outputs) else None)
        seconds = (time.perf_counter() - started) / (self.statistics.n_steps - n_steps)
        self._batches.burst.note(parts, seconds, waited=bool(outputs) or not self._decoder.on_device)
        generated = n_tokens == sum(part.n_outputs for part in parts)
        self._verifier.note_time(len(outputs) * generated, self.statistics.n_outputs - n_before, seconds)
        return True

    def _begin(self) -> tuple[list[BatchPart], int | Exception]:
        """Begins a batch; returns what is in it, nothing when there is nothing to do, and how that went."""
        slots = self._turns.choose(self._suspect() or self._slots)
        parts = self._batches.choose(slots, self._verifier.draft(slots, self.n_ctx))
        if not parts:
            return [], 0
        n_tokens = write(self._decoder, parts)
        if not self._decoder.on_device:
            self._hand_out()  # as late as that: who wakes up before this thread is in the library has to wait for it
        decoding = time.perf_counter()
        with self._stopping:
            self._computing = [part.slot.request for part in parts if part.slot]
        try:
            status = self._decoder.decode(n_tokens)
        except (NativeError, MemoryError) as error:  # for what a batch of another shape needs
            return parts, error
        finally:
            with self._stopping:
                self._computing = []
                self._decoder.stop(False)
        self.statistics.native_seconds += time.perf_counter() - decoding
        return parts, status

    def _may_multi_step(self, outputs: Sequence[tuple[Slot, int]]) -> bool:
        """Whether the next batches, too, will be of those that generate in this one, until one of their tokens is the last."""
        if self._verifier.wanted or len(outputs) != len(self._slots):
            return False
        if self._waiting and not self._blocked and self._sequences.n_free:
            return False
        self._multi_step.allow()
        return self._inbox.empty() and self._multi_step.prepare([slot.request for slot, _ in outputs], self.n_ctx)

    def _suspect(self) -> list[Slot]:
        """The next one of a batch that was refused, to be computed alone; empty when there is none."""
        while self._suspects:
            slot = self._suspects.pop()
            if slot in self._slots and slot.n_pending:
                return [slot]
        return []

    def _rollback(self, slot: Slot) -> None:
        """Removes from a sequence what was computed of a draft and is not its own."""
        if slot.n_ahead and not self._sequences.take_back(slot.sequence, slot.n_held):
            slot.n_held = 0  # to be computed once more
        slot.draft, slot.n_ahead = [], 0

    def _score(self, part: BatchPart) -> bool:
        """Notes the log-probabilities of the prompt's tokens that follow those of a batch; False if that ended the request."""
        assert part.slot is not None
        error = score_prompt(self._decoder, part, part.slot.request)
        if error is not None:
            self._end(part.slot, error)
        return error is None

    def _count(self, slot: Slot, n: int) -> None:
        """Notes that a request's sequence holds ``n`` tokens more."""
        slot.n_held += n
        if slot.stops and slot.n_held == slot.stops[0]:
            del slot.stops[0]
            self._sequences.checkpoint(slot.sequence, slot.n_held)

    def _kept(self, slot: Slot) -> Sequence[int]:
        """The tokens of a request that others can begin with."""
        return slot.request.tokens[: min(slot.n_held, slot.n_whole) if self._repeatable else slot.n_held]

    def _sample(self, outputs: Sequence[tuple[Slot, int]], multi_step: list[BatchPart] | None = None) -> None:
        """Samples a token for each output and gives it to its request, or to be sampled in another thread.

        Batches that follow may be computed at once, when they are to be of the same parts, ``multi_step``.
        """
        for slot in self._batch_sampler.sample(outputs, self._multi_step if multi_step else None, multi_step or []):
            self._rollback(slot)

    def _later(self, slot: Slot, action: Callable[[], None]) -> None:
        """Lets the engine's thread do something for a request, if it still runs then."""
        self._inbox.put(lambda: action() if slot in self._slots else None)
        self._multi_step.hold_back()

    def _give(self, slot: Slot, token: int) -> None:
        """Adds a token to a request, or ends it."""
        request = slot.request
        if self._is_end(token):
            request.generation.finish_reason = "stop"
            self._end(slot)
            return
        first = not request.generation.tokens
        request.count(token)
        self._outgoing.append((request, token))
        request.n_left -= 1
        if request.n_left == 0:
            request.generation.finish_reason = "length"
            self._end(slot)
        elif len(request.tokens) >= self.n_ctx:
            self._fill_up(slot)
        elif first:
            # from now on others can begin with this prompt
            self._sequences.note(slot.sequence, self._kept(slot), request.key)

    def _fill_up(self, slot: Slot) -> None:
        """Does what a request wants when its context is full."""
        self._rollback(slot)
        request = slot.request
        if request.context_full == "error":
            self._end(slot, ContextFullError(self.n_ctx))
        elif request.context_full == "shift" and not self._decoder.can_shift:
            self._end(slot, ContextFullError(self.n_ctx, can_shift=False))
        elif request.context_full == "shift":
            n_kept = 1  # the first token takes up much of the attention (Xiao et al. 2023, "attention sinks")
            n = max(slot.n_held - n_kept, 0) // 2
            if not n:  # a context of two or three tokens
                request.generation.finish_reason = "length"
                self._end(slot)
                return
            del request.tokens[n_kept : n_kept + n]
            if self._n_cells is None or not self._sequences.is_copied(slot.sequence):
                self._decoder.shift(slot.sequence, n_kept, n)
                slot.n_held -= n
            else:
                # others hold these cells, too: what remains is read again, into cells of its own
                slot.n_held = n_kept if self._sequences.take_back(slot.sequence, n_kept) else 0
                slot.n_shared = slot.n_held
            # what remains was computed with what is gone in sight: no other request may begin with it
            request.key, request.shares = object(), False
            self._sequences.note(slot.sequence, request.tokens[: slot.n_held], request.key)
        else:
            request.generation.finish_reason = "length"
            self._end(slot)

    def _end(self, slot: Slot, error: BaseException | None = None) -> None:
        """Ends a request and frees its sequence; what it holds is kept for others."""
        self._blocked = False
        slot.request.error = error
        self._rollback(slot)
        self._slots.remove(slot)
        self._sequences.give_back(slot.sequence, self._kept(slot) if slot.request.shares else [], slot.request.key)
        self._outgoing.append((slot.request, None))

    def _make_room(self) -> None:
        """The cache has no room for the batch: gives up what is kept, or preempts the last request."""
        if self._sequences.evict():
            return
        last = [slot for slot in self._slots if slot.n_pending][-1]
        if len(self._slots) == 1:
            self._end(last, DecodeError("The KV cache has no room for this request.", remedy="Raise n_kv or n_ctx."))
            return
        self._slots.remove(last)
        self._sequences.give_back(last.sequence, [], None)
        self._waiting.appendleft(last.request)
        self._blocked = True

    def _end_stopped(self, parts: Sequence[BatchPart]) -> None:
        """Ends the requests of a batch that was stopped in its middle, because none of them is wanted any more."""
        for slot in [part.slot for part in parts if part.slot]:
            slot.n_held = slot.n_ahead = 0  # nobody knows how far it came
            self._end(slot)

    def _fail(self, parts: Sequence[BatchPart], why: int | Exception) -> None:
        """The engine failed: the requests in the batch end, the others go on."""
        what = f"llama_decode() returned {why}" if isinstance(why, int) else f"llama_decode() failed ({why})"
        error = DecodeError(
            f"{what} for a batch of {sum(len(part.tokens) for part in parts)} tokens.",
            remedy="The model can be used again; the log (llama_cpp.native) has more.",
        )
        self._lose([part.slot for part in parts if part.slot], error)

    def _recover(self, error: Exception) -> None:
        """What nobody has foreseen: whoever runs ends with it, or else who would be next, and the others go on."""
        logger.exception("the engine failed, and goes on without the requests it was working on")
        failed = DecodeError(
            f"The engine failed ({error!r}).", remedy="The model can be used again; the log (llama_cpp) has more."
        )
        if not self._slots and self._waiting:
            self._waiting[0].error = failed
            self._outgoing.append((self._waiting.popleft(), None))
        self._lose(self._slots, failed)

    def _lose(self, slots: Sequence[Slot], error: BaseException) -> None:
        """Ends requests of whose sequences nobody knows what they hold."""
        for slot in slots:
            slot.n_held = slot.n_ahead = 0
        self._end_each(slots, error)

    def _hand_out(self) -> None:
        """Gives tokens to those who wait for them, and logits to those who sample from them."""
        self._batch_sampler.start_deferred(self._slots)
        outgoing, self._outgoing = self._outgoing, []
        put_all(outgoing)

    def _end_each(self, slots: Sequence[Slot], error: BaseException) -> None:
        for slot in list(slots):
            try:
                self._end(slot, error)
            except Exception:  # whatever happened to its sequence: nobody shall wait for ever
                logger.exception("a request could not be ended as it should")
                self._outgoing.append((slot.request, None))
                self._slots = [other for other in self._slots if other is not slot]

    def _end_all(self, error: BaseException) -> None:
        self._end_each(self._slots, error)
        while not self._inbox.empty():
            self._inbox.get()()
        for request in self._waiting:
            request.error = error
            self._outgoing.append((request, None))
        self._waiting.clear()
        if not self._exiting:
            self._hand_out()

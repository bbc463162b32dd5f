"""The scheduler: the loop of the thread that owns a context, whose batches everybody's requests share.

A turn of its loop takes in what was asked meanwhile, and gives free sequences to waiting requests. It computes a batch, samples
a token for each output and hands the tokens out. As long as nobody comes or goes, the call that samples goes on from batch to
batch without Python (multi-step decoding). On a GPU the tokens of one batch are handed out while the next is computed.

One token's way: ``_begin`` puts the last one into a batch and decodes it. ``_step`` samples the next one, and ``_apply`` appends
it to its request. ``_deliver`` puts it into the queue that its caller reads.
"""

from __future__ import annotations

import collections
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..capi import llama
from ..capi.handle import Uncopyable
from ..errors import (
    ContextFullError,
    DecodeError,
    LlamaCppError,
    NativeError,
)
from ..models.model import Model
from .batches import BatchPart, EqualBatches, MixedBatches, Turns, write
from .cache_kinds import pays_per_sequence
from .decoder import Decoder, can_be_cut, ggml_cpu_set_batch_invariant
from .multi_step import MultiStep
from .plan import Batches, ModelFacts, Pool, plan_context
from .requests import Request, put_all
from .sampling import BatchSampler, DeferredOutcome, Sampled, Statistics, score_prompt
from .sequence_pool import PerSequencePool, SharedPool
from .slots import Slot
from .speculative.drafter import Drafter
from .speculative.verifier import Verifier
from .worker import Worker, model_closed

logger = logging.getLogger("llama_cpp")

# what llama_decode() returns when the cache has none; when it was stopped; when it refuses a batch and computes nothing
_NO_ROOM, _STOPPED, _INVALID = 1, 2, -1


class Scheduler(Uncopyable):
    """The loop and what it works on: requests that wait, slots, a context. For its own thread, except what says otherwise.

    Args:
        params: fields of ``llama_context_params`` by name, without the numbers of sequences.
        n_parallel: how many requests are computed at once; others wait.
        n_ctx: tokens of one request at most; 0 is what a sequence can hold.
        n_kept: how many earlier requests' tokens are kept for those that begin alike; None is n_parallel, at least 8.
        draft_source: where drafts of following tokens come from, as :class:`~.speculative.drafter.Drafter` takes it.
        n_draft: how many tokens are drafted at most.
        batch_invariant: a CPU computes a token in one way, whatever else is in its batch or in the cache.
        repeatable: what a lone request's tokens are computed with does not depend on what was asked before: prompts are read
            from multiples of n_batch tokens on, and what was computed in other ways is not kept.

    Attributes:
        n_ctx: tokens of one request at most. statistics: what was done. worker: the thread, and its inbox.
        waiting: requests without a sequence, first come first. slots: requests that have one.
        sequences: which sequence holds what. decoder: the context.

    Raises:
        ContextCreationError: as :class:`~.decoder.Decoder` does.
    """

    def __init__(
        self,
        model: Model,
        params: Mapping[str, Any],
        n_parallel: int,
        n_ctx: int = 0,
        n_kept: int | None = None,
        draft_source: str | os.PathLike[str] | None = None,
        n_draft: int = 0,
        n_gpu_layers: int = -1,
        batch_invariant: bool = True,
        repeatable: bool = False,
    ) -> None:
        self.model = model
        self.rounding = batch_invariant, repeatable
        self._repeatable = repeatable
        plan = plan_context(
            ModelFacts(pays_per_sequence(model), can_be_cut(model)), params, n_parallel,
            n_draft=n_draft if draft_source else 0, n_kept=n_kept, most_sequences=llama.llama_max_parallel_sequences(),
        )  # fmt: skip
        self.params = plan.params
        self._n_cells = plan.n_cells
        self.decoder = Decoder(model, plan.params, n_parallel, plan.n_draft)
        unit = self.decoder.n_batch if repeatable else 1
        if plan.pool is Pool.SHARED:
            self.sequences: PerSequencePool = SharedPool(self.decoder, n_parallel, plan.n_kept, unit)
        else:
            self.sequences = PerSequencePool(self.decoder, n_parallel, unit)
        self._batches: MixedBatches | EqualBatches = MixedBatches(self.decoder)
        if plan.batches is not Batches.MIXED:
            self._batches = EqualBatches(self.decoder, fill=plan.batches is Batches.EQUAL, whole=repeatable)
        self._turns = Turns(self.decoder)
        drafter: Drafter | None = None
        if draft_source and plan.n_draft:
            try:
                drafter = Drafter(self.decoder, plan.params, draft_source, plan.n_draft, n_gpu_layers, always=repeatable)
            except BaseException:
                self.decoder.close()
                raise
        # exactly so many: the engine's cache has room for more, as it rounds up
        self.n_ctx = min(self.decoder.n_ctx, n_ctx or self.decoder.n_ctx)
        self.statistics = Statistics()
        self._is_end = functools.cache(model.is_end)  # the engine is asked once for each token
        self.multi_step = MultiStep(self.decoder, n_parallel)
        self.verifier = Verifier(drafter, self.statistics)
        self._suspects: list[Slot] = []
        self._cancelled_meanwhile = False
        self._computing: list[Request] = []  # whose tokens are in the batch that the engine's thread waits for
        self._stopping = threading.RLock()  # of who waits for that; the garbage collector may cancel in any thread
        self._blocked = False  # who waits does so for room, until somebody ends
        self.waiting: collections.deque[Request] = collections.deque()
        self.slots: list[Slot] = []
        self._with_media: list[Slot] = []  # those whose prompts have media that is not read yet
        self._outgoing: list[tuple[Request, int | None]] = []
        self.worker: Worker[Callable[[], None] | DeferredOutcome] = Worker(
            "llama-cpp-engine", self._run, self.multi_step.hold_back
        )
        self._sampler = BatchSampler(self.decoder, n_parallel, self.statistics, self.worker.put)

    def close(self) -> None:
        """Frees the context, of a scheduler whose thread was not started. Else that frees what is its own when it ends."""
        self.verifier.close()
        self.decoder.close()

    # --- for any thread ---

    def stop(self, exiting: bool = False) -> None:
        """Ends the thread, and every request with a ModelClosedError; in a forked child it does nothing."""
        if self.worker.stop(exiting):
            self._sampler.close(self.worker.exiting)

    def cancelled(self) -> None:
        """Tells it that a request was cancelled."""
        if not self.worker.is_here:
            return  # a forked child, which may have inherited the lock held
        self.worker.put(self._note_cancelled)
        with self._stopping:
            if self._computing and all(request.cancelled for request in self._computing):
                self.decoder.stop(True)  # nobody wants what is computed

    # --- the engine's thread ---

    def _run(self) -> None:
        ggml_cpu_set_batch_invariant(self.rounding[0])
        # the garbage collector may end a model in any thread, this one included
        with self.decoder.in_use():
            self._work()
            self.verifier.close()

    def _work(self) -> None:
        try:
            worked = False
            while not self.worker.closing:
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
            self.worker.closing = True
            logger.exception("the engine's thread failed")
            self._finish_all(error)
        finally:
            self._finish_all(model_closed())
            self.sequences.save_all()

    def _take_in(self, wait: bool) -> None:
        """Does what was asked of the engine; waits for something to be asked when there is nothing else to do."""
        inbox = self.worker.inbox
        if wait:
            self._deliver()
            self._do(inbox.get())
        while not inbox.empty():
            self._do(inbox.get())
        for slot in [slot for slot in self.slots if slot.request.cancelled]:
            self._finish(slot)
        if self._cancelled_meanwhile:
            self._cancelled_meanwhile = False
            self._blocked = False  # whoever it was for may be among them
            self._outgoing += [(request, None) for request in self.waiting if request.cancelled]
            self.waiting = collections.deque(request for request in self.waiting if not request.cancelled)

    def _do(self, item: Callable[[], None] | DeferredOutcome | None) -> None:
        if isinstance(item, DeferredOutcome):
            self._apply_deferred(item)
        elif item is not None:
            item()

    def _note_cancelled(self) -> None:
        self._cancelled_meanwhile = True

    def _admit(self) -> None:
        """Gives free sequences to those that wait and fit in, first come, first served."""
        while self.waiting and not self._blocked:
            request = self.waiting[0]
            if request.cancelled:
                self.waiting.popleft()
                self._outgoing.append((request, None))
                continue
            if self.decoder.copies_wait:
                if self.slots:
                    return  # what they compute next settles it
                try:
                    self.sequences.settle()
                except (NativeError, MemoryError) as error:
                    request.error = DecodeError(f"llama_decode() failed ({error}).", remedy="Try again, or open the model anew.")
                    self._outgoing.append((self.waiting.popleft(), None))
                    continue
            if not self._fits(request):
                self._blocked = True
                return
            first = self._repeatable and self._n_cells is not None and not self.slots
            taken = self.sequences.take(request.tokens, request.key, first)
            if taken is None:
                return
            slot = Slot(request, *taken, n_whole=taken.n_held)
            self.waiting.popleft()
            self.slots.append(slot)
            if slot.next_media >= 0:
                self._with_media.append(slot)
            if len(self.slots) > 1:
                for beside in self.slots:
                    beside.alone = False
            if not request.begun:
                request.begun = time.perf_counter()
                request.generation.n_cached = slot.n_held

    def _fits(self, request: Request) -> bool:
        """Whether there is room for another request beside those that run, if all that is kept is given up."""
        if self._n_cells is None or not self.slots:
            return True
        n_own = len(request.tokens) - self.sequences.n_shareable(request.tokens, request.key)
        return bool(n_own + sum(len(slot.request.tokens) - slot.n_shared for slot in self.slots) < self._n_cells)

    def _step(self) -> bool:
        """Computes a batch, samples what follows, and gives each request its token; False when there was nothing to compute."""
        started = time.perf_counter()
        status: int | Exception
        parts, status = self.multi_step.take_begun(self.slots)
        if not parts:
            parts, status = self._begin()
        if not parts:
            return False
        n_tokens = sum(len(part.tokens) for part in parts)
        n_steps = self.statistics.n_steps
        self.statistics.n_steps += 1
        self.statistics.n_tokens += n_tokens
        self._deliver()
        if status != 0:
            self._without_batch(parts, status)
            return True
        self.verifier.process(n_tokens, self.slots)
        self._advance(parts)
        outputs = self._outputs(parts)
        n_before = self.statistics.n_outputs
        if max(part.n_outputs for part in parts) > 1:
            self._verify(outputs)
        else:
            more = n_tokens == len(outputs) and self._may_multi_step(outputs)
            self._apply(outputs, self._sampler.sample(outputs, self.multi_step if more else None, parts))
        seconds = (time.perf_counter() - started) / (self.statistics.n_steps - n_steps)
        self._batches.burst.note(parts, seconds, waited=bool(outputs) or not self.decoder.on_device)
        generated = n_tokens == sum(part.n_outputs for part in parts)
        self.verifier.note_time(len(outputs) * generated, self.statistics.n_outputs - n_before, seconds)
        return True

    def _begin(self) -> tuple[list[BatchPart], int | Exception]:
        """Begins a batch; returns what is in it, nothing when there is nothing to do, and how that went."""
        if self._with_media:
            self._read_media()
        slots = self._turns.choose(self._suspect() or self.slots)
        parts = self._batches.choose(slots, self.verifier.draft(slots, self.n_ctx))
        if not parts:
            return [], 0
        n_tokens = write(self.decoder, parts)
        if not self.decoder.on_device:
            self._deliver()  # as late as that: who wakes up before this thread is in the library has to wait for it
        decoding = time.perf_counter()
        with self._stopping:
            self._computing = [part.slot.request for part in parts if part.slot]
        try:
            status = self.decoder.decode(n_tokens)
        except (NativeError, MemoryError) as error:  # for what a batch of another shape needs
            return parts, error
        finally:
            with self._stopping:
                self._computing = []
                self.decoder.stop(False)
        self.statistics.native_seconds += time.perf_counter() - decoding
        return parts, status

    def _read_media(self) -> None:
        """Computes the media chunks that come next in prompts; they share no batch with text."""
        self._with_media = [slot for slot in self._with_media if slot.next_media >= 0 and not slot.finished]
        for slot in self._with_media:
            while slot.n_held == slot.next_media and not slot.finished:
                chunk = slot.request.prompt.media[slot.next_media]
                try:
                    self.decoder.decode_media(chunk, slot.sequence, slot.n_held + slot.n_skew)
                except (LlamaCppError, MemoryError) as error:
                    self._finish(slot, error)
                else:
                    slot.advance_media()

    def _may_multi_step(self, outputs: Sequence[tuple[Slot, int]]) -> bool:
        """Whether the next batches, too, will be of those that generate in this one, until one of their tokens is the last."""
        if self.verifier.wanted or len(outputs) != len(self.slots):
            return False
        if self.waiting and not self._blocked and self.sequences.n_free:
            return False
        self.multi_step.allow()
        return self.worker.inbox.empty() and self.multi_step.prepare([slot.request for slot, _ in outputs], self.n_ctx)

    def _suspect(self) -> list[Slot]:
        """The next one of a batch that was refused, to be computed alone; empty when there is none."""
        while self._suspects:
            slot = self._suspects.pop()
            if slot in self.slots and slot.n_pending:
                return [slot]
        return []

    def _advance(self, parts: Sequence[BatchPart]) -> None:
        """Notes what sequences hold now, and takes checkpoints where they are due."""
        for part in parts:
            slot = part.slot
            if slot is None:
                self.decoder.cut(part.sequence, part.position)
                continue
            n_ahead = max(part.n_outputs - 1, 0)
            if slot.advance(len(part.tokens) - n_ahead, n_ahead):
                self.sequences.checkpoint(slot.sequence, slot.n_held)
            # cells that are shared have others between them, or behind, when somebody else runs
            if self._repeatable and len(parts) == 1 and (slot.alone or self._n_cells is None):
                slot.advance_whole(part.start, len(part.tokens), self.decoder.n_batch)

    def _outputs(self, parts: Sequence[BatchPart]) -> list[tuple[Slot, int]]:
        """The slots to sample for, with their rows; prompts are scored before."""
        outputs = []
        for part in parts:
            if part.slot is None:
                continue
            if part.n_scored:
                error = score_prompt(self.decoder, part, part.slot.request)
                if error is not None:
                    self._finish(part.slot, error)
                    continue
            if part.row >= 0:
                outputs.append((part.slot, part.row))
        return outputs

    def _verify(self, outputs: Sequence[tuple[Slot, int]]) -> None:
        """Samples along drafts, for as long as what was drafted is what is sampled."""
        drafted = {slot: len(slot.draft) for slot, _ in outputs if slot.draft}
        n_accepted = dict.fromkeys(drafted, 0)
        left = list(outputs)
        while left:
            self._apply(left, self._sampler.sample(left))
            following = []
            for slot, row in left:
                if slot.accept_draft():
                    n_accepted[slot] += 1
                    following.append((slot, row + 1))
                else:
                    slot.rollback(self.sequences)
            left = following
        for slot, n in drafted.items():
            self.verifier.learn(slot, n, n_accepted[slot])

    # --- what sampling has come to ---

    def _apply(self, outputs: Sequence[tuple[Slot, int]], sampled: Sampled) -> None:
        """Gives requests their tokens, ends those that cannot go on, and rolls back those whose token comes later."""
        if sampled.lost is not None:
            self._finish_lost([slot for slot, _ in outputs], sampled.lost)
            return
        for slot, token in sampled.tokens:
            self._append(slot, token)
        for slot, error in sampled.errors:
            self._finish(slot, error)
        for slot in sampled.deferred:
            slot.rollback(self.sequences)

    def _apply_deferred(self, outcome: DeferredOutcome) -> None:
        """The same for one request whose token another thread has sampled, if it still runs."""
        slot = outcome.slot
        if slot not in self.slots:
            return
        if outcome.error is not None:
            self._finish(slot, outcome.error)
        elif outcome.stopped:
            slot.request.generation.finish_reason = "stop"
            self._finish(slot)
        else:
            if outcome.logprobs is not None:
                slot.request.note_logprobs(outcome.token, *outcome.logprobs)
            self._append(slot, outcome.token)

    def _append(self, slot: Slot, token: int) -> None:
        """Adds a token to a request, or ends it."""
        request = slot.request
        if self._is_end(token):
            request.generation.finish_reason = "stop"
            self._finish(slot)
            return
        first = not request.generation.tokens
        request.count(token)
        self._outgoing.append((request, token))
        request.n_left -= 1
        if request.n_left == 0:
            request.generation.finish_reason = "length"
            self._finish(slot)
        elif len(request.tokens) >= self.n_ctx:
            self._fill_up(slot)
        elif first:
            # from now on others can begin with this prompt
            self.sequences.note(slot.sequence, self._kept(slot), request.key)

    def _fill_up(self, slot: Slot) -> None:
        """Does what a request wants when its context is full."""
        slot.rollback(self.sequences)
        request = slot.request
        if request.context_full == "error":
            self._finish(slot, ContextFullError(self.n_ctx))
        elif request.context_full == "shift" and not self.decoder.can_shift:
            self._finish(slot, ContextFullError(self.n_ctx, can_shift=False))
        elif request.context_full != "shift" or not self._shift(slot):
            request.generation.finish_reason = "length"
            self._finish(slot)

    def _shift(self, slot: Slot) -> bool:
        """Context shift: forgets the older half of a request; False in a context of two or three tokens."""
        n_kept = 1  # the first token takes up much of the attention (Xiao et al. 2023, "attention sinks")
        n = max(slot.n_held - n_kept, 0) // 2
        if not n:
            return False
        slot.shift(n_kept, n)
        if self._n_cells is None or not self.sequences.is_copied(slot.sequence):
            self.decoder.shift(slot.sequence, n_kept, n)
            slot.n_held -= n
        else:
            # others hold these cells, too: what remains is read again, into cells of its own
            slot.n_held = n_kept if self.sequences.take_back(slot.sequence, n_kept) else 0
            slot.n_shared = slot.n_held
        self.sequences.note(slot.sequence, slot.request.tokens[: slot.n_held], slot.request.key)
        return True

    def _kept(self, slot: Slot) -> Sequence[int]:
        """The tokens of a request that others can begin with."""
        return slot.request.tokens[: min(slot.n_held, slot.n_whole) if self._repeatable else slot.n_held]

    # --- where nothing was computed ---

    def _without_batch(self, parts: Sequence[BatchPart], status: int | Exception) -> None:
        """Does what a batch that was not computed calls for."""
        if status == _STOPPED:
            for slot in [part.slot for part in parts if part.slot]:  # none of them is wanted any more
                slot.lose()
                self._finish(slot)
        elif status == _NO_ROOM:
            if not self.verifier.drop_drafts(parts):
                self._make_room()
        elif status == _INVALID and len(parts) > 1:
            # one of them, and each alone will tell which
            self._suspects = [part.slot for part in parts if part.slot]
        else:
            what = f"llama_decode() returned {status}" if isinstance(status, int) else f"llama_decode() failed ({status})"
            error = DecodeError(
                f"{what} for a batch of {sum(len(part.tokens) for part in parts)} tokens.",
                remedy="The model can be used again; the log (llama_cpp.native) has more.",
            )
            self._finish_lost([part.slot for part in parts if part.slot], error)

    def _make_room(self) -> None:
        """The cache has no room for the batch: gives up what is kept, or preempts the last request."""
        if self.sequences.evict():
            return
        last = [slot for slot in self.slots if slot.n_pending][-1]
        if len(self.slots) == 1:
            self._finish(last, DecodeError("The KV cache has no room for this request.", remedy="Raise n_kv or n_ctx."))
        else:
            self._preempt(last)

    def _preempt(self, slot: Slot) -> None:
        """Takes a request its sequence; it waits, before all others, until somebody ends."""
        slot.finished = True
        self.slots.remove(slot)
        self.sequences.give_back(slot.sequence, [], None)
        self.waiting.appendleft(slot.request)
        self._blocked = True

    def _recover(self, error: Exception) -> None:
        """What nobody has foreseen: whoever runs ends with it, or else who would be next, and the others go on."""
        logger.exception("the engine failed, and goes on without the requests it was working on")
        failed = DecodeError(
            f"The engine failed ({error!r}).", remedy="The model can be used again; the log (llama_cpp) has more."
        )
        if not self.slots and self.waiting:
            self.waiting[0].error = failed
            self._outgoing.append((self.waiting.popleft(), None))
        self._finish_lost(self.slots, failed)

    # --- the end of requests ---

    def _finish(self, slot: Slot, error: BaseException | None = None) -> None:
        """Ends a request and frees its sequence; what it holds is kept for others."""
        self._blocked = False
        slot.request.error = error
        slot.finished = True
        slot.rollback(self.sequences)
        self.slots.remove(slot)
        self.sequences.give_back(slot.sequence, self._kept(slot) if slot.request.shares else [], slot.request.key)
        self._outgoing.append((slot.request, None))

    def _finish_lost(self, slots: Sequence[Slot], error: BaseException) -> None:
        """Ends requests of whose sequences nobody knows what they hold."""
        for slot in slots:
            slot.lose()
        self._finish_each(slots, error)

    def _finish_each(self, slots: Sequence[Slot], error: BaseException) -> None:
        for slot in list(slots):
            try:
                self._finish(slot, error)
            except Exception:  # whatever happened to its sequence: nobody shall wait for ever
                logger.exception("a request could not be ended as it should")
                self._outgoing.append((slot.request, None))
                self.slots = [other for other in self.slots if other is not slot]

    def _finish_all(self, error: BaseException) -> None:
        self._finish_each(self.slots, error)
        while not self.worker.inbox.empty():
            self._do(self.worker.inbox.get())
        for request in self.waiting:
            request.error = error
            self._outgoing.append((request, None))
        self.waiting.clear()
        if not self.worker.exiting:
            self._deliver()

    def _deliver(self) -> None:
        """Gives tokens to those who wait for them, and logits to those who sample from them."""
        self._sampler.start_deferred(self.slots)
        outgoing, self._outgoing = self._outgoing, []
        put_all(outgoing)

"""The batching engine: anybody's requests, whatever thread they come from, share the batches of one context."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..capi.handle import Uncopyable
from ..errors import ContextLengthError, InvalidArgumentError, ModelBusyError
from ..models.model import Model
from .prefix_cache.saved_states import SavedStates, fingerprint_of
from .prefix_cache.stores import BaseLlamaCache
from .prompt import Prompt
from .requests import Request
from .sampling import in_sampling_thread
from .scheduler import Scheduler
from .slots import SlotState


@dataclass(frozen=True)
class Snapshot:
    """What an engine is doing.

    Attributes:
        slots: the states of requests that have a sequence. n_waiting: requests that wait for one.
        n_asked: what was asked of the engine and it has not seen yet.
        n_free: sequences that a request could be given. n_kept: sequences that are kept for later requests.
    """

    slots: tuple[SlotState, ...]
    n_waiting: int
    n_asked: int
    n_free: int
    n_kept: int

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.slots and not self.n_waiting and not self.n_asked


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
        self._max_waiting = max_waiting
        self.scheduler = Scheduler(
            model, params, n_parallel, n_ctx, n_kept, draft_source, n_draft, n_gpu_layers, batch_invariant, repeatable
        )
        self.n_ctx = self.scheduler.n_ctx
        self.statistics = self.scheduler.statistics
        try:
            self.scheduler.worker.start(self.scheduler)
        except BaseException:
            self.scheduler.close()
            raise

    @property
    def context_pointer(self) -> Any:
        """The ``llama_context *``, for calls this package does not wrap."""
        return self.scheduler.decoder.pointer

    def check_prompt(self, prompt: Prompt) -> None:
        """Raises InvalidArgumentError or ContextLengthError for a prompt that cannot be continued."""
        if not prompt.ids:
            raise InvalidArgumentError("The prompt has no tokens to begin with.", remedy="Give some text.")
        self._model.check_tokens(prompt.text() if prompt.media else prompt.ids)
        if len(prompt) >= self.n_ctx:
            raise ContextLengthError(len(prompt), self.n_ctx)

    def submit(self, request: Request) -> None:
        """Queues a request whose prompt was checked; its token queue gets the tokens.

        Raises:
            ModelBusyError: too many requests wait, or this one would wait for who waits for it.
            ModelClosedError, ForkedProcessError.
        """
        self.scheduler.decoder.in_use().require_open()
        if (
            in_sampling_thread()
            and not self.scheduler.sequences.n_free
            and all(slot.request.calls_python for slot in list(self.scheduler.slots))
        ):
            raise ModelBusyError(
                "Every request that is computed waits for Python code, "
                "and this one, which is asked by such code, for one of them.",
                remedy="Raise n_parallel.",
            )
        n_waiting = len(self.scheduler.waiting) + self.scheduler.worker.inbox.qsize()
        if n_waiting >= self._max_waiting:
            raise ModelBusyError(f"{n_waiting} requests are waiting already.", remedy="Try again when some have ended.")
        request.wake = self.scheduler.cancelled
        self.scheduler.worker.post(lambda: self.scheduler.waiting.append(request))

    def snapshot(self) -> Snapshot:
        """What it is doing. Any thread may ask; it may have changed when it is read."""
        scheduler = self.scheduler
        states = tuple(slot.state for slot in list(scheduler.slots))
        n_asked, sequences = scheduler.worker.inbox.qsize(), scheduler.sequences
        return Snapshot(states, len(scheduler.waiting), n_asked, sequences.n_free, sequences.n_kept)

    def reset(self) -> None:
        """Forgets what earlier requests left in the cache."""
        self.scheduler.decoder.in_use().require_open()
        done = threading.Event()

        def clear() -> None:
            self.scheduler.sequences.clear()
            done.set()

        self.scheduler.worker.post(clear)
        while not done.wait(0.1) and self.scheduler.worker.is_alive:
            pass

    def keep_in(self, cache: BaseLlamaCache | None) -> None:
        """Keeps in ``cache`` what has to make room, and finds there what was kept; None ends that."""
        self.scheduler.decoder.in_use().require_open()
        saved = (
            None
            if cache is None
            else SavedStates(cache, fingerprint_of(self._model, self.scheduler.params, *self.scheduler.rounding))
        )

        def change() -> None:
            self.scheduler.sequences.saved = saved

        self.scheduler.worker.post(change)

    def close(self) -> None:
        """Ends every request with a ModelClosedError and frees the context. In a forked child it only forgets."""
        self.stop()
        self.scheduler.decoder.close()

    def stop(self, exiting: bool = False) -> None:
        """Ends every request with a ModelClosedError. In a forked child, where there is no thread, it does nothing.

        Args:
            exiting: the interpreter ends. Only daemon threads can still wait for a request then; they are left waiting, to end
                as silently as they would otherwise.
        """
        self.scheduler.stop(exiting)

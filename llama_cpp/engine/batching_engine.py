"""The batching engine: anybody's requests, whatever thread they come from, share the batches of one context."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from ..capi.handle import Uncopyable
from ..errors import ContextLengthError, InvalidArgumentError, ModelBusyError
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
        scheduler: what computes them; its thread is started here.
        max_waiting: how many requests may wait.

    Attributes:
        n_ctx: tokens of one request at most.
        statistics: what was done; read it from any thread.
    """

    def __init__(self, scheduler: Scheduler, max_waiting: int = 4096) -> None:
        self._max_waiting = max_waiting
        self.scheduler = scheduler
        self.n_ctx = scheduler.n_ctx
        self.statistics = scheduler.statistics
        try:
            scheduler.worker.start(scheduler)
        except BaseException:
            scheduler.close()
            raise

    @property
    def context_pointer(self) -> Any:
        """The ``llama_context *``, for calls this package does not wrap."""
        return self.scheduler.decoder.pointer

    def check_prompt(self, prompt: Prompt) -> None:
        """Raises InvalidArgumentError or ContextLengthError for a prompt that cannot be continued."""
        if not prompt.ids:
            raise InvalidArgumentError("The prompt has no tokens to begin with.", remedy="Give some text.")
        self.scheduler.model.check_tokens(prompt.text() if prompt.media else prompt.ids)
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
            else SavedStates(cache, fingerprint_of(self.scheduler.model, self.scheduler.params, *self.scheduler.rounding))
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

"""A request on its way through the engine, and the handle by which its caller follows it."""

from __future__ import annotations

import ctypes
import functools
import os
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..capi import llama_common_c as native
from ..capi.handle import Uncopyable, refuse_fork
from ..capi.loader import libraries
from ..capi.status import call
from ..values import integer, refused
from .logits_processors import LogitsProcessor, StoppingCriteria
from .prompt import Prompt
from .sampler_chain import Sampler

if TYPE_CHECKING:
    import asyncio

    import numpy as np

#: What to do when a request has filled its context.
CONTEXT_FULL = ("truncate", "error", "shift")

#: LoRA adapters (``llama_adapter_lora *``), each with its scale.
Adapters = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of probabilities at one position, as the model gives them (before any sampler).

    Attributes:
        token, logprob: the token that was chosen.
        top: the most probable tokens with theirs, best first.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass
class Generation:
    """What one request has come to so far. While it runs, its tokens may have been handed out before they are noted here.

    Attributes:
        n_prompt: tokens in the prompt; ``n_cached`` of them were in the cache already.
        tokens: tokens generated so far, without the one that ended it.
        logprobs: one entry for each token, when the request asked for them.
        prompt_logprobs: one entry for each token of the prompt but the first, when the request scores its prompt.
        prompt_seconds, predicted_seconds: from the moment the request was begun until its first token, and from there
            until its last. first_at: when that was, by ``time.perf_counter()``.
        finish_reason: None while it runs; "stop" (the model ended) or "length" (max_tokens, or the context is full).
    """

    n_prompt: int
    n_cached: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_seconds: float = 0.0
    predicted_seconds: float = 0.0
    first_at: float = 0.0
    finish_reason: str | None = None


class Request:
    """What the engine knows of a request. Only the engine's thread changes it, except for ``cancelled``.

    Attributes:
        prompt: what it begins with.
        tokens: the ids of the prompt and what was generated; a shift of the context removes some.
        calls_python: whether functions of its caller are asked about every token.
        adapters: LoRA adapters it is computed with, each with its scale.
        speculate: whether what follows may be drafted.
        key: only requests with an equal one can share what they have computed.
        scores_prompt: whether the prompt's tokens get log-probabilities, too; each is computed then, none taken from the cache.
        n_left: how many may still be generated; negative for as many as come.
        token_queue: where tokens go.
    """

    def __init__(
        self,
        prompt: Prompt | Sequence[int],
        sampler: Sampler,
        max_tokens: int | None,
        *,
        context_full: str = "truncate",
        n_logprobs: int | None = None,
        processors: Sequence[LogitsProcessor] = (),
        criteria: Sequence[StoppingCriteria] = (),
        adapters: Adapters = (),
        speculate: bool = True,
        scores_prompt: bool = False,
    ) -> None:
        if not isinstance(context_full, str) or context_full not in CONTEXT_FULL:
            raise refused("context_full", context_full, f"one of {', '.join(CONTEXT_FULL)}")
        n_most = -1 if max_tokens is None else integer("max_tokens", max_tokens)
        self.prompt = prompt if isinstance(prompt, Prompt) else Prompt(prompt)
        self.tokens = list(self.prompt.ids)
        self.sampler = sampler
        self.n_left = n_most if n_most > 0 else -1
        self.context_full = context_full
        self.n_logprobs = n_logprobs
        self.processors = processors
        self.criteria = criteria
        self.calls_python = bool(processors or criteria)
        # others do not wait for that, nor for so many log-probabilities
        self.is_deferred = self.calls_python or (n_logprobs or 0) > 100
        self.adapters = adapters
        self.scores_prompt = scores_prompt and n_logprobs is not None
        self.key: Hashable = object() if self.scores_prompt else adapters
        self.shares = True  # what it leaves behind may serve others
        self.speculate = speculate and not self.prompt.media
        self.generation = Generation(n_prompt=len(self.tokens))
        self.cancelled = False
        self.error: BaseException | None = None
        self.token_queue: TokenQueue = TokenQueue()
        self.begun = 0.0
        self.wake: Callable[[], None] | None = None  # tells the engine to look at it

    def cancel(self) -> None:
        """Stops it with the next batch, or before it has begun. Any thread may call it."""
        if not self.cancelled:
            self.cancelled = True
            if self.wake is not None:
                self.wake()

    def tokens_array(self) -> np.ndarray:
        """All tokens so far, for functions of the caller: int64."""
        import numpy as np

        return np.array(self.tokens, np.int64)

    def note_logprobs(self, token: int, logprob: float, top: list[tuple[int, float]]) -> None:
        """Notes the log-probabilities of the token that is generated next."""
        self.generation.logprobs.append(TokenLogprobs(token, logprob, top))

    def count(self, token: int) -> None:
        """Notes a generated token."""
        generation = self.generation
        now = time.perf_counter()
        if not generation.tokens:
            generation.prompt_seconds = now - self.begun
            generation.first_at = now
        else:
            generation.predicted_seconds = now - generation.first_at
        self.tokens.append(token)
        generation.tokens.append(token)


@functools.cache
def _put_function() -> Any:
    """``llama_common_token_queue_put()``, called with Python's lock held: who wakes up must not take it from the engine."""
    library = libraries()["llama-common-c"]
    function = ctypes.PyDLL(library._name, handle=library._handle).llama_common_token_queue_put
    bound: Any = native.llama_common_token_queue_put
    function.argtypes = bound.argtypes
    return function


class TokenQueue(Uncopyable):
    """Carries tokens from the engine's thread to the one that waits for them; None is the end.

    Attributes:
        streaming: whether single tokens are wanted; otherwise only the end is told.
        native: the ``llama_common_token_queue *`` that tokens can be put into without Python; None where there is no such.
    """

    streaming = True
    native: Any = None

    #: Tokens taken at once, and how long Python's signal handlers may have to wait.
    _N, _MILLISECONDS = 64, 100
    _END = -1

    def __init__(self) -> None:
        self.native = native.llama_common_token_queue_p_ctypes()
        call(native.llama_common_token_queue_init, ctypes.byref(self.native))
        self._buffer = (ctypes.c_int32 * self._N)()
        self._taken: list[int] = []  # the last one comes first

    def __del__(self) -> None:
        if self.native:
            native.llama_common_token_queue_free(self.native)

    def put(self, token: int | None) -> None:
        """To be called in the engine's thread."""
        if _put_function()(self.native, self._END if token is None else token, None):
            raise MemoryError("no room for a token on its way")

    def get(self, meanwhile: Callable[[], None] | None = None) -> int | None:
        """The next token, waited for; ``meanwhile`` is called ten times a second."""
        while not self._taken:
            n = native.llama_common_token_queue_take(self.native, self._buffer, self._N, self._MILLISECONDS)
            self._taken = self._buffer[:n][::-1]
            if meanwhile is not None:
                meanwhile()
        token = self._taken.pop()
        return None if token == self._END else token

    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that has to be told of tokens put; None when nobody has to be."""
        return None

    def wake(self) -> None:
        """Tells it, in the loop's own thread."""


class RequestStream(Uncopyable):
    """A running request: iterate over it, once, for its tokens as they come.

    Leaving it before the end cancels the request: its sequence is free from the next batch on.

    Args:
        abort: asked ten times a second, while somebody waits, whether to end it.

    Attributes:
        generation: what it has come to so far.
        aborted: whether ``abort`` said so.

    Raises:
        While iterating: what the request failed with (DecodeError, GrammarError, ContextLengthError, ModelClosedError,
        or what one of its processors or stopping criteria raised).
    """

    def __init__(self, request: Request, abort: Callable[[], bool] | None = None) -> None:
        self._request = request
        self._abort = abort
        self._ended = False
        self._pid = os.getpid()
        self.generation = request.generation
        self.aborted = False

    def __iter__(self) -> Iterator[int]:
        try:
            while True:
                self.refuse_fork()
                token = self._request.token_queue.get(self._ask if self._abort else None)
                if token is None:
                    break
                yield token
            self._ended = True
            self._raise()
        finally:
            self.cancel()

    def result(self) -> Generation:
        """Waits for the end. It costs less than iterating.

        Raises:
            As iterating does.
        """
        self._request.token_queue.streaming = False
        for _ in self:
            pass
        return self.generation

    @property
    def cancelled(self) -> bool:
        """Whether somebody has asked for its end."""
        return self._request.cancelled

    def refuse_fork(self) -> None:
        """Raises ForkedProcessError in any other process than the one that made it: nobody would ever answer."""
        refuse_fork(self._pid)

    def cancel(self) -> None:
        """Stops the request with the next batch. A request that has ended is left as it is."""
        if not self._ended:
            self._request.cancel()

    def __del__(self) -> None:
        # nobody can read it any more
        self.cancel()

    def _ask(self) -> None:
        """Ends the request if its caller does not want it any more."""
        assert self._abort is not None
        if not self.aborted and self._abort():
            self.aborted = True
            self.cancel()

    def _raise(self) -> None:
        if self._request.error is not None:
            # the same error can be several requests', each with a traceback of its own
            raise self._request.error.with_traceback(None)


def put_all(items: Sequence[tuple[Request, int | None]]) -> None:
    """Hands out tokens and ends, waking each event loop once."""
    loops: dict[Any, list[TokenQueue]] = {}
    for request, token in items:
        token_queue = request.token_queue
        if token is not None and not token_queue.streaming:
            continue
        token_queue.put(token)
        loop = token_queue.loop()
        if loop is not None:
            loops.setdefault(loop, []).append(token_queue)
    for loop, token_queues in loops.items():
        try:
            loop.call_soon_threadsafe(lambda told: [token_queue.wake() for token_queue in told], token_queues)
        except RuntimeError:
            # the loop is closed, and with it everybody who waited in it
            for request, _ in items:
                request.cancelled = request.cancelled or request.token_queue.loop() is loop

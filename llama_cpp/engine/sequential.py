"""The simplest engine: one sequence, one request after the other, a token at a time.

Requests may interleave (two streams open in one thread, or several threads). Each keeps its own tokens and sampler;
when a request finds another one's tokens in the cache, it puts back what differs. That is slow and always right; the
batching engine that takes this one's place has the same interface.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Iterator, Mapping, Sequence

from ..errors import ContextLengthError, InvalidArgumentError
from ..models.model import Model
from .context import Context
from .params import SamplingParams
from .sampler import Sampler


@dataclass
class Generation:
    """What one request has come to so far.

    Attributes:
        n_prompt: tokens in the prompt; ``n_cached`` of them were in the cache already.
        tokens: tokens generated so far, without the one that ended it.
        prompt_seconds, predicted_seconds: time spent until the first token and after it.
        finish_reason: None while it runs; "stop" (the model ended) or "length" (max_tokens, or the context is full).
    """

    n_prompt: int
    n_cached: int = 0
    tokens: list[int] = field(default_factory=list)
    prompt_seconds: float = 0.0
    predicted_seconds: float = 0.0
    finish_reason: str | None = None


class SequentialEngine:
    """Generates tokens with one context. Any thread may call it."""

    def __init__(self, model: Model, context_params: Mapping[str, Any]) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._context = Context(model, context_params)

    @property
    def n_ctx(self) -> int:
        return self._context.n_ctx

    @property
    def context_pointer(self) -> int:
        """The ``llama_context *``, for calls this package does not wrap."""
        return self._context.pointer

    def close(self) -> None:
        if os.getpid() != self._pid:
            return  # the lock may be held by a thread that a forked child does not have
        with self._lock:
            self._context.close()

    def reset(self) -> None:
        """Forgets what is in the cache."""
        self._model.pointer
        with self._lock:
            self._context.pointer  # closed since?
            self._context._trim(0)

    def check_prompt(self, prompt: Sequence[int]) -> None:
        """Raises what :meth:`generate` would raise for this prompt."""
        if not prompt:
            raise InvalidArgumentError(
                "The prompt has no tokens, and this model no BOS token to begin with.", remedy="Give some text."
            )
        if len(prompt) >= self.n_ctx:
            raise ContextLengthError(len(prompt), self.n_ctx)

    def generate(
        self, prompt: Sequence[int], params: SamplingParams, max_tokens: int | None = None
    ) -> tuple[Generation, Iterator[int]]:
        """Prepares a request; iterating computes it.

        Args:
            prompt: token ids, at least one.
            max_tokens: None or less than 1 runs until the model ends or the context is full.

        Returns:
            What is known of the request, updated in place, and the tokens as they come.

        Raises:
            InvalidArgumentError, ContextLengthError: at once. While iterating: DecodeError, ModelClosedError,
            ForkedProcessError.
        """
        self.check_prompt(prompt)
        limit = self.n_ctx - len(prompt)
        if max_tokens is not None and max_tokens > 0:
            limit = min(limit, max_tokens)
        generation = Generation(n_prompt=len(prompt))
        sampler = Sampler(self._model, params, self.n_ctx)
        return generation, self._run(generation, list(prompt), sampler, limit)

    def _run(self, generation: Generation, tokens: list[int], sampler: Sampler, limit: int) -> Iterator[int]:
        try:
            sampler.accept_prompt(tokens)
            for step in range(limit):
                started = time.perf_counter()
                self._model.pointer  # forked? then the lock may never be released
                with self._lock:
                    self._model.pointer  # closed since the last step?
                    n_cached = self._context.advance_to(tokens)
                    token = sampler.sample(self._context.pointer)
                    ended = self._model.is_end(token)
                elapsed = time.perf_counter() - started
                if step == 0:
                    generation.n_cached, generation.prompt_seconds = n_cached, elapsed
                else:
                    generation.predicted_seconds += elapsed
                if ended:
                    generation.finish_reason = "stop"
                    return
                tokens.append(token)
                generation.tokens.append(token)
                yield token
            generation.finish_reason = "length"
        finally:
            sampler.close()

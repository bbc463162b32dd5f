"""Samples a token for each output of a batch: what is quick at once, what takes long in other threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..capi import llama_common_c as native
from ..capi.handle import Uncopyable
from ..errors import DecodeError, GrammarError, InvalidArgumentError, LimitReachedError, LlamaCppError, NativeError
from .batches import BatchPart
from .decoder import Decoder, logprobs_of, sample_from
from .multi_step import MultiStep
from .requests import Request, TokenLogprobs
from .slots import Slot
from .worker_threads import WorkerThreads

_NAME = "llama-cpp-sampler"


@dataclass
class Statistics:
    """What the engine has done since it was made.

    Attributes:
        n_steps, n_tokens, n_outputs: batches, tokens in them, and tokens sampled from them.
        n_drafted, n_accepted: tokens that were drafted, and how many of them were right.
        seconds, native_seconds: time of the engine's thread with requests to work on, and of that in the C library.
    """

    n_steps: int = 0
    n_tokens: int = 0
    n_outputs: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    seconds: float = 0.0
    native_seconds: float = 0.0


def in_sampling_thread() -> bool:
    """Whether the thread that asks samples for requests, of whatever engine."""
    return threading.current_thread().name == _NAME


_NO_TOKENS = np.empty(0, np.int64)


class Sampled(NamedTuple):
    """What became of the outputs of a batch.

    Attributes:
        tokens: slots with the token that was sampled for each. errors: slots that cannot go on, and why.
        deferred: slots whose token another thread samples, which :meth:`BatchSampler.start_deferred` lets it do: their own
            Python code is to be called, or the whole vocabulary to be looked at.
        lost: why nobody knows what any of their sequences holds; None if that is known.
    """

    tokens: Sequence[tuple[Slot, int]] = ()
    errors: Sequence[tuple[Slot, BaseException]] = ()
    deferred: Sequence[Slot] = ()
    lost: BaseException | None = None


@dataclass(slots=True)
class DeferredOutcome:
    """What a helper thread has come to: a token, with its log-probability and the most probable ones; or why there is none.

    Attributes:
        stopped: a stopping criterion ended the answer.
    """

    slot: Slot
    token: int = -1
    logprobs: tuple[float, list[tuple[int, float]]] | None = None
    error: BaseException | None = None
    stopped: bool = False


class BatchSampler(Uncopyable):
    """Samples from what a decoder has computed, in the engine's thread; helpers do for one request what others need not wait for.

    Args:
        n_parallel: requests at once.
        statistics: where to count.
        deliver: brings what a helper has come to to the engine's thread.
    """

    def __init__(
        self, decoder: Decoder, n_parallel: int, statistics: Statistics, deliver: Callable[[DeferredOutcome], None]
    ) -> None:
        self._decoder = decoder
        self._statistics = statistics
        self._deliver = deliver
        self._helpers = WorkerThreads(min(8, os.cpu_count() or 1), _NAME)
        self._spare: list[np.ndarray] = []  # for logits, as many as were looked at at once
        self._deferred: list[tuple[Slot, np.ndarray]] = []
        # Python code of requests may take its time, or ask the engine
        self._callers = WorkerThreads(n_parallel, _NAME)

    def close(self, exiting: bool) -> None:
        """Waits for the helpers to end, unless one of them is who calls; for Python code not if the interpreter is exiting."""
        wait = not in_sampling_thread()
        self._helpers.close(wait)
        self._callers.close(wait and not exiting)

    def sample(
        self, outputs: Sequence[tuple[Slot, int]], multi_step: MultiStep | None = None, parts: Sequence[BatchPart] = ()
    ) -> Sampled:
        """Samples a token for each output, a slot and its row.

        Args:
            multi_step: how far what is sampled may be decoded at once, in batches of the same ``parts``.
        """
        if not outputs:
            return Sampled()  # nothing to wait for
        decoder, alone = self._decoder, len(outputs) == 1
        quick = outputs
        if any(slot.request.is_deferred for slot, _ in outputs):
            quick = [(slot, row) for slot, row in outputs if not slot.request.is_deferred]
        n = len(quick)
        wanted = {
            slot: self._spare.pop() if self._spare else decoder.logits_buffer()
            for slot, _ in quick
            if slot.request.n_logprobs is not None
        }
        decoder.rows[:n] = [row for _, row in quick]
        decoder.samplers[:n] = [slot.request.sampler.pointer for slot, _ in quick]
        started = time.perf_counter()
        logits = [wanted.get(slot) for slot, _ in quick] if wanted else None
        try:
            decoder.sample(n, only_best=not alone, multi_step=multi_step.native if multi_step else None, logits=logits)
        except (LlamaCppError, MemoryError) as error:
            lost = DecodeError(f"What was computed could not be read ({error}).", remedy="The model can be used again.")
            return Sampled(lost=lost)
        self._statistics.native_seconds += time.perf_counter() - started
        if multi_step is not None:
            n_steps = multi_step.note([slot for slot, _ in quick], parts)
            self._statistics.n_steps += n_steps
            self._statistics.n_tokens += n_steps * n
            self._statistics.n_outputs += n_steps * n
            if multi_step.failed:
                return Sampled()  # what was sampled last is among what is noted
        self._statistics.n_outputs += len(outputs)
        slow = set() if quick is outputs else set(outputs).difference(quick)
        tokens: list[tuple[Slot, int]] = []
        errors: list[tuple[Slot, BaseException]] = []
        for (slot, row), token, result in zip(quick, decoder.sampled[:n], decoder.results[:n]):
            if result == native.LLAMA_COMMON_OK:
                try:
                    if slot in wanted and slot.request.n_logprobs is not None:
                        slot.request.note_logprobs(token, *logprobs_of(wanted[slot], token, slot.request.n_logprobs))
                except (LlamaCppError, MemoryError) as error:
                    errors.append((slot, error))
                else:
                    tokens.append((slot, token))
            elif result == native.LLAMA_COMMON_NEEDS_ALL:
                slow.add((slot, row))
            else:
                errors.append((slot, self._error(result, slot, row)))
        for slot, row in slow:
            if slot.request.calls_python:
                self._deferred.append((slot, decoder.logits(row)))
            elif slot in wanted:
                self._deferred.append((slot, wanted.pop(slot)))
            else:
                spare = self._spare.pop() if self._spare else decoder.logits_buffer()
                self._deferred.append((slot, decoder.logits(row, into=spare)))
        self._spare += wanted.values()
        return Sampled(tokens, errors, [slot for slot, _ in slow])

    def start_deferred(self, slots: Collection[Slot]) -> None:
        """Lets other threads sample for those that are deferred and still run.

        That is once the next batch was begun, as they hold up this one.
        """
        deferred, self._deferred = self._deferred, []
        for slot, logits in deferred:
            if slot not in slots:
                continue
            threads = self._callers if slot.request.calls_python else self._helpers
            threads.submit(self._sample_deferred, slot, logits)

    def _sample_deferred(self, slot: Slot, logits: np.ndarray) -> None:
        """Samples a token in a helper thread. Whoever waits for it would do so for ever, so every error is an outcome, too."""
        try:
            outcome = self._outcome(slot, logits)
        except BaseException as error:
            outcome = DeferredOutcome(slot, error=error)
        self._deliver(outcome)
        if not slot.request.calls_python:
            self._spare.append(logits)  # nobody else has seen it

    def _outcome(self, slot: Slot, logits: np.ndarray) -> DeferredOutcome:
        request = slot.request
        tokens = request.tokens_array() if request.calls_python else _NO_TOKENS
        if any(criterion(tokens, logits.copy()) for criterion in request.criteria):
            return DeferredOutcome(slot, stopped=True)
        changed = logits
        for processor in request.processors:
            changed = _as_logits(processor(tokens, changed.copy() if changed is logits else changed), logits.shape)
        with self._decoder.model.in_use():  # that code may have closed it
            try:
                token = sample_from(changed, request.sampler.pointer)
            except (GrammarError, NativeError) as raised:
                raise _no_token(request, logits, changed) from raised
            logprobs = None if request.n_logprobs is None else logprobs_of(logits, token, request.n_logprobs)
        return DeferredOutcome(slot, token, logprobs)

    def _error(self, result: int, slot: Slot, row: int) -> LlamaCppError:
        """Why no token could be sampled from an output."""
        if result == native.LLAMA_COMMON_LIMIT_REACHED:
            return LimitReachedError(
                "There are too many ways to go on in the grammar, or it takes too long.",
                remedy="Make it less ambiguous, or give limits=Limits(…) with more.",
            )
        if result != native.LLAMA_COMMON_GRAMMAR_ERROR:
            return DecodeError("The model's logits are not numbers.", remedy="Its file may be damaged, or it overflows in f16.")
        try:
            logits = self._decoder.logits(row)
        except (LlamaCppError, MemoryError) as error:
            return DecodeError(f"What was computed could not be read ({error}).")
        return _no_token(slot.request, logits, logits)


def score_prompt(decoder: Decoder, part: BatchPart, request: Request) -> Exception | None:
    """Notes the log-probabilities of the prompt's tokens that follow those of a part; returns what went wrong."""
    assert request.n_logprobs is not None
    try:
        logits = np.empty(decoder.model.n_vocab, np.float32)
        for i in range(part.n_scored):
            token = request.tokens[part.start + i + 1]
            found = logprobs_of(decoder.logits(part.scored_row + i, into=logits), token, request.n_logprobs)
            request.generation.prompt_logprobs.append(TokenLogprobs(token, *found))
    except (LlamaCppError, MemoryError) as error:
        return error
    return None


def _as_logits(returned: object, shape: tuple[int, ...]) -> np.ndarray:
    """What a logits processor returned: float32, n_vocab."""
    try:
        found = np.asarray(returned, np.float32)
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgumentError(
            f"A logits processor returned {type(returned).__name__}.",
            remedy=f"Return an array of the shape it was given, {shape}.",
        ) from None
    if found.shape != shape:
        raise InvalidArgumentError(
            f"A logits processor returned an array of shape {found.shape}.",
            remedy=f"Return one of the shape it was given, {shape}.",
        )
    return found


def _no_token(request: Request, logits: np.ndarray, changed: np.ndarray) -> LlamaCppError:
    """Why there is no token to choose.

    Args:
        logits: float32, n_vocab, as the model gave them.
        changed: as functions of the caller changed them.
    """
    if np.isnan(logits).any():
        return DecodeError("The model's logits are not numbers.", remedy="Its file may be damaged, or it overflows in f16.")
    broken = np.isnan(changed).any()
    if changed is not logits and (broken or not (changed > -np.inf).any()):
        what = "numbers that are none (NaN)" if broken else "logits that forbid every token"
        return InvalidArgumentError(f"A logits processor returned {what}.", remedy="Leave one token at least a finite logit.")
    if request.sampler.has_grammar:
        return GrammarError("No token is possible here.", remedy="The grammar and logit_bias forbid all of them.")
    if request.sampler.has_bias:
        return InvalidArgumentError("logit_bias forbids every token.", remedy="Leave one at least.")
    return DecodeError("The model's logits forbid every token.", remedy="Its file may be damaged, or it overflows in f16.")

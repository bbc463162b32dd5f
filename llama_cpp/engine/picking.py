"""Picks a token for each output of a batch: what is quick at once, what takes long in other threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from ..capi import llama_common_c as native
from ..capi.handle import Uncopyable
from ..errors import DecodeError, GrammarError, InvalidArgumentError, LimitReachedError, LlamaCppError, NativeError
from .batches import Part, Running
from .decoder import Decoder, logprobs_of, pick_from
from .going_on import GoingOn
from .requests import Request, TokenLogprobs
from .threads import Threads

_NAME = "llama-cpp-picker"


@dataclass
class Statistics:
    """What the engine has done since it was made.

    Attributes:
        n_steps, n_tokens, n_outputs: batches, tokens in them, and tokens picked from them.
        n_guessed, n_right: tokens that were guessed, and how many of them were right.
        seconds, native_seconds: time of the engine's thread with requests to work on, and of that in the C library.
    """

    n_steps: int = 0
    n_tokens: int = 0
    n_outputs: int = 0
    n_guessed: int = 0
    n_right: int = 0
    seconds: float = 0.0
    native_seconds: float = 0.0


def in_helper() -> bool:
    """Whether the thread that asks picks for requests, of whatever engine."""
    return threading.current_thread().name == _NAME


_NO_TOKENS = np.empty(0, np.int64)


class Picker(Uncopyable):
    """Picks from what a decoder has computed, in the engine's thread; helpers do for one request what others need not wait for.

    Args:
        n_parallel: requests at once.
        statistics: where to count.
        give: called with a request and its token. end: with one that cannot go on, and why. lose: with those of whose sequences
            nobody knows what they hold, and why.
        later: lets the engine's thread do something for a request.
    """

    def __init__(
        self,
        decoder: Decoder,
        n_parallel: int,
        statistics: Statistics,
        give: Callable[[Running, int], None],
        end: Callable[..., None],
        lose: Callable[[Sequence[Running], BaseException], None],
        later: Callable[[Running, Callable[[], None]], None],
    ) -> None:
        self._decoder = decoder
        self._statistics = statistics
        self._give, self._end, self._lose, self._later = give, end, lose, later
        self._helpers = Threads(min(8, os.cpu_count() or 1), _NAME)
        self._spare: list[np.ndarray] = []  # for logits, as many as were looked at at once
        self._aside: list[tuple[Running, np.ndarray]] = []
        # Python code of requests may take its time, or ask the engine
        self._callers = Threads(n_parallel, _NAME)

    def close(self, exiting: bool) -> None:
        """Waits for the helpers to end, unless one of them is who calls; for Python code not if the interpreter is exiting."""
        wait = not in_helper()
        self._helpers.close(wait)
        self._callers.close(wait and not exiting)

    def pick(
        self, outputs: Sequence[tuple[Running, int]], going_on: GoingOn | None = None, parts: Sequence[Part] = ()
    ) -> list[Running]:
        """Picks a token for each output, a request and its row.

        Args:
            going_on: how far what is picked may be decoded at once, in batches of the same ``parts``.

        Returns:
            Requests whose sequences sit out until another thread has picked, which :meth:`start_aside` lets it do: their
            own Python code is to be called, or the whole vocabulary to be looked at.
        """
        if not outputs:
            return []  # nothing to wait for
        decoder, alone = self._decoder, len(outputs) == 1
        quick = outputs
        if any(one.request.sits_out for one, _ in outputs):
            quick = [(one, row) for one, row in outputs if not one.request.sits_out]
        n = len(quick)
        wanted = {
            one: self._spare.pop() if self._spare else decoder.logits_buffer()
            for one, _ in quick
            if one.request.n_logprobs is not None
        }
        decoder.rows[:n] = [row for _, row in quick]
        decoder.samplers[:n] = [one.request.sampler.pointer for one, _ in quick]
        started = time.perf_counter()
        logits = [wanted.get(one) for one, _ in quick] if wanted else None
        try:
            decoder.pick(n, only_best=not alone, going_on=going_on.native if going_on else None, logits=logits)
        except (LlamaCppError, MemoryError) as error:
            why = DecodeError(f"What was computed could not be read ({error}).", remedy="The model can be used again.")
            self._lose([one for one, _ in outputs], why)
            return []
        self._statistics.native_seconds += time.perf_counter() - started
        if going_on is not None:
            n_steps = going_on.note([one for one, _ in quick], parts)
            self._statistics.n_steps += n_steps
            self._statistics.n_tokens += n_steps * n
            self._statistics.n_outputs += n_steps * n
            if going_on.failed:
                return []  # what was picked last is among what is noted
        self._statistics.n_outputs += len(outputs)
        slow = set() if quick is outputs else set(outputs).difference(quick)
        for (one, row), token, result in zip(quick, decoder.picked[:n], decoder.results[:n]):
            if result == native.LLAMA_COMMON_OK:
                try:
                    if one in wanted and one.request.n_logprobs is not None:
                        one.request.note_logprobs(token, *logprobs_of(wanted[one], token, one.request.n_logprobs))
                except (LlamaCppError, MemoryError) as error:
                    self._end(one, error)
                else:
                    self._give(one, token)
            elif result == native.LLAMA_COMMON_NEEDS_ALL:
                slow.add((one, row))
            else:
                self._end(one, self._error(result, one, row))
        for one, row in slow:
            if one.request.calls_python:
                self._aside.append((one, decoder.logits(row)))
            elif one in wanted:
                self._aside.append((one, wanted.pop(one)))
            else:
                spare = self._spare.pop() if self._spare else decoder.logits_buffer()
                self._aside.append((one, decoder.logits(row, into=spare)))
        self._spare += wanted.values()
        return [one for one, _ in slow]

    def start_aside(self, running: Collection[Running]) -> None:
        """Lets other threads pick for those that sit out and still run.

        That is once the next batch was begun, as they hold up this one.
        """
        aside, self._aside = self._aside, []
        for one, logits in aside:
            if one not in running:
                continue
            threads = self._callers if one.request.calls_python else self._helpers
            threads.submit(self._pick_aside, one, logits)

    def _pick_aside(self, one: Running, logits: np.ndarray) -> None:
        """Picks a token in a helper thread, and lets the engine's thread give it to its request."""
        request = one.request
        found: Callable[[], None]
        try:
            tokens = request.tokens_array() if request.calls_python else _NO_TOKENS
            if any(criterion(tokens, logits.copy()) for criterion in request.criteria):
                self._later(one, lambda: self._stop(one))
                return
            changed = logits
            for processor in request.processors:
                changed = _as_logits(processor(tokens, changed.copy() if changed is logits else changed), logits.shape)
            with self._decoder.model.in_use():  # that code may have closed it
                try:
                    token = pick_from(changed, request.sampler.pointer)
                except (GrammarError, NativeError) as raised:
                    raise _no_token(request, logits, changed) from raised
                logprobs = None if request.n_logprobs is None else logprobs_of(logits, token, request.n_logprobs)
        except BaseException as raised:  # whoever waits for the token would do so for ever
            error = raised
            found = lambda: self._end(one, error)  # noqa: E731
        else:

            def found() -> None:
                if logprobs is not None:
                    request.note_logprobs(token, *logprobs)
                self._give(one, token)

        # the request may have been cancelled meanwhile
        self._later(one, found)
        if not request.calls_python:
            self._spare.append(logits)  # nobody else has seen it

    def _error(self, result: int, one: Running, row: int) -> LlamaCppError:
        """Why no token could be picked from an output."""
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
        return _no_token(one.request, logits, logits)

    def _stop(self, one: Running) -> None:
        """Ends a request as its model would."""
        one.request.generation.finish_reason = "stop"
        self._end(one)


def score_prompt(decoder: Decoder, part: Part, request: Request) -> Exception | None:
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

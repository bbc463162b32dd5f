"""Answers in the making: tokens go in one by one, and what OpenAI's API calls chunks, or the whole response, comes out.

Nothing here waits, so that ``Llama`` and ``AsyncLlama`` share it.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Iterator

from . import responses
from .chat.session import ChatReader
from .engine.requests import Generation, TokenLogprobs
from .engine.text import TextStream
from .models.model import Model


class Answer:
    """What completions and chat completions have in common.

    Args:
        generation: the request's own account, which the engine goes on writing.
        text: turns its tokens into text.
        include_usage: end a stream with the token counts.
        model: knows how tokens are written.

    Attributes:
        every_token: whether it has to see each token as it comes, because a stop string can end it.
    """

    def __init__(
        self, head: tuple[str, int, str], generation: Generation, text: TextStream, include_usage: bool, model: Model
    ) -> None:
        self._head = head
        self._model = model
        self._n_told = 0  # tokens whose log-probabilities went out
        self._generation = generation
        self._text = text
        self._pushed: list[int] = []
        self._include_usage = include_usage
        self.every_token = text.has_stop

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found: no more tokens are wanted."""
        return self._text.stopped_by is not None

    def push(self, token: int) -> str:
        """The text that is certain after a further token."""
        self._pushed.append(token)
        return self._text.push(token)

    def generation(self) -> Generation:
        """The request's account up to the last token that was pushed: a stop string ends it wherever the engine is."""
        if not self.stopped:
            return self._generation
        tokens, logprobs = self._pushed, self._generation.logprobs[: len(self._pushed)]
        seconds = time.perf_counter() - self._generation.first_at
        return dataclasses.replace(
            self._generation, tokens=tokens, logprobs=logprobs, predicted_seconds=seconds, finish_reason="stop"
        )

    def begin(self) -> Iterator[dict[str, Any]]:
        """Chunks before the first token."""
        yield from ()

    def chunks(self, piece: str) -> Iterator[dict[str, Any]]:
        """Chunks for a piece of text."""
        raise NotImplementedError

    def end(self) -> Iterator[dict[str, Any]]:
        """Chunks after the last token."""
        if piece := self._text.finish():
            yield from self.chunks(piece)
        generation = self.generation()
        yield from self._last(generation)
        if self._include_usage:
            yield {**self._empty(), "choices": [], "usage": responses.usage(generation)}

    def whole(self, text: str) -> dict[str, Any]:
        """The response, of all text that was pushed."""
        text += self._text.finish()
        generation = self.generation()
        return {
            **self._response(text, generation),
            "usage": responses.usage(generation),
            "timings": responses.timings(generation),
        }

    def _untold(self) -> list[TokenLogprobs]:
        """The log-probabilities of tokens that were pushed since this was asked last."""
        told, self._n_told = self._n_told, len(self._pushed)
        return self._generation.logprobs[told : len(self._pushed)]

    def _piece(self, token: int) -> bytes:
        return self._model.token_to_piece(token, special=True)

    def _last(self, generation: Generation) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def _empty(self) -> dict[str, Any]:
        raise NotImplementedError

    def _response(self, text: str, generation: Generation) -> dict[str, Any]:
        raise NotImplementedError


class TextAnswer(Answer):
    """A text completion; ``echo`` is text to begin with."""

    def __init__(self, *args: Any, echo: str = "") -> None:
        super().__init__(*args)
        self._echo = echo
        self._offset = len(echo)

    def begin(self) -> Iterator[dict[str, Any]]:
        """The prompt, when it is to be echoed."""
        if self._echo:
            yield responses.completion(*self._head, self._echo, None)

    def chunks(self, piece: str) -> Iterator[dict[str, Any]]:
        """As in :class:`Answer`."""
        yield responses.completion(*self._head, piece, None, self._logprobs())

    def _logprobs(self) -> dict[str, Any] | None:
        entries = self._untold()
        if not entries:
            return None
        found = responses.text_logprobs(entries, self._piece, self._offset)
        self._offset += sum(map(len, found["tokens"]))
        return found

    def _last(self, generation: Generation) -> Iterator[dict[str, Any]]:
        last = responses.completion(*self._head, "", generation.finish_reason, self._logprobs())
        yield {**last, "timings": responses.timings(generation)}

    def _empty(self) -> dict[str, Any]:
        return responses.completion(*self._head, "", None)

    def _response(self, text: str, generation: Generation) -> dict[str, Any]:
        return responses.completion(*self._head, self._echo + text, generation.finish_reason, self._logprobs())


class ChatAnswer(Answer):
    """A chat completion, read by ``reader``."""

    def __init__(self, *args: Any, reader: ChatReader) -> None:
        super().__init__(*args)
        self._reader = reader

    def begin(self) -> Iterator[dict[str, Any]]:
        """The role of who answers."""
        yield responses.chat_chunk(*self._head, {"role": "assistant", "content": ""})

    def chunks(self, piece: str) -> Iterator[dict[str, Any]]:
        """As in :class:`Answer`."""
        for delta in self._reader.push(piece):
            yield responses.chat_chunk(*self._head, delta, None, self._logprobs())

    def _logprobs(self) -> dict[str, Any] | None:
        entries = self._untold()
        return responses.chat_logprobs(entries, self._piece) if entries else None

    def _last(self, generation: Generation) -> Iterator[dict[str, Any]]:
        for delta in self._reader.finish(truncated=generation.finish_reason == "length"):
            yield responses.chat_chunk(*self._head, delta)
        finish_reason = _finish_reason(generation, self._reader.called_tools)
        last = responses.chat_chunk(*self._head, {}, finish_reason, self._logprobs())
        yield {**last, "timings": responses.timings(generation)}

    def _empty(self) -> dict[str, Any]:
        return responses.chat_chunk(*self._head, {})

    def _response(self, text: str, generation: Generation) -> dict[str, Any]:
        message = self._reader.whole(text, truncated=generation.finish_reason == "length")
        finish_reason = _finish_reason(generation, bool(message.get("tool_calls")))
        return responses.chat_completion(*self._head, message, finish_reason, self._logprobs())


def _finish_reason(generation: Generation, called_tools: bool) -> str:
    """A call that max_tokens cut off is not one to be carried out."""
    if called_tools and generation.finish_reason == "stop":
        return "tool_calls"
    return str(generation.finish_reason)

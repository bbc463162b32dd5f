"""Answers in the making: tokens go in one by one, and what OpenAI's API calls chunks, or the whole response, comes out.

Nothing here waits, so that ``Llama`` and ``AsyncLlama`` share it.
"""

from __future__ import annotations

import codecs
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ..chat.response_parser import ResponseParser
from ..engine.detokenizer import Detokenizer
from ..engine.requests import Generation, TokenLogprobs
from ..errors import SchemaViolationError
from ..models.model import Model
from . import openai_format as openai_format


class Assembler:
    """What completions and chat completions have in common.

    Args:
        generation: the request's own account, which the engine goes on writing.
        text: turns its tokens into text.
        include_usage: end a stream with the token counts.
        model: knows how tokens are written.
        scored: whether log-probabilities are wanted.

    Attributes:
        every_token: whether it has to see each token as it comes, because a stop string can end it.
    """

    def __init__(
        self,
        head: tuple[str, int, str],
        generation: Generation,
        text: Detokenizer,
        include_usage: bool,
        model: Model,
        scored: bool = False,
    ) -> None:
        self._head = head
        self._model = model
        self._scored = ScoredTokens(generation, text, model) if scored else None
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
        if self._scored is not None:
            self._scored.push(token)
        return self._text.push(token)

    def generation(self) -> Generation:
        """The request's account up to the last token that was pushed: a stop string ends it wherever the engine is."""
        if not self.stopped:
            if self._generation.finish_reason is None:  # nobody wanted more
                return dataclasses.replace(self._generation, finish_reason="abort")
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
            yield {**self._empty(), "choices": [], "usage": openai_format.usage(generation)}

    def whole(self, text: str) -> dict[str, Any]:
        """The response, of all text that was pushed."""
        text += self._text.finish()
        generation = self.generation()
        return {
            **self._response(text, generation),
            "usage": openai_format.usage(generation),
            "timings": openai_format.timings(generation),
        }

    def _piece(self, token: int) -> bytes:
        return self._model.token_to_piece(token, special=True)

    def _last(self, generation: Generation) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def _empty(self) -> dict[str, Any]:
        raise NotImplementedError

    def _response(self, text: str, generation: Generation) -> dict[str, Any]:
        raise NotImplementedError


class TextAssembler(Assembler):
    """A text completion.

    Args:
        prompt: its text. tokens: its tokens.
        echo: whether it is to be the answer's beginning, with log-probabilities of its own where they are wanted.
    """

    def __init__(self, *args: Any, prompt: str, tokens: Sequence[int] = (), echo: bool = False, **more: Any) -> None:
        super().__init__(*args, **more)
        self._echo = prompt if echo else ""
        self._prompt_tokens = tokens if echo and self._scored is not None else ()
        self._n_before = len(prompt)

    def begin(self) -> Iterator[dict[str, Any]]:
        """The prompt, when it is to be echoed; if it is scored, too, it comes with the first token."""
        if not self._prompt_tokens:
            yield from self._echoed()

    def _echoed(self) -> Iterator[dict[str, Any]]:
        if self._echo:
            yield openai_format.completion(*self._head, self._echo, None, self._prompt_logprobs())
        self._echo, self._prompt_tokens = "", ()

    def chunks(self, piece: str) -> Iterator[dict[str, Any]]:
        """As in :class:`Assembler`."""
        yield from self._echoed()
        yield openai_format.completion(*self._head, piece, None, self._logprobs(len(piece)))

    def _prompt_logprobs(self) -> dict[str, Any] | None:
        """Of the prompt's tokens, without what tokenization put before its text."""
        if not self._prompt_tokens:
            return None
        tokens = self._prompt_tokens
        if len(tokens) > 1 and tokens[0] == self._model.token_bos:
            tokens = tokens[1:]
        pieces = [self._piece(token) for token in tokens]
        # some vocabularies begin every text with a space
        end = -int(pieces[0].startswith(b" ") and not self._echo.startswith(" "))
        starts, decoder = [], codecs.getincrementaldecoder("utf-8")("replace")
        for piece in pieces:
            starts.append(max(end, 0))
            end += len(decoder.decode(piece))
        entries = [None, *self._generation.prompt_logprobs[len(self._prompt_tokens) - len(tokens) :]]
        return openai_format.text_logprobs(list(zip(entries, starts)), self._piece, 0, tokens[0])

    def _logprobs(self, n_released: int, last: bool = False) -> dict[str, Any] | None:
        if self._scored is None:
            return None
        entries = self._scored.release(n_released, last and not self.stopped)
        return openai_format.text_logprobs(entries, self._piece, self._n_before) if entries else None

    def _last(self, generation: Generation) -> Iterator[dict[str, Any]]:
        yield from self._echoed()
        last = openai_format.completion(*self._head, "", generation.finish_reason, self._logprobs(0, last=True))
        yield {**last, "timings": openai_format.timings(generation)}

    def _empty(self) -> dict[str, Any]:
        return openai_format.completion(*self._head, "", None)

    def _response(self, text: str, generation: Generation) -> dict[str, Any]:
        found = self._logprobs(len(text), last=True)
        if self._scored is not None and found is None:
            found = openai_format.text_logprobs([], self._piece, 0)
        if found is not None and (before := self._prompt_logprobs()):
            found = {name: before[name] + values for name, values in found.items()}
        return openai_format.completion(*self._head, self._echo + text, generation.finish_reason, found)


class ChatAssembler(Assembler):
    """A chat completion, read by ``parser``.

    Args:
        legacy: whether calls are told as OpenAI's older form has them: one ``function_call`` instead of ``tool_calls``.
    """

    def __init__(self, *args: Any, parser: ResponseParser, legacy: bool = False, **more: Any) -> None:
        super().__init__(*args, **more)
        self._parser = parser
        self._legacy = legacy

    def begin(self) -> Iterator[dict[str, Any]]:
        """The role of who answers."""
        yield openai_format.chat_chunk(*self._head, {"role": "assistant", "content": ""})

    def chunks(self, piece: str) -> Iterator[dict[str, Any]]:
        """As in :class:`Assembler`."""
        if self._scored is not None:
            self._scored.note(len(piece))
        for delta in self._parser.push(piece):
            yield openai_format.chat_chunk(*self._head, openai_format.told(delta, self._legacy), None, self._logprobs())

    def _logprobs(self, n_released: int = 0, last: bool = False) -> dict[str, Any] | None:
        if self._scored is None:
            return None
        entries = self._scored.release(n_released, last and not self.stopped)
        return openai_format.chat_logprobs(entries, self._piece) if entries else None

    def _last(self, generation: Generation) -> Iterator[dict[str, Any]]:
        for delta in self._parser.finish(truncated=generation.finish_reason != "stop"):
            yield openai_format.chat_chunk(*self._head, openai_format.told(delta, self._legacy))
        finish_reason = _finish_reason(generation, self._parser.called_tools, self._legacy)
        last = openai_format.chat_chunk(*self._head, {}, finish_reason, self._logprobs(last=True))
        yield {**last, "timings": openai_format.timings(generation)}

    def end(self) -> Iterator[dict[str, Any]]:
        """As in :class:`Assembler`; then the answer is compared with its schema, where that was left for the end."""
        yield from super().end()
        if self.generation().finish_reason == "stop":
            self._parser.check()

    def whole(self, text: str) -> dict[str, Any]:
        """As in :class:`Assembler`; what breaks its schema comes with the exception."""
        text += self._text.finish()
        response = super().whole(text)
        if self.generation().finish_reason == "stop":
            try:
                self._parser.check(text)
            except SchemaViolationError as error:
                error.response = response
                raise
        return response

    def _empty(self) -> dict[str, Any]:
        return openai_format.chat_chunk(*self._head, {})

    def _response(self, text: str, generation: Generation) -> dict[str, Any]:
        message = self._parser.whole(text, truncated=generation.finish_reason != "stop")
        finish_reason = _finish_reason(generation, bool(message.get("tool_calls")), self._legacy)
        found = self._logprobs(len(text), last=True)
        if self._scored is not None and found is None:
            found = openai_format.chat_logprobs([], self._piece)
        return openai_format.chat_completion(*self._head, openai_format.told(message, self._legacy), finish_reason, found)


class ScoredTokens:
    """Log-probabilities of an answer's tokens, each with where its text begins.

    They are told with the text: a token that may belong to a stop string waits until it is clear that it does not, and one that
    was cut off is never told.
    """

    def __init__(self, generation: Generation, text: Detokenizer, model: Model) -> None:
        self._entries = generation.logprobs
        self._text = text
        self._model = model
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._starts: list[int] = []  # in characters, of tokens that were pushed
        self._end = 0
        self._n_released = 0
        self._n_told = 0

    def push(self, token: int) -> None:
        """Notes where the text of a further token begins."""
        self._starts.append(self._end)
        self._end += len(self._decoder.decode(self._text.bytes_of(token)))

    def note(self, n_characters: int) -> None:
        """So many more characters of the text are certain."""
        self._n_released += n_characters

    def release(self, n_characters: int, all_of_them: bool) -> list[tuple[TokenLogprobs, int]]:
        """What was not told yet and has become certain with so many characters; ``all_of_them`` if nothing is cut off."""
        self.note(n_characters)
        first = self._n_told
        while self._n_told < len(self._starts) and (all_of_them or self._starts[self._n_told] < self._n_released):
            self._n_told += 1
        return list(zip(self._entries[first : self._n_told], self._starts[first : self._n_told]))


def _finish_reason(generation: Generation, called_tools: bool, legacy: bool) -> str:
    """A call that max_tokens cut off is not one to be carried out."""
    if called_tools and generation.finish_reason == "stop":
        return "function_call" if legacy else "tool_calls"
    return str(generation.finish_reason)

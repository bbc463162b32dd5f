"""The answer to a chat request on its way back: text into a message, whole or piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ChatParseError
from . import generic_tools
from .schemas import AnswerChecks
from .templates import ChatParser


class ResponseParser:
    """Turns the text of an answer into a message, whole or piece by piece; ``how`` is :class:`~.request.Conversation`'s."""

    def __init__(self, format: Mapping[str, Any], how: str = "format", checks: AnswerChecks | None = None) -> None:
        self._checks = checks
        self._parser = ChatParser(format)
        self._how = how
        # with neither tools nor reasoning the text is the content, and parsing it again for every token costs n² bytes
        self._plain = how == "plain" or (how == "format" and not format["parse_tool_calls"] and not format["supports_thinking"])
        self._text = ""
        self.called_tools = False

    def whole(self, text: str, *, truncated: bool) -> dict[str, Any]:
        """The message for a finished answer; ``truncated`` allows it to end anywhere.

        An answer that does not follow the format after all is given as it is: text that was paid for is not lost.
        """
        if self._how == "tools":
            return generic_tools.read(text)
        if self._how == "plain":
            return {"role": "assistant", "content": text}
        try:
            return self._parser.parse(text, partial=truncated)
        except ChatParseError:
            return {"role": "assistant", "content": text}

    def check(self, text: str | None = None) -> None:
        """Compares the finished answer (None is what was pushed) with what no grammar held it to.

        Raises:
            SchemaViolationError: it breaks it.
        """
        if self._checks is not None:
            self._checks(self.whole(self._text if text is None else text, truncated=False))

    def push(self, piece: str) -> Iterator[dict[str, Any]]:
        """Stream deltas that a further piece of text makes certain."""
        self._text += piece
        if self._plain:
            yield {"content": piece}
        elif self._how != "tools":
            yield from self._update(partial=True)

    def finish(self, *, truncated: bool) -> Iterator[dict[str, Any]]:
        """Stream deltas left when no more text comes."""
        if self._how == "tools":
            message = generic_tools.read(self._text)
            self.called_tools = "tool_calls" in message
            yield from generic_tools.deltas(message)
        elif not self._plain:
            # an answer that does not follow the format after all still holds what was read of it so far
            yield from self._update(partial=truncated) or self._update(partial=True)

    def _update(self, *, partial: bool) -> list[dict[str, Any]]:
        try:
            deltas = self._parser.update(self._text, partial=partial)
        except ChatParseError:
            return []  # nothing certain in it (yet)
        self.called_tools = self.called_tools or any("tool_calls" in delta for delta in deltas)
        return deltas

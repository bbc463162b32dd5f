"""A chat request on its way to the template, and the answer on its way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Sequence

from ..errors import ChatParseError, InvalidArgumentError
from .templates import ChatParser, ChatPrompt


@dataclass(frozen=True)
class ChatRequest:
    """What of a chat completion request concerns the template, in OpenAI's form."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: str | Mapping[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: Mapping[str, Any] | None = None
    user_grammar: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The request as ``llama_common_chat_apply()`` reads it.

        Raises:
            InvalidArgumentError: messages, tools or formats that contradict each other.
        """
        if isinstance(self.messages, (str, bytes)) or not self.messages:
            raise InvalidArgumentError(
                "messages is empty or not a list.", remedy='Give at least [{"role": "user", "content": "…"}].'
            )
        request: dict[str, Any] = {"messages": list(self.messages)}
        tools, choice = self._chosen_tools()
        if tools:
            request["tools"], request["tool_choice"] = tools, choice
        if self.parallel_tool_calls is not None:
            request["parallel_tool_calls"] = self.parallel_tool_calls
        schema = self._schema()
        if schema is not None:
            if self.user_grammar:
                raise InvalidArgumentError("grammar and response_format exclude each other.")
            request["json_schema"] = schema
        kwargs = dict(self.chat_template_kwargs or {})
        thinking = kwargs.get("enable_thinking")
        if thinking is not None:
            if not isinstance(thinking, bool):
                raise InvalidArgumentError(f"enable_thinking={thinking!r} must be True or False.")
            request["enable_thinking"] = thinking
        if kwargs:
            request["chat_template_kwargs"] = kwargs
        return request

    def grammar(self, prompt: ChatPrompt) -> Mapping[str, Any] | None:
        """What the answer has to follow: the caller's grammar, or the one the format brings."""
        if self.user_grammar:
            if prompt.format["grammar"]:
                raise InvalidArgumentError("A grammar of your own cannot be combined with tools.")
            return {"grammar": self.user_grammar}
        return prompt.format if prompt.format["grammar"] else None

    def _chosen_tools(self) -> tuple[list[Mapping[str, Any]], str]:
        tools = list(self.tools or [])
        if isinstance(self.tool_choice, Mapping):
            # one function by name: the same as being required to call it, with no other there
            name = (self.tool_choice.get("function") or {}).get("name")
            named = [tool for tool in tools if (tool.get("function") or {}).get("name") == name]
            if not named:
                raise InvalidArgumentError(f"tool_choice names {name!r}, which is not among the tools.")
            return named, "required"
        return tools, self.tool_choice or "auto"

    def _schema(self) -> Mapping[str, Any] | None:
        if self.response_format is None:
            return None
        kind = self.response_format.get("type", "text")
        if kind == "text":
            return None
        if kind == "json_object":
            # a schema beside "json_object" is llama-cpp-python's form
            return self.response_format.get("schema") or {"type": "object"}
        if kind == "json_schema":
            return (self.response_format.get("json_schema") or {}).get("schema") or {"type": "object"}
        raise InvalidArgumentError(
            f"response_format type {kind!r} does not exist.", remedy='Use "text", "json_object" or "json_schema".'
        )


class ChatReader:
    """Turns the text of an answer into a message, whole or piece by piece."""

    def __init__(self, prompt: ChatPrompt) -> None:
        self._parser = ChatParser(prompt.format)
        # with neither tools nor reasoning the text is the content, and parsing it again for every token costs n² bytes
        self._plain = not prompt.format["parse_tool_calls"] and not prompt.format["supports_thinking"]
        self._text = ""
        self.called_tools = False

    def whole(self, text: str, *, truncated: bool) -> dict[str, Any]:
        """The message for a finished answer; ``truncated`` allows it to end anywhere.

        An answer that does not follow the format after all is given as it is: text that was paid for is not lost.
        """
        try:
            return self._parser.parse(text, partial=truncated)
        except ChatParseError:
            return {"role": "assistant", "content": text}

    def push(self, piece: str) -> Iterator[dict[str, Any]]:
        """Stream deltas that a further piece of text makes certain."""
        self._text += piece
        if self._plain:
            yield {"content": piece}
            return
        yield from self._update(partial=True)

    def finish(self, *, truncated: bool) -> Iterator[dict[str, Any]]:
        """Stream deltas left when no more text comes."""
        if not self._plain:
            # an answer that does not follow the format after all still holds what was read of it so far
            yield from self._update(partial=truncated) or self._update(partial=True)

    def _update(self, *, partial: bool) -> list[dict[str, Any]]:
        try:
            deltas = self._parser.update(self._text, partial=partial)
        except ChatParseError:
            return []  # nothing certain in it (yet)
        self.called_tools = self.called_tools or any("tool_calls" in delta for delta in deltas)
        return deltas

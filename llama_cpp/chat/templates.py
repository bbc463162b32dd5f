"""Chat templates and the parsers of answers, which are llama.cpp's own (its library ``common``)."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from .. import json_schema
from ..capi import llama_common_c as native
from ..capi.handle import NativeHandle, Uncopyable
from ..capi.interrupts import DeferredInterrupts
from ..capi.status import call, take_string
from ..errors import ChatParseError, InvalidArgumentError
from ..limits import Limits
from ..models.model import Model
from . import schemas
from .messages import to_json


@dataclass(frozen=True)
class ChatPrompt:
    """A rendered conversation and how to read the answer to it.

    Attributes:
        text: the prompt, without a BOS that tokenization adds.
        stop: strings that end the answer, besides the model's end tokens.
        preserved: texts of special tokens that the parser needs to see written out.
        format: everything the engine knows about it, as JSON; a parser is made from it.
        unheld: indexes of the tools whose arguments the grammar does not hold to their schemas.
    """

    text: str
    stop: tuple[str, ...]
    preserved: tuple[str, ...]
    format: dict[str, Any]
    unheld: tuple[int, ...] = ()


class ChatTemplates(Uncopyable):
    """The chat templates of a model, or one given as Jinja source.

    Args:
        model: may be None when ``template`` is given.
        template: overrides the model's own; a model without one gets ChatML.
        limits: what it may cost. stop: strings that end an answer, besides those that the template has.

    Raises:
        ChatTemplateError: the template does not parse.
        LimitReachedError: it costs too much.
        ModelClosedError, ForkedProcessError: the model must not be used any more, or not here.
    """

    def __init__(
        self,
        model: Model | None,
        template: str | None = None,
        *,
        bos_token: str = "",
        eos_token: str = "",
        limits: Limits = Limits(),
        stop: tuple[str, ...] = (),
    ) -> None:
        self.limits, self._stop = limits, stop
        source = _text(template, "chat_template") if template else None
        tokens = _text(bos_token, "bos_token"), _text(eos_token, "eos_token")
        result = ctypes.c_void_p()
        with model.in_use() if model else nullcontext() as model_pointer, DeferredInterrupts() as interrupts:
            allowed = limits.native(interrupts)
            call(native.llama_common_chat_init, model_pointer, source, *tokens, ctypes.byref(allowed), ctypes.byref(result))
            parent = model.in_use() if model else None
            self._handle = NativeHandle(result, native.llama_common_chat_free, parent=parent)

    def close(self) -> None:
        """Frees the templates, as soon as no other thread is in the middle of using them."""
        self._handle.close()

    def describe(self) -> dict[str, Any]:
        """``source``, ``source_tool_use``, ``explicit``, ``supports_thinking`` and ``capabilities``."""
        result = ctypes.c_char_p()
        with self._handle as pointer, DeferredInterrupts():
            call(native.llama_common_chat_describe, pointer, ctypes.byref(result))
            described: dict[str, Any] = json.loads(take_string(result))
            return described

    def apply(self, request: dict[str, Any], *, strict: bool = True) -> ChatPrompt:
        """Renders a conversation.

        Args:
            request: ``messages`` in OpenAI's form and, optionally, the fields listed at
                ``llama_common_chat_apply()`` in ``native/llama-common-c.h``.
            strict: whether what a grammar cannot express of ``json_schema`` is an error; of tools their "strict" says it.

        Raises:
            InvalidArgumentError: the request is malformed. GrammarError: a schema that no grammar can be made of.
            ChatTemplateError: the template refused it. LimitReachedError: it costs too much.
            ModelClosedError: somebody closed it meanwhile. ForkedProcessError.
        """
        text = to_json("the request", {**request, "collect_schemas": True})
        result = ctypes.c_char_p()
        with self._handle as pointer, DeferredInterrupts() as interrupts:
            allowed = self.limits.native(interrupts)
            call(native.llama_common_chat_apply, pointer, text.encode(), ctypes.byref(allowed), ctypes.byref(result))
            rendered = json.loads(take_string(result))
        unheld = schemas.fill(rendered, request, self.limits, strict)
        return ChatPrompt(
            text=rendered["prompt"],
            stop=(*rendered["additional_stops"], *self._stop),
            preserved=tuple(rendered["preserved_tokens"]),
            format=rendered,
            unheld=unheld,
        )


class ChatParser(Uncopyable):
    """Reads one answer. ``format`` is :attr:`ChatPrompt.format`, or ``{}`` for plain text."""

    def __init__(self, format: Mapping[str, Any]) -> None:
        self._pointer = native.llama_common_chat_parser_p_ctypes()
        call(native.llama_common_chat_parser_init, json.dumps(format).encode(), ctypes.byref(self._pointer))

    def __del__(self) -> None:
        if getattr(self, "_pointer", None):
            pointer, self._pointer = self._pointer, native.llama_common_chat_parser_p_ctypes()
            native.llama_common_chat_parser_free(pointer)

    def parse(self, text: str, *, partial: bool = False) -> dict[str, Any]:
        """The message in OpenAI's form.

        Raises:
            ChatParseError: the text does not follow the format, or breaks off within a tool call.
        """
        message: dict[str, Any] = self._run(native.llama_common_chat_parser_parse, text, partial)
        if not partial:
            for tool_call in message.get("tool_calls", ()):
                _check_arguments(tool_call)
        return message

    def update(self, text: str, *, partial: bool = True) -> list[dict[str, Any]]:
        """What the whole text so far adds to the last call, as OpenAI's stream deltas."""
        deltas: list[dict[str, Any]] = self._run(native.llama_common_chat_parser_update, text, partial)
        return deltas

    def _run(self, function: Callable[..., int], text: str, partial: bool) -> Any:
        data = text.encode("utf-8", "replace")
        result = ctypes.c_char_p()
        call(function, self._pointer, data, len(data), partial, ctypes.byref(result))
        return json.loads(take_string(result))


def _check_arguments(tool_call: dict[str, Any]) -> None:
    # the engine's parsers take a call for whole that breaks off in the middle of its arguments
    try:
        json.loads(tool_call["function"]["arguments"] or "{}")
    except ValueError as error:
        name = tool_call["function"]["name"]
        raise ChatParseError(f"The call of {name!r} breaks off: its arguments are not JSON ({error}).") from error


def json_schema_to_grammar(schema: dict[str, Any] | bool | str, limits: Limits = Limits(), *, strict: bool = True) -> str:
    """A GBNF grammar for the JSON documents that a schema describes: every text that it admits satisfies the schema.

    Args:
        strict: whether a keyword that a grammar cannot express is an error; else it is left out, and the log says so.

    Raises:
        InvalidArgumentError: not JSON.
        GrammarError: not a schema, one that contradicts itself, or that a grammar cannot express; with the keyword and its place.
        LimitReachedError: it costs too much.
    """
    text = schemas.text_of(schema)
    if "\0" in text:
        raise InvalidArgumentError("schema contains a NUL character.")
    return json_schema.grammar(text, limits, strict)


def _text(value: str, name: str) -> bytes:
    if "\0" in value:
        raise InvalidArgumentError(f"{name} contains a NUL character.")
    return value.encode("utf-8", "replace")

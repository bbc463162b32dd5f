"""Calls of our own C API, with what it reports as exceptions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from ..errors import (
    ChatParseError,
    ChatTemplateError,
    GrammarError,
    InvalidArgumentError,
    LimitReachedError,
    LlamaCppError,
    NativeError,
    TokenizationError,
)
from . import llama_common_c as native

_ERRORS: dict[int, tuple[type[LlamaCppError], str]] = {
    native.LLAMA_COMMON_INVALID_ARGUMENT: (InvalidArgumentError, "Messages and tools follow OpenAI's chat format."),
    native.LLAMA_COMMON_TEMPLATE_ERROR: (
        ChatTemplateError,
        "Give another chat_template, or messages in the order this template allows.",
    ),
    native.LLAMA_COMMON_PARSE_ERROR: (ChatParseError, ""),
    native.LLAMA_COMMON_GRAMMAR_ERROR: (
        GrammarError,
        "A grammar is GBNF, with a rule named root.",
    ),
    native.LLAMA_COMMON_VOCAB_ERROR: (TokenizationError, "The model's file may be damaged: download or convert it again."),
    native.LLAMA_COMMON_LIMIT_REACHED: (LimitReachedError, "Give limits=Limits(…) with more, if it is to be trusted."),
}


def call(function: Callable[..., int], *args: Any) -> None:
    """Calls a function whose last parameter is ``char ** error`` and raises what it reports."""
    error = ctypes.c_char_p()
    status = function(*args, ctypes.byref(error))
    if status == native.LLAMA_COMMON_OK:
        return
    message = take_string(error) or f"{function.__name__} failed"
    if status == native.LLAMA_COMMON_OUT_OF_MEMORY:
        raise MemoryError(message)
    kind, remedy = _ERRORS.get(status, (NativeError, ""))
    message = message.strip()
    raise kind(f"{message}." if remedy and message[-1:].isalnum() else message, remedy=remedy)


def take_string(string: ctypes.c_char_p) -> str:
    """Copies a string that the library handed out, and gives it back."""
    try:
        return (string.value or b"").decode("utf-8", "replace")
    finally:
        native.llama_common_string_free(string)

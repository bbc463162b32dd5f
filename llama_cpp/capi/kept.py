"""Functions that hand callbacks to C, with the callbacks kept alive for as long as C may call them.

A callback is freed with its last reference in Python, and C would call what is no more.
"""

from __future__ import annotations

import ctypes
from typing import Any

from . import ggml, llama

#: Of each context, by its address: what it may call.
_of_contexts: dict[int, list[Any]] = {}
#: Loggers; another thread may be in the middle of one that was replaced.
_loggers: list[Any] = []


def _address(pointer: Any) -> int:
    found = pointer if isinstance(pointer, int) else ctypes.cast(pointer, ctypes.c_void_p).value
    return found or 0


def llama_init_from_model(model: Any, params: Any) -> Any:
    """As the engine's; the callbacks in ``params`` live as long as the context."""
    context = llama.llama_init_from_model(model, params)
    if context:
        _of_contexts[_address(context)] = [dict(params._objects or {})]
    return context


def llama_new_context_with_model(model: Any, params: Any) -> Any:
    """As :func:`llama_init_from_model`."""
    return llama_init_from_model(model, params)


def llama_free(ctx: Any) -> None:
    """As the engine's."""
    llama.llama_free(ctx)
    _of_contexts.pop(_address(ctx), None)


def llama_set_abort_callback(ctx: Any, abort_callback: Any, abort_callback_data: Any) -> None:
    """As the engine's; the callback lives as long as the context."""
    _of_contexts.setdefault(_address(ctx), []).append((abort_callback, abort_callback_data))
    llama.llama_set_abort_callback(ctx, abort_callback, abort_callback_data)


def llama_log_set(log_callback: Any, user_data: Any) -> None:
    """As the engine's; the callback lives as long as the process. It replaces what writes to Python's ``logging``."""
    _loggers.append((log_callback, user_data))
    llama.llama_log_set(log_callback, user_data)


def ggml_log_set(log_callback: Any, user_data: Any) -> None:
    """As :func:`llama_log_set`."""
    _loggers.append((log_callback, user_data))
    ggml.ggml_log_set(log_callback, user_data)


__all__ = [
    "ggml_log_set", "llama_free", "llama_init_from_model", "llama_log_set", "llama_new_context_with_model",
    "llama_set_abort_callback",
]  # fmt: skip

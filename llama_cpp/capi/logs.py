"""What the native libraries log, as records of Python's :mod:`logging`.

Three loggers write C strings at a callback: ggml and llama.cpp (``llama_cpp.native``), llama.cpp's ``common``
(``llama_cpp.native.common``) and mtmd (``llama_cpp.native.mtmd``). A message may come in pieces; pieces are joined
into lines. Nothing reaches stdout.

The callbacks are Python code in the middle of a native call. What a signal handler raises there would be lost, so calls
that log are made under :class:`~llama_cpp.capi.interrupts.DeferredInterrupts`.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import threading
from typing import Any

from . import ggml, llama, llama_common_c, mtmd_helper

_LEVELS = {
    ggml.GGML_LOG_LEVEL_NONE: logging.INFO,
    ggml.GGML_LOG_LEVEL_DEBUG: logging.DEBUG,
    ggml.GGML_LOG_LEVEL_INFO: logging.INFO,
    ggml.GGML_LOG_LEVEL_WARN: logging.WARNING,
    ggml.GGML_LOG_LEVEL_ERROR: logging.ERROR,
}

logger = logging.getLogger("llama_cpp.native")

#: What the engine calls errors and this package expects: no room for a batch, to which the batching engine answers by making
#: some, and a batch that was stopped in the middle (GGML_STATUS_ABORTED, 2 of llama_decode()). And a pooling that was asked for.
_EXPECTED = ("failed to find a memory slot", "removing memory module entries", "model default pooling_type is")
_EXPECTED_ENDS = ("failed with error 1", "compute status: 1", "decode, ret = 2", "encode, ret = 2")


class LineJoiner:
    """Joins pieces of text into lines and logs each. Pieces of different threads never mix."""

    def __init__(self, target: logging.Logger) -> None:
        self._target = target
        self._pending = threading.local()

    def write(self, level: int, text: str) -> None:
        """``level`` is a ``GGML_LOG_LEVEL_*``; CONT continues the line before it at its level."""
        pending: str = getattr(self._pending, "text", "")
        if level == ggml.GGML_LOG_LEVEL_CONT:
            level = getattr(self._pending, "level", ggml.GGML_LOG_LEVEL_INFO)
        elif pending:
            self._log(pending)
            pending = ""
        self._pending.level = level
        *lines, rest = (pending + text).split("\n")
        for line in lines:
            self._log(line)
        self._pending.text = rest

    def _log(self, line: str) -> None:
        if line.strip():
            expected = line.rstrip().endswith(_EXPECTED_ENDS) or any(text in line for text in _EXPECTED)
            level = logging.DEBUG if expected else _LEVELS.get(self._pending.level, logging.INFO)
            self._target.log(level, "%s", line.rstrip())


def _callback(name: str | None) -> Any:
    joiner = LineJoiner(logger.getChild(name) if name else logger)

    def write(level: int, text: bytes | None, _user_data: Any) -> None:
        if text:
            joiner.write(level, text.decode("utf-8", "replace"))

    return ggml.ggml_log_callback(write)


_callbacks = {name: _callback(name) for name in (None, "common", "mtmd")}


def route(discard: Any) -> None:
    """Sends all three loggers here. At interpreter exit they fall silent, before Python cannot be called any more.

    Args:
        discard: the C function that takes over then.
    """
    _set(_callbacks[None], _callbacks["common"], _callbacks["mtmd"])
    silent = ctypes.cast(discard, ggml.ggml_log_callback)
    atexit.register(_set, silent, silent, silent)


def _set(native: Any, common: Any, mtmd: Any) -> None:
    llama.llama_log_set(native, None)
    mtmd_helper.mtmd_helper_log_set(mtmd, None)
    llama_common_c.llama_common_log_set(common, None)

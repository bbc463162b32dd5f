"""The logger under the name that llama-cpp-python's users silence: its level and its handlers are those of ``llama_cpp``'s."""

from __future__ import annotations

import logging

#: Of the engine's levels (``GGML_LOG_LEVEL_*``), Python's.
GGML_LOG_LEVEL_TO_LOGGING_LEVEL = {
    0: logging.CRITICAL, 1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR, 5: logging.DEBUG,
}  # fmt: skip


class _Alias(logging.Logger):
    """Tells ``llama_cpp``'s logger what it is told: programs that know this name silence that one."""

    def setLevel(self, level: int | str) -> None:
        super().setLevel(level)
        logging.getLogger("llama_cpp").setLevel(level)

    def addHandler(self, hdlr: logging.Handler) -> None:
        logging.getLogger("llama_cpp").addHandler(hdlr)

    def removeHandler(self, hdlr: logging.Handler) -> None:
        logging.getLogger("llama_cpp").removeHandler(hdlr)

    def addFilter(self, filter: logging._FilterType) -> None:
        logging.getLogger("llama_cpp").addFilter(filter)


def _alias(name: str) -> logging.Logger:
    kind = logging.getLoggerClass()
    logging.setLoggerClass(_Alias)
    try:
        return logging.getLogger(name)
    finally:
        logging.setLoggerClass(kind)


logger = _alias("llama-cpp-python")


def set_verbose(verbose: bool) -> None:
    """Lets everything through (``DEBUG``), or errors alone."""
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR)

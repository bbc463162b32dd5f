"""libllava's names, which llama.cpp has removed: each says, when it is called, what took its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import MissingSymbolError


def __getattr__(name: str) -> Callable[..., Any]:
    if not name.startswith(("llava_", "clip_")):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def removed(*_: Any) -> Any:
        raise MissingSymbolError(f"llama.cpp has removed {name}().", remedy="Images and sound are read by llama_cpp.mtmd_cpp.")

    return removed

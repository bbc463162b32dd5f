"""All symbols of the native libraries in one object, as programs of llama-cpp-python's expect it of ``llama_cpp._lib``."""

from __future__ import annotations

from typing import Any

from .loader import libraries

#: In this order symbols are looked for.
_ORDER = ("llama", "ggml", "ggml-base", "mtmd", "llama-common-c")


class WholeLibrary:
    """Its attributes are C functions, which ``ctypes.cast(…, c_void_p)`` takes; ``_name`` and ``_handle`` are libllama's.

    Raises:
        AttributeError: no library has such a symbol. As ``libraries()`` does.
    """

    def __getattr__(self, name: str) -> Any:
        found = libraries()
        if name in ("_name", "_handle"):
            return getattr(found["llama"], name)
        if name.startswith("__"):
            raise AttributeError(name)
        for library in (found[one] for one in _ORDER if one in found):
            try:
                return getattr(library, name)
            except AttributeError:
                continue
        raise AttributeError(f"no library of llama.cpp's has the symbol {name!r}")

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


lib = WholeLibrary()

"""Helpers around ctypes that programs of llama-cpp-python's use to bind further functions."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .capi.whole import lib
from .errors import LibraryNotFoundError

F = TypeVar("F", bound=Callable[..., Any])

if TYPE_CHECKING:
    CtypesCData = TypeVar("CtypesCData", bound=ctypes._CData)
    CtypesArray = ctypes.Array[CtypesCData]
    CtypesPointer = ctypes._Pointer[CtypesCData]
    CtypesVoidPointer = ctypes.c_void_p


def load_shared_library(lib_base_name: str, base_path: str | os.PathLike[str]) -> Any:
    """One of the engine's libraries.

    Args:
        lib_base_name: "llama", "ggml", "mtmd" and so on. base_path: the folder to look in, where it is none of the engine's.

    Raises:
        LibraryNotFoundError: there is none.
    """
    from .capi.loader import libraries

    if lib_base_name in (found := libraries()):
        return found[lib_base_name]
    for path in (Path(base_path) / f"lib{lib_base_name}{ending}" for ending in (".so", ".so.0", ".dylib", ".dll")):
        if path.exists():
            return ctypes.CDLL(str(path))
    raise LibraryNotFoundError(f"There is no library {lib_base_name!r} in {os.fspath(base_path)}.")


def ctypes_function_for_shared_library(library: Any) -> Callable[..., Callable[[F], F]]:
    """What makes decorators that turn prototypes into functions of a library."""

    def ctypes_function(name: str, argtypes: list[Any], restype: Any, enabled: bool = True) -> Callable[[F], F]:
        def decorate(prototype: F) -> F:
            if not enabled:
                return prototype
            function = getattr(library, name)
            function.argtypes, function.restype = argtypes, restype
            functools.wraps(prototype)(function)
            bound: F = function
            return bound

        return decorate

    return ctypes_function


ctypes_function = ctypes_function_for_shared_library(lib)


def byref(obj: Any, offset: int | None = None) -> Any:
    """As :func:`ctypes.byref`."""
    return ctypes.byref(obj) if offset is None else ctypes.byref(obj, offset)

"""Prototypes in Python that become C functions when they are first called. Where these are found is the loader's to say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

#: How the symbols of libraries and of backend plugins are found: given the library or the registry, the function's name, and its
#: types. The loader fills it in when this package is imported.
resolvers: dict[str, Callable[[str, str, Any, tuple[Any, ...]], Any]] = {}


def bind(library: str, restype: Any, *argtypes: Any) -> Callable[[F], F]:
    """Turns a prototype into the C function of the same name, found at the first call.

    After that call the module's name is the ctypes function itself, so a call through the module costs nothing extra.

    Raises (when called):
        MissingSymbolError: the library does not export the function.
        LibraryNotFoundError, LibraryMismatchError, BackendLoadError: the libraries could not be loaded.
    """
    return lambda prototype: _lazy(prototype, library, restype, argtypes, "library")


def bind_plugin(registry: str, restype: Any, *argtypes: Any) -> Callable[[F], F]:
    """Like :func:`bind`, for a function that lives in a backend plugin and is reached through its registry.

    ``registry`` is the registry's name, such as ``"CPU"`` or ``"CUDA"`` (case does not matter).
    """
    return lambda prototype: _lazy(prototype, registry, restype, argtypes, "plugin")


def _lazy(prototype: Any, library: str, restype: Any, argtypes: tuple[Any, ...], kind: str) -> Any:
    name = prototype.__name__
    namespace = prototype.__globals__
    function = None

    def first_call(*args: Any) -> Any:
        nonlocal function
        if function is None:
            function = resolvers[kind](library, name, restype, argtypes)
            if namespace.get(name) is first_call:
                namespace[name] = function
        return function(*args)

    first_call.__name__ = name
    first_call.__doc__ = prototype.__doc__
    first_call.__module__ = prototype.__module__
    first_call.__wrapped__ = prototype  # type: ignore[attr-defined]
    first_call.library, first_call.symbol = library, name  # type: ignore[attr-defined]
    first_call.restype, first_call.argtypes = restype, argtypes  # type: ignore[attr-defined]
    return first_call

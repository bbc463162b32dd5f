"""Small things that llama-cpp-python's users import."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, MutableMapping
from typing import Any


@contextlib.contextmanager
def suppress_stdout_stderr(disable: bool = True) -> Iterator[None]:
    """Sends what the process writes to file descriptors 1 and 2 nowhere, unless ``disable``.

    The engine writes to neither, so this is for what else runs in the block. It is for all threads: nothing else should write
    meanwhile.
    """
    if disable:
        yield
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or none
            stream.flush()
    kept: list[tuple[int, int]] = []
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):  # it is closed
                kept.append((descriptor, os.dup(descriptor)))
                os.dup2(nowhere, descriptor)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        for descriptor, copy in kept:
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nowhere)


class MetaSingleton(type):
    """The type of classes that have one instance."""

    _instances: MutableMapping[type, Any] = {}  # noqa: RUF012  # of all of them

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        if cls not in cls._instances:
            cls._instances[cls] = super().__call__(*args, **keywords)
        return cls._instances[cls]


class Singleton(metaclass=MetaSingleton):
    """A class with one instance."""

"""What chat templates and grammars may cost. They come with model files and with requests, so from anywhere."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .capi import llama_common_c as native
from .capi.interrupts import DeferredInterrupts, is_unwanted, unwanted
from .errors import LlamaCppError, RequestAbortedError
from .values import integer, number, refused

_Stopped = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)


@dataclass(frozen=True)
class Limits:
    """The most that a chat template or a grammar may cost; what costs more ends with a LimitReachedError.

    Attributes:
        seconds: for a template to be read and rendered, or a grammar or a schema to be read, and for a grammar to take a token.
        template_bytes: of all text that a template makes on its way to the prompt.
        template_values: values (texts, numbers, lists, …) that a template has at once.
        grammar_stacks: ways to go on that are looked at when a grammar is read, and for each token.
        grammar_bytes: of the grammar that a JSON schema is made into.

    Raises:
        InvalidArgumentError: not a positive number.
    """

    seconds: float = 10.0
    template_bytes: int = 1 << 30
    template_values: int = 2_000_000
    grammar_stacks: int = 1_000_000
    grammar_bytes: int = 1 << 24

    def __post_init__(self) -> None:
        seconds = number("seconds", self.seconds)
        if not (seconds > 0 and math.isfinite(seconds)):
            raise refused("seconds", self.seconds, "a positive number")
        object.__setattr__(self, "seconds", seconds)
        for name in ("template_bytes", "template_values", "grammar_stacks", "grammar_bytes"):
            object.__setattr__(self, name, integer(name, getattr(self, name), 1, (1 << 62)))

    def native(self, interrupts: DeferredInterrupts) -> native.llama_common_limits:
        """The same for the C library, which stops when a signal handler has raised something, or nobody waits any more."""
        stopped = _Stopped(lambda _data: interrupts.pending is not None or is_unwanted())
        found = native.llama_common_limits(
            seconds=self.seconds, n_bytes=self.template_bytes, n_values=self.template_values, n_stacks=self.grammar_stacks
        )
        found.stopped = ctypes.cast(stopped, type(found.stopped))
        found.keep_alive = stopped
        return found


@contextmanager
def asking(abort: Callable[[], bool] | None) -> Iterator[None]:
    """Ends templates, schemas and grammars that are read meanwhile when ``abort``, asked ten times a second, says so.

    Raises:
        RequestAbortedError: it said so; what it raised otherwise.
    """
    if abort is None:
        yield
        return
    asked = _Asked(abort, unwanted.get())
    token = unwanted.set(asked)
    try:
        yield
    except LlamaCppError:
        if asked.error is not None:
            raise asked.error from None
        if asked.aborted:
            raise RequestAbortedError("abort_callback ended the request before it began.") from None
        raise
    finally:
        unwanted.reset(token)


class _Asked:
    """Whether a request is not wanted any more, by its own callback or by ``others``."""

    def __init__(self, abort: Callable[[], bool], others: Callable[[], bool] | None) -> None:
        self._abort = abort
        self._others = others
        self._next = time.monotonic() + 0.1
        self.aborted = False
        self.error: BaseException | None = None

    def __call__(self) -> bool:
        if not self.aborted and time.monotonic() >= self._next:
            try:
                self.aborted = bool(self._abort())
            except BaseException as error:
                # the engine's callbacks let none through
                self.error, self.aborted = error, True
            self._next = time.monotonic() + 0.1
        return self.aborted or (self._others is not None and self._others())

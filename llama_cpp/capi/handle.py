"""Who uses a native object, so that none is freed under the hands of another thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from ..errors import ForkedProcessError, ModelClosedError, UncopyableError
from .interrupts import DeferredInterrupts


def refuse_fork(pid: int) -> None:
    """Raises ForkedProcessError in any other process than ``pid``, where the model was loaded."""
    if os.getpid() != pid:
        raise ForkedProcessError(
            "The model was loaded before fork() and is used in the child, where its threads do not exist.",
            remedy="Load it in the child, or start processes with multiprocessing's 'spawn' method.",
        )


class Uncopyable:
    """What can neither be copied nor pickled: it owns a native object, or a thread, that there is one of."""

    def __reduce_ex__(self, _protocol: Any) -> Any:
        raise UncopyableError(
            f"A {type(self).__name__} cannot be copied or pickled: it owns memory of the engine.",
            remedy="Pass it on as it is, or open the model once more; another process opens its own.",
        )


class NativeHandle(Uncopyable):
    """Owns a native object and counts its users; after :meth:`close`, the last of them frees it.

    Any thread may enter it, and enter it again, to use the object.

    Args:
        pointer: the object.
        free: gives it back. It may run in any of the threads.
        parent: what the object points into; it is in use until the object is freed.

    Raises:
        ModelClosedError, ForkedProcessError: by way of ``parent``; the object is still the caller's then.

    Example:
        >>> with handle as pointer:
        ...     native_call(pointer)
    """

    def __init__(self, pointer: Any, free: Callable[[Any], None], *, parent: NativeHandle | None = None) -> None:
        self._pointer: Any = pointer
        self._owned: list[Any] = []
        self._free = free
        self._pid = os.getpid()
        # A list is a count that needs no lock: its methods are atomic. No lock, because a forked child would inherit
        # it held, and because every tokenization passes here.
        self._users: list[None] = []
        if parent is not None:
            parent.acquire()
        self._parent = parent
        self._owned.append(pointer)

    def acquire(self) -> Any:
        """Counts a user, who has to call :meth:`release` once.

        Returns:
            The pointer.

        Raises:
            ModelClosedError, ForkedProcessError: it must not be used any more, or not in this process.
        """
        try:
            # first counted, then looked: whoever closes it in between sees the count, or is seen here
            self._users.append(None)
            pointer = self._pointer
            if pointer is None or os.getpid() != self._pid:
                pointer = self.pointer  # raises
        except BaseException:
            self.release()
            raise
        return pointer

    def release(self) -> None:
        """Ends a use; frees the object if it was closed meanwhile and nobody else uses it."""
        try:
            self._users.pop()
        finally:
            if self._pointer is None:
                self._free_unused()

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def pointer(self) -> Any:
        """The pointer, for those who know by other means that it is not freed meanwhile.

        Raises:
            ModelClosedError, ForkedProcessError: as in :meth:`acquire`.
        """
        pointer = self._pointer
        if pointer is None:
            raise ModelClosedError("The model is closed.", remedy="Create a new Llama.")
        refuse_fork(self._pid)
        return pointer

    def require_open(self) -> None:
        """Raises ModelClosedError or ForkedProcessError where :attr:`pointer` would."""
        if self._pointer is None or os.getpid() != self._pid:
            _ = self.pointer  # raises

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._pointer is None

    def close(self) -> None:
        """Lets nobody in any more, and frees the object as soon as nobody uses it. In a forked child it only forgets."""
        self._pointer = None
        self._free_unused()

    def __del__(self) -> None:
        # At interpreter exit the operating system takes the memory back, and modules are already half gone. Users are
        # heeded here too: the garbage collector ends a parent before its children as it pleases.
        if not sys.is_finalizing():
            self.close()

    def _free_unused(self) -> None:
        with DeferredInterrupts():
            if self._users:
                return
            try:
                pointer = self._owned.pop()
            except IndexError:
                return  # another thread was faster
            if os.getpid() == self._pid:
                self._free(pointer)
            if self._parent is not None:
                self._parent.release()

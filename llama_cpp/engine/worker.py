"""The thread that owns a context: how it is started, what reaches it, and how it ends."""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from ..capi.handle import Uncopyable
from ..errors import ModelClosedError

T = TypeVar("T")


def model_closed() -> ModelClosedError:
    """What whoever asks a closed model gets."""
    return ModelClosedError("The model is closed.", remedy="Create a new Llama.")


class Worker(Uncopyable, Generic[T]):
    """A daemon thread with an inbox. In a forked child, where the thread does not exist, nothing is done.

    Args:
        name: the thread's.
        run: what it does; it takes from :attr:`inbox` and ends once :attr:`closing`.
        interrupt: called in any thread after something was put into the inbox, so that it is looked into soon.

    Attributes:
        inbox: what it was asked for. None is nothing but a reason to look.
        closing: whether it is to end. exiting: whether the interpreter ends.
    """

    def __init__(self, name: str, run: Callable[[], None], interrupt: Callable[[], None]) -> None:
        self.inbox: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self.closing = self.exiting = False
        self._interrupt = interrupt
        self._pid = os.getpid()
        self._thread = threading.Thread(target=run, name=name, daemon=True)

    def start(self, owner: Stoppable) -> None:
        """Starts the thread; ``owner.stop(exiting=True)`` is called when the interpreter ends.

        A daemon thread dies wherever it is then; one in the middle of a batch must not.
        """
        self._thread.start()
        _owners.add(owner)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def join(self, seconds: float) -> None:
        """Waits so long for the thread to end."""
        self._thread.join(seconds)

    @property
    def is_here(self) -> bool:
        """Whether this is the process that the thread runs in, and not a forked child."""
        return os.getpid() == self._pid

    def put(self, item: T | None) -> None:
        """Puts something into the inbox, whoever is there to take it."""
        self.inbox.put(item)
        self._interrupt()

    def post(self, item: T) -> None:
        """Puts something into the inbox that somebody will wait for.

        Raises:
            ModelClosedError: nobody will take it. A daemon thread is left waiting instead if the interpreter ends.
        """
        self.put(item)
        if self.closing:
            if self.exiting and threading.current_thread() is not threading.main_thread():
                threading.Event().wait()  # a daemon thread, which the interpreter is about to end
            raise model_closed()

    def stop(self, exiting: bool = False) -> bool:
        """Ends the thread, and waits for that unless it is who calls; False in a forked child.

        Args:
            exiting: the interpreter ends. Only daemon threads can still wait for something then; they are left waiting, to end as
                silently as they would otherwise.
        """
        self.exiting = self.exiting or exiting
        self.closing = True
        if not self.is_here:
            return False
        self.put(None)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        return True


class Stoppable(Protocol):
    """Who owns a worker."""

    def stop(self, exiting: bool = False) -> None:
        """Ends it."""
        ...


_owners: weakref.WeakSet[Stoppable] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for owner in list(_owners):
        owner.stop(exiting=True)

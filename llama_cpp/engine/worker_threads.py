"""Threads that do something for the engine's thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from ..capi.handle import Uncopyable


class WorkerThreads(Uncopyable):
    """Up to ``n`` threads, started as they are needed, that call functions in the order in which they were submitted.

    They are daemons: an interpreter that ends does not wait for them, and until it does they take on work. (Those of
    ``concurrent.futures`` refuse it as soon as the main thread has ended, while others still generate.)
    """

    def __init__(self, n: int, name: str) -> None:
        self._n, self._name = n, name
        self._threads: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)
        self._queue: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = queue.SimpleQueue()

    def submit(self, function: Callable[..., None], *args: Any) -> None:
        """Calls a function that raises nothing, as soon as a thread is free. For one thread only."""
        self._queue.put((function, args))
        if not self._idle.acquire(blocking=False) and len(self._threads) < self._n:
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self, wait: bool) -> None:
        """Ends the threads when all is done; ``wait``: until then."""
        for _ in self._threads:
            self._queue.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            function, args = item
            function(*args)
            del item, function, args  # what they hold would live until there is more to do
            self._idle.release()

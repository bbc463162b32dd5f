"""Where what requests have computed is kept when the context has no room for it: in memory, or on disk for the next start.

Under llama-cpp-python's names: ``llm.set_cache(LlamaDiskCache("cache"))``. Only bytes are kept; a folder that somebody else
could have written is refused, and nothing in it is ever unpickled.
"""

from __future__ import annotations

import collections
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from ...errors import CacheError
from ...values import integer


class BaseLlamaCache(Protocol):
    """What :meth:`Llama.set_cache` takes: bytes under names, which it may forget at any time. Any thread may call it."""

    def names(self) -> Iterator[bytes]:
        """The names of all that is kept."""

    def get(self, name: bytes) -> bytes | memoryview | None:
        """What is kept under a name."""

    def put(self, name: bytes, value: bytes | memoryview) -> None:
        """Keeps bytes under a name; what was not used for the longest time makes room."""


class LlamaRAMCache:
    """Keeps up to ``capacity_bytes`` in memory.

    Example:
        >>> llm.set_cache(LlamaRAMCache(capacity_bytes=4 << 30))
    """

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        self.capacity_bytes = _checked(capacity_bytes)
        self._values: collections.OrderedDict[bytes, bytes | memoryview] = collections.OrderedDict()
        self._lock = threading.Lock()

    @property
    def cache_size(self) -> int:
        """Bytes that are kept."""
        return sum(map(len, self._values.values()))

    def names(self) -> Iterator[bytes]:
        """As in :class:`BaseLlamaCache`."""
        return iter(list(self._values))

    def get(self, name: bytes) -> bytes | memoryview | None:
        """As in :class:`BaseLlamaCache`."""
        with self._lock:
            if name not in self._values:
                return None
            self._values.move_to_end(name)
            return self._values[name]

    def put(self, name: bytes, value: bytes | memoryview) -> None:
        """As in :class:`BaseLlamaCache`."""
        if len(value) > self.capacity_bytes:
            return
        with self._lock:
            self._values[name] = value
            self._values.move_to_end(name)
            while self.cache_size > self.capacity_bytes:
                self._values.popitem(last=False)


LlamaCache = LlamaRAMCache


class LlamaDiskCache:
    """Keeps up to ``capacity_bytes`` in a folder, for the next start, too. Several processes can share it.

    Args:
        cache_dir: is made if it is not there, for this user alone.

    Raises:
        CacheError: the folder is somebody else's, others may write to it, or it cannot be used.
    """

    #: What is kept is there at the next start.
    persistent = True

    def __init__(self, cache_dir: str | os.PathLike[str] = ".cache/llama_cache", capacity_bytes: int = 2 << 30) -> None:
        import sqlite3

        import diskcache

        self.capacity_bytes = _checked(capacity_bytes)
        folder = Path(cache_dir)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_foreign(folder)
            self._cache = diskcache.Cache(
                str(folder), disk=_bytes_disk(), size_limit=self.capacity_bytes, eviction_policy="least-recently-used"
            )
        except (OSError, sqlite3.Error, diskcache.Timeout) as error:
            raise CacheError(f"{folder} cannot be used as a cache: {error}", remedy="Give another folder.") from error
        self._failures = (OSError, sqlite3.Error, diskcache.Timeout, ValueError)

    @property
    def cache_size(self) -> int:
        """Bytes that are kept."""
        return int(self._cache.volume())

    def names(self) -> Iterator[bytes]:
        """As in :class:`BaseLlamaCache`."""
        try:
            return iter([name for name in self._cache if isinstance(name, bytes)])
        except self._failures:
            return iter(())

    def get(self, name: bytes) -> bytes | None:
        """As in :class:`BaseLlamaCache`."""
        try:
            value = self._cache.get(name)
        except self._failures:
            return None  # damaged, or gone meanwhile
        return value if isinstance(value, bytes) else None

    def put(self, name: bytes, value: bytes | memoryview) -> None:
        """As in :class:`BaseLlamaCache`; a full disk keeps nothing."""
        if len(value) > self.capacity_bytes:
            return
        try:
            self._cache.set(name, bytes(value) if isinstance(value, memoryview) else value)
        except self._failures:
            return

    def close(self) -> None:
        """Closes its files; what is kept stays."""
        self._cache.close()


def _checked(capacity_bytes: int) -> int:
    return integer("capacity_bytes", capacity_bytes, 0)


def _refuse_foreign(folder: Path) -> None:
    """What others can write would be loaded into the model's memory."""
    closed = not folder.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)  # then what is in it cannot be reached
    for path in (folder, *(() if closed else folder.iterdir())):
        found = path.stat()
        if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise CacheError(
                f"{path} belongs to somebody else, or others may write to it.",
                remedy=f"Give a folder of your own, or: chmod -R go-w {folder}",
            )


def _bytes_disk() -> Any:
    import diskcache

    class BytesDisk(diskcache.Disk):  # type: ignore[misc]
        """Stores names and values as they are: diskcache's own pickles what is not bytes, and unpickles what it finds."""

        def put(self, key: Any) -> Any:
            return super().put(_bytes(key))

        def get(self, key: Any, raw: Any) -> Any:
            if not raw:
                raise ValueError("a name that is not bytes")
            return super().get(key, raw)

        def store(self, value: Any, read: Any, key: Any = diskcache.UNKNOWN) -> Any:
            return super().store(_bytes(value), read, key)

        def fetch(self, mode: Any, filename: Any, value: Any, read: Any) -> Any:
            if mode not in (diskcache.core.MODE_RAW, diskcache.core.MODE_BINARY):
                raise ValueError("a value that is not bytes")
            return super().fetch(mode, filename, value, read)

    return BytesDisk


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"only bytes are kept, not {type(value).__name__}")
    return value

"""Where what requests have computed is kept when the context has no room for it: in memory, or on disk for the next start.

Under llama-cpp-python's names: ``llm.set_cache(LlamaDiskCache("cache"))``. Only bytes are kept; a folder that somebody else
could have written is refused, and nothing in it is ever unpickled.
"""

from __future__ import annotations

import abc
import collections
import os
import stat
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ...errors import CacheError
from ...values import integer, refused
from ..state import LlamaState


class StateStore(Protocol):
    """Bytes under names, which it may forget at any time. Any thread may call it."""

    def names(self) -> Iterator[bytes]:
        """The names of all that is kept."""

    def get(self, name: bytes) -> bytes | memoryview | None:
        """What is kept under a name."""

    def put(self, name: bytes, value: bytes | memoryview) -> None:
        """Keeps bytes under a name; what was not used for the longest time makes room."""


class BaseLlamaCache(abc.ABC):
    """What :meth:`Llama.set_cache` takes: states (:class:`~llama_cpp.LlamaState`) by the token ids that they hold.

    Args:
        capacity_bytes: how much it may keep.

    Raises:
        InvalidArgumentError: that is no whole number, or less than 0.
    """

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        self.capacity_bytes = integer("capacity_bytes", capacity_bytes, 0)

    @property
    @abc.abstractmethod
    def cache_size(self) -> int:
        """Bytes that are kept."""

    def _find_longest_prefix_key(self, key: tuple[int, ...]) -> tuple[int, ...] | None:
        """The tokens of the state that has most tokens in common with the beginning of these; None of none."""
        raise NotImplementedError

    @abc.abstractmethod
    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        """The state that has most of these tokens in common with their beginning.

        Raises:
            KeyError: none has any.
        """

    @abc.abstractmethod
    def __contains__(self, key: Sequence[int]) -> bool:
        """Whether there is such a state."""

    @abc.abstractmethod
    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        """Keeps a state."""


class _ByteCache(BaseLlamaCache):
    """A cache that is a :class:`StateStore`: states of the caller's are bytes in it, under names of their own."""

    _PREFIX = b"state:"

    @abc.abstractmethod
    def names(self) -> Iterator[bytes]:
        """As in :class:`StateStore`."""

    @abc.abstractmethod
    def get(self, name: bytes) -> bytes | memoryview | None:
        """As in :class:`StateStore`."""

    @abc.abstractmethod
    def put(self, name: bytes, value: bytes | memoryview) -> None:
        """As in :class:`StateStore`."""

    def _find_longest_prefix_key(self, key: tuple[int, ...]) -> tuple[int, ...] | None:
        best, n_best = None, 0
        for name in self.names():
            if name.startswith(self._PREFIX):
                tokens = _tokens_in(name[len(self._PREFIX) :])
                n = next((i for i, (one, other) in enumerate(zip(tokens, key)) if one != other), min(len(tokens), len(key)))
                if n > n_best:
                    best, n_best = tokens, n
        return best

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        found = self._find_longest_prefix_key(tuple(key))
        value = None if found is None else self.get(self._PREFIX + _name_of(found))
        if value is None:
            raise KeyError("no state begins with these tokens")
        try:
            return LlamaState.from_bytes(value)
        except ValueError as error:
            raise KeyError(f"the state is damaged: {error}") from None

    def __contains__(self, key: object) -> bool:
        return isinstance(key, Sequence) and self._find_longest_prefix_key(tuple(key)) is not None

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        self.put(self._PREFIX + _name_of(key), value.to_bytes())


class StoreOfStates:
    """A :class:`StateStore` in a cache of the caller's, which keeps states by their tokens.

    What such a cache has from before cannot be listed, so it serves what this process has put there.
    """

    def __init__(self, cache: BaseLlamaCache, n_before: int) -> None:
        self._cache = cache
        self._n_before = n_before  # bytes of a name before its tokens
        self._put: dict[bytes, None] = {}

    def names(self) -> Iterator[bytes]:
        """As in :class:`StateStore`."""
        return iter(list(self._put))

    def get(self, name: bytes) -> bytes | None:
        """As in :class:`StateStore`."""
        try:
            state = self._cache[_tokens_in(name[self._n_before :])]
        except KeyError:
            state = None
        if state is None or bytes(state.llama_state[: len(name)]) != name:  # another one is nearer to it
            self._put.pop(name, None)
            return None
        return bytes(state.llama_state[len(name) :])

    def put(self, name: bytes, value: bytes | memoryview) -> None:
        """As in :class:`StateStore`."""
        import numpy as np

        tokens = _tokens_in(name[self._n_before :])
        data = name + bytes(value)
        scores = np.empty((0, 0), np.single)
        self._cache[tokens] = LlamaState(np.array(tokens, np.intc), scores, len(tokens), data, len(data), 0)
        self._put[name] = None


def store_of(cache: Any, n_before: int) -> StateStore:
    """A cache of the caller's as a store of bytes.

    Args:
        n_before: bytes of a name before the tokens in it.

    Raises:
        InvalidArgumentError: it is none.
    """
    if all(callable(getattr(cache, name, None)) for name in ("names", "get", "put")):
        store: StateStore = cache
        return store
    if all(callable(getattr(cache, name, None)) for name in ("__getitem__", "__setitem__", "__contains__")):
        return StoreOfStates(cache, n_before)
    raise refused("cache", cache, "a LlamaRAMCache, a LlamaDiskCache, or an instance of a subclass of BaseLlamaCache")


def _name_of(tokens: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(tokens)}i", *tokens)


def _tokens_in(name: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(name) // 4}i", name)


class LlamaRAMCache(_ByteCache):
    """Keeps up to ``capacity_bytes`` in memory.

    Example:
        >>> llm.set_cache(LlamaRAMCache(capacity_bytes=4 << 30))
    """

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        super().__init__(capacity_bytes)
        self._values: collections.OrderedDict[bytes, bytes | memoryview] = collections.OrderedDict()
        self._lock = threading.Lock()

    @property
    def cache_size(self) -> int:
        """Bytes that are kept."""
        return sum(map(len, self._values.values()))

    def names(self) -> Iterator[bytes]:
        """As in :class:`StateStore`."""
        return iter(list(self._values))

    def get(self, name: bytes) -> bytes | memoryview | None:
        """As in :class:`StateStore`."""
        with self._lock:
            if name not in self._values:
                return None
            self._values.move_to_end(name)
            return self._values[name]

    def put(self, name: bytes, value: bytes | memoryview) -> None:
        """As in :class:`StateStore`."""
        if len(value) > self.capacity_bytes:
            return
        with self._lock:
            self._values[name] = value
            self._values.move_to_end(name)
            while self.cache_size > self.capacity_bytes:
                self._values.popitem(last=False)


LlamaCache = LlamaRAMCache


class LlamaDiskCache(_ByteCache):
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

        super().__init__(capacity_bytes)
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
        """As in :class:`StateStore`."""
        try:
            return iter([name for name in self._cache if isinstance(name, bytes)])
        except self._failures:
            return iter(())

    def get(self, name: bytes) -> bytes | None:
        """As in :class:`StateStore`."""
        try:
            value = self._cache.get(name)
        except self._failures:
            return None  # damaged, or gone meanwhile
        return value if isinstance(value, bytes) else None

    def put(self, name: bytes, value: bytes | memoryview) -> None:
        """As in :class:`StateStore`; a full disk keeps nothing."""
        if len(value) > self.capacity_bytes:
            return
        try:
            self._cache.set(name, bytes(value) if isinstance(value, memoryview) else value)
        except self._failures:
            return

    def close(self) -> None:
        """Closes its files; what is kept stays."""
        self._cache.close()


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

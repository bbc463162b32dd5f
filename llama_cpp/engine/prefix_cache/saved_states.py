"""The second tier of the prefix cache: what sequences held when they had to make room, outside of the context."""

from __future__ import annotations

import glob
import hashlib
import logging
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...capi.llama_common_c import llama_common_commit
from ...gguf import read_gguf
from ...models.model import Model
from .prefix_tree import PrefixTree
from .stores import BaseLlamaCache, StateStore, store_of

logger = logging.getLogger("llama_cpp")

#: Fields of ``llama_context_params`` that do not change what a sequence's memory holds.
_IRRELEVANT = {"n_ctx", "n_batch", "n_ubatch", "n_threads", "n_threads_batch", "no_perf", "n_seq_max", "op_offload"}

#: Shorter beginnings are computed sooner than they are fetched.
N_LEAST = 64

_HEAD = struct.Struct("<8sQ32s")  # magic, number of tokens, SHA-256 of name and state where it could be damaged
_MAGIC = b"llamasq2"


def fingerprint_of(model: Model, params: Mapping[str, Any], *rounding: bool) -> bytes:
    """What must be equal for a state to mean the same: the engine, the model file, the context's parameters, how it rounds."""
    header = read_gguf(model.path)
    with model.path.open("rb") as file:
        digest = hashlib.sha256(file.read(header.data_offset)).hexdigest()
    files = [(part.stat().st_size, part.stat().st_mtime_ns) for part in _parts(model.path)]
    relevant = sorted((name, value) for name, value in params.items() if name not in _IRRELEVANT)
    return repr((llama_common_commit(), digest, files, sorted(model.overrides.items()), relevant, rounding)).encode()


def _parts(path: Path) -> list[Path]:
    """All files of a model, which may be split as llama-gguf-split does it."""
    split = re.fullmatch(r"(.*-)\d{5}(-of-\d{5}\.gguf)", path.name)
    if split is None:
        return [path]
    return sorted(path.parent.glob(f"{glob.escape(split[1])}[0-9][0-9][0-9][0-9][0-9]{split[2]}"))


class SavedStates:
    """States of sequences in a cache, found by the tokens they begin with.

    A name is the fingerprint's hash and the tokens (int32), so that looking for one reads no state.

    Args:
        fingerprint: of the model and of all that changes what its memory holds; states of others are not seen.
    """

    def __init__(self, cache: StateStore | BaseLlamaCache, fingerprint: bytes) -> None:
        self._fingerprint = hashlib.sha256(fingerprint).digest()
        self._cache = store_of(cache, len(self._fingerprint))
        self._tree = PrefixTree()
        self._n_entries = 0
        self._names: dict[int, tuple[bytes, int]] = {}
        self._known: set[bytes] = set()
        self._failed = False
        for name in self._cache.names():
            if name.startswith(self._fingerprint):
                self._note(name)

    def save(self, tokens: Sequence[int], save: Callable[[int], np.ndarray]) -> None:
        """Keeps the state of a sequence that holds these tokens, unless it is there already.

        Args:
            save: returns the state (uint8) behind as many bytes as it is told; these become the entry's head. No copy is
                made of what can be gigabytes.
        """
        name = self._name(tokens)
        if len(tokens) < N_LEAST or name in self._known or self._failed:
            return
        try:
            self._put(name, len(tokens), save)
        except Exception as error:
            self._give_up(error)

    def _put(self, name: bytes, n_tokens: int, save: Callable[[int], np.ndarray]) -> None:
        entry = save(_HEAD.size)
        if len(entry) <= _HEAD.size:
            return
        _HEAD.pack_into(entry.data, 0, _MAGIC, n_tokens, self._digest(name, entry[_HEAD.size :]))
        self._cache.put(name, entry.data.toreadonly())
        self._note(name)
        if len(self._names) % 64 == 0:
            self._forget_gone()

    def _give_up(self, error: Exception) -> None:
        """Goes on without the cache, which may be anybody's code: it is only there to save time."""
        logger.error("the cache %s failed (%s: %s); going on without", self._cache, type(error).__name__, error)
        self._failed = True

    def _digest(self, name: bytes, state: Any) -> bytes:
        """What shows damage. Nothing happens to what is in this process's memory."""
        if not self.persistent:
            return bytes(32)
        digest = hashlib.sha256(name)
        digest.update(state)
        return digest.digest()

    @property
    def persistent(self) -> bool:
        """Whether what is kept outlives the process."""
        return bool(getattr(self._cache, "persistent", False))

    def best(self, tokens: Sequence[int], whole: bool) -> tuple[int, int]:
        """The entry that serves these tokens best, and how many of them; ``whole``: it must not hold any others."""
        for entry, n_common in self._tree.matches(tokens):
            if n_common >= N_LEAST and not (whole and n_common < self._names[entry][1]):
                return entry, n_common
        return -1, 0

    def load(self, entry: int) -> np.ndarray | None:
        """The state of an entry (uint8); None when it is gone or damaged."""
        name, n_tokens = self._names[entry]
        try:
            value = None if self._failed else self._cache.get(name)
            if value is not None and len(value) > _HEAD.size:
                state = memoryview(value)[_HEAD.size :]
                if _HEAD.unpack_from(value) == (_MAGIC, n_tokens, self._digest(name, state)):
                    return np.frombuffer(state, np.uint8)
        except Exception as error:
            self._give_up(error)
        self._forget(entry)
        return None

    def _forget(self, entry: int) -> None:
        self._tree.remove(entry)
        name, _ = self._names.pop(entry)
        self._known.discard(name)

    def _forget_gone(self) -> None:
        """Forgets entries that had to make room in the cache."""
        there = set(self._cache.names())
        for entry in [entry for entry, (name, _) in self._names.items() if name not in there]:
            self._forget(entry)

    def _name(self, tokens: Sequence[int]) -> bytes:
        return self._fingerprint + np.asarray(tokens, np.int32).tobytes()

    def _note(self, name: bytes) -> None:
        tokens = np.frombuffer(name[len(self._fingerprint) :], np.int32)
        entry = self._n_entries = self._n_entries + 1
        self._names[entry] = name, len(tokens)
        self._known.add(name)
        self._tree.insert(entry, tokens)

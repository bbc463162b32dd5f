"""A model in the engine's memory and its vocabulary."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import Any, Mapping, Sequence

from ..capi import llama
from ..errors import (
    ForkedProcessError,
    InvalidArgumentError,
    ModelClosedError,
    ModelLoadError,
    TokenizationError,
)
from . import gguf


class Model:
    """Owns one ``llama_model``.

    Args:
        path: a GGUF file (the first one of a split model). It is checked before the engine sees it.
        params: fields of ``llama_model_params`` by name; the others keep the engine's defaults.
        kv_overrides: metadata to replace, by key; ``bool``, ``int``, ``float`` or ``str``.
        tensor_split: share of the model for each GPU, in any unit.

    Raises:
        ModelFileError: one of its kinds, when the file cannot be a model.
        ModelLoadError: the engine refused it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        params: Mapping[str, Any] | None = None,
        kv_overrides: Mapping[str, bool | int | float | str] | None = None,
        tensor_split: Sequence[float] | None = None,
    ) -> None:
        self._pointer: int | None = None
        self._pid = os.getpid()
        self.path = Path(path)
        native = llama.llama_model_default_params()
        set_fields(native, params or {})
        self._keep_alive = [_set_tensor_split(native, tensor_split), _set_overrides(native, kv_overrides)]
        gguf.check_gguf(self.path, vocab_only=bool(native.vocab_only))

        self._pointer = llama.llama_model_load_from_file(os.fsencode(self.path), native)
        if not self._pointer:
            raise ModelLoadError(
                f"The engine could not load {self.path}.",
                remedy="The log (logger 'llama_cpp.native') has its reason; most often memory ran out, or the "
                "architecture is newer than this llama.cpp.",
            )
        self.vocab_pointer = llama.llama_model_get_vocab(self._pointer)
        self.vocab_only = bool(native.vocab_only)

    @property
    def pointer(self) -> int:
        """The ``llama_model *``.

        Raises:
            ModelClosedError, ForkedProcessError: it must not be used any more, or not here.
        """
        if self._pointer is None:
            raise ModelClosedError("The model is closed.", remedy="Create a new Llama.")
        if os.getpid() != self._pid:
            raise ForkedProcessError(
                "The model was loaded before fork() and is used in the child, where its threads do not exist.",
                remedy="Load it in the child, or start processes with multiprocessing's 'spawn' method.",
            )
        return self._pointer

    def close(self) -> None:
        """Frees the model. Closing twice is allowed; in a forked child it only forgets."""
        pointer, self._pointer = self._pointer, None
        if pointer and os.getpid() == self._pid:
            llama.llama_model_free(pointer)

    def __del__(self) -> None:
        if getattr(self, "_pointer", None) and not sys.is_finalizing():
            self.close()

    # --- what it is ---

    @property
    def n_vocab(self) -> int:
        self.pointer
        return llama.llama_vocab_n_tokens(self.vocab_pointer)

    @property
    def n_ctx_train(self) -> int:
        """Context length the model was trained with, in tokens."""
        return llama.llama_model_n_ctx_train(self.pointer)

    @property
    def n_embd(self) -> int:
        return llama.llama_model_n_embd(self.pointer)

    @property
    def token_bos(self) -> int:
        self.pointer
        return llama.llama_vocab_bos(self.vocab_pointer)

    @property
    def token_eos(self) -> int:
        self.pointer
        return llama.llama_vocab_eos(self.vocab_pointer)

    @property
    def token_nl(self) -> int:
        self.pointer
        return llama.llama_vocab_nl(self.vocab_pointer)

    def is_end(self, token: int) -> bool:
        """Whether a token ends generation (end of text, of turn, of message)."""
        return llama.llama_vocab_is_eog(self.vocab_pointer, token)

    @property
    def description(self) -> str:
        """For example ``llama 134.52M Q4_1``."""
        buffer = ctypes.create_string_buffer(256)
        llama.llama_model_desc(self.pointer, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def n_bytes(self) -> int:
        """Size of all tensors in bytes."""
        return llama.llama_model_size(self.pointer)

    def metadata(self) -> dict[str, str]:
        """The file's key-value pairs as text; arrays are abbreviated by the engine."""
        pointer = self.pointer
        pairs = {}
        for index in range(llama.llama_model_meta_count(pointer)):
            key = _read_text(llama.llama_model_meta_key_by_index, pointer, index)
            pairs[key] = _read_text(llama.llama_model_meta_val_str_by_index, pointer, index)
        return pairs

    # --- text and tokens ---

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of UTF-8 text.

        Args:
            add_special: add BOS and EOS where the model's own settings ask for them.
            parse_special: read special tokens written out (``<|im_start|>``) as tokens and not as text.

        Raises:
            TokenizationError: the vocabulary cannot express the text.
        """
        self.pointer
        if llama.llama_vocab_type(self.vocab_pointer) == llama.LLAMA_VOCAB_TYPE_NONE:
            # the engine aborts
            raise TokenizationError("This model has no vocabulary.", remedy="Give it token ids.")
        n_max = len(text) + 16
        for _ in range(2):
            tokens = (ctypes.c_int32 * n_max)()
            n = llama.llama_tokenize(self.vocab_pointer, text, len(text), tokens, n_max, add_special, parse_special)
            if n >= 0:
                return tokens[:n]
            n_max = -n
        raise TokenizationError(
            f"The vocabulary cannot tokenize this text of {len(text)} bytes.",
            remedy="It must be shorter than 2 GiB, and the model must have a vocabulary.",
        )

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; they may be a part of a character only. Special tokens are empty unless asked for."""
        self._check_token(token)
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = llama.llama_token_to_piece(self.vocab_pointer, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> bytes:
        """The text of tokens as UTF-8 bytes: their pieces, joined.

        The space that a SentencePiece vocabulary puts before a text is removed after BOS, where the text begins;
        elsewhere it separates words. (``llama_detokenize()`` would also "clean up" spaces before punctuation.)

        Args:
            special: write special tokens out.
        """
        if not tokens:
            return b""
        begins = tokens[0] == self.token_bos
        first = self.token_to_piece(tokens[0], special=special)
        rest = b"".join(self.token_to_piece(token, special=special) for token in tokens[1:])
        if begins and rest.startswith(b" ") and self._adds_space_prefix:
            rest = rest[1:]
        return first + rest

    @functools.cached_property
    def _adds_space_prefix(self) -> bool:
        tokens = self.tokenize(b"a", add_special=False, parse_special=False)
        return bool(tokens) and self.token_to_piece(tokens[0]).startswith(b" ")

    def _check_token(self, token: int) -> None:
        # the engine indexes its vocabulary with it
        if not 0 <= token < self.n_vocab:
            raise TokenizationError(
                f"Token {token} is not in the vocabulary.", remedy=f"Tokens run from 0 to {self.n_vocab - 1}."
            )


def set_fields(native: ctypes.Structure, values: Mapping[str, Any]) -> None:
    """Sets fields of one of the engine's parameter structs.

    Raises:
        InvalidArgumentError: a value of another type than the field's.
    """
    kinds = dict(native._fields_)
    for name, value in values.items():
        try:
            setattr(native, name, value)
        except (TypeError, ctypes.ArgumentError) as error:
            raise InvalidArgumentError(
                f"{name}={value!r} is not of the type the engine wants ({kinds[name].__name__}).",
                remedy="Enumerations are passed as the numbers llama_cpp has under their names.",
            ) from error


def _read_text(function: Any, pointer: int, index: int) -> str:
    size = 256
    while True:
        buffer = ctypes.create_string_buffer(size)
        n = function(pointer, index, buffer, size)
        if n < size:
            return buffer.value.decode("utf-8", "replace")
        size = n + 1


def _set_tensor_split(native: Any, split: Sequence[float] | None) -> Any:
    if split is None:
        return None
    n_max = llama.llama_max_devices()
    try:
        array = (ctypes.c_float * n_max)(*split)
    except (TypeError, IndexError) as error:
        raise InvalidArgumentError(
            f"tensor_split={split!r} is not a list of numbers.", remedy=f"Give one for each GPU, at most {n_max}."
        ) from error
    native.tensor_split = ctypes.cast(array, type(native.tensor_split))
    return array


def _set_overrides(native: Any, overrides: Mapping[str, bool | int | float | str] | None) -> Any:
    if not overrides:
        return None
    if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
        raise InvalidArgumentError(f"kv_overrides={overrides!r} must be a mapping from metadata keys to values.")
    if any(not key or "\0" in key for key in overrides):
        raise InvalidArgumentError("A kv_overrides key is empty or contains a NUL character.")
    # a last entry with an empty key ends the array
    array = (llama.llama_model_kv_override * (len(overrides) + 1))()
    for entry, (key, value) in zip(array, overrides.items()):
        if len(key.encode()) > 127:
            raise InvalidArgumentError(f"The kv_overrides key {key!r} is too long.", remedy="It can have 127 bytes.")
        entry.key = key.encode()
        if isinstance(value, bool):
            entry.tag, entry.value.val_bool = llama.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
        elif isinstance(value, int):
            entry.tag, entry.value.val_i64 = llama.LLAMA_KV_OVERRIDE_TYPE_INT, value
        elif isinstance(value, float):
            entry.tag, entry.value.val_f64 = llama.LLAMA_KV_OVERRIDE_TYPE_FLOAT, value
        elif isinstance(value, str) and len(value.encode()) <= 127:
            entry.tag, entry.value.val_str = llama.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
        else:
            raise InvalidArgumentError(
                f"The kv_overrides value {value!r} of {key!r} cannot be passed on.",
                remedy="Give a bool, an int, a float, or a str of at most 127 bytes.",
            )
    native.kv_overrides = ctypes.cast(array, type(native.kv_overrides))
    return array

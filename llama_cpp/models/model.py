"""A model in the engine's memory and its vocabulary."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import gguf
from ..capi import llama
from ..capi import llama_common_c as native
from ..capi.handle import NativeHandle, Uncopyable
from ..capi.interrupts import DeferredInterrupts
from ..capi.loader import libraries
from ..capi.status import call
from ..errors import InvalidArgumentError, ModelLoadError, TokenizationError
from ..gguf.overrides import Override, check_overrides, native_overrides

# A text of fewer bytes is tokenized before anybody can press Ctrl-C in the middle.
_QUICK = 1 << 10


class Model(Uncopyable):
    """Owns one ``llama_model``.

    Args:
        path: a GGUF file (the first one of a split model). It is checked before the engine sees it.
        params: fields of ``llama_model_params`` by name; the others keep the engine's defaults.
        kv_overrides: metadata to replace, by key; ``bool``, ``int``, ``float`` or ``str``.
        tensor_split: share of the model for each GPU, in any unit.

    Attributes:
        path, overrides: what it was loaded from, and the metadata that was replaced.
        learnt_positions: there is a table of them, and no token can be beyond its end (n_ctx_train); the engine ends the
            process there.
        architecture: ``general.architecture``. shapes: of its tensors, the contiguous dimension first.
        classifies: it has what pooling by rank needs. projects: its vectors can have another width than its layers.
        pieces: bytes of tokens that :meth:`token_to_piece` was asked for, special ones being empty.

    Raises:
        ModelFileError: one of its kinds, when the file cannot be a model.
        MetadataOverrideError: an entry of ``kv_overrides``.
        ModelLoadError: the engine refused it.
        ForkedProcessError: this process was forked after a GPU backend had been loaded.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        params: Mapping[str, Any] | None = None,
        kv_overrides: Mapping[str, Override] | None = None,
        tensor_split: Sequence[float] | None = None,
    ) -> None:
        libraries()  # raises in a forked child whose GPU backend cannot work
        self.path = Path(path)
        self.overrides = overrides = check_overrides(kv_overrides)
        wanted = llama.llama_model_default_params()
        set_fields(wanted, params or {})
        _set_tensor_split(wanted, tensor_split)
        if overrides:
            wanted.kv_overrides = native_overrides(overrides)
        file = gguf.check_gguf(self.path, vocab_only=bool(wanted.vocab_only), overrides=overrides)
        tensors = {tensor.name: tensor.shape for part in (file, *gguf.read_siblings(file)) for tensor in part.tensors}
        self.architecture = file.architecture
        self.shapes = tensors
        self.vocab_only = bool(wanted.vocab_only)
        self.learnt_positions = "position_embd.weight" in tensors
        labels = file.metadata.get(f"{file.architecture}.classifier.output_labels", ())
        one_score = file.architecture == "jina-bert-v2" and "cls.weight" in tensors and len(labels) < 2
        self.classifies = one_score or "cls.output.weight" in tensors
        self.projects = file.architecture in ("lfm2", "lfm2moe") and "dense_2.weight" in tensors
        self.pieces: dict[int, bytes] = {}
        try:
            with DeferredInterrupts() as interrupts:
                pointer = _load(self.path, wanted, interrupts)
                if pointer:
                    self._handle = NativeHandle(pointer, llama.llama_model_free)
                    self._read_properties()
        except BaseException:
            # who keeps the traceback of Ctrl-C must not keep the memory
            if hasattr(self, "_handle"):
                self.close()
            raise
        if not pointer:
            raise ModelLoadError(
                f"The engine could not load {self.path}.",
                remedy="The log (logger 'llama_cpp.native') has its reason; most often memory ran out, or the "
                "architecture is newer than this llama.cpp.",
            )

    def _read_properties(self) -> None:
        # what is needed for every token is asked for once
        self.vocab_pointer = llama.llama_model_get_vocab(self.pointer)
        self._n_vocab: int = llama.llama_vocab_n_tokens(self.vocab_pointer)
        self._token_bos: int = llama.llama_vocab_bos(self.vocab_pointer)
        self._token_eos: int = llama.llama_vocab_eos(self.vocab_pointer)
        self._token_nl: int = llama.llama_vocab_nl(self.vocab_pointer)
        # before there is a context: with YaRN the engine changes it, and a table of positions does not grow with it
        self._n_ctx_train: int = llama.llama_model_n_ctx_train(self.pointer)
        self._can_tokenize = llama.llama_vocab_type(self.vocab_pointer) != llama.LLAMA_VOCAB_TYPE_NONE

    def in_use(self) -> NativeHandle:
        """What to enter while the model's pointers are used: until it is left, :meth:`close` frees nothing.

        Example:
            >>> with model.in_use() as pointer:
            ...     llama.llama_model_size(pointer)
        """
        return self._handle

    @property
    def pointer(self) -> llama.llama_model_p:
        """The ``llama_model *``, for those who know that nobody closes the model meanwhile.

        Raises:
            ModelClosedError, ForkedProcessError: it must not be used any more, or not here.
        """
        pointer: llama.llama_model_p = self._handle.pointer
        return pointer

    def close(self) -> None:
        """Frees the model, as soon as no other thread is in the middle of using it.

        Closing twice is allowed; in a forked child it only forgets.
        """
        self._handle.close()

    # --- what it is ---

    @property
    def n_vocab(self) -> int:
        self._handle.require_open()
        return self._n_vocab

    @property
    def n_ctx_train(self) -> int:
        """Context length the model was trained with, in tokens."""
        self._handle.require_open()
        return self._n_ctx_train

    @property
    def n_embd(self) -> int:
        with self._handle as pointer:
            return llama.llama_model_n_embd(pointer)

    @property
    def token_bos(self) -> int:
        self._handle.require_open()
        return self._token_bos

    @property
    def token_eos(self) -> int:
        self._handle.require_open()
        return self._token_eos

    @property
    def token_nl(self) -> int:
        self._handle.require_open()
        return self._token_nl

    def is_end(self, token: int) -> bool:
        """Whether a token ends generation (end of text, of turn, of message)."""
        with self._handle:
            return llama.llama_vocab_is_eog(self.vocab_pointer, token)

    @functools.cached_property
    def closing_tokens(self) -> frozenset[int]:
        """Tokens that the tokenizer puts at the end of a text."""
        with self._handle:
            vocab = self.vocab_pointer
            return frozenset({llama.llama_vocab_eos(vocab), llama.llama_vocab_sep(vocab)} - {-1})

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Raises InvalidArgumentError for a token that the vocabulary does not have; there must be one at least."""
        n_vocab = self.n_vocab
        if not (min(tokens) >= 0 and max(tokens) < n_vocab):
            token = next(token for token in tokens if not 0 <= token < n_vocab)
            raise InvalidArgumentError(f"Token {token} is not in the vocabulary.", remedy=f"Tokens run from 0 to {n_vocab - 1}.")

    @property
    def description(self) -> str:
        """For example ``llama 134.52M Q4_1``."""
        buffer = ctypes.create_string_buffer(256)
        with self._handle as pointer:
            llama.llama_model_desc(pointer, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def n_bytes(self) -> int:
        """Size of all tensors in bytes."""
        with self._handle as pointer:
            return llama.llama_model_size(pointer)

    def metadata(self) -> dict[str, str]:
        """The file's key-value pairs as text; arrays are abbreviated by the engine."""
        pairs = {}
        with self._handle as pointer:
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
        if len(text) < _QUICK:
            return self._tokenize(text, add_special, parse_special)
        with DeferredInterrupts():
            return self._tokenize(text, add_special, parse_special)

    def _tokenize(self, text: bytes, add_special: bool, parse_special: bool) -> list[int]:
        with self._handle:
            if not self._can_tokenize:
                # the engine aborts
                raise TokenizationError("This model has no vocabulary.", remedy="Give it token ids.")
            n_max, n = len(text) + 16, ctypes.c_int32()
            for _ in range(2):
                tokens = (ctypes.c_int32 * n_max)()
                call(
                    native.llama_common_tokenize, self.vocab_pointer, text, len(text), tokens, n_max, add_special, parse_special,
                    ctypes.byref(n),
                )  # fmt: skip
                if n.value >= 0:
                    return tokens[: n.value]
                n_max = -n.value
        raise TokenizationError(
            f"The vocabulary cannot tokenize this text of {len(text)} bytes.",
            remedy="It must be shorter than 2 GiB, and the model must have a vocabulary.",
        )

    def infill(self, before: Sequence[int], after: str, *, suffix_first: bool = False) -> list[int]:
        """The prompt that asks for what is between tokens and a text, in the order prefix, suffix, middle (Bavarian et al. 2022).

        Args:
            suffix_first: in the order suffix, prefix, middle.

        Raises:
            InvalidArgumentError: the model has no tokens for that. TokenizationError: as in tokenize().
        """
        with self._handle:
            markers = [
                of(self.vocab_pointer) for of in (llama.llama_vocab_fim_pre, llama.llama_vocab_fim_suf, llama.llama_vocab_fim_mid)
            ]
            start = [self._token_bos] if llama.llama_vocab_get_add_bos(self.vocab_pointer) else []
        if min(markers) < 0:
            raise InvalidArgumentError(
                "suffix=… needs a model that was trained to fill in, and this one has no tokens for it.",
                remedy="Take one of a coder's family (Qwen2.5-Coder, for example), or append the suffix to the text yourself.",
            )

        prefix, suffix, middle = markers
        rest = before[1:] if start and before[:1] == start else before
        ahead = [prefix, *rest]
        behind = [suffix, *self.tokenize(after.encode("utf-8", "replace"), add_special=False, parse_special=False)]
        return [*start, *(behind + ahead if suffix_first else ahead + behind), middle]

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; they may be a part of a character only. Special tokens are empty unless asked for."""
        with self._handle:
            piece = self._piece(token, special)
        if not special:
            self.pieces[token] = piece
        return piece

    def _piece(self, token: int, special: bool) -> bytes:
        # the engine indexes its vocabulary with it
        if not 0 <= token < self._n_vocab:
            raise TokenizationError(
                f"Token {token} is not in the vocabulary.", remedy=f"Tokens run from 0 to {self._n_vocab - 1}."
            )
        size, n = 64, ctypes.c_int32()
        while True:
            buffer = ctypes.create_string_buffer(size)
            call(native.llama_common_token_to_piece, self.vocab_pointer, token, buffer, size, special, ctypes.byref(n))
            if n.value >= 0:
                return buffer.raw[: n.value]
            size = -n.value

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> bytes:
        """The text of tokens as UTF-8 bytes: their pieces, joined.

        The space that a SentencePiece vocabulary puts before a text is removed after BOS, where the text begins;
        elsewhere it separates words. (``llama_detokenize()`` would also "clean up" spaces before punctuation.)

        Args:
            special: write special tokens out.
        """
        if not tokens:
            return b""
        with self._handle:
            first = self._piece(tokens[0], special)
            rest = b"".join([self._piece(token, special) for token in tokens[1:]])
            if tokens[0] == self._token_bos and rest.startswith(b" ") and self._adds_space_prefix:
                rest = rest[1:]
        return first + rest

    @functools.cached_property
    def _adds_space_prefix(self) -> bool:
        tokens = self._tokenize(b"a", add_special=False, parse_special=False)
        return bool(tokens) and self._piece(tokens[0], special=False).startswith(b" ")


def _load(path: Path, wanted: llama.llama_model_params, interrupts: DeferredInterrupts) -> llama.llama_model_p | None:
    """The ``llama_model *``; None when it failed, or stopped because of an interrupt."""
    wanted.progress_callback = llama.llama_progress_callback(lambda _progress, _data: interrupts.pending is None)
    return llama.llama_model_load_from_file(os.fsencode(path), wanted)


def set_fields(wanted: ctypes.Structure, values: Mapping[str, Any]) -> None:
    """Sets fields of one of the engine's parameter structs.

    Raises:
        InvalidArgumentError: a value of another type than the field's.
    """
    kinds = {field[0]: field[1] for field in wanted._fields_}
    for name, value in values.items():
        try:
            setattr(wanted, name, value)
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


def _set_tensor_split(wanted: Any, split: Sequence[float] | None) -> None:
    if split is None:
        return
    n_max = llama.llama_max_devices()
    try:
        array = (ctypes.c_float * n_max)(*split)
    except (TypeError, IndexError) as error:
        raise InvalidArgumentError(
            f"tensor_split={split!r} is not a list of numbers.", remedy=f"Give one for each GPU, at most {n_max}."
        ) from error
    wanted.tensor_split = ctypes.cast(array, type(wanted.tensor_split))

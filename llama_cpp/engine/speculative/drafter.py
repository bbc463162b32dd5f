"""Speculative decoding: tokens are drafted, and the model checks several at once (Leviathan et al. 2023).

What is sampled is what would have been sampled without: a draft only decides how much is computed in one batch.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from ...capi import llama
from ...capi import llama_common_c as native
from ...capi.handle import NativeHandle, Uncopyable
from ...capi.status import call
from ...errors import ContextCreationError, InvalidArgumentError, NativeError
from ...models.model import Model, set_fields
from ..decoder import Decoder, keys_can_shift
from ..requests import Request
from ..sampling_params import OWN_HEADS, PROMPT_LOOKUP
from ..slots import Slot
from .draft_length import DraftLength
from .draft_objects import LlamaDraftModel, read_draft

logger = logging.getLogger("llama_cpp")

_TYPES = {PROMPT_LOOKUP: "ngram-simple", OWN_HEADS: "draft-mtp"}
_INT32 = ctypes.POINTER(ctypes.c_int32)


class _Nothing(LlamaDraftModel):
    """Drafts nothing."""

    def __call__(self, input_ids: np.ndarray, /, **kwargs: Any) -> np.ndarray:
        """As in :class:`LlamaDraftModel`."""
        return input_ids[:0]


def _no_draft_model(model: Model) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{model.path} is no draft model: it does not generate text token by token.", remedy="Take another draft model."
    )


class Drafter(Uncopyable):
    """Drafts for the sequences of a decoder, as many tokens as pay.

    Args:
        decoder: whose batches it is shown; from now on it repeats in the draft's memory what is done in its own.
        params: the fields of ``llama_context_params`` that ``decoder`` was made with.
        source: ``"prompt-lookup"``, ``"mtp"``, the path of a smaller model with the same vocabulary, or an object that drafts.
        n_most: tokens drafted at once at most.
        always: draft so many tokens for each batch, whether that pays or not.

    Attributes:
        n_drafted, n_accepted: tokens drafted so far, and those of them that the model would have sampled, too.

    Raises:
        ModelFileError, ModelLoadError: the draft model. ContextCreationError: no memory for it.
        InvalidArgumentError: it has another vocabulary, or this model has no heads to draft with.
    """

    def __init__(
        self, decoder: Decoder, params: Mapping[str, Any], source: str | os.PathLike[str] | LlamaDraftModel, n_most: int,
        n_gpu_layers: int,
        always: bool = False,
    ) -> None:  # fmt: skip
        self._native = native.llama_common_speculator_p_ctypes()
        self._decoder = decoder
        self._n_most = n_most
        self._always = always
        self._n_sequences: int = llama.llama_n_seq_max(decoder.pointer)
        self._object = source if isinstance(source, LlamaDraftModel) else None
        self._model: Model | None = None
        self._draft: NativeHandle | None = None
        self._known: dict[int, tuple[Request, Hashable, int]] = {}  # of a sequence: whose, and how many tokens
        self._length = DraftLength()
        self._probes: list[tuple[Slot, int, list[int]]] = []  # drafts, and where in a request's tokens they belong
        self._n_without = 0  # batches in a row in which nothing was drafted
        self._n_sequences_last = self._n_room = 0
        self.n_drafted = self.n_accepted = 0
        try:
            if not decoder.unlimited_cut and not llama.llama_n_rs_seq(decoder.pointer):
                raise InvalidArgumentError(
                    "Drafts need a memory that can be taken back, and this model's state cannot.",
                    remedy="Load it without draft_model.",
                )
            if source == OWN_HEADS:
                if not llama.llama_model_n_layer_nextn(decoder.model.pointer):
                    raise InvalidArgumentError(
                        "This model has no heads that predict further tokens.",
                        remedy="Give a draft model's path, or 'prompt-lookup'.",
                    )
                self._open_draft(decoder.model, {**params, "ctx_type": llama.LLAMA_CONTEXT_TYPE_MTP})
            elif isinstance(source, (str, os.PathLike)) and source != PROMPT_LOOKUP:
                self._model = Model(source, params={"n_gpu_layers": n_gpu_layers})
                if self._model.learnt_positions and self._model.n_ctx_train < decoder.n_ctx:
                    raise InvalidArgumentError(
                        f"The draft model knows {self._model.n_ctx_train} positions, "
                        f"and a request can have {decoder.n_ctx} tokens.",
                        remedy="Take another draft model, or a smaller n_ctx.",
                    )
                self._open_draft(self._model, params)
            # an object is asked instead of the native part, which then only counts
            kind = _TYPES[PROMPT_LOOKUP] if self._object else _TYPES.get(str(source), "draft-simple")
            wanted = {"types": [kind], "n_max": n_most, "ngram_size": 3}
            try:
                call(
                    native.llama_common_speculator_init, json.dumps(wanted).encode(), decoder.pointer,
                    self._draft.pointer if self._draft else None, self._n_sequences, ctypes.byref(self._native),
                )  # fmt: skip
            except (NativeError, InvalidArgumentError) as error:
                raise InvalidArgumentError(f"{source} cannot draft for this model: {error}") from error
        except BaseException:
            self.close()
            raise
        self._sequences = np.zeros(self._n_sequences, np.int32)
        self._numbers = np.zeros(self._n_sequences, np.int32)
        self._tokens = np.zeros(self._n_sequences * n_most, np.int32)

    def _open_draft(self, model: Model, params: Mapping[str, Any]) -> None:
        wanted = llama.llama_context_default_params()
        set_fields(wanted, {**params, "n_seq_max": self._n_sequences, "ctx_other": self._decoder.pointer})
        wanted.n_outputs_max = self._n_sequences
        wanted.n_outputs_max_per_seq = 1
        with model.in_use() as pointer:
            if llama.llama_model_has_encoder(pointer):
                raise _no_draft_model(model)  # the engine asserts when it plans for several sequences
            context = llama.llama_init_from_model(pointer, wanted)
        if not context:
            raise ContextCreationError("There is no memory for a context of the draft model.", remedy="Ask for a smaller n_ctx.")
        self._draft = NativeHandle(context, llama.llama_free, parent=model.in_use())
        if not (memory := llama.llama_get_memory(context)):
            raise _no_draft_model(model)
        self._decoder.repeat_in(memory, keys_can_shift(model, wanted.type_k))

    def close(self) -> None:
        """Frees what drafts, before the decoder is closed."""
        native.llama_common_speculator_free(self._native)
        self._native = native.llama_common_speculator_p_ctypes()
        if self._draft is not None:
            self._decoder.repeat_in(None)
            self._draft.close()
        if self._model is not None:
            self._model.close()

    def draft(self, slots: Sequence[Slot], n_ctx: int) -> int:
        """Gives requests that want it drafts at what follows their next token, as many as pay and have room.

        Args:
            n_ctx: tokens of one request at most.

        Returns:
            For how many drafts each sequence shall have a place in the batch.
        """
        for slot in slots:
            slot.draft = []
        self._compare(slots)
        ready = [slot for slot in slots if slot.n_pending == 1]
        wanting = [slot for slot in ready if slot.request.speculate and not slot.request.calls_python and not slot.stops]
        if not wanting or any(slot.n_pending > 1 for slot in slots):
            return 0
        n_sequences = max(slot.sequence for slot in slots) + 1
        n_left = max(slot.request.n_left if slot.request.n_left > 0 else self._n_most + 1 for slot in wanting) - 1
        if self._always:
            n_left = self._n_most  # how wide a batch is must not depend on how many drafts were accepted
        self._n_room = min(self._decoder.n_outputs, self._decoder.n_batch) // n_sequences - 1
        n_most = min([self._n_most, self._n_room, n_left, *(n_ctx - 2 - slot.n_held for slot in slots)])
        n = min(self._n_most if self._always else self._length.number(len(ready)), n_most)
        if n > 1 or (self._always and n == 1):
            for slot, draft in zip(wanting, self._draft_for(wanting, n)):
                slot.draft = draft
            self._n_without = 0 if any(slot.draft for slot in wanting) else self._n_without + 1
            # on a GPU another shape costs more than tokens for nothing, for a while
            padded = self._always or (self._decoder.on_device and self._n_without < 4)
            return n if padded else max(len(slot.draft) for slot in wanting)
        if n_most > 1 and self._length.wants_probe():
            for slot, draft in zip(wanting, self._draft_for(wanting, min(2, n_most))):
                if draft:
                    self._probes.append((slot, len(slot.request.tokens), draft))
        return 0

    def _draft_for(self, wanting: Sequence[Slot], n: int) -> list[list[int]]:
        if self._object is not None:
            return [self._ask(self._object, slot, n) for slot in wanting]
        for i, slot in enumerate(wanting):
            self._tell(slot)
            self._sequences[i] = slot.sequence
        call(
            native.llama_common_speculator_draft, self._native, len(wanting), _pointer(self._sequences), n,
            _pointer(self._tokens), _pointer(self._numbers),
        )  # fmt: skip
        return [self._tokens[i * n : i * n + int(self._numbers[i])].tolist() for i in range(len(wanting))]

    def _ask(self, drafts: LlamaDraftModel, slot: Slot, n: int) -> list[int]:
        try:
            return read_draft(drafts(np.array(slot.request.tokens, np.intc)), self._decoder.model.n_vocab, n)
        except Exception:  # the caller's own code; an answer does not depend on it
            logger.exception("%r cannot draft; going on without it", drafts)
            self._object = _Nothing()
            return []

    def _compare(self, slots: Sequence[Slot]) -> None:
        """Finds out how often what was drafted for a look was right."""
        self._probes = [probe for probe in self._probes if probe[0] in slots]
        if not self._probes or any(len(slot.request.tokens) < at + len(draft) for slot, at, draft in self._probes):
            return
        n_accepted = sum(_n_common(slot.request.tokens[at:], draft) for slot, at, draft in self._probes)
        self._length.probed(n_accepted / sum(len(draft) for _, _, draft in self._probes))
        self._probes = []

    def process(self, n_tokens: int) -> None:
        """Shows the draft what the decoder has computed."""
        if self._draft is not None:
            decoder = self._decoder
            call(
                native.llama_common_speculator_process, self._native, n_tokens, decoder.tokens,
                decoder.positions, decoder.sequences,
            )  # fmt: skip

    def learn(self, slot: Slot, n_drafted: int, n_accepted: int) -> None:
        """Notes how many of a request's drafts were right."""
        self._tell(slot)
        self.n_drafted += n_drafted
        self.n_accepted += n_accepted

    def note_time(self, n_sequences: int, n_tokens: int, seconds: float) -> None:
        """Notes how long a batch took in which so many sequences generated so many tokens; 0 when prompts were read in it."""
        if n_sequences and n_sequences == self._n_sequences_last:
            self._length.note(n_sequences, n_tokens, seconds, min(self._n_most, self._n_room))
        else:
            self._length.changed()
        self._n_sequences_last = n_sequences

    def _tell(self, slot: Slot) -> None:
        """Tells the native part which tokens a sequence has."""
        tokens = slot.request.tokens
        # a shift gives a request another key
        request, key, n_known = self._known.get(slot.sequence, (None, None, 0))
        begin = request is not slot.request or key is not slot.request.key
        if not begin and n_known == len(tokens):
            return
        new = np.array(tokens if begin else tokens[n_known:], np.int32)
        function = native.llama_common_speculator_begin if begin else native.llama_common_speculator_accept
        call(function, self._native, slot.sequence, _pointer(new), len(new))
        self._known[slot.sequence] = slot.request, slot.request.key, len(tokens)


def _n_common(slot: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(slot, other)) if a != b), min(len(slot), len(other)))


def _pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(_INT32)

"""Speculative decoding: tokens are guessed, and the model checks several at once (Leviathan et al. 2023).

What is picked is what would have been picked without: a guess only decides how much is computed in one batch.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from ..capi import llama
from ..capi import llama_common_c as native
from ..capi.handle import Handle, Uncopyable
from ..capi.status import call
from ..errors import ContextCreationError, InvalidArgumentError, NativeError
from ..models.model import Model, set_fields
from .batches import Running
from .decoder import Decoder, keys_can_shift
from .pace import Pace
from .params import OWN_HEADS, PROMPT_LOOKUP
from .requests import Request

_TYPES = {PROMPT_LOOKUP: "ngram-simple", OWN_HEADS: "draft-mtp"}
_INT32 = ctypes.POINTER(ctypes.c_int32)


def _no_draft_model(model: Model) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{model.path} is no draft model: it does not generate text token by token.", remedy="Take another draft model."
    )


class Speculator(Uncopyable):
    """Guesses for the sequences of a decoder, as many tokens as pay.

    Args:
        decoder: whose batches it is shown; from now on it repeats in the draft's memory what is done in its own.
        params: the fields of ``llama_context_params`` that ``decoder`` was made with.
        source: ``"prompt-lookup"``, ``"mtp"``, or the path of a smaller model with the same vocabulary.
        n_most: tokens guessed at once at most.
        always: draft so many tokens for each batch, whether that pays or not.

    Attributes:
        n_guessed, n_right: tokens guessed so far, and those of them that the model would have picked, too.

    Raises:
        ModelFileError, ModelLoadError: the draft model. ContextCreationError: no memory for it.
        InvalidArgumentError: it has another vocabulary, or this model has no heads to guess with.
    """

    def __init__(
        self, decoder: Decoder, params: Mapping[str, Any], source: str | os.PathLike[str], n_most: int, n_gpu_layers: int,
        always: bool = False,
    ) -> None:  # fmt: skip
        self._native = native.llama_common_speculator_p_ctypes()
        self._decoder = decoder
        self._n_most = n_most
        self._always = always
        self._n_sequences: int = llama.llama_n_seq_max(decoder.pointer)
        self._model: Model | None = None
        self._draft: Handle | None = None
        self._known: dict[int, tuple[Request, Hashable, int]] = {}  # of a sequence: whose, and how many tokens
        self._pace = Pace()
        self._looks: list[tuple[Running, int, list[int]]] = []  # guesses, and where in a request's tokens they belong
        self._n_without = 0  # batches in a row in which nothing was guessed
        self._n_sequences_last = self._n_room = 0
        self.n_guessed = self.n_right = 0
        try:
            if not decoder.unlimited_cut and not llama.llama_n_rs_seq(decoder.pointer):
                raise InvalidArgumentError(
                    "Guesses need a memory that can be taken back, and this model's state cannot.",
                    remedy="Load it without draft_model.",
                )
            if source == OWN_HEADS:
                if not llama.llama_model_n_layer_nextn(decoder.model.pointer):
                    raise InvalidArgumentError(
                        "This model has no heads that predict further tokens.",
                        remedy="Give a draft model's path, or 'prompt-lookup'.",
                    )
                self._open_draft(decoder.model, {**params, "ctx_type": llama.LLAMA_CONTEXT_TYPE_MTP})
            elif source != PROMPT_LOOKUP:
                self._model = Model(source, params={"n_gpu_layers": n_gpu_layers})
                if self._model.learnt_positions and self._model.n_ctx_train < decoder.n_ctx:
                    raise InvalidArgumentError(
                        f"The draft model knows {self._model.n_ctx_train} positions, "
                        f"and a request can have {decoder.n_ctx} tokens.",
                        remedy="Take another draft model, or a smaller n_ctx.",
                    )
                self._open_draft(self._model, params)
            wanted = {"types": [_TYPES.get(str(source), "draft-simple")], "n_max": n_most, "ngram_size": 3}
            try:
                call(
                    native.llama_common_speculator_init, json.dumps(wanted).encode(), decoder.pointer,
                    self._draft.pointer if self._draft else None, self._n_sequences, ctypes.byref(self._native),
                )  # fmt: skip
            except (NativeError, InvalidArgumentError) as error:
                raise InvalidArgumentError(f"{source} cannot guess for this model: {error}") from error
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
        self._draft = Handle(context, llama.llama_free, parent=model.in_use())
        if not (memory := llama.llama_get_memory(context)):
            raise _no_draft_model(model)
        self._decoder.repeat_in(memory, keys_can_shift(model, wanted.type_k))

    def close(self) -> None:
        """Frees what guesses, before the decoder is closed."""
        native.llama_common_speculator_free(self._native)
        self._native = native.llama_common_speculator_p_ctypes()
        if self._draft is not None:
            self._decoder.repeat_in(None)
            self._draft.close()
        if self._model is not None:
            self._model.close()

    def guess(self, running: Sequence[Running], n_ctx: int) -> int:
        """Gives requests that want it guesses at what follows their next token, as many as pay and have room.

        Args:
            n_ctx: tokens of one request at most.

        Returns:
            For how many guesses each sequence shall have a place in the batch.
        """
        for one in running:
            one.guess = []
        self._compare(running)
        ready = [one for one in running if one.n_pending == 1]
        wanting = [one for one in ready if one.request.speculate and not one.request.calls_python and not one.stops]
        if not wanting or any(one.n_pending > 1 for one in running):
            return 0
        n_sequences = max(one.sequence for one in running) + 1
        n_left = max(one.request.n_left if one.request.n_left > 0 else self._n_most + 1 for one in wanting) - 1
        if self._always:
            n_left = self._n_most  # how wide a batch is must not depend on how many drafts were accepted
        self._n_room = min(self._decoder.n_outputs, self._decoder.n_batch) // n_sequences - 1
        n_most = min([self._n_most, self._n_room, n_left, *(n_ctx - 2 - one.n_held for one in running)])
        n = min(self._n_most if self._always else self._pace.number(len(ready)), n_most)
        if n > 1 or (self._always and n == 1):
            for one, guess in zip(wanting, self._draft_for(wanting, n)):
                one.guess = guess
            self._n_without = 0 if any(one.guess for one in wanting) else self._n_without + 1
            # on a GPU another shape costs more than tokens for nothing, for a while
            padded = self._always or (self._decoder.on_device and self._n_without < 4)
            return n if padded else max(len(one.guess) for one in wanting)
        if n_most > 1 and self._pace.wants_look():
            for one, guess in zip(wanting, self._draft_for(wanting, min(2, n_most))):
                if guess:
                    self._looks.append((one, len(one.request.tokens), guess))
        return 0

    def _draft_for(self, wanting: Sequence[Running], n: int) -> list[list[int]]:
        for i, one in enumerate(wanting):
            self._tell(one)
            self._sequences[i] = one.sequence
        call(
            native.llama_common_speculator_draft, self._native, len(wanting), _pointer(self._sequences), n,
            _pointer(self._tokens), _pointer(self._numbers),
        )  # fmt: skip
        return [self._tokens[i * n : i * n + int(self._numbers[i])].tolist() for i in range(len(wanting))]

    def _compare(self, running: Sequence[Running]) -> None:
        """Finds out how often what was guessed for a look was right."""
        self._looks = [look for look in self._looks if look[0] in running]
        if not self._looks or any(len(one.request.tokens) < at + len(guess) for one, at, guess in self._looks):
            return
        n_right = sum(_n_common(one.request.tokens[at:], guess) for one, at, guess in self._looks)
        self._pace.looked(n_right / sum(len(guess) for _, _, guess in self._looks))
        self._looks = []

    def process(self, n_tokens: int) -> None:
        """Shows the draft what the decoder has computed."""
        if self._draft is not None:
            decoder = self._decoder
            call(
                native.llama_common_speculator_process, self._native, n_tokens, decoder.tokens,
                decoder.positions, decoder.sequences,
            )  # fmt: skip

    def learn(self, one: Running, n_guessed: int, n_right: int) -> None:
        """Notes how many of a request's guesses were right."""
        self._tell(one)
        self.n_guessed += n_guessed
        self.n_right += n_right

    def took(self, n_sequences: int, n_tokens: int, seconds: float) -> None:
        """Notes how long a batch took in which so many sequences generated so many tokens; 0 when prompts were read in it."""
        if n_sequences and n_sequences == self._n_sequences_last:
            self._pace.note(n_sequences, n_tokens, seconds, min(self._n_most, self._n_room))
        else:
            self._pace.changed()
        self._n_sequences_last = n_sequences

    def _tell(self, one: Running) -> None:
        """Tells the native part which tokens a sequence has."""
        tokens = one.request.tokens
        # a shift gives a request another key
        request, key, n_known = self._known.get(one.sequence, (None, None, 0))
        begin = request is not one.request or key is not one.request.key
        if not begin and n_known == len(tokens):
            return
        new = np.array(tokens if begin else tokens[n_known:], np.int32)
        function = native.llama_common_speculator_begin if begin else native.llama_common_speculator_accept
        call(function, self._native, one.sequence, _pointer(new), len(new))
        self._known[one.sequence] = one.request, one.request.key, len(tokens)


def _n_common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def _pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(_INT32)

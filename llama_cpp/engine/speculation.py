"""Speculative decoding: tokens are guessed, and the model checks several at once (Leviathan et al. 2023).

What is picked is what would have been picked without: a guess only decides how much is computed in one batch.
"""

from __future__ import annotations

import ctypes
import json
import os
from typing import Any, Hashable, Mapping, Sequence

import numpy as np

from ..capi import llama
from ..capi import llama_common_c as native
from ..capi.handle import Handle
from ..capi.status import call
from ..errors import ContextCreationError, InvalidArgumentError, NativeError
from ..models.model import Model, set_fields
from .batches import Running
from .decoder import Decoder
from .params import OWN_HEADS, PROMPT_LOOKUP
from .requests import Request

_TYPES = {PROMPT_LOOKUP: "ngram-simple", OWN_HEADS: "draft-mtp"}
_INT32 = ctypes.POINTER(ctypes.c_int32)


class Speculator:
    """Guesses for the sequences of a decoder, as many tokens as pay.

    Args:
        decoder: whose batches it is shown; from now on it repeats in the draft's memory what is done in its own.
        params: the fields of ``llama_context_params`` that ``decoder`` was made with.
        source: ``"prompt-lookup"``, ``"mtp"``, or the path of a smaller model with the same vocabulary.
        n_most: tokens guessed at once at most.

    Attributes:
        n_guessed, n_right: tokens guessed so far, and those of them that the model would have picked, too.

    Raises:
        ModelFileError, ModelLoadError: the draft model. ContextCreationError: no memory for it.
        InvalidArgumentError: it has another vocabulary, or this model has no heads to guess with.
    """

    def __init__(
        self, decoder: Decoder, params: Mapping[str, Any], source: str | os.PathLike[str], n_most: int, n_gpu_layers: int
    ) -> None:
        self._native = native.llama_common_speculator_p_ctypes()
        self._decoder = decoder
        self._n_most = n_most
        self._n_sequences: int = llama.llama_n_seq_max(decoder.pointer)
        self._model: Model | None = None
        self._draft: Handle | None = None
        self._known: dict[int, tuple[Request, Hashable, int]] = {}  # of a sequence: whose, and how many tokens
        self._pace = Pace()
        self._rate = 0.8
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
            context = llama.llama_init_from_model(pointer, wanted)
        if not context:
            raise ContextCreationError("There is no memory for a context of the draft model.", remedy="Ask for a smaller n_ctx.")
        self._draft = Handle(context, llama.llama_free, parent=model.in_use())
        self._decoder.repeat_in(llama.llama_get_memory(context))

    def close(self) -> None:
        """Frees what guesses, before the decoder is closed."""
        native.llama_common_speculator_free(self._native)
        self._native = native.llama_common_speculator_p_ctypes()
        if self._draft is not None:
            self._decoder.repeat_in(None)
            self._draft.close()
        if self._model is not None:
            self._model.close()

    def guess(self, running: Sequence[Running], n_ctx: int) -> None:
        """Gives requests that want it guesses at what follows their next token, as many as pay and have room.

        Args:
            n_ctx: tokens of one request at most.
        """
        for one in running:
            one.guess = []
        if self._pace.resting():
            return
        n_sequences = max((one.sequence for one in running), default=0) + 1
        n_most = min(self._decoder.n_outputs, self._decoder.n_batch) // n_sequences - 1
        n_most = min([n_most, *(n_ctx - 2 - one.n_held for one in running)])
        # a single one is not worth a batch of another shape, for which a GPU needs a new plan
        if n_most < 2:
            return
        ready = [one for one in running if one.n_pending == 1]
        wanting = [one for one in ready if one.request.speculate and not one.request.processors and not one.stops]
        if not wanting:
            return
        n_left = max(one.request.n_left if one.request.n_left > 0 else n_most + 1 for one in wanting) - 1
        rate = sum(map(self._rate_of, wanting)) / len(wanting)
        n = self._pace.best(len(ready), rate, min(self._n_most, n_most, n_left))
        if n < 1:
            return
        for i, one in enumerate(wanting):
            self._tell(one)
            self._sequences[i] = one.sequence
        call(
            native.llama_common_speculator_draft, self._native, len(wanting), _pointer(self._sequences), n,
            _pointer(self._tokens), _pointer(self._numbers),
        )  # fmt: skip
        for i, one in enumerate(wanting):
            one.guess = self._tokens[i * n : i * n + int(self._numbers[i])].tolist()

    def process(self, n_tokens: int) -> None:
        """Shows the draft what the decoder has computed."""
        if self._draft is not None:
            decoder = self._decoder
            call(
                native.llama_common_speculator_process, self._native, n_tokens, _pointer(decoder.tokens),
                _pointer(decoder.positions), _pointer(decoder.sequences),
            )  # fmt: skip

    def learn(self, one: Running, n_guessed: int, n_right: int) -> None:
        """Notes how many of a request's guesses were right."""
        self._tell(one)
        self.n_guessed += n_guessed
        self.n_right += n_right
        rate = n_right / n_guessed
        one.request.guess_rate = self._rate_of(one) + 0.1 * (rate - self._rate_of(one))
        self._rate += 0.03 * (rate - self._rate)

    def _rate_of(self, one: Running) -> float:
        """How often guesses for a request are right; before the first one, what it was with others."""
        return self._rate if one.request.guess_rate is None else one.request.guess_rate

    def took(self, n_sequences: int, n_guesses: int, seconds: float) -> None:
        """Notes how long a batch took in which so many sequences generated."""
        self._pace.note(n_sequences, n_guesses, seconds)

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


class Pace:
    """What a batch costs by the number of its guesses, measured while it goes, and which number is the fastest."""

    #: After so many batches without guesses it tries a few again, and waits longer each time that this does not pay.
    N_PATIENCE, N_MOST_PATIENCE = 32, 1024
    #: For so many batches it does not even think of it.
    N_REST = 8

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], float] = {}
        self._seen: set[tuple[int, int]] = set()
        self._n_without = 0
        self._patience = self.N_PATIENCE
        self._n_rest = 0

    def resting(self) -> bool:
        """Counts a batch while it rests; False when :meth:`best` is to be asked."""
        self._n_rest -= 1
        return self._n_rest >= 0

    def note(self, n_sequences: int, n_guesses: int, seconds: float) -> None:
        """A batch in which ``n_sequences`` generated, with ``n_guesses`` for each, took so long."""
        key = n_sequences, n_guesses
        if key not in self._seen:
            self._seen.add(key)  # the first of a shape has its plan made, which the others share
            return
        before = self._seconds.get(key, seconds)
        self._seconds[key] = before + 0.2 * (seconds - before)

    def best(self, n_sequences: int, rate: float, n_most: int) -> int:
        """How many tokens to guess for each sequence when a guess is right with probability ``rate``."""
        numbers = [0, *(n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if n < n_most), n_most]
        best = max(numbers, key=lambda n: sum(rate**i for i in range(n + 1)) / self._expected(n_sequences, n))
        if best:
            self._n_without, self._patience = 0, self.N_PATIENCE
            return best
        self._n_rest = self.N_REST
        self._n_without += 1 + self.N_REST
        if self._n_without <= self._patience:
            return 0
        self._n_rest = 0
        self._n_without, self._patience = 0, min(2 * self._patience, self.N_MOST_PATIENCE)
        return min(2, n_most)

    def _expected(self, n_sequences: int, n_guesses: int) -> float:
        """Seconds for a batch; what was never tried is taken for as quick as the next smaller one that was."""
        tried = [n for n in range(n_guesses, -1, -1) if (n_sequences, n) in self._seconds]
        return self._seconds[n_sequences, tried[0]] if tried else 1e-9 * (1 + n_guesses)


def _pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(_INT32)

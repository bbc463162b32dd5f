"""Going on from batch to batch without Python: how far a decoder may, and what is to be noted of it afterwards."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence

from ..capi import llama_common_c as native
from .batches import BatchPart
from .decoder import Decoder
from .requests import Request
from .slots import Slot

#: How many batches in a row, at most.
N_MOST = 32


class MultiStep:
    """Multi-step decoding: a decoder decodes and samples again and again without Python, as long as nobody comes or goes.

    It hands out the tokens that it goes on from, and leaves them to be noted here.

    Args:
        n_active: how many can generate at once.

    Attributes:
        begins: whether one more batch is begun, to be computed while tokens are handed out and noted; a CPU would compute it
            before they are.
    """

    def __init__(self, decoder: Decoder, n_active: int) -> None:
        self.begins = decoder.on_device
        self._allowed = ctypes.c_int32()
        self._token_queues = (native.llama_common_token_queue_p_ctypes * n_active)()
        tokens = (ctypes.c_int32 * (n_active * N_MOST))()
        self.native = native.llama_common_multi_step(
            allowed=ctypes.pointer(self._allowed), token_queues=self._token_queues, tokens=tokens
        )
        self._begun: list[BatchPart] = []

    def hold_back(self) -> None:
        """Lets the decoder stop after its batch. Any thread may call it."""
        self._allowed.value = False

    def allow(self) -> None:
        """Lets it go on until it is held back; to be called before looking whether there is a reason for that."""
        self._allowed.value = True

    def prepare(self, requests: Sequence[Request], n_ctx: int) -> bool:
        """Says how far the decoder may go with requests that each have an output; False for not at all.

        Args:
            n_ctx: tokens of one request at most.
        """
        n_most, begins = N_MOST, self.begins
        for i, request in enumerate(requests):
            n_most = min(n_most, n_ctx - 1 - len(request.tokens) - begins)
            if request.n_left > 0:
                n_most = min(n_most, request.n_left - 1 - begins)
            # what follows a prompt is noted before anything else is computed: others may begin with it
            if n_most < 0 or request.is_deferred or not request.generation.tokens:
                return False
            token_queue = request.token_queue
            if request.n_logprobs is not None or (token_queue.streaming and not token_queue.native):
                n_most = 0  # to be seen in Python, one by one
            self._token_queues[i] = token_queue.native if token_queue.streaming else None
        self.native.n_most, self.native.begin = n_most, begins
        return n_most > 0 or begins

    def note(self, outputs: Sequence[Slot], parts: Sequence[BatchPart]) -> int:
        """Notes tokens that were handed out, and keeps ``parts``, of which a batch was begun.

        Returns:
            Tokens that were handed out to each.
        """
        on, n = self.native, len(outputs)
        n_steps = min(on.n, on.n_most)
        tokens = on.tokens[: n_steps * n]
        n_held = n_steps - self.failed
        n_ahead = int(on.begun and on.status == 0)  # nobody knows yet whether that is wanted
        for i, slot in enumerate(outputs):
            slot.advance_steps(tokens[i::n], n_held, n_ahead)
        if on.begun:
            self._begun = [*parts]
        return n_steps

    @property
    def failed(self) -> bool:
        """Whether a batch of tokens that are noted already could not be computed."""
        return self.native.begun and self.native.n <= self.native.n_most

    def take_begun(self, slots: Collection[Slot]) -> tuple[list[BatchPart], int]:
        """What is in the batch that was begun, if there is one, and the status of that.

        Without those that do not run any more: who has ended since has left its sequence to others.
        """
        parts, self._begun = self._begun, []
        if parts:
            slots = set(slots)
        return [part for part in parts if part.slot in slots], self.native.status

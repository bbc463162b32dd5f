"""What a sequence holds, outside of any context."""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_HEAD = struct.Struct("<8sQQQQQ")  # magic, tokens, bytes of token ids, of scores and of the state, seed
_MAGIC = b"llamaob1"


class LlamaState:
    """What :meth:`Llama.save_state` keeps: the tokens that are held, and what was computed of them.

    Attributes:
        input_ids: int32, (n_tokens,). scores: float32, (1, n_vocab): the logits of the last token; (0, n_vocab) of none.
        n_tokens: how many tokens. seed: the model's seed.
        llama_state: bytes in a form of ours. llama_state_size: how many.
    """

    def __init__(
        self, input_ids: npt.NDArray[np.intc], scores: npt.NDArray[np.single], n_tokens: int, llama_state: bytes,
        llama_state_size: int, seed: int,
    ) -> None:  # fmt: skip
        self.input_ids, self.scores, self.n_tokens = input_ids, scores, n_tokens
        self.llama_state, self.llama_state_size, self.seed = llama_state, llama_state_size, seed

    def to_bytes(self) -> bytes:
        """All of it, for a cache that keeps bytes."""
        import numpy as np

        ids, scores = np.asarray(self.input_ids, "<i4").tobytes(), np.asarray(self.scores, "<f4").tobytes()
        seed = self.seed & 0xFFFFFFFFFFFFFFFF
        head = _HEAD.pack(_MAGIC, self.n_tokens, len(ids), len(scores), len(self.llama_state), seed)
        return b"".join((head, ids, scores, self.llama_state))

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> LlamaState:
        """As :meth:`to_bytes` wrote it.

        Raises:
            ValueError: it did not.
        """
        import numpy as np

        if len(data) < _HEAD.size:
            raise ValueError("it ends too early")
        magic, n_tokens, n_ids, n_scores, n_state, seed = _HEAD.unpack_from(data)
        ends = [_HEAD.size, _HEAD.size + n_ids, _HEAD.size + n_ids + n_scores, _HEAD.size + n_ids + n_scores + n_state]
        if magic != _MAGIC or len(data) != ends[-1] or n_ids != 4 * n_tokens or n_scores % 4:
            raise ValueError("it is no state")
        ids, scores, state = (bytes(data[start:end]) for start, end in itertools.pairwise(ends))
        row = np.frombuffer(scores, "<f4")
        rows = row.reshape(1, -1) if len(row) else np.empty((0, 0), np.single)
        return cls(np.frombuffer(ids, "<i4").astype(np.intc), rows, n_tokens, state, n_state, seed)

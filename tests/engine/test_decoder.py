"""What a decoder computes, without the engine: the same bits, whatever the batches and wherever the cells lie."""

from __future__ import annotations

import numpy as np
import pytest

from llama_cpp.capi import ggml
from llama_cpp.engine import batches
from llama_cpp.engine.decoder import Decoder
from llama_cpp.models.model import Model


@pytest.mark.cpu
def test_attention_can_be_told_to_compute_a_token_in_one_way(smollm2):
    """At once, in chunks and one by one, with enough tokens for each of the engine's three ways."""
    model = Model(smollm2, params={})
    params = {"n_ctx": 2048, "n_batch": 512, "n_ubatch": 512, "n_seq_max": 3, "n_threads": 1, "n_threads_batch": 1}
    decoder = Decoder(model, {**params, "flash_attn_type": 1, "kv_unified": True}, 3)
    tokens = [1000 + i for i in range(200)]
    logits = []
    for sequence, size in enumerate((200, 70, 7)):
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            decode = batches.BatchPart(sequence, start, part, start, n_outputs=int(start + size >= len(tokens)))
            assert decoder.decode(batches.write(decoder, [decode])) == 0
        logits.append(decoder.logits(0))
    decoder.close()
    model.close()
    assert np.array_equal(logits[0], logits[1]) and np.array_equal(logits[0], logits[2])


@pytest.mark.cpu
@pytest.mark.parametrize("kind", ["f16", "q8_0", "without flash attention"])
def test_cells_move_where_room_is_only_before_them(smollm2, kind):
    """A sequence's cells stay in the order of its positions; what is shared moves with everybody who has it."""
    how = {
        "q8_0": {"type_k": ggml.GGML_TYPE_Q8_0, "type_v": ggml.GGML_TYPE_Q8_0},
        "without flash attention": {"flash_attn_type": 0},
    }
    params = {
        "n_ctx": 256,
        "n_batch": 64,
        "n_ubatch": 64,
        "n_seq_max": 4,
        "n_threads": 1,
        "n_threads_batch": 1,
        "kv_unified": True,
    }
    tokens = [1000 + i for i in range(200)]

    def read(decoder, sequence, start, end, token=0):
        for at in range(start, end, 50):
            part = batches.BatchPart(sequence, at, [token or t for t in tokens[at : min(at + 50, end)]], at, n_outputs=1)
            assert decoder.decode(batches.write(decoder, [part])) == 0
        return decoder.logits(0)

    model = Model(smollm2, params={})
    decoder = Decoder(model, {**params, "flash_attn_type": 1, **how.get(kind, {})}, 4)
    alone = read(decoder, 0, 0, 200)
    decoder.forget(0)
    read(decoder, 1, 0, 100, token=7)
    read(decoder, 0, 0, 100)
    decoder.copy(0, 2)  # the same cells
    decoder.forget(1)  # 100 free cells before, 56 behind
    moved = read(decoder, 0, 100, 200)
    decoder.forget(0)
    from_shared = read(decoder, 2, 100, 200)
    decoder.close()
    model.close()
    if kind == "without flash attention":  # sums over all cells, in the order in which they lie
        assert np.abs(alone - moved).max() < 1 and np.abs(alone - from_shared).max() < 1
    else:
        assert np.array_equal(alone, moved) and np.array_equal(alone, from_shared)

"""Attention on the CPU, as llama.cpp's patched kernel computes it, against the definition in double precision."""

from __future__ import annotations

import ctypes
import functools

import numpy as np
import pytest

from llama_cpp.capi import ggml, ggml_backend, llama
from llama_cpp.engine.decoder import ggml_cpu_set_batch_invariant

N_HEAD, N_HEAD_KV = 6, 2


@functools.cache
def backend(n_threads):
    """The CPU's, with so many threads."""
    llama.llama_backend_init()
    device = ggml_backend.ggml_backend_dev_by_type(ggml_backend.GGML_BACKEND_DEVICE_TYPE_CPU)
    found = ggml_backend.ggml_backend_dev_init(device, None)
    registry = ggml_backend.ggml_backend_dev_backend_reg(device)
    address = ggml_backend.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_set_n_threads")
    ggml_backend.ggml_backend_set_n_threads_t(address)(found, n_threads)
    return found


def expected(q, k, v, mask, scale, softcap, slopes, sinks):
    """[n_head, n_tokens, dv] of q [n_head, n_tokens, dk], k [n_head_kv, n_cells, dk], v and a mask [n_tokens, n_cells]."""
    k, v = (np.repeat(x.astype(np.float64), N_HEAD // N_HEAD_KV, axis=0) for x in (k, v))
    scores = q.astype(np.float64) @ k.transpose(0, 2, 1) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    scores = scores + slopes[:, None, None] * mask.astype(np.float64)
    if sinks is not None:
        scores = np.concatenate([scores, np.broadcast_to(sinks[:, None, None], (*scores.shape[:2], 1))], axis=2)
        v = np.concatenate([v, np.zeros_like(v[:, :1])], axis=1)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    return weights / weights.sum(axis=2, keepdims=True) @ v


def computed(q, k, v, mask, scale, softcap=0.0, max_bias=0.0, sinks=None, n_threads=1):
    """The same as the engine computes it."""
    context = ggml.ggml_init(ggml.ggml_init_params(mem_size=64 << 20, mem_buffer=None, no_alloc=False))
    try:
        tensors = []
        kinds = {"float32": ggml.GGML_TYPE_F32, "float16": ggml.GGML_TYPE_F16}
        for array in (q, k, v, mask, sinks):
            if array is None:
                continue
            shape = [*reversed(array.shape), 1, 1, 1][:4]
            tensor = ggml.ggml_new_tensor_4d(context, kinds[str(array.dtype)], *shape)
            ctypes.memmove(ggml.ggml_get_data(tensor), np.ascontiguousarray(array).ctypes.data, array.nbytes)
            tensors.append(tensor)
        out = ggml.ggml_flash_attn_ext(context, *tensors[:4], scale, max_bias, softcap)
        if sinks is not None:
            ggml.ggml_flash_attn_ext_add_sinks(out, tensors[4])
        graph = ggml.ggml_new_graph(context)
        ggml.ggml_build_forward_expand(graph, out)
        assert ggml_backend.ggml_backend_graph_compute(backend(n_threads), graph) == ggml.GGML_STATUS_SUCCESS
        shape = (q.shape[1], q.shape[0], v.shape[2])
        found = np.ctypeslib.as_array(ctypes.cast(ggml.ggml_get_data(out), ctypes.POINTER(ctypes.c_float)), shape)
        return found.transpose(1, 0, 2).copy()
    finally:
        ggml.ggml_free(context)


def inputs(dk, dv, n_cells, n_tokens, seen, seed=0):
    """Random tensors, and a mask that lets each token see the cells for which ``seen(cell)`` is true."""
    numbers = np.random.default_rng(seed)
    q = numbers.standard_normal((N_HEAD, n_tokens, dk), np.float32)
    k = numbers.standard_normal((N_HEAD_KV, n_cells, dk), np.float32).astype(np.float16)
    v = numbers.standard_normal((N_HEAD_KV, n_cells, dv), np.float32).astype(np.float16)
    mask = np.where([[seen(cell) for cell in range(n_cells)]] * n_tokens, 0, -np.inf).astype(np.float16)
    return q, k, v, mask


SEEN = {
    "all": lambda cell: True,
    "the first": lambda cell: cell < 37,
    "every third": lambda cell: cell % 3 == 1,
    "behind others": lambda cell: cell >= 90,
    "one": lambda cell: cell == 95,
}


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("n_cells", [96, 256, 700, 1024])
@pytest.mark.parametrize("which", SEEN)
def test_what_a_token_sees(which, n_cells, n_threads):
    """A few cells and many, which threads divide among themselves, in whatever order masked ones lie between them."""
    q, k, v, mask = inputs(64, 64, n_cells, 1, SEEN[which])
    found = computed(q, k, v, mask, 0.125, n_threads=n_threads)
    wanted = expected(q, k, v, mask, 0.125, 0, np.ones(N_HEAD), None)
    assert np.abs(found - wanted).max() < 2e-3


@pytest.mark.parametrize("dk, dv", [(40, 40), (64, 64), (72, 80), (128, 128), (192, 128), (256, 256), (36, 52)])
@pytest.mark.parametrize("n_tokens", [1, 3])
def test_heads_of_any_size(dk, dv, n_tokens):
    q, k, v, mask = inputs(dk, dv, 300, n_tokens, lambda cell: cell < 270 and cell % 7)
    found = computed(q, k, v, mask, dk**-0.5)
    assert np.abs(found - expected(q, k, v, mask, dk**-0.5, 0, np.ones(N_HEAD), None)).max() < 2e-3


@pytest.mark.parametrize("n_cells", [100, 600])
def test_caps_sinks_and_slopes(n_cells):
    q, k, v, mask = inputs(64, 64, n_cells, 1, lambda cell: cell > 5)
    found = computed(q, k, v, mask, 0.125, softcap=2.0)
    assert np.abs(found - expected(q, k, v, mask, 0.125, 2.0, np.ones(N_HEAD), None)).max() < 2e-3
    sinks = np.random.default_rng(1).standard_normal(N_HEAD, np.float32) * 3
    found = computed(q, k, v, mask, 0.125, sinks=sinks, n_threads=2)
    assert np.abs(found - expected(q, k, v, mask, 0.125, 0, np.ones(N_HEAD), sinks)).max() < 2e-3
    # ALiBi (Press et al. 2021): the mask holds distances, and each head its slope; 6 heads, so 4 of one row, 2 of another
    mask = -np.arange(n_cells, 0, -1, np.float32)[None].astype(np.float16)
    slopes = np.array([2.0 ** (-8 / 4 * (h + 1)) if h < 4 else 2.0 ** (-4 / 4 * (2 * (h - 4) + 1)) for h in range(N_HEAD)])
    found = computed(q, k, v, mask, 0.125, max_bias=8.0)
    assert np.abs(found - expected(q, k, v, mask, 0.125, 0, slopes, None)).max() < 2e-3


def test_scores_of_any_size():
    """The greatest score may come last, and be far from the others."""
    q, k, v, mask = inputs(64, 64, 200, 1, lambda cell: True)
    k = (k * np.linspace(0.1, 30, 200)[None, :, None]).astype(np.float16)
    found = computed(q, k, v, mask, 0.125)
    assert np.abs(found - expected(q, k, v, mask, 0.125, 0, np.ones(N_HEAD), None)).max() < 2e-3


def test_one_way_gives_the_same_bits_wherever_cells_lie():
    """What a token sees decides, not what lies between."""
    q, k, v, mask = inputs(64, 64, 64, 1, lambda cell: True)
    apart = [5 * cell + 3 for cell in range(64)]
    wide_k, wide_v = (np.zeros((N_HEAD_KV, 512, 64), np.float16) for _ in range(2))
    wide_mask = np.full((1, 512), -np.inf, np.float16)
    wide_k[:, apart], wide_v[:, apart], wide_mask[:, apart] = k, v, mask
    ggml_cpu_set_batch_invariant(True)
    assert np.array_equal(computed(q, k, v, mask, 0.125), computed(q, wide_k, wide_v, wide_mask, 0.125, n_threads=2))


_SWITCHED = """
import os, sys, threading
from llama_cpp.engine import batches
from llama_cpp.engine.decoder import Decoder, ggml_cpu_set_batch_invariant
from llama_cpp.models.model import Model

os.sched_setaffinity(0, range(os.cpu_count()))
model = Model(sys.argv[1], params={})
both = {"n_threads": 2, "n_threads_batch": 2, "flash_attn_type": 1}
decoder = Decoder(model, {"n_ctx": 1024, "n_batch": 64, "n_ubatch": 64, "n_seq_max": 1, **both}, 1)

def read(start):
    part = batches.Part(0, start, list(range(1000 + start, 1064 + start)), n_outputs=1)
    assert decoder.decode(batches.write(decoder, [part])) == 0
    return decoder.logits(0).tobytes()

def last():
    decoder.cut(0, 576)
    return read(576)

for start in range(0, 576, 64):
    read(start)
one_way, other_way = [(ggml_cpu_set_batch_invariant(way), last())[1] for way in (True, False)]
assert one_way != other_way
ended = False

def switch():
    way = True
    while not ended:
        ggml_cpu_set_batch_invariant(way)
        way = not way

thread = threading.Thread(target=switch)
thread.start()
found = {last() for _ in range(12)}
ended = True
thread.join()
print(len(found - {one_way, other_way}))
"""


def test_a_batch_is_computed_in_one_way_whenever_somebody_switches(run_python, smollm2):
    """Threads that took different ways in the middle would leave out rows, or add them up twice."""
    done = run_python(_SWITCHED, str(smollm2))
    assert done.stdout == "0\n", done.stderr

"""Attention on the CPU, as llama.cpp's patched kernel computes it, against the definition in double precision."""

from __future__ import annotations

import ctypes
import functools
import os
import threading

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


KINDS = {
    "float16": (ggml.GGML_TYPE_F16, lambda x: x.astype(np.float16)),
    "float32": (ggml.GGML_TYPE_F32, lambda x: x),
    "bfloat16": (ggml.GGML_TYPE_BF16, lambda x: (x.view(np.uint32) >> 16).astype(np.uint16)),
    "q8_0": (ggml.GGML_TYPE_Q8_0, None),
    "q4_0": (ggml.GGML_TYPE_Q4_0, None),
}


class Attention:
    """Queries and the cells that they see, of random numbers, computed by the engine in whatever company is asked for.

    Args:
        heads: of queries, and of keys and values. sizes: of a key and of a value. n_cells: that there are.
    """

    def __init__(self, numbers, heads, sizes, n_cells, kind, softcap=0.0, max_bias=0.0, sinks=False):
        self.numbers, self.heads, self.sizes, self.kind = numbers, heads, sizes, kind
        self.scale, self.softcap, self.max_bias = sizes[0] ** -0.5, softcap, max_bias
        self.keys, self.values = (numbers.standard_normal((n_cells, heads[1], size), np.float32) * 2 for size in sizes)
        self.sinks = numbers.standard_normal(heads[0], np.float32) if sinks else None
        self.asked = {}  # by name: a query [n_head, dk] and which cells it sees, in order

    def ask(self, name, seen):
        self.asked[name] = self.numbers.standard_normal((self.heads[0], self.sizes[0]), np.float32), np.asarray(seen)

    def compute(self, names, n_threads, gaps=None):
        """{name: bytes of its values}, of queries computed together.

        Args:
            gaps: cells that are nobody's before each cell of the cache; None for none.
        """
        places = np.arange(len(self.keys)) + (0 if gaps is None else np.cumsum(gaps))
        n_cells = int(places[-1]) + 1
        masks = np.full((len(names), n_cells), -np.inf, np.float16)
        for mask, name in zip(masks, names):
            seen = self.asked[name][1]
            mask[places[seen]] = -np.arange(len(seen), 0, -1) if self.max_bias else 0
        queries = np.stack([self.asked[name][0] for name in names], axis=1)
        context = ggml.ggml_init(ggml.ggml_init_params(mem_size=256 << 20, mem_buffer=None, no_alloc=False))
        try:
            cells = []
            for array in (self.keys, self.values):
                wide = np.full((n_cells, *array.shape[1:]), 7, np.float32)
                wide[places] = array
                cells.append(ggml.ggml_permute(context, self._tensor(context, self.kind, wide), 0, 2, 1, 3))
            q, mask = self._tensor(context, "float32", queries), self._tensor(context, "float16", masks)
            out = ggml.ggml_flash_attn_ext(context, q, *cells, mask, self.scale, self.max_bias, self.softcap)
            if self.sinks is not None:
                ggml.ggml_flash_attn_ext_add_sinks(out, self._tensor(context, "float32", self.sinks))
            graph = ggml.ggml_new_graph(context)
            ggml.ggml_build_forward_expand(graph, out)
            assert ggml_backend.ggml_backend_graph_compute(backend(n_threads), graph) == ggml.GGML_STATUS_SUCCESS
            shape = (len(names), self.heads[0], self.sizes[1])
            found = np.ctypeslib.as_array(ctypes.cast(ggml.ggml_get_data(out), ctypes.POINTER(ctypes.c_float)), shape)
            return {name: values.tobytes() for name, values in zip(names, found)}
        finally:
            ggml.ggml_free(context)

    @staticmethod
    def _tensor(context, kind, array):
        number, convert = KINDS[kind]
        array = np.ascontiguousarray(array)
        tensor = ggml.ggml_new_tensor_4d(context, number, *[*reversed(array.shape), 1, 1, 1][:4])
        data = ggml.ggml_get_data(tensor)
        if convert is None:
            source = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            ggml.ggml_quantize_chunk(number, source, data, 0, array.size // array.shape[-1], array.shape[-1], None)
        else:
            converted = np.ascontiguousarray(convert(array))
            ctypes.memmove(data, converted.ctypes.data, converted.nbytes)
        return tensor


def check_company(seed):
    """One random problem: each query has the same bits alone and in any company."""
    numbers = np.random.default_rng(seed)
    kind = str(numbers.choice(list(KINDS)))
    n_kv = int(numbers.integers(1, 5))
    heads = n_kv * int(numbers.choice([1, 2, 3, 4, 5, 8, 20])), n_kv
    sizes = [int(numbers.choice([32, 64, 96, 128] if kind.startswith("q") else [20, 32, 36, 64, 80, 128])) for _ in range(2)]
    n_cells = int(numbers.choice([3, 17, 130, 300, 700]))
    extras = {"softcap": 2.0} if numbers.random() < 0.2 else {"max_bias": 8.0} if numbers.random() < 0.2 else {}
    problem = Attention(numbers, heads, sizes, n_cells, kind, sinks=numbers.random() < 0.2, **extras)
    for i in range(int(numbers.integers(2, 20))):
        which = numbers.integers(4)
        end = int(numbers.integers(1, n_cells + 1))
        if which == 0:  # the next tokens of one text
            for j in range(min(end, 6)):
                problem.ask((i, j), np.arange(end - min(end, 6) + j + 1))
        elif which == 1:  # a window
            problem.ask((i, 0), np.arange(max(0, end - 40), end))
        elif which == 2:  # of a text between those of others
            problem.ask((i, 0), np.flatnonzero(numbers.random(n_cells) < 0.5) if n_cells > 3 else np.arange(n_cells))
        else:
            problem.ask((i, 0), np.arange(n_cells))
    names = list(problem.asked)
    alone = {}
    for name in names:
        alone.update(problem.compute([name], 1))
    for n_threads in (1, 3):
        gaps = numbers.integers(0, 30, n_cells) * (numbers.random(n_cells) < 0.1)
        together = problem.compute(names, n_threads, gaps)
        assert together == alone, (seed, n_threads, [name for name in names if together[name] != alone[name]])
        some = [names[i] for i in numbers.permutation(len(names))[: 1 + len(names) // 2]]
        found = problem.compute(some, n_threads)
        assert all(found[name] == alone[name] for name in some), (seed, n_threads, "some of them")


@pytest.mark.parametrize("seed", range(40))
def test_a_query_has_the_same_bits_in_any_company(seed):
    """Whatever else is computed, wherever cells lie, whoever computes it: types, sizes and masks at random."""
    check_company(seed)


@pytest.mark.slow
@pytest.mark.generator
def test_a_query_has_the_same_bits_in_any_company_at_length():
    for seed in range(1000, 1000 + int(os.environ.get("N_INPUTS", "2000"))):
        check_company(seed)


def test_llama_cpp_s_own_ways_can_be_had_in_one_thread():
    """A thread switches for the graphs that it computes, and no other thread is concerned."""
    numbers = np.random.default_rng(0)
    problem = Attention(numbers, (6, 2), (64, 64), 700, "float16")
    problem.ask("one", np.arange(700))
    usual = problem.compute(["one"], 2)
    found = []

    def switched():
        ggml_cpu_set_batch_invariant(False)
        found.append(problem.compute(["one"], 2))

    thread = threading.Thread(target=switched)
    thread.start()
    thread.join()
    assert found[0] != usual == problem.compute(["one"], 2)

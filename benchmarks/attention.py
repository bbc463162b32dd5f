"""How fast attention is on the CPU, ours against llama.cpp's own ways, in turns, in one process: best times of one thread.

    python benchmarks/attention.py [--repeat 5] [--threads 1]

Both are in the libraries (`vendor/llama.cpp/patches/0004-batch-invariant-cpu.patch`), and a thread chooses with
`ggml_cpu_set_batch_invariant()`. Shapes are those of SmolLM2-135M (9 heads, 3 with keys of 64), Llama 3 8B (32, 8 of 128) and an
encoder (12, 12 of 64).
"""

from __future__ import annotations

import argparse
import ctypes
import time
from typing import TYPE_CHECKING

import numpy as np

from llama_cpp.capi import ggml, ggml_alloc, ggml_backend, llama
from llama_cpp.engine.decoder import ggml_cpu_set_batch_invariant

if TYPE_CHECKING:
    from llama_cpp.capi.pointers import Pointer

KINDS = {"f16": (ggml.GGML_TYPE_F16, 2), "q8_0": (ggml.GGML_TYPE_Q8_0, 34 / 32)}
MODELS = {"SmolLM2": (9, 3, 64), "8B": (32, 8, 128), "encoder": (12, 12, 64)}
CASES = {  # tokens computed at once, and how many the last one sees
    "1 token of 40": (1, 40), "1 token of 300": (1, 300), "1 token of 1,600": (1, 1600), "16 tokens of 316": (16, 316),
    "512 tokens of 512": (512, 512), "512 tokens of 2,048": (512, 2048),
}  # fmt: skip


class Attention:
    """One problem of random numbers, to be computed again and again."""

    def __init__(self, shape: tuple[int, int, int], n_tokens: int, n_seen: int, kind: str) -> None:
        n_head, n_kv, size = shape
        n_cells = -(-n_seen // 256) * 256  # the window that the engine looks at
        number, n_bytes = KINDS[kind]
        memory = int((2 * n_cells * n_kv * n_bytes + 3 * n_head * n_tokens * 4) * size + 2 * n_cells * n_tokens) + (1 << 20)
        self._context = ggml.ggml_init(ggml.ggml_init_params(mem_size=memory, mem_buffer=None, no_alloc=False))
        numbers = np.random.default_rng(0)
        q = self._tensor(ggml.GGML_TYPE_F32, numbers.standard_normal((n_head, n_tokens, size), np.float32))
        cells = []
        for _ in range(2):
            tensor = ggml.ggml_new_tensor_4d(self._context, number, size, n_kv, n_cells, 1)
            values = numbers.standard_normal((n_cells, n_kv, size), np.float32)
            source = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            ggml.ggml_quantize_chunk(number, source, ggml.ggml_get_data(tensor), 0, n_cells * n_kv, size, None)
            cells.append(ggml.ggml_permute(self._context, tensor, 0, 2, 1, 3))
        seen = np.arange(n_cells)[None] <= np.arange(n_seen - n_tokens, n_seen)[:, None]
        mask = self._tensor(ggml.GGML_TYPE_F16, np.where(seen, 0, -np.inf).astype(np.float16))
        k, v = cells
        out = ggml.ggml_flash_attn_ext(self._context, q, k, v, mask, size**-0.5, 0.0, 0.0)
        self._graph = ggml.ggml_new_graph(self._context)
        ggml.ggml_build_forward_expand(self._graph, out)

    def _tensor(self, kind: int, array: np.ndarray) -> Pointer[ggml.ggml_tensor]:
        tensor = ggml.ggml_new_tensor_4d(self._context, kind, *[*reversed(array.shape), 1, 1][:4])
        data = ggml.ggml_get_data(tensor)
        assert data, "the context has room"
        ctypes.memmove(data, array.ctypes.data, array.nbytes)
        return tensor

    def seconds(self, backend: ggml_alloc.ggml_backend_t | None, ours: bool) -> float:
        """Of the processor, in all threads: what others do meanwhile does not count."""
        ggml_cpu_set_batch_invariant(ours)
        started = time.process_time()
        assert ggml_backend.ggml_backend_graph_compute(backend, self._graph) == ggml.GGML_STATUS_SUCCESS
        return time.process_time() - started

    def close(self) -> None:
        ggml.ggml_free(self._context)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5, help="rounds in which the sides take turns")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    llama.llama_backend_init()
    device = ggml_backend.ggml_backend_dev_by_type(ggml_backend.GGML_BACKEND_DEVICE_TYPE_CPU)
    backend = ggml_backend.ggml_backend_dev_init(device, None)
    registry = ggml_backend.ggml_backend_dev_backend_reg(device)
    address = ggml_backend.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_set_n_threads")
    assert address, "the CPU's backend sets a number of threads"
    ggml_backend.ggml_backend_set_n_threads_t(address)(backend, args.threads)
    print("| | ours, µs | llama.cpp's own, µs | ratio |\n| --- | --- | --- | --- |")
    for kind in KINDS:
        for model, shape in MODELS.items():
            for case, (n_tokens, n_seen) in CASES.items():
                problem = Attention(shape, n_tokens, n_seen, kind)
                n = max(1, 200_000 // (n_tokens * n_seen))
                best = {True: float("inf"), False: float("inf")}
                for _ in range(args.repeat):
                    for ours in best:
                        best[ours] = min(best[ours], *(problem.seconds(backend, ours) for _ in range(n + 1)))
                print(
                    f"| {model}, {kind}: {case} | {best[True] * 1e6:,.0f} | {best[False] * 1e6:,.0f} "
                    f"| {best[True] / best[False]:.2f} |",
                    flush=True,
                )
                problem.close()


if __name__ == "__main__":
    main()

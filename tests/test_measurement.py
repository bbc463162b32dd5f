"""What would fit: measured by the engine, said when it does not."""

import re

import pytest

from llama_cpp import Llama
from llama_cpp.errors import ContextCreationError, NativeError
from llama_cpp.fit.measurement import host_memory, measure


def test_needs_are_what_the_model_s_shape_says(smollm2):
    found = measure(smollm2, {}, {"n_ctx": 4096, "n_seq_max": 1})
    host = found.needs[-1]
    assert found.n_layer == 30 and host.name == "CPU"
    assert abs(host.weights - smollm2.stat().st_size) < 0.1 * smollm2.stat().st_size
    # 3 heads of 64, keys and values, two bytes each
    assert sum(need.context for need in found.needs) == 4096 * 30 * 2 * 3 * 64 * 2
    assert 0 < host.free < 1 << 46


def test_a_long_context_is_measured_by_short_ones(smollm2):
    exact = measure(smollm2, {}, {"n_ctx": 16384}).needs[-1]
    longer = measure(smollm2, {}, {"n_ctx": 16384 * 1024}).needs[-1]
    assert longer.context == 1024 * exact.context
    with pytest.raises(NativeError):
        measure(smollm2.with_name("missing.gguf"), {}, {})


def test_vectors_of_texts_too_long_for_memory_are_refused(smollm2):
    """A batch must hold the longest text, and what it takes grows with its square."""
    with pytest.raises(ContextCreationError, match=r"CPU has [\d.]+ GiB free and would need [\d.]+") as error:
        Llama(smollm2, embedding=True, n_ctx=1 << 20, pooling_type=1)
    assert 1024 < int(re.search(r"n_ctx=(\d+) would fit", str(error.value))[1]) < 1 << 20


@pytest.mark.parametrize("arguments", [{"n_ctx": 2_000_000_000, "n_parallel": 1}, {"n_parallel": 200, "n_kv": 2_000_000_000}])
def test_a_context_too_large_for_memory_is_refused_with_one_that_fits(smollm2, arguments):
    with pytest.raises(ContextCreationError, match=r"CPU has [\d.]+ GiB free and would need [\d.]+") as error:
        Llama(smollm2, **arguments)
    n = int(re.search(r"(\d+) tokens in all \(n_kv\) would fit", str(error.value))[1])
    need = measure(smollm2, {}, {"n_ctx": n}).needs[-1]
    assert 0.5 * host_memory() < need.total < host_memory()

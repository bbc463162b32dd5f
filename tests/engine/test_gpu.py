"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

import ctypes

import pytest

from closeness import is_answer
from llama_cpp import Llama
from llama_cpp.capi import ggml_backend

pytestmark = pytest.mark.gpu

PROMPTS = ["The capital of France is", "Once upon a time", "def fibonacci(n):", "1, 2, 3, 4,", "Water boils at"]


def free_memory() -> int:
    """Bytes that the first GPU has left."""
    device = ggml_backend.ggml_backend_dev_by_type(ggml_backend.GGML_BACKEND_DEVICE_TYPE_GPU)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml_backend.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    return free.value


def answer(llm, prompt, n=24):
    """The tokens of an answer at temperature 0, and of its prompt."""
    tokens = llm.tokenize(prompt.encode())
    found = llm.create_completion(tokens, max_tokens=n, temperature=0, logit_bias={llm.token_eos(): -100})
    return tokens, llm.tokenize(found["choices"][0]["text"].encode(), add_bos=False)


def test_it_answers_as_the_cpu_does(smollm2):
    """Each token of an answer is nearly the most probable one by the CPU's logits."""
    with Llama(smollm2, n_ctx=256, n_gpu_layers=-1) as llm:
        answers = [answer(llm, prompt) for prompt in PROMPTS]
    with Llama(smollm2, n_ctx=256, n_gpu_layers=0, offload_kqv=False, op_offload=False) as llm:
        for tokens, found in answers:
            assert len(found) > 10 and is_answer(llm, tokens, found, [], logit_bias={})


def test_memory_comes_back(smollm2):
    """A context and its weights leave nothing on the device; the driver's own share comes with the first."""
    left = []
    for _ in range(4):
        with Llama(smollm2, n_ctx=2048, n_gpu_layers=-1) as llm:
            answer(llm, PROMPTS[0])
            during = free_memory()
        left.append(free_memory())
        assert left[-1] - during > 50 << 20, "the weights and the cache"
    assert max(left) - min(left) < 64 << 20, left

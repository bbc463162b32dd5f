"""Measures llama-cpp-python from the index with the same requests; `benchmarks/engine.py --upstream` runs it as another process.

Its interpreter must have that package, installed without compiling anything (`CMAKE_ARGS="-DLLAMA_BUILD=OFF
-DLLAVA_BUILD=OFF" pip install llama-cpp-python==0.3.36`), and LLAMA_CPP_LIB_PATH must name the libraries that both use.
Reads its task as JSON from standard input, and prints its version and tokens per second as JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from typing import Any

from llama_cpp import Llama


def streamed(llm: Llama, prompt: list[int], n: int, sampling: dict[str, Any]) -> float:
    """Tokens per second of one streamed completion; but for the first time its prompt is cached."""
    started, reason = time.perf_counter(), None
    chunks: Any = llm.create_completion(prompt, max_tokens=n, stream=True, **sampling)
    for chunk in chunks:
        reason = chunk["choices"][0]["finish_reason"]
    # one that ended by itself says nothing
    return n / (time.perf_counter() - started) if reason == "length" else 0.0


def one_after_another(llm: Llama, prompts: list[list[int]], n: int, sampling: list[dict[str, Any]]) -> float:
    """Tokens per second, those of the prompts counted, of requests that wait for one another."""
    started, n_tokens = time.perf_counter(), 0
    for prompt, how in zip(prompts, sampling):
        llm.reset()
        answer: Any = llm.create_completion(prompt, max_tokens=n, **how)
        n_tokens += answer["usage"]["total_tokens"]
    return n_tokens / (time.perf_counter() - started)


def main() -> None:
    """The command line."""
    task = json.load(sys.stdin)
    llm = Llama(
        task["model"], n_gpu_layers=-1, n_ctx=1024, flash_attn=True, verbose=False, n_threads=task["threads"],
        n_threads_batch=task["threads"],
    )  # fmt: skip
    repeat, found = task["repeat"], {}
    streamed(llm, task["prompt"], 32, {"temperature": 0})
    for name, sampling in task["streams"].items():
        found[name] = max(streamed(llm, task["prompt"], task["n"], sampling) for _ in range(repeat))
    if task["prompts"]:
        found["many"] = max(one_after_another(llm, task["prompts"], 128, task["settings"]) for _ in range(repeat))
    llm.close()
    json.dump({"version": importlib.metadata.version("llama-cpp-python"), "speeds": found}, sys.stdout)


if __name__ == "__main__":
    main()

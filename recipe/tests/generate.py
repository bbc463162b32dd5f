"""Loads a model written a moment ago and generates with it, through the package and the libraries beside it."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import tiny_model

from llama_cpp import Llama
from llama_cpp.capi.loader import library_folder

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "tiny.gguf"
    tiny_model.write(path)
    with Llama(path, n_ctx=128, n_threads=2) as llm:
        tokens = llm.tokenize(b"the tea")
        assert llm.detokenize(tokens).strip() == b"the tea", tokens
        first, again = (llm.create_completion("the", max_tokens=16, temperature=0) for _ in range(2))
        assert first["usage"]["completion_tokens"] > 0
        assert first["choices"][0]["text"] == again["choices"][0]["text"]
        chunks = list(llm.create_completion("the", max_tokens=4, temperature=0, stream=True))
        assert len(chunks) >= 2

here = Path(os.environ.get("CONDA_PREFIX") or sys.prefix) / "lib"
assert library_folder().resolve() == here.resolve(), f"the libraries of {library_folder()} ran"
print("generated", first["usage"]["completion_tokens"], "tokens with", here)

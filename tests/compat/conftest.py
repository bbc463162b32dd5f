"""Tests of what is offered under llama-cpp-python's names.

Each says by its marker which rows of docs/reference/compatibility.md it stands behind::

    @pytest.mark.offers("Llama.eval", "Llama.n_tokens", how="better", note="a context of its own, on which nobody else decodes")

``how`` is "same", "better" (with a note that says in what), "other" (with a note: an error here and ignored there, another
default), or "later" (accepted, and refused with a message that says so). Parametrized tests give it by ``pytest.param(…)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gguf_writer import tiny_model
from llama_cpp import Llama


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's file that is loaded and computed in no time."""
    path = tmp_path_factory.mktemp("compat") / "tiny.gguf"
    path.write_bytes(tiny_model().build())
    return path


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Iterator[Llama]:
    """A real model."""
    with Llama(smollm2, n_ctx=512) as llm:
        yield llm

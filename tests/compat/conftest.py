"""Tests of what is offered under llama-cpp-python's names.

Each says by its marker which rows of docs/reference/compatibility.md it stands behind::

    @pytest.mark.offers("Llama.eval", "Llama.n_tokens", how="better", note="a context of its own, on which nobody else decodes")

``how`` is "same", "better" (with a note that says in what), "other" (with a note: an error here and ignored there, another
default), or "later" (accepted, and refused with a message that says so). Parametrized tests give it by ``pytest.param(…)``.
"""

from __future__ import annotations

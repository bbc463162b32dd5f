"""What the tests of the GGUF checker share."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_cpp.errors import ModelFileError
from llama_cpp.gguf import check_gguf


def refuses(path: Path, error: type[ModelFileError], *culprits: str, vocab_only: bool = False) -> None:
    """Asserts that the check raises exactly this exception, that names the culprits and has a remedy."""
    with pytest.raises(error) as caught:
        check_gguf(path, vocab_only=vocab_only)
    assert type(caught.value) is error
    for culprit in culprits:
        assert culprit in str(caught.value)
    assert caught.value.remedy

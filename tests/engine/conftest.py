"""What several modules of this folder begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_models


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model of each kind of memory, by the kind's name."""
    folder = tmp_path_factory.mktemp("kinds")
    return {kind: tiny_models.write(kind, folder / f"{number}.gguf") for number, kind in enumerate(tiny_models.KINDS)}

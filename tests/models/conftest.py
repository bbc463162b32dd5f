"""Files written for one test."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_writer import GGUFBuilder


@pytest.fixture
def write(tmp_path):
    """Write bytes, or what a builder builds, to a file."""

    def write(content: bytes | GGUFBuilder, name: str = "model.gguf") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.build())
        return path

    return write

"""What lies in the cache of packages is not trusted, with a key or without."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from distribution.errors import HashMismatchError
from trusted_keys import BOTH, create, server


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").write_text("x")


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        lambda path: path.write_bytes(path.read_bytes().replace(b"two", b"bad")),
        Path.unlink, a_folder, a_fifo, a_link,
    ],
)  # fmt: skip
@pytest.mark.parametrize("with_key", [True, False])
def test_what_lies_in_the_cache_is_compared_every_time(owner, owner_key, elsewhere, tmp_path, damage, with_key):
    with server(owner.channel) as address:
        arguments = ("-f", owner.environment, "--channel", address, *(("--key", owner_key) if with_key else ()))
        assert create(*arguments) == BOTH
        kept = sorted((tmp_path / "cache/archives").glob("*-tool-2.0-0.conda"))
        assert len(kept) == 1
        good = kept[0].read_bytes()
        damage(kept[0])
        assert create(*arguments) == BOTH
        assert kept[0].is_file() and kept[0].read_bytes() == good, "what was damaged was replaced"


def test_what_is_kept_is_not_fetched_again(owner, owner_key, elsewhere):
    asked: list[str] = []

    def note(path: str, body: bytes) -> bytes:
        asked.append(path)
        return body

    with server(owner.channel, note) as address:
        for _ in range(2):
            create("-f", owner.environment, "--channel", address, "--key", owner_key)
    assert sum(path.endswith(".conda") for path in asked) == 2


def test_an_environment_shares_no_file_with_the_cache(owner, owner_key, elsewhere, tmp_path):
    with server(owner.channel) as address:
        arguments = ("-f", owner.environment, "--channel", address, "--key", owner_key)
        create(*arguments)
        tool = Path("env/bin/tool")
        assert tool.stat().st_nlink == 1 and not list(Path("env").glob(".creating-*"))
        with tool.open("r+b") as file:
            file.write(b"bad")
        assert create(*arguments) == BOTH
        described = json.loads(Path("env/conda-meta/tool-2.0-0.json").read_text())
        assert described["url"] == f"{address}/linux-64/tool-2.0-0.conda" and described["channel"].rstrip("/") == address
        assert "creating-" not in json.dumps(described)


def test_a_cache_that_cannot_be_written_to_is_done_without(owner, owner_key, elsewhere, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMA_CPP_CACHE", str(tmp_path / "file"))
    with server(owner.channel) as address:
        assert create("-f", owner.environment, "--channel", address, "--key", owner_key) == BOTH


def test_a_download_that_does_not_end(owner, owner_key, elsewhere):
    """More than the index says is not written: the rest is not waited for."""
    with (
        server(owner.channel, lambda path, body: body * 100_000 if path.endswith("tool-2.0-0.conda") else body) as address,
        pytest.raises(HashMismatchError, match="more than"),
    ):
        create("-f", owner.environment, "--channel", address, "--key", owner_key)
    assert not Path("env").exists()

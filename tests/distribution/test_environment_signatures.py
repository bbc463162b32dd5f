"""``env create`` and what the channel's publisher signed."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
pytest.importorskip("rattler")
pytest.importorskip("rattler_build")
pytest.importorskip("cryptography")

from distribution import environment  # noqa: E402
from distribution.channel import keys  # noqa: E402
from distribution.channel.generations import Channel  # noqa: E402
from distribution.channel.publishing import publish  # noqa: E402
from distribution.environment import signatures, solving, specification  # noqa: E402
from distribution.errors import UnsignedPackageError  # noqa: E402
from tiny_packages import add_package, index  # noqa: E402

FILE = """\
name: dev
channels:
  - ${LLAMA_CPP_CHANNEL}
dependencies:
  - tool
"""


@pytest.fixture(autouse=True)
def publisher(tmp_path, monkeypatch) -> Path:
    """The configuration folder of who publishes; tests that are someone else's change it."""
    for name in [name for name in os.environ if name.startswith(("CONDA_", "LLAMA_CPP_CHANNEL"))]:
        monkeypatch.delenv(name)
    for name, folder in {
        "HOME": "home",
        "XDG_CONFIG_HOME": "publisher",
        "RATTLER_CACHE_DIR": "repodata",
        "LLAMA_CPP_CACHE": "cache",
    }.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "environment.yml").write_text(FILE)
    return tmp_path / "publisher"


@pytest.fixture
def channel(tmp_path) -> Path:
    package = add_package(tmp_path / "built", "tool", files={"bin/tool": "#!/bin/sh\necho good\n"})
    publish([package], Channel.at(tmp_path / "channel"), environment=tmp_path / "environment.yml")
    return tmp_path / "channel"


@pytest.fixture
def stranger(channel, tmp_path, monkeypatch) -> Path:
    """Another machine, with a signing key of its own: its public key."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "stranger"))
    keys.signing_key()
    return tmp_path / "stranger/llama-cpp/signing-key.pub"


def create(*arguments: object) -> Path:
    parser = argparse.ArgumentParser()
    environment.add_commands(parser)
    options = parser.parse_args(["create", "-p", "env", *(str(one) for one in arguments)])
    options.run(options)
    return Path("env/bin/tool").absolute()


def test_own_channel(channel):
    assert create("--channel", channel).exists()


def test_key_of_the_publisher(channel, stranger, publisher, monkeypatch):
    key = channel / "channel-key.pub"
    assert create("--channel", channel, "--key", key).exists()
    monkeypatch.setenv("LLAMA_CPP_CHANNEL_KEY", str(key))
    assert create("--channel", channel, "--force").exists()


def test_key_of_somebody_else(channel, stranger):
    with pytest.raises(UnsignedPackageError, match="tool-1.0") as caught:
        create("--channel", channel, "--key", stranger)
    assert caught.value.remedy and not Path("env").exists()


def test_trusted_keys_of_this_machine(channel, stranger, tmp_path):
    trusted = stranger.parent / "trusted-keys"
    trusted.mkdir()
    (trusted / "somebody.pub").write_bytes(stranger.read_bytes())
    with pytest.raises(UnsignedPackageError):
        create("--channel", channel)
    (trusted / "publisher.pub").write_bytes((channel / "channel-key.pub").read_bytes())
    assert create("--channel", channel).exists()


def test_channel_without_signatures(channel, stranger, tmp_path):
    add_package(tmp_path / "plain", "tool")
    index(tmp_path / "plain")
    with pytest.raises(UnsignedPackageError, match="plain"):
        create("--channel", tmp_path / "plain", "--key", channel / "channel-key.pub")
    assert not Path("env").exists()


@pytest.mark.parametrize("how", ["environment file", "lock"])
def test_package_and_index_exchanged_behind_the_signatures(channel, stranger, tmp_path, how):
    key = tmp_path / "publisher.pub"
    key.write_bytes((channel / "channel-key.pub").read_bytes())
    # hard links would change the publisher's file too
    (channel.resolve() / "linux-64/tool-1.0-h0_0.conda").unlink()
    add_package(channel.resolve(), "tool", files={"bin/tool": "#!/bin/sh\necho evil\n"})
    index(channel)
    arguments: list[object] = ["--channel", channel]
    if how == "lock":
        found = solving.solve_environment(specification.parse(FILE, "environment.yml", str(channel))).records[0]
        (tmp_path / "dev.lock").write_text(f"@EXPLICIT\n{found.url}#sha256:{found.sha256.hex()}\n")
        arguments = ["-f", "dev.lock"]
    with pytest.raises(UnsignedPackageError, match="not what was signed"):
        create(*arguments, "--key", key)
    assert not Path("env").exists()


def test_channels_behind_tls_are_only_asked_for_our_packages(channel, stranger):
    record = solving.solve_environment(specification.parse(FILE, "environment.yml", str(channel))).records[0]
    # nobody listens there: a question would be an error
    record.channel = "https://127.0.0.1:9/conda-forge/"
    signatures.check([record], stranger)
    record.name = type(record.name)("libllama")
    with pytest.raises(OSError, match="127.0.0.1"):
        signatures.check([record], stranger)

"""``env create`` and what the channel's publisher signed."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path

import pytest

pytest.importorskip("rattler")
pytest.importorskip("rattler_build")
pytest.importorskip("cryptography")

from rattler import Channel as CondaChannel
from rattler import RepoDataRecord

from distribution import environment, files
from distribution.channel import keys, manifest, trust
from distribution.channel.publishing import publish
from distribution.channel.store import Channel
from distribution.channel.verification import verify
from distribution.environment import signatures, solving, specification
from distribution.errors import ChannelDamagedError, ChannelNotFoundError, UnsignedPackageError
from tiny_packages import add_package, index

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
    with pytest.raises(UnsignedPackageError, match=r"tool-1\.0") as caught:
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


@pytest.fixture
def record(channel) -> RepoDataRecord:
    """A package that is not one of ours."""
    return solving.solve_environment(specification.parse(FILE, "environment.yml", str(channel))).records[0]


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The channels that are asked for signatures; none has any."""
    locations: list[str] = []

    def fetch(location: str) -> None:
        locations.append(location)
        raise ChannelNotFoundError(location)

    monkeypatch.setattr(trust, "fetch", fetch)
    return locations


def check(record: RepoDataRecord, key: Path | None = None) -> None:
    """Compare a package with what its channel signed; the channel is none of those that were solved from."""
    with signatures.open_sources([], keys.load_trust(key)) as sources:
        sources.check([record])


FORGE = CondaChannel("conda-forge").base_url
HOST = FORGE.removeprefix("https://").partition("/")[0]


@pytest.mark.parametrize("address", [FORGE, FORGE.rstrip("/"), CondaChannel("main").base_url])
def test_conda_forge_and_main_are_only_asked_for_our_packages(record, stranger, asked, address):
    record.channel = address
    check(record, stranger)
    assert not asked
    record.name = type(record.name)("libllama")
    with pytest.raises(UnsignedPackageError, match="has no signatures"):
        check(record, stranger)


@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example/conda-forge/",
        f"https://{HOST}/evil/",
        f"https://{HOST}/conda-forge/../evil/",
        f"https://{HOST}/conda-forge/%2e%2e/evil/",
        f"https://{HOST}/conda-forge/..\\evil/",
        f"https://{HOST}@evil.example/conda-forge/",
        f"https://{HOST}.evil.example/conda-forge/",
        f"http://{HOST}/conda-forge/",
    ],
)
def test_with_a_key_no_other_channel_goes_unasked(record, stranger, asked, address):
    record.channel = address
    with pytest.raises(UnsignedPackageError, match="has no signatures"):
        check(record, stranger)
    # py-rattler resolved the dots
    assert asked == [record.channel.rstrip("/")]


def test_without_a_key_channels_behind_tls_are_only_asked_for_our_packages(record, stranger, asked):
    record.channel = "https://mirror.example/conda-forge/"
    check(record)
    assert not asked
    record.name = type(record.name)("libllama")
    check(record)
    assert asked == [record.channel.rstrip("/")]


def test_packages_of_others_that_were_published_with_ours(stranger, publisher, tmp_path, monkeypatch):
    """What a seeded channel offers is signed by who published it, and needs no channel beside ours."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(publisher))
    ours = add_package(tmp_path / "built", "tool", "2.0", depends=("python",))
    seeded = add_package(index(tmp_path / "seed"), "python", "3.11")
    publish([ours, seeded], Channel.at(tmp_path / "channel"), environment=tmp_path / "environment.yml")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "stranger"))
    tool = create("--channel", tmp_path / "channel", "--key", tmp_path / "channel/channel-key.pub")
    assert len(list((tool.parents[1] / "conda-meta").glob("*.json"))) == 2


def test_a_list_that_somebody_else_signed(channel, stranger, tmp_path, monkeypatch):
    """Each package carries the publisher's signature, and who they are was chosen by another."""
    key = tmp_path / "publisher.pub"
    key.write_bytes((channel / "channel-key.pub").read_bytes())
    content = manifest.read(channel.resolve())
    (channel.resolve() / manifest.MANIFEST).write_text(manifest.dump(content, keys.signing_key()))
    assert create("--channel", channel, "--key", key).exists()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "third"))
    with pytest.raises(UnsignedPackageError, match="list of its packages is not signed by the configured key"):
        create("--channel", channel, "--key", key, "--force")
    found = {one.path: one.problems for one in verify(Channel.at(channel), key) if one.problems}
    assert list(found) == [manifest.MANIFEST] and "not signed by the configured key" in found[manifest.MANIFEST][0]


@pytest.mark.parametrize("damage", [
    lambda index: index.update(info=0),
    lambda index: index["packages.conda"].update(broken=0),
    lambda index: index["packages.conda"]["tool-1.0-h0_0.conda"].update(sha256=1e30),
])  # fmt: skip
def test_a_signed_index_that_is_none(channel, publisher, damage):
    """Whoever publishes may do so with other programs."""
    folder = channel.resolve()
    file = folder / "linux-64/repodata.json"
    document = json.loads(file.read_text())
    damage(document)
    file.unlink()
    file.write_text(json.dumps(document))
    content = manifest.read(folder)
    signed = dataclasses.replace(content, files={**content.files, "linux-64/repodata.json": files.sha256_of(file)})
    (folder / manifest.MANIFEST).unlink()
    (folder / manifest.MANIFEST).write_text(manifest.dump(signed, keys.signing_key()))
    with pytest.raises(ChannelDamagedError, match=r"linux-64/repodata\.json .* cannot be read"):
        create("--channel", channel)

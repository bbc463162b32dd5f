"""With a trusted key, an environment holds nothing that the key's owner did not sign: files, indexes, generations."""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from conda_packages import write_package
from distribution import environment
from distribution.channel import keys, manifest, rollback, trust
from distribution.channel.manifest import Manifest
from distribution.environment import signatures, specification
from distribution.errors import (
    ChannelNotFoundError,
    HashMismatchError,
    NoSignaturesError,
    OlderGenerationError,
    UnsignedPackageError,
)
from trusted_keys import BOTH, TEMPLATE, change_depends, create, rewrite, server


def change_constrains(index: bytes) -> bytes:
    document = json.loads(index)
    document["packages.conda"]["tool-2.0-0.conda"]["constrains"] = ["helper <0"]
    return json.dumps(document).encode()


def hide_release(index: bytes) -> bytes:
    document = json.loads(index)
    del document["packages.conda"]["tool-2.0-0.conda"]
    return json.dumps(document).encode()


def raise_number(index: bytes) -> bytes:
    document = json.loads(index)
    document["packages.conda"]["tool-1.0-0.conda"]["version"] = "3.0"
    return json.dumps(document).encode()


def send_elsewhere(index: bytes) -> bytes:
    document = json.loads(index)
    document["info"]["base_url"] = "http://203.0.113.1/"
    return json.dumps(document).encode()


INDEX_CHANGES = [change_depends, change_constrains, hide_release, raise_number, send_elsewhere, lambda index: b"null"]


@pytest.mark.parametrize("change", INDEX_CHANGES)
def test_an_index_that_was_changed_on_the_way(owner, owner_key, elsewhere, change):
    with server(owner.channel, lambda path, body: change(body) if path == "/linux-64/repodata.json" else body) as address:
        with pytest.raises(UnsignedPackageError, match="not what was signed"):
            create("-f", owner.environment, "--channel", address, "--key", owner_key)
        assert not Path("env").exists()


@pytest.mark.parametrize("change", INDEX_CHANGES)
def test_an_index_that_was_changed_in_the_folder(owner, owner_key, elsewhere, change):
    index = owner.channel.current() / "linux-64/repodata.json"
    rewrite(index, change(index.read_bytes()))
    with pytest.raises(UnsignedPackageError, match="not what was signed"):
        create("-f", owner.environment, "--channel", owner.channel.path, "--key", owner_key)


def test_other_forms_of_the_index_are_not_read(owner, owner_key, elsewhere):
    """With a key the plain index counts. Shards and compressed forms may say what they like."""

    def change(path: str, body: bytes) -> bytes:
        return b"evil" if path.endswith((".zst", ".jlap")) or "shards" in path else body

    with server(owner.channel, change) as address:
        assert create("-f", owner.environment, "--channel", address, "--key", owner_key) == BOTH


def test_all_is_well_from_a_folder_over_http_and_from_the_channels_own_files(owner, owner_key, elsewhere):
    assert create("-f", owner.environment, "--channel", owner.channel.path, "--key", owner_key) == BOTH
    for name in ("environment.yml", "explicit.txt"):
        assert create("-f", owner.channel.path / name, "--key", owner_key) == BOTH
    with server(owner.channel) as address:
        for name in ("environment.yml", "explicit.txt"):
            assert create("-f", f"{address}/{name}", "--key", owner_key) == BOTH


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"- tool", b"- helper"),
        lambda text: text.replace(b"dependencies:", b"- conda-forge\ndependencies:"),
        lambda text: text + b"variables:\n  LD_PRELOAD: /tmp/evil.so\n",
        lambda text: b"\n".join(line for line in text.splitlines() if b"tool-2.0" not in line),
        lambda text: text + b"# a comment\n",
    ],
)
@pytest.mark.parametrize("name", ["environment.yml", "explicit.txt"])
def test_environment_files_and_locks_that_were_changed_on_the_way(owner, owner_key, elsewhere, change, name):
    whole = (owner.channel.current() / name).read_bytes()
    if change(whole) in (whole, whole.rstrip()):
        pytest.skip("changes nothing in this file")
    with (
        server(owner.channel, lambda path, body: change(body) if path == f"/{name}" else body) as address,
        pytest.raises(UnsignedPackageError, match="not what its channel's publisher signed"),
    ):
        create("-f", f"{address}/{name}", "--key", owner_key)
    rewrite(owner.channel.current() / name, change(whole))
    with pytest.raises(UnsignedPackageError, match="not what its channel's publisher signed"):
        create("-f", owner.channel.path / name, "--key", owner_key)
    # a file of one's own is one's own
    Path("own.yml").write_text(TEMPLATE)
    assert create("-f", "own.yml", "--channel", owner.channel.path, "--key", owner_key) == BOTH


def test_an_environment_file_without_tls_that_nothing_vouches_for(owner, owner_key, elsewhere, tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "page/team.yml").write_text(TEMPLATE)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "page"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as page:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        with pytest.raises(UnsignedPackageError):
            create(
                "-f", f"http://127.0.0.1:{page.server_address[1]}/team.yml", "--channel", owner.channel.path, "--key", owner_key
            )
        page.shutdown()
    # beside a signed channel, and not signed
    (owner.channel.current() / "team.yml").write_text(TEMPLATE)
    with server(owner.channel) as address, pytest.raises(UnsignedPackageError, match="nothing vouches"):
        create("-f", f"{address}/team.yml", "--channel", owner.channel.path, "--key", owner_key)


@pytest.mark.parametrize("name", ["environment.yml", "environment-cpu.yml", "explicit.txt"])
def test_a_channel_does_not_lose_its_signatures(owner, owner_key, elsewhere, name):
    """Whoever can write to its folder can remove the signed list, and add files that channels have and this one had not."""
    create("-f", owner.environment, "--channel", owner.channel.path, "--key", owner_key)
    rewrite(owner.channel.current() / name, TEMPLATE.replace("${LLAMA_CPP_CHANNEL}", "conda-forge").encode())
    with pytest.raises(UnsignedPackageError):
        create("-f", owner.channel.path / name, "--key", owner_key)
    (owner.channel.current() / "manifest.json").unlink()
    with pytest.raises(UnsignedPackageError, match="has no signatures"):
        create("-f", owner.channel.path / name, "--key", owner_key)


def served(monkeypatch, answers: Callable[[str], Manifest]) -> None:
    """Somebody's server, behind TLS: what it answers when it is asked for its signed list."""
    monkeypatch.setattr(trust, "fetch", answers)
    monkeypatch.setattr(specification, "read_text", lambda source: TEMPLATE)


def nothing(location: str) -> Manifest:
    raise ChannelNotFoundError(location)


@pytest.mark.parametrize("name", ["environment.yml", "environment-cpu.yml", "team.yml", "environment%2Eyml", "environment.yml#x"])
def test_tls_does_not_stand_for_a_channels_signatures(owner, owner_key, elsewhere, monkeypatch, name):
    """It says which host it is, and not that nobody else could write to the channel's folder there."""
    trust, address = keys.load_trust(owner_key), "https://channel.example/llama"
    # a page that is no channel: its host vouches for it
    served(monkeypatch, nothing)
    assert signatures.read_environment_file(f"{address}/{name}", trust) == TEMPLATE
    with pytest.raises(NoSignaturesError):
        signatures.read_environment_file(f"{address.upper()}/{name}", trust)
    # one that the key's owner signed, which says nothing of this text
    content = manifest.read(owner.channel.current())
    served(monkeypatch, lambda location: content)
    with pytest.raises(UnsignedPackageError, match=r"nothing vouches|not what its channel's publisher signed"):
        signatures.read_environment_file(f"{address}/{name}", trust)
    # one that was signed by somebody else
    other = manifest.parse(manifest.dump(content, Ed25519PrivateKey.generate()), address)
    served(monkeypatch, lambda location: other)
    with pytest.raises(UnsignedPackageError, match="not signed by the configured key"):
        signatures.read_environment_file(f"{address}/{name}", trust)
    # one that was seen, and whose list is gone
    rollback.check(address, 1)
    served(monkeypatch, nothing)
    with pytest.raises(NoSignaturesError):
        signatures.read_environment_file(f"{address}/{name}", trust)


@pytest.mark.parametrize("way", ["folder", "http"])
def test_an_old_generation_is_noticed(owner, owner_key, elsewhere, tmp_path, monkeypatch, way):
    with monkeypatch.context() as patched:
        patched.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        owner.publish(write_package(tmp_path / "built", "tool", "3.0", files={"bin/tool": b"three"}))
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(server(owner.channel)) if way == "http" else owner.channel.path
        arguments = ("-f", owner.environment, "--channel", address, "--key", owner_key)
        assert create(*arguments)["tool"] == b"three"
        # whoever can write to the folder points back to what was published before, signatures and all
        link = owner.channel.path
        link.unlink()
        link.symlink_to(owner.channel.store.relative_to(link.parent) / "000001")
        with pytest.raises(OlderGenerationError, match="generation 1, and had 2") as caught:
            create(*arguments)
        assert "--allow-older" in caught.value.remedy
        assert create(*arguments, "--allow-older") == BOTH
        assert create(*arguments) == BOTH, "going back was allowed once, and is what is known now"


def test_what_was_seen_and_cannot_be_read_is_no_reason_to_trust(owner, owner_key, elsewhere, tmp_path):
    arguments = ("-f", owner.environment, "--channel", owner.channel.path, "--key", owner_key)
    create(*arguments)
    seen = tmp_path / "state/llama-cpp/channels.json"
    assert list(json.loads(seen.read_text()).values()) == [1]
    for content in (b"", b"{", b"[]", b'{"a": "b"}', b"\xff"):
        seen.write_bytes(content)
        with pytest.raises(OlderGenerationError, match=r"channels\.json"):
            create(*arguments)
    # as where it lies on a disk that is not mounted
    seen.unlink()
    seen.symlink_to("/not-mounted/channels.json")
    with pytest.raises(OlderGenerationError, match="link to nothing"):
        create(*arguments)
    seen.unlink()
    (tmp_path / "state").rename(tmp_path / "unmounted")
    (tmp_path / "state").symlink_to("/not-mounted")
    with pytest.raises(OlderGenerationError, match="link to nothing"):
        create(*arguments)
    (tmp_path / "state").unlink()
    assert create(*arguments) == BOTH


def test_a_channel_that_changes_between_two_reads_is_read_again(owner, owner_key, elsewhere, tmp_path, monkeypatch):
    published = []

    def publish_meanwhile(path: str, body: bytes) -> bytes:
        if path == "/manifest.json" and not published:
            published.append(path)
            with pytest.MonkeyPatch.context() as patched:
                patched.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
                owner.publish(write_package(tmp_path / "built", "tool", "3.0", files={"bin/tool": b"three"}))
        return body

    with server(owner.channel, publish_meanwhile) as address:
        assert create("-f", owner.environment, "--channel", address, "--key", owner_key) == {"tool": b"three"}
    assert published


def test_locks_are_made_of_signed_indexes(owner, owner_key, elsewhere):
    parser = argparse.ArgumentParser()
    environment.add_commands(parser)
    index = owner.channel.current() / "linux-64/repodata.json"
    rewrite(index, change_depends(index.read_bytes()))
    options = parser.parse_args(
        ["lock", "-f", str(owner.environment), "--channel", str(owner.channel.path), "--key", str(owner_key), "-o", "lock"]
    )
    with pytest.raises(UnsignedPackageError):
        options.run(options)
    assert not Path("lock").exists()


def test_a_locks_packages_are_described_by_the_signed_index(owner, owner_key, elsewhere):
    """What a package says of itself is read before all of it is there; the index is signed."""
    lock = (owner.channel.current() / "explicit.txt").read_text()
    Path("own.txt").write_text(lock)
    path = owner.channel.current() / "linux-64/tool-2.0-0.conda"
    rewrite(path, path.read_bytes().replace(b'"depends": ["helper"]', b'"depends": ["jelper"]'))
    with pytest.raises(HashMismatchError):
        create("-f", "own.txt", "--key", owner_key)


@pytest.mark.parametrize("digest", ["sha256:" + "0" * 64, "0" * 32])
@pytest.mark.parametrize("with_key", [True, False])
def test_a_locks_hash_counts_beside_the_signature(owner, owner_key, elsewhere, tmp_path, digest, with_key):
    """A channel that was made anew has another package of that name, just as well signed: a lock is there to notice."""
    lock = (owner.channel.current() / "explicit.txt").read_text()
    changed = "".join(
        f"{line.partition('#')[0]}#{digest}\n" if "/tool-2.0" in line else f"{line}\n" for line in lock.splitlines()
    )
    assert changed != lock
    own = tmp_path / "own.lock"
    own.write_text(changed)
    with pytest.raises(HashMismatchError, match=r"tool-2\.0-0\.conda is not the package that the lock names"):
        create("-f", own, *(["--key", owner_key] if with_key else []))
    assert not Path("env").exists()
    own.write_text(lock)
    assert create("-f", own, "--key", owner_key) == BOTH

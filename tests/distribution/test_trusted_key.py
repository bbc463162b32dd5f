"""Which keys are trusted, and who can read what was published."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from conda_packages import release
from distribution.channel import bundle, keys
from distribution.channel.store import Channel
from distribution.errors import SigningKeyError, UnsignedPackageError
from trusted_keys import BOTH, create


@pytest.mark.parametrize("name", ["owner.pem", "owner.PUB", "owner", ".owner.pub", "owner.pub.txt"])
def test_every_file_among_the_trusted_keys_counts(owner, owner_key, elsewhere, name):
    (elsewhere / "trusted-keys").mkdir()
    shutil.copy(owner_key, elsewhere / "trusted-keys" / name)
    assert list(keys.load_trust().configured) == [keys.fingerprint(keys.load_public(owner_key))]
    assert create("-f", owner.environment, "--channel", owner.channel.path) == BOTH
    shutil.copy(elsewhere / "signing-key.pub", elsewhere / "trusted-keys" / name)
    with pytest.raises(UnsignedPackageError):
        create("-f", owner.environment, "--channel", owner.channel.path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder.mkdir(), (folder / "notes.txt").write_text("hello")),
        lambda folder: (folder.mkdir(), (folder / "empty.pub").write_text("")),
        lambda folder: (folder.mkdir(), (folder / "folder.pub").mkdir()),
        lambda folder: (folder.mkdir(), os.mkfifo(folder / "fifo.pub")),
        lambda folder: (folder.mkdir(), (folder / "link.pub").symlink_to("nowhere")),
        lambda folder: (folder.mkdir(), (folder / "two.pub").write_text((folder.parent / "signing-key.pub").read_text() * 2)),
        lambda folder: (shutil.rmtree(folder.parent), folder.parent.symlink_to("not-mounted")),
        lambda folder: folder.write_text("x"),
        lambda folder: folder.symlink_to("nowhere"),
        lambda folder: folder.symlink_to(folder.name),
    ],
)
def test_what_is_configured_and_unreadable_is_an_error(owner, elsewhere, spoil):
    spoil(elsewhere / "trusted-keys")
    with pytest.raises(SigningKeyError) as caught:
        create("-f", owner.environment, "--channel", owner.channel.path)
    assert caught.value.remedy and not Path("env").exists()


def test_a_key_that_was_given_up_is_no_longer_this_machines_own(elsewhere):
    """Its owner moves the private key away, as the error says, and the next one is made: the old one signs nothing any more."""
    old = keys.load_trust().own
    (elsewhere / "signing-key.pem").rename(elsewhere / "broken.pem")
    new = keys.signing_key().public_key()
    assert keys.fingerprint(new) != keys.fingerprint(old)
    assert list(keys.load_trust().publishers) == [keys.fingerprint(new)]
    # and a key from a backup takes its place again
    (elsewhere / "broken.pem").replace(elsewhere / "signing-key.pem")
    keys.signing_key()
    assert list(keys.load_trust().publishers) == [keys.fingerprint(old)]


@pytest.mark.parametrize("value", ["", " ", "/nowhere/key.pub", "."])
def test_a_variable_that_names_no_key(owner, elsewhere, monkeypatch, value):
    monkeypatch.setenv("LLAMA_CPP_CHANNEL_KEY", value)
    with pytest.raises(SigningKeyError):
        create("-f", owner.environment, "--channel", owner.channel.path)


def test_an_option_that_names_no_key(owner, elsewhere):
    for value in ("", "/nowhere/key.pub"):
        with pytest.raises(SigningKeyError):
            create("-f", owner.environment, "--channel", owner.channel.path, "--key", value)


def test_folders_that_may_not_be_looked_into(owner, elsewhere, tmp_path):
    """Run as nobody, whom permissions stop."""
    if os.getuid():
        pytest.skip("needs root, to become somebody else")
    (elsewhere / "trusted-keys").mkdir()
    elsewhere.chmod(0o700)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setuid(65534)
            keys.load_trust()
            os.write(write, b"trusted nobody")
        except SigningKeyError:
            os.write(write, b"refused")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"refused"
    os.close(read)
    os.close(write)


def test_what_was_built_for_its_owner_alone_is_published_for_everybody(place, tmp_path):
    before = os.umask(0o077)
    try:
        packages = release(tmp_path / "one", 0)
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in packages)
        place.publish(*packages)
        place.publish(*release(tmp_path / "two", 1))
        exported = bundle.export(place.channel, tmp_path / "all.tar").path
        bundle.import_(exported, Channel.at(tmp_path / "there/channel"))
    finally:
        os.umask(before)
    for channel in (place.channel, Channel.at(tmp_path / "there/channel")):
        for path in [channel.store, *channel.store.glob("0*"), *channel.store.glob("0*/**/*")]:
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode & (0o555 if path.is_dir() else 0o444) == (0o555 if path.is_dir() else 0o444), path

"""Nothing is signed again that somebody else put into a channel's folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conda_packages import Place, release, write_package
from distribution.channel import bundle, keys, manifest
from distribution.channel.pruning import prune
from distribution.channel.store import Channel
from distribution.errors import ChannelDamagedError, UnsignedPackageError
from trusted_keys import change_depends, more, rewrite


@pytest.fixture
def intruder(owner, tmp_path, monkeypatch) -> Callable[[], None]:
    """Somebody who can write to the channel's folder and has another key: what they do."""

    def put_in() -> None:
        with monkeypatch.context() as patched:
            patched.setenv("XDG_CONFIG_HOME", str(tmp_path / "intruder"))
            folder = owner.channel.current()
            content = manifest.read(folder)
            evil = write_package(tmp_path / "evil", "helper", "9.0", files={"bin/helper": b"evil"})
            there = Place(tmp_path, Channel.at(tmp_path / "their/channel"), owner.environment)
            there.publish(evil, *sorted(folder.glob("*/*.conda")))
            theirs = there.channel.current()
            mine = manifest.read(theirs)
            entries = {**mine.packages, **content.packages}
            for path in theirs.rglob("*"):
                if path.is_file():
                    (folder / path.relative_to(theirs)).parent.mkdir(parents=True, exist_ok=True)
                    rewrite(folder / path.relative_to(theirs), path.read_bytes())
            forged = manifest.Manifest(
                content.generation, entries, mine.files, (), {**mine.keys, **content.keys}, environment=mine.environment,
                addressed=mine.addressed,
            )  # fmt: skip
            rewrite(folder / manifest.MANIFEST, manifest.dump(forged, keys.signing_key()).encode())

    return put_in


SIGNING = {
    "publish": lambda place, folder: place.publish(more(folder)),
    "export": lambda place, folder: bundle.export(place.channel, folder / "all.tar"),
    "prune": lambda place, folder: prune(place.channel, environment=place.environment),
}


@pytest.mark.parametrize("command", SIGNING)
def test_what_somebody_else_put_into_the_folder_is_not_signed(owner, intruder, tmp_path, command):
    if command == "prune":
        owner.publish(*release(tmp_path / "r0", 0), *release(tmp_path / "r1", 1))
    intruder()
    before = owner.channel.current()
    with pytest.raises(UnsignedPackageError, match="neither by this machine's key nor by a trusted one") as caught:
        SIGNING[command](owner, tmp_path)
    assert "trusted-keys" in caught.value.remedy
    assert owner.channel.current() == before and not (tmp_path / "all.tar").exists()


@pytest.mark.parametrize("command", SIGNING)
def test_a_key_that_is_trusted_may_have_signed_what_is_there(owner, intruder, tmp_path, command):
    if command == "prune":
        owner.publish(*release(tmp_path / "r0", 0), *release(tmp_path / "r1", 1))
    intruder()
    trusted = tmp_path / "config/llama-cpp/trusted-keys"
    trusted.mkdir()
    shutil.copy(tmp_path / "intruder/llama-cpp/signing-key.pub", trusted / "colleague.pub")
    SIGNING[command](owner, tmp_path)


@pytest.mark.parametrize(
    "victim",
    ["linux-64/repodata.json", "noarch/repodata.json", "linux-64/repodata_shards.msgpack.zst", "linux-64/tool-1.0-0.conda",
     "environment.yml", "channel-key.pub"],
)  # fmt: skip
@pytest.mark.parametrize("command", SIGNING)
def test_what_was_changed_in_the_folder_is_not_signed(owner, tmp_path, victim, command):
    if command == "prune":
        owner.publish(*release(tmp_path / "r0", 0), *release(tmp_path / "r1", 1))
    path = owner.channel.current() / victim
    rewrite(path, path.read_bytes() + b" ")
    before = owner.channel.current()
    with pytest.raises(ChannelDamagedError, match=Path(victim).name):
        SIGNING[command](owner, tmp_path)
    assert owner.channel.current() == before


def test_a_dependency_taken_out_of_the_index_does_not_come_back_signed(owner, tmp_path):
    """The indexer takes over what it finds in an index, so that it must not find what somebody changed."""
    index = owner.channel.current() / "linux-64/repodata.json"
    rewrite(index, change_depends(index.read_bytes()))
    with pytest.raises(ChannelDamagedError):
        owner.publish(more(tmp_path))


def test_files_that_nobody_listed_are_left_behind(owner, tmp_path):
    folder = owner.channel.current()
    for name in ("linux-64/shards/evil.msgpack.zst", "linux-64/evil-1.0-0.conda", "evil.txt", "noarch/run_exports.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"evil")
    owner.publish(more(tmp_path))
    now = owner.channel.current()
    assert now != folder
    content = manifest.read(now)
    assert not [path for path in now.rglob("*") if "evil" in path.name]
    assert not [path for path in [*content.files, *content.packages] if "evil" in path]
    assert all(path.read_bytes() != b"evil" for path in now.rglob("*") if path.is_file())


@pytest.mark.parametrize("command", ["publish", "export"])
def test_a_machine_without_a_key_does_not_take_a_channel_over(owner, tmp_path, monkeypatch, command):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "new"))
    with pytest.raises(UnsignedPackageError):
        SIGNING[command](owner, tmp_path)
    assert not (tmp_path / "new").exists(), "no key is made for nothing"

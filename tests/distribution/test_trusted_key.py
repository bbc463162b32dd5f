"""With a trusted key, nothing reaches an environment, a channel or a bundle that the key's owner did not sign."""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import io
import json
import os
import shutil
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from conda_packages import Place, place, release, write_package  # noqa: F401

from distribution import environment
from distribution.channel import bundle, keys, manifest
from distribution.channel.generations import Channel
from distribution.channel.pruning import prune
from distribution.channel.server import ChannelServer
from distribution.errors import (
    BundleError,
    ChannelDamagedError,
    EnvironmentFileError,
    HashMismatchError,
    OlderGenerationError,
    SigningKeyError,
    UnsignedPackageError,
)

TEMPLATE = """\
name: dev
channels:
  - ${LLAMA_CPP_CHANNEL}
dependencies:
  - tool
"""


@pytest.fixture
def owner(place, tmp_path, monkeypatch) -> Place:
    """Who holds the key: ``tool`` 1 and 2 are published, and 2 needs ``helper``."""
    for name, folder in {
        "HOME": "home", "XDG_STATE_HOME": "state", "LLAMA_CPP_CACHE": "cache", "RATTLER_CACHE_DIR": "repodata",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.chdir(tmp_path)
    place.environment.write_text(TEMPLATE)
    place.publish(
        write_package(tmp_path / "built", "tool", "1.0", files={"bin/tool": b"one"}),
        write_package(tmp_path / "built", "tool", "2.0", depends=["helper"], files={"bin/tool": b"two"}),
        write_package(tmp_path / "built", "helper", files={"bin/helper": b"helper"}),
    )
    return place


@pytest.fixture
def key(owner, tmp_path) -> Path:
    """The owner's public key, as another machine has it."""
    return Path(shutil.copy(tmp_path / "config/llama-cpp/signing-key.pub", tmp_path / "owner.pub"))


@pytest.fixture
def elsewhere(key, tmp_path, monkeypatch) -> Path:
    """From here on this is another machine, with a key of its own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    keys.signing_key()
    return tmp_path / "elsewhere/llama-cpp"


def create(*arguments: object) -> dict[str, bytes]:
    """Make the environment ``env``; the programs in it."""
    parser = argparse.ArgumentParser()
    environment.add_commands(parser)
    options = parser.parse_args(["create", "-p", "env", "--force", *(str(one) for one in arguments)])
    options.run(options)
    return {path.name: path.read_bytes() for path in Path("env/bin").iterdir()}


def rewrite(path: Path, content: bytes) -> None:
    """Change a file of a generation without touching the other names it has."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


BOTH = {"tool": b"two", "helper": b"helper"}


@contextlib.contextmanager
def server(channel: Channel, change: Callable[[str, bytes], bytes] = lambda path, body: body) -> Iterator[str]:
    """Somebody in the middle: passes on what the channel's server says, changed."""
    with ChannelServer(channel, port=0) as real:
        threading.Thread(target=real.serve_forever, daemon=True).start()

        class Middle(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                import http.client

                connection = http.client.HTTPConnection(*real.server_address[:2])
                connection.request("GET", self.path, headers={"Host": self.headers["Host"]})
                answer = connection.getresponse()
                body = answer.read()
                connection.close()
                body = change(self.path, body) if answer.status == 200 else body
                self.send_response(answer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Middle) as middle:
            threading.Thread(target=middle.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{middle.server_address[1]}"
            middle.shutdown()
        real.shutdown()


# env create: environment files, indexes, generations ------------------------------------------------------------------


def change_depends(index: bytes) -> bytes:
    document = json.loads(index)
    document["packages.conda"]["tool-2.0-0.conda"]["depends"] = []
    return json.dumps(document).encode()


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
def test_an_index_that_was_changed_on_the_way(owner, key, elsewhere, change):
    with server(owner.channel, lambda path, body: change(body) if path == "/linux-64/repodata.json" else body) as address:
        with pytest.raises(UnsignedPackageError, match="not what was signed"):
            create("-f", owner.environment, "--channel", address, "--key", key)
        assert not Path("env").exists()


@pytest.mark.parametrize("change", INDEX_CHANGES)
def test_an_index_that_was_changed_in_the_folder(owner, key, elsewhere, change):
    index = owner.channel.current() / "linux-64/repodata.json"
    rewrite(index, change(index.read_bytes()))
    with pytest.raises(UnsignedPackageError, match="not what was signed"):
        create("-f", owner.environment, "--channel", owner.channel.path, "--key", key)


def test_other_forms_of_the_index_are_not_read(owner, key, elsewhere):
    """With a key the plain index counts. Shards and compressed forms may say what they like."""

    def change(path: str, body: bytes) -> bytes:
        return b"evil" if path.endswith((".zst", ".jlap")) or "shards" in path else body

    with server(owner.channel, change) as address:
        assert create("-f", owner.environment, "--channel", address, "--key", key) == BOTH


def test_all_is_well_from_a_folder_over_http_and_from_the_channels_own_files(owner, key, elsewhere):
    assert create("-f", owner.environment, "--channel", owner.channel.path, "--key", key) == BOTH
    for name in ("environment.yml", "explicit.txt"):
        assert create("-f", owner.channel.path / name, "--key", key) == BOTH
    with server(owner.channel) as address:
        for name in ("environment.yml", "explicit.txt"):
            assert create("-f", f"{address}/{name}", "--key", key) == BOTH


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
def test_environment_files_and_locks_that_were_changed_on_the_way(owner, key, elsewhere, change, name):
    whole = (owner.channel.current() / name).read_bytes()
    if change(whole) in (whole, whole.rstrip()):
        pytest.skip("changes nothing in this file")
    with server(owner.channel, lambda path, body: change(body) if path == f"/{name}" else body) as address:
        with pytest.raises(UnsignedPackageError, match="not what its channel's publisher signed"):
            create("-f", f"{address}/{name}", "--key", key)
    rewrite(owner.channel.current() / name, change(whole))
    with pytest.raises(UnsignedPackageError, match="not what its channel's publisher signed"):
        create("-f", owner.channel.path / name, "--key", key)
    # a file of one's own is one's own
    Path("own.yml").write_text(TEMPLATE)
    assert create("-f", "own.yml", "--channel", owner.channel.path, "--key", key) == BOTH


def test_an_environment_file_without_tls_that_nothing_vouches_for(owner, key, elsewhere, tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "page/team.yml").write_text(TEMPLATE)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "page"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as page:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        with pytest.raises(UnsignedPackageError):
            create("-f", f"http://127.0.0.1:{page.server_address[1]}/team.yml", "--channel", owner.channel.path, "--key", key)
        page.shutdown()
    # beside a signed channel, and not signed
    (owner.channel.current() / "team.yml").write_text(TEMPLATE)
    with server(owner.channel) as address:
        with pytest.raises(UnsignedPackageError, match="nothing vouches"):
            create("-f", f"{address}/team.yml", "--channel", owner.channel.path, "--key", key)


@pytest.mark.parametrize("way", ["folder", "http"])
def test_an_old_generation_is_noticed(owner, key, elsewhere, tmp_path, monkeypatch, way):
    with monkeypatch.context() as patched:
        patched.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        owner.publish(write_package(tmp_path / "built", "tool", "3.0", files={"bin/tool": b"three"}))
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(server(owner.channel)) if way == "http" else owner.channel.path
        arguments = ("-f", owner.environment, "--channel", address, "--key", key)
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


def test_what_was_seen_and_cannot_be_read_is_no_reason_to_trust(owner, key, elsewhere, tmp_path):
    arguments = ("-f", owner.environment, "--channel", owner.channel.path, "--key", key)
    create(*arguments)
    seen = tmp_path / "state/llama-cpp/channels.json"
    assert list(json.loads(seen.read_text()).values()) == [1]
    for content in (b"", b"{", b"[]", b'{"a": "b"}', b"\xff"):
        seen.write_bytes(content)
        with pytest.raises(OlderGenerationError, match=r"channels\.json"):
            create(*arguments)
    seen.unlink()
    assert create(*arguments) == BOTH


def test_a_channel_that_changes_between_two_reads_is_read_again(owner, key, elsewhere, tmp_path, monkeypatch):
    published = []

    def publish_meanwhile(path: str, body: bytes) -> bytes:
        if path == "/manifest.json" and not published:
            published.append(path)
            with pytest.MonkeyPatch.context() as patched:
                patched.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
                owner.publish(write_package(tmp_path / "built", "tool", "3.0", files={"bin/tool": b"three"}))
        return body

    with server(owner.channel, publish_meanwhile) as address:
        assert create("-f", owner.environment, "--channel", address, "--key", key) == {"tool": b"three"}
    assert published


def test_locks_are_made_of_signed_indexes(owner, key, elsewhere):
    parser = argparse.ArgumentParser()
    environment.add_commands(parser)
    index = owner.channel.current() / "linux-64/repodata.json"
    rewrite(index, change_depends(index.read_bytes()))
    options = parser.parse_args(
        ["lock", "-f", str(owner.environment), "--channel", str(owner.channel.path), "--key", str(key), "-o", "lock"]
    )
    with pytest.raises(UnsignedPackageError):
        options.run(options)
    assert not Path("lock").exists()


def test_a_locks_packages_are_described_by_the_signed_index(owner, key, elsewhere):
    """What a package says of itself is read before all of it is there; the index is signed."""
    lock = (owner.channel.current() / "explicit.txt").read_text()
    Path("own.txt").write_text(lock)
    path = owner.channel.current() / "linux-64/tool-2.0-0.conda"
    rewrite(path, path.read_bytes().replace(b'"depends": ["helper"]', b'"depends": ["jelper"]'))
    with pytest.raises(HashMismatchError):
        create("-f", "own.txt", "--key", key)


# the cache of packages ------------------------------------------------------------------------------------------------


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
def test_what_lies_in_the_cache_is_compared_every_time(owner, key, elsewhere, tmp_path, damage, with_key):
    with server(owner.channel) as address:
        arguments = ("-f", owner.environment, "--channel", address, *(("--key", key) if with_key else ()))
        assert create(*arguments) == BOTH
        kept = sorted((tmp_path / "cache/archives").glob("*-tool-2.0-0.conda"))
        assert len(kept) == 1
        good = kept[0].read_bytes()
        damage(kept[0])
        assert create(*arguments) == BOTH
        assert kept[0].is_file() and kept[0].read_bytes() == good, "what was damaged was replaced"


def test_what_is_kept_is_not_fetched_again(owner, key, elsewhere):
    asked: list[str] = []

    def note(path: str, body: bytes) -> bytes:
        asked.append(path)
        return body

    with server(owner.channel, note) as address:
        for _ in range(2):
            create("-f", owner.environment, "--channel", address, "--key", key)
    assert sum(path.endswith(".conda") for path in asked) == 2


def test_an_environment_shares_no_file_with_the_cache(owner, key, elsewhere, tmp_path):
    with server(owner.channel) as address:
        arguments = ("-f", owner.environment, "--channel", address, "--key", key)
        create(*arguments)
        tool = Path("env/bin/tool")
        assert tool.stat().st_nlink == 1 and not list(Path("env").glob(".creating-*"))
        with tool.open("r+b") as file:
            file.write(b"bad")
        assert create(*arguments) == BOTH
        described = json.loads(Path("env/conda-meta/tool-2.0-0.json").read_text())
        assert described["url"] == f"{address}/linux-64/tool-2.0-0.conda" and described["channel"].rstrip("/") == address
        assert "creating-" not in json.dumps(described)


def test_a_cache_that_cannot_be_written_to_is_done_without(owner, key, elsewhere, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMA_CPP_CACHE", str(tmp_path / "file"))
    with server(owner.channel) as address:
        assert create("-f", owner.environment, "--channel", address, "--key", key) == BOTH


def test_a_download_that_does_not_end(owner, key, elsewhere):
    """More than the index says is not written: the rest is not waited for."""
    with server(owner.channel, lambda path, body: body * 100_000 if path.endswith("tool-2.0-0.conda") else body) as address:
        with pytest.raises(HashMismatchError, match="more than"):
            create("-f", owner.environment, "--channel", address, "--key", key)
    assert not Path("env").exists()


# what is signed again -------------------------------------------------------------------------------------------------


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


def more(folder: Path) -> Path:
    return write_package(folder / "more", "more")


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


def test_a_machine_without_a_key_does_not_take_a_channel_over(owner, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "new"))
    with pytest.raises(UnsignedPackageError):
        owner.publish(more(tmp_path))


# bundles --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(owner, key) -> Path:
    return bundle.export(owner.channel, owner.folder / "all.tar").path


def repack(source: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The file again, its members changed."""
    with tarfile.open(source) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
    change(members)
    target = source.with_name("changed.tar")
    with tarfile.open(target, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return target


def test_a_bundle_holds_nothing_that_its_manifest_does_not_say(exported):
    with tarfile.open(exported) as archive:
        names = archive.getnames()
    assert names[:2] == ["manifest.json", "channel-key.pub"]
    assert {Path(name).suffix for name in names[2:]} == {".conda"}


def test_an_environment_file_in_a_bundle_is_refused(exported, elsewhere, key, tmp_path):
    evil = b"name: dev\nchannels: [http://203.0.113.1]\ndependencies: [tool]\nvariables: {LD_PRELOAD: /tmp/evil.so}\n"

    def first(members: dict[str, bytes]) -> None:
        others = dict(members)
        members.clear()
        members.update({"environment.yml": evil, **others})

    for change in (first, lambda members: members.update({"environment.yml": evil})):
        there = Channel.at(tmp_path / "there")
        with pytest.raises(BundleError, match=r"does not list environment\.yml"):
            bundle.import_(repack(exported, change), there, key)
        assert not there.exists()


def test_what_a_bundles_manifest_says_cannot_be_changed(exported, elsewhere, key, tmp_path):
    def change(members: dict[str, bytes]) -> None:
        members["manifest.json"] = members["manifest.json"].replace(b'"tool"', b'"fool"')

    with pytest.raises(ChannelDamagedError, match="altered"):
        bundle.import_(repack(exported, change), Channel.at(tmp_path / "there"), key)


def test_a_bundle_that_somebody_else_signed(exported, elsewhere, key, tmp_path):
    """All packages carry the right signatures; which there are, and the environment, somebody else chose."""

    def change(members: dict[str, bytes]) -> None:
        content = manifest.parse(members["manifest.json"], "bundle")
        chosen = {path: entry for path, entry in content.packages.items() if "tool-2" not in path}
        forged = manifest.Manifest(1, chosen, keys=content.keys, environment=manifest.Wanted("dev", ("tool", "evil")))
        own = keys.signing_key()
        members["manifest.json"] = manifest.dump(forged, own).encode()
        members["channel-key.pub"] = keys.public_pem(own.public_key()).encode()
        for path in content.packages.keys() - chosen.keys():
            del members[path]

    elsewhere.joinpath("signing-key.pub").unlink()  # else the list is this machine's own
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CONFIG_HOME", str(tmp_path / "stranger"))
        changed = repack(exported, change)
    with pytest.raises(UnsignedPackageError, match="list of its packages"):
        bundle.import_(changed, Channel.at(tmp_path / "there"), key)


def test_the_key_in_a_bundle_is_the_one_that_signed_it(exported, elsewhere, key, tmp_path):
    other = (elsewhere / "signing-key.pub").read_bytes()
    changed = repack(exported, lambda members: members.update({"channel-key.pub": other}))
    with pytest.raises(BundleError, match="is not the key that signed"):
        bundle.import_(changed, Channel.at(tmp_path / "there"), key)


def test_a_member_that_is_there_twice(exported, elsewhere, key, tmp_path):
    with tarfile.open(exported) as archive:
        name = archive.getnames()[-1]
        data = archive.extractfile(name).read()
    with tarfile.open(exported, "a") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    with pytest.raises(BundleError, match="twice"):
        bundle.import_(exported, Channel.at(tmp_path / "there"), key)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_that_would_fill_the_memory(exported, elsewhere, key, tmp_path, kind):
    """The file is as large as the header says, and sparse: only who reads it whole needs the memory."""
    size = 1 << 36
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, size
    huge = tmp_path / "huge.tar"
    with huge.open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(size + 4096)
    with pytest.raises(BundleError, match=f"{size} bytes"):
        bundle.import_(huge, Channel.at(tmp_path / "there"), key)


def test_what_is_imported_is_rendered_from_data(exported, elsewhere, key, tmp_path):
    there = Channel.at(tmp_path / "there")
    bundle.import_(exported, there, key)
    text = (there.current() / "environment.yml").read_text()
    assert yaml.safe_load(text) == {"name": "dev", "channels": [there.url], "dependencies": ["tool"]}
    assert text.startswith("#     conda env create -f file://") and text.count("#") == 1


@pytest.mark.parametrize(
    "more_text",
    [
        "variables:\n  LD_PRELOAD: /tmp/evil.so\n", "prefix: /usr\n", "  - http://203.0.113.1/linux-64/evil-1.0-0.conda\n",
        "  - http://203.0.113.1::evil\n", "  - evil[url=http://203.0.113.1/evil-1.0-0.conda]\n", "  - pip:\n    - evil\n",
        "  - /tmp/evil-1.0-0.conda\n", "platforms: [linux-64]\n",
    ],
)  # fmt: skip
def test_an_environment_file_that_asks_for_more_than_packages_is_not_published(owner, tmp_path, more_text):
    owner.environment.write_text(TEMPLATE + more_text)
    for command in (
        lambda: owner.publish(more(tmp_path)),
        lambda: bundle.export(owner.channel, tmp_path / "all.tar", owner.environment),
    ):
        with pytest.raises(EnvironmentFileError):
            command()
    assert owner.channel.current().name == "000001" and not (tmp_path / "all.tar").exists()


def test_a_bundle_of_an_older_version_says_so(owner, tmp_path):
    exported = bundle.export(owner.channel, tmp_path / "all.tar").path

    def change(members: dict[str, bytes]) -> None:
        content = manifest.parse(members["manifest.json"], "bundle")
        old = manifest.Manifest(content.generation, content.packages, keys=content.keys)
        members["manifest.json"] = manifest.dump(old, keys.signing_key()).encode()

    with pytest.raises(BundleError, match="what an environment asks for"):
        bundle.import_(repack(exported, change), Channel.at(tmp_path / "there"))


# keys -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["owner.pem", "owner.PUB", "owner", ".owner.pub", "owner.pub.txt"])
def test_every_file_among_the_trusted_keys_counts(owner, key, elsewhere, name):
    (elsewhere / "trusted-keys").mkdir()
    shutil.copy(key, elsewhere / "trusted-keys" / name)
    assert list(keys.load_trust().configured) == [keys.fingerprint(keys.load_public(key))]
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


# permissions ----------------------------------------------------------------------------------------------------------


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

"""With a trusted key, a bundle brings nothing that the key's owner did not sign."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from distribution.channel import bundle, keys, manifest
from distribution.channel.store import Channel
from distribution.errors import BundleError, ChannelDamagedError, EnvironmentFileError, UnsignedPackageError
from trusted_keys import TEMPLATE, more


@pytest.fixture
def exported(owner, owner_key) -> Path:
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


def test_an_environment_file_in_a_bundle_is_refused(exported, elsewhere, owner_key, tmp_path):
    evil = b"name: dev\nchannels: [http://203.0.113.1]\ndependencies: [tool]\nvariables: {LD_PRELOAD: /tmp/evil.so}\n"

    def first(members: dict[str, bytes]) -> None:
        others = dict(members)
        members.clear()
        members.update({"environment.yml": evil, **others})

    for change in (first, lambda members: members.update({"environment.yml": evil})):
        there = Channel.at(tmp_path / "there")
        with pytest.raises(BundleError, match=r"does not list environment\.yml"):
            bundle.import_(repack(exported, change), there, owner_key)
        assert not there.exists()


def test_what_a_bundles_manifest_says_cannot_be_changed(exported, elsewhere, owner_key, tmp_path):
    def change(members: dict[str, bytes]) -> None:
        members["manifest.json"] = members["manifest.json"].replace(b'"tool"', b'"fool"')

    with pytest.raises(ChannelDamagedError, match="altered"):
        bundle.import_(repack(exported, change), Channel.at(tmp_path / "there"), owner_key)


def test_a_bundle_that_somebody_else_signed(exported, elsewhere, owner_key, tmp_path):
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
        bundle.import_(changed, Channel.at(tmp_path / "there"), owner_key)


def test_the_key_in_a_bundle_is_the_one_that_signed_it(exported, elsewhere, owner_key, tmp_path):
    other = (elsewhere / "signing-key.pub").read_bytes()
    changed = repack(exported, lambda members: members.update({"channel-key.pub": other}))
    with pytest.raises(BundleError, match="is not the key that signed"):
        bundle.import_(changed, Channel.at(tmp_path / "there"), owner_key)


def test_a_member_that_is_there_twice(exported, elsewhere, owner_key, tmp_path):
    with tarfile.open(exported) as archive:
        name = archive.getnames()[-1]
        data = archive.extractfile(name).read()
    with tarfile.open(exported, "a") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    with pytest.raises(BundleError, match="twice"):
        bundle.import_(exported, Channel.at(tmp_path / "there"), owner_key)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_that_would_fill_the_memory(exported, elsewhere, owner_key, tmp_path, kind):
    """The file is as large as the header says, and sparse: only who reads it whole needs the memory."""
    size = 1 << 36
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, size
    huge = tmp_path / "huge.tar"
    with huge.open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(size + 4096)
    with pytest.raises(BundleError, match=f"{size} bytes"):
        bundle.import_(huge, Channel.at(tmp_path / "there"), owner_key)


def _header(kind: bytes, size: int, name: str = "manifest.json") -> bytes:
    made = tarfile.TarInfo(name)
    made.type, made.size = kind, size
    return made.tobuf(tarfile.GNU_FORMAT)


def _pax(text: bytes) -> bytes:
    return _header(tarfile.XHDTYPE, len(text), "x") + text.ljust(512, b"\0")


IN_FRONT = {
    # tarfile calls itself for each, until Python has enough
    **{
        f"5,000 headers {kind!r} in a row": (_header(kind, 9) + b"9 path=a\n".ljust(512, b"\0")) * 5000
        for kind in (b"x", b"g", b"L")
    },
    # ... and goes back to where it was
    **{
        f"{size} bytes of {kind!r}": _header(kind, size)
        for kind in (b"0", b"x", b"g", b"L") for size in (-1, -512, -1024, -(10**6))
    },
    "a negative size in a header": _pax(b"14 size=-1024\n") + _header(b"0", 512),
    "a member with holes": (
        _pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n") + _header(b"0", 512) + b"999999\n0\n".ljust(512, b"0")
    ),
    "an old member with holes": _header(tarfile.GNUTYPE_SPARSE, 512),
}  # fmt: skip


def test_headers_that_lead_back_or_nowhere(exported, elsewhere, owner_key, tmp_path):
    """A stranger's file ends with a message, whatever its headers are."""
    whole, there = exported.read_bytes(), Channel.at(tmp_path / "there")
    for name, header in IN_FRONT.items():
        exported.write_bytes(header + whole)
        with pytest.raises(BundleError) as caught:
            bundle.import_(exported, there, owner_key)
        assert "is damaged" in caught.value.message, name
        assert not there.exists(), name


def test_what_is_imported_is_rendered_from_data(exported, elsewhere, owner_key, tmp_path):
    there = Channel.at(tmp_path / "there")
    bundle.import_(exported, there, owner_key)
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

"""What packages unpack to, of channels in which nobody looked for that: it is known before any of it is on the disk."""

from __future__ import annotations

import bz2
import contextlib
import hashlib
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rattler")
pytest.importorskip("rattler_build")

from distribution.channel import package_file
from distribution.environment import install, room
from distribution.errors import ChannelUnreachableError, DamagedPackageError, DiskSpaceError
from measuring import measured
from packed_by_hand import Entry, claims, model, write
from tiny_packages import index
from trusted_keys import create

MIB = 1 << 20
LISTED = {"path_type": "hardlink", "sha256": hashlib.sha256(b"x").hexdigest(), "size_in_bytes": 1}


@pytest.fixture(autouse=True)
def elsewhere_than_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, folder in {"HOME": "home", "LLAMA_CPP_CACHE": "cache", "RATTLER_CACHE_DIR": "repodata"}.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def nothing_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it was given to the installer")

    monkeypatch.setattr(install, "install", refuse)


def package(folder: Path, pkg: bytes, info: bytes = b"", ending: str = ".conda", listed: Sequence[str] = ()) -> Path:
    """A package ``tool`` whose payload is the tar ``pkg``; ``info`` goes in front of what it says about itself."""
    made = model()
    made.index["depends"], made.payload, made.paths = [], [], [LISTED | {"_path": path} for path in listed]
    tars: dict[str, bytes] = {}

    def change(layer: str, thing: Any) -> Any:
        if layer == "stream":
            tars.update(pkg=pkg, info=info + thing["info"])
            return tars
        return thing

    folder.mkdir(parents=True, exist_ok=True)
    path = write(folder, made, change)
    if ending == ".tar.bz2":
        path.unlink()
        path = folder / f"{made.stem}.tar.bz2"
        path.write_bytes(bz2.compress(tars["info"][:-1024] + pkg))
    return path


def zeros(size: int) -> bytes:
    return claims(b"share/tool/zeros", size) + bytes(size + 1024)


def channel_of(tmp_path: Path, *arguments: Any, **options: Any) -> tuple[str, str]:
    """A channel with that package, which nobody looked into, and a lock of it: what both are given to ``create``."""
    path = package(tmp_path / "channel/linux-64", *arguments, **options)
    index(tmp_path / "channel")
    (tmp_path / "environment.yml").write_text(f"channels: [{tmp_path}/channel]\ndependencies: [tool]\n")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "tool.lock").write_text(f"@EXPLICIT\n{path.as_uri()}#sha256:{digest}\n")
    return "environment.yml", "tool.lock"


BOMBS: dict[str, Callable[[], tuple[bytes, bytes, str]]] = {
    "one large file": lambda: (zeros(80 * MIB), b"", "unpacks to more than"),
    "in what it says about itself": lambda: (
        bytes(1024), claims(b"info/x", 80 * MIB) + bytes(80 * MIB), "unpacks to more than"
    ),
    "a file with holes": lambda: (Entry(b"x", kind=b"S", magic=b"ustar  \0").packed(), b"", "neither a file"),
    "many folders": lambda: (
        b"".join(Entry((f"{n}/" + "d/" * 100 + "x").encode(), kind=b"5").packed() for n in range(600)), b"", "folders"
    ),
    "zeros behind its end": lambda: (bytes(4 * MIB), b"", "than is allowed"),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("ending", [".conda", ".tar.bz2"])
def test_a_package_that_unpacks_to_more_than_it_may(tmp_path, nothing_is_unpacked, bomb, ending):
    pkg, info, complaint = BOMBS[bomb]()
    for source in channel_of(tmp_path, pkg, info, ending):
        # a lock's packages are looked into before that
        with pytest.raises((DamagedPackageError, ChannelUnreachableError), match=complaint) as caught:
            create("-f", source)
        assert "tool-1.0-h1_0" in caught.value.message and caught.value.remedy
        assert not Path("env").exists() and not list(Path().glob(".*creating*"))


def test_with_a_key_too(owner, owner_key, elsewhere, nothing_is_unpacked, monkeypatch):
    """Whoever has the key may have signed what ``publish`` refuses."""
    monkeypatch.setattr(package_file, "LARGEST_PAYLOAD", 2)
    with pytest.raises(DamagedPackageError, match="unpacks to more than"):
        create("-f", owner.environment, "--channel", owner.channel.path, "--key", owner_key)


def test_the_disk_has_not_the_room(tmp_path, nothing_is_unpacked):
    """All of them together count, packed as they are: the packed ones would fit."""
    source, _ = channel_of(tmp_path, zeros(30 * MIB))
    with mounted(tmp_path / "mount", "size=16m"):
        with pytest.raises(DiskSpaceError, match=r"needs 31\.5 MB in .*free"):
            create("-f", source, "-p", tmp_path / "mount/env")
        assert not list((tmp_path / "mount").iterdir())


def test_what_builders_write_otherwise_is_taken(tmp_path):
    """Names, modes and owners that ``publish`` refuses are nothing that makes a package larger."""
    entries = [
        Entry(b"lib/systemd/a\\x2db.mount", b"x"), Entry(b"./share/dot", b"x"), Entry(b"bin/su", b"x", mode=0o4755),
        Entry(b"share/owner", b"x", fields={108: b"\x80\0\0\0\0\x20\0\0"}, magic=b"ustar  \0"),
    ]  # fmt: skip
    listed = ["lib/systemd/a\\x2db.mount", "share/dot", "bin/su", "share/owner"]
    for ending in (".conda", ".tar.bz2"):
        for source in channel_of(tmp_path, b"".join(one.packed() for one in entries) + bytes(1024), b"", ending, listed):
            assert create("-f", source) == {"su": b"x"}
            assert all(Path("env", path).read_bytes() == b"x" for path in listed)
        shutil.rmtree("channel")


def test_neither_memory_nor_time(tmp_path):
    path = package(tmp_path, zeros(60 * MIB))
    first = "import asyncio; from distribution.environment import room; from pathlib import Path"
    _, grown, seconds = measured(first, "asyncio.run(room.needed([Path(sys.argv[1])] * 20))", "DamagedPackageError", path)
    assert grown < 60 and seconds < 20


def test_an_interruption_is_not_kept_waiting(tmp_path):
    path = package(tmp_path, zeros(60 * MIB))
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(DamagedPackageError, match="interrupted"):
        room._measure(path, stopped)


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system of a known size")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)

"""The zip, the Zstandard frames and the tars of a package: what builders write is taken, what readers differ about is refused.

And none of it costs more memory or time than it may.
"""

from __future__ import annotations

import copy
import datetime
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rattler")
pytest.importorskip("rattler_build")

from distribution import conda_archive
from distribution.channel.package_file import LARGEST_INFO, LARGEST_PAYLOAD, inspect
from distribution.errors import DamagedPackageError
from measuring import measured
from packed_by_hand import WIDE, Entry, Model, Zip, add, at, claims, digest, model, raw_frame, read, write, zstd


def test_as_rattler_build_writes_them(tmp_path):
    from rattler_build import assemble_package

    files = tmp_path / "files"
    deep = files / ("l" * 80) / ("m" * 90)
    deep.mkdir(parents=True)
    # a long name after which the header of the next one has remains of it
    (deep / ("n" * 90)).write_text("long")
    (files / "z").write_text("z")
    (files / "y").symlink_to(Path("l" * 80, "m" * 90, "n" * 90))
    moment = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    made = assemble_package("tool", "2.0", "linux-64", "h1_0", tmp_path, files_dir=files, homepage="x", timestamp=moment)
    assert read(Path(made.path)) == {f"{'l' * 80}/{'m' * 90}/{'n' * 90}": b"long", "z": b"z"}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_as_conda_build_writes_them(tmp_path, form):
    """Python's tarfile: times with fractions, long and foreign names, second names of a file, folders; sizes of 64 bits."""
    made = model()
    long = "/".join("abc"[number % 3] * 60 for number in range(3))
    made.payload, made.paths = [], []
    add(add(add(made, "lib/data"), "lib/ü"), long)
    made.paths += [{**made.paths[0], "_path": "lib/same"}, {"_path": "lib/link", "path_type": "softlink", "size_in_bytes": 1}]
    members = [
        ("lib", tarfile.DIRTYPE, ""), ("lib/data", tarfile.REGTYPE, ""), ("lib/ü", tarfile.REGTYPE, ""),
        (long, tarfile.REGTYPE, ""),
        ("lib/same", tarfile.LNKTYPE, "lib/data"), ("lib/link", tarfile.SYMTYPE, "data"),
    ]  # fmt: skip

    def as_tarfile(frames: dict[str, bytes]) -> dict[str, bytes]:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for path, kind, target in members:
                member = tarfile.TarInfo(path)
                member.type, member.linkname, member.mode = kind, target, 0o755
                member.mtime = 1_767_225_600.25 if form == tarfile.PAX_FORMAT else 1_767_225_600
                member.size = 1 if kind == tarfile.REGTYPE else 0
                tar.addfile(member, io.BytesIO(b"x"))
        return {**frames, "pkg": zstd.compress(buffer.getvalue(), level=19)}

    def wide(made: Zip) -> None:
        for one in made.members[1:]:
            sizes = WIDE.pack(1, 16, len(one.data), len(one.data))
            one.local |= {"packed": 0xFFFFFFFF, "size": 0xFFFFFFFF, "extra": sizes, "needed": 45}
            one.central["needed"] = 45

    path = write(tmp_path, made, lambda layer, thing: as_tarfile(thing) if layer == "frame" else at("zip", wide)(layer, thing))
    assert read(path) == {"lib/data": b"x", "lib/ü": b"x", long: b"x"}


@pytest.mark.parametrize("window", [0x50, 0x88])
def test_windows_up_to_the_largest_of_zstd(tmp_path, window):
    def rewindowed(frames: dict[str, bytes]) -> dict[str, bytes]:
        return {name: raw_frame(zstd.decompress(frame), window) for name, frame in frames.items()}

    assert read(write(tmp_path, model(), at("frame", rewindowed)))["share/tool/ü"] == b"umlaut"


def refused(folder: Path, change: Callable[[str, Any], Any], complaint: str) -> None:
    with pytest.raises(DamagedPackageError, match=complaint) as caught:
        inspect(write(folder, model(), change))
    assert "tool-1.0-h1_0.conda" in caught.value.message and caught.value.remedy


def headers(number: int, where: str, **changed: Any) -> Callable[[Zip], None]:
    """Change fields in front of a member (``local``), in the directory (``central``), or in both."""

    def damage(made: Zip) -> None:
        for name in where.split():
            getattr(made.members[number], name).update(changed)

    return damage


def whole_zip(**changed: Any) -> Callable[[Zip], None]:
    return lambda made: vars(made).update(changed)


BOTH = "local central"
ZIPS: dict[str, tuple[Callable[[Zip], Any], str]] = {
    "a name twice": (lambda made: made.members.append(copy.copy(made.members[1])), "three members"),
    "a name too many": (lambda made: made.members.insert(0, copy.copy(made.members[1])), "three members"),
    "compressed": (headers(1, BOTH, method=8), "stored in another way"),
    "encrypted": (headers(1, BOTH, flags=1), "stored in another way"),
    "sizes behind the data": (headers(1, BOTH, flags=8), "stored in another way"),
    "a version to come": (headers(1, BOTH, needed=99), "stored in another way"),
    "another name in the directory": (headers(1, "central", name=b"pkg-tool-1.0-h1_1.tar.zst"), "something else"),
    "another size in the directory": (headers(1, "central", size=7, packed=7), "something else"),
    "another version in the directory": (headers(1, "central", needed=10), "something else"),
    "another checksum in the directory": (headers(1, "central", crc=1), "something else"),
    "two sizes": (headers(1, BOTH, size=7), "two sizes"),
    "another place in the directory": (headers(1, "central", offset=0), "something else"),
    "another disk in the directory": (headers(1, "central", disk=1), "something else"),
    "a link": (headers(0, "central", external=0o120777 << 16), "something else"),
    "a folder": (headers(0, "central", external=0x10), "something else"),
    "a note on a member": (headers(0, "central", note=b"x"), "something else"),
    "unknown extra": (headers(0, BOTH, extra=b"UT\5\0\1\0\0\0\0"), "not all readers understand"),
    "a wide size too many": (headers(0, "local", extra=WIDE.pack(1, 16, 30, 30)), "not all readers understand"),
    "a wide size too few": (headers(0, BOTH, size=0xFFFFFFFF, packed=0xFFFFFFFF), "two sizes"),
    "another checksum": (headers(1, BOTH, crc=1), "a checksum is wrong"),
    "another checksum of metadata.json": (headers(0, BOTH, crc=1), "a checksum is wrong"),
    "something in front": (whole_zip(before=b"#!/bin/sh\n"), "three members|cut off"),
    "something behind": (whole_zip(after=b"x"), "more than its members"),
    "something in between": (lambda made: setattr(made.members[1], "between", b"x"), "cut off|something else"),
    "something in front of the directory": (whole_zip(directory_gap=b"\0" * 30), "cut off|something else"),
    "a note": (whole_zip(end={"note": b"x"}), "more than its members"),
    "another number of members": (whole_zip(end={"count": 2}), "more than its members"),
    "another place of the directory": (whole_zip(end={"offset": 0}), "more than its members"),
    "a member that is not listed": (whole_zip(listed=[0, 1]), "cut off|something else"),
    "another order": (whole_zip(listed=[1, 0, 2]), "something else"),
    "format 3": (lambda made: setattr(made.members[0], "data", b'{"conda_pkg_format_version": 3}'), "format 2"),
    "no format": (lambda made: setattr(made.members[0], "data", b"{"), "metadata.json cannot be read"),
    "a large metadata.json": (lambda made: setattr(made.members[0], "data", b" " * 5000), "should be small"),
    "another stem": (lambda made: setattr(made.members[1], "name", b"pkg-tool-1.0-h1_0x.tar.zst"), "instead of"),
    "another ending": (lambda made: setattr(made.members[1], "name", b"pkg-tool-1.0-h1_0.tar.bz2"), "instead of"),
    "a name of other letters": (lambda made: setattr(made.members[1], "name", b"pkg-\xff\n"), "instead of"),
}


@pytest.mark.parametrize(("damage", "complaint"), ZIPS.values(), ids=ZIPS)
def test_zips_that_readers_differ_about(tmp_path, damage, complaint):
    refused(tmp_path, at("zip", lambda made: damage(made) and None), complaint)


SKIPPED = b"\x50\x2a\x4d\x18\3\0\0\0abc"
FRAMES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "an empty one in front": (lambda frame: zstd.compress(b"") + frame, "goes on after|is cut off"),
    "the same twice": (lambda frame: frame + frame, "goes on after its Zstandard frame"),
    "an empty one behind": (lambda frame: frame + zstd.compress(b""), "goes on after its Zstandard frame"),
    "one to skip in front": (lambda frame: SKIPPED + frame, "does not begin with a Zstandard frame"),
    "one to skip behind": (lambda frame: frame + SKIPPED, "goes on after its Zstandard frame"),
    "a byte behind": (lambda frame: frame + b"\0", "goes on after its Zstandard frame"),
    "nothing": (lambda frame: b"", "does not begin with a Zstandard frame"),
    "half a frame": (lambda frame: frame[:-5], "is cut off|is damaged"),
    "no last block": (lambda frame: raw_frame(zstd.decompress(frame), 0x50, last=False), "is cut off"),
    "a window of 256 MiB": (lambda frame: raw_frame(zstd.decompress(frame), 0x90), "data is damaged"),
    "an old version": (lambda frame: b"\x27" + frame[1:], "does not begin with a Zstandard frame"),
    "half of it in another": (lambda frame: _in_two(zstd.decompress(frame)), "goes on after|is cut off"),
}


def _in_two(data: bytes) -> bytes:
    return zstd.compress(data[:1000]) + zstd.compress(data[1000:])


@pytest.mark.parametrize(("damage", "complaint"), FRAMES.values(), ids=FRAMES)
def test_frames_that_readers_differ_about(tmp_path, damage, complaint):
    for part in ("pkg", "info"):
        refused(tmp_path, at("frame", lambda frames, part=part: {**frames, part: damage(frames[part])}), complaint)


STREAMS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda tar: b"", "cut off"),
    "half of it": (lambda tar: tar[:2000], "cut off|damaged"),
    "no end": (lambda tar: tar.rstrip(b"\0") + b"\0" * (-len(tar.rstrip(b"\0")) % 512), "cut off"),
    "half an end": (lambda tar: tar[:-512], "cut off"),
    "a member behind the end": (lambda tar: tar + Entry(b"late", b"x").packed() + bytes(1024), "goes on after its end"),
    "a byte behind the end": (lambda tar: tar + b"x", "goes on after its end"),
    "many zeros": (lambda tar: tar + bytes(70 << 20), "more than it says"),
}


@pytest.mark.parametrize(("damage", "complaint"), STREAMS.values(), ids=STREAMS)
def test_ends_of_a_tar_that_readers_differ_about(tmp_path, damage, complaint):
    for part in ("pkg", "info"):
        refused(tmp_path, at("stream", lambda streams, part=part: {**streams, part: damage(streams[part])}), complaint)


def field(position: int, value: bytes) -> Callable[[list[Entry]], None]:
    """Bytes at a position of the second header; its checksum is made right."""
    return lambda tar: tar[1].fields.update({position: value})


def in_front(*kinds_and_data: bytes) -> Callable[[list[Entry]], None]:
    """Headers in front of a member that say more about it."""
    pairs = zip(kinds_and_data[::2], kinds_and_data[1::2])
    entries = [Entry(b"x", data, kind) for kind, data in pairs]
    return lambda tar: tar.__setitem__(slice(0, 0), copy.deepcopy(entries))


def more(path: bytes, kind: bytes = b"0", data: bytes = b"", mode: int = 0o755) -> Callable[[list[Entry]], None]:
    return lambda tar: tar.append(Entry(path, data, kind, mode=mode))


def _gnu_with_prefix(tar: list[Entry]) -> None:
    tar[1].magic, tar[1].fields[345] = b"ustar  \0", b"x"


TARS: dict[str, tuple[Callable[[list[Entry]], Any], str]] = {
    "a wrong checksum": (lambda tar: setattr(tar[1], "checksum", 1), "damaged header"),
    "a signed checksum": (field(148, b"-000001\0"), "damaged header"),
    "a size with an underscore": (field(124, b"0_000000020\0"), "damaged header"),
    "a size with a sign": (field(124, b"-0000000020\0"), "damaged header"),
    "a size with a letter": (field(124, b"0o000000020\0"), "damaged header"),
    "a size in base 256": (field(124, b"\x80" + bytes(10) + b"\x10"), "damaged header"),
    "a size with something behind": (field(124, b"0000020\0x000"), "damaged header"),
    "no mode": (field(100, bytes(8)), "damaged header"),
    "no group": (field(116, bytes(8)), "damaged header"),
    "a time that is no number": (field(136, b"yesterday..."), "damaged header"),
    "a device that is no number": (field(329, b"x"), "damaged header"),
    "a format without a mark": (lambda tar: setattr(tar[1], "magic", bytes(8)), "of a format that"),
    "a prefix where GNU has none": (_gnu_with_prefix, "of a format that"),
    "something in the spare bytes": (field(505, b"x"), "of a format that"),
    "a size in an extended header": (in_front(b"x", b"9 size=1\n"), "says size of a member"),
    "a sparse file": (in_front(b"x", b"22 GNU.sparse.major=1\n"), "damaged header"),
    "an extended attribute": (in_front(b"x", b"18 SCHILY.xattr=1\n"), "damaged header"),
    "a charset": (in_front(b"x", b"16 hdrcharset=1\n"), "says hdrcharset of a member"),
    "an extended header for all": (in_front(b"g", b"11 path=a/b\n"), "neither a file nor a link"),
    "a key twice": (in_front(b"x", b"8 uid=1\n8 uid=2\n"), "says it twice"),
    "a record that is too short": (in_front(b"x", b"7 uid=1\n"), "damaged header"),
    "a record that is too long": (in_front(b"x", b"99 uid=1\n"), "damaged header"),
    "a record without an end": (in_front(b"x", b"8 uid=12"), "damaged header"),
    "a length with a zero": (in_front(b"x", b"09 uid=1\n"), "damaged header"),
    "a time that is none": (in_front(b"x", b"13 mtime=nan\n"), "says mtime=nan"),
    "a link that is a file": (in_front(b"K", b"a\0"), "is no link"),
    "two long names": (in_front(b"L", b"a\0", b"L", b"b\0"), "two headers"),
    "a long name and an extended header": (in_front(b"L", b"a\0", b"x", b"8 uid=1\n"), "two headers"),
    "an extended header and a long name": (in_front(b"x", b"8 uid=1\n", b"L", b"a\0"), "two headers"),
    "a NUL in a long name": (in_front(b"L", b"a\0b\0"), "is no path"),
    "a very long name": (in_front(b"L", b"a/" * 3000), "name that is too long"),
    "a long name of nothing": (more(b"x", b"L", b"a\0"), "without a member"),
    "padding that is not zero": (lambda tar: setattr(tar[1], "padding", b"x"), "between its members"),
    "a device": (more(b"d", b"3"), "neither a file nor a link"),
    "a pipe": (more(b"d", b"6"), "neither a file nor a link"),
    "a contiguous file": (more(b"d", b"7"), "neither a file nor a link"),
    "a sparse file of GNU": (more(b"d", b"S"), "neither a file nor a link"),
    "a volume": (more(b"d", b"V"), "neither a file nor a link"),
    "a folder with content": (more(b"share/", b"5", b"x"), "has content"),
    "a link with content": (lambda tar: setattr(tar[-1], "data", b"x"), "has content"),
    "a file in a folder's clothes": (more(b"share/", data=b"x"), "is no path"),
    "set user id": (lambda tar: setattr(tar[1], "mode", 0o4755), "has the mode 4755"),
    "a file nobody may read": (lambda tar: setattr(tar[1], "mode", 0), "has the mode 0"),
    "a folder nobody may enter": (more(b"share/tool/", b"5", mode=0o600), "has the mode 600"),
    "not Unicode": (lambda tar: setattr(tar[1], "name", b"bin/\xff"), "is not Unicode"),
}


@pytest.mark.parametrize(("damage", "complaint"), TARS.values(), ids=TARS)
def test_members_that_readers_differ_about(tmp_path, damage, complaint):
    refused(tmp_path, at("tar", lambda tars: damage(tars["pkg"]) and None), complaint)


INFOS: dict[str, tuple[Callable[[list[Entry]], Any], str]] = {
    "a file beside info": (more(b"lib/x"), "lib/x is beside info/"),
    "a text twice": (lambda tar: tar.append(copy.copy(tar[0])), "in it twice"),
    "a text that is a link": (more(b"info/link.json", b"2"), "not understood by all|leads to"),
    "a record of the index": (more(b"info/repodata_record.json"), "not understood by all"),
    "what link.json was called": (more(b"info/package_metadata.json"), "not understood by all"),
}


@pytest.mark.parametrize(("damage", "complaint"), INFOS.values(), ids=INFOS)
def test_what_does_not_belong_into_info(tmp_path, damage, complaint):
    refused(tmp_path, at("tar", lambda tars: damage(tars["info"]) and None), complaint)


# What it may cost.


def child(path: Path) -> tuple[str, int, int]:
    """What ``inspect`` says in a process of limited memory, the MiB by which that grew, and the seconds it took."""
    first = "from pathlib import Path; from distribution.channel.package_file import inspect"
    return measured(first, "inspect(Path(sys.argv[1]))", "DamagedPackageError", path)


def frame(*blocks: bytes) -> bytes:
    """A frame of much data, without having all of it at once."""
    compressor = zstd.ZstdCompressor(level=1)
    return b"".join([*map(compressor.compress, blocks), compressor.flush()])


def zeros(size: int, before: bytes) -> bytes:
    return frame(before, *[bytes(1 << 20)] * (size >> 20), bytes(1024))


def of_one_file(size: int, sha256: str = "0" * 64) -> Model:
    made = model()
    made.payload = []
    made.paths = [{"_path": "big", "path_type": "hardlink", "sha256": sha256, "size_in_bytes": size}]
    return made


def in_part(part: str, data: bytes) -> Callable[[str, Any], Any]:
    return at("frame", lambda frames: {**frames, part: data})


def in_text(name: str, text: bytes) -> Callable[[str, Any], Any]:
    return at("text", lambda texts: {**texts, f"info/{name}.json": text})


def _of_eight_exabytes(made: Zip) -> None:
    for one in made.members:
        wide = {"packed": 0xFFFFFFFF, "size": 0xFFFFFFFF, "extra": WIDE.pack(1, 16, 1 << 63, 1 << 63), "needed": 45}
        one.local, one.central = wide, wide


def _depending(spec: str) -> Model:
    made = model()
    made.index["depends"] = [spec]
    return made


GIB = 1 << 30
FOLDERS = [{"_path": f"{number}/" + "d/" * 400 + "x", "path_type": "softlink"} for number in range(2000)]
BOMBS: dict[str, Callable[[], tuple[Model, Callable[[str, Any], Any]]]] = {
    "a file that nobody spoke of": lambda: (model(), in_part("pkg", zeros(GIB, claims(b"big", 7 * GIB)))),
    "a file that is as large as it says": lambda: (of_one_file(7 * GIB), in_part("pkg", zeros(GIB, claims(b"big", 7 * GIB)))),
    "a text of info": lambda: (model(), in_part("info", zeros(GIB, claims(b"info/index.json", 7 * GIB)))),
    "another file of info": lambda: (model(), in_part("info", zeros(GIB, claims(b"info/x", GIB)))),
    "a long name": lambda: (model(), in_part("info", zeros(GIB, claims(b"x", 7 * GIB, b"L")))),
    "an extended header": lambda: (model(), in_part("pkg", zeros(GIB, claims(b"x", GIB, b"x")))),
    "zeros behind a tar": lambda: (model(), in_part("pkg", zeros(GIB, bytes(1024)))),
    "a window of 3 TB": lambda: (model(), in_part("pkg", raw_frame(bytes(1024), 0xFF))),
    "members of 8 EB": lambda: (model(), at("zip", _of_eight_exabytes)),
    "a list of millions": lambda: (model(), in_text("paths", b'{"paths": [' + b"[]," * 9_000_000 + b"1]}")),
    "a list of folders": lambda: (model(), in_text("paths", json.dumps({"paths_version": 1, "paths": FOLDERS}).encode())),
    "a deep text": lambda: (model(), in_text("about", b'{"extra":' * 400_000 + b"1" + b"}" * 400_000)),
    "a number of a million digits": lambda: (model(), in_text("about", b'{"extra": ' + b"9" * 1_000_000 + b"}")),
    "a dependency that nests": lambda: (_depending("foo " + "(" * 500_000), lambda layer, thing: thing),
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS)
def test_bombs_cost_neither_memory_nor_time(tmp_path, make):
    path = write(tmp_path, *make())
    assert path.stat().st_size < 10 << 20
    said, grown, seconds = child(path)
    # a frame's largest window is 128 MiB, and a list may have millions of values
    assert said != "accepted" and grown < 300 and seconds < 30, (said, grown, seconds)


def test_a_large_package_takes_no_more_memory_than_a_small_one(tmp_path):
    blocks = [random.Random(number).randbytes(1 << 20) for number in range(8)] * 50
    hashed = hashlib.sha256()
    for block in blocks:
        hashed.update(block)
    size = len(blocks) << 20
    data = frame(claims(b"big", size), *blocks, bytes(1024))
    said, grown, _ = child(write(tmp_path, of_one_file(size, hashed.hexdigest()), in_part("pkg", data)))
    assert said == "accepted" and grown < 100, (said, grown)


def test_the_largest_sizes_are_what_is_documented(tmp_path):
    assert (LARGEST_INFO, LARGEST_PAYLOAD) == (64 << 20, 16 << 30)
    with pytest.raises(ValueError, match="4 GiB"):
        conda_archive.parts(io.BytesIO(), 4 << 30)
    made = of_one_file(17 << 30, digest(b""))
    with pytest.raises(DamagedPackageError, match=r"would unpack to 18,253\.6 MB"):
        inspect(write(tmp_path, made, in_part("pkg", random.Random(1).randbytes(20 << 20))))

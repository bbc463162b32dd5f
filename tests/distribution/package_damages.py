"""What can be done to a package, in every layer it is made of; and packages damaged by a seed."""

from __future__ import annotations

import contextlib
import copy
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from packed_by_hand import PLACEHOLDER, WIDE, Entry, Model, Stored, Zip, digest, packed, raw_frame, whole, zstd

# What a damage is given, and what it changes, differs from layer to layer. Each is tried alone and together with others.
Damage = Callable[..., Any]
LAYERS: dict[str, list[Damage]] = {name: [] for name in ("model", "text", "tar", "stream", "frame", "zip", "file")}


def of(layer: str) -> Callable[[Damage], Damage]:
    def add(damage: Damage) -> Damage:
        LAYERS[layer].append(damage)
        return damage

    return add


PATHS = [
    "../out", "/tmp/out", "./lib/a", "lib//a", "lib/a/", "lib/../a", "lib/./a", "", ".", "..", "lib", "lib/tool.txt/x",
    "bin/tool/x",
    "share/tool/up/x", "lib/libtool.so/x", "lib/libtool.so.1.2/x", "info/x", "info/index.json", "info", "conda-meta/x.json",
    "conda-meta/history", "conda-meta", "conda-metaX", "infoX", "CACHEDIR.TAG", ".trash/x", "__clobbers__/x", "a\\b",
    "a\\..\\b", "a\nb", "a\x7fb",
    "a\u2028b", "\u202ea", "a b", " a", "a ", "-rf", "~/a", "$HOME/a", "C:/a", "LIB/a", "Lib/libtool.so", "n" * 255,
    "n" * 256, "d/" * 400 + "x",
    "d/" * 520 + "x", "share/tool/u\u0308", "\U0001f600", "bin/tool-run", "bin/old-tool",
    "lib/python3.12/site-packages/tool/__init__.py",
    "site-packages", "python-scripts", "site-packages/../x", "python-scripts/tool-run", "Menu/x.json",
    "etc/conda/activate.d/x.sh",
]  # fmt: skip
TARGETS = [
    "/etc/passwd", "..", "../..", "../../..", "../../../x", ".", "", "up", "share/tool/up/..", "a/../../..", "libtool.so",
    "./libtool.so.1.2",
    "lib/libtool.so.1.2", "share/tool/same", "bin/tool", "../lib/libtool.so.1.2", "/", "//x", "a\nb", "a\\b", "x" * 1024,
    "x" * 5000, "\u00fc",
    "info/index.json", "share/tool/\u00fc",
]  # fmt: skip
SPECS = [
    "foo", "Foo", "foo 1", "foo ==1.0 h_0", "foo >=1,<2|3", "foo[version='>=1']", "foo[build=cuda*]", "__glibc >=2.17", "",
    " foo", "foo\n", "foo # x",
    "https://example.org/linux-64/foo-1-0.conda", "file:///foo-1-0.conda", "/foo-1-0.conda", "conda-forge::foo",
    "a/linux-64::foo", "x:foo",
    "foo[url='https://example.org/foo-1-0.conda']", "foo[md5=00000000000000000000000000000000]", "foo[subdir=noarch]",
    "foo[channel=x]",
    "foo[when='python >=3']", "foo[extras=[a]]", "foo[license=MIT]", "foo; if python", "foo@1", "foo*", "^foo$",
    "foo " + "(" * 400, "foo " + "1" * 600,
    "\u00fc", "foo[version='1", "foo=1=*=x", "-", "foo bar baz qux", "foo !=1.*", "foo ~=1.2", 1, None, [], {},
]  # fmt: skip
NAMES = [
    "Tool", "", "-", "a-b", "__tool", "_tool", "tool\n", "../tool", "a/b", "t\u00fc", "a" * 64, "a" * 129, ".tool", "tool.",
    "tool 1", 1, None,
    "nul\0", "tool_x.y", "a--b",
]  # fmt: skip
VERSIONS = [
    "1!2.0",
    "1.0-1",
    "",
    "1.0/2",
    "..",
    "1" * 300,
    "1.0a0.dev1+local",
    "x",
    "1.*",
    "1_0",
    "1.0\n",
    1,
    1.0,
    None,
    "1..0",
    "!1",
    "1!",
]
BUILDS = ["", "h1-0", "0", "../0", "h" * 63, "h" * 300, "h*", "h 0", "h/0", 0, None, "py312_0+x", "H_0"]
VALUES = [
    None, True, False, 0, 1, -1, 2**31, 2**53, 2**63, 2**64, 10**30, 1.5, "", "x", "\0", "\ud800", [], [[]], {}, {"a": 1},
    [1], ["x"], "0" * 64,
    "python", "generic", "linux-64", "noarch", "osx-64", "hardlink", "softlink", "directory", "text", "binary",
]  # fmt: skip


def _nodes(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document that holds a value: a container, and a key or a position."""
    waiting = [document]
    while waiting:
        node = waiting.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            yield node, key
            if isinstance(node[key], (dict, list)):
                waiting.append(node[key])


@of("model")
def value(chance: random.Random, model: Model) -> None:
    """One value becomes another."""
    name, document = chance.choice(list(model.documents().items()))
    node, key = chance.choice(list(_nodes(document)))
    node[key] = copy.deepcopy(chance.choice(VALUES))
    if name == "info/paths.json" and isinstance(document["paths"], list):
        model.paths = document["paths"]


@of("model")
def key(chance: random.Random, model: Model) -> None:
    """A key goes, or comes."""
    document = chance.choice(list(model.documents().values()))
    places = [(node, key) for node, key in _nodes(document) if isinstance(node, dict)]
    node, key = chance.choice(places)
    if chance.random() < 0.5:
        del node[key]
    else:
        known = [
            "noarch",
            "fn",
            "url",
            "channel",
            "sha256",
            "no_link",
            "prefix_placeholder",
            "file_mode",
            "extra_depends",
            "features",
            "arch",
        ]
        known += [
            "track_features",
            "python_site_packages_path",
            "flags",
            "license",
            "preferred_env",
            "offsets",
            "timestamp",
            "purls",
        ]
        node[chance.choice(known)] = copy.deepcopy(chance.choice([*VALUES, "../x", "lib/x"]))


@of("model")
def identity(chance: random.Random, model: Model) -> None:
    """Another name, version or build, in the file's own name, too."""
    part, values = chance.choice([("name", NAMES), ("version", VERSIONS), ("build", BUILDS)])
    model.index[part] = chance.choice(values)


@of("model")
def dependency(chance: random.Random, model: Model) -> None:
    where = chance.choice(["depends", "constrains", "run_exports"])
    spec = chance.choice(SPECS)
    if where == "run_exports":
        model.run_exports = {"weak": [spec]}
    else:
        model.index[where] = chance.choice([[spec], [*model.index[where], spec], spec])


@of("model")
def program(chance: random.Random, model: Model) -> None:
    """An entry point of a Python package."""
    points = [
        "../x = a:b",
        "x/y = a:b",
        ". = a:b",
        ".x = a:b",
        "tool = tool:main",
        "old-tool = a:b",
        "x = a",
        "x",
        "x = a:b; import os",
        1,
        "x y = a:b",
    ]
    model.link = {"noarch": {"type": "python", "entry_points": [chance.choice(points)]}, "package_metadata_version": 1}


@of("model")
def path(chance: random.Random, model: Model) -> None:
    """Another path, mostly in the list, too."""
    entry = chance.choice(model.payload)
    before, after = entry.name.decode(), chance.choice([*PATHS, chance.choice(model.payload).name.decode()])
    entry.name = after.encode()
    if chance.random() < 0.8:
        for one in model.paths:
            if isinstance(one, dict) and one.get("_path") == before:
                one["_path"] = after


@of("model")
def target(chance: random.Random, model: Model) -> None:
    entry = chance.choice([one for one in model.payload if one.kind in b"12"])
    entry.target = chance.choice(TARGETS).encode()


@of("model")
def link_first(chance: random.Random, model: Model) -> None:
    """A path below a link, whichever comes first."""
    extra = [Entry(b"deep", kind=b"2", target=chance.choice(TARGETS[:6]).encode(), mode=0o777), Entry(b"deep/file", b"x")]
    chance.shuffle(extra)
    place = chance.randrange(len(model.payload))
    model.payload[place:place] = extra
    model.paths += [
        {"_path": "deep", "path_type": "softlink"},
        {"_path": "deep/file", "path_type": "hardlink", "sha256": digest(b"x"), "size_in_bytes": 1},
    ]


@of("model")
def listing(chance: random.Random, model: Model) -> None:
    """An entry of the list twice, missing, of another type, with another content, or a folder."""
    one = chance.choice(model.paths)
    what = chance.randrange(6)
    if what == 0:
        model.paths.append(dict(one))
    elif what == 1:
        model.paths.remove(one)
    elif what == 2:
        one["path_type"] = chance.choice(["hardlink", "softlink", "directory", "HARDLINK", "windows_python_entry_point_script"])
    elif what == 3:
        one["sha256"] = digest(chance.choice([b"x", b"", b"umlaut"]))
    elif what == 4:
        one["size_in_bytes"] = chance.choice([0, 1, 6, 2**40, -1, None])
    else:
        model.paths.append({"_path": chance.choice(["empty", "share", "bin/tool"]), "path_type": "directory"})


@of("model")
def placeholder(chance: random.Random, model: Model) -> None:
    one = chance.choice(model.paths)
    text = chance.choice(["", "x", "/short", PLACEHOLDER, "/" + "p" * 79, "/" + "p" * 78, "a\nb", "\0", "/p" * 3000, 1, None])
    one |= {"prefix_placeholder": text, "file_mode": chance.choice(["text", "binary", "TEXT", None])}


@of("model")
def more_info(chance: random.Random, model: Model) -> None:
    """Files in ``info/`` that speak in place of others, or are not plain files."""
    name = chance.choice(
        [
            "repodata_record.json",
            "package_metadata.json",
            "link.json",
            "no_link",
            "has_prefix",
            "../x",
            "index.json",
            "x",
            "recipe/x",
        ]
    )
    kind = chance.choice([b"0", b"0", b"1", b"2", b"5"])
    entry = Entry(
        f"info/{name}".encode(),
        b"{}" if kind == b"0" else b"",
        kind,
        chance.choice(TARGETS).encode() if kind in b"12" else b"",
        0o755,
    )
    model.info.insert(chance.randrange(len(model.info) + 1), entry)


@of("text")
def text(chance: random.Random, data: bytes) -> bytes:
    """JSON that parsers take in different ways, or not at all."""
    depth = chance.choice([90, 120, 2000, 200_000])
    inserted = [
        b'"x": ' + b"[" * depth + b"]" * depth, b'"x": ' + b'{"a":' * depth + b"1" + b"}" * depth, b'"x": NaN', b'"x": 1e999',
        b'"x": 01',
        b'"x": ' + b"9" * 5000, b'"x": "\\ud800"', b'"x": "\\u0000"', b'"name": "other"', b'"paths": []', b'"x": 1, "x": 2',
        b'"x": "\xff"', b"// x\n",
        b'"x": -0', b'"x": 1.0e5', b'"x": tru', b'"x": [1,]',
    ]  # fmt: skip
    what = chance.randrange(7)
    if what < 3 and data.startswith(b"{"):
        return b"{" + chance.choice(inserted) + b", " + data[1:]
    return [
        b"\xef\xbb\xbf" + data, data.decode().encode("utf-16"), data + b" x", data[: chance.randrange(len(data))], b"null",
        b"[]", b"", b"\0" + data,
        data.replace(b'"', b"'"),
    ][chance.randrange(9)]  # fmt: skip


NUMBERS = [
    b"0000000\0", b"       \0", b"\0" * 8, b"0000644 ", b"00006440", b"0o00644\0", b"-000644\0", b"0_00644\0",
    b"\x80" + b"\0" * 6 + b"\1", b"\xff" * 8,
    b"0000644\x001", b"7777777\0", b"0009999\0", b" 644 \0\0\0",
]  # fmt: skip


@of("tar")
def number(chance: random.Random, entries: list[Entry]) -> None:
    """A field of a header that is a number, or should be."""
    entry = chance.choice(entries)
    start = chance.choice([100, 108, 116, 124, 136, 148, 329, 337])
    found = chance.choice(NUMBERS)
    entry.fields[start] = (
        found[:-1] + chance.choice([b"0000\0", b"\0" * 5]) if start in (124, 136) and chance.random() < 0.7 else found
    )


@of("tar")
def size(chance: random.Random, entries: list[Entry]) -> None:
    entry = chance.choice(entries)
    real = len(entry.data)
    claimed = chance.choice([0, real + 1, max(real - 1, 0), real + 512, 8**11 - 1, 2**33, -1])
    entry.fields[124] = b"%011o\0" % claimed if 0 <= claimed < 8**11 else b"\x80" + (claimed % 2**88).to_bytes(11, "big")


@of("tar")
def bits(chance: random.Random, entries: list[Entry]) -> None:
    """A few bytes of a header, with its checksum made right."""
    entry = chance.choice(entries)
    for _ in range(chance.randrange(1, 4)):
        entry.fields[chance.choice([*range(148), *range(156, 512)])] = bytes([chance.randrange(256)])


@of("tar")
def kind(chance: random.Random, entries: list[Entry]) -> None:
    chance.choice(entries).kind = bytes([chance.choice(b"\x000123456789ADKLMNSVXgxz")])


@of("tar")
def form(chance: random.Random, entries: list[Entry]) -> None:
    """The format's mark, permissions, padding, checksum."""
    entry = chance.choice(entries)
    what = chance.randrange(5)
    if what == 0:
        entry.magic = chance.choice([b"ustar  \0", b"ustar\x0000", b"\0" * 8, b"ustar\0\0\0", b"USTAR\x0000"])
    elif what == 1:
        entry.mode = chance.choice([0, 0o777, 0o4755, 0o2755, 0o1777, 0o222, 0o111, 0o444, 0o500])
    elif what == 2:
        entry.padding = b"x"
    elif what == 3:
        entry.checksum = chance.choice([1, -1, 256])
    else:
        entry.fields[345] = chance.choice([b"../..", b"/", b"share", b"\0x", b"x" * 155])


@of("tar")
def twice(chance: random.Random, entries: list[Entry]) -> None:
    entry = copy.deepcopy(chance.choice(entries))
    if chance.random() < 0.5:
        entry.data = entry.data + b"x"
    entries.insert(chance.randrange(len(entries) + 1), entry)


@of("tar")
def shuffled(chance: random.Random, entries: list[Entry]) -> None:
    chance.shuffle(entries)


@of("tar")
def gone(chance: random.Random, entries: list[Entry]) -> None:
    entries.remove(chance.choice(entries))


@of("tar")
def extended(chance: random.Random, entries: list[Entry]) -> None:
    """Headers in front of a member that say its name, its size and more, once or several times."""
    place = chance.randrange(len(entries))
    entry = entries[place]
    values = [
        "path",
        "linkpath",
        "size",
        "mtime",
        "uid",
        "hdrcharset",
        "GNU.sparse.major",
        "GNU.sparse.realsize",
        "SCHILY.xattr.user.x",
        "comment",
        "uname",
    ]

    def pax() -> bytes:
        key = chance.choice(values)
        text = {"path": chance.choice([entry.name.decode(errors="replace"), *PATHS]), "linkpath": chance.choice(TARGETS)}.get(
            key, chance.choice([str(len(entry.data)), "0", "1767225600.5", "nan", "1e999", "-1", "x", ""])
        )
        body = b" " + key.encode() + b"=" + text.encode() + b"\n"
        length = next(n for n in range(len(body), len(body) + 9) if len(str(n)) + len(body) == n)
        return b"%d" % (length + chance.choice([0, 0, 0, 0, 0, 1, -1])) + body

    before = []
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        made = chance.choice([b"x", b"x", b"g", b"L", b"L", b"K", b"X", b"S"])
        if made in b"xgX":
            data = b"".join(pax() for _ in range(chance.choice([1, 1, 2])))
        else:
            data = chance.choice(
                [entry.name, entry.name, b"d/" * 3000 + b"x", b"a\0b", *(one.encode() for one in PATHS)]
            ) + chance.choice([b"\0", b"", b"\0\0"])
        before.append(
            Entry(
                b"././@LongLink" if made in b"LK" else b"././@PaxHeader",
                data,
                made,
                magic=b"ustar  \0" if made in b"LK" else b"ustar\x0000",
            )
        )
    entries[place:place] = before


@of("stream")
def ending(chance: random.Random, data: bytes) -> bytes:
    """How a tar ends, and what comes behind."""
    body = data.rstrip(b"\0")
    body += b"\0" * (-len(body) % 512)
    other = Entry(b"late", b"x").packed()
    return chance.choice([
        body, body + b"\0" * 512, body + b"\0" * 1024, body + b"\0" * 512 + other + b"\0" * 1024, data + other, data + b"x",
        data[:-1], data + b"\0" * (3 << 20),
        body[: chance.randrange(len(body))], b"\0" * 1024, b"", data + data, data[512:],
    ])  # fmt: skip


@of("stream")
def bomb(chance: random.Random, data: bytes) -> bytes:
    """Much out of little: zeros, names, headers."""
    name = Entry(b"././@LongLink", kind=b"L", magic=b"ustar  \0", fields={124: b"%011o\0" % (8 << 20)}).packed()
    return chance.choice([
        lambda: data + b"\0" * (80 << 20), lambda: name + b"a" * (8 << 20) + data,
        lambda: b"".join(Entry(b"folder%d/" % number, kind=b"5", mode=0o755).packed() for number in range(999)) + data,
        lambda: Entry(b"big", fields={124: b"%011o\0" % (80 << 20)}).packed() + b"\0" * (80 << 20) + data,
    ])()  # fmt: skip


@of("frame")
def frame(chance: random.Random, packed: bytes) -> bytes:
    """Several frames, frames that are skipped, other versions, too large a window, an end that is missing or is none."""
    data = zstd.decompress(packed)
    cut = chance.randrange(len(data) + 1)
    skipped = b"\x50\x2a\x4d\x18" + struct.pack("<L", 3) + b"abc"
    parameter = zstd.CompressionParameter
    options = {parameter.checksum_flag: chance.randrange(2), parameter.content_size_flag: chance.randrange(2)}
    return chance.choice([
        lambda: zstd.compress(data[:cut]) + zstd.compress(data[cut:]), lambda: skipped + packed, lambda: packed + skipped,
        lambda: packed + b"x",
        lambda: packed + b"\0" * 512, lambda: packed[:-1], lambda: packed[: chance.randrange(len(packed))],
        lambda: packed + packed,
        lambda: zstd.compress(data, options=options), lambda: zstd.compress(data, level=chance.randrange(1, 20)),
        lambda: zlib.compress(data), lambda: data,
        lambda: b"\x28\xb5\x2f\xfd\x00" + bytes([chance.choice([0x58, 0x88, 0xA0, 0xF8])]) + packed[6:], lambda: b"",
        lambda: packed + zstd.compress(b""),
        lambda: raw_frame(data, 0x88), lambda: raw_frame(data, 0x90), lambda: raw_frame(data, 0x50, last=False),
        lambda: raw_frame(data, 0x50),
    ])()  # fmt: skip


@of("frame")
def flipped(chance: random.Random, packed: bytes) -> bytes:
    return flip(chance, packed)


@of("zip")
def wide(chance: random.Random, made: Zip) -> None:
    """Sizes of 64 bits, right or wrong, in one header or both."""
    one = chance.choice(made.members)
    size = len(one.data)
    first, second = chance.choice([(size, size), (size, size), (size + 1, size), (size, 2**40), (0, 0)])
    changed = {"packed": 0xFFFFFFFF, "size": 0xFFFFFFFF, "extra": WIDE.pack(1, 16, first, second), "needed": 45}
    for where in chance.choice([(one.local,), (one.central,), (one.local, one.central), (one.local, one.central)]):
        where |= changed
    one.local["needed"] = one.central["needed"] = 45


@of("zip")
def headers(chance: random.Random, made: Zip) -> None:
    """A field of one header, or of both."""
    one = chance.choice(made.members)
    size = len(one.data)
    changed = chance.choice([
        {"flags": 1}, {"flags": 8}, {"flags": 0x800}, {"flags": 0x2000}, {"method": 8}, {"method": 93}, {"crc": 0},
        {"size": size + 1}, {"packed": size + 1},
        {"size": 0, "packed": 0}, {"name": one.name + b"\0x"}, {"name": one.name.upper()}, {"name": b"../" + one.name},
        {"name": one.name[:-1] + b"/"},
        {"name": b"t\xfc"}, {"extra": b"UT\5\0\1\0\0\0\0"}, {"extra": b"x"}, {"needed": 10}, {"needed": 99}, {"time": 7},
        {"date": 0},
        {"size": size - 1, "packed": size - 1}, {"extra": struct.pack("<2H", 0x7075, 5) + b"\1" + bytes(4)},
    ])  # fmt: skip
    for where in chance.choice([(one.local,), (one.central,), (one.local, one.central), (one.local, one.central)]):
        where |= changed


@of("zip")
def directory(chance: random.Random, made: Zip) -> None:
    """What the directory alone says."""
    one = chance.choice(made.members)
    what = chance.randrange(4)
    if what == 0:
        one.central |= chance.choice(
            [
                {"external": 0o120777 << 16},
                {"external": 0x10},
                {"note": b"x"},
                {"disk": 1},
                {"internal": 1},
                {"offset": 0},
                {"offset": 7},
            ]
        )
    elif what == 1:
        made.end |= chance.choice(
            [
                {"note": b"x"},
                {"note": b"PK\5\6" + bytes(18)},
                {"count": 2},
                {"here": 2},
                {"disk": 1},
                {"first": 1},
                {"length": 0},
                {"offset": 0},
            ]
        )
    elif what == 2:
        made.listed = chance.choice([[0, 1], [2, 1, 0], [0, 1, 2, 2], [0, 0, 1], []])
    else:
        setattr(
            made,
            chance.choice(["before", "directory_gap", "after"]),
            chance.choice([b"x", b"MZ" * 30, b"\0" * 22, b"PK\3\4" + bytes(26)]),
        )


@of("zip")
def more_members(chance: random.Random, made: Zip) -> None:
    """A member too many, of a name that some readers look for; or another order, or one that is missing."""
    names = [one.name for one in made.members]
    what = chance.randrange(4)
    if what == 0:
        chance.shuffle(made.members)
    elif what == 1:
        made.members.remove(chance.choice(made.members))
    elif what == 2:
        chance.choice(made.members).between = chance.choice([b"x", b"\0" * 30])
    else:
        one = chance.choice(made.members[1:] or made.members)
        name = chance.choice(
            [
                *names,
                one.name + b".x",
                one.name.replace(b".zst", b".bz2"),
                b"info-other.tar.zst",
                b"pkg-.tar.zst",
                b"x/" + one.name,
                b"x",
            ]
        )
        made.members.insert(chance.randrange(len(made.members) + 1), Stored(name, chance.choice([one.data, b"", b"x"])))


@of("zip")
def description(chance: random.Random, made: Zip) -> None:
    """What metadata.json says."""
    for one in made.members:
        if one.name == b"metadata.json":
            one.data = chance.choice([
                b"", b"{}", b"[]", b"null", b'{"conda_pkg_format_version": 3}', b'{"conda_pkg_format_version": "2"}',
                b'{"conda_pkg_format_version": 2.0}',
                b'{"conda_pkg_format_version": 2, "x": 1}', b'{"conda_pkg_format_version": 1, "conda_pkg_format_version": 2}',
                b"[" * 100_000, b" " * 10_000_000,
            ])  # fmt: skip


@of("file")
def cut(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data))]


@of("file")
def flip(chance: random.Random, data: bytes) -> bytes:
    """Bits, or a byte more or less."""
    made = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 3, 20])):
        if made:
            made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
    place = chance.randrange(len(made) + 1)
    return bytes(chance.choice([made, made, made, made[:place] + b"x" + made[place:], made[:place] + made[place + 1 :]]))


@of("file")
def splice(chance: random.Random, data: bytes) -> bytes:
    start, end = sorted(chance.randrange(len(data)) for _ in range(2))
    return chance.choice(
        [data + data, data[:end] + data[start:], data[:start] + data[end:], data + b"\0" * 100, b"#!/bin/sh\n" + data]
    )


def damaged(seed: int) -> tuple[str, bytes, list[str]]:
    """A package by its seed: the name of its file, its bytes, and what was done to it."""
    chance = random.Random(seed)
    chosen: list[tuple[str, Damage]] = []
    for _ in range(chance.choice([0] + [1] * 25 + [2] * 6)):
        layer = chance.choice([*LAYERS, "model", "model", "tar"])
        chosen.append((layer, chance.choice(LAYERS[layer])))

    def change(layer: str, thing: Any) -> Any:
        mine = [damage for where, damage in chosen if where == layer]
        # of a mapping one value, and of a list of damages each
        key = chance.choice(list(thing)) if isinstance(thing, dict) else None
        for damage in mine:
            # another damage may have left this one nothing to damage
            with contextlib.suppress(*([Exception] if len(chosen) > 1 else [])):
                made = damage(chance, thing if key is None else thing[key])
                if key is not None:
                    thing[key] = thing[key] if made is None else made
                elif made is not None:
                    thing = made
        return thing

    model = change("model", whole(chance))
    stem = model.stem
    if re.search(r"[\0/]", stem) or len(stem) > 200 or not stem.isprintable():
        stem = "tool-1.0-h1_0"
    return f"{stem}.conda", packed(model, change, stem), [damage.__name__ for _, damage in chosen]

"""What can be done to a package, in every layer it is made of; and packages damaged by a seed."""

from __future__ import annotations

import contextlib
import copy
import random
import re
import struct
import zlib
from typing import Any

from document_damages import LAYERS, PATHS, TARGETS, Damage, of
from packed_by_hand import WIDE, Entry, Stored, Zip, packed, raw_frame, whole, zstd

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

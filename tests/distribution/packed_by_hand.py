"""Packages packed by hand, byte by byte, so that a test can damage any of it: a tar's header, a frame, the zip's directory."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


PLACEHOLDER = "/where/it/was/built" * 12
WIDE = struct.Struct("<2H2Q")
"""The extra field of a zip that holds sizes of 64 bits."""


@dataclass
class Entry:
    """An entry of a tar, of which a damage may change any field; ``fields`` are bytes at positions of the header."""

    name: bytes
    data: bytes = b""
    kind: bytes = b"0"
    target: bytes = b""
    mode: int = 0o644
    magic: bytes = b"ustar\x0000"
    fields: dict[int, bytes] = field(default_factory=dict)
    checksum: int = 0
    padding: bytes = b"\0"

    def packed(self) -> bytes:
        name, prefix, before = self.name, b"", b""
        if len(name) > 100:
            cut = name.rfind(b"/", 0, 155)
            name, prefix = name[cut + 1 :], name[: max(cut, 0)]
            if len(name) > 100:
                name, prefix = self.name, b""
                before = Entry(b"././@LongLink", self.name + b"\0", b"L", magic=b"ustar  \0").packed()
        if len(self.target) > 100:
            before += Entry(b"././@LongLink", self.target + b"\0", b"K", magic=b"ustar  \0").packed()
        header = bytearray(512)
        for start, value in {
            0: name[:100], 100: b"%07o\0" % self.mode, 108: b"0000000\0" * 2, 124: b"%011o\0" % len(self.data),
            136: b"14524770400\0", 148: b" " * 8, 156: self.kind, 157: self.target[:100], 257: self.magic, 329: b"0000000\0" * 2,
            345: prefix, **self.fields,
        }.items():  # fmt: skip
            header[start : start + len(value)] = value
        header = header[:512]
        if 148 not in self.fields:
            header[148:156] = b"%06o\0 " % (sum(header) + self.checksum)
        return before + bytes(header) + self.data + self.padding * (-len(self.data) % 512)


def claims(name: bytes, size: int, kind: bytes = b"0") -> bytes:
    """A header that says that ``size`` bytes follow, fewer than 8 GiB."""
    return Entry(name, kind=kind, fields={124: b"%011o\0" % size}).packed()


@dataclass
class Model:
    """A package before it is packed. ``texts`` stand in place of a document, where they are given."""

    index: dict[str, Any]
    paths: list[dict[str, Any]]
    about: dict[str, Any]
    link: dict[str, Any] | None
    run_exports: dict[str, Any] | None
    payload: list[Entry]
    info: list[Entry] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)
    metadata: Any = None

    @property
    def stem(self) -> str:
        return "-".join(str(self.index.get(key)) for key in ("name", "version", "build"))

    def documents(self) -> dict[str, Any]:
        found = {"index": self.index, "paths": {"paths": self.paths, "paths_version": 1}, "about": self.about}
        if self.link is not None:
            found["link"] = self.link
        if self.run_exports is not None:
            found["run_exports"] = self.run_exports
        return {f"info/{name}.json": document for name, document in found.items()}


def whole(chance: random.Random) -> Model:
    """A package without fault, with something of everything that packages have."""
    python = chance.random() < 0.4
    files = {
        "lib/libtool.so.1.2": b"\x7fELF" * chance.randrange(1, 400), "bin/tool": b"#!/bin/sh\nexit 0\n",
        "share/tool/empty": b"", "share/tool/\u00fc": b"umlaut", "share/tool/here": f"prefix={PLACEHOLDER}\n".encode(),
    }  # fmt: skip
    if python:
        files |= {"site-packages/tool/__init__.py": b"x = 1\n", "python-scripts/old-tool": b"#!/bin/sh\n"}
    links = {"lib/libtool.so": "libtool.so.1.2", "share/tool/up": "../../lib", "share/dangling": "nowhere"}
    entries, paths = [], []
    for path, data in files.items():
        entries.append(Entry(path.encode(), data, mode=0o755 if path.startswith("bin/") else 0o644))
        described = {"_path": path, "path_type": "hardlink", "sha256": digest(data), "size_in_bytes": len(data)}
        if path.endswith("here"):
            described |= {"file_mode": "text", "prefix_placeholder": PLACEHOLDER}
        paths.append(described)
    for path, target in {"share/tool/same": "share/tool/\u00fc", "bin/same": "bin/tool"}.items():
        data = files[target]
        entries.append(Entry(path.encode(), kind=b"1", target=target.encode(), mode=0o755 if path.startswith("bin/") else 0o644))
        paths.append({"_path": path, "path_type": "hardlink", "sha256": digest(data), "size_in_bytes": len(data)})
    for path, target in links.items():
        entries.append(Entry(path.encode(), kind=b"2", target=target.encode(), mode=0o777))
        paths.append({"_path": path, "path_type": "softlink", "sha256": digest(b""), "size_in_bytes": 0})
    if chance.random() < 0.5:
        entries.insert(0, Entry(b"share/", kind=b"5", mode=0o755))
    index = {
        "name": "tool", "version": "1.0", "build": "h1_0", "build_number": 0, "subdir": "noarch" if python else "linux-64",
        "depends": ["python >=3.10", "libfoo 1.2.* h*_0"], "constrains": ["bar <2"], "timestamp": 1_767_225_600_000,
    }  # fmt: skip
    link = None
    if python:
        index["noarch"] = "python"
        link = {"noarch": {"type": "python", "entry_points": ["tool-run = tool:main"]}, "package_metadata_version": 1}
    exports = {"weak": ["tool >=1.0,<2.0a0"]} if chance.random() < 0.5 else None
    info = [Entry(b"info/recipe/meta.yaml", b"package:\n"), Entry(b"info/files", "\n".join(files).encode())]
    about = {"extra": {"llama_cpp_commit": "0" * 40}, "summary": "\u00fc"}
    return Model(index, paths, about, link, exports, entries, info)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Stored:
    """A member of the zip; ``local`` and ``central`` are changed fields of its two headers, by name."""

    name: bytes
    data: bytes
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)
    between: bytes = b""


@dataclass
class Zip:
    members: list[Stored]
    end: dict[str, Any] = field(default_factory=dict)
    before: bytes = b""
    directory_gap: bytes = b""
    after: bytes = b""
    listed: list[int] | None = None

    def packed(self) -> bytes:
        made, offsets, directory = bytearray(self.before), [], b""
        for one in self.members:
            made += one.between
            offsets.append(len(made))
            made += (
                self._header(
                    one, one.local, "<4s5H3L2H", b"PK\3\4", ("needed", "flags", "method", "time", "date", "crc", "packed", "size")
                )
                + one.data
            )
        made += self.directory_gap
        for number in self.listed if self.listed is not None else range(len(self.members)):
            one, made_by = self.members[number], {"made": 20 | 3 << 8, "offset": offsets[number], **self.members[number].central}
            directory += self._header(
                one,
                made_by,
                "<4s6H3L5H2L",
                b"PK\1\2",
                ("made", "needed", "flags", "method", "time", "date", "crc", "packed", "size"),
            )
        count = len(self.members) if self.listed is None else len(self.listed)
        end = {
            "disk": 0,
            "first": 0,
            "here": count,
            "count": count,
            "length": len(directory),
            "offset": len(made),
            "note": b"",
            **self.end,
        }
        made += directory
        made += struct.pack(
            "<4s4H2LH", b"PK\5\6", *(end[key] for key in ("disk", "first", "here", "count", "length", "offset")), len(end["note"])
        )
        return bytes(made) + end["note"] + self.after

    def _header(self, one: Stored, changed: dict[str, Any], form: str, mark: bytes, keys: tuple[str, ...]) -> bytes:
        values = {
            "needed": 20, "flags": 0, "method": 0, "time": 0, "date": 33, "crc": zlib.crc32(one.data),
            "packed": len(one.data), "size": len(one.data),
            "name": one.name, "extra": b"", "note": b"", "disk": 0, "internal": 0, "external": 0o644 << 16, "offset": 0,
            **changed,
        }  # fmt: skip
        numbers = [values[key] & 0xFFFFFFFF for key in keys] + [len(values["name"]), len(values["extra"])]
        tail = values["name"] + values["extra"]
        if mark == b"PK\1\2":
            numbers += [len(values["note"]), values["disk"], values["internal"], values["external"], values["offset"]]
            tail += values["note"]
        return struct.pack(form, mark, *numbers) + tail


def raw_frame(data: bytes, window: int, last: bool = True) -> bytes:
    """A frame that stores data as it is; ``window`` as in RFC 8878, 0x50 is 1 MiB, 0x88 128 MiB, 0x90 256 MiB."""
    made = b"\x28\xb5\x2f\xfd\x00" + bytes([window])
    blocks = [data[start : start + (1 << 17)] for start in range(0, len(data), 1 << 17)] or [b""]
    for count, block in enumerate(blocks, 1):
        made += (len(block) << 3 | (last and count == len(blocks))).to_bytes(3, "little") + block
    return made


def packed(model: Model, change: Callable[[str, Any], Any] = lambda layer, thing: thing, stem: str = "") -> bytes:
    """The bytes of a package; ``change`` is given what each layer is made of, and returns what it is to be."""
    texts = change("text", {name: json.dumps(document).encode() for name, document in model.documents().items()})
    info = [*(Entry(name.encode(), text) for name, text in texts.items()), *model.info]
    tars = change("tar", {"pkg": model.payload, "info": info})
    streams = change("stream", {name: b"".join(entry.packed() for entry in tar) + b"\0" * 1024 for name, tar in tars.items()})
    frames = change("frame", {name: zstd.compress(stream, level=1) for name, stream in streams.items()})
    parts = [Stored(f"{name}-{stem or model.stem}.tar.zst".encode(), frame) for name, frame in frames.items()]
    return change("file", change("zip", Zip([Stored(b"metadata.json", b'{"conda_pkg_format_version": 2}'), *parts])).packed())


def model(python: bool = False) -> Model:
    """A package without fault, always the same."""
    seeds = (random.Random(seed) for seed in range(100))
    return next(made for chance in seeds if ((made := whole(chance)).link is not None) == python)


def write(folder: Path, made: Model, change: Callable[[str, Any], Any] = lambda layer, thing: thing) -> Path:
    path = folder / f"{made.stem}.conda"
    path.write_bytes(packed(made, change))
    return path


def at(layer: str, damage: Callable[[Any], Any]) -> Callable[[str, Any], Any]:
    """Change what a package is made of in one layer, in place or by what is returned."""

    def change(where: str, thing: Any) -> Any:
        return (damage(thing) or thing) if where == layer else thing

    return change


def entry(made: Model, path: str) -> tuple[Entry, dict[str, Any]]:
    """A member of the payload, and what the list says of it."""
    return next(one for one in made.payload if one.name == path.encode()), next(one for one in made.paths if one["_path"] == path)


def add(made: Model, path: str, data: bytes = b"x", kind: bytes = b"0", target: str = "", listed: str = "hardlink") -> Model:
    made.payload.append(Entry(path.encode(), data if kind == b"0" else b"", kind, target.encode(), 0o755))
    made.paths.append({"_path": path, "path_type": listed, "sha256": digest(data), "size_in_bytes": len(data)})
    return made


def read(path: Path) -> dict[str, bytes]:
    """The files of a package that ``inspect`` shows."""
    from distribution.channel.package_file import inspect

    found: dict[str, bytes] = {}
    inspect(path, lambda name, blocks: found.update({name: b"".join(blocks)}))
    return found

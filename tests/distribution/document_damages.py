"""What can be done to what a package says about itself: its documents, before they are packed."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

from packed_by_hand import PLACEHOLDER, Entry, Model, digest

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

"""Damage, chosen by a seeded generator: to files, to documents of every kind, to packages, arguments and the environment.

``damage_setting`` has what is damaged, and ``damage_run`` runs it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import re
import shutil
import socket
import stat
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from conda_packages import zstandard

DEEP = 100_000
RAW = "@raw-{}@"


# files ----------------------------------------------------------------------------------------------------------------


def _content(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, random.Random], None]:
    def damage(path: Path, rng: random.Random) -> None:
        path = path.resolve()
        data = change(path.read_bytes(), rng)
        # a hard link into another generation stays as it is
        path.unlink()
        path.write_bytes(data)

    return damage


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 3, 30))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _replaced(make: Callable[[Path, random.Random], None]) -> Callable[[Path, random.Random], None]:
    def damage(path: Path, rng: random.Random) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        make(path, rng)

    return damage


def _folder(path: Path, rng: random.Random) -> None:
    path.mkdir()
    if rng.random() < 0.5:
        (path / "file").write_text("x")


def _socket(path: Path, rng: random.Random) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        # the path of a socket may have 107 bytes
        before = os.getcwd()
        os.chdir(path.parent)
        try:
            made.bind("s-")
            os.rename("s-", path.name)
        finally:
            os.chdir(before)


def _device(path: Path, rng: random.Random) -> None:
    minor = rng.choice((3, 5, 7, 9))  # null, zero, full, urandom
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, minor))
    except OSError:
        path.symlink_to({3: "/dev/null", 5: "/dev/zero", 7: "/dev/full", 9: "/dev/urandom"}[minor])


def _sparse(path: Path, rng: random.Random) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _loop(path: Path, rng: random.Random) -> None:
    path.symlink_to(path.name)


def _unreadable(path: Path, rng: random.Random) -> None:
    # for root it stays readable, unless the run is somebody else's
    path.chmod(0)


FILE_DAMAGE: dict[str, Callable[[Path, random.Random], None]] = {
    "truncated": _content(lambda data, rng: data[: rng.randrange(len(data) + 1)]),
    "tail cut": _content(lambda data, rng: data[: -rng.randint(1, 64)]),
    "flipped": _content(_flip),
    "empty": _content(lambda data, rng: b""),
    "zeros": _content(lambda data, rng: bytes(len(data))),
    "random": _content(lambda data, rng: rng.randbytes(len(data))),
    "appended": _content(lambda data, rng: data + rng.choice((b"\0", b"x" * 5000, data))),
    "not UTF-8": _content(lambda data, rng: data.replace(b"e", b"\xff", 1) + b"\xe4\xc3"),
    "latin-1": _content(lambda data, rng: "# ä ö\n".encode("latin-1") + data),
    "UTF-16": _content(lambda data, rng: data.decode("latin-1").encode("utf-16")),
    "BOM": _content(lambda data, rng: b"\xef\xbb\xbf" + data),
    "NULs": _content(lambda data, rng: data.replace(b"a", b"\0", rng.choice((1, 100)))),
    "CRLF": _content(lambda data, rng: data.replace(b"\n", b"\r\n")),
    "one long line": _content(lambda data, rng: data.replace(b"\n", b"/") * 50),
    "missing": _replaced(lambda path, rng: None),
    "a folder": _replaced(_folder),
    "a fifo": _replaced(lambda path, rng: os.mkfifo(path)),
    "a socket": _replaced(_socket),
    "a device": _replaced(_device),
    "a dangling link": _replaced(lambda path, rng: path.symlink_to("nowhere")),
    "a link loop": _replaced(_loop),
    "a link to a folder": _replaced(lambda path, rng: path.symlink_to("/proc/self/fd")),
    "a huge sparse file": _replaced(_sparse),
    "unreadable": _unreadable,
}
FOLDER_DAMAGE = {name: FILE_DAMAGE[name] for name in (
    "missing", "a folder", "a fifo", "a socket", "a device", "a dangling link", "a link loop", "a link to a folder", "unreadable",
)} | {
    "a file": _replaced(lambda path, rng: path.write_text("x") and None),
    "read-only": lambda path, rng: path.chmod(0o555),
}  # fmt: skip


# documents ------------------------------------------------------------------------------------------------------------

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**63, 2**64, 10**30, 1.5, "", " ", "\n", "x", "x" * 300, "x" * 70_000, [], {}, [None], [[]],
    {"": ""}, {"a": 1}, ["x"], "../../../etc/passwd", "/etc/passwd", "a/../b", "..", ".", "-x", "--option", "\0", "\ud800",
    "\x1b[31m",
    "é" * 50, "0" * 40, "0" * 64, "f" * 64, "https://example.invalid/x.conda", "file:///etc/passwd", "$(touch pwned)", "*",
    "%s{}",
    "2026-99-99", "1" * 5000, ["a"] * 1000, "a\nb", "\u202e", "NaN",
)  # fmt: skip
RAW_JSON = (
    "1e999", "-1e999", "NaN", "Infinity", "9" * 5000, "1" + "0" * 400, "[" * DEEP, "[" * DEEP + "]" * DEEP, '{"a":' * DEEP,
    "'x'", "nul",
    "[1,]", '"\\ud800"', '"\\u0000"', '{"a": 1, "a": 2}', "0x10", "1_000", "+1", "-", '"', "\\", "/* x */ 1", "",
)  # fmt: skip
RAW_YAML = (
    *(one for one in RAW_JSON if "\0" not in one), "*unknown", "&a [*a]", "!!python/object/apply:os.system [ls]", "!!int x",
    "!!float ''",
    "!!timestamp x", "!!binary '*'", "!!bool x", "!!set [a]", "!!omap [a]", "!!null x", "!odd x", "? [a] : b", "2026-99-99",
    ".inf", ".nan",
    "~", "<<: [1]", "- - - - -", "|", ">", "@x", "`x", "%x", "{", "}", "a: b: c", "0o9", "1:60:99", "\t",
)  # fmt: skip
RAW_TOML = (
    "1e999", "nan", "inf", "9" * 5000, "[" * DEEP, "[" * 5000 + "]" * 5000, "{" * 500, "{a={}}", "''", '"""', "true",
    "2026-99-99",
    "2026-01-01", "0x", "1__0", '"\\ud800"', '"\\u0000"', '"\\q"', "[]", "[[]]", "", "=", '"x', "[1, 'a', {}]", "-",
    '"../../x"', '"-x"',
    '"' + "x" * 70_000 + '"', '"a\\nb"',
)  # fmt: skip


def _nodes(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all nodes of a document, its own first."""
    yield path
    children = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for key, child in children:
        yield from _nodes(child, (*path, key))


def _set(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return document


def damage_document(document: Any, rng: random.Random, raw: tuple[str, ...]) -> tuple[Any, str]:
    """Change a node or several; a text in the result that is named ``RAW`` stands for something that is no value."""
    inserted = ""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        paths = list(_nodes(document))
        path = rng.choice(paths)
        kind = rng.random()
        if kind < 0.5:
            document = _set(document, path, rng.choice(ODD_VALUES))
        elif kind < 0.7 and not inserted:
            inserted = rng.choice(raw)
            document = _set(document, path, RAW)
        elif kind < 0.85 and path:
            parent = document
            for key in path[:-1]:
                parent = parent[key]
            del parent[path[-1]]
        else:
            target = document
            for key in path:
                target = target[key]
            if isinstance(target, dict):
                target[rng.choice(("", "odd", "a/b", "../x", "\n", "x" * 300))] = rng.choice(ODD_VALUES)
            elif isinstance(target, list):
                target.insert(0, rng.choice(ODD_VALUES))
            else:
                document = _set(document, path, [target])
    return document, inserted


def _encode(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON document with other types, numbers and keys than it should have, or no JSON any more."""
    document, inserted = damage_document(json.loads(data), rng, RAW_JSON)
    text = json.dumps(document, indent=rng.choice((None, 1)))
    if rng.random() < 0.1:
        # a key twice
        text = re.sub(r'("[^"]+": [^\n]+,?)', r"\1, \1", text, count=1)
    return _encode(text.replace(json.dumps(RAW), inserted))


def damage_yaml(data: bytes, rng: random.Random) -> bytes:
    """The same for YAML, with aliases that stand for a lot."""
    if rng.random() < 0.15:
        levels = "\n".join(f"l{number}: &l{number} [{', '.join([f'*l{number - 1}'] * 9)}]" for number in range(1, 12))
        merges = "\n".join(f"m{number}: &m{number} {{<<: [{', '.join([f'*m{number - 1}'] * 9)}]}}" for number in range(1, 12))
        bomb = rng.choice((f"l0: &l0 [x]\n{levels}\n", f"m0: &m0 {{x: 1}}\n{merges}\n"))
        return bomb.encode() + data if rng.random() < 0.5 else data + bomb.encode()
    text = data.decode()
    if rng.random() < 0.5:
        # in the lines as they are, comments included
        lines = text.splitlines()
        number = rng.randrange(len(lines))
        odd = rng.choice((*RAW_YAML, *(str(one) for one in ODD_VALUES)))
        indent = lines[number][: len(lines[number]) - len(lines[number].lstrip())]
        lines[number] = rng.choice(
            (f"{indent}- {odd}", f"{indent}{odd}", f"{lines[number]} {odd}", f"{indent}key: {odd}", lines[number] * 2)
        )
        return _encode("\n".join(lines) + "\n")
    document, inserted = damage_document(_loaded(text), rng, RAW_YAML)
    try:
        text = yaml.safe_dump(document, allow_unicode=True)
    except (yaml.YAMLError, UnicodeError):
        text = json.dumps(document)
    return _encode(text.replace(RAW, inserted))


def _loaded(text: str) -> Any:
    """ValueError for one that was damaged before: it may be no YAML any more, and its aliases may stand for a lot."""
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("it has aliases")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None


def damage_toml(data: bytes, rng: random.Random) -> bytes:
    """The same for TOML, line by line."""
    lines = data.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2))):
        number = rng.choice([number for number, line in enumerate(lines) if line.strip()] or [0])
        key = lines[number].partition("=")[0].strip() or "odd"
        lines[number] = rng.choice(
            (f"{key} = {rng.choice(RAW_TOML)}",
            f"{key} = {json.dumps(rng.choice([one for one in ODD_VALUES if one is not None]))}",
             "", lines[number] * 2, f"{lines[number]}\n{lines[number]}", f"odd = 1\n{lines[number]}", f"[{key}]", f"[[{key}]]",
             f"{key}.a.b.c = 1", ".".join("a" * 5000) + " = 1")
        )  # fmt: skip
    return _encode("\n".join(lines) + "\n")


def damage_lines(data: bytes, rng: random.Random) -> bytes:
    """A text of lines (a lock, a list, a patch) with some that are odd, long, gone or there twice."""
    lines = data.decode("latin-1").splitlines()
    for _ in range(rng.choice((1, 1, 3))):
        number = rng.randrange(len(lines)) if lines else 0
        line = lines[number] if lines else ""
        middle = rng.randrange(len(line) + 1)
        odd = rng.choice([one for one in ODD_VALUES if isinstance(one, str)])
        made = rng.choice(
            (odd, line[:middle] + odd + line[middle:], line[:middle], line[middle:], line * 2, "/" * 200_000, line + "#" + odd,
             line.replace("file://", rng.choice(("http://[::1", "http://", "ftp://", "", "//", "file://host",
             "HTTP://x:99999/"))),
             line.replace("/", odd, 1), line.upper(), "\0", "@EXPLICIT", "../../" + line)
        )  # fmt: skip
        lines[number : number + rng.choice((0, 1, 1, 1))] = [made]
    if rng.random() < 0.03:
        lines += lines[-1:] * 20_000
    return "\n".join(lines).encode("utf-8", errors="surrogatepass") + b"\n"


DOCUMENT_DAMAGE = {".json": damage_json, ".yml": damage_yaml, ".toml": damage_toml}


# archives -------------------------------------------------------------------------------------------------------------


def _odd_member(name: str, rng: random.Random) -> tarfile.TarInfo:
    kinds = (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
        tarfile.CONTTYPE,
        b"Z",
    )
    odd_names = (name, "../../escaped", "/escaped", f"{name}/below", f"{name}/../x", "a" * 300, "", ".", "./" + name,
    name + "\udcff", name + "\n",
                 "/".join("d" * 1200), f"{name}/" + "/".join("d" * 200))  # fmt: skip
    member = tarfile.TarInfo(rng.choice(odd_names))
    member.type = rng.choice((tarfile.REGTYPE, *kinds))
    member.linkname = rng.choice(("", name, "/etc/passwd", "../../..", "nowhere", member.name, "x" * 3000))
    member.mode = rng.choice((0o644, 0, 0o7777))
    member.mtime = rng.choice((0, -1, 2**40))
    if rng.random() < 0.3:
        member.pax_headers = {rng.choice(("path", "size", "linkpath", "GNU.sparse.map", "GNU.sparse.size", "mtime",
        "x")): rng.choice(
            ("", "x", "-1", "9" * 30, "../../escaped", "1,2,3", "\udcff"))}  # fmt: skip
    return member


def damage_tar(data: bytes, rng: random.Random) -> bytes:
    """A tar file, compressed by gzip or not, with members changed, added, there twice, out of order; or cut in its middle."""
    plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        members = [(member, archive.extractfile(member).read() if member.isreg() else b"") for member in archive]
    for _ in range(rng.choice((1, 1, 3))):
        number = rng.randrange(len(members))
        member, content = members[number]
        what = rng.randrange(8)
        if what == 0:
            del members[number]
        elif what == 1:
            members.insert(rng.randrange(len(members) + 1), (member, content))
        elif what == 2:
            members[number] = (member, _flip(content, rng))
        elif what == 3:
            members[number] = (member, content[: rng.randrange(len(content) + 1)])
        elif what == 4:
            rng.shuffle(members)
        elif what == 5:
            members[number] = (member, content + bytes(rng.choice((1, 5000))))
        elif what == 6 and content[:1] in (b"{", b"["):
            members[number] = (member, damage_json(content, rng))
        else:
            members.insert(rng.randrange(len(members) + 1), (_odd_member(member.name, rng), b""))
        if not members:
            break
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    result = made.getvalue()
    if rng.random() < 0.1:
        # a size in a header that is not the content's
        start = 512 * rng.randrange(max(1, len(result) // 512))
        result = (
            result[: start + 124]
            + rng.choice((b"77777777777\0", b"\xff" * 12, b"\x80" + b"\x7f" * 11, b"-0000000001\0"))
            + result[start + 136 :]
        )
    if data is plain:
        return result
    packed = gzip.compress(result, 1, mtime=0)
    return rng.choice(
        (packed, packed, packed, _flip(packed, rng), packed[: rng.randrange(len(packed))], packed + b"x", packed + packed)
    )


def bomb(size: int) -> bytes:
    """A frame of Zstandard of a few hundred kilobytes that unpacks to ``size`` zeros."""
    blocks = size >> 17
    frame = b"\x28\xb5\x2f\xfd\x00\x58"
    return frame + b"".join(
        (((1 << 17) << 3) | 2 | (number == blocks - 1)).to_bytes(3, "little") + b"\0" for number in range(blocks)
    )


def damage_package(data: bytes, rng: random.Random) -> bytes:
    """A ``.conda`` file whose container, tars or descriptions are not what they should be."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = [(info.filename, archive.read(info)) for info in archive.infolist()]
    number = rng.randrange(len(parts))
    name, content = parts[number]
    what = rng.randrange(9)
    if what < 4 and name.endswith(".tar.zst"):
        parts[number] = (name, zstandard(damage_tar(_plain(content), rng)))
    elif what == 4:
        parts[number] = (name, bomb(rng.choice((1 << 24, 1 << 33))) if name.endswith(".zst") else b"[" * DEEP)
    elif what == 5:
        parts[number] = (name, _flip(content, rng))
    elif what == 6:
        parts.insert(number, rng.choice(parts))
    elif what == 7:
        parts[number] = (
            rng.choice(("", "../x", "/x", "x" * 70_000 if rng.random() < 0.1 else "x", name.upper(), "info-.tar.zst")),
            content,
        )
    else:
        del parts[number]
    made = io.BytesIO()
    kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(made, "w", kind) as archive, warnings.catch_warnings():
        # a name twice is what is wanted
        warnings.simplefilter("ignore")
        for part, text in parts:
            try:
                archive.writestr(zipfile.ZipInfo(part or "\x01"), text, kind)
            except (ValueError, struct.error):  # such a name cannot be written
                archive.writestr(zipfile.ZipInfo("x"), text, kind)
    result = made.getvalue()
    return _flip(result, rng) if rng.random() < 0.15 else result


def _plain(frame: bytes) -> bytes:
    """What ``conda_packages.zstandard`` stored."""
    position, data = 6, b""
    while True:
        header = int.from_bytes(frame[position : position + 3], "little")
        data += frame[position + 3 : position + 3 + (header >> 3)]
        position += 3 + (header >> 3)
        if header & 1:
            return data


# arguments and the environment ----------------------------------------------------------------------------------------


def odd_arguments(world: Path) -> tuple[str, ...]:
    """Values for options. What may be written to lies in ``world``, since root can write everywhere else, too."""
    return (
        "", " ", "\n", "a\nb", "x" * 300, "x" * 5000, "/dev/null/x", "/proc/nothing/x", f"{world}/a file/below",
        f"{world}/a file",
        f"{world}/a loop", f"{world}/a link to nothing", f"{world}/a fifo", f"{world}/a device", f"{world}/a socket",
        f"{world}/new\nline",
        f"{world}/new ü", f"{world}/new \udcff", f"{world}/a folder", f"{world}/new/" + "/".join("d" * 300), "é", "\udcff", "-",
        "--", "-x",
        "~nobody-of-this-name/x", "~", "*", "$(touch pwned)", "%s", "{}", "\x1b[31mred", "0", "-1", "1e9", "\u0663", "9" * 5000,
        ".", "..",
        "http://", "http://[::1", "ftp://127.0.0.1/x", "http://127.0.0.1:1/x", "HTTP://127.0.0.1:1", "file://",
        "file:///etc/passwd",
        "file://elsewhere/x", "//", "cpu", "None", "a:b", "a#b", "@x", "'", '"', "\\", "/proc/self/mem", "/proc/self/environ",
    )  # fmt: skip


def odd_environment(world: Path) -> dict[str, tuple[str | None, ...]]:
    """Values for variables; None takes one away."""
    folders = (
        None, "", " ", "relative", f"{world}/a file", f"{world}/a file/below", f"{world}/a fifo", f"{world}/a loop",
        f"{world}/a link to nothing",
        "/proc/nothing", "/dev/null", "~nobody-of-this-name", f"{world}/new\nline", f"{world}/new \udcff", f"{world}/a folder",
        "x" * 5000,
    )  # fmt: skip
    versions = ("", " ", "x", "13", "13.0.0.0.0.0", "-1", "9" * 5000, "\n", "13.4=0", "\udcff", "*", "!")
    return {
        "HOME": folders, "XDG_CONFIG_HOME": folders, "XDG_CACHE_HOME": folders, "XDG_STATE_HOME": folders,
        "LLAMA_CPP_CACHE": folders,
        "TMPDIR": (None, "", "relative", f"{world}/a file", f"{world}/nowhere", "/proc"),
        "LLAMA_CPP_CHANNEL": (*folders, "http://", "http://[::1", "http://127.0.0.1:1/", "file://", "file:///", "ftp://x",
        "conda-forge", "://"),
        "LLAMA_CPP_CHANNEL_KEY": (*folders, f"{world}/config/llama-cpp/signing-key.pem"),
        "LLAMA_CPP_SOURCE_DIR": (*folders, "/"),
        "CONDA_ENVS_PATH": (*folders, ":", "::x"), "CONDA_ENVS_DIRS": folders, "CONDA_EXE": folders, "CONDA_PREFIX": folders,
        "CONDA_OVERRIDE_CUDA": versions, "CONDA_OVERRIDE_GLIBC": versions, "CONDA_OVERRIDE_ARCHSPEC": versions,
        "CONDA_OFFLINE": ("", "x", None), "SOURCE_DATE_EPOCH": ("", "x", "-1", "9" * 5000),
        "PIP_CONFIG_FILE": folders, "PIP_CONSTRAINT": folders, "PIP_NO_INDEX": ("x", "", None), "PIP_TIMEOUT": ("x", "-1"),
        "COLUMNS": ("", "0", "-5", "x", "1", "9" * 30), "LANG": ("C", "de_DE", "x"), "LC_ALL": ("C", "xx_YY.ISO-8859-1"),
        "PATH": ("", "relative", "/nowhere", ":", f"{world}/a file"), "CC": ("", " ", "nothing", "cc '", "\udcff"),
        "GIT_DIR": folders, "GIT_CONFIG_COUNT": ("x", "1"), "TERM": ("", "dumb", "x"), "http_proxy": ("x", "http://[",
        "http://127.0.0.1:1", "file:///x"),
        "PYTHONPATH": folders, "LLAMA_CPP_DEBUG": ("1",),
    }  # fmt: skip


def special_files(world: Path) -> None:
    """The things that odd arguments name."""
    (world / "a file").write_text("x")
    (world / "a loop").symlink_to("a loop")
    (world / "a link to nothing").symlink_to("nowhere")
    (world / "a folder").mkdir()
    (world / "a folder" / "file").write_text("x")
    os.mkfifo(world / "a fifo")
    _socket(world / "a socket", random.Random(0))
    _device(world / "a device", random.Random(0))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

"""Takes out of a package what its build engine noted about the machine, so that every machine makes the same file.

A ``.conda`` file is a zip of two compressed tars, one with the files and one (``info/``) about them. The engine stamps
both with the time of the build. It records the kernel, the processor, the folders of caches and local channels, and the build
strings of the recipe's other packages. It writes dependencies in the order in which a hash table gave them. It also
copies the recipe's whole folder into ``info/recipe``: what the package was not made from would change it without renaming it.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote

import yaml

from ..errors import BuildError
from . import inputs

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

EPOCH = (1980, 1, 1, 0, 0, 0)
LEVEL = 19  # zstd; decompression is as fast as for lower ones
_MACHINE = re.compile(r"^ *- __(?:linux|archspec|unix|cuda)=.*\n", re.MULTILINE)
_OWN = re.compile(
    r"^ +(?:CCACHE|CCACHE_DIR|CCACHE_DISABLE|LLAMA_CPP_(?:CACHE|HOME|PWD|SOURCE_DIR|STAGED)|(?:PIP|XDG)_\w+): .*\n", re.MULTILINE
)
# of the characters that Python would replace, those that the URL standard has in paths as they are
_PLAIN_IN_ADDRESSES = "/!$&'()*+,-.:;=@[]^_|~"
_BUILT = re.compile(r"^( +timestamp: )20\d\d-\d\d-\d\dT\S+$", re.MULTILINE)


def normalise(package: Path, timestamp: int, folders: Mapping[str, str] | None = None) -> None:
    """Rewrite a ``.conda`` file in place.

    Args:
        timestamp: what it is stamped with, in seconds since 1970.
        folders: channels on this machine, each with the name that stands for it.

    Raises:
        BuildError: it is not such a file, or its folder is full.
    """
    temporary = package.with_name(f".{package.name}.part")
    try:
        with zipfile.ZipFile(package) as old, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as new:
            # metadata first, as readers that stream expect
            for name in sorted(old.namelist(), key=lambda name: (name != "metadata.json", not name.startswith("info-"))):
                data = old.read(name)
                if name.endswith(".tar.zst"):
                    data = _repack(data, timestamp, folders or {})
                new.writestr(zipfile.ZipInfo(name, EPOCH), data)
        os.replace(temporary, package)
    except (zipfile.BadZipFile, tarfile.TarError, KeyError, ValueError) as error:
        raise BuildError(f"{package.name} is not a conda package: {error}", "build it again") from error
    except OSError as error:
        raise BuildError(f"{package} cannot be rewritten: {error.strerror}", "free some space there") from error
    finally:
        temporary.unlink(missing_ok=True)


def members(package: Path) -> dict[str, tuple[bytes, str]]:
    """Every file inside a ``.conda`` file: its content (of links the target) and how it is stored.

    Raises:
        BuildError: it is not such a file.
    """
    found = {}
    try:
        with zipfile.ZipFile(package) as archive:
            for name in archive.namelist():
                if not name.endswith(".tar.zst"):
                    found[name] = (archive.read(name), "")
                    continue
                for info, data in _entries(archive.read(name)):
                    how = f"{info.type!r} {info.mode:o} {info.mtime} {info.uid} {info.gid}"
                    found[info.name] = (data or info.linkname.encode(), how)
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise BuildError(f"{package.name} is not a conda package: {error}", "build it again") from error
    return found


def _repack(data: bytes, timestamp: int, folders: Mapping[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entries = _entries(data)
        foreign = _foreign(entries)
        for info, content in sorted(entries, key=lambda entry: entry[0].name):
            if info.name.startswith(foreign):
                continue
            if info.name == "info/index.json":
                content = _stamp(content, timestamp)
            elif info.name == "info/recipe/rendered_recipe.yaml":
                content = _nowhere(_anonymous(content, timestamp), folders)
            elif info.name == "info/about.json":
                content = _nowhere(content, folders)
            info.size, info.mtime = len(content), timestamp
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.pax_headers = {}
            tar.addfile(info, io.BytesIO(content))
    return zstd.compress(packed.getvalue(), level=LEVEL)


def _foreign(entries: list[tuple[tarfile.TarInfo, bytes]]) -> tuple[str, ...]:
    """What names of files begin with that are the recipe's and not this package's; empty for the tar of its files."""
    name = next((json.loads(content)["name"] for info, content in entries if info.name == "info/index.json"), None)
    if name is None:
        return ()
    return tuple(f"info/{path}" for path in inputs.VARIANTS + (() if name == inputs.CUDA_PACKAGE else inputs.CUDA))


def _entries(data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(data))) as tar:
        return [(info, (tar.extractfile(info) or io.BytesIO()).read() if info.isfile() else b"") for info in tar]


def _stamp(content: bytes, timestamp: int) -> bytes:
    index = json.loads(content)
    index["timestamp"] = timestamp * 1000
    for name in ("depends", "constrains"):
        if name in index:
            index[name].sort()
    return (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()


def _anonymous(content: bytes, timestamp: int) -> bytes:
    built = datetime.fromtimestamp(timestamp, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    text = _BUILT.sub(rf"\g<1>{built}", _OWN.sub("", _MACHINE.sub("", content.decode())))
    document = yaml.compose(text)  # nodes and not values: scalars stay as they are written
    assert isinstance(document, yaml.MappingNode)
    for key, section in document.value:
        if key.value.startswith("finalized_") or key.value == "staging_library_name_map":
            _sort(section)
        if key.value == "recipe":
            own = _child(_child(section, "package"), "name").value
        if key.value == "build_configuration":
            # packages of the same recipe are other packages: what they are called changes when this one does not
            siblings = _child(section, "subpackages")
            siblings.value = [pair for pair in siblings.value if pair[0].value == own]
    return str(yaml.serialize(document, width=1_000_000, allow_unicode=True)).encode()


def _child(node: yaml.Node, name: str) -> yaml.Node:
    """What a mapping has under a name."""
    found: yaml.Node = next(value for key, value in node.value if key.value == name)
    return found


def _sort(node: yaml.Node) -> None:
    """Order the lists and mappings below a node by what is in them."""
    if not isinstance(node, yaml.CollectionNode):
        return
    for part in node.value:
        for child in part if isinstance(part, tuple) else (part,):
            _sort(child)
    node.value.sort(key=lambda part: yaml.serialize(part[0] if isinstance(part, tuple) else part))


def _nowhere(content: bytes, folders: Mapping[str, str]) -> bytes:
    for folder, name in folders.items():
        path = Path(folder).absolute()
        # the build engine leaves characters as they are that Python writes in another way: it's%20(mine) and it%27s%20%28mine%29
        for address in (path.as_uri(), "file://" + quote(str(path), safe=_PLAIN_IN_ADDRESSES)):
            content = content.replace(address.encode(), name.encode())
    return content

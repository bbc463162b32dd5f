"""Git's own names for contents, computed without git.

A tree id is a hash over every path, mode and byte below a folder, so equal ids mean equal sources.
Format: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from .errors import TreeMismatchError
from .files import open_regular

LARGEST_FILE = 256 << 20
"""Bytes. A larger file is no source, and is listed without being read."""
DEEPEST = 100
"""Folders inside one another."""
_GIT_MODES = ("100644", "100755", "120000")

Files = dict[str, str]
"""Path relative to the root, with ``/`` → ``"<mode> <blob id>"``."""


def object_id(kind: str, data: bytes) -> str:
    """The id of a git object.

    >>> object_id("blob", b"")
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    header = f"{kind} {len(data)}".encode() + b"\0"
    return hashlib.sha1(header + data, usedforsecurity=False).hexdigest()


def scan(folder: Path) -> Files:
    """List every file below ``folder`` with its git mode and blob id.

    Byte code is left out: running one of llama.cpp's Python scripts is not an edit. Empty folders do not exist for git. What
    git cannot hold (a fifo, a device, a file of more than ``LARGEST_FILE`` bytes) is listed with a mode that git has not.

    Raises:
        TreeMismatchError: folders are nested more than ``DEEPEST`` deep.
        OSError: something cannot be read.
    """
    files: Files = {}
    _scan_into(files, os.fspath(folder), "", 0)
    return files


def is_in_git(value: str) -> bool:
    """Whether git can hold what :func:`scan` listed with this value."""
    return value.split(" ")[0] in _GIT_MODES


def _scan_into(files: Files, folder: str, prefix: str, depth: int) -> None:
    if depth > DEEPEST:
        raise TreeMismatchError(f"{folder} is more than {DEEPEST} folders deep", "remove it: it is no source of llama.cpp")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                files[prefix + entry.name] = f"120000 {object_id('blob', os.fsencode(os.readlink(entry.path)))}"
            elif not entry.is_dir():
                files[prefix + entry.name] = _describe(entry)
            elif entry.name != "__pycache__":
                _scan_into(files, entry.path, f"{prefix}{entry.name}/", depth + 1)


def _describe(entry: os.DirEntry[str]) -> str:
    found = entry.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_FILE:
        return f"{stat.S_IFMT(found.st_mode):06o} {object_id('blob', b'')}"
    with open_regular(Path(entry.path)) as file:
        return f"{'100755' if found.st_mode & 0o100 else '100644'} {object_id('blob', file.read(LARGEST_FILE))}"


_Folder = dict[str, "str | _Folder"]
"""What git keeps of a folder: of each file its mode and id."""


def tree_id(files: Mapping[str, str]) -> str:
    """The git tree id of a listing made by :func:`scan`.

    >>> tree_id({})
    '4b825dc642cb6eb9a060e54bf8d69288fbee4904'
    """
    root: _Folder = {}
    for path, value in files.items():
        *folders, name = path.split("/")
        node = root
        for folder in folders:
            below = node.setdefault(folder, {})
            assert isinstance(below, dict), f"{folder} is a file and a folder"
            node = below
        node[name] = value
    return _tree_id(root)


def _tree_id(node: _Folder) -> str:
    entries = []
    for name, value in node.items():
        raw = os.fsencode(name)
        if isinstance(value, dict):
            # git sorts a folder as if its name ended in a slash
            entries.append((raw + b"/", b"40000 " + raw, _tree_id(value)))
        else:
            mode, blob = value.split(" ")
            entries.append((raw, mode.encode() + b" " + raw, blob))
    body = b"".join(label + b"\0" + bytes.fromhex(identity) for _, label, identity in sorted(entries))
    return object_id("tree", body)


def differing(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Paths that were added, removed or changed between two listings, sorted."""
    return sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))

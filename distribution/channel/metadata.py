"""What a package says about itself: the files of its ``info/`` that installers, solvers and indexers read.

They are checked so that each of these takes them alike: types as they should be, names and versions as conda's CEP 26 has
them, dependencies that name packages and neither addresses nor channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from rattler import IndexJson, MatchSpec, PathsJson, RunExportsJson

from ..conda_archive import clean_path, shown
from ..files import load_json

T = TypeVar("T")

_INDEX, _PATHS, _ABOUT = "info/index.json", "info/paths.json", "info/about.json"
_LINK, _RUN_EXPORTS = "info/link.json", "info/run_exports.json"
READ = {_INDEX: 1 << 20, _PATHS: 32 << 20, _ABOUT: 4 << 20, _LINK: 1 << 20, _RUN_EXPORTS: 1 << 20}
"""The files that are read here, each with the most bytes it may have."""
REFUSED = ("info/repodata_record.json", "info/package_metadata.json")
"""Files that would speak in place of the channel's index, or of ``info/link.json``."""
SHORTEST_BINARY_PLACEHOLDER = 80
"""Bytes. An environment's path in a binary file cannot be longer than what it replaces; conda-build's are 255, once 80."""
_MOST_VALUES = 2_000_000
_LONGEST_SPEC = 500
_LARGEST_NUMBER = 1 << 53

_NAME = re.compile(r"(?!__)[a-z0-9_][a-z0-9_.-]{0,127}")
_VERSION = re.compile(r"[A-Za-z0-9_.+!]{1,128}")
_BUILD = re.compile(r"[A-Za-z0-9_.+]{1,128}")
_SHA256 = re.compile("[0-9a-f]{64}")
# a comment, which some readers cut off and some do not, has a #; an address a / and a channel a :
_SPEC = re.compile(r"[A-Za-z0-9_.+!<>=~,|*^$()\[\]\"' -]+")
_PLAIN_SPEC = re.compile(r'[a-z0-9_.-]+(\[((version|build|build_number)="[^"]*"(,(?!\])|(?=\])))+\])?')
_ENTRY_POINT = re.compile(r" *([A-Za-z0-9_][\w.+-]*) *= *[\w.]+ *: *[\w.]+ *", re.ASCII)


@dataclass(frozen=True)
class Listed:
    """What ``info/paths.json`` says of a path.

    Attributes:
        kind: ``hardlink`` (a file), ``softlink`` or ``directory``.
        sha256, size: of a file; of a link the hash may be anything's, and the size is 0.
        relocated: whether the environment's path is written into it at installation.
    """

    kind: str
    sha256: str
    size: int
    relocated: bool


@dataclass(frozen=True)
class Metadata:
    """What a package says about itself.

    Attributes:
        index: ``info/index.json``.
        extra: free-form notes of whoever built it.
        paths: everything that is to be installed, by path.
        noarch_python: whether files in ``site-packages`` go to wherever the environment's Python has its own.
        commands: programs that are made at installation, in ``bin/``.
    """

    index: Mapping[str, Any]
    extra: Mapping[str, Any]
    paths: Mapping[str, Listed]
    noarch_python: bool
    commands: tuple[str, ...]


def parse(texts: Mapping[str, bytes]) -> Metadata:
    """What the files of ``READ`` say, as far as they are there.

    Raises:
        ValueError: one is missing or malformed, or says what readers would take in different ways.
    """
    index = _index(_document(texts, _INDEX))
    noarch_python = index.get("noarch") == "python"
    about = _document(texts, _ABOUT) if _ABOUT in texts else {}
    extra = about.get("extra") or {}
    if not isinstance(extra, dict) or not isinstance(extra.get("llama_cpp_commit", ""), (str, type(None))):
        raise ValueError(f"extra in {_ABOUT} is no mapping, or its llama_cpp_commit no text")
    if _RUN_EXPORTS in texts:
        _check_run_exports(_document(texts, _RUN_EXPORTS))
    commands = _commands(_document(texts, _LINK), index.get("noarch")) if _LINK in texts else ()
    paths = _paths(_document(texts, _PATHS))
    # and what the installer's own parser says
    parsers: dict[str, Callable[[str], object]] = {
        _INDEX: IndexJson.from_str,
        _PATHS: PathsJson.from_str,
        _RUN_EXPORTS: RunExportsJson.from_str,
    }
    for name, parser in parsers.items():
        if name in texts:
            _accepted(parser, texts[name].decode(), name)
    return Metadata(index, extra, paths, noarch_python, commands)


def _document(texts: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in texts:
        raise ValueError(f"{name} is missing")
    text = texts[name]
    if text.count(b",") + text.count(b"[") + text.count(b"{") > _MOST_VALUES:
        raise ValueError(f"{name} has too many values")
    try:
        document = load_json(text, READ[name])
    except ValueError as error:
        raise ValueError(f"{name} cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{name} is no mapping")
    return document


def _index(index: dict[str, Any]) -> dict[str, Any]:
    for key, pattern in {"name": _NAME, "version": _VERSION, "build": _BUILD}.items():
        value = index.get(key)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"the {key} in {_INDEX} is {shown(repr(value))}")
    if not _is_count(index.get("build_number")):
        raise ValueError(f"the build_number in {_INDEX} is {shown(repr(index.get('build_number')))}")
    if not isinstance(index.get("subdir", ""), str):
        raise ValueError(f"the subdir in {_INDEX} is {shown(repr(index['subdir']))}")
    if index.get("noarch") not in (None, "generic", "python"):
        raise ValueError(f"noarch in {_INDEX} is {shown(repr(index['noarch']))}")
    for key in ("depends", "constrains"):
        if key in index:
            _check_specs(index[key], f"{key} in {_INDEX}")
    # of a Python: where packages of every Python are put
    if (folder := index.get("python_site_packages_path")) is not None:
        clean_path(folder if isinstance(folder, str) else "")
    if unknown := index.keys() & {"extra_depends", "flags"}:
        raise ValueError(f"{sorted(unknown)[0]} in {_INDEX} is not understood by all that read it")
    return index


def _check_specs(specs: Any, where: str) -> None:
    if not isinstance(specs, list):
        raise ValueError(f"{where} is no list")
    for spec in specs:
        if not isinstance(spec, str) or spec != spec.lstrip() or len(spec) > _LONGEST_SPEC:
            raise ValueError(f"{where} holds {shown(repr(spec))}")
        # packages of others have spaces at the end
        if not _SPEC.fullmatch(spec.rstrip(" ")):
            raise ValueError(f"{where} holds {shown(spec)}: it may name a package, a version and a build, nothing else")
        plain = _accepted(lambda text: MatchSpec(text).to_canonical_string(), spec, f"{where} holds {shown(spec)}: it")
        if not _PLAIN_SPEC.fullmatch(plain):
            raise ValueError(f"{where} holds {shown(spec)}: it may name a package, a version and a build, nothing else")


def _check_run_exports(exports: dict[str, Any]) -> None:
    for kind, specs in exports.items():
        _check_specs(specs, f"{shown(kind)} in {_RUN_EXPORTS}")


def _commands(link: dict[str, Any], noarch: str | None) -> tuple[str, ...]:
    """The names of the programs that ``info/link.json`` asks for."""
    described = link.get("noarch")
    if not isinstance(described, dict) or link.get("package_metadata_version") != 1 or link.get("preferred_env"):
        raise ValueError(f"{_LINK} is not of the form that conda knows")
    if described.get("type") != noarch:
        raise ValueError(f"{_LINK} and {_INDEX} disagree about noarch")
    points = described.get("entry_points", [])
    if not isinstance(points, list) or (points and noarch != "python"):
        raise ValueError(f"the entry points in {_LINK} are no list")
    names = []
    for point in points:
        found = _ENTRY_POINT.fullmatch(point) if isinstance(point, str) else None
        if found is None or len(found[1]) > 200:
            raise ValueError(f"{_LINK} asks for the program {shown(repr(point))}")
        names.append(found[1])
    return tuple(names)


def _paths(document: dict[str, Any]) -> dict[str, Listed]:
    entries = document.get("paths")
    if not isinstance(entries, list) or document.get("paths_version") != 1:
        raise ValueError(f"{_PATHS} is not of the form that conda knows")
    found: dict[str, Listed] = {}
    for entry in entries:
        path = entry.get("_path") if isinstance(entry, dict) else None
        if not isinstance(path, str):
            raise ValueError(f"{_PATHS} has an entry without a path")
        if clean_path(path) in found:
            raise ValueError(f"{_PATHS} lists {shown(path)} twice")
        found[path] = _listed(path, entry)
    return found


def _listed(path: str, entry: Mapping[str, Any]) -> Listed:
    kind, digest, size = entry.get("path_type"), entry.get("sha256"), entry.get("size_in_bytes")
    if kind not in ("hardlink", "softlink", "directory"):
        raise ValueError(f"{_PATHS} lists {shown(path)} as {shown(repr(kind))}")
    if digest is not None and not (isinstance(digest, str) and _SHA256.fullmatch(digest)):
        raise ValueError(f"{_PATHS} has no SHA-256 of {shown(path)}, but {shown(repr(digest))}")
    if size is not None and not _is_count(size):
        raise ValueError(f"{_PATHS} gives {shown(path)} the size {shown(repr(size))}")
    if kind == "hardlink" and (digest is None or size is None):
        raise ValueError(f"{_PATHS} has no hash or no size of {shown(path)}")
    if not isinstance(entry.get("no_link", False), bool):
        raise ValueError(f"no_link of {shown(path)} in {_PATHS} is neither true nor false")
    placeholder, mode = entry.get("prefix_placeholder"), entry.get("file_mode")
    if placeholder is None and mode is None:
        return Listed(kind, digest or "", size or 0 if kind == "hardlink" else 0, False)
    if kind != "hardlink" or mode not in ("text", "binary") or not isinstance(placeholder, str) or not placeholder.isprintable():
        raise ValueError(f"{_PATHS} says what to replace in {shown(path)}, and not in a form that conda knows")
    if len(placeholder.encode()) < (SHORTEST_BINARY_PLACEHOLDER if mode == "binary" else 1):
        raise ValueError(f"the placeholder in {shown(path)} is too short for the path of an environment")
    return Listed(kind, digest or "", size or 0, True)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_NUMBER


def _accepted(parser: Callable[[str], T], text: str, what: str) -> T:
    """What a parser of py-rattler makes of a text. It raises many kinds of exceptions."""
    try:
        return parser(text)
    except Exception as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise ValueError(f"{what} is not taken by the installer: {shown(reason)}") from None

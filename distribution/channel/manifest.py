"""The signed list of what a channel holds: ``manifest.json``.

It lists every file of a generation with its hash, and carries a signature for each package. So a package that is handed on to
another channel keeps the signature of who built it. The manifest as a whole is signed by who published last.
"""

from __future__ import annotations

import base64
import errno
import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..errors import ChannelDamagedError, ChannelNotFoundError, FetchError
from ..fetching import fetch_bytes
from ..files import load_json, read_regular
from .keys import fingerprint, is_signed, sign

MANIFEST = "manifest.json"
ADDRESS = "${LLAMA_CPP_CHANNEL}"
CHANNEL_KEY = "channel-key.pub"
_FORMAT = 1
_LARGEST_MANIFEST = 16 << 20
_LARGEST_NUMBER = 1 << 53
_SHA256 = re.compile("[0-9a-f]{64}")
# what a path of a channel is made of; no control characters, no backslash
_NAME = re.compile(r"[A-Za-z0-9._+!/@=~%-]+")
_SECONDS = 120


@dataclass(frozen=True)
class ManifestEntry:
    """A package in a channel.

    Attributes:
        sha256: of the file, in hex.
        size: of the file, in bytes.
        generation: the generation it was published with.
        llama_cpp_commit: what a package of ours was built from; None for others.
        signatures: by the fingerprint of the key that made them, in base64.
    """

    sha256: str
    size: int
    generation: int
    llama_cpp_commit: str | None = None
    signatures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """What an environment file asks for: the environment's ``name``, and match specifications."""

    name: str
    dependencies: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """What a generation of a channel holds.

    Attributes:
        generation: counts the publications.
        packages: by path, such as ``linux-64/libllama-0.3.3600-h1_0.conda``.
        files: SHA-256 of every other file, by path.
        also: the channels that hold what this one lacks; empty where it is complete in itself.
        environment: what the channel's environment files are rendered from; None in manifests of before 30 November 2026.
        addressed: SHA-256 of the files that name the channel's address, by path, with ``ADDRESS`` in place of it: whoever
            read them through a server knows them by this.
        keys: the raw public keys of all signatures, in base64, by fingerprint.
        signer: the fingerprint of who signed the manifest; empty before that is done.
    """

    generation: int
    packages: Mapping[str, ManifestEntry]
    files: Mapping[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    signer: str = ""
    environment: Wanted | None = None
    addressed: Mapping[str, str] = field(default_factory=dict)

    def signed_by(self, path: str, trusted: Mapping[str, Ed25519PublicKey]) -> bool:
        """Whether one of the keys signed the package at ``path``."""
        entry = self.packages[path]
        message = statement(path, entry)
        return any(one in trusted and is_signed(trusted[one], signature, message) for one, signature in entry.signatures.items())

    @functools.cached_property
    def public_keys(self) -> dict[str, Ed25519PublicKey]:
        """The keys the manifest itself names. They prove that nothing was altered since, and nothing about by whom."""
        return {name: _public_key(name, raw) for name, raw in self.keys.items()}

    def find(self, file_name: str) -> str | None:
        """The path of the package with this file name, or None."""
        return next((path for path in self.packages if path.rpartition("/")[2] == file_name), None)


def statement(path: str, entry: ManifestEntry) -> bytes:
    """What the signature of a package is made over."""
    subdir, _, file_name = path.rpartition("/")
    # `type` keeps the signature of one kind of statement from passing for another's
    return _canonical(
        {"type": "conda package", "file_name": file_name, "subdir": subdir, "sha256": entry.sha256, "size": entry.size}
    )


def sign_entry(path: str, entry: ManifestEntry, key: Ed25519PrivateKey) -> ManifestEntry:
    """The entry with a signature by ``key`` beside those it has."""
    name = fingerprint(key.public_key())
    return replace(entry, signatures={**entry.signatures, name: sign(key, statement(path, entry))})


def dump(manifest: Manifest, key: Ed25519PrivateKey) -> str:
    """The text of ``manifest.json``, signed."""
    public = key.public_key()
    used = {name for entry in manifest.packages.values() for name in entry.signatures}
    known = {**manifest.keys, fingerprint(public): base64.b64encode(public.public_bytes_raw()).decode()}
    content = {
        "type": "channel manifest",
        "format": _FORMAT,
        "generation": manifest.generation,
        "also": list(manifest.also),
        "packages": {path: asdict(entry) for path, entry in sorted(manifest.packages.items())},
        "files": dict(sorted(manifest.files.items())),
        "keys": {name: raw for name, raw in sorted(known.items()) if name in used or name == fingerprint(public)},
        "environment": manifest.environment and asdict(manifest.environment),
        "addressed": dict(sorted(manifest.addressed.items())),
    }
    document = {"signed": content, "signer": fingerprint(public), "signature": sign(key, _canonical(content))}
    return json.dumps(document, indent=1) + "\n"


def parse(text: str | bytes, source: str) -> Manifest:
    """Read ``manifest.json`` and check that it is whole: that the key it names signed it.

    Raises:
        ChannelDamagedError: it is not a manifest, or was altered.
    """
    try:
        document = _mapping(load_json(text, _LARGEST_MANIFEST))
        content = _mapping(document["signed"])
        if content["type"] != "channel manifest" or content["format"] != _FORMAT:
            raise ChannelDamagedError(
                f"the manifest of {source} has a format this version does not know", "update the llama.cpp packages' repository"
            )
        manifest = _manifest(content, _text(document["signer"]))
        key = _public_key(manifest.signer, manifest.keys[manifest.signer])
        whole = is_signed(key, _text(document["signature"]), _canonical(content))
        assert len(manifest.public_keys) == len(manifest.keys)
        _check_paths(manifest)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ChannelDamagedError):
            raise
        raise ChannelDamagedError(f"the manifest of {source} cannot be read: {_short(error)}", REMEDY) from None
    if not whole:
        raise ChannelDamagedError(f"the manifest of {source} was altered after it was signed", REMEDY)
    return manifest


REMEDY = "do not install from it; publish to a new folder, or get the channel again from where it came"


def read(folder: Path) -> Manifest:
    """The manifest of a generation's folder.

    Raises:
        ChannelNotFoundError: there is none.
        ChannelDamagedError: it is not a manifest, or was altered.
    """
    try:
        return parse(read_regular(folder / MANIFEST, _LARGEST_MANIFEST), str(folder))
    except (FileNotFoundError, NotADirectoryError):
        raise ChannelNotFoundError(
            f"{folder} is no published channel", "publish to it first: python -m distribution channel publish dist/*/*.conda"
        ) from None
    except OSError as error:
        raise ChannelDamagedError(f"{folder / MANIFEST} cannot be read: {error.strerror}", REMEDY) from None


def fetch(location: str) -> Manifest:
    """The manifest of a channel at a path, ``file://`` or ``http://`` address.

    Raises:
        ChannelNotFoundError: there is none.
        ChannelUnreachableError: the address does not answer.
        ChannelDamagedError: it is not a manifest, or was altered.
    """
    if folder := folder_of(location):
        return read(folder)
    try:
        return parse(fetch_file(location, MANIFEST, _LARGEST_MANIFEST), location)
    except FileNotFoundError:
        raise ChannelNotFoundError(f"{location} is no channel of ours: it has no {MANIFEST}", "check the address") from None


def folder_of(location: str) -> Path | None:
    """The folder that a path or a ``file://`` address names; None for other addresses."""
    parts = urlsplit(location)
    if parts.scheme in ("", "file"):
        return Path(unquote(parts.path)) if parts.scheme else Path(location)
    return None


def fetch_file(location: str, path: str, largest: int) -> bytes:
    """A file of a channel that is read over HTTP, of at most ``largest`` bytes.

    Raises:
        FileNotFoundError: the channel has no such file.
        ChannelUnreachableError: the address does not answer, or answers with something larger.
    """
    try:
        return fetch_bytes(f"{location.rstrip('/')}/{path}", largest, _SECONDS)
    except FetchError as error:
        if error.status == 404:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
        raise


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _public_key(name: str, raw: str) -> Ed25519PublicKey:
    content = base64.b64decode(raw, validate=True)
    if "SHA256:" + base64.b64encode(hashlib.sha256(content).digest()).decode().rstrip("=") != name:
        raise ValueError(f"the key {name} has another fingerprint")
    return Ed25519PublicKey.from_public_bytes(content)


def _manifest(content: Mapping[str, Any], signer: str) -> Manifest:
    wanted = content.get("environment")
    return Manifest(
        _number(content["generation"]),
        {_text(path): _entry(_mapping(entry)) for path, entry in _mapping(content["packages"]).items()},
        _hashes(content["files"]),
        _texts(content["also"]),
        {_text(name): _text(raw) for name, raw in _mapping(content["keys"]).items()},
        signer,
        Wanted(_text(_mapping(wanted)["name"]), _texts(wanted["dependencies"])) if wanted else None,
        _hashes(content.get("addressed", {})),
    )


def _entry(data: Mapping[str, Any]) -> ManifestEntry:
    commit = data["llama_cpp_commit"]
    return ManifestEntry(
        _hash(data["sha256"]),
        _number(data["size"]),
        _number(data["generation"]),
        None if commit is None else _text(commit),
        {_text(name): _text(signature) for name, signature in _mapping(data["signatures"]).items()},
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r:.40} where a mapping should be")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} where text should be")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} where a list should be")
    return tuple(_text(one) for one in value)


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST_NUMBER:
        raise ValueError(f"{value!r:.40} where a count should be")
    return value


def _hash(value: Any) -> str:
    text = _text(value)
    if not _SHA256.fullmatch(text):
        raise ValueError(f"the hash {text!r:.80}")
    return text


def _hashes(value: Any) -> dict[str, str]:
    return {_text(path): _hash(digest) for path, digest in _mapping(value).items()}


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _check_paths(manifest: Manifest) -> None:
    # a manifest that came from elsewhere must not name files outside the channel
    for path in [*manifest.packages, *manifest.files, *manifest.addressed]:
        parts = path.split("/")
        if any(part in ("", ".", "..") for part in parts) or not _NAME.fullmatch(path):
            raise ValueError(f"the path {path!r:.80}")
    for path in manifest.packages:
        if path.count("/") != 1 or not path.endswith(".conda"):
            raise ValueError(f"the package path {path!r:.80}")

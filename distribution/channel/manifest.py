"""The signed list of what a channel holds: ``manifest.json``.

It lists every file of a generation with its hash, and carries a signature for each package, so that a package that is
handed on to another channel keeps the signature of who built it. The manifest as a whole is signed by who published last.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..errors import ChannelDamagedError, ChannelNotFoundError, ChannelUnreachableError
from .keys import fingerprint, is_signed, sign

MANIFEST = "manifest.json"
CHANNEL_KEY = "channel-key.pub"
_FORMAT = 1
_LARGEST_MANIFEST = 64 << 20
_TIMEOUT = 30


@dataclass(frozen=True)
class Entry:
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
class Manifest:
    """What a generation of a channel holds.

    Attributes:
        generation: counts the publications.
        packages: by path, such as ``linux-64/libllama-0.4.0-h1_0.conda``.
        files: SHA-256 of every other file, by path.
        also: the channels that hold what this one lacks; empty where it is complete in itself.
        keys: the raw public keys of all signatures, in base64, by fingerprint.
        signer: the fingerprint of who signed the manifest; empty before that is done.
    """

    generation: int
    packages: Mapping[str, Entry]
    files: Mapping[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    signer: str = ""

    def signed_by(self, path: str, trusted: Mapping[str, Ed25519PublicKey]) -> bool:
        """Whether one of the keys signed the package at ``path``."""
        entry = self.packages[path]
        message = statement(path, entry)
        return any(
            one in trusted and is_signed(trusted[one], signature, message) for one, signature in entry.signatures.items()
        )

    def public_keys(self) -> dict[str, Ed25519PublicKey]:
        """The keys the manifest itself names. They prove that nothing was altered since, and nothing about by whom."""
        return {name: _public_key(name, raw) for name, raw in self.keys.items()}

    def find(self, file_name: str) -> str | None:
        """The path of the package with this file name, or None."""
        return next((path for path in self.packages if path.rpartition("/")[2] == file_name), None)


def statement(path: str, entry: Entry) -> bytes:
    """What the signature of a package is made over."""
    subdir, _, file_name = path.rpartition("/")
    # `type` keeps the signature of one kind of statement from passing for another's
    return _canonical(
        {"type": "conda package", "file_name": file_name, "subdir": subdir, "sha256": entry.sha256, "size": entry.size}
    )


def sign_entry(path: str, entry: Entry, key: Ed25519PrivateKey) -> Entry:
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
    }
    document = {"signed": content, "signer": fingerprint(public), "signature": sign(key, _canonical(content))}
    return json.dumps(document, indent=1) + "\n"


def parse(text: str | bytes, source: str) -> Manifest:
    """Read ``manifest.json`` and check that it is whole: that the key it names signed it.

    Raises:
        ChannelDamagedError: it is not a manifest, or was altered.
    """
    try:
        document = json.loads(text)
        content = document["signed"]
        if content["type"] != "channel manifest" or content["format"] != _FORMAT:
            raise ChannelDamagedError(
                f"the manifest of {source} has a format this version does not know", "update the llama.cpp packages' repository"
            )
        signer = document["signer"]
        packages = {path: _entry(entry) for path, entry in content["packages"].items()}
        manifest = Manifest(content["generation"], packages, content["files"], tuple(content["also"]), content["keys"], signer)
        whole = is_signed(_public_key(signer, manifest.keys[signer]), document["signature"], _canonical(content))
        _check_paths(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ChannelDamagedError):
            raise
        raise ChannelDamagedError(f"the manifest of {source} cannot be read: {error!r}", REMEDY) from None
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
        return parse((folder / MANIFEST).read_bytes(), str(folder))
    except (FileNotFoundError, NotADirectoryError):
        raise ChannelNotFoundError(
            f"{folder} is no published channel", "publish to it first: python -m distribution channel publish dist/*/*.conda"
        ) from None


def fetch(location: str) -> Manifest:
    """The manifest of a channel at a path, ``file://`` or ``http://`` address.

    Raises:
        ChannelNotFoundError: there is none.
        ChannelUnreachableError: the address does not answer.
        ChannelDamagedError: it is not a manifest, or was altered.
    """
    parts = urlsplit(location)
    if parts.scheme in ("", "file"):
        return read(Path(unquote(parts.path)) if parts.scheme else Path(location))
    try:
        with urllib.request.urlopen(f"{location.rstrip('/')}/{MANIFEST}", timeout=_TIMEOUT) as answer:
            return parse(answer.read(_LARGEST_MANIFEST), location)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise ChannelNotFoundError(f"{location} is no channel of ours: it has no {MANIFEST}", "check the address") from None
        raise ChannelUnreachableError(f"{location} answers {error.code} {error.reason}", "check the address") from None
    except OSError as error:
        raise ChannelUnreachableError(
            f"{location} cannot be read: {getattr(error, 'reason', error)}",
            "check the address, and that `channel serve` runs there",
        ) from None


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _public_key(name: str, raw: str) -> Ed25519PublicKey:
    content = base64.b64decode(raw, validate=True)
    if "SHA256:" + base64.b64encode(hashlib.sha256(content).digest()).decode().rstrip("=") != name:
        raise ValueError(f"the key {name} has another fingerprint")
    return Ed25519PublicKey.from_public_bytes(content)


def _entry(data: Mapping[str, Any]) -> Entry:
    if not re.fullmatch("[0-9a-f]{64}", data["sha256"]):
        raise ValueError(f"the hash {data['sha256']!r}")
    commit = data["llama_cpp_commit"]
    signatures = {str(name): str(signature) for name, signature in data["signatures"].items()}
    return Entry(data["sha256"], int(data["size"]), int(data["generation"]), commit and str(commit), signatures)


def _check_paths(manifest: Manifest) -> None:
    # a manifest that came from elsewhere must not name files outside the channel
    for path in [*manifest.packages, *manifest.files]:
        parts = path.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in path or "\\" in path:
            raise ValueError(f"the path {path!r}")
    for path in manifest.packages:
        if path.count("/") != 1 or not path.endswith(".conda"):
            raise ValueError(f"the package path {path!r}")

"""Ed25519 keys: the one this machine signs with, and those it trusts."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..console import say
from ..errors import SigningKeyError
from ..files import link_to_nothing, read_regular, write_atomically, xdg_folder
from ..interruption import deferred

KEY_VARIABLE = "LLAMA_CPP_CHANNEL_KEY"
_LARGEST_KEY = 1 << 16


@dataclass(frozen=True)
class Trust:
    """Whose signatures count.

    Attributes:
        configured: public keys that a person configured, by fingerprint; where there are any, one of them must have
            signed.
        own: this machine's key, which is trusted without being configured; None where the machine never published.
    """

    configured: Mapping[str, Ed25519PublicKey]
    own: Ed25519PublicKey | None = None

    @property
    def keys(self) -> dict[str, Ed25519PublicKey]:
        """The keys whose signatures count, by fingerprint."""
        return dict(self.configured) if self.configured else self._own

    @property
    def publishers(self) -> dict[str, Ed25519PublicKey]:
        """The keys with which the list of a channel's packages may be signed, by fingerprint.

        This machine's own is always among them: what it imported lies in a channel whose list it signed itself, and the
        packages in it still need the signature of a configured key.
        """
        return {**self.configured, **self._own}

    @property
    def _own(self) -> dict[str, Ed25519PublicKey]:
        return {fingerprint(self.own): self.own} if self.own else {}


def config_dir() -> Path:
    """The folder for keys: ``$XDG_CONFIG_HOME/llama-cpp``, else ``~/.config/llama-cpp``.

    Raises:
        HomeNotFoundError: nothing says where it is.
    """
    return xdg_folder("XDG_CONFIG_HOME", ".config") / "llama-cpp"


def state_dir() -> Path:
    """The folder for what is remembered: ``$XDG_STATE_HOME/llama-cpp``, else ``~/.local/state/llama-cpp``.

    Raises:
        HomeNotFoundError: nothing says where it is.
    """
    return xdg_folder("XDG_STATE_HOME", ".local/state") / "llama-cpp"


def fingerprint(key: Ed25519PublicKey) -> str:
    """The SHA-256 of the raw public key, as ``SHA256:`` and base64."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.public_bytes_raw()).digest()).decode().rstrip("=")


def public_pem(key: Ed25519PublicKey) -> str:
    """A public key as PEM text."""
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(encoding, form).decode()


def is_signed(key: Ed25519PublicKey, signature: str, message: bytes) -> bool:
    """Whether ``signature``, in base64, is this key's for ``message``."""
    try:
        key.verify(base64.b64decode(signature, validate=True), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def sign(key: Ed25519PrivateKey, message: bytes) -> str:
    """The signature of ``message``, in base64."""
    return base64.b64encode(key.sign(message)).decode()


def signing_key() -> Ed25519PrivateKey:
    """The key this machine signs with; made at first use.

    Raises:
        SigningKeyError: it cannot be read or made, or is no Ed25519 key.
    """
    path = config_dir() / "signing-key.pem"
    try:
        if not path.exists():
            _make(path)
        return _load_private(path)
    except OSError as error:
        raise SigningKeyError(
            f"the signing key {path} cannot be read or made: {error.strerror}",
            "make the folder writable, or set XDG_CONFIG_HOME to another one",
        ) from None


def load_public(path: Path) -> Ed25519PublicKey:
    """A public key from a PEM file.

    Raises:
        SigningKeyError: the file is missing, or is no Ed25519 public key.
    """
    try:
        text = read_regular(path, _LARGEST_KEY)
        # of several only the first would be read, and the others be configured for nothing
        key = serialization.load_pem_public_key(text) if text.count(b"-----BEGIN") == 1 else None
    except OSError as error:
        raise SigningKeyError(f"the key {path} cannot be read: {error.strerror}", "check the path") from None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise SigningKeyError(
            f"{path} is no Ed25519 public key, or more than one",
            "a channel's own is its file channel-key.pub; take that from its publisher, one file for each key, and move other "
            "files elsewhere",
        )
    return key


def load_trust(key: Path | None = None) -> Trust:
    """Whose signatures count: ``key``, else ``$LLAMA_CPP_CHANNEL_KEY``, else every file of ``trusted-keys`` in the
    configuration folder; and this machine's own key.

    Whatever was configured and cannot be read is an error: without it, everybody would be trusted.

    Raises:
        SigningKeyError: a key cannot be read, or the folder of keys holds something else.
    """
    configured = [load_public(path) for path in _configured(key)]
    own = config_dir() / "signing-key.pub"
    return Trust({fingerprint(one): one for one in configured}, load_public(own) if os.path.lexists(own) else None)


def load_publishers() -> Trust:
    """As ``load_trust``, for who is about to sign: this machine's key is the one it signs with, if it has one already.

    Raises:
        SigningKeyError: a key cannot be read.
    """
    # none is made to find out that nothing was signed with it
    own = signing_key().public_key() if os.path.lexists(config_dir() / "signing-key.pem") else None
    return replace(load_trust(), own=own)


def _configured(key: Path | None) -> list[Path]:
    if key is not None:
        return [key]
    named = os.environ.get(KEY_VARIABLE)
    if named is not None:
        if not named.strip():
            raise SigningKeyError(f"${KEY_VARIABLE} is set, and empty", "name a public key in it, or unset it")
        return [Path(named)]
    folder = config_dir() / "trusted-keys"
    try:
        os.lstat(folder)
        return sorted(folder.iterdir())
    except FileNotFoundError:
        if link := link_to_nothing(folder):
            raise SigningKeyError(
                f"{link} is a link to nothing, so that nobody knows which keys are trusted", "make the folder, or remove the link"
            ) from None
        return []
    except OSError as error:
        raise SigningKeyError(
            f"the trusted keys in {folder} cannot be read: {error.strerror}", "make it a folder of public keys that you can read"
        ) from None


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with deferred():
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".signing-key-")
        try:
            # mkstemp made it for its owner alone
            with os.fdopen(handle, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(handle)
            # a link, unlike a rename, fails where another process was first
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
                say(f"made a signing key: {path}, {fingerprint(key.public_key())}")
        finally:
            os.unlink(temporary)


def _load_private(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(read_regular(path, _LARGEST_KEY), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyError(
            f"{path} is no Ed25519 private key without a password",
            "restore it from a backup, or move it away: the next publish makes a new one, which others must trust anew",
        )
    public, text = path.with_suffix(".pub"), public_pem(key.public_key()).encode()
    # looked at at every use: a key that was restored from a backup comes alone, and one that was given up leaves its own behind,
    # which would stay trusted
    if not os.path.lexists(public) or read_regular(public, _LARGEST_KEY) != text:
        write_atomically(public, text)
    return key

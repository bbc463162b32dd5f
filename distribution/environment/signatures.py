"""Installing only what a configured key signed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rattler import RepoDataRecord

from ..errors import ToolNotFoundError, UnsignedPackageError

OURS = frozenset({"libllama", "libggml-cuda", "llama.cpp", "llama-cpp-python"})


def check(records: Sequence[RepoDataRecord], key: Path | None = None) -> None:
    """Compare what would be installed with what its channels signed.

    Channels in a folder or behind plain HTTP are checked, and every channel that our own packages come from. Others,
    such as conda-forge, vouch for their packages by TLS and sign nothing we could check.

    Args:
        key: the public key that must have signed; where it is None, the configured ones, if there are any.

    Raises:
        UnsignedPackageError: a package is not among those that the key signed.
        SigningKeyError: a configured key cannot be read.
        ToolNotFoundError: the Python package cryptography is not installed.
        ChannelUnreachableError, ChannelDamagedError: a channel's signatures cannot be read.
    """
    try:
        from ..channel.signing import check_signatures
    except ModuleNotFoundError as error:
        if error.name != "cryptography":
            raise
        raise ToolNotFoundError("signatures are checked with cryptography", "python -m pip install cryptography") from None
    by_channel: dict[str, list[RepoDataRecord]] = defaultdict(list)
    for record in records:
        by_channel[record.channel].append(record)
    for channel, taken in by_channel.items():
        if channel.startswith("https:") and not any(record.name.normalized in OURS for record in taken):
            continue
        # empty where the channel has no signatures and no key asks for them
        if signed := check_signatures(channel, key):
            _compare(taken, signed, channel)


def _compare(records: Sequence[RepoDataRecord], signed: dict[str, str], channel: str) -> None:
    for record in records:
        found = record.sha256.hex() if record.sha256 else "unknown"
        if signed.get(record.file_name) != found:
            raise UnsignedPackageError(
                f"{record.file_name} of {channel} is not what was signed (its SHA-256 is {found})",
                "do not install it; python -m distribution channel verify says what is wrong with the channel",
            )

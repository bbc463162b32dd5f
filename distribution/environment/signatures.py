"""Installing only what a configured key signed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rattler import Channel, RepoDataRecord

from ..errors import ToolNotFoundError, UnsignedPackageError

OURS = frozenset({"libllama", "libggml-cuda", "llama.cpp", "llama-cpp-python"})

# These channels by their whole address: at the same host anybody has one.
_VOUCHED_FOR_BY_TLS = frozenset(Channel(name).base_url.rstrip("/") for name in ("conda-forge", "main"))


def check(records: Sequence[RepoDataRecord], key: Path | None = None) -> None:
    """Compare what would be installed with what its channels signed.

    Every channel that our own packages come from is checked. Where a key is configured, so are all others but conda-forge
    and Anaconda's main, which vouch for their packages by TLS and sign nothing we could check: an environment file that
    somebody changed may list any channel, and that one any Python. Where no key is, other channels behind TLS are left out.

    Args:
        key: the public key that must have signed; where it is None, the configured ones, if there are any.

    Raises:
        UnsignedPackageError: a package is not among those that the key signed, or its channel has no signatures.
        SigningKeyError: a configured key cannot be read.
        ToolNotFoundError: the Python package cryptography is not installed.
        ChannelUnreachableError, ChannelDamagedError: a channel's signatures cannot be read.
    """
    try:
        from ..channel.keys import load_trust
        from ..channel.signing import check_signatures
    except ModuleNotFoundError as error:
        if error.name != "cryptography":
            raise
        raise ToolNotFoundError("signatures are checked with cryptography", "python -m pip install cryptography") from None
    with_key = bool(load_trust(key).configured)
    by_channel: dict[str, list[RepoDataRecord]] = defaultdict(list)
    for record in records:
        by_channel[record.channel].append(record)
    for channel, taken in by_channel.items():
        vouched_for = channel.rstrip("/") in _VOUCHED_FOR_BY_TLS if with_key else channel.startswith("https:")
        if vouched_for and not any(record.name.normalized in OURS for record in taken):
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

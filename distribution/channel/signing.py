"""Whether the right key signed what a channel holds."""

from __future__ import annotations

from pathlib import Path

from ..console import say
from ..errors import ChannelDamagedError, ChannelNotFoundError, UnsignedPackageError
from .keys import Trust, load_trust
from .manifest import CHANNEL_KEY, REMEDY, Manifest, fetch

_UNSIGNED_REMEDY = (
    f"do not install from it; if you trust its publisher, put the channel's {CHANNEL_KEY} into "
    "~/.config/llama-cpp/trusted-keys, or pass it with --key"
)


def check_signatures(location: str, public_key: Path | None = None) -> dict[str, str]:
    """The SHA-256 in hex of every package of a channel, by file name, after its signatures were checked.

    Where a key is configured (``public_key``, or as in ``load_trust``), every package must be signed by it. Where none
    is, a channel without a manifest gives an empty dictionary, and a line says that nothing vouches for the packages.
    Ask after solving, not before: a package that is published in between would be missing.

    Raises:
        UnsignedPackageError: a configured key did not sign a package, or the channel has no manifest.
        SigningKeyError: a configured key cannot be read.
        ChannelUnreachableError, ChannelNotFoundError, ChannelDamagedError: there is no manifest that can be read.
    """
    trust = load_trust(public_key)
    try:
        manifest = fetch(location)
    except ChannelNotFoundError:
        if not trust.configured:
            return {}
        raise UnsignedPackageError(f"{location} has no signatures", _UNSIGNED_REMEDY) from None
    if note := require_signatures(manifest, trust, location):
        say(note)
    return {path.rpartition("/")[2]: entry.sha256 for path, entry in manifest.packages.items()}


def require_signatures(manifest: Manifest, trust: Trust, source: str) -> str:
    """Refuse what no trusted key signed; return a line on how far the signatures can be trusted, or nothing.

    Raises:
        UnsignedPackageError: a configured key did not sign a package, or the list of packages.
        ChannelDamagedError: a signature does not fit its package.
    """
    problems = {path: problem for path in manifest.packages if (problem := signature_problem(manifest, path, trust))}
    if problems:
        first = sorted(problems)[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        kind = UnsignedPackageError if trust.configured else ChannelDamagedError
        raise kind(f"{source}: {first}{more}: {problems[first]}", _UNSIGNED_REMEDY if trust.configured else REMEDY)
    if problem := signer_problem(manifest, trust):
        raise UnsignedPackageError(f"{source}: {problem}", _UNSIGNED_REMEDY)
    if trust.configured or all(manifest.signed_by(path, trust.keys) for path in manifest.packages):
        return ""
    return (
        f"no key is configured, so nothing says who made {source}; its key is {manifest.signer}. To accept only "
        f"this key from now on, compare it with its publisher's and put {CHANNEL_KEY} into ~/.config/llama-cpp/trusted-keys"
    )


def signer_problem(manifest: Manifest, trust: Trust) -> str:
    """What is wrong with the signature of the list itself, or nothing.

    Whoever signs a list says which packages are in it: with the right signatures on each, it may still be old ones alone.
    """
    if trust.configured and manifest.signer not in trust.publishers:
        return f"the list of its packages is not signed by the configured key, but by {manifest.signer}"
    return ""


def signature_problem(manifest: Manifest, path: str, trust: Trust) -> str:
    """What is wrong with the signature of a package, or nothing."""
    if manifest.signed_by(path, trust.keys):
        return ""
    if trust.configured:
        names = ", ".join(manifest.packages[path].signatures) or "nobody"
        return f"not signed by the configured key, but by {names}"
    if not manifest.signed_by(path, manifest.public_keys()):
        return "its signature does not fit"
    return ""

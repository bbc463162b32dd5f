"""Whether the right key signed what a channel holds."""

from __future__ import annotations

from pathlib import Path

from ..console import say
from ..errors import ChannelDamagedError, ChannelNotFoundError, NoSignaturesError, UnsignedPackageError
from ..files import LARGEST_DOCUMENT, sha256_of
from .keys import Trust, config_dir
from .manifest import CHANNEL_KEY, REMEDY, Manifest, fetch

_UNSIGNED_REMEDY = (
    f"do not install from it; if you trust its publisher, put the channel's {CHANNEL_KEY} into "
    "~/.config/llama-cpp/trusted-keys, or pass it with --key"
)


def open_signed(location: str, trust: Trust) -> Manifest | None:
    """The manifest of a channel, after its signatures were checked.

    Where a key is configured, it must have signed the list and every package in it. Where none is, a channel without a
    manifest gives None, and a line says that nothing vouches for the others.

    Raises:
        UnsignedPackageError: a configured key did not sign a package or the list.
        NoSignaturesError: a key is configured, and the channel has no manifest.
        ChannelUnreachableError, ChannelDamagedError: there is no manifest that can be read.
    """
    try:
        manifest = fetch(location)
    except ChannelNotFoundError:
        if not trust.configured:
            return None
        raise NoSignaturesError(f"{location} has no signatures", _UNSIGNED_REMEDY) from None
    if note := require_signatures(manifest, trust, location):
        say(note)
    return manifest


def require_own_before_signing(content: Manifest, trust: Trust, folder: Path) -> None:
    """Refuse to sign anew what is in a channel, unless this machine's key or a configured one signed all that is there.

    Who can write to the folder can put in packages, indexes and a list of their own. Signed once more, they would be ours.

    Raises:
        UnsignedPackageError: another key signed the list or a package.
        ChannelDamagedError: a file is not the one that was signed.
    """
    known = trust.publishers
    foreign = next((path for path in content.packages if not content.signed_by(path, known)), None)
    if content.signer not in known or foreign:
        raise UnsignedPackageError(
            f"{folder}: {foreign or 'the list of its packages'} was signed neither by this machine's key nor by a trusted one",
            f"if you trust {content.signer}, put its key ({CHANNEL_KEY}) into {config_dir() / 'trusted-keys'}, and try again; "
            "else publish to a new folder: --channel DIR",
        )
    expected = {path: (digest, LARGEST_DOCUMENT) for path, digest in content.files.items()}
    expected |= {path: (entry.sha256, entry.size) for path, entry in content.packages.items()}
    for path, (digest, largest) in expected.items():
        try:
            found = sha256_of(folder / path, largest)
        except OSError as error:
            raise ChannelDamagedError(f"{folder / path} cannot be read: {error.strerror}", REMEDY) from None
        if found != digest:
            raise ChannelDamagedError(f"{path} in {folder} was changed since it was published", REMEDY)


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
    if not manifest.signed_by(path, manifest.public_keys):
        return "its signature does not fit"
    return ""

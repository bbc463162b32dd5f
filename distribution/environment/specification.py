"""What an environment file asks for."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rattler import Channel, MatchSpec
from rattler.exceptions import InvalidChannelError, InvalidMatchSpecError

from ..errors import EnvironmentFileError
from ..fetching import fetch_bytes
from ..files import expand, load_yaml, read_regular

CHANNEL_VARIABLE = "LLAMA_CPP_CHANNEL"
"""The variable by which environment.yml names our channel."""

_KEYS = ("name", "channels", "dependencies")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_SECONDS = 60
_LARGEST = 16 << 20
"""Bytes of a file. A lock of 10,000 packages has 2 MB."""
_LARGEST_YAML = 1 << 20
_LONGEST = 2000
"""Characters of a channel or a dependency."""
_SCHEMES = ("http", "https", "file", "oci", "s3")


@dataclass(frozen=True)
class Specification:
    """An environment file, read.

    Attributes:
        name: the environment's name; empty where the file gives none.
        channels: names and URLs, the most important first; folders are ``file://`` URLs.
        dependencies: match specifications, as written.
    """

    name: str
    channels: tuple[str, ...]
    dependencies: tuple[str, ...]


def read_text(source: str) -> str:
    """The text of an environment file or lock at a path or a URL.

    Raises:
        EnvironmentFileError: there is no such file, or it is not text.
        ChannelUnreachableError: the URL cannot be fetched.
    """
    data = fetch_bytes(source, _LARGEST, _SECONDS) if re.match(r"(?i)https?://", source) else _read(Path(source), source)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise EnvironmentFileError(f"{source} is not text", "name an environment file or a lock") from None


def _read(path: Path, source: str) -> bytes:
    try:
        # `-f <(a command)`: whoever writes into this pipe is running already
        if source.startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/")) and stat.S_ISFIFO(os.stat(path).st_mode):
            with path.open("rb") as pipe:
                return pipe.read(_LARGEST)
        return read_regular(path, _LARGEST)
    except FileNotFoundError:
        raise EnvironmentFileError(f"there is no {source}", "name the file: -f environment.yml") from None
    except OSError as error:
        raise EnvironmentFileError(f"{source} cannot be read: {error.strerror}", "check the path") from None


def parse(text: str, source: str, channel: str = "", only: Sequence[str] = ()) -> Specification:
    """Read an environment file.

    Args:
        source: where the text is from, for messages.
        channel: a URL, name or folder that takes the place of ``${LLAMA_CPP_CHANNEL}``, or comes first where the
            file does not mention it.
        only: use these channels, whatever the file lists.

    Raises:
        EnvironmentFileError: it is not YAML, has keys or dependencies that cannot be understood, or names a variable
            that is not set.
    """
    data = _load(text, source)
    name = data.get("name") or ""
    if not isinstance(name, str) or not name.isprintable():
        raise _wrong(source, "`name` must be text")
    dependencies = _texts(data, "dependencies", source)
    for dependency in dependencies:
        _check_dependency(dependency, source)
    listed = _texts(data, "channels", source) if "channels" in data else ()
    channels = tuple(only) or _fill_in(listed, channel, source)
    if not channels:
        raise _wrong(source, "it lists no channels")
    # conda's word for "not the channels of my .condarc", which are never used here
    return Specification(name, tuple(_locate(one, source) for one in channels if one != "nodefaults"), dependencies)


def _load(text: str, source: str) -> dict[str, Any]:
    try:
        data = load_yaml(text, _LARGEST_YAML)
    except ValueError as error:
        raise EnvironmentFileError(
            f"{source} is not YAML, or not such that is understood here: {error}", "correct the file"
        ) from None
    if not isinstance(data, dict):
        raise _wrong(source, "it is no mapping with `channels` and `dependencies`")
    if unknown := sorted(str(key) for key in data if key not in _KEYS):
        if "prefix" in unknown or "variables" in unknown:
            raise EnvironmentFileError(
                f"{source}: `{unknown[0]}` is understood by conda and not here",
                "take it out (-p gives the prefix), or use conda env create",
            )
        raise _wrong(source, f"unknown key `{unknown[0]}`; known are {', '.join(_KEYS)}")
    return data


def _texts(data: Mapping[str, Any], key: str, source: str) -> tuple[str, ...]:
    value = data.get(key)
    if isinstance(value, list):
        if any(isinstance(one, dict) and "pip" in one for one in value):
            raise EnvironmentFileError(
                f"{source}: packages for pip cannot be solved together with conda's", "take `pip:` out, and run pip afterwards"
            )
        if value and all(isinstance(one, str) and one.strip() and len(one) < _LONGEST for one in value):
            return tuple(value)
    raise _wrong(source, f"`{key}` must be a list of texts, none of them empty or longer than {_LONGEST} characters")


def _check_dependency(dependency: str, source: str) -> None:
    try:
        MatchSpec(dependency)
    except (InvalidMatchSpecError, ValueError) as error:
        raise _wrong(source, f"`{dependency}` is no package specification: {error}") from None
    if "/" in dependency.rpartition("::")[2]:
        # a file at an address of its own: no channel vouches for it
        raise _wrong(source, f"`{dependency}` names a file; name a package, and its channel under `channels`")


def _fill_in(listed: tuple[str, ...], channel: str, source: str) -> tuple[str, ...]:
    variables = {**os.environ, CHANNEL_VARIABLE: channel} if channel else dict(os.environ)
    mentions = any(CHANNEL_VARIABLE in one for one in listed)
    filled = tuple(_expand(one, variables, source) for one in listed)
    return filled if mentions or not channel else (channel, *filled)


def _expand(text: str, variables: Mapping[str, str], source: str) -> str:
    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if variables.get(name):
            return variables[name]
        raise EnvironmentFileError(
            f"{source} names a channel by ${{{name}}}, which is not set",
            f"export {name}=/path/or/url/of/the/channel, or pass --channel",
        )

    return _VARIABLE.sub(value, text)


def _locate(channel: str, source: str) -> str:
    if "://" not in channel:
        path = expand(channel)
        if path.is_absolute() or channel.startswith(".") or os.path.isdir(path):
            # not resolved: a published channel is a symbolic link that moves on
            return Path(os.path.abspath(path)).as_uri()
    try:
        scheme = Channel(channel).base_url.partition(":")[0]
    except (InvalidChannelError, ValueError) as error:
        raise _wrong(source, f"the channel {channel!r:.200} cannot be understood: {error}") from None
    if scheme not in _SCHEMES or not channel.isprintable() or not channel.strip() or len(channel) > _LONGEST:
        raise _wrong(source, f"{channel!r:.200} is no name and no address of a channel")
    return channel


def _wrong(source: str, what: str) -> EnvironmentFileError:
    return EnvironmentFileError(f"{source}: {what}", "correct the file; the repository's environment.yml is an example")

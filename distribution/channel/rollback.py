"""The newest generation of each channel that was seen, so that an old one is not taken for it.

An old list carries good signatures. Who replays it brings back what has since been mended or taken out.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from ..console import say
from ..errors import OlderGenerationError
from ..files import link_to_nothing, load_json, locked, read_regular, write_atomically
from .keys import state_dir

FLAG = "--allow-older"
_LARGEST = 16 << 20


def check(location: str, generation: int, allow_older: bool = False) -> None:
    """Refuse a generation of a channel that is older than the newest one seen at its address; remember a newer one.

    Args:
        location: the channel's address.
        allow_older: take it, and remember it in place of the newer one.

    Raises:
        OlderGenerationError: it is older, or what was seen cannot be read.
    """
    file = state_dir() / "channels.json"
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(file.with_suffix(".lock"), "the list of channels"))
        except OSError as error:
            say(f"note: {file} cannot be written ({error.strerror}): an older {location} will not be noticed")
        seen = _read(file)
        newest = seen.get(location, 0)
        if generation < newest and not allow_older:
            raise OlderGenerationError(
                f"{location} offers generation {generation}, and had {newest} before: somebody may be replaying an old one",
                f"ask its publisher; if it was made anew, or brought back on purpose, go back once with {FLAG}",
            )
        if generation != newest:
            with contextlib.suppress(OSError):
                write_atomically(file, json.dumps({**seen, location: generation}, indent=1) + "\n")


def is_known(location: str) -> bool:
    """Whether a generation of the channel at this address was seen.

    Raises:
        OlderGenerationError: what was seen cannot be read.
    """
    return location in _read(state_dir() / "channels.json")


def _read(file: Path) -> dict[str, int]:
    try:
        seen = load_json(read_regular(file, _LARGEST), _LARGEST)
    except FileNotFoundError:
        if link := link_to_nothing(file):
            raise OlderGenerationError(
                f"what was seen of channels cannot be read: {link} is a link to nothing", "restore what it leads to, or remove it"
            ) from None
        return {}
    except (OSError, ValueError) as error:
        raise OlderGenerationError(f"what was seen of channels cannot be read: {file}: {error}", "restore or remove it") from None
    if not isinstance(seen, dict) or not all(isinstance(one, int) for one in seen.values()):
        raise OlderGenerationError(f"{file} is no list of channels and generations", "restore or remove it")
    return seen

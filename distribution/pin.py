"""``vendor/llama.cpp/pin.toml``: which llama.cpp this repository builds."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from .errors import PinError
from .files import load_toml, record
from .patches import Patch
from .pip import IndexFile

TEMPLATE = """\
# The llama.cpp that this repository builds. Moved by `python -m distribution vendor update`.
commit = {commit}
tree = {tree}
date = {date}
git = {git}

[carrier]
name = {name}
version = {version}
filename = {filename}
sha256 = {sha256}
prefix = {prefix}
"""

GIT_ID = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Carrier(IndexFile):
    """The release on the package index that carries the tree, in the folder ``prefix``."""

    prefix: str


@dataclass(frozen=True)
class Pin:
    """A llama.cpp commit: its id, its git tree's id, its date, its repository and its carrier."""

    commit: str
    tree: str
    date: str
    git: str
    carrier: Carrier

    @classmethod
    def load(cls, path: Path) -> Pin:
        """Read a pin.

        Raises:
            PinError: the file is missing, malformed or lacks a key.
        """
        data = load_toml(path)
        try:
            pin = record(cls, {**data, "carrier": record(Carrier, data.get("carrier"), "carrier")})
            pin.check()
            return pin
        except ValueError as error:
            raise PinError(f"{path}: {error}", f"restore it: git checkout -- {path}") from None

    def check(self) -> None:
        """Raise ValueError where a value is none that this key can have: they become paths, and arguments of git and pip."""
        carrier = self.carrier
        carrier.check(".tar.gz", "carrier.")
        for name, value in (("commit", self.commit), ("tree", self.tree)):
            if not GIT_ID.fullmatch(value):
                raise ValueError(f"{name} cannot be {value!r:.80}")
        # fromisoformat() takes other forms, too, from Python 3.11
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", self.date):
            raise ValueError(f"date is no day: {self.date!r:.80}")
        datetime.date.fromisoformat(self.date)
        if not self.git or self.git.startswith("-"):
            raise ValueError(f"git is no address: {self.git!r:.80}")
        prefix = PurePosixPath(carrier.prefix)
        if prefix.is_absolute() or str(prefix) != carrier.prefix or not prefix.parts or ".." in prefix.parts:
            raise ValueError(f"carrier.prefix is no folder in an archive: {carrier.prefix!r:.80}")

    def dumps(self) -> str:
        """The text of the pin file; :meth:`load` reads it back."""
        values = asdict(self)
        values |= values.pop("carrier")
        # a text of TOML is quoted as one of JSON is
        return TEMPLATE.format(**{key: json.dumps(value, ensure_ascii=False) for key, value in values.items()})

    def fingerprint(self, patches: Sequence[Patch]) -> str:
        """A name for this tree with these patches: it changes when either does."""
        parts = [self.tree, *(f"{patch.name} {patch.sha256}" for patch in patches)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

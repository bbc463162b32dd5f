"""``vendor/llama.cpp/pin.toml``: which llama.cpp this repository builds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import PinError
from .files import load_toml
from .patches import Patch
from .pip import IndexFile

TEMPLATE = """\
# The llama.cpp that this repository builds. Moved by `python -m distribution vendor update`.
commit = "{commit}"
tree = "{tree}"
date = "{date}"
git = "{git}"

[carrier]
name = "{name}"
version = "{version}"
filename = "{filename}"
sha256 = "{sha256}"
prefix = "{prefix}"
"""


@dataclass(frozen=True)
class Carrier:
    """The release on the package index that carries the tree, in the folder ``prefix``."""

    name: str
    version: str
    filename: str
    sha256: str
    prefix: str

    @property
    def file(self) -> IndexFile:
        return IndexFile(self.name, self.version, self.filename, self.sha256)


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
            carrier = Carrier(**data.pop("carrier"))
            return cls(**data, carrier=carrier)
        except (KeyError, TypeError) as error:
            raise PinError(f"{path}: {error}", f"restore it: git checkout -- {path}") from None

    def dumps(self) -> str:
        """The text of the pin file; :meth:`load` reads it back."""
        return TEMPLATE.format(commit=self.commit, tree=self.tree, date=self.date, git=self.git, **vars(self.carrier))

    def fingerprint(self, patches: Sequence[Patch]) -> str:
        """A name for this tree with these patches: it changes when either does."""
        parts = [self.tree, *(f"{patch.name} {patch.sha256}" for patch in patches)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

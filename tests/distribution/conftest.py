"""What several modules of this folder begin with: a vendor folder, a folder to publish in, the owner of a channel's key.

The helper modules with classes from packages that may be missing are imported where they are used: modules of tests that need
such a package are skipped then, and the others run.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine_carrier import Setting

if TYPE_CHECKING:
    from conda_packages import Place


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """A vendor folder of its own for a test, with nothing of the user's pip in the way."""
    made = Setting(tmp_path)
    for name in ("LLAMA_CPP_SOURCE_DIR", "PIP_CONSTRAINT", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.index))
    monkeypatch.setenv("LLAMA_CPP_CACHE", str(made.cache))
    return made


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Where a test publishes: nothing is published yet, and no key is configured."""
    from conda_packages import place_in

    return place_in(tmp_path, monkeypatch)


@pytest.fixture
def owner(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Who holds the channel's key: ``tool`` 1 and 2 are published, and 2 needs ``helper``."""
    from trusted_keys import publish_tools

    for name, folder in {
        "HOME": "home", "XDG_STATE_HOME": "state", "LLAMA_CPP_CACHE": "cache", "RATTLER_CACHE_DIR": "repodata",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.chdir(tmp_path)
    publish_tools(place, tmp_path)
    return place


@pytest.fixture
def owner_key(owner: Place, tmp_path: Path) -> Path:
    """The owner's public key, as another machine has it."""
    return Path(shutil.copy(tmp_path / "config/llama-cpp/signing-key.pub", tmp_path / "owner.pub"))


@pytest.fixture
def elsewhere(owner_key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """From here on this is another machine, with a key of its own."""
    from distribution.channel import keys

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    keys.signing_key()
    return tmp_path / "elsewhere/llama-cpp"


@pytest.fixture(scope="module")
def seed_channel() -> Path:
    """The channel of this machine's Python, compiler and wheels, in the user's cache."""
    from distribution.errors import DownloadError
    from distribution.seed import seed

    try:
        return seed(quiet=True)
    except DownloadError as error:
        pytest.skip(error.message)


@pytest.fixture(scope="module")
def served_channel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a published channel with a large file, for ``serving``."""
    from serving import publish_channel

    return publish_channel(tmp_path_factory.mktemp("served"))

"""Every command, given damaged inputs by a generator: it ends with a message, and leaves nothing behind.

``damage.py`` damages, ``damage_setting.py`` has the commands and a small setting in which each of them succeeds,
``damage_process.py`` watches and limits the process, and ``damage_run.py`` runs one command and looks at what came of it.
``python damage_run.py SEED`` repeats one case.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

for module in ("rattler", "cryptography", "cyclonedx", "yaml"):
    pytest.importorskip(module, reason="pip install llama_cpp_python[conda]")
if not shutil.which("git") or not shutil.which("cc"):
    pytest.skip("git and a C compiler are needed", allow_module_level=True)

import damage_process
import damage_run
from damage_setting import COMMANDS, World

SHORT, LONG, PARTS = 12, 500, 40
"""Damaged inputs in a test, and tests: 480 inputs by default (a minute of one core), 20,000 others with those marked slow."""
WRITERS = (
    "vendor",
    "channel publish",
    "channel import",
    "channel export",
    "channel prune",
    "env create",
    "env lock -o",
    "provenance",
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with damage_process.misbehaving_server() as address:
        yield address


@pytest.fixture(scope="module")
def world(url: str) -> Iterator[World]:
    # not pytest's own folder, which nobody else may enter: some runs are another user's
    folder = Path(tempfile.mkdtemp(prefix="damage-"))
    folder.chmod(0o755)
    made = World(folder)
    assert damage_run.warm_up(made) == []
    yield made
    made.unlock()
    shutil.rmtree(folder)


def commands() -> tuple[str, ...]:
    """Those whose tools are here."""
    try:
        import clang.cindex  # noqa: F401
    except ImportError:
        return tuple(name for name in COMMANDS if name != "vendor update")
    return tuple(COMMANDS)


def told(results: Iterable[tuple[damage_run.Case, list[str]]]) -> str:
    """The cases in which something did not hold."""
    return "\n".join("\n    ".join([str(case), *wrong]) for case, wrong in results if wrong)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_command_ends_with_a_message(world: World, url: str, part: int) -> None:
    seeds = range(part * SHORT, (part + 1) * SHORT)
    wrong = told(damage_run.check(world, seed, commands(), url, again=seed % 8 == 0) for seed in seeds)
    assert not wrong, wrong


@pytest.mark.slow
@pytest.mark.generator
@pytest.mark.parametrize("part", range(PARTS))
def test_every_command_ends_with_a_message_at_length(world: World, url: str, part: int) -> None:
    seeds = range(1_000_000 + part * LONG, 1_000_000 + (part + 1) * LONG)
    wrong = told(damage_run.check(world, seed, commands(), url, again=seed % 4 == 0) for seed in seeds)
    assert not wrong, wrong


@pytest.fixture(scope="module")
def full() -> Iterator[tuple[World, damage_process.Disk]]:
    """A setting on a disk of its own."""
    folder = Path(tempfile.mkdtemp(prefix="damage-"))
    try:
        disk = damage_process.Disk(folder / "world")
    except (OSError, subprocess.CalledProcessError):
        shutil.rmtree(folder)
        pytest.skip("only root can mount a disk, and not in every container")
    made = World(folder)
    assert damage_run.warm_up(made) == []
    yield made, disk
    made.unlock()
    disk.close()
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.generator])])
def test_a_disk_that_is_full_or_read_only(full: tuple[World, damage_process.Disk], count: int) -> None:
    names = tuple(name for name in commands() if name.startswith(WRITERS))
    wrong = told(damage_run.check_full_disk(full[0], seed, names, full[1]) for seed in range(count))
    assert not wrong, wrong


@pytest.mark.slow
@pytest.mark.generator
def test_a_signal_at_any_moment(world: World) -> None:
    wrong = told(damage_run.check_interrupted(world, seed, commands()) for seed in range(1000))
    assert not wrong, wrong


@pytest.mark.parametrize("name", ["-a b ü q'u\"o$(touch pwned)`te%20#c?d[x]{y}*\\", "new\nline", "a:b"])
def test_every_command_succeeds_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    # the build engine's own scripts do not quote the folder that they build in
    assert damage_run.warm_up(World(tmp_path / name), but=("build",) if "$(" in name else ()) == []

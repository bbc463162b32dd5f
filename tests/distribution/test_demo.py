"""What `make demo` finds out before it begins, and not after the first compile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("rattler")

from distribution import demo
from distribution.errors import BuildError
from distribution.packaging import build


@pytest.fixture
def writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("LLAMA_CPP_CACHE", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "not there yet" / variable))
    monkeypatch.setattr(build, "ROOT", tmp_path / "build")
    return tmp_path


def test_folders_are_looked_at_and_not_made(writable: Path) -> None:
    demo._check_places()
    assert not list(writable.iterdir())


@pytest.mark.parametrize("variable", ["LLAMA_CPP_CACHE", "XDG_CONFIG_HOME"])
@pytest.mark.parametrize("kind", ["file", "dangling link", "read-only folder"])
def test_a_folder_that_cannot_be_written_to_is_named(
    writable: Path, monkeypatch: pytest.MonkeyPatch, variable: str, kind: str
) -> None:
    place = writable / "place"
    if kind == "file":
        place.write_text("")
    elif kind == "read-only folder":
        place.mkdir(mode=0o500)
        if os.access(place, os.W_OK):
            pytest.skip("root may write everywhere")
    elif kind == "dangling link":
        place.symlink_to("/nonexistent/folder")
    monkeypatch.setenv(variable, str(place / "below"))
    with pytest.raises(BuildError, match="cannot be written to") as caught:
        demo._check_places()
    assert caught.value.remedy == f"name another folder: {variable}=/a/folder make demo"


NOEXEC = """
set -e
mount -t tmpfs -o noexec tmpfs "$1"
exec "$2" -c "
import sys
from pathlib import Path
from distribution import demo
from distribution.packaging import build
build.ROOT = Path(sys.argv[1], 'llama-cpp-build')
$3" "$1"
"""


@pytest.mark.parametrize("what", ["demo._check_places()", "build.build(['cpu'], output=Path(sys.argv[1], 'made'))"])
def test_where_no_program_can_run_nothing_is_begun(writable: Path, what: str) -> None:
    own = ["unshare", "--mount", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("no mounts of one's own can be made here")
    done = subprocess.run(
        [*own, "sh", "-c", NOEXEC, "sh", writable, sys.executable, what], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, **{name: str(writable) for name in ("LLAMA_CPP_CACHE", "XDG_CONFIG_HOME", "XDG_STATE_HOME")}},
    )  # fmt: skip
    assert "BuildError: no program can run in" in done.stderr, done.stderr


def test_packages_are_not_begun_where_no_program_can_run(writable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = os.statvfs(writable)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((*flags[:8], flags.f_flag | os.ST_NOEXEC, flags.f_namemax)))
    with pytest.raises(BuildError, match=f"no program can run in {writable}") as caught:
        build.build(["cpu"], output=writable / "made")
    assert "remount,exec" in caught.value.remedy and not (writable / "made").exists()

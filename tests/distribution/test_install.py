"""What `make demo` and `make test` begin with, where the environment or the machine would send it astray."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

from distribution import install
from distribution.install import InstallError

# what people have in their environment, each of which once sent what is installed elsewhere, or hid it
HOSTILE = {
    "PIP_USER": "1", "PIP_TARGET": "elsewhere", "PIP_PREFIX": "elsewhere", "PIP_ROOT": "elsewhere", "PIP_DRY_RUN": "1",
    "PIP_REQUIRE_HASHES": "1", "PIP_NO_BINARY": ":all:", "PIP_PYTHON": "/nonexistent", "PIP_PLATFORM": "win32",
    "PYTHONHOME": "/nonexistent", "PYTHONPATH": "elsewhere", "PYTHONSAFEPATH": "1", "PYTHONINSPECT": "1",
    "PYTHONWARNINGS": "error", "_PYTHON_SYSCONFIGDATA_NAME": "_sysconfigdata_of_another",
    "LANGUAGE": "de", "LC_ALL": "de_DE.ISO-8859-1", "DESTDIR": "elsewhere", "NINJA_STATUS": "ninja ",
}  # fmt: skip


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Such an environment, with pip's configuration against us too; the folder that a checkout would be."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "pip").mkdir(parents=True)
    (elsewhere / "pip" / "__init__.py").write_text("raise SystemExit('another pip')\n")
    (tmp_path / "pip.conf").write_text("[install]\nuser = yes\n")
    for name, value in {**HOSTILE, "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}.items():
        monkeypatch.setenv(name, str(elsewhere) if value == "elsewhere" else value)
    checkout = tmp_path / "check out"
    checkout.mkdir()
    monkeypatch.setattr(install, "ROOT", checkout)
    return checkout


def test_a_wheel_lands_in_the_virtual_environment(hostile: Path) -> None:
    wheel = hostile / "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small.py", "where = __file__\n")
        archive.writestr("small-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr("small-1.0.dist-info/WHEEL", tags)
        archive.writestr("small-1.0.dist-info/RECORD", "")
    python = install.make_venv(hostile / "ven v")
    install.pip(python, "a wheel", ["install", "--no-index", str(wheel)])
    asked = [str(python), "-c", "import small; print(small.where)"]
    where = subprocess.run(asked, env={}, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(where).is_relative_to(hostile / "ven v")
    assert [path.name for path in (hostile.parent / "elsewhere").iterdir()] == ["pip"]


def test_where_files_come_from_stays_the_users_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {
        "PIP_INDEX_URL": "file:///a", "PIP_EXTRA_INDEX_URL": "file:///b", "PIP_FIND_LINKS": "/c", "PIP_NO_INDEX": "1",
        "PIP_CERT": "/d", "PIP_CONSTRAINT": "/e", "PIP_PROXY": "f", "CC": "gcc", "CXXFLAGS": "-g", "CMAKE_ARGS": "-DX=1",
        "CMAKE_GENERATOR": "Unix Makefiles", "TMPDIR": "/g",
    }  # fmt: skip
    for name, value in kept.items():
        monkeypatch.setenv(name, value)
    assert kept.items() <= install.clean_environment().items()


def test_a_virtual_environment_whose_python_is_gone(tmp_path: Path) -> None:
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/python").symlink_to("/nonexistent/python3")
    with pytest.raises(InstallError, match="is gone") as caught:
        install.make_venv(tmp_path / "venv")
    assert caught.value.remedy == f"Remove it: rm -r {shlex.quote(str(tmp_path / 'venv'))}"


@pytest.mark.parametrize(
    ("tools", "variables", "words"),
    [
        (["cc", "git"], {}, "no C++ compiler"),
        (["c++", "git"], {}, "no C compiler"),
        (["c++", "cc", "git"], {"CXX": "/nonexistent/g++ -m64"}, "CXX=/nonexistent/g++ is not there"),
        (["c++", "cc"], {}, "neither git nor patch"),
        (["c++", "cc", "patch"], {}, ""),
        (["clang++", "clang", "git"], {}, ""),
        (["g++", "gcc", "git"], {"CXX": "g++", "CC": "gcc -m64"}, ""),
    ],
)
def test_what_only_an_administrator_can_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tools: list[str], variables: dict[str, str], words: str
) -> None:
    for name in ("CC", "CXX", "LLAMA_CPP_SOURCE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in tools:
        (tmp_path / name).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install, "ROOT", tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if not words:
        return install.check_machine()
    with pytest.raises(InstallError) as caught:
        install.check_machine()
    assert words in caught.value.message and "apt-get install" in caught.value.remedy


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    "step", ["pip(Path(sys.argv[1], 'bin/python'), 'a step', ['install'])", "make_venv(Path(sys.argv[1], 'new'))"]
)
def test_nothing_goes_on_after_a_signal(tmp_path: Path, number: int, step: str) -> None:
    """Neither pip nor what it started, such as a compile, which would go on writing."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    # pip, and a compile that writes every moment and reads no pipe of ours
    python.write_text(
        f"#!/bin/sh\n(while :; do date +%N > '{tmp_path}/new/object'; sleep 0.05; done) >/dev/null 2>&1 &\n"
        f"mkdir -p '{tmp_path}/new'\necho '[1/2] compiling'\nwait\n"
    )
    python.chmod(0o755)
    script = f"""
import sys
from pathlib import Path
from distribution import install, interruption, console
install.ROOT = Path(sys.argv[1])
sys.executable = str(Path(sys.argv[1], "bin/python"))
interruption.install()
sys.exit(console.run(lambda: install.{step}))
"""
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    object_file = tmp_path / "new/object"
    until(object_file.exists)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in said
    if "make_venv" in step:
        assert not (tmp_path / "new").exists()
        return
    written = object_file.read_text()
    time.sleep(0.3)
    assert object_file.read_text() == written


def until(holds: Callable[[], bool]) -> None:
    over = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < over
        time.sleep(0.05)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_the_makefile_is_not_led_astray_by_variables_of_python(tmp_path: Path) -> None:
    """It starts `python3 -m distribution…`, which finds this folder's code and this Python's library whatever is set."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "distribution").mkdir()
    (tmp_path / "distribution/__init__.py").write_text("")
    (tmp_path / "distribution/install.py").write_text("print('here')")
    hostile = {name: value for name, value in HOSTILE.items() if name.startswith("PYTHON")}
    done = subprocess.run(
        ["make", "tools", f"PYTHON={shlex.quote(sys.executable)}"], cwd=tmp_path,
        env={**os.environ, **hostile, "PYTHONPATH": "/nonexistent"}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("here"), done.stdout + done.stderr

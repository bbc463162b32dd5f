"""The scripts of the recipe, each run by itself: what builds, and the tests inside the packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from llama_cpp import __version__ as VERSION

ROOT = Path(__file__).resolve().parents[2]

from distribution.errors import DistributionError
from distribution.files import cache_dir

RECIPE = ROOT / "recipe"
TESTS = RECIPE / "tests"


def run(*command: object, path: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    if path:
        variables["PATH"] = f"{path}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run([str(one) for one in command], env=variables, capture_output=True, text=True, timeout=120)


# check_files.py -------------------------------------------------------------------------------------------------------


THIS_LIBLLAMA = f"libllama =={VERSION} h1a_0"


def installed(
    prefix: Path, files: dict[str, str], types: dict[str, str] | None = None, depends: Sequence[str] = (THIS_LIBLLAMA,)
) -> None:
    """The package ``some-thing`` in an environment, as conda records it; another one has a name that begins alike."""
    paths = []
    for path, text in files.items():
        (prefix / path).parent.mkdir(parents=True, exist_ok=True)
        (prefix / path).write_text(text)
        paths.append({"_path": path, "path_type": (types or {}).get(path, "hardlink")})
    (prefix / "conda-meta").mkdir(parents=True, exist_ok=True)
    for name, held in (("some-thing", paths), ("some-thing-else", [])):
        record = {"name": name, "depends": list(depends), "paths_data": {"paths": held}}
        (prefix / "conda-meta" / f"{name}-1.0-h0_0.json").write_text(json.dumps(record))


def check_files(prefix: Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, TESTS / "check_files.py", prefix, "some-thing")


@pytest.mark.parametrize(
    "path",
    [
        "file:///tmp/llama-cpp-build/output/bld/rattler-build_llama-cpp-python/work",
        "/opt/conda-bld/thing_1/work",
        "/some/host_env_placehold_placehold_pl/lib",
    ],
)
def test_a_file_of_any_kind_that_holds_the_build_folder_is_found(tmp_path: Path, path: str) -> None:
    installed(tmp_path, {"lib/good.json": "{}", "lib/some.dist-info/direct_url.json": json.dumps({"url": path})})
    done = check_files(tmp_path)
    assert done.returncode == 1 and "direct_url.json holds a path" in done.stdout, done.stdout + done.stderr
    assert "2 files of some-thing checked, 1 complaints" in done.stdout


def test_a_file_that_belongs_to_one_environment_alone_is_found(tmp_path: Path) -> None:
    installed(tmp_path, {"lib/pkgconfig/some.pc": f"prefix={tmp_path}/lib\n"})
    assert check_files(tmp_path).returncode == 1


def test_what_installing_makes_and_the_tests_themselves_may_hold_paths(tmp_path: Path) -> None:
    files = {
        "bin/some": f"#!{tmp_path}/bin/python\n",
        "lib/__pycache__/some.pyc": f"{tmp_path}/lib/some.py",
        "etc/conda/test-files/some-thing/0/tests/check_files.py": "rattler-build_",
        "share/some.txt": "good",
    }
    types = {"bin/some": "unix_python_entry_point", "lib/__pycache__/some.pyc": "pyc_file"}
    installed(tmp_path, files, types)
    done = check_files(tmp_path)
    assert (done.returncode, done.stdout) == (0, "1 files of some-thing checked, 0 complaints\n")


def test_a_link_to_the_build_folder_is_found(tmp_path: Path) -> None:
    installed(tmp_path, {"lib/some.so": ""})
    (tmp_path / "lib" / "some.so").unlink()
    (tmp_path / "lib" / "some.so").symlink_to("/tmp/build_env/lib/some.so.1")
    assert check_files(tmp_path).returncode == 1


@pytest.mark.parametrize(
    ("depends", "said"),
    [
        ((THIS_LIBLLAMA, "gcc_linux-64 14.*"), "brings gcc_linux-64 14.*"),
        ((THIS_LIBLLAMA, "cuda-driver-dev >=13"), "brings cuda-driver-dev"),
        ((THIS_LIBLLAMA, "nccl >=2"), "brings nccl"),
        ((f"libllama >={VERSION}", "python >=3.10"), "does not ask for one libllama alone"),
        (("python",), "does not ask for one libllama alone"),
    ],
)
def test_what_a_package_brings_along_is_looked_at(tmp_path: Path, depends: tuple[str, ...], said: str) -> None:
    installed(tmp_path, {"lib/some.txt": "good"}, depends=depends)
    done = check_files(tmp_path)
    assert done.returncode == 1 and said in done.stdout, done.stdout + done.stderr


def test_what_a_package_needs_to_run_may_be_brought_along(tmp_path: Path) -> None:
    installed(
        tmp_path, {"lib/some.txt": "good"}, depends=(THIS_LIBLLAMA, "libgcc >=12", "cuda-cudart >=13.4.92", "python >=3.10")
    )
    assert check_files(tmp_path).returncode == 0


def test_a_package_without_files_is_not_taken_for_a_good_one(tmp_path: Path) -> None:
    installed(tmp_path, {})
    assert check_files(tmp_path).returncode == 1


# check_elf.py ---------------------------------------------------------------------------------------------------------

LIBRARIES = {
    # weak in libstdc++: whoever defines it strongly takes it over for the whole process
    "operator-new": "#include <cstdlib>\n#include <new>\nvoid * operator new(std::size_t n) { return std::malloc(n); }\n",
    "iostream": "extern char _ZSt4cout[272]; char _ZSt4cout[272];\n",
    "own": "#include <string>\nstd::string mine(int n) { return std::to_string(n) + std::string(3, 'a'); }\n",
}


@pytest.fixture(scope="module")
def elftools() -> str:
    """The folder or wheel to import pyelftools from, as the packages' tests have it."""
    pins = pytest.importorskip("distribution.seed.pins")
    wanted = [wheel for wheel in pins.load(sys.version_info[:2]) if wheel.name == "pyelftools"]
    try:
        return str(pins.fetch(wanted, cache_dir())[0])
    except DistributionError as error:
        pytest.skip(f"pyelftools cannot be had: {error}")


@pytest.mark.parametrize(("name", "wrong"), [("operator-new", True), ("iostream", True), ("own", False)])
def test_a_library_that_takes_over_a_symbol_of_libstdcxx_is_found(tmp_path: Path, elftools: str, name: str, wrong: bool) -> None:
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    lib = tmp_path / "lib"
    lib.mkdir()
    (lib / "some.cpp").write_text(LIBRARIES[name])
    made = run("g++", "-shared", "-fPIC", lib / "some.cpp", "-o", lib / "libsome.so")
    assert made.returncode == 0, made.stderr
    shared = run("g++", "-print-file-name=libstdc++.so.6").stdout.strip()
    shutil.copyfile(Path(shared).resolve(), lib / "libstdc++.so.6")
    done = run(sys.executable, TESTS / "check_elf.py", tmp_path, "lib/libsome.so", PYTHONPATH=elftools)
    assert done.returncode == int(wrong), done.stdout + done.stderr
    assert ("symbols of libstdc++" in done.stdout) == wrong


# nvidia_licences.py ---------------------------------------------------------------------------------------------------


def unpacked(tmp_path: Path, name: str, licences: dict[str, str]) -> Path:
    """An environment with a package whose licences lie where it was unpacked to; returns the environment."""
    folder = tmp_path / "pkgs" / name
    for file, text in licences.items():
        (folder / "info" / "licenses" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "info" / "licenses" / file).write_text(text)
    prefix = tmp_path / "environment"
    (prefix / "conda-meta").mkdir(parents=True, exist_ok=True)
    record = {"name": name, "extracted_package_dir": str(folder)}
    (prefix / "conda-meta" / f"{name}-1.0-h0_0.json").write_text(json.dumps(record))
    return prefix


def test_nvidias_licences_are_taken_from_where_packages_were_unpacked(tmp_path: Path) -> None:
    for name in ("cuda-nvcc_linux-64", "cuda-cccl", "libcublas-dev", "cmake"):
        prefix = unpacked(tmp_path, name, {"LICENSE": f"of {name}", "more/EULA.txt": "more"})
    unpacked(tmp_path, "cuda-cudart", {})
    done = run(sys.executable, RECIPE / "nvidia_licences.py", tmp_path / "out", prefix, tmp_path)
    assert done.returncode == 0, done.stderr
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    names = ("cuda-nvcc_linux-64", "cuda-cccl", "libcublas-dev")
    assert found == {f"{name}/{file}" for name in names for file in ("LICENSE", "more/EULA.txt")}
    assert (tmp_path / "out" / "cuda-cccl" / "LICENSE").read_text() == "of cuda-cccl"


def test_a_build_without_nvidias_licences_fails(tmp_path: Path) -> None:
    prefix = unpacked(tmp_path, "cmake", {"LICENSE": "of cmake"})
    done = run(sys.executable, RECIPE / "nvidia_licences.py", tmp_path / "out", prefix)
    assert done.returncode == 1 and "terms" in done.stderr
    build = (RECIPE / "build-cuda.sh").read_text()
    assert "set -euo pipefail" in build
    assert '\npython "$RECIPE_DIR/nvidia_licences.py" licenses "$BUILD_PREFIX" "$PREFIX"\n' in build

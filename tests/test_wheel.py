"""The wheel: what it is called, what it holds, and that the tests pass against it as well as the editable install."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from llama_cpp import __version__ as VERSION
from llama_cpp.capi.loader import SONAMES

#: Not run a second time: they are about the checkout, not about what is installed.
ABOUT_THE_CHECKOUT = (
    "distribution", "test_wheel.py", "test_build.py", "test_build_folders.py", "test_docs.py", "test_structure.py",
    "test_native_leaks.py",
    "test_plugin_search.py",
)  # fmt: skip


@pytest.fixture(scope="session")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with pip; the objects of the editable build are used again."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, "."],
        cwd=root, check=True, capture_output=True, text=True,
    )  # fmt: skip
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment with the wheel; what it depends on is borrowed from this one."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)}))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel],
        check=True, capture_output=True,
    )  # fmt: skip
    # a path in a .pth file is searched last, and .pth files in it (the editable install's) are not read
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def test_name_says_that_any_python_will_do(wheel: Path) -> None:
    assert wheel.name == f"llama_cpp_python-{VERSION}-py3-none-linux_x86_64.whl"


def test_holds_each_library_once_and_nothing_foreign(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    libraries = [name for name in names if ".so" in name]
    assert sorted(name for name in libraries if Path(name).name in SONAMES.values()) == sorted(
        f"llama_cpp/lib/{soname}" for soname in SONAMES.values()
    )
    others = [name for name in libraries if Path(name).name not in SONAMES.values()]
    assert others and all(name.startswith("llama_cpp/lib/libggml-") for name in others)
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"llama_cpp", f"llama_cpp_python-{VERSION}.dist-info"}
    assert not [name for name in names if name.endswith((".a", ".cmake", ".pc", ".h"))]
    assert f"llama_cpp_python-{VERSION}.dist-info/licenses/LICENSE" in names
    assert "llama_cpp/licenses/llama.cpp.txt" in names


def test_meets_what_others_require_by_name(installed: Path) -> None:
    script = "from importlib.metadata import version; print(version('llama-cpp-python'))"
    assert subprocess.run([installed, "-c", script], capture_output=True, text=True).stdout.strip() == VERSION


#: What takes minutes, and is the same wherever the package and its libraries lie.
WHEREVER_IT_LIES = {
    "engine", "test_assembler.py", "test_arguments.py", "test_attention.py", "test_conversations.py", "test_grammar_text.py",
    "test_json_schema.py", "test_json_schema_chats.py", "test_json_schema_generated.py", "test_limits.py",
    "test_pretokenizers.py",
}  # fmt: skip


@pytest.mark.slow
def test_the_suite_passes_against_the_wheel(installed: Path, root: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [installed, "-c", "from llama_cpp.capi.loader import library_folder as f; print(f())"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert Path(where).is_relative_to(installed.parent.parent), "the editable install got in the way"

    left_out = {*ABOUT_THE_CHECKOUT, *WHEREVER_IT_LIES}
    tests = [p for p in sorted((root / "tests").iterdir()) if p.name not in left_out]
    selected = [str(p) for p in tests if (p.is_dir() and p.name != "__pycache__") or p.name.startswith("test_")]
    shutil.copy(root / "pyproject.toml", tmp_path)  # pytest's settings
    # not the repository, which has the package, too
    helpers = [str(root / "tests" / folder) for folder in (".", "engine", "models")]
    # this process may be a worker itself
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [installed, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--rootdir", tmp_path, "-c",
         tmp_path / "pyproject.toml", "-o", f"pythonpath={shlex.join(helpers)}", *selected],
        cwd=tmp_path, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout

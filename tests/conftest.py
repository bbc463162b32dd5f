"""What the tests share: the libraries under test, the engine's source and tools, a real model."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# They would have what tests start look elsewhere, write elsewhere, or say something else.
DROPPED = (
    "CMAKE_INSTALL_MODE", "CLICOLOR_FORCE", "DESTDIR", "FORCE_COLOR", "LANGUAGE", "MAKEFLAGS", "MAKELEVEL", "MFLAGS",
    "PIP_PREFIX", "PIP_QUIET", "PIP_TARGET", "PIP_USER", "PYTHONHOME", "PYTHONOPTIMIZE", "PYTHONPATH",
    "PYTHONSAFEPATH", "PYTHONWARNINGS",
)  # fmt: skip


#: Fixtures that fetch what is not in the caches yet; the tests that use them get the marker.
FETCHING = {"model": {"smollm2", "minilm_file"}, "network": {"seed_channel", "elftools"}}


def pytest_configure(config: pytest.Config) -> None:
    """Gives Ctrl-C back, and pins each worker of pytest-xdist, and so its children, to one processor.

    Two processes whose threads wait for each other on the same processors take several times as long as in turn.
    """
    # what a shell starts in the background ignores Ctrl-C, and so would every child that tests it
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # so would what nohup starts, of a terminal that goes away; a handler is nobody else's, and it still does nothing here
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    for name in [name for name in os.environ if name in DROPPED or name.startswith("GIT_")]:
        del os.environ[name]
    tempfile.tempdir = os.environ["TMPDIR"] = _temporary_folder()
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker:
        usable = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {usable[int(worker.removeprefix("gw")) % len(usable)]})


def _temporary_folder() -> str:
    """Where what tests put there can be loaded and run; in a folder with a space the conda build engine runs no script."""
    chosen = tempfile.gettempdir()
    for folder in (chosen, "/var/tmp", str(ROOT / "build" / "tmp")):
        with contextlib.suppress(OSError):
            os.makedirs(folder, exist_ok=True)
            runs = not os.statvfs(folder).f_flag & os.ST_NOEXEC and os.access(folder, os.W_OK)
            if runs and re.fullmatch(r"[\w/.,=@-]+", folder):
                return folder
    return chosen


# before pytest looks at the markers that -m names
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test, which runs others, begins first, so that no worker is left alone with it at the end.

    Tests for a CPU alone, or for a GPU, are skipped on the other one. Those whose fixtures fetch something are marked.
    """
    items.sort(key=lambda item: "suite_passes" not in item.name)
    for item in items:
        for marker, fixtures in FETCHING.items():
            if fixtures.intersection(getattr(item, "fixturenames", ())):
                item.add_marker(marker)
        if item.get_closest_marker("toolkit"):
            item.add_marker("network")
    if any(item.get_closest_marker("cpu") or item.get_closest_marker("gpu") for item in items):
        from llama_cpp.capi.backends import has_gpu

        other, why = ("cpu", "for a CPU alone") if has_gpu() else ("gpu", "needs a GPU")
        for item in items:
            if item.get_closest_marker(other):
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def lib_dir() -> Path:
    """The folder with the native libraries that the installed package uses."""
    from llama_cpp.capi.loader import find_library_folder

    return find_library_folder()


@pytest.fixture(scope="session")
def llama_source() -> Path:
    """The engine's source that the libraries were built from."""
    source = Path(os.environ.get("LLAMA_CPP_SOURCE_DIR") or ROOT / "vendor" / "llama.cpp" / "source")
    assert (source / "include" / "llama.h").exists(), "run `python -m distribution vendor` first"
    return source


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in Q4_1."""
    from llama_cpp.models.download import sample_model

    return sample_model()


@pytest.fixture(scope="session")
def llm(smollm2: Path):
    """SmolLM2, shared by the tests that leave it as they found it; what it answers does not depend on what came before."""
    from llama_cpp import Llama

    with Llama(smollm2, n_ctx=2048, n_parallel=4, repeatable=True) as model:
        yield model


@pytest.fixture(scope="session")
def engine_tool() -> Callable[[str], Path]:
    """Builds one of llama.cpp's own tools in the tree the libraries came from, and returns its path."""

    def build(name: str) -> Path:
        caches = sorted(ROOT.glob("build/py3-*/CMakeCache.txt"), key=lambda path: path.stat().st_mtime)
        assert caches, "no build tree: run `make test`, which builds the libraries here"
        tree = caches[-1].parent
        cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        assert cmake, "no cmake: run `make test`, which installs one"
        subprocess.run([cmake, "--build", str(tree), "--target", name], check=True, stdout=subprocess.DEVNULL)
        return tree / "bin" / name

    return build


@pytest.fixture(scope="session")
def run_with_stack() -> Callable[[int, Callable[[], object]], None]:
    """Runs a function in a thread whose stack has so many bytes."""

    def run(n_bytes: int, work: Callable[[], object]) -> None:
        previous = threading.stack_size(n_bytes)
        try:
            thread = threading.Thread(target=work)
            thread.start()
        finally:
            threading.stack_size(previous)
        thread.join()

    return run


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script in a fresh interpreter and returns what it wrote and how it ended."""

    def run(script: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, *args], capture_output=True, text=True, timeout=300, check=False,
            stdin=subprocess.DEVNULL, env={**os.environ, **env},
        )  # fmt: skip

    return run

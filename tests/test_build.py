"""What CMakeLists.txt decides: CPU or CUDA, for which GPU, with which compiler, and from which source."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PATH = f"{Path(sys.executable).parent}:/usr/bin:/bin"
"""Without the folders of a CUDA toolkit."""
Configure = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def configure(root: Path, tmp_path: Path) -> Configure:
    """Runs the configure step in ``tmp_path/build`` with nothing of CUDA in the environment but what is given."""
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA", "CMAKE_", "GGML_", "LLAMA_"))}
    tools = Path(sys.executable).parent

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [tools / "cmake", "-S", root, "-B", tmp_path / "build", "-G", "Ninja", *arguments],
            capture_output=True, text=True, check=False,
            env={**bare, "PATH": f"{tools}:{os.environ['PATH']}", **environment},
        )  # fmt: skip

    return run


@pytest.fixture
def nvcc(tmp_path: Path) -> Callable[[str], Path]:
    """A program that says it is nvcc of some version, in a toolkit folder of its own."""

    def make(version: str) -> Path:
        program = tmp_path / f"cuda-{version}" / "bin" / "nvcc"
        program.parent.mkdir(parents=True)
        program.write_text(
            "#!/bin/sh\n"
            'if [ "$1" = --list-gpu-code ]; then printf "sm_75\\nsm_80\\nsm_86\\nsm_120\\n"; exit; fi\n'
            f'echo "Cuda compilation tools, release {version[:4]}, V{version}"\n'
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return program

    return make


def decision(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join(re.findall(r"llama_cpp: ((?:CPU|CUDA)[^\n]*)", done.stdout))


@pytest.mark.parametrize("version", ["13.2.0", "13.2.51", "13.2.78"])
def test_a_compiler_that_miscompiles_is_refused(configure: Configure, nvcc, version: str) -> None:
    done = configure(CMAKE_CUDA_ARCHITECTURES="120", CUDA_PATH=str(nvcc(version).parent.parent))
    assert done.returncode != 0
    assert f"nvcc {version} miscompiles" in done.stderr
    assert "13.2.86" in done.stderr and "distribution toolkit" in done.stderr


def test_a_compiler_that_does_not_know_the_gpu_is_refused(configure: Configure, nvcc) -> None:
    done = configure(CMAKE_CUDA_ARCHITECTURES="120", CUDA_PATH=str(nvcc("12.4.99").parent.parent))
    assert done.returncode != 0
    assert "does not know compute capability 12.0" in re.sub(r"\s+", " ", done.stderr)


@pytest.mark.parametrize("version", ["13.2.51", "12.4.99", ""])
@pytest.mark.parametrize("packaged", [True, False])
def test_in_the_build_of_a_package_the_remedy_is_the_variant(
    root: Path, tmp_path: Path, nvcc, version: str, packaged: bool
) -> None:
    script = tmp_path / "check.cmake"
    script.write_text(f'set(CMAKE_CUDA_ARCHITECTURES 120)\nset(GGML_CUDA ON)\ninclude("{root}/native/cmake/cuda.cmake")\n')
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA", "CMAKE_", "CONDA"))}
    compiler = [f"-DCMAKE_CUDA_COMPILER={nvcc(version)}"] if version else []
    if not version and Path("/usr/local/cuda/bin/nvcc").exists():
        pytest.skip("there is a CUDA toolkit that is found everywhere")
    tool = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    done = subprocess.run(
        [tool, *compiler, "-P", script], capture_output=True, text=True,
        env={**bare, "PATH": "/usr/bin:/bin", **({"CONDA_BUILD": "1"} if packaged else {})},
    )  # fmt: skip
    said = re.sub(r"\s+", " ", done.stderr)
    assert done.returncode != 0 and {"": "there is no nvcc"}.get(version, f"nvcc {version}") in said
    assert ("cuda_compiler_version" in said, "distribution toolkit" in said) == (packaged, not packaged), said


def test_cuda_without_a_gpu_must_be_told_which(configure: Configure, nvcc) -> None:
    done = configure("-DGGML_CUDA=ON", CUDA_PATH=str(nvcc("13.4.92").parent.parent), PATH=PATH)
    assert done.returncode != 0
    assert "CMAKE_CUDA_ARCHITECTURES=120" in done.stderr


def test_the_architecture_of_this_machine_needs_a_gpu(configure: Configure, nvcc) -> None:
    if Path("/proc/driver/nvidia/gpus").exists():
        pytest.skip("this machine has a GPU")
    done = configure(CMAKE_CUDA_ARCHITECTURES="native", CUDA_PATH=str(nvcc("13.4.92").parent.parent))
    assert done.returncode != 0
    assert "no GPU to ask" in done.stderr


@pytest.mark.parametrize(
    ("asked", "built"),
    [
        ("120", "120a-real"),
        ("86 120f", "86;120a-real"),
        ("all-major", "80-real;120a-real"),
        ("all", "75-real;80-real;86-real;120a-real"),
    ],
)
def test_architectures_become_numbers(configure: Configure, nvcc, asked: str, built: str) -> None:
    done = configure(CMAKE_CUDA_ARCHITECTURES=asked, CUDA_PATH=str(nvcc("13.4.92").parent.parent))
    assert decision(done).startswith(f"CUDA 13.4.92 build for {built}: the environment sets")


def test_a_kept_build_tree_follows_what_is_asked_for(configure: Configure, nvcc) -> None:
    cuda = str(nvcc("13.4.92").parent.parent)
    assert "build for 120a-real: the env" in decision(configure(CMAKE_CUDA_ARCHITECTURES="120", CUDA_PATH=cuda))
    assert "build for 90a-real: the env" in decision(configure(CMAKE_CUDA_ARCHITECTURES="90a-real", CUDA_PATH=cuda))
    # ninja runs CMake again when a CMakeLists.txt is newer, with whatever environment there is then
    assert "build for 90a-real: as before" in decision(configure(CUDA_PATH=cuda))
    if not Path("/proc/driver/nvidia/gpus").exists():
        # pip runs it with this set, and without the variable it is asked for nothing
        assert decision(configure("-DSKBUILD_STATE=editable", CUDA_PATH=cuda)).startswith("CPU build")
    given = configure("-DCMAKE_CUDA_ARCHITECTURES=86-real", CMAKE_CUDA_ARCHITECTURES="120", CUDA_PATH=cuda)
    assert "build for 86-real: CMAKE_CUDA_ARCHITECTURES=86-real was given" in decision(given)


def test_a_source_that_is_none_is_refused(configure: Configure, tmp_path: Path) -> None:
    done = configure(LLAMA_CPP_SOURCE_DIR=str(tmp_path))
    assert done.returncode != 0
    assert "is not a llama.cpp source tree" in re.sub(r"\s+", " ", done.stderr)


def test_nothing_asked_for_and_no_gpu_is_a_cpu_build(configure: Configure, root: Path, tmp_path: Path) -> None:
    done = configure("-DCMAKE_DISABLE_FIND_PACKAGE_Git=OFF")
    assert done.returncode == 0, done.stderr
    if Path("/proc/driver/nvidia/gpus").exists():
        pytest.skip("this machine has a GPU")
    assert decision(done).startswith("CPU build: no NVIDIA GPU was found")
    # and nothing of the machine or of a git repository around it got in
    cache = (tmp_path / "build" / "CMakeCache.txt").read_text()
    assert not re.search(r"^(CURL|OpenSSL|OPENSSL|BLAS|NCCL)\w*:\w+=/", cache, re.MULTILINE)
    version = next((tmp_path / "build").glob("**/ggml-version.h")).read_text()
    pinned = re.search(r'commit = "(\w+)"', (root / "vendor/llama.cpp/pin.toml").read_text())
    assert pinned and f'GGML_COMMIT  "{pinned[1]}"' in version


@pytest.mark.toolkit
def test_an_architecture_makes_it_a_cuda_build_for_it(configure: Configure, tmp_path: Path, root: Path) -> None:
    toolkit = subprocess.run(
        [sys.executable, "-m", "distribution", "toolkit", "--print-path"],
        cwd=root, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    done = configure(CMAKE_CUDA_ARCHITECTURES="120", CUDA_PATH=toolkit)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.match(r"CUDA 13\.4\.\d+ build for 120a-real: the environment sets", decision(done))

    tree = tmp_path / "build"
    kernel = "llama.cpp/ggml/src/ggml-cuda/CMakeFiles/ggml-cuda.dir/scale.cu.o"
    done = subprocess.run([Path(sys.executable).parent / "ninja", "-C", tree, kernel], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    cubins = subprocess.run(
        [Path(toolkit) / "bin" / "cuobjdump", "--list-elf", tree / kernel], capture_output=True, text=True, check=True
    ).stdout
    assert re.findall(r"sm_\w+", cubins) == ["sm_120a"]

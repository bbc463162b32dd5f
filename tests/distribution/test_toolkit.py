"""The CUDA toolkit from wheels. What is marked ``toolkit`` downloads about 570 MB the first time, into the user's cache."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

from distribution import files, toolkit
from distribution.errors import (
    DiskSpaceError,
    DownloadError,
    HashMismatchError,
    ToolkitError,
    ToolNotFoundError,
)

PROJECT = """\
cmake_minimum_required(VERSION 3.18)
project(probe LANGUAGES CXX CUDA)
find_package(CUDAToolkit REQUIRED)
add_library(probe SHARED probe.cu)
target_link_libraries(probe PRIVATE CUDA::cudart CUDA::cublas CUDA::cublasLt CUDA::cuda_driver)
target_link_options(probe PRIVATE -Wl,--no-undefined)
message(STATUS "found ${CUDAToolkit_VERSION} in ${CUDAToolkit_LIBRARY_ROOT}")
"""
KERNEL = """\
#include <cub/version.cuh>
#include <cublas_v2.h>
#include <cuda.h>
#include <cuda_fp16.h>
#include <cuda_fp4.h>
static_assert(CUB_VERSION >= 300200, "fast top-k needs CCCL 3.2");
__global__ void twice(float * values) { values[threadIdx.x] *= 2; }
extern "C" int probe(float * values) {
    cublasHandle_t handle;
    CUdevice device;
    twice<<<1, 32>>>(values);
    return cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS && cuDeviceGet(&device, 0) == CUDA_SUCCESS &&
           cudaDeviceSynchronize() == cudaSuccess;
}
"""


def make_wheel(folder: Path, name: str, members: dict[str, bytes]) -> toolkit.ToolkitWheel:
    """A wheel laid out as NVIDIA's; nothing in it is executable."""
    filename = f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    info = f"{name.replace('-', '_')}-1.0.dist-info"
    members = {
        **{f"nvidia/cu13/{path}": data for path, data in members.items()},
        "nvidia/__init__.py": b"",
        f"{info}/licenses/License.txt": b"the licence",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / filename, "w") as archive:
        for path, data in members.items():
            archive.writestr(path, data)
    size = (folder / filename).stat().st_size
    return toolkit.ToolkitWheel(name, "1.0", filename, files.sha256_of(folder / filename), size, 1000)


@pytest.fixture
def small(tmp_path, monkeypatch) -> toolkit.Pins:
    """A toolkit of two small wheels, served to pip from a folder."""
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    compiler = {"bin/nvcc": b"#!/bin/sh\necho nvcc\n", "bin/nvcc.profile": b"", "include/same.h": b"1"}
    library = {"lib/libcudart.so.13": b"elf", "include/same.h": b"1"}
    wheels = make_wheel(tmp_path / "index", "nv-compiler", compiler), make_wheel(tmp_path / "index", "nv-lib", library)
    return toolkit.Pins("13.4.3", wheels)


def test_assembles_once(small, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    assert toolkit.assembled_path(cache, small) is None
    assert "not assembled" in toolkit.status(cache, small) and "to download" in toolkit.status(cache, small)
    folder = toolkit.assemble(cache, small)
    assert folder.name.startswith("cuda-13.4.3-") and toolkit.assembled_path(cache, small) == folder
    assert subprocess.check_output([folder / "bin/nvcc"]) == b"nvcc\n"
    assert not os.access(folder / "bin/nvcc.profile", os.X_OK)
    assert os.readlink(folder / "lib/libcudart.so") == "libcudart.so.13"
    assert (folder / "lib64/libcudart.so").read_bytes() == b"elf"
    assert (folder / "licenses/nv_compiler-1.0/License.txt").read_bytes() == b"the licence"
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert toolkit.assemble(cache, small) == folder == toolkit.verify(cache, small)
    assert sorted(path.name for path in cache.iterdir()) == [".toolkit.lock", folder.name, "downloads"]
    assert "not assembled" not in toolkit.status(cache, small)


def test_stub_names_the_driver(tmp_path):
    library = toolkit.make_stub(tmp_path / "stubs", toolkit.DRIVER_FUNCTIONS)
    dynamic = subprocess.check_output(["readelf", "--dynamic", library], text=True)
    assert "[libcuda.so.1]" in dynamic and "NEEDED" not in dynamic
    symbols = subprocess.check_output(["nm", "--dynamic", "--defined-only", library], text=True)
    assert set(toolkit.DRIVER_FUNCTIONS) <= {line.split()[-1] for line in symbols.splitlines()}


def test_damage_is_noticed(small, tmp_path):
    folder = toolkit.assemble(tmp_path / "cache", small)
    (folder / "include/same.h").write_bytes(b"2")
    assert toolkit.assemble(tmp_path / "cache", small) == folder
    with pytest.raises(ToolkitError, match=r"include/same\.h"):
        toolkit.verify(tmp_path / "cache", small)
    (folder / "lib/libcudart.so").unlink()
    with pytest.raises(ToolkitError, match=r"libcudart\.so") as caught:
        toolkit.assemble(tmp_path / "cache", small)
    assert f"rm -r {folder}" in caught.value.remedy


def test_other_pins_have_another_folder(small, tmp_path):
    other = dataclasses.replace(small, wheels=small.wheels[:1])
    assert small.folder(tmp_path) != other.folder(tmp_path)


def test_wrong_hash(small, tmp_path):
    wrong = dataclasses.replace(small.wheels[1], sha256="0" * 64)
    with pytest.raises(HashMismatchError):
        toolkit.assemble(tmp_path / "cache", dataclasses.replace(small, wheels=(small.wheels[0], wrong)))
    assert not list((tmp_path / "cache").glob("cuda-*")) and not list((tmp_path / "cache").glob(".cuda-*"))


def test_no_network(small, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(DownloadError) as caught:
        toolkit.assemble(tmp_path / "cache", small)
    assert str(tmp_path / "cache/downloads" / small.wheels[0].filename) in caught.value.remedy


def test_full_disk_is_said_before_anything_is_downloaded(small, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_CPP_CACHE", str(tmp_path / "cache"))
    huge = dataclasses.replace(small.wheels[0], unpacked=1 << 60)
    with pytest.raises(DiskSpaceError, match="free") as caught:
        toolkit.assemble(pins=dataclasses.replace(small, wheels=(huge,)))
    assert "LLAMA_CPP_CACHE" in caught.value.remedy
    assert not (tmp_path / "cache/downloads").exists()


def test_no_compiler(small, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ToolNotFoundError, match="compiler"):
        toolkit.assemble(tmp_path / "cache", small)


def test_wheels_that_disagree(small, tmp_path):
    odd = make_wheel(tmp_path / "index", "nv-odd", {"include/same.h": b"2"})
    with pytest.raises(ToolkitError, match="disagree"):
        toolkit.assemble(tmp_path / "cache", dataclasses.replace(small, wheels=(*small.wheels, odd)))
    assert toolkit.assembled_path(tmp_path / "cache", small) is None


def test_wheel_that_writes_elsewhere(small, tmp_path):
    bad = make_wheel(tmp_path / "index", "nv-bad", {"../../../../escaped": b""})
    # pip looks at the names too, so ours is asked by itself
    (tmp_path / "tree").mkdir()
    with pytest.raises(ToolkitError, match="escaped"):
        toolkit.unpack(tmp_path / "index" / bad.filename, tmp_path / "tree")
    assert not list(tmp_path.rglob("escaped"))


def test_pins_avoid_the_compilers_that_miscompile():
    pins = toolkit.Pins.load()
    versions = {wheel.name: tuple(int(part) for part in wheel.version.split(".")) for wheel in pins.wheels}
    nvcc = versions["nvidia-cuda-nvcc"]
    assert not (13, 2, 0) <= nvcc < (13, 2, 86)
    assert nvcc == versions["nvidia-nvvm"] == versions["nvidia-cuda-crt"] == versions["nvidia-cuda-runtime"]
    assert all(len(wheel.sha256) == 64 and wheel.version in wheel.filename for wheel in pins.wheels)


def run(*arguments: object, cwd: Path | None = None) -> str:
    done = subprocess.run([str(one) for one in arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def assembled() -> Path:
    try:
        return toolkit.assemble()
    except (DownloadError, DiskSpaceError) as error:
        pytest.skip(error.message)


@pytest.mark.toolkit
def test_command_prints_the_path_alone(assembled):
    for option in ("--print-path", "--assembled-path"):
        done = run(sys.executable, "-m", "distribution", "toolkit", option, cwd=ROOT)
        assert done == f"{assembled}\n"
    assert str(assembled) in run(sys.executable, "-m", "distribution", "toolkit", "--verify", cwd=ROOT)


@pytest.mark.toolkit
def test_cmake_builds_for_the_rtx_5090(assembled, tmp_path):
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed")
    (tmp_path / "CMakeLists.txt").write_text(PROJECT)
    (tmp_path / "probe.cu").write_text(KERNEL)
    options = [f"-DCUDAToolkit_ROOT={assembled}", f"-DCMAKE_CUDA_COMPILER={assembled}/bin/nvcc"]
    configured = run("cmake", "-S", tmp_path, "-B", tmp_path / "b", *options, "-DCMAKE_CUDA_ARCHITECTURES=120a-real")
    assert f"in {assembled}" in configured
    run("cmake", "--build", tmp_path / "b")
    library = tmp_path / "b/libprobe.so"
    listed = run(assembled / "bin/cuobjdump", "--list-elf", library)
    assert listed.count("ELF file") == listed.count("sm_120a") == 1
    assert "ptx" not in run(assembled / "bin/cuobjdump", "--list-ptx", library).lower()
    needed = run("readelf", "--dynamic", library)
    for soname in ("libcudart.so.13", "libcublas.so.13", "libcuda.so.1"):
        assert f"NEEDED)             Shared library: [{soname}]" in needed

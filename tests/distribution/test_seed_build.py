"""Recipes built against a seed by py-rattler-build, as the packages of this repository are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("rattler_build")

import yaml
from rattler.package_streaming import extract
from rattler_build import RattlerBuildError, Stage0Recipe, ToolConfiguration, VariantConfig

from distribution.errors import DiskSpaceError, DownloadError
from distribution.packaging import build
from distribution.seed import channel as channels
from distribution.seed import interpreter, seed, variants

RECIPE = """\
package:
  name: probe
  version: "1.0"
source:
  path: source
build:
  script:
    file: build.sh
  dynamic_linking:
    overlinking_behavior: error
    missing_dso_allowlist: ["*/libcuda.so.1", libcuda.so.1]
requirements:
  build:
    - ${{{{ compiler('c') }}}}
    - ${{{{ compiler('cxx') }}}}
    - ${{{{ stdlib('c') }}}}
    - cmake
    - ninja
{more}
"""
BUILD = """\
set -eu
test "$(dirname "$(command -v cmake)")" = "$BUILD_PREFIX/bin"
cmake -S . -B build -G Ninja $CMAKE_ARGS {options}
cmake --build build
cmake --install build
"""
CPLUSPLUS = """\
#include <stdexcept>
#include <string>
extern "C" int probe(int number) {
    try { throw std::runtime_error(std::to_string(number)); }
    catch (const std::exception & error) { return std::string(error.what()).size(); }
}
"""
CMAKE = """\
cmake_minimum_required(VERSION 3.18)
project(probe LANGUAGES CXX)
add_library(probe SHARED probe.cpp)
target_link_options(probe PRIVATE ${OPTIONS})
install(TARGETS probe)
"""
RUNS = """\
tests:
  - script:
      - python -c 'import ctypes, os; assert ctypes.CDLL(os.environ["PREFIX"] + "/lib/libprobe.so").probe(12345) == 5'
    requirements:
      run: [python]
"""
# the toolkit's own test compiles the same things; here they are in two environments
KERNEL = """\
#include <cub/version.cuh>
#include <cublas_v2.h>
#include <cuda.h>
#include <cuda_fp4.h>
__global__ void twice(float * values) { values[threadIdx.x] *= 2; }
extern "C" int probe(float * values) {
    cublasHandle_t handle;
    CUdevice device;
    twice<<<1, 32>>>(values);
    return cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS && cuDeviceGet(&device, 0) == CUDA_SUCCESS;
}
"""
CUDA_CMAKE = """\
cmake_minimum_required(VERSION 3.18)
project(probe LANGUAGES CXX CUDA)
find_package(CUDAToolkit REQUIRED)
add_library(probe SHARED probe.cu)
target_link_libraries(probe PRIVATE CUDA::cudart CUDA::cublas CUDA::cuda_driver)
target_link_options(probe PRIVATE -Wl,--no-undefined)
install(TARGETS probe)
"""
CUDA_MORE = """\
    - ${{ compiler('cuda') }}
  host: [cuda-version 13.4.*, cuda-cudart-dev, libcublas-dev]
tests:
  - script:
      - cuobjdump --list-elf "$PREFIX/lib/libprobe.so" | grep sm_120a
    requirements:
      run: [cuda-cuobjdump]
"""


def build_recipe(folder: Path, channel: Path, files: dict[str, str], more: str, options: str = "") -> Path:
    (folder / "source").mkdir()
    (folder / "recipe.yaml").write_text(RECIPE.format(more=more))
    (folder / "build.sh").write_text(BUILD.format(options=options))
    for name, text in files.items():
        (folder / "source" / name).write_text(text)
    [variant] = Stage0Recipe.from_file(folder / "recipe.yaml").render(VariantConfig(variants(channel)))
    engine = ToolConfiguration(test_strategy="native")
    result = variant.run_build(tool_config=engine, output_dir=folder / "output", channels=[channel.as_uri()])
    [package] = result.packages
    extract(package, folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture(scope="module")
def packages_unpacked(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rattler")


@pytest.fixture
def own_cache(packages_unpacked, monkeypatch) -> None:
    """Leaves the user's cache of conda packages alone."""
    monkeypatch.setenv("RATTLER_CACHE_DIR", str(packages_unpacked))


def test_shared_library(seed_channel, own_cache, tmp_path):
    unpacked = build_recipe(tmp_path, seed_channel, {"probe.cpp": CPLUSPLUS, "CMakeLists.txt": CMAKE}, RUNS)
    depends = json.loads((unpacked / "info/index.json").read_text())["depends"]
    glibc = variants(seed_channel)["c_stdlib_version"][0]
    assert f"__glibc >={glibc},<3.0.a0" in depends
    assert {"libgcc", "libstdcxx"} <= {spec.split()[0] for spec in depends}
    assert str(tmp_path).encode() not in (unpacked / "lib/libprobe.so").read_bytes()


def test_library_of_the_system_is_refused(seed_channel, own_cache, tmp_path):
    bundled = interpreter.Interpreter.running().bundled
    stranger = next(file for soname, file in bundled.items() if not soname.startswith("libpython"))
    options = f'"-DOPTIONS=-Wl,--no-as-needed;{stranger}"'
    with pytest.raises(RattlerBuildError, match=r"(?i)overlinking"):
        build_recipe(tmp_path, seed_channel, {"probe.cpp": CPLUSPLUS, "CMakeLists.txt": CMAKE}, "", options)


DIGESTS = ("engine_inputs", "python_inputs", "cuda_inputs")


def rendered(file: Path) -> dict[str, str]:
    """The packages' build strings when this file is all that is read, as by conda-build."""
    recipe = Stage0Recipe.from_file(ROOT / "recipe" / "recipe.yaml")
    return {one.recipe.package.name: one.recipe.build.string for one in recipe.render(VariantConfig.from_file(file))}


@pytest.mark.parametrize("cuda", [False, True])
def test_the_variant_files_beside_a_seed_each_stand_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: bool) -> None:
    inputs = channels.Inputs.of_machine(cuda)
    channels._write_variant_files(tmp_path, inputs)
    recipe = ROOT / "recipe"
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.yaml")}
    without = {"cuda129", "portable"}  # made with another toolkit than the seed's
    names = {path.stem for path in (recipe / "variants").glob("*.yaml")} - without if cuda else {"cpu"}
    assert found == {"variants.yaml", *(f"variants/{name}.yaml" for name in names)}
    for path in tmp_path.rglob("*.yaml"):
        ours = yaml.safe_load(path.read_text())
        of = recipe / "variants" / path.name if path.parent.name == "variants" else recipe / "variants.yaml"
        theirs = yaml.safe_load((of if cuda or of.parent.name == "variants" else recipe / "variants" / "cpu.yaml").read_text())
        assert ours == {**theirs, **inputs.variants()}, path
        assert all(ours[name] == [""] for name in DIGESTS)
        # the same compilers as `python -m distribution build` takes
        monkeypatch.setattr(build.inputs, "digests", lambda _: dict.fromkeys(("engine", "python", "cuda"), ""))
        chosen = [path.stem] if path.parent.name == "variants" else [] if cuda else ["cpu"]
        expected = {one.recipe.package.name: one.recipe.build.string for one in build.render(chosen, compilers=inputs.variants())}
        assert rendered(path) == expected, path


def test_the_variant_files_are_those_of_todays_recipe(seed_channel: Path) -> None:
    file = seed_channel / "variants.yaml"
    before = file.read_text()
    assert f"glibc {variants(seed_channel)['c_stdlib_version'][0]}" in before
    file.write_text("of an older recipe\n")
    assert seed(quiet=True) == seed_channel and file.read_text() == before


@pytest.mark.slow
@pytest.mark.toolkit
def test_kernel_for_the_rtx_5090(own_cache, tmp_path):
    try:
        channel = seed(cuda=True, quiet=True)
    except (DownloadError, DiskSpaceError) as error:
        pytest.skip(error.message)
    files = {"probe.cu": KERNEL, "CMakeLists.txt": CUDA_CMAKE}
    options = '-DCMAKE_CUDA_COMPILER="$BUILD_PREFIX/bin/nvcc" -DCMAKE_CUDA_ARCHITECTURES=120a-real'
    unpacked = build_recipe(tmp_path, channel, files, CUDA_MORE, options)
    depends = {spec.split()[0] for spec in json.loads((unpacked / "info/index.json").read_text())["depends"]}
    assert {"cuda-cudart", "libcublas", "cuda-version", "libstdcxx"} <= depends
    assert not {name for name in depends if name.startswith(("cuda-nvcc", "gcc", "gxx"))}, "compilers stay behind"

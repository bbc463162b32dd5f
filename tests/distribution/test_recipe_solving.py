"""Every variant solves: what it is built with, and what a user's machine gets with an older or a newer driver.

The channel has conda-forge's names and versions for CUDA 12.9 and 13.4, with nothing inside; our packages in it carry
what the recipe requires.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_cpp import __version__ as VERSION

rattler = pytest.importorskip("rattler", reason="pip install llama_cpp_python[conda]")
pytest.importorskip("rattler_build")

from rattler.exceptions import SolverError
from rattler.package import BuildString

from distribution.channel import environment_files
from distribution.channel.manifest import Wanted
from distribution.channel.package_file import ChannelPackage
from distribution.files import REPOSITORY
from distribution.packaging import build
from tiny_packages import add_package, index

VARIANTS = {"default": (), "90a": ("90a",), "86": ("86",), "cuda129": ("cuda129",), "portable": ("portable",)}
OURS = ("libllama", "libggml-cuda", "llama.cpp", "llama-cpp-python")


@pytest.fixture(scope="module")
def rendered() -> dict[str, dict[str, Any]]:
    return {label: {one.recipe.package.name: one for one in build.render(names)} for label, names in VARIANTS.items()}


@pytest.fixture(scope="module")
def channel(rendered: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("channel")
    for cuda in ("12.9", "13.4"):
        major = cuda.split(".")[0]
        tied = (f"cuda-version >={cuda},<{int(major) + 1}",)
        add_package(folder, "cuda-version", cuda, constrains=(f"__cuda >={major}",))
        for name in ("cuda-nvcc_linux-64", "cuda-cudart", "libcublas", "cuda-cuobjdump", "cuda-nvdisasm"):
            add_package(folder, name, f"{cuda}.1", depends=tied)
        for name, runtime in (("cuda-cudart-dev", "cuda-cudart"), ("libcublas-dev", "libcublas")):
            add_package(folder, name, f"{cuda}.1", depends=(*tied, f"{runtime} {cuda}.1"))
    for name, version in (
        ("gcc_linux-64", "14.3.0"), ("gxx_linux-64", "14.3.0"), ("sysroot_linux-64", "2.28"), ("cmake", "4.1.0"),
        ("ninja", "1.13.0"), ("python", "3.12.9"), ("pip", "26.0"), ("cyclonedx-python-lib", "11.0.0"), ("numpy", "2.3.0"),
        ("jinja2", "3.1.6"), ("diskcache", "5.6.3"), ("typer", "0.20.0"), ("rich", "14.0.0"),
    ):  # fmt: skip
        add_package(folder, name, version)
    for found in rendered.values():
        for name in OURS:
            one = found[name]
            string, needs = one.recipe.build.string, one.recipe.to_dict()["requirements"]
            if (folder / "linux-64" / f"{name}-{VERSION}-{string}.conda").exists():
                continue
            engine = f"libllama =={VERSION} {found['libllama'].recipe.build.string}"
            depends = tuple(engine if isinstance(spec, dict) else spec for spec in needs.get("run", ()))
            add_package(folder, name, VERSION, string, depends=depends, constrains=tuple(needs.get("run_constraints", ())))
    return index(folder)


def solve(
    channels: Path | tuple[Path, ...], *specs: str, driver: str | None = None, priority: str = "strict", **virtual: str
) -> dict[str, str]:
    """Name and version or build of what is installed; ``driver`` is the CUDA version that the driver offers."""
    sources = [channel.as_uri() for channel in ((channels,) if isinstance(channels, Path) else channels)]
    known = {"__glibc": "2.36", **virtual, **({"__cuda": driver} if driver else {})}
    machine = [
        rattler.GenericVirtualPackage(rattler.PackageName(name), rattler.Version(version), BuildString("0"))
        for name, version in known.items()
    ]

    async def run() -> list[Any]:
        return await rattler.solve(
            sources=sources,
            specs=list(specs),
            platforms=["linux-64", "noarch"],
            virtual_packages=machine,
            channel_priority=getattr(rattler.ChannelPriority, priority.capitalize()),
        )

    try:
        return {record.name.normalized: f"{record.version} {record.build}" for record in asyncio.run(run())}
    finally:
        time.sleep(0.02)  # as in distribution/rattler_async.py


@pytest.mark.parametrize("label", VARIANTS)
def test_what_it_is_built_with_solves_without_a_gpu(channel: Path, rendered: dict[str, dict[str, Any]], label: str) -> None:
    one = rendered[label]["libggml-cuda"].recipe.to_dict()
    [stage] = one["staging_caches"]
    cuda = "12.9" if label in ("cuda129", "portable") else "13.4"
    assert solve(channel, *stage["requirements"]["build"])["cuda-nvcc_linux-64"].startswith(cuda)
    assert solve(channel, *stage["requirements"]["host"])["libcublas-dev"].startswith(cuda)
    [script] = [test for test in one["tests"] if "script" in test]
    tools = [spec for spec in script["requirements"]["run"] if spec.startswith("cuda-")]
    assert solve(channel, f"libggml-cuda * {build_of(rendered, label)}", *tools)["cuda-nvdisasm"].startswith(cuda)


def build_of(rendered: dict[str, dict[str, Any]], label: str) -> str:
    return rendered[label]["libggml-cuda"].recipe.build.string


@pytest.mark.parametrize(
    ("label", "driver", "fits"),
    [
        ("default", "13.0", True), ("default", "13.4", True), ("default", "12.9", False), ("default", None, True),
        ("90a", "13.0", True), ("90a", "12.9", False),
        ("cuda129", "12.8", True), ("cuda129", "13.4", True), ("cuda129", "12.4", False),
        ("portable", "12.0", True), ("portable", "11.8", False), ("portable", None, True),
    ],
)  # fmt: skip
def test_the_driver_decides_what_can_be_installed(
    channel: Path, rendered: dict[str, dict[str, Any]], label: str, driver: str | None, fits: bool
) -> None:
    wanted = f"libggml-cuda * {build_of(rendered, label)}"
    if not fits:
        with pytest.raises(SolverError):
            solve(channel, wanted, driver=driver)
        return
    found = solve(channel, wanted, driver=driver)
    assert found["libllama"] == f"{VERSION} {rendered[label]['libllama'].recipe.build.string}"
    assert "gcc_linux-64" not in found and "cuda-nvcc_linux-64" not in found


@pytest.mark.parametrize(
    ("label", "fits", "does_not"),
    [
        # code for one architecture alone runs neither on older nor on newer GPUs
        ("default", ["12.0"], ["8.9", "11.0", "12.1"]),
        ("cuda129", ["12.0"], ["9.0", "12.1"]),
        ("90a", ["9.0"], ["8.9", "10.0", "12.0"]),
        # machine code runs on later GPUs of the same generation
        ("86", ["8.6", "8.9"], ["8.0", "9.0", "12.0"]),
        ("portable", ["7.5", "8.9", "9.0", "12.0"], ["7.0", "10.0", "11.0", "12.1"]),
    ],
)
def test_the_capability_counts_where_something_tells_it(
    channel: Path, rendered: dict[str, dict[str, Any]], label: str, fits: list[str], does_not: list[str]
) -> None:
    wanted = f"libggml-cuda * {build_of(rendered, label)}"
    for capability in fits:
        assert solve(channel, wanted, driver="13.4", __cuda_arch=capability), capability
    for capability in does_not:
        with pytest.raises(SolverError):
            solve(channel, wanted, driver="13.4", __cuda_arch=capability)


def test_the_gpus_number_is_enough_to_ask_for_a_build(channel: Path, rendered: dict[str, dict[str, Any]]) -> None:
    found = solve(channel, "libggml-cuda * *_sm120_*", driver="13.4")
    assert found["libggml-cuda"] == f"{VERSION} {build_of(rendered, 'default')}", "the newest CUDA that the driver takes"
    found = solve(channel, "libggml-cuda * *_sm120_*", driver="12.8")
    assert found["libggml-cuda"] == f"{VERSION} {build_of(rendered, 'cuda129')}"


# other channels -------------------------------------------------------------------------------------------------------

# as on conda-forge and Anaconda's channel: plain numbers as versions, and the same libraries inside
FOREIGN = [
    ("llama.cpp", "10003", "cpu_mkl_h1_0", ()),
    ("llama.cpp", "0.0.7229", "cpu_openblas_h1_0", ("libllama ==0.0.7229 h1_0",)),
    ("libllama", "0.0.7229", "h1_0", ()),
    ("llama-cpp-python", "0.3.36", "py312h1_0", ("llama.cpp",)),
    ("llama-cpp-python", VERSION, "py312h1_0", ("llama.cpp ==10003",)),
    ("llama-cpp-python", "0.5.0", "pyhd8ed1ab_0", ("llama.cpp ==10003",)),
    ("ggml", "0.25.3", "cuda_h1_0", ()),
    ("libggml", "0.25.3", "h1_0", ()),
    ("whisper.cpp", "1.9.1", "cpu_h1_0", ()),
    ("stable-diffusion.cpp", "0.0.300", "h1_0", ()),
]
PRIORITIES = ("strict", "flexible", "disabled")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A channel with packages of our names, and with the rest of what llm-dev is made of."""
    folder = tmp_path_factory.mktemp("foreign")
    for name, version, string, depends in FOREIGN:
        add_package(folder, name, version, string, depends=depends)
    for name in ("numpy", "jinja2", "diskcache", "pytest", "scikit-build-core", "typer", "rich"):
        add_package(folder, name, "99.0")
    return index(folder)


def ours(found: dict[str, str], rendered: dict[str, dict[str, Any]], label: str = "default") -> bool:
    """Whether all that is installed of our names is one build of ours."""
    expected = {name: f"{VERSION} {one.recipe.build.string}" for name, one in rendered[label].items()}
    names = found.keys() & {name for name, *_ in FOREIGN}
    return bool(names) and {name: found[name] for name in names} == {name: expected.get(name) for name in names}


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("order", ["ours first", "theirs first"])
@pytest.mark.parametrize(
    "specs",
    [
        (f"libllama >={VERSION}", "llama.cpp"),
        ("libggml-cuda", "llama.cpp", "llama-cpp-python"),
        (f"libllama =={VERSION}", f"llama-cpp-python >={VERSION}", "llama.cpp"),
        ("libggml-cuda * *_sm120_*", "llama-cpp-python >=0.3"),
    ],
)
def test_packages_of_other_channels_do_not_land_beside_ours(
    channel: Path, foreign: Path, rendered: dict[str, dict[str, Any]], specs: tuple[str, ...], order: str, priority: str
) -> None:
    channels = (channel, foreign) if order == "ours first" else (foreign, channel)
    try:
        found = solve(channels, *specs, driver="13.4", priority=priority)
    except SolverError:
        # the first channel that has a name is the only one that counts: theirs lacks what was asked for
        assert (order, priority) == ("theirs first", "strict")
    else:
        assert ours(found, rendered), found


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("wanted", [("llama.cpp",), ("llama.cpp", "llama-cpp-python"), ("libggml-cuda * *_sm120_*", "llama.cpp")])
def test_the_channels_own_environment_file_gets_our_packages(
    channel: Path, foreign: Path, rendered: dict[str, dict[str, Any]], wanted: tuple[str, ...], priority: str
) -> None:
    entries = json.loads((channel / "linux-64/repodata.json").read_text())["packages.conda"].values()
    # the default variant is published last
    last = {one.recipe.build.string for one in rendered["default"].values()}
    packages = [ChannelPackage.from_record(one) for one in sorted(entries, key=lambda one: one["build"] in last)]
    specs = [
        one.replace(f"={VERSION}=", f" =={VERSION} ") for one in environment_files.dependencies_of(Wanted("x", wanted), packages)
    ]
    found = solve((channel, foreign), *specs, driver="13.4", priority=priority)
    assert ours(found, rendered), found
    if priority == "disabled" and wanted == ("llama.cpp",):
        assert not ours(solve((channel, foreign), *wanted, priority=priority), rendered), "without the engine theirs is taken"


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize(
    "name", ["ggml", "libggml", "whisper.cpp", "stable-diffusion.cpp", "llama.cpp ==10003", "llama-cpp-python ==0.5.0"]
)
def test_what_would_overwrite_our_libraries_is_refused(channel: Path, foreign: Path, name: str, priority: str) -> None:
    assert solve((channel, foreign), name, priority="disabled"), "it can be had by itself"
    with pytest.raises(SolverError):
        solve((channel, foreign), f"libllama >={VERSION}", name, priority=priority)


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("gpu", [True, False])
def test_llm_dev_gets_our_packages(
    channel: Path, foreign: Path, rendered: dict[str, dict[str, Any]], gpu: bool, priority: str
) -> None:
    file = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    specs = [spec.replace("=*=", " * ") for spec in file["dependencies"] if gpu or not spec.startswith("libggml-cuda")]
    found = solve((channel, foreign), *specs, driver="13.4" if gpu else None, priority=priority)
    assert ours(found, rendered) and {"llama.cpp", "llama-cpp-python"} <= found.keys(), found
    assert ("libggml-cuda" in found) == gpu

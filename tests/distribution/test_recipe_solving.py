"""Every variant solves: what it is built with, and what a user's machine gets with an older or a newer driver.

The channel has conda-forge's names and versions for CUDA 12.9 and 13.4, with nothing inside; our packages in it carry
what the recipe requires.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

rattler = pytest.importorskip("rattler", reason="pip install llama_cpp_python[conda]")
pytest.importorskip("rattler_build")

from rattler.exceptions import SolverError  # noqa: E402
from rattler.package import BuildString  # noqa: E402
from tiny_packages import add_package, index  # noqa: E402

from distribution.packaging import packages  # noqa: E402

VARIANTS = {"default": (), "90a": ("90a",), "86": ("86",), "cuda129": ("cuda129",), "portable": ("portable",)}
OURS = ("libllama", "libggml-cuda")


@pytest.fixture(scope="module")
def rendered() -> dict[str, dict[str, Any]]:
    return {
        label: {one.recipe.package.name: one for one in packages.render(names)} for label, names in VARIANTS.items()
    }


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
        ("ninja", "1.13.0"), ("python", "3.12.9"), ("pip", "26.0"), ("cyclonedx-python-lib", "11.0.0"),
    ):  # fmt: skip
        add_package(folder, name, version)
    for found in rendered.values():
        for name in OURS:
            one = found[name]
            build, needs = one.recipe.build.string, one.recipe.to_dict()["requirements"]
            if (folder / "linux-64" / f"{name}-0.4.0-{build}.conda").exists():
                continue
            engine = f"libllama ==0.4.0 {found['libllama'].recipe.build.string}"
            depends = tuple(engine if isinstance(spec, dict) else spec for spec in needs.get("run", ()))
            add_package(folder, name, "0.4.0", build, depends=depends, constrains=tuple(needs.get("run_constraints", ())))
    return index(folder)


def solve(channel: Path, *specs: str, driver: str | None = None, **virtual: str) -> dict[str, str]:
    """Name and version or build of what is installed; ``driver`` is the CUDA version that the driver offers."""
    known = {"__glibc": "2.36", **virtual, **({"__cuda": driver} if driver else {})}
    machine = [
        rattler.GenericVirtualPackage(rattler.PackageName(name), rattler.Version(version), BuildString("0"))
        for name, version in known.items()
    ]

    async def run() -> list[Any]:
        return await rattler.solve(
            sources=[channel.as_uri()], specs=list(specs), platforms=["linux-64", "noarch"], virtual_packages=machine
        )

    try:
        return {record.name.normalized: f"{record.version} {record.build}" for record in asyncio.run(run())}
    finally:
        time.sleep(0.02)  # as in distribution/waiting.py


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
    assert found["libllama"] == f"0.4.0 {rendered[label]['libllama'].recipe.build.string}"
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
    assert found["libggml-cuda"] == f"0.4.0 {build_of(rendered, 'default')}", "the newest CUDA that the driver takes"
    found = solve(channel, "libggml-cuda * *_sm120_*", driver="12.8")
    assert found["libggml-cuda"] == f"0.4.0 {build_of(rendered, 'cuda129')}"

"""What is inside the built libraries: who needs whom, where they look, and what must not be there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from llama_cpp.capi.loader import SONAMES

STRONG = set("TDBRGS")  # nm's letters for symbols that win over others of the same name


def libraries(folder: Path) -> list[Path]:
    # a conda environment's lib/ holds others too
    names = set(SONAMES.values())
    return sorted(p for p in folder.iterdir() if p.name in names or re.fullmatch(r"libggml-\w[\w-]*\.so", p.name))


@pytest.fixture(scope="session")
def built(lib_dir: Path) -> list[Path]:
    found = libraries(lib_dir)
    assert {p.name for p in found} >= set(SONAMES.values())
    return found


def dynamic_section(path: Path) -> dict[str, list[str]]:
    text = subprocess.run(["readelf", "-dW", path], capture_output=True, text=True, check=True).stdout
    section: dict[str, list[str]] = {}
    for kind, value in re.findall(r"\((NEEDED|SONAME|RPATH|RUNPATH)\)[^\[]*\[(.*)\]", text):
        section.setdefault(kind, []).append(value)
    return section


def symbols(path: Path, letters: set[str]) -> set[str]:
    """Names without versions: libstdc++ defines ``name@@GLIBCXX_3.4``, a stray copy defines ``name``."""
    text = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in text.splitlines())
    return {row[-1].partition("@")[0] for row in rows if len(row) >= 3 and row[-2] in letters}


def libstdcxx() -> Path:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libstdc++.so.6" in line:
            return Path(line.split(maxsplit=5)[5])
    raise AssertionError("libstdc++ is not loaded although the libraries are")


def test_each_library_is_there_once_under_its_soname(lib_dir: Path, built: list[Path]) -> None:
    for path in built:
        assert not path.is_symlink(), f"{path.name}: wheels hold no symlinks"
        soname = dynamic_section(path).get("SONAME", [path.name])
        assert soname == [path.name]


def test_neighbours_are_found_beside_the_library(built: list[Path]) -> None:
    for path in built:
        section = dynamic_section(path)
        assert section.get("RPATH", []) == []
        assert section.get("RUNPATH", []) == ["$ORIGIN"], path.name


def test_every_need_is_a_neighbour_or_of_the_system(built: list[Path]) -> None:
    system = {
        "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libgcc_s.so.1", "libstdc++.so.6",
        "ld-linux-x86-64.so.2",
    }  # fmt: skip
    cuda = re.compile(r"lib(cudart|cublas|cublasLt|cuda)\.so\.\d+")
    for path in built:
        for needed in dynamic_section(path)["NEEDED"]:
            assert needed in system or needed in SONAMES.values() or (
                path.name == "libggml-cuda.so" and cuda.fullmatch(needed)
            ), f"{path.name} needs {needed}"  # fmt: skip


def test_libstdcxx_is_dynamic_and_nowhere_defined_again(built: list[Path], llm: object) -> None:
    theirs = symbols(libstdcxx(), set("TDBRGSVWui"))
    assert len(theirs) > 1000
    for path in built:
        if path.name == "libggml-base.so.0" or "llama" in path.name:
            assert "libstdc++.so.6" in dynamic_section(path)["NEEDED"], path.name
        assert symbols(path, STRONG) & theirs == set(), path.name


def test_no_path_of_the_build_machine_is_inside(built: list[Path], root: Path, llama_source: Path) -> None:
    forbidden = {os.fsencode(p) for p in (root, llama_source, Path.home(), Path("/tmp"))} - {b"/"}
    for path in built:
        data = path.read_bytes()
        for needle in forbidden:
            at = data.find(needle + b"/")
            assert at < 0, f"{path.name}: {data[at : at + 80]!r}"


def test_there_is_a_cpu_plugin_for_every_level(built: list[Path]) -> None:
    levels = {p.name for p in built if p.name.startswith("libggml-cpu-")}
    assert levels >= {f"libggml-cpu-{level}.so" for level in ("x64", "sse42", "sandybridge", "haswell", "skylakex")}
    assert "libggml-cpu.so" not in {p.name for p in built}, "a library for one instruction set only"


def test_licences_travel_with_the_libraries(lib_dir: Path) -> None:
    folder = lib_dir.parent / "licenses"
    names = {path.stem for path in folder.glob("*.txt")}
    assert names >= {"llama.cpp", "nlohmann-json", "cpp-httplib", "miniaudio", "stb", "subprocess", "xxhash", "llamafile"}
    for path in folder.glob("*.txt"):
        text = path.read_text(encoding="utf-8")
        assert len(text) > 40 and re.search(r"(?i)permission|public domain|redistribution|free", text), path.name

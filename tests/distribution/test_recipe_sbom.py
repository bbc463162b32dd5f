"""What the bills of materials in the packages say is what is in the packages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("cyclonedx", reason="pip install llama_cpp_python[conda]")

from distribution import provenance
from distribution.errors import ProvenanceError
from distribution.pin import Pin

COMMIT = Pin.load(ROOT / "vendor" / "llama.cpp" / "pin.toml").commit
SETTINGS = {"compiler": "GNU 14.3.0", "cuda": {"version": "13.4.92", "architectures": "120a-real"}}

# a name that the code exports or writes into a library, and that nothing else has
MARKS = {
    "libllama-common.so.0": {
        "nlohmann-json": b"nlohmann", "cpp-httplib": b"httplib", "sheredom-subprocess": b"subprocess_create"
    },
    # miniaudio exports nothing
    "libmtmd.so.0": {"stb_image": b"stbi_", "sha256": b"sha256_update", "sheredom-subprocess": b"subprocess_create"},
}  # fmt: skip
ABSENT = {"xxhash": rb"XXH(32|64|3)_", "sha1": rb"vendor_hash.*SHA1|SHA1Transform", "base64": rb"base64_error"}


def components(tmp_path: Path, package: str) -> dict[str, dict[str, Any]]:
    tree = tmp_path / "tree"
    tree.mkdir()
    cuda = SETTINGS if package == "libggml-cuda" else {"compiler": SETTINGS["compiler"]}
    (tree / provenance.SETTINGS).write_text(json.dumps(cuda))
    provenance.write(package, tmp_path / "out", None if package == "llama-cpp-python" else tree)
    document = json.loads((tmp_path / "out" / "sbom.cdx.json").read_text())
    assert document["metadata"]["component"]["name"] == package
    return {one["name"]: one for one in document.get("components", [])}


@pytest.mark.parametrize(
    ("package", "parts"),
    [
        (
            "libllama",
            {
                "llama.cpp": COMMIT, "nlohmann-json": "3.12.0", "cpp-httplib": "0.58.0", "miniaudio": "0.11.25",
                "stb_image": "2.30", "sheredom-subprocess": None, "sha256": None, "rotate-bits": None, "llamafile-sgemm": None,
            },
        ),
        ("llama.cpp", {"llama.cpp": COMMIT, "cpp-httplib": "0.58.0", "sheredom-subprocess": None, "base64": None}),
        ("libggml-cuda", {"llama.cpp": COMMIT, "cuda-nvcc": "13.4.92", "cccl": None}),
        ("llama-cpp-python", {}),
    ],
)  # fmt: skip
def test_each_package_lists_its_parts_with_the_versions_that_the_source_names(
    tmp_path: Path, package: str, parts: dict[str, str | None]
) -> None:
    found = components(tmp_path, package)
    assert {name: one.get("version") for name, one in found.items()} == parts
    assert all(one["licenses"] for one in found.values())


def test_the_patches_are_listed_with_llama_cpp(tmp_path: Path) -> None:
    properties = components(tmp_path, "libllama")["llama.cpp"]["properties"]
    names = {path.name for path in (ROOT / "vendor" / "llama.cpp" / "patches").glob("*.patch")}
    assert {one["value"].split()[0] for one in properties} == names


def test_the_libraries_hold_what_is_listed_and_not_what_is_not(lib_dir: Path) -> None:
    listed = {part.name for part in provenance.VENDORED if "libllama" in part.packages}
    for library, marks in MARKS.items():
        data = (lib_dir / library).read_bytes()
        for name, mark in marks.items():
            assert name in listed and mark in data, (library, name)
        for name, mark in ABSENT.items():
            assert name not in listed and not re.search(mark, data), (library, name)


def test_every_part_is_under_a_licence_that_its_package_names(tmp_path: Path) -> None:
    rattler_build = pytest.importorskip("rattler_build")
    assert rattler_build
    from distribution.packaging import build

    for one in build.render():
        recipe = one.recipe.to_dict()
        package, named = recipe["package"]["name"], recipe["about"]["license"].split(" AND ")
        for part in provenance.VENDORED:
            assert package not in part.packages or part.license in named, (package, part.name)
        assert "BSD-2-Clause" not in named, "no xxhash inside"


def test_the_licence_of_every_part_is_installed() -> None:
    text = (ROOT / "native" / "cmake" / "licenses.cmake").read_text()
    installed = set(re.findall(r"^(?:install|extract)_license\((\S+)", text, re.MULTILINE))
    called = {"stb_image": "stb", "sheredom-subprocess": "subprocess", "llamafile-sgemm": "llamafile"}
    for part in provenance.VENDORED:
        assert called.get(part.name, part.name) in installed


def test_a_part_that_no_longer_names_its_version_is_not_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    moved = provenance.BundledCode("stb_image", "MIT", "vendor/stb/stb_image.h", ("libllama",), r"no such version (\d+)")
    monkeypatch.setattr(provenance, "VENDORED", (moved,))
    with pytest.raises(ProvenanceError, match=r"stb_image\.h does not say its version"):
        components(tmp_path, "libllama")

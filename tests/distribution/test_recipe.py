"""The recipe as its build engine reads it: which packages there are, what they are called and what ties them together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_cpp import __version__ as VERSION

rattler_build = pytest.importorskip("rattler_build", reason="pip install llama_cpp_python[conda]")

import llama_cpp
from distribution import demo, hardware
from distribution.errors import BuildError
from distribution.files import REPOSITORY, load_toml
from distribution.packaging import build, inputs
from distribution.packaging.commands import variants_of

ALL = ("libllama", "llama.cpp", "llama-cpp-python", "libggml-cuda")
WITHOUT_CUDA = ALL[:3]


def rendered(*variants: str, repository: Path = REPOSITORY) -> dict[str, Any]:
    return {one.recipe.package.name: one for one in build.render(variants, repository)}


def names(found: dict[str, Any]) -> dict[str, str]:
    return {name: f"{one.recipe.package.version}-{one.recipe.build.string}" for name, one in found.items()}


def run_requirements(one: Any) -> dict[str, Any]:
    return one.recipe.to_dict()["requirements"]


def test_the_default_is_for_an_rtx_5090_and_libraries_come_before_what_uses_them() -> None:
    found = rendered()
    assert tuple(found) == ALL
    assert re.fullmatch(rf"{re.escape(VERSION)}-cuda134_sm120_h[0-9a-f]{{7}}_0", names(found)["libggml-cuda"])


@pytest.mark.parametrize(
    ("variant", "build"),
    [
        ("90a", "cuda134_sm90"),
        ("89", "cuda134_sm89"),
        ("cuda129", "cuda129_sm120"),
        ("portable", "cuda129_sm75_80_86_89_90_120"),
    ],
)
def test_another_architecture_changes_no_other_package(variant: str, build: str) -> None:
    ours, theirs = names(rendered()), names(rendered(variant))
    assert {name: theirs[name] for name in WITHOUT_CUDA} == {name: ours[name] for name in WITHOUT_CUDA}
    assert re.fullmatch(rf"{re.escape(VERSION)}-{build}_h[0-9a-f]{{7}}_0", theirs["libggml-cuda"])


def test_without_cuda_there_is_no_plugin() -> None:
    assert tuple(rendered("cpu")) == WITHOUT_CUDA


def test_every_variant_that_hardware_is_matched_with_can_be_built() -> None:
    for variant in hardware.VARIANTS:
        files = build.variant_files(variant.cuda, variant.architectures)
        assert files == ([variant.file] if variant.file else [])
        assert names(rendered(*files))["libggml-cuda"].startswith(f"{VERSION}-{variant.build_prefix}_h")


def test_every_variant_file_stands_alone_for_versions_of_conda_build_that_read_the_last_file_only() -> None:
    default = yaml.safe_load((REPOSITORY / "recipe" / "variants.yaml").read_text())
    gpu = {"cuda_compiler_version", "cuda_version", "cuda_architectures", "cuda_driver", "cuda_capability"}
    for file in (REPOSITORY / "recipe" / "variants").glob("*.yaml"):
        values = yaml.safe_load(file.read_text())
        assert set(values) == set(default), file.name
        assert {key: values[key] for key in set(default) - gpu} == {key: default[key] for key in set(default) - gpu}, file.name
        config = rattler_build.VariantConfig.from_file(file)
        alone = rattler_build.Stage0Recipe.from_file(REPOSITORY / "recipe" / "recipe.yaml").render(config)
        with_defaults = rattler_build.Stage0Recipe.from_file(REPOSITORY / "recipe" / "recipe.yaml").render(
            rattler_build.VariantConfig.from_file(REPOSITORY / "recipe" / "variants.yaml").merge(config)
        )
        assert [one.recipe.build.string for one in alone] == [one.recipe.build.string for one in with_defaults], file.name


def test_an_unknown_variant_names_those_there_are() -> None:
    with pytest.raises(BuildError) as caught:
        build.render(["90b"])
    assert "90a" in caught.value.remedy and "portable" in caught.value.remedy


def test_each_package_asks_for_exactly_the_libllama_it_was_built_with() -> None:
    found = rendered()
    build = found["libllama"].recipe.build.string
    for name in ALL[1:]:
        assert f"{build}" in str(found[name].variant.get("libllama")), name
        pin = {"pin_subpackage": {"name": "libllama", "exact": True}}
        assert pin in run_requirements(found[name])["run"], name


@pytest.mark.parametrize(
    ("variant", "driver", "capability"),
    [
        ((), "13", ">=12.0,<12.1"),
        (("90a",), "13", ">=9.0,<9.1"),
        (("86",), "13", ">=8.6,<9"),
        (("cuda129",), "12.8", ">=12.0,<12.1"),
        (("portable",), "12", ">=7.5,<10|>=12.0,<12.1"),
    ],
)
def test_the_driver_is_a_constraint_and_no_requirement(variant: tuple[str, ...], driver: str, capability: str) -> None:
    requirements = run_requirements(rendered(*variant)["libggml-cuda"])
    constraints = " ".join(map(str, requirements["run_constraints"]))
    assert f"__cuda >={driver}" in constraints
    assert f"__cuda_arch {capability}" in [str(one) for one in requirements["run_constraints"]]
    assert "__" not in str(requirements["run"])


def test_what_compiles_stays_out_of_users_environments() -> None:
    for name, one in rendered().items():
        for word in ("gcc", "gxx", "nvcc", "cmake", "nccl", "cuda-driver", "-dev"):
            assert word not in str(run_requirements(one).get("run", "")), (name, word)


def test_the_recipe_agrees_with_the_pin_and_the_project() -> None:
    text = (REPOSITORY / "recipe" / "recipe.yaml").read_text()
    pin = load_toml(REPOSITORY / "vendor" / "llama.cpp" / "pin.toml")
    project = load_toml(REPOSITORY / "pyproject.toml")["project"]
    assert f"llama_cpp_commit: {pin['commit']}" in text
    assert f'version: "{llama_cpp.__version__}"' in text
    required = " ".join(map(str, run_requirements(rendered()["llama-cpp-python"])["run"]))
    for dependency in project["dependencies"]:
        name, bound = re.fullmatch(r"([\w.-]+)(>=[\d.]+)", dependency).groups()
        assert f"{name} {bound}" in required, f"the recipe does not require {dependency}"
    assert "version" in project["dynamic"], "it is read from the package"
    assert "python >=3.10" in required and project["requires-python"] == ">=3.10"


def copy_of_the_sources(folder: Path) -> None:
    for path in inputs.files_of((*inputs.PYTHON, "recipe")):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes((REPOSITORY / path).read_bytes())


@pytest.mark.parametrize(
    ("arch", "variants"),
    [("120", []), ("120a-real", []), ("90", ["90a"]), ("89", ["89"]), ("86-real", ["86"]), ("75", ["75"]), ("cpu", ["cpu"])],
)
def test_a_compute_capability_finds_its_variant(arch: str, variants: list[str]) -> None:
    assert variants_of(arch) == variants


def test_a_compute_capability_without_a_variant_says_how_to_add_one() -> None:
    with pytest.raises(BuildError, match="61-real") as caught:
        variants_of("61")
    assert "docs/guides/conda.md" in caught.value.remedy


RTX_5090 = hardware.Gpu("NVIDIA GeForce RTX 5090", (12, 0))
RTX_4090 = hardware.Gpu("NVIDIA GeForce RTX 4090", (8, 9))


@pytest.mark.parametrize(
    ("gpus", "driver", "toolkits", "variants", "said"),
    [
        ([RTX_5090], "580.1", None, [], ""),
        ([RTX_5090], "580.1", ["13.4"], [], ""),
        ([RTX_5090], "575.1", None, ["cuda129"], ""),
        ([RTX_5090], "575.1", ["13.4"], ["cpu"], "needs CUDA 12.9, and CUDA 13.4 is all"),
        ([RTX_5090, RTX_4090], "590.1", ["13.4"], ["cpu"], "needs CUDA 12.9, and CUDA 13.4 is all"),
        ([RTX_4090], "590.1", ["13.4"], ["89"], ""),
        ([], "", ["13.4"], ["cpu"], ""),
    ],
)
def test_the_demo_builds_only_with_a_toolkit_that_can_be_had(gpus, driver, toolkits, variants, said, capsys) -> None:
    assert demo.variants_for(hardware.Hardware(tuple(gpus), driver), toolkits) == variants
    assert said in capsys.readouterr().err


def test_a_variant_whose_toolkit_the_seed_has_not_is_refused_before_anything_is_built() -> None:
    seeded = {"cuda_compiler": ["cuda-nvcc"], "cuda_compiler_version": ["13.4"]}
    for variant in ("cuda129", "portable"):
        with pytest.raises(BuildError, match=r"CUDA 12\.9, and the seeded channel has 13\.4") as caught:
            build.render([variant], compilers=seeded)
        assert "conda-forge" in caught.value.remedy
    for variants in ([], ["90a"], ["cpu"]):
        build.render(variants, compilers=seeded)


def test_toolkits_are_the_seeds_where_conda_forge_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "conda_forge_answers", lambda: False)
    assert build.toolkits() == ["13.4"]
    monkeypatch.setattr(build, "conda_forge_answers", lambda: True)
    assert build.toolkits() is None


def test_a_new_architecture_and_the_cuda_build_rename_no_other_package(tmp_path: Path) -> None:
    copy_of_the_sources(tmp_path)
    before = names(rendered())
    added = (REPOSITORY / "recipe" / "variants" / "86.yaml").read_text().replace("86-real", "87-real")
    (tmp_path / "recipe" / "variants" / "87.yaml").write_text(added)
    assert names(rendered(repository=tmp_path)) == before
    assert names(rendered("87", repository=tmp_path))["libggml-cuda"].startswith(f"{VERSION}-cuda134_sm87_h")

    for name in inputs.CUDA:
        file = tmp_path / name
        text = file.read_text()
        file.write_text(text + "# changed\n")
        after = names(rendered(repository=tmp_path))
        assert [one for one in ALL if after[one] != before[one]] == ["libggml-cuda"], name
        file.write_text(text)


def test_other_sources_give_packages_other_names(tmp_path: Path) -> None:
    copy_of_the_sources(tmp_path)
    before = names(rendered())
    assert names(rendered(repository=tmp_path)) == before, "the same sources in another folder"

    (tmp_path / "llama_cpp" / "llama.py").write_text("# changed\n")
    python = names(rendered(repository=tmp_path))
    assert [name for name in ALL if python[name] != before[name]] == ["llama-cpp-python"]

    (tmp_path / "native" / "chat.cpp").write_text("// changed\n")
    assert all(name not in before.values() for name in names(rendered(repository=tmp_path)).values())

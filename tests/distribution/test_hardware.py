"""Which build runs on which GPU. The detection runs for real, whatever this machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

from distribution import hardware
from distribution.errors import DriverTooOldError
from distribution.hardware import Gpu, Variant

RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", (12, 0))
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", (8, 9))
RTX_3090 = Gpu("NVIDIA GeForce RTX 3090", (8, 6))
RTX_2080 = Gpu("NVIDIA GeForce RTX 2080", (7, 5))
JETSON_ORIN = Gpu("Orin", (8, 7))
H100 = Gpu("NVIDIA H100", (9, 0))
B200 = Gpu("NVIDIA B200", (10, 0))
GTX_1080 = Gpu("NVIDIA GeForce GTX 1080", (6, 1))


@pytest.mark.parametrize(
    ("gpus", "driver", "expected"),
    [
        ([RTX_5090], "580.65.06", "cuda134_sm120"),
        ([RTX_5090], "615.10", "cuda134_sm120"),
        ([RTX_5090, RTX_5090], "580.0", "cuda134_sm120"),
        ([RTX_5090], "579.99", "cuda129_sm120"),
        ([RTX_5090], "570.124.06", "cuda129_sm120"),
        ([H100], "580.65.06", "cuda134_sm90"),
        ([H100], "550.54", "cuda129_sm75_80_86_89_90_120"),
        ([RTX_4090], "580.65.06", "cuda134_sm89"),
        ([RTX_4090, RTX_3090], "580.65.06", "cuda134_sm86"),
        ([RTX_2080], "580.65.06", "cuda134_sm75"),
        ([RTX_2080, RTX_4090], "580.65.06", "cuda129_sm75_80_86_89_90_120"),
        ([RTX_4090], "525.60", "cuda129_sm75_80_86_89_90_120"),
        ([RTX_2080], "535.1", "cuda129_sm75_80_86_89_90_120"),
        ([JETSON_ORIN], "540.4", "cuda129_sm75_80_86_89_90_120"),
        ([RTX_5090, RTX_4090], "590.1", "cuda129_sm75_80_86_89_90_120"),
        ([RTX_5090, H100], "590.1", "cuda129_sm75_80_86_89_90_120"),
        ([B200], "590.1", None),
        ([GTX_1080], "580.65.06", None),
        ([RTX_5090, GTX_1080], "580.65.06", None),
        ([], "", None),
    ],
)
def test_chooses_by_capability_and_driver(gpus, driver, expected):
    chosen = hardware.choose_variant(gpus, driver)
    assert (chosen.build_prefix if chosen else None) == expected


@pytest.mark.parametrize(
    ("gpus", "driver", "needed"),
    [
        ([RTX_5090], "569.9", "580 or later (at least 570)"),
        ([RTX_5090, RTX_4090], "560.1", "570 or later"),
        ([RTX_4090], "470.256.02", "580 or later (at least 525)"),
        ([H100], "515.1", "580 or later (at least 525)"),
        ([RTX_4090], "", "580 or later (at least 525)"),
    ],
)
def test_driver_too_old_for_all(gpus, driver, needed):
    with pytest.raises(DriverTooOldError, match=gpus[0].name) as caught:
        hardware.choose_variant(gpus, driver)
    assert caught.value.remedy == f"install driver {needed}"


def test_driver_too_old_for_one_names_the_variant_that_fits():
    cuda_13, *_, portable = hardware.VARIANTS
    with pytest.raises(DriverTooOldError, match=r"580 or later, and 575\.1 is installed") as caught:
        hardware.check_driver(cuda_13, [RTX_5090], "575.1")
    assert "build --variant cuda129;" in caught.value.remedy and "580" in caught.value.remedy
    with pytest.raises(DriverTooOldError) as caught:
        hardware.check_driver(cuda_13, [RTX_5090], "560.1")
    assert "at least 570" in caught.value.remedy
    hardware.check_driver(cuda_13, [RTX_5090], "580.65.06")
    hardware.check_driver(portable, [H100], "525.1")


def test_suitable_variants_are_ordered_and_all_run():
    suitable = hardware.suitable_variants([RTX_5090], "580.1")
    assert [variant.build_prefix[:13] for variant in suitable] == ["cuda134_sm120", "cuda129_sm120", "cuda129_sm75_"]
    assert all(variant.covers((12, 0)) for variant in suitable)


@pytest.mark.parametrize(
    ("architectures", "runs", "does_not"),
    [
        (("120a-real",), [(12, 0)], [(12, 1), (9, 0), (10, 0)]),
        (("80-real",), [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0)]),
        (("86",), [(8, 6), (8, 9), (9, 0), (12, 1)], [(8, 0), (7, 5)]),
        (("90a",), [(9, 0)], [(10, 0)]),
    ],
)
def test_what_compiled_code_runs_on(architectures, runs, does_not):
    variant = Variant("12.9", architectures)
    assert all(variant.covers(capability) for capability in runs)
    assert not any(variant.covers(capability) for capability in does_not)


def test_build_prefix_is_what_the_recipe_makes():
    yaml = pytest.importorskip("yaml")
    pattern = next(
        line.split(": ", 1)[1] for line in (ROOT / "recipe/recipe.yaml").read_text().splitlines() if "string: cuda${{" in line
    )
    built = []
    for name in ("variants.yaml", *(f"variants/{path.name}" for path in (ROOT / "recipe/variants").glob("*.yaml"))):
        keys = {}
        for file in ("variants.yaml", name):
            keys |= yaml.safe_load((ROOT / "recipe" / file).read_text())
        if keys["cuda_version"] != ["none"]:
            built.append(Variant(keys["cuda_version"][0], tuple(keys["cuda_architectures"][0].split())))
    assert sorted(map(str, built)) == sorted(map(str, hardware.VARIANTS))
    for variant in hardware.VARIANTS:
        assert variant.build_prefix == _render(pattern, variant)


def _render(pattern: str, variant: Variant) -> str:
    jinja2 = pytest.importorskip("jinja2")
    environment = jinja2.Environment(variable_start_string="${{", variable_end_string="}}")
    values = {"cuda_version": variant.cuda, "cuda_architectures": " ".join(variant.architectures)}
    return environment.from_string(pattern).render(**values, hash="HASH", build_number=0).split("_hHASH")[0]


def test_detection_on_this_machine(capfd):
    found = hardware.detect()
    assert capfd.readouterr() == ("", "")
    assert bool(found.gpus) == bool(found.driver)
    if Path("/proc/driver/nvidia/version").exists():
        assert found.gpus and all(gpu.memory > 1 << 30 and gpu.capability >= (3, 0) for gpu in found.gpus)
        assert found.driver in Path("/proc/driver/nvidia/version").read_text()
    else:
        assert found == hardware.Hardware() and str(found) == "no NVIDIA GPU"


def test_virtual_package_agrees_with_the_detection(monkeypatch):
    rattler = pytest.importorskip("rattler")
    monkeypatch.delenv("CONDA_OVERRIDE_CUDA", raising=False)
    packages = {package.into_generic().name.normalized for package in rattler.VirtualPackage.detect()}
    assert ("__cuda" in packages) == bool(hardware.detect().driver)

"""Which GPUs are here, and which of our builds of ``libggml-cuda`` runs on them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import DriverTooOldError, ToolNotFoundError

# The first driver branch that runs a CUDA version's programs, by minor-version compatibility (NVIDIA, "CUDA
# Compatibility"); below it no kernel starts.
_OLDEST_DRIVER = {"12": 525, "13": 580}
# The first driver branch that knows the architecture at all, whatever the CUDA version.
_OLDEST_DRIVER_OF_BLACKWELL = 570


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it. ``capability`` is its compute capability, ``memory`` is in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int = 0

    def __str__(self) -> str:
        return f"{self.name} (compute capability {_dotted(self.capability)})"


@dataclass(frozen=True)
class Hardware:
    """The NVIDIA GPUs of a machine and their driver's version; no GPU and an empty version where there is none."""

    gpus: tuple[Gpu, ...] = ()
    driver: str = ""

    def __str__(self) -> str:
        if not self.gpus:
            return "no NVIDIA GPU"
        return ", ".join(str(gpu) for gpu in self.gpus) + f", driver {self.driver}"


@dataclass(frozen=True)
class Variant:
    """A build of ``libggml-cuda``: a CUDA version and the architectures, as CMake writes them.

    ``file`` is the name of its file in ``recipe/variants/``; empty for the one that needs none.
    """

    cuda: str
    architectures: tuple[str, ...]
    file: str = ""

    @property
    def build_prefix(self) -> str:
        """What the build string of its package begins with, as recipe.yaml makes it.

        >>> Variant("13.4", ("120a-real",)).build_prefix
        'cuda134_sm120'
        """
        target = "_".join(self.architectures).replace("a-real", "").replace("-real", "")
        return f"cuda{self.cuda.replace('.', '')}_sm{target}"

    def __str__(self) -> str:
        return f"CUDA {self.cuda} for {' '.join(self.architectures)}"

    def covers(self, capability: tuple[int, int]) -> bool:
        """Whether it holds code that a GPU of this compute capability can run."""
        return any(_runs_on(architecture, capability) for architecture in self.architectures)

    def oldest_driver(self, capability: tuple[int, int]) -> int:
        """The driver branch (580, for example) that this build needs on such a GPU."""
        needed = _OLDEST_DRIVER[self.cuda.split(".")[0]]
        return max(needed, _OLDEST_DRIVER_OF_BLACKWELL) if capability >= (10, 0) else needed


# Best first: the newest CUDA with code for one architecture alone, then what older drivers and other GPUs can use.
VARIANTS = (
    Variant("13.4", ("120a-real",)),
    Variant("13.4", ("90a-real",), "90a"),
    Variant("13.4", ("89-real",), "89"),
    Variant("13.4", ("86-real",), "86"),
    Variant("13.4", ("80-real",), "80"),
    Variant("13.4", ("75-real",), "75"),
    Variant("12.9", ("120a-real",), "cuda129"),
    Variant("12.9", ("75-real", "80-real", "86-real", "89-real", "90-real", "120a-real"), "portable"),
)


def detect() -> Hardware:
    """The machine's NVIDIA GPUs, as the driver lists them. A machine without a driver has none.

    Raises:
        ToolNotFoundError: the Python package nvidia-ml-py is not installed.
    """
    try:
        import pynvml
    except ImportError:
        raise ToolNotFoundError(
            "GPUs are detected with nvidia-ml-py, which is not installed", "python -m pip install nvidia-ml-py"
        ) from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return Hardware()
    try:
        gpus = tuple(_describe(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
        return Hardware(gpus, pynvml.nvmlSystemGetDriverVersion()) if gpus else Hardware()
    except pynvml.NVMLError:
        # a driver that lists a GPU and then cannot describe it cannot run a kernel on it either
        return Hardware()
    finally:
        pynvml.nvmlShutdown()


def cuda_override() -> str | None:
    """``$CONDA_OVERRIDE_CUDA``: the version that conda is told to see, empty for none; None where it is not set."""
    return os.environ.get("CONDA_OVERRIDE_CUDA")


def suitable_variants(gpus: Sequence[Gpu], driver: str) -> tuple[Variant, ...]:
    """The variants that run on all of ``gpus`` with this driver, best first; empty where none was made for them.

    Raises:
        DriverTooOldError: there are variants for these GPUs, and the driver is too old for each of them.
    """
    covering = [variant for variant in VARIANTS if gpus and all(variant.covers(gpu.capability) for gpu in gpus)]
    fitting = tuple(variant for variant in covering if _branch(driver) >= _needed(variant, gpus))
    if covering and not fitting:
        oldest = min(_needed(variant, gpus) for variant in covering)
        best = _needed(covering[0], gpus)
        raise DriverTooOldError(
            f"NVIDIA driver {driver} is too old for {', '.join(sorted({gpu.name for gpu in gpus}))}: "
            f"CUDA programs for it need driver {oldest} or later",
            f"install driver {best} or later" + (f" (at least {oldest})" if oldest < best else ""),
        )
    return fitting


def choose_variant(gpus: Sequence[Gpu], driver: str) -> Variant | None:
    """The best variant for these GPUs and this driver; None where no GPU is there or none of ours runs on them all.

    Raises:
        DriverTooOldError: there are variants for these GPUs, and the driver is too old for each of them.
    """
    return next(iter(suitable_variants(gpus, driver)), None)


def check_driver(variant: Variant, gpus: Sequence[Gpu], driver: str) -> None:
    """Refuse a variant that this driver cannot run.

    Raises:
        DriverTooOldError: the driver is too old; the remedy names the variant that fits, or the driver to install.
    """
    needed = _needed(variant, gpus)
    if _branch(driver) >= needed:
        return
    other = choose_variant(gpus, driver)
    fits = f"{other} fits this driver, build and publish it: {_command(other)}; or " if other else ""
    raise DriverTooOldError(
        f"{variant} needs NVIDIA driver {needed} or later, and {driver} is installed",
        f"{fits}install driver {needed} or later",
    )


def _command(variant: Variant) -> str:
    return "python -m distribution build" + (f" --variant {variant.file}" if variant.file else "")


def _describe(pynvml: Any, index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    return Gpu(
        pynvml.nvmlDeviceGetName(handle),
        tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
        pynvml.nvmlDeviceGetMemoryInfo(handle).total,
    )


def _needed(variant: Variant, gpus: Sequence[Gpu]) -> int:
    return max((variant.oldest_driver(gpu.capability) for gpu in gpus), default=_OLDEST_DRIVER[variant.cuda.split(".")[0]])


def _branch(driver: str) -> int:
    first = driver.split(".")[0]
    return int(first) if first.isdigit() else 0


def _number(architecture: str) -> int:
    return int(architecture.removesuffix("-real").rstrip("af"))


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    major, minor = divmod(_number(architecture), 10)
    if architecture.removesuffix("-real").endswith("a"):
        # architecture-specific code runs nowhere else
        return capability == (major, minor)
    if capability[0] == major and capability[1] >= minor:
        return True
    # without -real CMake adds PTX, which the driver compiles for whatever came later
    return not architecture.endswith("-real") and capability >= (major, minor)


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(str(part) for part in capability)

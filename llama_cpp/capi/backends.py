"""Opens the backend plugins of a folder, one by one, and says what is wrong with those that do not open.

llama.cpp's own search drops a plugin that fails to load without a word, looks into the current directory, and follows
``GGML_BACKEND_PATH``; here every file is named by its full path and its error is kept.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import BackendLoadError, NoDeviceWarning, UnsupportedGPUError
from . import cuda_driver

logger = logging.getLogger("llama_cpp.backends")

#: CUDA runtime libraries that the plugin needs, and the wheel that carries each.
_CUDA_LIBRARIES = {
    "libcudart.so": "nvidia-cuda-runtime",
    "libcublasLt.so": "nvidia-cublas",
    "libcublas.so": "nvidia-cublas",
}


@dataclass
class BackendReport:
    """What loading the plugins came to.

    Attributes:
        folder: where they are; None before they are looked for.
        loaded: paths of the plugins in use, in the order in which they were registered.
        skipped: path of each plugin not in use, with the reason.
    """

    folder: Path | None = None
    loaded: list[Path] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)


report = BackendReport()


def load(folder: Path) -> None:
    """Registers the best CPU plugin of ``folder`` and every other plugin that this machine can use.

    Raises:
        BackendLoadError: no CPU plugin runs here, or a plugin is there and cannot be opened.
        UnsupportedGPUError: the GPU is not among those the CUDA plugin was compiled for.
    """
    report.folder = folder
    report.loaded.clear()
    report.skipped.clear()
    plugins = [p for p in sorted(folder.glob("libggml-*.so")) if p.name != "libggml-base.so"]
    cpu = [p for p in plugins if p.name.startswith("libggml-cpu")]
    for plugin in plugins:
        if plugin in cpu:
            continue
        if plugin.name == "libggml-cuda.so":
            _load_cuda(plugin)
        else:
            _register(plugin)
    # last, as llama.cpp has it: the order of registration is the order of preference among devices
    _register(_best_cpu_plugin(cpu, folder))


def has_gpu() -> bool:
    """Whether a device of a loaded backend is a GPU, integrated ones included."""
    from . import ggml_backend as api

    kinds = (api.GGML_BACKEND_DEVICE_TYPE_GPU, api.GGML_BACKEND_DEVICE_TYPE_IGPU)
    devices = range(api.ggml_backend_dev_count())
    return any(api.ggml_backend_dev_type(api.ggml_backend_dev_get(index)) in kinds for index in devices)


def _best_cpu_plugin(plugins: list[Path], folder: Path) -> Path:
    scores: dict[Path, int] = {}
    errors: list[str] = []
    for plugin in plugins:
        try:
            library = ctypes.CDLL(str(plugin))
            # a plugin for one instruction set only, built without variants, has no score
            scores[plugin] = library.ggml_backend_score() if hasattr(library, "ggml_backend_score") else 1
        except OSError as error:
            errors.append(str(error))
    best = max(scores, key=scores.__getitem__, default=None)
    if best is None or scores[best] == 0:
        found = ", ".join(p.name for p in plugins) or "none at all"
        raise BackendLoadError(
            f"No CPU backend in {folder} runs on this machine (found: {found}). {' '.join(errors)}",
            remedy="The installation is incomplete, or this processor is older than x86-64 with SSE2; reinstall.",
        )
    for plugin, score in scores.items():
        if plugin != best:
            report.skipped[plugin] = f"score {score}, {best.name} has {scores[best]}"
    return best


def _register(plugin: Path) -> None:
    from . import ggml_backend

    try:
        ctypes.CDLL(str(plugin))  # for dlopen's own words; the engine would keep them to itself
    except OSError as error:
        raise BackendLoadError(
            f"The backend {plugin} cannot be opened: {error}.",
            remedy="Install what is missing, or remove the file to do without this backend.",
        ) from error
    if not ggml_backend.ggml_backend_load(os.fsencode(plugin)):
        raise BackendLoadError(
            f"The backend {plugin} was refused by the engine.",
            remedy="It was built from another llama.cpp, or found nothing to run on; the log has the reason.",
        )
    report.loaded.append(plugin)


# --- CUDA -----------------------------------------------------------------------------------------


def _load_cuda(plugin: Path) -> None:
    try:
        gpus = cuda_driver.gpus()
    except cuda_driver.DriverError as error:
        report.skipped[plugin] = str(error)
        _warn_no_device(str(error))
        return
    if not gpus:
        reason = "the driver lists no GPU (CUDA_VISIBLE_DEVICES hides them, or none is plugged in)"
        report.skipped[plugin] = reason
        _warn_no_device(reason)
        return
    _check_architectures(plugin, gpus)
    _preload_cuda_libraries()
    _register(plugin)

    from . import ggml_backend

    registry = ggml_backend.ggml_backend_reg_by_name(b"CUDA")
    if not registry or ggml_backend.ggml_backend_reg_dev_count(registry) == 0:
        _warn_no_device("the CUDA runtime accepts no GPU (its log says why; most often the driver is too old)")


def _warn_no_device(reason: str) -> None:
    # quietly running on the CPU is the one thing a CUDA build must not do
    warnings.warn(f"This is a CUDA build of llama.cpp, but it will run on the CPU: {reason}.", NoDeviceWarning, stacklevel=2)


def _check_architectures(plugin: Path, gpus: list[cuda_driver.GPU]) -> None:
    compiled = compiled_architectures(plugin)
    if not compiled:
        return
    for gpu in gpus:
        if not any(_runs_on(architecture, gpu.compute_capability) for architecture in compiled):
            major, minor = gpu.compute_capability
            raise UnsupportedGPUError(
                f"GPU {gpu.index} ({gpu.name}) has compute capability {major}.{minor}; {plugin} was compiled for "
                f"{', '.join(compiled)} only, and its first kernel would abort the process.",
                remedy=f"Build for it (CMAKE_CUDA_ARCHITECTURES={major}{minor} pip install .), or leave this GPU out "
                "with CUDA_VISIBLE_DEVICES.",
            )


def compiled_architectures(plugin: Path) -> list[str]:
    """CMake architecture names (``120a-real``) that a CUDA plugin was compiled for; empty when not recorded."""
    manifest = plugin.with_suffix(".json")
    if not manifest.exists():
        return []
    architectures = json.loads(manifest.read_text(encoding="utf-8"))["architectures"]
    # "native" and "all" say nothing that could be compared
    known = all(re.fullmatch(r"\d+[af]?(-real|-virtual)?", name) for name in architectures)
    return list(architectures) if known else []


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for a CMake CUDA architecture runs on a compute capability.

    Machine code (``-real``) runs on the same major version from its own minor on; PTX (``-virtual``) is compiled by the
    driver for anything newer; with the suffix ``a`` neither leaves its own capability, with ``f`` its family.
    Source: CUDA C++ programming guide, sections on binary and PTX compatibility.
    """
    name, _, kind = architecture.partition("-")
    number = int(name.rstrip("af"))
    target = divmod(number, 10)
    if name.endswith("a"):
        return target == capability
    same_major = target[0] == capability[0] and target[1] <= capability[1]
    if name.endswith("f") or kind == "real":
        return same_major
    return target <= capability


def _preload_cuda_libraries() -> None:
    """Opens cudart and cublas from where they are, so that the plugin's own ``$ORIGIN`` rpath need not reach them.

    Searched: the environment's ``lib``, the nvidia wheels, ``CUDA_PATH``, then what the system's linker knows.
    """
    for stem, wheel in _CUDA_LIBRARIES.items():
        for path in _cuda_library_candidates(stem):
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
                break
            except OSError:
                continue
        else:
            raise BackendLoadError(
                f"{stem} of CUDA was not found in {sys.prefix}/lib, the nvidia wheels, CUDA_PATH or the system's path.",
                remedy=f"Install it: `pip install {wheel}`, or set CUDA_PATH to a CUDA toolkit of the same major version.",
            )


def _cuda_library_candidates(stem: str) -> list[Path]:
    folders = [Path(sys.prefix) / "lib"]
    for entry in sys.path:
        folders += sorted(Path(entry or ".").glob("nvidia/*/lib")) if entry else []
    for variable in ("CUDA_PATH", "CUDA_HOME"):
        if os.environ.get(variable):
            folders += [Path(os.environ[variable]) / "lib64", Path(os.environ[variable]) / "lib"]
    major = _cuda_major()
    names = [f"{stem}.{major}"] if major else [f"{stem}.13", f"{stem}.12"]
    found = [folder / name for folder in folders for name in names if (folder / name).exists()]
    return [*found, *(Path(name) for name in names)]


def _cuda_major() -> int | None:
    manifest = report.folder / "libggml-cuda.json" if report.folder else None
    if manifest is None or not manifest.exists():
        return None
    return int(json.loads(manifest.read_text(encoding="utf-8"))["cuda"].split(".")[0])

"""What the loaded backends can compute on."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from ..capi import backends, ggml_backend
from ..capi.loader import libraries

_KINDS = {
    ggml_backend.GGML_BACKEND_DEVICE_TYPE_CPU: "cpu",
    ggml_backend.GGML_BACKEND_DEVICE_TYPE_GPU: "gpu",
    ggml_backend.GGML_BACKEND_DEVICE_TYPE_IGPU: "igpu",
    ggml_backend.GGML_BACKEND_DEVICE_TYPE_ACCEL: "accel",
}


@dataclass(frozen=True)
class Device:
    """A device of a loaded backend.

    Attributes:
        name: the engine's, such as ``CUDA0`` or ``CPU``.
        description: the hardware's, such as ``NVIDIA GeForce RTX 5090``.
        kind: "gpu", "igpu", "cpu" or "accel".
        memory_free, memory_total: bytes, now.
    """

    name: str
    description: str
    kind: str
    memory_free: int
    memory_total: int


def devices() -> list[Device]:
    """Every device, in the engine's order of preference."""
    libraries()
    return [_describe(ggml_backend.ggml_backend_dev_get(i)) for i in range(ggml_backend.ggml_backend_dev_count())]


def gpus() -> list[Device]:
    """The devices that ``n_gpu_layers`` is about."""
    return [device for device in devices() if device.kind in ("gpu", "igpu")]


def summary() -> str:
    """One line for people: the GPUs in use, or the CPU and the instruction set chosen for it."""
    names = [f"{gpu.name} ({gpu.description})" for gpu in gpus()]
    if names:
        return ", ".join(names)
    cpu = next((d for d in devices() if d.kind == "cpu"), None)
    plugin = next((p.stem for p in backends.report.loaded if p.name.startswith("libggml-cpu")), "libggml-cpu")
    level = plugin.removeprefix("libggml-cpu").lstrip("-")
    return f"CPU ({cpu.description if cpu else 'unknown'}{', ' + level + ' code' if level else ''})"


def _describe(device: ggml_backend.ggml_backend_dev_t | None) -> Device:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml_backend.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    return Device(
        name=(ggml_backend.ggml_backend_dev_name(device) or b"").decode(),
        description=(ggml_backend.ggml_backend_dev_description(device) or b"").decode("utf-8", "replace").strip(),
        kind=_KINDS.get(ggml_backend.ggml_backend_dev_type(device), "other"),
        memory_free=free.value,
        memory_total=total.value,
    )

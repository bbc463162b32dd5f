"""Which GPUs the NVIDIA driver offers, asked of ``libcuda`` before any CUDA library of ours is opened."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


class DriverError(Exception):
    """The driver is missing or refuses to start; the text says which."""


@dataclass(frozen=True)
class GPU:
    """One GPU as ``CUDA_VISIBLE_DEVICES`` leaves it.

    Attributes:
        index: its number for CUDA.
        compute_capability: (major, minor); an RTX 5090 is (12, 0).
    """

    index: int
    name: str
    compute_capability: tuple[int, int]


def gpus() -> list[GPU]:
    """The visible GPUs.

    Raises:
        DriverError: there is no driver, or it does not start.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise DriverError("the NVIDIA driver (libcuda.so.1) is not installed") from None
    status = cuda.cuInit(0)
    if status == _NO_DEVICE:
        return []
    if status != 0:
        raise DriverError(f"the NVIDIA driver does not start: {_error_text(cuda, status)}")
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return [_describe(cuda, index) for index in range(count.value)]


def _describe(cuda: ctypes.CDLL, index: int) -> GPU:
    device, value, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    capability = []
    for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR):
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return GPU(index, name.value.decode("utf-8", "replace"), (capability[0], capability[1]))


def _error_text(cuda: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    if cuda.cuGetErrorString(status, ctypes.byref(text)) == 0 and text.value:
        return f"{text.value.decode()} (CUDA error {status})"
    return f"CUDA error {status}"

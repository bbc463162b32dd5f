"""Reads the header of a GGUF file and checks it before the engine sees it.

llama.cpp ends the whole process on some malformed files instead of returning an error. :func:`check_gguf`
finds those, and everything the engine would refuse with no more than "failed to load model", and says which
key or tensor is at fault. Only the header is read, so the size of the weights does not matter.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from ..errors import (
    EmptyGGUFError,
    InvalidGGUFError,
    MetadataOverrideError,
    ModelIsADirectoryError,
    ModelNotFoundError,
)
from .overrides import Override, apply_overrides
from .reader import DOWNLOAD_AGAIN, HeaderReader
from .rules import check_model
from .types import GGUFArray, GGUFFile, TensorInfo, ValueType

__all__ = ["GGUFArray", "GGUFFile", "TensorInfo", "ValueType", "check_gguf", "read_gguf", "read_siblings"]


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Read and validate the structure of a GGUF file: header, metadata, tensor descriptions, data section.

    Use it for files that are not language models of their own (LoRA adapters, projectors); it knows nothing of
    vocabularies and hyperparameters. Arrays are validated but decoded only on access.

    Args:
        path: a regular file. One file of a split model is read alone.

    Returns:
        The parsed header.

    Raises:
        ModelNotFoundError: nothing is there.
        ModelIsADirectoryError: a directory is there.
        PermissionError: the file may not be read.
        EmptyGGUFError, GGUFMagicError, GGUFVersionError, TruncatedGGUFError, GGUFLimitError, InvalidGGUFError:
            what is wrong, with the key or tensor and its position.

    Example:
        >>> model = read_gguf("model.gguf")
        >>> model.metadata["general.architecture"], len(model.tensors)
        ('llama', 272)
    """
    path = Path(path)
    _require_regular_file(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise EmptyGGUFError(f"{path} is empty (0 bytes).", remedy=DOWNLOAD_AGAIN)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return HeaderReader(path, data, size).read()


def check_gguf(
    path: str | os.PathLike[str], *, vocab_only: bool = False, overrides: Mapping[str, Override] | None = None
) -> GGUFFile:
    """Check that loading a model file ends in a model or an error, and not in the end of the process.

    On top of :func:`read_gguf`: the other files of a split model, the vocabulary, and the hyperparameters and
    tensors that the engine asserts on.

    Args:
        path: the model file; the first one of a split model.
        vocab_only: the model will be loaded without weights, so hyperparameters do not matter.
        overrides: metadata that the engine will be given in place of the file's.

    Returns:
        The parsed header of ``path``, as it is in the file.

    Raises:
        ModelNotFoundError: the file, or one of the files it is split into, does not exist.
        InvalidGGUFError: and everything else that :func:`read_gguf` raises.
        MetadataOverrideError: the model is valid without an override, but not with it.

    Example:
        >>> check_gguf("model.gguf").architecture
        'llama'
    """
    model = read_gguf(path)
    files = [model, *read_siblings(model)]
    overridden = apply_overrides(model, overrides or {})
    try:
        check_model(overridden, files, vocab_only=vocab_only)
    except InvalidGGUFError as error:
        check_model(model, files, vocab_only=vocab_only)  # the file's own fault?
        reason = str(error).removesuffix(error.remedy).rstrip(". ")
        raise MetadataOverrideError(", ".join(overrides or {}), f"with it, the model is not valid ({reason})") from error
    return model


def _require_regular_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        dangling = " (a symbolic link to nothing)" if path.is_symlink() else ""
        raise ModelNotFoundError(
            f"There is no model file {path}{dangling}.", remedy="Check the path, or download the model first."
        ) from None
    if stat.S_ISDIR(mode):
        inside = sorted(p.name for p in path.glob("*.gguf"))[:3]
        remedy = f"Give a file in it, for example {inside[0]}." if inside else "Give the path of a .gguf file."
        raise ModelIsADirectoryError(f"{path} is a directory.", remedy=remedy)
    if not stat.S_ISREG(mode):
        raise InvalidGGUFError(f"{path} is not a regular file.", remedy="Give the path of a .gguf file on disk.")


# --- split models -----------------------------------------------------------------------------------


def read_siblings(model: GGUFFile) -> list[GGUFFile]:
    """The headers of the other files of a split model; the engine expects them beside the first one."""
    count = _uint16(model, "split.count")
    if count is None or count <= 1:
        return []
    number = _uint16(model, "split.no") or 0
    if number != 0:
        raise InvalidGGUFError(
            f"{model.path} is file {number + 1} of a model split into {count} (split.no = {number}).",
            remedy="Give the first file, whose name ends in -00001-of-....gguf.",
        )
    suffix = f"-00001-of-{count:05d}.gguf"
    if not model.path.name.endswith(suffix):
        raise InvalidGGUFError(
            f"{model.path} is the first of {count} files (split.count), so its name must end in {suffix}.",
            remedy="Give the file its original name back; the names of the others are derived from it.",
        )
    stem = model.path.name[: -len(suffix)]
    return [_read_sibling(model, stem, index, count) for index in range(1, count)]


def _read_sibling(model: GGUFFile, stem: str, index: int, count: int) -> GGUFFile:
    path = model.path.with_name(f"{stem}-{index + 1:05d}-of-{count:05d}.gguf")
    if not path.exists():
        raise ModelNotFoundError(
            f"{model.path.name} needs {path}, file {index + 1} of {count}, which does not exist.",
            remedy="Download all files of the model into one folder.",
        )
    sibling = read_gguf(path)
    number = _uint16(sibling, "split.no")
    if number != index:
        raise InvalidGGUFError(
            f"{path}: split.no is {number}, expected {index}.",
            remedy="Download all files of the model from one source.",
        )
    return sibling


def _uint16(model: GGUFFile, key: str) -> int | None:
    """A split key; the engine asserts on another type than u16 in the files after the first."""
    if key not in model.types:
        return None
    if model.types[key] is not ValueType.UINT16:
        raise InvalidGGUFError(
            f"{model.path}: key '{key}' must be of type UINT16, but is {model.types[key].name}.",
            remedy="Split the model again with a current llama-gguf-split.",
        )
    number: int = model.metadata[key]
    return number

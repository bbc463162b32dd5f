"""The walk through a GGUF header: every number is checked against the file before it is used.

Source of the format: the GGUF specification (``docs/gguf.md`` of ggml); limits that the specification leaves
open are those of the pinned engine.
"""

from __future__ import annotations

import mmap
import re
import struct
from pathlib import Path
from typing import Any

from ..errors import GGUFLimitError, GGUFMagicError, GGUFVersionError, InvalidGGUFError, TruncatedGGUFError
from .types import (
    REMOVED_TENSOR_TYPES,
    STRUCT_CODES,
    TENSOR_TYPES,
    VALUE_SIZES,
    GGUFArray,
    GGUFFile,
    TensorInfo,
    ValueType,
)

MAGIC = b"GGUF"
HEADER_SIZE = 24  # magic, version (u32), n_tensors (u64), n_kv (u64)
MIN_KV_SIZE = 14  # length (u64), one byte of key, type (u32), one byte of value
MIN_TENSOR_SIZE = 24  # length (u64), n_dims (u32), type (u32), offset (u64)
DEFAULT_ALIGNMENT = 32
MAX_KEY_BYTES = 65535
MAX_STRING_BYTES = 1 << 30
MAX_ARRAY_LENGTH = 1 << 30
MAX_TENSOR_NAME = 64  # with the terminating NUL
MAX_DIMS = 4
INT64_MAX = (1 << 63) - 1

DOWNLOAD_AGAIN = "Download the file again and compare its size and hash with the source."
CONVERT_AGAIN = "Convert the model again with a current convert_hf_to_gguf.py."
GET_GGUF = "Get the GGUF version of this model, or convert it with convert_hf_to_gguf.py."

_LENGTH = struct.Struct("<Q")

#: First bytes of files that people take for GGUF, what they are, and what to do.
_LOOKALIKES: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a zip archive, as PyTorch checkpoints (.bin, .pt) are", GET_GGUF),
    (b"\x80\x02", "a Python pickle, as old PyTorch checkpoints are", GET_GGUF),
    (b"\x80\x04", "a Python pickle", GET_GGUF),
    (b"\x1f\x8b", "gzip-compressed", "Decompress it."),
    (b"\x28\xb5\x2f\xfd", "Zstandard-compressed", "Decompress it."),
    (b"BZh", "bzip2-compressed", "Decompress it."),
    (b"\xfd7zXZ\x00", "xz-compressed", "Decompress it."),
    (b"7z\xbc\xaf", "a 7-Zip archive", "Unpack it."),
    (b"tjgg", "a GGJT file, a format that came before GGUF", CONVERT_AGAIN),
    (b"lmgg", "a GGML file, a format that came before GGUF", CONVERT_AGAIN),
    (b"fmgg", "a GGMF file, a format that came before GGUF", CONVERT_AGAIN),
    (b"algg", "a GGLA adapter, a format that came before GGUF", CONVERT_AGAIN),
    (b"FUGG", "a GGUF file with its magic byte-swapped", CONVERT_AGAIN),
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "Fetch the file with `git lfs pull`."),
    (b"\x7fELF", "an ELF program or library", GET_GGUF),
    (b"\x89HDF", "an HDF5 file", GET_GGUF),
)


class HeaderReader:
    """Walks a header once, from the first byte to the last tensor description."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self._path = path
        self._data = data
        self._size = size
        self._position = 0

    def read(self) -> GGUFFile:
        """Everything the header says, in the order in which it stands in the file."""
        self._check_magic()
        version = self._read_version()
        n_tensors, n_kv = self._read_counts()
        metadata, types = self._read_metadata(n_kv)
        alignment = self._alignment(metadata, types)
        tensors = self._read_tensors(n_tensors, alignment)
        data_offset = _pad(self._position, alignment) if tensors else self._position
        self._check_data(tensors, data_offset)
        return GGUFFile(self._path, version, "little", alignment, metadata, types, tensors, data_offset, self._size)

    # bytes

    def _take(self, n_bytes: int, what: str) -> int:
        """Move past ``n_bytes`` and return where they begin."""
        start, end = self._position, self._position + n_bytes
        if end > self._size:
            raise TruncatedGGUFError(
                f"{self._path} ends within {what}: {n_bytes} bytes from offset {start} are needed, "
                f"but the file has {self._size} ({end - self._size} missing).",
                remedy=DOWNLOAD_AGAIN,
            )
        self._position = end
        return start

    def _uint32(self, what: str) -> int:
        start = self._take(4, what)
        return int.from_bytes(self._data[start : start + 4], "little")

    def _uint64(self, what: str) -> int:
        start = self._take(8, what)
        return int.from_bytes(self._data[start : start + 8], "little")

    def _string(self, what: str, limit: int = MAX_STRING_BYTES) -> bytes:
        start = self._position
        length = self._uint64(f"the length of {what}")
        if length > limit:
            raise self._limit(f"{what} at offset {start} is said to have {length} bytes; the limit is {limit}")
        begin = self._take(length, what)
        return self._data[begin : begin + length]

    def _invalid(self, message: str, remedy: str = CONVERT_AGAIN) -> InvalidGGUFError:
        return InvalidGGUFError(f"{self._path}: {message}.", remedy=remedy)

    def _limit(self, message: str) -> GGUFLimitError:
        return GGUFLimitError(f"{self._path}: {message}.", remedy=DOWNLOAD_AGAIN)

    # header

    def _check_magic(self) -> None:
        magic = self._data[:4]
        if magic == MAGIC:
            self._position = 4
            return
        if MAGIC.startswith(magic):
            raise TruncatedGGUFError(f"{self._path} ends within its magic: {self._size} bytes.", remedy=DOWNLOAD_AGAIN)
        kind, remedy = _identify(self._data[:512])
        raise GGUFMagicError(
            f"{self._path} is not a GGUF file: it begins with {magic!r} instead of {MAGIC!r}{kind}.", remedy=remedy
        )

    def _read_version(self) -> int:
        version = self._uint32("the header")
        if version and version & 0xFFFF == 0:
            raise GGUFVersionError(
                f"{self._path} is a big-endian GGUF file (version {version:#x}, byte-swapped); this machine is little-endian.",
                remedy="Get the little-endian file, or convert it with gguf-py's gguf_convert_endian.py.",
            )
        if version < 2:
            raise GGUFVersionError(
                f"{self._path} has GGUF version {version}, which the engine no longer reads (it reads 2 and 3).",
                remedy=CONVERT_AGAIN,
            )
        if version > 3:
            raise GGUFVersionError(
                f"{self._path} has GGUF version {version}; the engine reads 2 and 3.",
                remedy="Use a newer release of this package, or download the file again if it may be damaged.",
            )
        return version

    def _read_counts(self) -> tuple[int, int]:
        n_tensors = self._uint64("the header")
        n_kv = self._uint64("the header")
        rest = self._size - self._position
        if n_tensors * MIN_TENSOR_SIZE > rest:
            raise self._limit(f"n_tensors is {n_tensors} (offset 8), more than the {rest} bytes after it can describe")
        if n_kv * MIN_KV_SIZE > rest:
            raise self._limit(f"n_kv is {n_kv} (offset 16), more than the {rest} bytes after it can hold")
        return n_tensors, n_kv

    # metadata

    def _read_metadata(self, n_kv: int) -> tuple[dict[str, Any], dict[str, ValueType]]:
        metadata: dict[str, Any] = {}
        types: dict[str, ValueType] = {}
        for index in range(n_kv):
            start = self._position
            key = self._key(index)
            if key in metadata:
                raise self._invalid(f"key '{key}' occurs twice, the second time at offset {start}")
            types[key] = value_type = self._value_type(f"key '{key}'")
            if value_type is ValueType.STRING:
                metadata[key] = self._string(f"the value of key '{key}'").decode("utf-8", "replace")
            elif value_type is ValueType.ARRAY:
                metadata[key] = self._array(key)
            else:
                metadata[key] = self._scalar(key, value_type)
        return metadata, types

    def _key(self, index: int) -> str:
        start = self._position
        raw = self._string(f"metadata key {index}", MAX_KEY_BYTES)
        if not raw:
            raise self._invalid(f"metadata key {index} at offset {start} is empty")
        # The engine compares keys up to the first NUL, so two different keys could answer to one name.
        if b"\0" in raw:
            raise self._invalid(f"metadata key {index} at offset {start} contains a NUL: {raw[:80]!r}", DOWNLOAD_AGAIN)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self._invalid(f"metadata key {index} at offset {start} is not UTF-8: {raw[:80]!r}", DOWNLOAD_AGAIN) from None

    def _value_type(self, what: str) -> ValueType:
        start = self._position
        number = self._uint32(f"the type of {what}")
        try:
            return ValueType(number)
        except ValueError:
            raise self._invalid(
                f"{what} has value type {number} at offset {start}, which does not exist (0 to 12 do)", DOWNLOAD_AGAIN
            ) from None

    def _scalar(self, key: str, value_type: ValueType) -> Any:
        start = self._take(VALUE_SIZES[value_type], f"the value of key '{key}'")
        if value_type is ValueType.BOOL and self._data[start] > 1:
            raise self._invalid(
                f"key '{key}' is a bool with value {self._data[start]} at offset {start} (0 or 1 expected)",
                DOWNLOAD_AGAIN,
            )
        return struct.unpack_from("<" + STRUCT_CODES[value_type], self._data, start)[0]

    def _array(self, key: str) -> GGUFArray:
        element_type = self._value_type(f"the elements of key '{key}'")
        if element_type is ValueType.ARRAY:
            raise self._invalid(f"key '{key}' is an array of arrays, which the engine does not read")
        length = self._uint64(f"the length of key '{key}'")
        begin = self._position
        rest = self._size - begin
        least = VALUE_SIZES.get(element_type, _LENGTH.size)
        if length > MAX_ARRAY_LENGTH or length * least > rest:
            raise self._limit(
                f"key '{key}' is an array of {length} elements of type {element_type.name}; "
                f"{rest} bytes follow and {MAX_ARRAY_LENGTH} elements are the limit"
            )
        if element_type is ValueType.STRING:
            self._skip_strings(key, length)
        else:
            self._position += length * least
        if element_type is ValueType.BOOL and self._data[begin : self._position].translate(None, b"\0\1"):
            raise self._invalid(f"key '{key}' is an array of bool with values other than 0 and 1", DOWNLOAD_AGAIN)
        return GGUFArray(self._path, element_type, length, begin, self._position - begin)

    def _skip_strings(self, key: str, length: int) -> None:
        # A vocabulary has hundreds of thousands of strings: no calls, no checks and no slices in this loop.
        # A length that points past the end makes the next unpack fail.
        data, position, length_at = self._data, self._position, _LENGTH.unpack_from
        index = -1
        try:
            for index in range(length):  # noqa: B007  # says where it broke off
                (n_bytes,) = length_at(data, position)
                position += 8 + n_bytes
        except (struct.error, OverflowError, ValueError):
            index -= 1
        if position > self._size or index + 1 < length:
            raise TruncatedGGUFError(
                f"{self._path}: string {index} of key '{key}' reaches {position - self._size} bytes past the end of "
                f"the file ({self._size} bytes).",
                remedy=DOWNLOAD_AGAIN,
            )
        self._position = position

    def _alignment(self, metadata: dict[str, Any], types: dict[str, ValueType]) -> int:
        key = "general.alignment"
        if key not in metadata:
            return DEFAULT_ALIGNMENT
        if types[key] is not ValueType.UINT32:
            raise self._invalid(f"key '{key}' must be of type UINT32, but is {types[key].name}")
        alignment: int = metadata[key]
        if alignment == 0 or alignment & (alignment - 1):
            raise self._invalid(f"key '{key}' is {alignment}, which is not a power of two")
        return alignment

    # tensors

    def _read_tensors(self, n_tensors: int, alignment: int) -> list[TensorInfo]:
        tensors: list[TensorInfo] = []
        names: set[str] = set()
        expected = 0
        for index in range(n_tensors):
            tensor = self._tensor(index)
            if tensor.name in names:
                raise self._invalid(f"tensor '{tensor.name}' (number {index}) occurs twice")
            if tensor.offset != expected:
                reason = f"not a multiple of the alignment {alignment}" if tensor.offset % alignment else "not contiguous"
                raise self._invalid(
                    f"tensor '{tensor.name}' has data offset {tensor.offset}, expected {expected}: {reason}",
                    DOWNLOAD_AGAIN,
                )
            names.add(tensor.name)
            tensors.append(tensor)
            expected = _pad(tensor.offset + tensor.n_bytes, alignment)
        return tensors

    def _tensor(self, index: int) -> TensorInfo:
        name = self._tensor_name(index)
        shape = self._shape(name)
        type_id = self._uint32(f"the type of tensor '{name}'")
        n_bytes = self._tensor_bytes(name, shape, type_id)
        return TensorInfo(name, shape, type_id, self._uint64(f"the offset of tensor '{name}'"), n_bytes)

    def _tensor_name(self, index: int) -> str:
        start = self._position
        raw = self._string(f"the name of tensor {index}")
        if len(raw) >= MAX_TENSOR_NAME:
            raise self._limit(
                f"the name of tensor {index} at offset {start} has {len(raw)} bytes; the limit is "
                f"{MAX_TENSOR_NAME - 1}: {raw[:80]!r}"
            )
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            name = ""
        if not name or "\0" in name:
            raise self._invalid(f"the name of tensor {index} at offset {start} is not a name: {raw!r}", DOWNLOAD_AGAIN)
        return name

    def _shape(self, name: str) -> tuple[int, ...]:
        n_dims = self._uint32(f"the shape of tensor '{name}'")
        if n_dims > MAX_DIMS:
            raise self._limit(f"tensor '{name}' has {n_dims} dimensions; the limit is {MAX_DIMS}")
        shape = tuple(self._uint64(f"the shape of tensor '{name}'") for _ in range(n_dims))
        n_elements = 1
        for size in shape:
            n_elements *= size
        if not all(0 < size <= INT64_MAX for size in shape) or n_elements > INT64_MAX:
            raise self._limit(
                f"tensor '{name}' has shape {shape}; every dimension must be at least 1 and their product fit in 63 bits"
            )
        return shape

    def _tensor_bytes(self, name: str, shape: tuple[int, ...], type_id: int) -> int:
        if type_id in REMOVED_TENSOR_TYPES:
            raise self._invalid(
                f"tensor '{name}' has type {type_id} ({REMOVED_TENSOR_TYPES[type_id]}), which the engine no longer reads",
                "Get the model with a current quantization, or quantize it again.",
            )
        if type_id not in TENSOR_TYPES:
            raise self._invalid(
                f"tensor '{name}' has type {type_id}, which does not exist",
                "Use a newer release of this package, or download the file again if it may be damaged.",
            )
        kind = TENSOR_TYPES[type_id]
        row = shape[0] if shape else 1
        if row % kind.block_size:
            raise self._invalid(
                f"tensor '{name}' of type {kind.name} has rows of {row} elements, not a multiple of the block size "
                f"{kind.block_size}"
            )
        n_bytes = row // kind.block_size * kind.type_size
        for size in shape[1:]:
            n_bytes *= size
        if n_bytes > INT64_MAX:
            raise self._limit(f"tensor '{name}' of type {kind.name} and shape {shape} has {n_bytes} bytes")
        return n_bytes

    def _check_data(self, tensors: list[TensorInfo], data_offset: int) -> None:
        if not tensors:
            return
        # Padding after the last tensor may be missing; the engine does not read it.
        end = data_offset + tensors[-1].offset + tensors[-1].n_bytes
        if end <= self._size:
            return
        first = next(t for t in tensors if data_offset + t.offset + t.n_bytes > self._size)
        raise TruncatedGGUFError(
            f"{self._path} is incomplete: it has {self._size} bytes of {end}, {end - self._size} are missing; the "
            f"first tensor cut off is '{first.name}'.",
            remedy=DOWNLOAD_AGAIN,
        )


def _pad(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) & ~(alignment - 1)


def _identify(head: bytes) -> tuple[str, str]:
    """What a file that is not GGUF looks like, as the end of a sentence, and the remedy."""
    for prefix, kind, remedy in _LOOKALIKES:
        if head.startswith(prefix):
            return f"; it looks like {kind}" if kind.startswith("a") else f"; it is {kind}", remedy
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30:
        return "; it looks like a safetensors file", GET_GGUF
    if re.match(rb"\s*<(!doctype|html|head|\?xml)", head, re.IGNORECASE):
        return "; it looks like an HTML page, perhaps a login or error page", DOWNLOAD_AGAIN
    if re.match(rb"\s*[{\[]", head):
        return "; it looks like JSON, perhaps an error message", DOWNLOAD_AGAIN
    if not head.strip(b"\0"):
        return "; it begins with zeros, as a download that was never finished does", DOWNLOAD_AGAIN
    return "", GET_GGUF

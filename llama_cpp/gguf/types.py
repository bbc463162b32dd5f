"""What a GGUF file is made of: value types, tensor types, and the parsed header.

Source: the GGUF specification (``docs/gguf.md`` of ggml). Block and type sizes are those of the engine's
type traits (``ggml.c``) at the pinned commit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple


class ValueType(IntEnum):
    """Type of a metadata value, as stored in the file (u32)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


#: ``struct`` codes of the types with a fixed size; bool is one byte, 0 or 1.
STRUCT_CODES: dict[ValueType, str] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}

VALUE_SIZES: dict[ValueType, int] = {t: struct.calcsize("<" + code) for t, code in STRUCT_CODES.items()}


class TensorType(NamedTuple):
    """A tensor type: ``block_size`` elements are stored in ``type_size`` bytes."""

    name: str
    block_size: int
    type_size: int


TENSOR_TYPES: dict[int, TensorType] = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1", 32, 36),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
    42: TensorType("Q2_0", 64, 18),
}

#: Types that once existed; files with them have to be converted again.
REMOVED_TENSOR_TYPES: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}


class TensorInfo(NamedTuple):
    """One tensor as the header describes it.

    Attributes:
        name: up to 63 bytes.
        shape: elements per dimension, the contiguous one first (``ne`` in ggml).
        type_id: index into :data:`TENSOR_TYPES`.
        offset: bytes from the start of the data section.
        n_bytes: size of the data, without padding.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    n_bytes: int

    @property
    def type_name(self) -> str:
        """The engine's name of the type, such as ``q4_0``."""
        return TENSOR_TYPES[self.type_id].name


class GGUFArray(Sequence[Any]):
    """An array of metadata, checked but not decoded until somebody looks inside.

    Strings are decoded as UTF-8, with U+FFFD for what is not valid; :meth:`raw_strings` gives the bytes.

    Attributes:
        element_type: type of every element (never ARRAY: the engine reads no nested arrays).
        offset: position of the first element in the file, in bytes.
        n_bytes: bytes all elements occupy, length prefixes of strings included.
    """

    __slots__ = ("_length", "_path", "_values", "element_type", "n_bytes", "offset")

    def __init__(self, path: Path, element_type: ValueType, length: int, offset: int, n_bytes: int) -> None:
        self._path = path
        self._length = length
        self._values: tuple[Any, ...] | None = None
        self.element_type = element_type
        self.offset = offset
        self.n_bytes = n_bytes

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        return self._decoded()[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._decoded())

    def __repr__(self) -> str:
        return f"GGUFArray({self.element_type.name}, {self._length} elements)"

    def raw(self) -> bytes:
        """The bytes of all elements, as stored."""
        with open(self._path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.n_bytes)

    def raw_strings(self) -> list[bytes]:
        """The undecoded strings of an array of strings."""
        data, position, strings = self.raw(), 0, []
        length_at = struct.Struct("<Q").unpack_from
        for _ in range(self._length):
            (length,) = length_at(data, position)
            position += 8
            strings.append(data[position : position + length])
            position += length
        return strings

    def _decoded(self) -> tuple[Any, ...]:
        if self._values is None:
            if self.element_type is ValueType.STRING:
                self._values = tuple(s.decode("utf-8", "replace") for s in self.raw_strings())
            else:
                self._values = struct.unpack(f"<{self._length}{STRUCT_CODES[self.element_type]}", self.raw())
        return self._values


@dataclass(frozen=True)
class GGUFFile:
    """The header of a GGUF file.

    Attributes:
        path: the file.
        version: 2 or 3.
        byte_order: ``"little"``, the only one the engine reads on the machines it is built for here.
        alignment: of the data section and every tensor in it, in bytes.
        metadata: key to ``int``, ``float``, ``bool``, ``str`` or :class:`GGUFArray`.
        types: key to the type of its value.
        tensors: in file order.
        data_offset: start of the data section, in bytes from the start of the file.
        size: of the file, in bytes.
    """

    path: Path
    version: int
    byte_order: str
    alignment: int
    metadata: dict[str, Any]
    types: dict[str, ValueType]
    tensors: list[TensorInfo]
    data_offset: int
    size: int

    @property
    def n_kv(self) -> int:
        """How many key-value pairs the file has."""
        return len(self.metadata)

    @property
    def n_tensors(self) -> int:
        """How many tensors the file has."""
        return len(self.tensors)

    @property
    def architecture(self) -> str:
        """Value of ``general.architecture``, or an empty string."""
        return self.text("general.architecture")

    def text(self, key: str) -> str:
        """The string under ``key`` as the engine sees it, that is up to the first NUL; ``""`` if there is none."""
        value = self.metadata.get(key)
        return value.split("\0", 1)[0] if isinstance(value, str) else ""

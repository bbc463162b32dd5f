"""The GGUF checker: what real files contain, and one test for each way the structure of a file can be broken."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

import pytest

from gguf_refusal import refuses
from gguf_writer import ARR, BOOL, F32, I32, STR, T_F32, U8, U16, U32, U64, VOCABULARIES, GGUFBuilder, tiny_model
from llama_cpp.errors import (
    EmptyGGUFError,
    GGUFLimitError,
    GGUFMagicError,
    GGUFVersionError,
    InvalidGGUFError,
    ModelIsADirectoryError,
    ModelNotFoundError,
    TruncatedGGUFError,
)
from llama_cpp.gguf import GGUFArray, ValueType, check_gguf, read_gguf
from llama_cpp.gguf.types import REMOVED_TENSOR_TYPES, TENSOR_TYPES
from measures import least_seconds


def metadata(**overrides) -> GGUFBuilder:
    """A file with one key and no tensors."""
    return GGUFBuilder(overrides=overrides).set("general.architecture", STR, "llama")


# --- good files -------------------------------------------------------------------------------------


def test_vocabularies_of_the_engine_pass(llama_source):
    paths = sorted((Path(llama_source) / "models").glob("ggml-vocab-*.gguf"))
    assert len(paths) >= 15
    for path in paths:
        model = check_gguf(path, vocab_only=True)
        assert model.architecture
        assert len(model.metadata["tokenizer.ggml.tokens"]) > 30000


def test_real_model_passes(smollm2):
    model = check_gguf(smollm2)
    assert (model.architecture, model.version, model.byte_order, model.alignment) == ("llama", 3, "little", 32)
    assert (model.n_kv, model.n_tensors, model.size) == (33, 272, Path(smollm2).stat().st_size)
    tensor = next(t for t in model.tensors if t.name == "blk.0.attn_norm.weight")
    assert (tensor.shape, tensor.type_name, tensor.n_bytes) == ((576,), "F32", 576 * 4)
    last = model.tensors[-1]
    assert model.data_offset + last.offset + last.n_bytes <= model.size
    assert "im_start" in model.metadata["tokenizer.chat_template"]


def test_real_model_is_checked_quickly(smollm2):
    assert least_seconds(lambda: check_gguf(smollm2)) < 1.0  # 0.05 s on an idle machine


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_tiny_models_pass(write, vocabulary):
    assert check_gguf(write(tiny_model(vocabulary))).architecture == "llama"


@pytest.mark.parametrize("options", [{"n_expert": 4}, {"alignment": 64}, {"alignment": 4096}, {"n_layer": 3}])
def test_variants_pass(write, options):
    assert check_gguf(write(tiny_model(**options))).alignment == options.get("alignment", 32)


def test_values_and_types(write):
    file = metadata().set("a", U8, 200).set("b", F32, 0.5).set("c", BOOL, True).set("d", U64, 1 << 60).set("e", STR, "ä")
    file.array("f", I32, [-1, 2]).array("g", STR, ["x", "", "yz"]).array("h", BOOL, [True, False])
    model = read_gguf(write(file))
    values = {key: model.metadata[key] for key in "abcde"}
    assert values == {"a": 200, "b": 0.5, "c": True, "d": 1 << 60, "e": "ä"}
    assert [list(model.metadata[key]) for key in "fgh"] == [[-1, 2], ["x", "", "yz"], [True, False]]
    assert model.types["d"] is ValueType.UINT64


def test_arrays_are_lazy(write):
    path = write(metadata().array("words", STR, ["x", "y"]))
    words = read_gguf(path).metadata["words"]
    assert isinstance(words, GGUFArray)
    assert len(words) == 2
    path.unlink()
    with pytest.raises(FileNotFoundError):
        words[0]


def test_array_behaves_as_a_sequence(write):
    words = read_gguf(write(metadata().array("words", STR, ["x", "y", b"\xff"]))).metadata["words"]
    assert (words[0], words[-1], words[:2], "y" in words, words.index("y")) == ("x", "\ufffd", ("x", "y"), True, 1)
    assert words.raw_strings() == [b"x", b"y", b"\xff"]
    assert repr(words) == "GGUFArray(STRING, 3 elements)"


def test_tensor_types_are_the_engines(lib_dir):
    ggml = ctypes.CDLL(str(Path(lib_dir) / "libggml-base.so.0"))
    ggml.ggml_blck_size.restype, ggml.ggml_type_size.restype = ctypes.c_int64, ctypes.c_size_t
    for type_id, kind in TENSOR_TYPES.items():
        assert (ggml.ggml_blck_size(type_id), ggml.ggml_type_size(type_id)) == (kind.block_size, kind.type_size), kind
    assert all(ggml.ggml_blck_size(type_id) == 0 for type_id in REMOVED_TENSOR_TYPES)
    assert sorted([*TENSOR_TYPES, *REMOVED_TENSOR_TYPES]) == list(range(43))


# --- files that are no files ------------------------------------------------------------------------


def test_missing_file(tmp_path):
    refuses(tmp_path / "no.gguf", ModelNotFoundError, "no.gguf")


def test_dangling_link(tmp_path):
    (tmp_path / "link.gguf").symlink_to(tmp_path / "gone.gguf")
    refuses(tmp_path / "link.gguf", ModelNotFoundError, "symbolic link")


def test_directory_names_a_model_inside(write, tmp_path):
    write(metadata(), "inside.gguf")
    refuses(tmp_path, ModelIsADirectoryError, "inside.gguf")


def test_fifo_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    refuses(tmp_path / "pipe.gguf", InvalidGGUFError, "regular file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(write):
    path = write(metadata())
    path.chmod(0)
    with pytest.raises(PermissionError):
        check_gguf(path)


# --- magic, version, counts -------------------------------------------------------------------------


def test_empty_file(write):
    refuses(write(b""), EmptyGGUFError, "0 bytes")


@pytest.mark.parametrize("size", [2, 4, 10, 23])
def test_file_shorter_than_the_header(write, size):
    refuses(write(metadata().build()[:size]), TruncatedGGUFError)


LOOKALIKES = {
    "safetensors": struct.pack("<Q", 64) + b'{"weight": {}}',
    "PyTorch": b"PK\x03\x04" + bytes(40),
    "pickle": b"\x80\x02}q\x00" + bytes(40),
    "gzip": b"\x1f\x8b\x08" + bytes(40),
    "GGJT": b"tjgg" + bytes(40),
    "GGML": b"lmgg" + bytes(40),
    "HTML": b"<!DOCTYPE html><html></html>",
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "JSON": b'{"error": "not found"}',
    "zeros": bytes(64),
    "b'ABCD'": b"ABCD" + bytes(range(1, 40)),
}


@pytest.mark.parametrize("kind", LOOKALIKES)
def test_wrong_magic_says_what_it_looks_like(write, kind):
    refuses(write(LOOKALIKES[kind]), GGUFMagicError, kind)


@pytest.mark.parametrize("version", [0, 1, 4, 0x00010003])
def test_version(write, version):
    refuses(write(metadata(version=version)), GGUFVersionError, f"version {version}")


def test_big_endian(write):
    refuses(write(metadata(version=0x03000000)), GGUFVersionError, "big-endian")


@pytest.mark.parametrize("count", ["n_kv", "n_tensors"])
@pytest.mark.parametrize("value", [1000, 1 << 32, 1 << 63, (1 << 64) - 1])
def test_absurd_counts(write, count, value):
    refuses(write(metadata(**{count: value})), GGUFLimitError, count, str(value))


def test_one_key_too_many(write):
    refuses(write(metadata(n_kv=2, raw_kv=bytes(20))), InvalidGGUFError, "metadata key 1", "empty")


# --- metadata ---------------------------------------------------------------------------------------


def kv(key: bytes, type_: int, value: bytes, length: int | None = None) -> GGUFBuilder:
    raw = struct.pack("<Q", len(key) if length is None else length) + key + struct.pack("<I", type_) + value
    return metadata(n_kv=2, raw_kv=raw)


def test_key_past_the_end(write):
    refuses(write(kv(b"key", 4, bytes(4), length=5000)), TruncatedGGUFError, "metadata key 1", "5000")


def test_key_too_long(write):
    refuses(write(kv(b"k" * 65536, 4, bytes(4))), GGUFLimitError, "metadata key 1", "65536")


@pytest.mark.parametrize("key", [b"a\0b", b"\xff\xfe"])
def test_key_is_not_text(write, key):
    refuses(write(kv(key, 4, bytes(4))), InvalidGGUFError, "metadata key 1")


def test_duplicate_key(write):
    refuses(write(kv(b"general.architecture", 4, bytes(4))), InvalidGGUFError, "general.architecture", "twice")


@pytest.mark.parametrize("type_", [13, 255, 0xFFFFFFFF])
def test_unknown_value_type(write, type_):
    refuses(write(kv(b"key", type_, bytes(8))), InvalidGGUFError, "key 'key'", str(type_))


def test_string_past_the_end(write):
    refuses(write(kv(b"key", STR, struct.pack("<Q", 999) + b"abc")), TruncatedGGUFError, "key 'key'", "missing")


def test_string_longer_than_any(write):
    refuses(write(kv(b"key", STR, struct.pack("<Q", 1 << 63))), GGUFLimitError, "key 'key'", str(1 << 63))


def test_number_cut_off(write):
    refuses(write(kv(b"key", U64, b"ab")), TruncatedGGUFError, "key 'key'")


def test_bool_is_0_or_1(write):
    refuses(write(kv(b"key", BOOL, b"\x02")), InvalidGGUFError, "key 'key'", "value 2")


def test_bools_are_0_or_1(write):
    refuses(write(kv(b"key", ARR, struct.pack("<IQ", BOOL, 3) + b"\0\1\7")), InvalidGGUFError, "key 'key'")


def test_array_of_arrays(write):
    refuses(write(kv(b"key", ARR, struct.pack("<IQ", ARR, 1) + bytes(20))), InvalidGGUFError, "key 'key'", "arrays")


@pytest.mark.parametrize("length", [100, 1 << 31, (1 << 61) + 1, (1 << 64) - 1])
@pytest.mark.parametrize("type_", [U8, U64, STR])
def test_array_longer_than_the_file(write, type_, length):
    refuses(write(kv(b"key", ARR, struct.pack("<IQ", type_, length))), GGUFLimitError, "key 'key'", str(length))


@pytest.mark.parametrize("length", [50, 1 << 31, 1 << 63, (1 << 64) - 1])
def test_string_of_an_array_past_the_end(write, length):
    value = struct.pack("<IQQ", STR, 3, 1) + b"a" + struct.pack("<Q", length) + bytes(16)
    refuses(write(kv(b"key", ARR, value)), TruncatedGGUFError, "string 1 of key 'key'")


@pytest.mark.parametrize("value", [0, 3, 48, 0xFFFFFFFF])
def test_alignment_is_a_power_of_two(write, value):
    refuses(write(tiny_model().set("general.alignment", U32, value)), InvalidGGUFError, "general.alignment", str(value))


def test_alignment_type(write):
    refuses(write(tiny_model().set("general.alignment", U64, 32)), InvalidGGUFError, "general.alignment", "UINT64")


# --- tensors ----------------------------------------------------------------------------------------

TENSOR = "blk.0.ffn_up.weight"


def with_tensor(**overrides) -> GGUFBuilder:
    file = tiny_model()
    file.overrides = {f"{what}:{TENSOR}": value for what, value in overrides.items()}
    return file


def test_too_many_dimensions(write):
    refuses(write(with_tensor(dims=(1, 1, 1, 1, 1))), GGUFLimitError, TENSOR, "5 dimensions")


@pytest.mark.parametrize("dims", [(0, 64), (32, 0), (32, 1 << 63), ((1 << 64) - 32, 1), (1 << 32, 1 << 31)])
def test_dimensions_out_of_range(write, dims):
    refuses(write(with_tensor(dims=dims)), GGUFLimitError, TENSOR, str(dims[0]))


def test_row_is_not_whole_blocks(write):
    refuses(write(with_tensor(dims=(33, 64))), InvalidGGUFError, TENSOR, "33", "32")


@pytest.mark.parametrize("type_id", sorted(REMOVED_TENSOR_TYPES))
def test_removed_tensor_type(write, type_id):
    refuses(write(with_tensor(type=type_id)), InvalidGGUFError, TENSOR, REMOVED_TENSOR_TYPES[type_id])


@pytest.mark.parametrize("type_id", [43, 1000, 0xFFFFFFFF])
def test_unknown_tensor_type(write, type_id):
    refuses(write(with_tensor(type=type_id)), InvalidGGUFError, TENSOR, str(type_id))


def test_tensor_name_too_long(write):
    file = tiny_model()
    file.tensors["n" * 64] = ((32,), T_F32)
    refuses(write(file), GGUFLimitError, "64 bytes", "nnnn")


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_tensor_name_is_no_name(write, name):
    file = tiny_model()
    file.tensors[name] = ((32,), T_F32)
    refuses(write(file), InvalidGGUFError, "name of tensor")


def test_duplicate_tensor(write):
    data = tiny_model().build().replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight")
    refuses(write(data), InvalidGGUFError, "blk.0.attn_q.weight", "twice")


def test_offset_is_not_aligned(write):
    refuses(write(with_tensor(offset=17)), InvalidGGUFError, TENSOR, "offset 17", "alignment")


@pytest.mark.parametrize("offset", [0, 1 << 40, 1 << 63])
def test_offset_is_not_contiguous(write, offset):
    refuses(write(with_tensor(offset=offset)), InvalidGGUFError, TENSOR, str(offset), "contiguous")


def test_missing_data_is_counted(write):
    data = tiny_model().build()
    last = read_gguf(write(data)).tensors[-1]
    refuses(write(data[: -last.n_bytes - 100]), TruncatedGGUFError, f"{last.n_bytes + 100} are missing", "ffn_down")


def test_missing_padding_at_the_end_is_fine(write):
    file = tiny_model()
    file.tensors["output_norm.bias"] = ((3,), T_F32)
    data = file.build()
    assert check_gguf(write(data[:-20])).size == len(data) - 20


def test_truncation_anywhere_is_noticed(write):
    data = tiny_model().build()
    for size in range(1, len(data) - 32, 97):
        with pytest.raises((TruncatedGGUFError, GGUFLimitError)):
            read_gguf(write(data[:size]))


# --- split models -----------------------------------------------------------------------------------


def parts(write, count: int = 2) -> list[Path]:
    first = tiny_model().set("split.no", U16, 0).set("split.count", U16, count)
    paths = [write(first, f"m-00001-of-{count:05d}.gguf")]
    for number in range(1, count):
        other = GGUFBuilder().set("split.no", U16, number).set("split.count", U16, count)
        other.tensors[f"extra.{number}"] = ((32,), T_F32)
        paths.append(write(other, f"m-{number + 1:05d}-of-{count:05d}.gguf"))
    return paths


def test_split_model_passes(write):
    assert check_gguf(parts(write, 3)[0]).metadata["split.count"] == 3


def test_split_file_missing(write):
    paths = parts(write, 3)
    paths[2].unlink()
    refuses(paths[0], ModelNotFoundError, paths[2].name, "3 of 3")


def test_split_file_damaged(write):
    paths = parts(write)
    paths[1].write_bytes(paths[1].read_bytes()[:-64])
    refuses(paths[0], TruncatedGGUFError, paths[1].name)


def test_not_the_first_split_file(write):
    refuses(parts(write)[1], InvalidGGUFError, "split.no = 1")


def test_split_file_renamed(write):
    path = parts(write)[0]
    refuses(path.rename(path.with_name("renamed.gguf")), InvalidGGUFError, "-00001-of-00002.gguf")


def test_split_file_of_another_number(write):
    paths = parts(write, 3)
    paths[2].write_bytes(paths[1].read_bytes())
    refuses(paths[0], InvalidGGUFError, paths[2].name, "split.no is 1")


def test_split_number_of_another_type(write):
    """The engine asserts on the type in the files after the first."""
    paths = parts(write)
    paths[1].write_bytes(GGUFBuilder().set("split.no", U32, 1).build())
    refuses(paths[0], InvalidGGUFError, "split.no", "UINT32")

"""The GGUF checker: what real files contain, and one test for each way a file can be broken."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from gguf_writer import (
    ARR,
    BOOL,
    F32,
    I8,
    I32,
    STR,
    T_F32,
    U8,
    U16,
    U32,
    U64,
    VOCABULARIES,
    Array,
    GGUFBuilder,
    tiny_model,
)

from llama_cpp.errors import (
    EmptyGGUFError,
    GGUFLimitError,
    GGUFMagicError,
    GGUFVersionError,
    InvalidGGUFError,
    ModelFileError,
    ModelIsADirectoryError,
    ModelNotFoundError,
    TruncatedGGUFError,
)
from llama_cpp.models.gguf import GGUFArray, ValueType, check_gguf, read_gguf
from llama_cpp.models.gguf_types import REMOVED_TENSOR_TYPES, TENSOR_TYPES


@pytest.fixture
def write(tmp_path):
    """Write bytes, or what a builder builds, to a file."""

    def write(content: bytes | GGUFBuilder, name: str = "model.gguf") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.build())
        return path

    return write


def refuses(path: Path, error: type[ModelFileError], *culprits: str, vocab_only: bool = False) -> None:
    with pytest.raises(error) as caught:
        check_gguf(path, vocab_only=vocab_only)
    assert type(caught.value) is error
    for culprit in culprits:
        assert culprit in str(caught.value)
    assert caught.value.remedy


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
    check_gguf(smollm2)
    start = time.perf_counter()
    check_gguf(smollm2)
    assert time.perf_counter() - start < 1.0  # 0.05 s on an idle machine


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_tiny_models_pass(write, vocabulary):
    assert check_gguf(write(tiny_model(vocabulary))).architecture == "llama"


@pytest.mark.parametrize("options", [{"n_expert": 4}, {"alignment": 64}, {"alignment": 4096}, {"n_layer": 3}])
def test_variants_pass(write, options):
    assert check_gguf(write(tiny_model(**options))).alignment == options.get("alignment", 32)


def test_values_and_types(write):
    file = (
        metadata().set("a", U8, 200).set("b", F32, 0.5).set("c", BOOL, True).set("d", U64, 1 << 60).set("e", STR, "ä")
    )
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


def test_small_alignment_breaks_the_mapping(write):
    file = tiny_model(alignment=8)
    file.set("general.name", STR, "tiny" + "x" * (-len(file.build()) % 8))
    while file.build() and file.data_offset % 32 == 0:
        file.set("general.name", STR, file.kv["general.name"][1] + "12345678")
    refuses(write(file), InvalidGGUFError, "general.alignment", "token_embd.weight")
    assert check_gguf(write(file), vocab_only=True).alignment == 8


@pytest.mark.parametrize("name", ["rope_freqs.weight", "rope_factors_long.weight"])
def test_rope_factors_are_float32(write, name):
    file = tiny_model()
    file.tensors[name] = ((4,), (1, 1, 2))
    refuses(write(file), InvalidGGUFError, name, "F16")


def test_tied_nvfp4_output_with_a_scale(write):
    file = tiny_model()
    file.tensors["token_embd.weight"] = ((64, 274), (40, 64, 36))
    file.tensors["output.scale"] = ((1,), T_F32)
    refuses(write(file), InvalidGGUFError, "output.scale", "token_embd.weight")


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


# --- vocabulary -------------------------------------------------------------------------------------

TOKENS = "tokenizer.ggml.tokens"


def test_no_architecture(write):
    refuses(write(tiny_model().remove("general.architecture")), InvalidGGUFError, "general.architecture")
    refuses(write(tiny_model().set("general.architecture", U32, 1)), InvalidGGUFError, "general.architecture", "UINT32")


@pytest.mark.parametrize(
    "key, type_, value",
    [
        ("general.name", U32, 1),
        ("tokenizer.ggml.model", U32, 1),
        ("tokenizer.ggml.bos_token_id", I32, 1),
        ("tokenizer.ggml.add_bos_token", U8, 1),
        (TOKENS, STR, "a"),
        (TOKENS, ARR, Array(U32, [1])),
        ("tokenizer.ggml.scores", ARR, Array(STR, ["a"])),
        ("tokenizer.ggml.token_type", ARR, Array(U32, [1])),
        ("tokenizer.ggml.merges", ARR, Array(I8, [1])),
        ("tokenizer.ggml.merges", STR, "a b"),
        ("tokenizer.ggml.precompiled_charsmap", ARR, Array(U32, [1])),
    ],
)
def test_type_of_a_known_key(write, key, type_, value):
    refuses(write(tiny_model().set(key, type_, value)), InvalidGGUFError, key, vocab_only=True)


def test_no_vocabulary(write):
    refuses(write(tiny_model().remove("tokenizer.ggml.model")), InvalidGGUFError, "tokenizer.ggml.model")


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_no_tokens(write, vocabulary):
    refuses(write(tiny_model(vocabulary).array(TOKENS, STR, [])), InvalidGGUFError, TOKENS)
    refuses(write(tiny_model(vocabulary).remove(TOKENS)), InvalidGGUFError, TOKENS)


@pytest.mark.parametrize("key, type_", [("tokenizer.ggml.scores", F32), ("tokenizer.ggml.token_type", I32)])
def test_too_few_values_for_the_tokens(write, key, type_):
    refuses(write(tiny_model().array(key, type_, [1, 1])), InvalidGGUFError, key, "2 values for 274 tokens")


@pytest.mark.parametrize("text", ["<s>", "<s>\0more"])
def test_duplicate_tokens(write, text):
    file = tiny_model()
    tokens = list(file.kv[TOKENS][1].values)
    tokens[270] = text
    refuses(write(file.array(TOKENS, STR, tokens)), InvalidGGUFError, "tokens 1 and 270", "<s>")


def test_empty_tokens_are_named_by_the_engine(write):
    file = tiny_model()
    tokens = list(file.kv[TOKENS][1].values)
    tokens[269] = tokens[270] = ""
    assert check_gguf(write(file.array(TOKENS, STR, tokens)))
    tokens[271] = "[EMPTY_270]"
    refuses(write(file.array(TOKENS, STR, tokens)), InvalidGGUFError, "tokens 270 and 271")


def test_byte_token_missing(write):
    file = tiny_model()
    tokens = [t if t != "<0xE4>" else "other" for t in file.kv[TOKENS][1].values]
    refuses(write(file.array(TOKENS, STR, tokens)), InvalidGGUFError, TOKENS, "<0xE4>")


def test_byte_token_in_a_bert_vocabulary(write):
    file = tiny_model("bert")
    types = [1] * len(file.kv[TOKENS][1].values)
    types[5] = 6
    refuses(write(file.array("tokenizer.ggml.token_type", I32, types)), InvalidGGUFError, "token 5", "token_type")


def test_rwkv_vocabulary_without_a_byte(write):
    file = tiny_model("rwkv")
    tokens = ["other" if t == "\\x0a" else t for t in file.kv[TOKENS][1].values]
    refuses(write(file.array(TOKENS, STR, tokens)), InvalidGGUFError, TOKENS, r"b'\n'")


@pytest.mark.parametrize("vocabulary, key", [("bert", "seperator"), ("bert", "bos"), ("gemma4", "bos")])
def test_special_token_missing(write, vocabulary, key):
    file = tiny_model("bert" if vocabulary == "bert" else "gpt2").set("tokenizer.ggml.model", STR, vocabulary)
    key = f"tokenizer.ggml.{key}_token_id"
    refuses(write(file.remove(key)), InvalidGGUFError, key, "missing")


def test_special_token_out_of_range(write):
    key = "tokenizer.ggml.bos_token_id"
    refuses(write(tiny_model("bert").set(key, U32, 18)), InvalidGGUFError, key, "18 of 18")


def test_placeholder_tokens_are_limited(write):
    file = tiny_model().set("tokenizer.ggml.model", STR, "no_vocab")
    assert check_gguf(write(file.set("llama.vocab_size", U32, 1000)), vocab_only=True)
    refuses(write(file.set("llama.vocab_size", U32, 0xFFFFFFFF)), GGUFLimitError, "llama.vocab_size", vocab_only=True)


# --- hyperparameters --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["context_length", "embedding_length", "block_count"])
def test_required_hyperparameter(write, name):
    refuses(write(tiny_model().remove(f"llama.{name}")), InvalidGGUFError, f"llama.{name}", "missing")
    refuses(write(tiny_model().set(f"llama.{name}", U64, 1)), InvalidGGUFError, f"llama.{name}", "UINT64")


def test_hyperparameters_do_not_matter_for_a_vocabulary(write):
    assert check_gguf(write(tiny_model().remove("llama.block_count")), vocab_only=True)


@pytest.mark.parametrize("value", [0, 513, 0xFFFFFFFF])
def test_number_of_layers(write, value):
    refuses(write(tiny_model().set("llama.block_count", U32, value)), GGUFLimitError, "llama.block_count", str(value))


def test_more_nextn_layers_than_layers(write):
    key = "llama.nextn_predict_layers"
    refuses(write(tiny_model().set(key, U32, 2)), InvalidGGUFError, key)


def test_array_per_layer_has_another_length(write):
    key = "llama.attention.head_count"
    refuses(write(tiny_model().array(key, U32, [4, 4])), InvalidGGUFError, key, "2 values for 1 layers")


@pytest.mark.parametrize("value", ["", "cubic"])
def test_rope_scaling(write, value):
    key = "llama.rope.scaling.type"
    refuses(write(tiny_model().set(key, STR, value)), InvalidGGUFError, key, repr(value))


@pytest.mark.parametrize(
    "changes, error, culprit",
    [
        ({"expert_count": 1025}, GGUFLimitError, "expert_count"),
        ({"expert_used_count": 0}, InvalidGGUFError, "expert_used_count"),
        ({"expert_used_count": 5}, InvalidGGUFError, "expert_used_count"),
        ({"expert_group_count": 4}, InvalidGGUFError, "expert_group_count"),
        ({"expert_group_count": 3, "expert_group_used_count": 1}, InvalidGGUFError, "expert_group_used_count"),
        ({"expert_group_count": 2, "expert_group_used_count": 2}, InvalidGGUFError, "expert_group_used_count"),
        ({"expert_group_count": 2}, InvalidGGUFError, "expert_group_used_count"),
        ({"expert_count": 0}, InvalidGGUFError, "expert_used_count"),
    ],
)
def test_experts(write, changes, error, culprit):
    file = tiny_model(n_expert=4)
    for name, value in changes.items():
        file.set(f"llama.{name}", U32, value)
    refuses(write(file), error, f"llama.{culprit}")


def test_groups_without_experts(write):
    key = "llama.expert_group_count"
    refuses(write(tiny_model().set(key, U32, 1)), InvalidGGUFError, key)


def of_architecture(name: str, **numbers: int) -> GGUFBuilder:
    file = tiny_model()
    file.kv = {key.replace("llama.", f"{name}."): value for key, value in file.kv.items()}
    file.set("general.architecture", STR, name)
    for key, value in numbers.items():
        file.set(f"{name}.{key.replace('__', '.')}", U32, value)
    return file


@pytest.mark.parametrize(
    "name, numbers, culprit",
    [
        ("gemma2", {"attention__head_count": 0}, "attention.head_count"),
        ("olmo2", {"attention__head_count": 0}, "attention.head_count"),
        ("glm4moe", {}, "expert_count"),
        ("jamba", {"ssm__inner_size": 32}, "ssm.inner_size"),
        ("gemma-embedding", {"dense_2_feat_in": 16}, "dense_2_feat_in"),
        ("hy_v4", {}, "attention.key_length_mla"),
        ("mistral4", {}, "rope.dimension_count"),
        ("hrm_text", {}, "hrm.layers_per_stack"),
        ("minimax-m3", {}, "attention.indexer.block_size"),
        ("glm5-next", {}, "attention.indexer.kpool"),
        ("nanbeige", {"num_loops": 0}, "nanbeige.num_loops"),
        ("nanbeige", {"num_loops": 600}, "num_loops"),
        ("bailingmoe3", {}, "kda.safe_gate"),
    ],
)
def test_assertions_of_single_architectures(write, name, numbers, culprit):
    refuses(write(of_architecture(name, **numbers)), InvalidGGUFError, name, culprit)


def test_projector_is_left_to_mtmd(write):
    assert check_gguf(write(metadata().set("general.architecture", STR, "clip"))).architecture == "clip"

"""Writes small GGUF files for tests: complete models that the engine loads, and anything broken.

It is independent of the reader under test and of the ``gguf`` package, which refuses to write most of what a
test of a checker needs.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}

#: Tensor types used here: id, elements and bytes per block.
T_F32, T_F16, T_Q8_0 = (0, 1, 4), (1, 1, 2), (8, 32, 34)


@dataclass(frozen=True)
class Field:
    """Where a number of the header is stored: the target of a mutation."""

    offset: int
    size: int
    kind: str


@dataclass
class Array:
    type: int
    values: list


@dataclass
class GGUFBuilder:
    """Metadata and tensors in the order they will be written.

    ``kv`` maps a key to (type, value), where an :class:`Array` is the value of type ARR; ``tensors`` maps a name
    to (shape, (type id, block size, block bytes)); ``weights`` maps a name to bytes, in place of random ones. What a broken
    file needs is set through ``overrides``: ``magic``, ``version``, ``n_tensors``, ``n_kv``, ``raw_kv`` (bytes after the
    last key), ``offset:NAME``, ``type:NAME``, ``dims:NAME``.
    """

    kv: dict[str, tuple[int, Any]] = field(default_factory=dict)
    tensors: dict[str, tuple[tuple[int, ...], tuple[int, int, int]]] = field(default_factory=dict)
    alignment: int = 32
    seed: int = 1
    overrides: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, bytes] = field(default_factory=dict)
    fields: list[Field] = field(default_factory=list)
    data_offset: int = 0

    def set(self, key: str, type_: int, value: Any) -> GGUFBuilder:
        self.kv[key] = (type_, value)
        return self

    def array(self, key: str, type_: int, values: list) -> GGUFBuilder:
        return self.set(key, ARR, Array(type_, values))

    def remove(self, *keys: str) -> GGUFBuilder:
        for key in keys:
            del self.kv[key]
        return self

    def build(self) -> bytes:
        """The bytes of the file; ``fields`` and ``data_offset`` are known afterwards."""
        self.fields, out = [], bytearray()
        out += self.overrides.get("magic", b"GGUF")
        self._number(out, U32, self.overrides.get("version", 3), "version")
        self._number(out, U64, self.overrides.get("n_tensors", len(self.tensors)), "count")
        self._number(out, U64, self.overrides.get("n_kv", len(self.kv)), "count")
        for key, (type_, value) in self.kv.items():
            self._string(out, key)
            self._number(out, U32, type_, "value type")
            self._value(out, type_, value)
        out += self.overrides.get("raw_kv", b"")
        sizes = self._tensor_infos(out)
        self.data_offset = len(out) + (-len(out) % self.alignment if sizes else 0)
        out += bytes(self.data_offset - len(out))
        rng = random.Random(self.seed)
        for name, (kind, size) in zip(self.tensors, sizes):
            out += self.weights.get(name) or _weights(rng, kind, size)
            out += bytes(-size % self.alignment)
        return bytes(out)

    def _number(self, out: bytearray, type_: int, value: Any, kind: str) -> None:
        self.fields.append(Field(len(out), struct.calcsize(CODES[type_]), kind))
        out += struct.pack("<" + CODES[type_], value)

    def _string(self, out: bytearray, value: str | bytes) -> None:
        raw = value.encode() if isinstance(value, str) else value
        self._number(out, U64, len(raw), "length")
        out += raw

    def _value(self, out: bytearray, type_: int, value: Any) -> None:
        if type_ == STR:
            self._string(out, value)
        elif type_ == ARR:
            self._number(out, U32, value.type, "value type")
            self._number(out, U64, len(value.values), "count")
            for item in value.values:
                self._value(out, value.type, item)
        else:
            self._number(out, type_, value, "value")

    def _tensor_infos(self, out: bytearray) -> list[tuple[tuple[int, int, int], int]]:
        offset, sizes = 0, []
        for name, (shape, kind) in self.tensors.items():
            self._string(out, name)
            dims = self.overrides.get(f"dims:{name}", shape)
            self._number(out, U32, len(dims), "n_dims")
            for dim in dims:
                self._number(out, U64, dim, "dim")
            self._number(out, U32, self.overrides.get(f"type:{name}", kind[0]), "tensor type")
            self._number(out, U64, self.overrides.get(f"offset:{name}", offset), "offset")
            n_elements = 1
            for dim in shape:
                n_elements *= dim
            size = n_elements // kind[1] * kind[2]
            sizes.append((kind, size))
            offset += size + -size % self.alignment
        return sizes


def _weights(rng: random.Random, kind: tuple[int, int, int], size: int) -> bytes:
    """Small finite numbers, whatever the type."""
    if kind == T_F32:
        return b"".join(struct.pack("<f", rng.uniform(-0.1, 0.1)) for _ in range(size // 4))
    if kind == T_F16:
        return b"".join(struct.pack("<e", rng.uniform(-0.1, 0.1)) for _ in range(size // 2))
    block = struct.pack("<e", 0.001)
    return b"".join((block + rng.randbytes(max(kind[2] - 2, 0)))[: kind[2]] for _ in range(size // kind[2]))


# --- vocabularies -----------------------------------------------------------------------------------

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
BYTES = [f"<0x{i:02X}>" for i in range(256)]
WORDS = ["\u2581", "\u2581the", "he", "th", "e", "t", "h", "o", "l", "\u2581h", "lo", "ell", "a", "b", "c"]


def add_vocabulary(file: GGUFBuilder, model: str) -> int:
    """Add a vocabulary of one of the engine's tokenizer models; returns the number of tokens."""
    tokens, types = _tokens(model)
    file.set("tokenizer.ggml.model", STR, model)
    file.array("tokenizer.ggml.tokens", STR, tokens)
    file.array("tokenizer.ggml.scores", F32, [-float(i) for i in range(len(tokens))])
    file.array("tokenizer.ggml.token_type", I32, types)
    if model == "gpt2":
        file.set("tokenizer.ggml.pre", STR, "llama-bpe")
        file.array("tokenizer.ggml.merges", STR, ["t h", "h e", "th e", "l o"])
    if model == "t5":
        file.array("tokenizer.ggml.precompiled_charsmap", U8, list(struct.pack("<I", 1024) + bytes(1024) + b"a\0b\0"))
    if model not in ("rwkv", "t5"):
        file.set("tokenizer.ggml.bos_token_id", U32, 1)
    file.set("tokenizer.ggml.eos_token_id", U32, 2)
    if model == "bert":
        file.set("tokenizer.ggml.seperator_token_id", U32, 2)
    file.set("tokenizer.ggml.add_bos_token", BOOL, model not in ("t5", "rwkv"))
    return len(tokens)


def _tokens(model: str) -> tuple[list[str], list[int]]:
    special = ["<unk>", "<s>", "</s>"]
    if model == "rwkv":
        texts = special + [f"\\x{i:02x}" for i in range(256)] + ["the", "hello", "\\n\\n"]
        return texts, [CONTROL] * 3 + [NORMAL] * (len(texts) - 3)
    if model == "gpt2":
        letters = [chr(c) for c in range(33, 127)] + ["\u0120", "\u010a"]
        texts = special + letters + ["th", "the", "he", "lo"]
        return texts, [CONTROL] * 3 + [NORMAL] * (len(texts) - 3)
    if model == "bert":
        texts = ["[UNK]", "[CLS]", "[SEP]", *WORDS]
        return texts, [CONTROL] * 3 + [NORMAL] * (len(texts) - 3)
    texts = special + BYTES + WORDS
    return texts, [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(WORDS)


VOCABULARIES = ("llama", "gpt2", "bert", "t5", "rwkv", "plamo2")

# --- models -----------------------------------------------------------------------------------------


def tiny_model(
    vocabulary: str = "llama", *, n_expert: int = 0, n_layer: int = 1, alignment: int = 32, weights: bool = True
) -> GGUFBuilder:
    """A complete model of architecture ``llama`` with random weights: n_embd 32, 4 heads, 2 KV heads, n_ff 64."""
    n_embd, n_head, n_head_kv, n_ff = 32, 4, 2, 64
    file = GGUFBuilder(alignment=alignment)
    file.set("general.architecture", STR, "llama").set("general.name", STR, "tiny")
    if alignment != 32:
        file.set("general.alignment", U32, alignment)
    file.set("llama.block_count", U32, n_layer).set("llama.context_length", U32, 256)
    file.set("llama.embedding_length", U32, n_embd).set("llama.feed_forward_length", U32, n_ff)
    file.set("llama.attention.head_count", U32, n_head).set("llama.attention.head_count_kv", U32, n_head_kv)
    file.set("llama.attention.layer_norm_rms_epsilon", F32, 1e-5).set("llama.rope.dimension_count", U32, n_embd // n_head)
    file.set("llama.rope.freq_base", F32, 10000.0).set("llama.rope.scaling.type", STR, "linear")
    if n_expert:
        file.set("llama.expert_count", U32, n_expert).set("llama.expert_used_count", U32, 2)
    n_vocab = add_vocabulary(file, vocabulary)
    if not weights:
        return file
    file.tensors["token_embd.weight"] = ((n_embd, n_vocab), T_Q8_0)
    file.tensors["output_norm.weight"] = ((n_embd,), T_F32)
    file.tensors["rope_freqs.weight"] = ((n_embd // n_head // 2,), T_F32)
    for layer in range(n_layer):
        for name, shape, kind in _layer(n_embd, n_embd // n_head * n_head_kv, n_ff, n_expert):
            file.tensors[f"blk.{layer}.{name}.weight"] = (shape, kind)
    return file


def _layer(n_embd: int, n_embd_kv: int, n_ff: int, n_expert: int) -> list[tuple[str, tuple[int, ...], tuple]]:
    attention = [
        ("attn_norm", (n_embd,), T_F32),
        ("attn_q", (n_embd, n_embd), T_Q8_0),
        ("attn_k", (n_embd, n_embd_kv), T_F16),
        ("attn_v", (n_embd, n_embd_kv), T_F16),
        ("attn_output", (n_embd, n_embd), T_Q8_0),
        ("ffn_norm", (n_embd,), T_F32),
    ]
    if not n_expert:
        return [
            *attention,
            ("ffn_gate", (n_embd, n_ff), T_Q8_0),
            ("ffn_down", (n_ff, n_embd), T_Q8_0),
            ("ffn_up", (n_embd, n_ff), T_Q8_0),
        ]
    return [
        *attention,
        ("ffn_gate_inp", (n_embd, n_expert), T_F32),
        ("ffn_gate_exps", (n_embd, n_ff, n_expert), T_Q8_0),
        ("ffn_down_exps", (n_ff, n_embd, n_expert), T_Q8_0),
        ("ffn_up_exps", (n_embd, n_ff, n_expert), T_Q8_0),
    ]

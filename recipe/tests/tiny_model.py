"""Writes a complete Llama model of 117 kB with random weights: enough to load, tokenize and generate with.

Usage: python tiny_model.py OUTPUT
"""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

EMBD, FF, LAYERS, HEADS, CONTEXT = 32, 64, 1, 2, 256
U32, F32, STRING, ARRAY, I32 = 4, 6, 8, 9, 5
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: str, type_: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", type_) + value


def array(type_: int, values: list[bytes]) -> bytes:
    return struct.pack("<IQ", type_, len(values)) + b"".join(values)


def vocabulary() -> list[tuple[str, float, int]]:
    """Pieces with score and type: three special ones, every byte, and a few words."""
    pieces = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    pieces += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    words = ["▁", "e", "t", "a", "o", "▁t", "he", "▁the", "in", "▁a"]
    return pieces + [(word, -float(rank), NORMAL) for rank, word in enumerate(words)]


def metadata(vocab: list[tuple[str, float, int]]) -> list[bytes]:
    number = lambda value: struct.pack("<I", value)  # noqa: E731
    return [
        entry("general.architecture", STRING, string("llama")),
        entry("llama.context_length", U32, number(CONTEXT)),
        entry("llama.embedding_length", U32, number(EMBD)),
        entry("llama.feed_forward_length", U32, number(FF)),
        entry("llama.block_count", U32, number(LAYERS)),
        entry("llama.attention.head_count", U32, number(HEADS)),
        entry("llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5)),
        entry("tokenizer.ggml.model", STRING, string("llama")),
        entry("tokenizer.ggml.tokens", ARRAY, array(STRING, [string(text) for text, _, _ in vocab])),
        entry("tokenizer.ggml.scores", ARRAY, array(F32, [struct.pack("<f", score) for _, score, _ in vocab])),
        entry("tokenizer.ggml.token_type", ARRAY, array(I32, [struct.pack("<i", kind) for _, _, kind in vocab])),
        entry("tokenizer.ggml.bos_token_id", U32, number(1)),
        entry("tokenizer.ggml.eos_token_id", U32, number(2)),
    ]


def shapes(n_vocab: int) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes, innermost dimension first."""
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (EMBD, n_vocab)}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        found |= {f"{block}.{name}.weight": (EMBD,) for name in ("attn_norm", "ffn_norm")}
        found |= {f"{block}.attn_{name}.weight": (EMBD, EMBD) for name in ("q", "k", "v", "output")}
        found |= {f"{block}.ffn_{name}.weight": (EMBD, FF) for name in ("gate", "up")}
        found[f"{block}.ffn_down.weight"] = (FF, EMBD)
    return found | {"output_norm.weight": (EMBD,), "output.weight": (EMBD, n_vocab)}


def write(path: Path, seed: int = 1) -> None:
    """Write the model; the same seed gives the same bytes."""
    vocab, chance = vocabulary(), random.Random(seed)
    entries, infos, data = metadata(vocab), [], b""
    for name, shape in shapes(len(vocab)).items():
        count = 1
        for size in shape:
            count *= size
        infos.append(string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data)))
        values = [1.0] * count if len(shape) == 1 else [chance.gauss(0, 0.2) for _ in range(count)]
        data += struct.pack(f"<{count}f", *values)
        data += bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(entries)) + b"".join(entries + infos)
    path.write_bytes(head + bytes(-len(head) % 32) + data)


if __name__ == "__main__":
    write(Path(sys.argv[1]))

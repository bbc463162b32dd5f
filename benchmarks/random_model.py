"""Writes a model of any Llama shape with random Q4_0 weights: for speed, which does not depend on what they say.

The vocabulary comes from a vocabulary-only GGUF of the engine's source; its header is copied and tensors are added.

Usage: python benchmarks/random_model.py OUTPUT [--vocab GGUF] [--layers 32 --embd 4096 --ff 14336 --heads 32 --kv-heads 8]

With ``--working 2`` only the first two layers have a say, at the price of all: a model written with ``--layers 2`` then drafts
every token right, which shows what speculative decoding gains at best.
"""

from __future__ import annotations

import argparse
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
VOCAB = ROOT / "vendor/llama.cpp/source/models/ggml-vocab-llama-bpe.gguf"
F32, Q4_0 = 0, 2
BLOCK, BLOCK_BYTES = 32, 18  # Q4_0: 32 weights in an fp16 scale and 16 bytes
ALIGNMENT = 32


def tensors(layers: int, embd: int, ff: int, heads: int, kv_heads: int, n_vocab: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes (innermost first) of a Llama model."""
    kv = embd // heads * kv_heads
    yield "token_embd.weight", (embd, n_vocab)
    for i in range(layers):
        yield f"blk.{i}.attn_norm.weight", (embd,)
        yield f"blk.{i}.attn_q.weight", (embd, embd)
        yield f"blk.{i}.attn_k.weight", (embd, kv)
        yield f"blk.{i}.attn_v.weight", (embd, kv)
        yield f"blk.{i}.attn_output.weight", (embd, embd)
        yield f"blk.{i}.ffn_norm.weight", (embd,)
        yield f"blk.{i}.ffn_gate.weight", (embd, ff)
        yield f"blk.{i}.ffn_up.weight", (embd, ff)
        yield f"blk.{i}.ffn_down.weight", (ff, embd)
    yield "output_norm.weight", (embd,)
    yield "output.weight", (embd, n_vocab)


def size_of(shape: tuple[int, ...]) -> int:
    """Bytes of a tensor: norms are f32, everything else Q4_0."""
    n = int(np.prod(shape))
    return n * 4 if len(shape) == 1 else n // BLOCK * BLOCK_BYTES


def patched_header(vocab: Path, values: dict[str, int], n_tensors: int) -> bytes:
    """The vocabulary file's header with other hyperparameters (all u32) and another number of tensors."""
    data = bytearray(vocab.read_bytes())
    data[8:16] = struct.pack("<Q", n_tensors)
    for key, value in values.items():
        at = data.index(struct.pack("<Q", len(key)) + key.encode()) + 8 + len(key)
        kind = struct.unpack_from("<I", data, at)[0]
        assert kind == 4, f"{key} is of type {kind}, not u32"
        struct.pack_into("<I", data, at + 4, value)
    return bytes(data)


def write(output: Path, vocab: Path, layers: int, embd: int, ff: int, heads: int, kv_heads: int, working: int) -> None:
    """Writes the model; layers after the first ``working`` ones add nothing to what goes through them."""
    header = vocab.read_bytes()
    key = b"llama.vocab_size"
    n_vocab = struct.unpack_from("<I", header, header.index(key) + len(key) + 4)[0]
    shapes = list(tensors(layers, embd, ff, heads, kv_heads, n_vocab))
    hyperparameters = {
        "llama.block_count": layers, "llama.embedding_length": embd, "llama.feed_forward_length": ff,
        "llama.attention.head_count": heads, "llama.attention.head_count_kv": kv_heads,
        "llama.rope.dimension_count": embd // heads,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    # repeated over and over, and prime, so that no two rows are alike and no two tokens equally probable
    blocks = rng.integers(0, 256, ((1 << 18) - 5, BLOCK_BYTES), dtype=np.uint8)
    scales = rng.uniform(-0.01, 0.01, len(blocks)).astype("<f2")
    blocks[:, :2] = scales.view(np.uint8).reshape(-1, 2)
    noise = blocks.tobytes()
    with output.open("wb") as file:
        file.write(patched_header(vocab, hyperparameters, len(shapes)))
        offset = 0
        for name, shape in shapes:
            file.write(struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape)))
            file.write(struct.pack(f"<{len(shape)}Q", *shape))
            file.write(struct.pack("<IQ", F32 if len(shape) == 1 else Q4_0, offset))
            offset += -(-size_of(shape) // ALIGNMENT) * ALIGNMENT
        _pad(file)
        silent = {f"blk.{i}.{part}.weight" for i in range(working, layers) for part in ("attn_output", "ffn_down")}
        for name, shape in shapes:
            size = size_of(shape)
            if name in silent:
                file.seek(size - 1, os.SEEK_CUR)  # zeros: a scale of 0 in every block
                file.write(b"\0")
            elif len(shape) == 1:
                file.write(np.ones(shape, "<f4").tobytes())
            else:
                whole, rest = divmod(size, len(noise))
                for _ in range(whole):
                    file.write(noise)
                file.write(noise[:rest])
            _pad(file)


def _pad(file: BinaryIO) -> None:
    file.write(b"\0" * (-file.tell() % ALIGNMENT))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--vocab", type=Path, default=VOCAB)
    for name, default in (("layers", 32), ("embd", 4096), ("ff", 14336), ("heads", 32), ("kv-heads", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--working", type=int, help="layers that have a say (default: all)")
    o = parser.parse_args()
    write(o.output, o.vocab, o.layers, o.embd, o.ff, o.heads, o.kv_heads, o.layers if o.working is None else o.working)
    print(f"{o.output}: {os.path.getsize(o.output) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

"""Thousands of damaged model files: each is refused by check_gguf, or survived by the engine.

Run as a program it is the child process that touches the engine::

    python test_gguf_fuzz.py LIB_DIR WORK_DIR SEED FIRST COUNT
"""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

from gguf_writer import VOCABULARIES, GGUFBuilder, tiny_model

MUTANTS = 2500
BATCH = 250
MEMORY_LIMIT = 8 << 30
BATCH_SECONDS = 60

# --- mutants: a function of (seed, index) and nothing else ------------------------------------------

INTERESTING = (
    *(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 16, 31, 32, 33, 40, 63, 64, 100, 255, 256, 512, 513, 1024, 1025),
    *(1 << 14, 65535, 65536, 1 << 20, (1 << 30) - 1, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 32, (1 << 32) - 1),
    *(1 << 32, 1 << 40, (1 << 62), (1 << 63) - 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 32, (1 << 64) - 1),
)
FLOATS = (0x7FC00000, 0x7F800000, 0xFF800000, 0x00000001, 0x7F7FFFFF, 0x80000000)  # NaN, ±inf, denormal, max, -0


def _bases() -> list[GGUFBuilder]:
    bases = [tiny_model(), tiny_model(n_expert=4), tiny_model(n_layer=2, alignment=64)]
    return bases + [tiny_model(vocabulary) for vocabulary in VOCABULARIES[1:]]


class Mutator:
    def __init__(self) -> None:
        self.bases = [(base.build(), base) for base in _bases()]

    def mutant(self, seed: int, index: int) -> bytes:
        rng = random.Random(seed * 1_000_003 + index)
        # Half of the mutants are of the plain model, half of one of the others.
        data, base = self.bases[0] if rng.random() < 0.5 else rng.choice(self.bases[1:])
        out = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            if len(out) >= base.data_offset:  # an earlier truncation leaves nothing to aim at
                rng.choices(self.KINDS, self.WEIGHTS)[0](self, rng, out, base)
        return bytes(out)

    def _field(self, rng: random.Random, out: bytearray, base: GGUFBuilder) -> None:
        """Overwrite a number of the header: first a kind of field, so that rare kinds get their share."""
        kind = rng.choice(sorted({f.kind for f in base.fields}))
        chosen = [f for f in base.fields if f.kind == kind]
        # The elements of the arrays of a vocabulary outnumber everything else.
        if kind in ("value", "length") and rng.random() < 0.7:
            chosen = chosen[:40] + chosen[-40:]
        field = rng.choice(chosen)
        old = int.from_bytes(out[field.offset : field.offset + field.size], "little")
        near = (old + 1, old - 1, old * 2, old // 2, old ^ (1 << rng.randrange(field.size * 8)))
        value = rng.choice((rng.choice(INTERESTING), rng.choice(near), rng.choice(FLOATS), rng.getrandbits(64)))
        mask = (1 << field.size * 8) - 1
        out[field.offset : field.offset + field.size] = (value & mask).to_bytes(field.size, "little")

    def _bits(self, rng: random.Random, out: bytearray, base: GGUFBuilder) -> None:
        for _ in range(rng.choice((1, 2, 8))):
            out[rng.randrange(base.data_offset)] ^= 1 << rng.randrange(8)

    def _byte(self, rng: random.Random, out: bytearray, base: GGUFBuilder) -> None:
        out[rng.randrange(base.data_offset)] = rng.choice((0, 1, 0x20, 0x7F, 0x80, 0xFF, rng.randrange(256)))

    def _number(self, rng: random.Random, out: bytearray, base: GGUFBuilder) -> None:
        size = rng.choice((4, 8))
        at = rng.randrange(base.data_offset - size)
        out[at : at + size] = (rng.choice(INTERESTING) & ((1 << size * 8) - 1)).to_bytes(size, "little")

    def _insert(self, rng: random.Random, out: bytearray, base: GGUFBuilder) -> None:
        at = rng.randrange(base.data_offset)
        out[at:at] = rng.randbytes(rng.choice((1, 4, 8, 32)))

    def _delete(self, rng: random.Random, out: bytearray, base: GGUFBuilder) -> None:
        at = rng.randrange(base.data_offset)
        del out[at : at + rng.choice((1, 4, 8, 32))]

    def _truncate(self, rng: random.Random, out: bytearray, base: GGUFBuilder) -> None:
        del out[rng.randrange(len(out)) :]

    def _copy(self, rng: random.Random, out: bytearray, base: GGUFBuilder) -> None:
        """Repeat a piece of the header elsewhere: duplicated keys, tokens and names."""
        size = rng.choice((4, 8, 16, 24))
        source, target = (rng.randrange(base.data_offset - size) for _ in range(2))
        out[target : target + size] = out[source : source + size]

    def _key_value(self, rng: random.Random, out: bytearray, base: GGUFBuilder) -> None:
        """Damage one value, keeping the rest of the file in order (so that it reaches the rules)."""
        file = GGUFBuilder(dict(base.kv), dict(base.tensors), base.alignment)
        key = rng.choice(sorted(file.kv))
        type_, value = file.kv[key]
        action = rng.randrange(5)
        if action == 0:
            file.remove(key)
        elif action == 1:
            file.kv[key] = file.kv[rng.choice(sorted(file.kv))]
        elif type_ == 9:
            values = list(value.values)
            if action == 2:
                values = values[: rng.randrange(len(values) + 1)]
            elif action == 3:
                values[rng.randrange(len(values))] = rng.choice(values)
            else:
                rng.shuffle(values)
            file.array(key, value.type, values)
        elif type_ in (4, 5):
            file.kv[key] = (type_, rng.choice(INTERESTING) & (0xFFFFFFFF if type_ == 4 else 0x7FFFFFFF))
        elif type_ == 6:
            file.kv[key] = (6, struct.unpack("<f", struct.pack("<I", rng.choice(FLOATS)))[0])
        elif type_ == 8:
            file.kv[key] = (
                8,
                rng.choice(("", "llama", "gemma2", "qwen2moe", "bert", "no_vocab", "gpt2", "yarn", "\0", "x" * 99)),
            )
        out[:] = file.build()

    def _tensor(self, rng: random.Random, out: bytearray, base: GGUFBuilder) -> None:
        """Another type or shape for a tensor, with offsets to match."""
        file = GGUFBuilder(dict(base.kv), dict(base.tensors), base.alignment)
        name = rng.choice(sorted(file.tensors))
        shape, kind = file.tensors[name]
        action = rng.randrange(4)
        if action == 0:
            del file.tensors[name]
        elif action == 1:
            file.tensors[name] = (tuple(reversed(shape)), (0, 1, 4))
        elif action == 2:
            file.tensors[name] = (
                shape,
                rng.choice(
                    (
                        (0, 1, 4),
                        (1, 1, 2),
                        (24, 1, 1),
                        (25, 1, 2),
                        (26, 1, 4),
                        (27, 1, 8),
                        (28, 1, 8),
                        (30, 1, 2),
                        (2, 32, 18),
                        (20, 32, 18),
                        (39, 32, 17),
                    )
                ),
            )
        else:
            file.tensors[rng.choice(("rope_freqs.weight", "output.weight", "output.scale", "blk.0.attn_q.bias"))] = (
                shape,
                kind,
            )
        if any(s[0] % k[1] for s, k in file.tensors.values()):
            return
        out[:] = file.build()

    KINDS = (_field, _bits, _byte, _number, _insert, _delete, _truncate, _copy, _key_value, _tensor)
    WEIGHTS = (30, 5, 8, 8, 4, 4, 3, 6, 22, 10)


# --- the engine, in the child -----------------------------------------------------------------------


class ModelParams(ctypes.Structure):
    """``llama_model_params`` of the pinned ``llama.h``."""

    _fields_ = [
        ("devices", ctypes.c_void_p),
        ("tensor_buft_overrides", ctypes.c_void_p),
        ("n_gpu_layers", ctypes.c_int32),
        ("split_mode", ctypes.c_int),
        ("load_mode", ctypes.c_int),
        ("lazy_mode", ctypes.c_int),
        ("main_gpu", ctypes.c_int32),
        ("tensor_split", ctypes.c_void_p),
        ("progress_callback", ctypes.c_void_p),
        ("progress_callback_user_data", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        ("vocab_only", ctypes.c_bool),
        ("check_tensors", ctypes.c_bool),
        ("use_extra_bufts", ctypes.c_bool),
        ("no_host", ctypes.c_bool),
        ("no_alloc", ctypes.c_bool),
        ("load_mtp", ctypes.c_bool),
    ]


def open_engine(lib_dir: Path):
    """A function that loads a model file, tokenizes with it and frees it; True if it loaded."""
    for name in ("libggml-base.so.0", "libggml.so.0"):
        ctypes.CDLL(str(lib_dir / name))
    ggml, llama = ctypes.CDLL(str(lib_dir / "libggml.so.0")), ctypes.CDLL(str(lib_dir / "libllama.so.0"))
    ggml.ggml_backend_load.argtypes, ggml.ggml_backend_load.restype = [ctypes.c_char_p], ctypes.c_void_p
    plugin = lib_dir / "libggml-cpu-x64.so"
    if plugin.exists():
        assert ggml.ggml_backend_load(str(plugin).encode()), f"{plugin} does not load"
    llama.llama_model_default_params.restype = ModelParams
    llama.llama_model_load_from_file.argtypes = [ctypes.c_char_p, ModelParams]
    llama.llama_model_load_from_file.restype = ctypes.c_void_p
    llama.llama_model_get_vocab.argtypes, llama.llama_model_get_vocab.restype = [ctypes.c_void_p], ctypes.c_void_p
    llama.llama_vocab_type.argtypes = [ctypes.c_void_p]
    llama.llama_model_free.argtypes = [ctypes.c_void_p]
    llama.llama_tokenize.argtypes = [
        ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_bool
    ]  # fmt: skip
    llama.llama_backend_init()
    tokens = (ctypes.c_int32 * 64)()
    text = b"hello the\n\xe2\x96\x81<s>"

    def load(path: Path, vocab_only: bool) -> bool:
        params = llama.llama_model_default_params()
        params.vocab_only = vocab_only
        model = llama.llama_model_load_from_file(str(path).encode(), params)
        if model:
            vocab = llama.llama_model_get_vocab(model)
            if llama.llama_vocab_type(vocab):  # 0: a model without a vocabulary, on which tokenizing asserts
                llama.llama_tokenize(vocab, text, len(text), tokens, 64, True, True)
            llama.llama_model_free(model)
        return bool(model)

    return load


def child(lib_dir: Path, work_dir: Path, seed: int, first: int, count: int) -> None:
    from llama_cpp.errors import ModelFileError
    from llama_cpp.gguf import check_gguf

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    load, mutator, path = open_engine(lib_dir), Mutator(), work_dir / f"mutant-{seed}-{first}.gguf"
    refused = passed = loaded = 0
    for index in range(first, first + count):
        os.write(1, b"%d\n" % index)
        os.ftruncate(2, 0)  # what remains in the log is about the mutant that killed us
        path.write_bytes(mutator.mutant(seed, index))
        for vocab_only in (True, False):
            try:
                check_gguf(path, vocab_only=vocab_only)
            except ModelFileError:
                refused += 1
            else:
                passed += 1
                loaded += load(path, vocab_only)
    os.write(1, b"done %d %d %d\n" % (refused, passed, loaded))


def run_batch(lib_dir: Path, work_dir: Path, seed: int, first: int, count: int) -> tuple[int, int, int]:
    """Run ``count`` mutants in a child; returns (refused, passed, loaded) or raises AssertionError."""
    log = work_dir / f"log-{seed}-{first}.txt"
    command = [sys.executable, __file__, str(lib_dir), str(work_dir), str(seed), str(first), str(count)]
    env = {**os.environ, "GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("ab") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=env) as process:
        try:
            output, _ = process.communicate(timeout=BATCH_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    lines = output.decode().split("\n")[:-1]
    if process.returncode == 0 and lines and lines[-1].startswith("done "):
        refused, passed, loaded = map(int, lines[-1].split()[1:])
        return refused, passed, loaded
    code = process.returncode
    death = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    tail = log.read_bytes().replace(b"\0", b"").decode("utf-8", "replace")[-2000:]
    raise AssertionError(f"seed {seed}, mutant {lines[-1] if lines else '?'}: {death}\n{tail}")


def test_damaged_files_are_refused_or_survived(lib_dir, tmp_path):
    refused = passed = loaded = 0
    for first in range(0, MUTANTS, BATCH):
        counts = run_batch(Path(lib_dir), tmp_path, 1, first, BATCH)
        refused, passed, loaded = refused + counts[0], passed + counts[1], loaded + counts[2]
    assert refused + passed == 2 * MUTANTS
    # Were everything refused, nothing would have been tested.
    assert loaded > MUTANTS // 10


if __name__ == "__main__":
    child(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:6]))

"""kv_overrides: what the engine would ignore, misread or abort on is refused by name; the rest takes effect."""

from __future__ import annotations

import ctypes
import json
import os
import random
import subprocess
import sys

import pytest

from gguf_writer import ARR, BOOL, F32, F64, I64, STR, U16, U32, U64, tiny_model
from llama_cpp import Llama
from llama_cpp.capi import llama
from llama_cpp.errors import InvalidArgumentError, InvalidGGUFError, MetadataOverrideError
from llama_cpp.gguf import check_gguf
from llama_cpp.gguf.overrides import apply_overrides, check_overrides, native_overrides

EPSILON = "llama.attention.layer_norm_rms_epsilon"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("overrides") / "model.gguf"
    path.write_bytes(tiny_model().build())
    return path


def check(path, overrides, **options):
    return check_gguf(path, overrides=check_overrides(overrides), **options)


# --- keys and values ---


@pytest.mark.parametrize(
    "key, value",
    [("", 1), (5, 1), (None, 1), ("a\0b", 1), ("k" * 128, 1), ("\ud800", 1),
     ("k", None), ("k", b"x"), ("k", [1]), ("k", object()), ("k", 1j),
     ("k", -1), ("k", 1 << 32), ("k", 1 << 63), ("k", 1 << 64), ("k", -(1 << 63) - 1),
     ("k", float("nan")), ("k", float("inf")), ("k", 1e39), ("k", -1e300),
     ("k", "x" * 128), ("k", "ü" * 64), ("k", "a\0b"), ("k", "\udc80")],
)  # fmt: skip
def test_what_the_engine_s_struct_cannot_hold_is_refused_by_key(key, value):
    with pytest.raises(MetadataOverrideError) as caught:
        check_overrides({"fine": 1, key: value})
    assert caught.value.key == key
    assert repr(key) in str(caught.value) and caught.value.remedy
    assert isinstance(caught.value, InvalidArgumentError)


@pytest.mark.parametrize("overrides", [5, "a=1", [("a", 1)], {"a"}])
def test_no_mapping_is_refused(overrides):
    with pytest.raises(InvalidArgumentError, match="mapping"):
        check_overrides(overrides)


def test_the_largest_values_arrive_whole():
    overrides = check_overrides({"k" * 127: "v" * 127, "int": (1 << 32) - 1, "float": -3e38, "yes": True, "no": False})
    pointer = native_overrides(overrides)
    entries = [pointer[index] for index in range(6)]
    assert [entry.key for entry in entries] == [b"k" * 127, b"int", b"float", b"yes", b"no", b""]
    assert entries[0].tag == llama.LLAMA_KV_OVERRIDE_TYPE_STR and entries[0].val_str == b"v" * 127
    assert entries[1].tag == llama.LLAMA_KV_OVERRIDE_TYPE_INT and entries[1].val_i64 == (1 << 32) - 1
    assert entries[2].tag == llama.LLAMA_KV_OVERRIDE_TYPE_FLOAT and entries[2].val_f64 == -3e38
    assert [entry.tag for entry in entries[3:5]] == [llama.LLAMA_KV_OVERRIDE_TYPE_BOOL] * 2
    assert [entry.val_bool for entry in entries[3:5]] == [True, False]
    assert ctypes.sizeof(entries[0]) == 264


def test_enumerations_are_numbers():
    from enum import IntEnum

    class Pooling(IntEnum):
        MEAN = 1

    assert check_overrides({"llama.pooling_type": Pooling.MEAN}) == {"llama.pooling_type": 1}


def test_nothing_is_an_empty_dictionary():
    assert check_overrides(None) == check_overrides({}) == {}


# --- against the file ---


@pytest.mark.parametrize(
    "key, value, says",
    [("llama.block_count", "2", "UINT32"), ("llama.block_count", 2.0, "UINT32"), ("llama.block_count", True, "UINT32"),
     (EPSILON, 1, "FLOAT32"), ("general.name", 1, "STRING"), ("tokenizer.ggml.add_bos_token", 1, "BOOL"),
     ("tokenizer.ggml.tokens", "a", "array"), ("tokenizer.ggml.scores", 1.0, "array"),
     ("general.alignment", 64, "file"), ("split.count", 2, "file"), ("split.no", 1, "file"),
     ("llama.expert_used_count", 2, "each layer"), ("llama.expert_feed_forward_length", 2, "each layer"),
     ("xielu.eps", 1.0, "each layer")],
)  # fmt: skip
def test_what_the_engine_would_ignore_is_refused(path, key, value, says):
    with pytest.raises(MetadataOverrideError, match=says) as caught:
        check(path, {key: value})
    assert caught.value.key == key


@pytest.mark.parametrize(
    "key, value",
    [("general.architecture", "bert"), ("llama.block_count", 0), ("llama.block_count", 513), ("llama.expert_count", 4),
     ("llama.expert_count", 5000), ("llama.nextn_predict_layers", 9), ("llama.rope.scaling.type", "cubic"),
     ("llama.expert_group_count", 3), (EPSILON, -1e-5), ("tokenizer.ggml.model", ""), ("tokenizer.ggml.model", "bert"),
     ("llama.expert_count", 2.0), ("tokenizer.ggml.add_eos_token", "yes")],
)  # fmt: skip
def test_what_the_engine_would_abort_on_is_refused(path, key, value):
    check_gguf(path)
    with pytest.raises(MetadataOverrideError, match=key) as caught:
        check(path, {key: value})
    assert caught.value.key == key
    assert isinstance(caught.value.__cause__, InvalidGGUFError)
    with pytest.raises(MetadataOverrideError, match=key):
        Llama(path, kv_overrides={key: value})


def test_weights_do_not_matter_to_a_vocabulary(path):
    check(path, {"llama.expert_count": 4}, vocab_only=True)
    with pytest.raises(MetadataOverrideError):
        check(path, {"tokenizer.ggml.model": ""}, vocab_only=True)


def test_a_file_that_is_wrong_by_itself_says_so(tmp_path):
    file = tiny_model().set("llama.expert_count", U32, 4)
    (tmp_path / "m.gguf").write_bytes(file.build())
    with pytest.raises(InvalidGGUFError, match="expert_used_count"):
        check(tmp_path / "m.gguf", {"general.name": "other"})


@pytest.mark.parametrize("type_, stored", [(U16, 9), (U64, 9), (I64, -9), (F64, 9.0)])
def test_an_override_mends_a_file(tmp_path, type_, stored):
    """What the engine reads is the override; the type in the file no longer matters, but for its kind."""
    file = tiny_model().set("llama.context_length", type_, stored)
    (tmp_path / "m.gguf").write_bytes(file.build())
    with pytest.raises(InvalidGGUFError, match="context_length"):
        check_gguf(tmp_path / "m.gguf")
    if type_ == F64:
        with pytest.raises(MetadataOverrideError, match="FLOAT64"):
            check(tmp_path / "m.gguf", {"llama.context_length": 128})
        return
    with Llama(tmp_path / "m.gguf", n_ctx=0, kv_overrides={"llama.context_length": 512}) as llm:
        assert llm.n_ctx() == 512


def test_the_file_s_own_header_stays_as_it_is(path):
    before = check_gguf(path)
    after = apply_overrides(before, {"general.name": "other"})
    assert (before.metadata["general.name"], after.metadata["general.name"]) == ("tiny", "other")
    assert check(path, {"general.name": "other"}).metadata["general.name"] == "tiny"


def test_overrides_reach_the_engine(path):
    with Llama(path, vocab_only=True) as llm:
        assert llm.tokenize(b"the")[0] == llm.token_bos()
    overrides = {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.bos_token_id": 2}
    with Llama(path, vocab_only=True, kv_overrides=overrides) as llm:
        assert llm.tokenize(b"the")[0] != 1
        assert llm.token_bos() == 2


# --- any override at all ---

_CHILD = """
import collections, json, sys
from llama_cpp import Llama
from llama_cpp.errors import LlamaCppError

ends = collections.Counter()
for line in open(sys.argv[1]):
    path, overrides = json.loads(line)
    print(line, end="", flush=True)
    try:
        with Llama(path, n_ctx=64, n_threads=1, n_threads_batch=1, kv_overrides=overrides) as llm:
            llm.tokenize(b"the hello \\xff \\xe2\\x82\\xac")
            llm.create_completion("the", max_tokens=2, temperature=0)
        ends["ran"] += 1
    except LlamaCppError as error:
        ends[type(error).__name__] += 1
print(json.dumps(ends))
"""
_NUMBERS = (0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 64, 255, 256, 512, 513, 1024, 1025, 1 << 16, 1 << 31, (1 << 32) - 1)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-5, -1e-5, 1e30, -1e30, 1e-40)
_WORDS = ("", "llama", "gpt2", "bert", "t5", "rwkv", "plamo2", "none", "no_vocab", "linear", "yarn", "longrope", "qwen2",
          "clip", "gemma4", "llama-bpe", "whitespace", "x" * 127)  # fmt: skip
_ABSENT = {
    "llama.expert_count": U32, "llama.expert_group_count": U32, "llama.attention.key_length": U32, "llama.vocab_size": U32,
    "llama.attention.value_length": U32, "llama.rope.scaling.factor": F32, "llama.rope.scaling.original_context_length": U32,
    "llama.attention.causal": BOOL, "llama.pooling_type": U32, "llama.nextn_predict_layers": U32, "llama.logit_scale": F32,
    "llama.embedding_length_out": U32, "tokenizer.ggml.add_eos_token": BOOL, "tokenizer.ggml.pre": STR,
}  # fmt: skip


def _value(rng, type_):
    if rng.random() < 0.1:
        type_ = rng.choice([STR, BOOL, F32, U32])
    if type_ == STR:
        return rng.choice(_WORDS)
    if type_ == BOOL:
        return rng.random() < 0.5
    if type_ == F32:
        return rng.choice(_FLOATS)
    return rng.choice(_NUMBERS) if rng.random() < 0.8 else rng.randrange(1 << 32)


def test_no_override_ends_the_process(tmp_path):
    """The models are loaded, tokenized with and run with every set of overrides that is not refused."""
    rng, lines = random.Random(20), []
    models = {"dense": tiny_model(), "experts": tiny_model("gpt2", n_expert=4), "deep": tiny_model("gpt2", n_layer=2)}
    for name, model in models.items():
        (tmp_path / name).write_bytes(model.build())
    for _ in range(300):
        name = rng.choice(list(models))
        types = {key: type_ for key, (type_, _) in models[name].kv.items() if type_ != ARR}
        keys = rng.sample(list(types), rng.choice([1, 1, 1, 2])) + rng.sample(list(_ABSENT), rng.choice([0, 0, 1]))
        lines.append(json.dumps([str(tmp_path / name), {key: _value(rng, {**_ABSENT, **types}[key]) for key in keys}]))
    (tmp_path / "overrides").write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path / "overrides")], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1]}\n{done.stderr[-1000:]}"
    ends = json.loads(done.stdout.splitlines()[-1])
    # were everything refused, or everything harmless, nothing would have been tested
    assert ends["ran"] > 30 and ends["MetadataOverrideError"] > 30 and ends["ModelLoadError"] > 10

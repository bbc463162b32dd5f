"""The GGUF checker: contents that are well formed, and that the engine asserts on or trusts."""

from __future__ import annotations

import pytest

from gguf_refusal import refuses
from gguf_writer import ARR, F32, I8, I32, STR, T_F32, U8, U32, U64, VOCABULARIES, Array, GGUFBuilder, tiny_model
from llama_cpp.errors import GGUFLimitError, InvalidGGUFError
from llama_cpp.gguf import check_gguf

# --- tensors ----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("value", [-1e-5, float("-inf"), float("nan")])
def test_normalization_asserts_that_epsilon_is_not_negative(write, value):
    key = "llama.attention.layer_norm_rms_epsilon"
    refuses(write(tiny_model().set(key, F32, value)), InvalidGGUFError, key)
    check_gguf(write(tiny_model().set(key, F32, 0.0)))


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
    assert check_gguf(write(GGUFBuilder().set("general.architecture", STR, "clip"))).architecture == "clip"

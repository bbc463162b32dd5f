"""Keyword arguments: what becomes of those that there are not, and what each of the others can be and what it means.

The engine asserts on some values that it could refuse, so they are checked here.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .capi import ggml, ggml_cpu, llama
from .engine.sampling_params import PROMPT_LOOKUP
from .engine.speculative.draft_objects import LlamaDraftModel, LlamaPromptLookupDecoding
from .errors import IgnoredArgumentWarning, InvalidArgumentError, UnknownArgumentError
from .limits import Limits
from .values import flag, integer, items, number, path, refused, text

logger = logging.getLogger("llama_cpp")

#: Keywords that programs still send although no llama-cpp-python of today has them, and what to give instead.
_LEGACY = {
    "n_parts": "A split model is found by its first file.",
    "f16_kv": "The KV cache's types are type_k and type_v.",
    "device": "The GPU is main_gpu, and n_gpu_layers=0 leaves it alone.",
    "gpu": "n_gpu_layers says how much of a model a GPU holds.",
    "mlock": "Did you mean 'use_mlock'?",
    "batch_size": "Did you mean 'n_batch'?",
    "hf_tokenizer_path": "Give tokenizer=LlamaHFTokenizer.from_pretrained(…).",
    "rms_norm_eps": "The model's file has it; kv_overrides can replace it.",
    "n_gqa": "The model's file has it.",
    "low_vram": "offload_kqv=False keeps the KV cache in the host's memory.",
    "load_mtp": "draft_model='mtp' uses the model's own heads.",
    "local_dir_use_symlinks": "The Hugging Face hub no longer has it.",
    "temperature": "It is for each request.",
    "top_k": "It is for each request.",
    "top_p": "It is for each request.",
    "stop": "It is for each request.",
}


def check_unknown(parameters: Iterable[str], name: str, extra: Mapping[str, Any], stacklevel: int = 3) -> None:
    """Warns of keywords that there are not, with the nearest one that there is.

    Args:
        parameters: those that there are.
        name: of the class or method that was called.
        stacklevel: where the warning points, as ``warnings.warn()`` has it. Python shows it once for each place.

    Raises:
        UnknownArgumentError: with ``LLAMA_CPP_STRICT=1`` in the environment.
    """
    known = [parameter for parameter in parameters if parameter not in ("self", "kwargs")]
    for keyword in extra:
        what = f"{name}() has no argument {keyword!r}."
        close = difflib.get_close_matches(keyword, known, n=1)
        remedy = _LEGACY.get(keyword) if keyword not in known else None
        remedy = remedy or (f"Did you mean {close[0]!r}?" if close else f"Known are: {', '.join(known)}.")
        if is_strict():
            raise UnknownArgumentError(what, remedy=remedy)
        warnings.warn(f"{what} It has no effect. {remedy}", IgnoredArgumentWarning, stacklevel=stacklevel)


def is_strict() -> bool:
    """Whether unknown keywords are errors: ``LLAMA_CPP_STRICT`` in the environment is not empty and not 0."""
    return os.environ.get("LLAMA_CPP_STRICT", "") not in ("", "0")


#: The seed that stands for a random one, besides negative ones (``LLAMA_DEFAULT_SEED``).
RANDOM_SEED = 0xFFFFFFFF

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
    "yarn_orig_ctx": (0, _INT32_MAX),
    "seed": (-_INT32_MAX - 1, RANDOM_SEED),
}
_RANGE_HELP = {"n_ctx": "0 takes the length the model was trained with.", "n_gpu_layers": "-1 means all layers."}
_OPTIONAL = {"n_parallel", "n_kv", "n_threads", "n_threads_batch", "seed"}

_NUMBERS = (
    "rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "lora_scale",
)  # fmt: skip
#: True or False; of some, None leaves it to the engine.
_FLAGS = (
    "vocab_only", "use_mmap", "use_mlock", "logits_all", "embedding", "offload_kqv", "no_perf", "batch_invariant", "repeatable",
    "spm_infill",
)  # fmt: skip
_OPTIONAL_FLAGS = ("kv_unified", "flash_attn", "op_offload", "swa_full", "verbose")

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

#: What None is for arguments whose default is something else.
_DEFAULTED: dict[str, Any] = {
    "rope_freq_base": 0.0, "rope_freq_scale": 0.0, "yarn_ext_factor": -1.0, "yarn_attn_factor": 1.0, "yarn_beta_fast": 32.0,
    "yarn_beta_slow": 1.0, "yarn_orig_ctx": 0, "lora_scale": 1.0, "n_gpu_layers": -1, "main_gpu": 0, "last_n_tokens_size": 64,
    "vocab_only": False, "use_mmap": True, "use_mlock": False, "embedding": False, "offload_kqv": True, "no_perf": True,
    "batch_invariant": True, "repeatable": False, "spm_infill": False, "logits_all": False, "numa": False,
    "split_mode": llama.LLAMA_SPLIT_MODE_LAYER, "rope_scaling_type": llama.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED,
    "pooling_type": llama.LLAMA_POOLING_TYPE_UNSPECIFIED, "attention_type": llama.LLAMA_ATTENTION_TYPE_UNSPECIFIED,
}  # fmt: skip


def read_creation(given: Mapping[str, Any]) -> dict[str, Any]:
    """What ``Llama()`` was given by name, as Python's own numbers.

    Raises:
        InvalidArgumentError: a value of another type, or one the engine does not know or would abort on.
    """
    # programs hand None through for what they do not set
    values = {name: _DEFAULTED.get(name) if value is None else value for name, value in given.items()}
    values["model_path"] = path("model_path", values["model_path"])
    for name, (least, most) in _RANGES.items():
        if values[name] is not None or name not in _OPTIONAL:
            values[name] = integer(name, values[name], least, most, _RANGE_HELP.get(name, ""))
    for name in _NUMBERS:
        found = values[name] = number(name, values[name])
        if not math.isfinite(found):
            raise refused(name, values[name], "a finite number")
    for name in _FLAGS:
        values[name] = flag(name, values[name])
    for name in _OPTIONAL_FLAGS:
        values[name] = None if values[name] is None else flag(name, values[name])
    for name, choices in _CHOICES.items():
        if values[name] is not None or not name.startswith("type_"):
            values[name] = _choice(name, values[name], choices)
    if (values["rope_freq_base"], values["rope_freq_scale"]) == (10000.0, 1.0):
        # LangChain always sends them; taken by the letter they would break every model that has another base
        logger.info("rope_freq_base=10000.0 with rope_freq_scale=1.0 is taken as a default: the model's own are used.")
        values["rope_freq_base"] = values["rope_freq_scale"] = 0.0
    if values["lora_base"] is not None:
        raise InvalidArgumentError(
            f"lora_base={values['lora_base']!r} cannot be: llama.cpp applies an adapter to no other base.",
            remedy="Leave it out; give lora_path alone.",
        )
    values["numa"] = _numa(values["numa"])
    values["seed"] = read_seed(values["seed"])
    _read_draft(values)
    if values["tokenizer"] is not None and not all(callable(getattr(values["tokenizer"], name, None)) for name in _TOKENIZES):
        raise refused("tokenizer", values["tokenizer"], "an object that can tokenize() and detokenize()")
    if values["lora_path"] is not None:
        values["lora_path"] = path("lora_path", values["lora_path"])
    if values["tensor_split"] is not None:
        values["tensor_split"] = _shares(values["tensor_split"])
    if values["limits"] is not None and not isinstance(values["limits"], Limits):
        raise refused("limits", values["limits"], "Limits(…), or None")
    if values["chat_format"] is not None:
        text("chat_format", values["chat_format"])
    if values["chat_handler"] is not None and not callable(values["chat_handler"]):
        raise refused("chat_handler", values["chat_handler"], "a function of llama, messages and further keywords")
    return values


_TOKENIZES = ("tokenize", "detokenize")


def _read_draft(values: dict[str, Any]) -> None:
    """What drafts: a path, a name, or an object, one of which stands for a name."""
    drafts = values["draft_model"]
    if isinstance(drafts, LlamaPromptLookupDecoding):
        values["draft_model"], values["n_draft"] = PROMPT_LOOKUP, min(drafts.num_pred_tokens, _RANGES["n_draft"][1])
    elif callable(drafts) and not isinstance(drafts, LlamaDraftModel):
        raise refused("draft_model", drafts, "a path, a name, or an instance of a subclass of LlamaDraftModel")
    elif drafts is not None and not isinstance(drafts, LlamaDraftModel):
        values["draft_model"] = path("draft_model", drafts)


def _choice(name: str, value: Any, choices: Sequence[str]) -> int:
    """One of an enumeration's values."""
    known = {getattr(ggml if choice.startswith("GGML") else llama, choice): choice for choice in choices}
    found = integer(name, value)
    if found not in known:
        listed = ", ".join(f"{choice} ({number})" for number, choice in known.items())
        raise InvalidArgumentError(f"{name}={value!r} does not exist.", remedy=f"There are {listed}.")
    return found


def _numa(given: Any) -> int:
    """A way to spread over the processors' memories (``GGML_NUMA_STRATEGY_*``); True is the first one, False none."""
    if isinstance(given, bool):
        return ggml_cpu.GGML_NUMA_STRATEGY_DISTRIBUTE if given else ggml_cpu.GGML_NUMA_STRATEGY_DISABLED
    return integer("numa", given, ggml_cpu.GGML_NUMA_STRATEGY_DISABLED, ggml_cpu.GGML_NUMA_STRATEGY_COUNT - 1)


def _shares(split: Any) -> list[float]:
    """How a model is spread over GPUs."""
    n_max = llama.llama_max_devices()
    help = f"Give one for each GPU, at most {n_max}."
    shares = [number(f"tensor_split[{at}]", share) for at, share in enumerate(items("tensor_split", split, "a list of numbers"))]
    if len(shares) > n_max or not all(math.isfinite(share) and share >= 0 for share in shares):
        raise refused("tensor_split", split, "a list of numbers, none of them negative", help)
    return shares


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
    listed = servers.split(",") if isinstance(servers, str) else texts("rpc_servers", servers)
    return tuple(server.strip() for server in listed if server.strip())


def read_adapters(
    lora_path: Any, lora_scale: float, lora_adapters: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, float]]:
    """LoRA adapters' files by name, and the scales of those that every request has by default."""
    if lora_adapters is not None and not isinstance(lora_adapters, Mapping):
        raise refused("lora_adapters", lora_adapters, "a mapping from names to paths")
    paths = {str(name): path(f"lora_adapters[{name!r}]", file) for name, file in (lora_adapters or {}).items()}
    if lora_path is None:
        return paths, {}
    name = Path(lora_path).stem
    if name in paths:
        raise InvalidArgumentError(f"lora_path and lora_adapters both name {name!r}.")
    return {**paths, name: lora_path}, {name: lora_scale}


def texts(name: str, given: Any) -> tuple[str, ...]:
    """Strings: one, several or none."""
    if given is None:
        return ()
    if isinstance(given, str):
        return (given,)
    found = tuple(items(name, given, "a str or a list of them"))
    if not all(isinstance(one, str) for one in found):
        raise refused(name, given, "a str or a list of them")
    return found


def read_stop(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings: one, several or none."""
    return texts("stop", stop)


def usage_wanted(stream_options: Mapping[str, Any] | None) -> bool:
    """Whether a stream is to end with the token counts."""
    if stream_options is None:
        return False
    if not isinstance(stream_options, Mapping):
        raise refused("stream_options", stream_options, "a mapping", 'Known is {"include_usage": True}.')
    return flag("stream_options['include_usage']", stream_options.get("include_usage"), none=False)


def read_logprobs(n: int | None, n_vocab: int, name: str) -> int | None:
    """For how many tokens log-probabilities are wanted; None for none."""
    return None if n is None else integer(name, n, 0, n_vocab)


def read_seed(seed: Any) -> int | None:
    """A request's seed; None is the model's, negative ones and 2³² - 1 (the C API's default) are random, -1 from here on."""
    found = None if seed is None else integer("seed", seed, -(1 << 63), (1 << 64) - 1)
    return -1 if found == RANDOM_SEED else found


def read_model_name(model: Any, otherwise: str) -> str:
    """The name that an answer gives as its model's."""
    return otherwise if model is None else text("model", model) or otherwise


def read_grammar(grammar: Any) -> str | None:
    """GBNF that an answer must follow, as text or as a LlamaGrammar; None, or nothing, for none."""
    if grammar is not None and not isinstance(grammar, str):
        grammar = getattr(grammar, "_grammar", grammar)
    return None if grammar is None else text("grammar", grammar) or None


def read_suffix(suffix: Any) -> str | None:
    """The text after the one that is wanted; None for none."""
    return None if suffix is None else text("suffix", suffix)


def read_functions(name: str, functions: Any) -> tuple[Callable[..., Any], ...]:
    """The argument ``name`` that may be one function, several or none."""
    if functions is None:
        return ()
    found = tuple(functions) if isinstance(functions, Sequence) else (functions,)
    if not all(callable(function) for function in found):
        raise InvalidArgumentError(f"{name}={functions!r} must be a function, or a list of them.")
    return found


def read_callback(abort_callback: Any) -> Callable[[], bool] | None:
    """What is asked whether a request is still wanted; None for nothing."""
    if abort_callback is None:
        return None
    if not callable(abort_callback):
        raise refused("abort_callback", abort_callback, "a function without arguments", "An event's is_set is one.")
    asked: Callable[[], bool] = abort_callback
    return asked


def read_bias(logit_bias: Any) -> dict[int, float]:
    """What is added to the logits of tokens; JSON has no integer keys, so they may be written as text."""
    if logit_bias is None:
        return {}
    if not isinstance(logit_bias, Mapping):
        raise refused("logit_bias", logit_bias, "a mapping from token ids to numbers")
    found = {}
    for token, bias in logit_bias.items():
        if isinstance(token, str):
            try:
                token = int(token)
            except ValueError:
                raise refused(
                    "logit_bias", logit_bias, "a mapping from token ids to numbers", f"{token!r} is no token id."
                ) from None
        found[integer("a token of logit_bias", token)] = number(f"logit_bias[{token!r}]", bias)
    return found

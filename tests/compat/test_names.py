"""Every name that programs import of llama-cpp-python is there, and is what they take it for."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
import subprocess
import sys
import typing
from unittest import mock

import pytest

import llama_cpp
from llama_cpp import Llama

#: Names at top level, by the module that has them.
TOP = {
    "llama": ["Llama"],
    "engine.state": ["LlamaState"],
    "llama_grammar": ["LlamaGrammar"],
    "llama_tokenizer": ["BaseLlamaTokenizer", "LlamaHFTokenizer", "LlamaTokenizer"],
    "llama_speculative": ["LlamaDraftModel", "LlamaPromptLookupDecoding"],
    "llama_cache": ["BaseLlamaCache", "LlamaCache", "LlamaDiskCache", "LlamaRAMCache"],
    "engine.logits_processors": [
        "LogitsProcessor", "LogitsProcessorList", "MinTokensLogitsProcessor", "StoppingCriteria", "StoppingCriteriaList",
    ],
}  # fmt: skip
#: Types that haystack, autogen and Home Assistant's integration import from the package itself.
TYPES = [
    "ChatCompletionMessageToolCall", "ChatCompletionRequestAssistantMessage", "ChatCompletionRequestMessage",
    "ChatCompletionRequestMessageContentPart", "ChatCompletionResponseChoice", "ChatCompletionStreamResponseDelta",
    "ChatCompletionStreamResponseDeltaEmpty", "ChatCompletionTool", "CreateChatCompletionResponse",
    "CreateChatCompletionStreamResponse", "ChatCompletionFunctionParameters", "ChatCompletionRequestFunctionMessage",
    "ChatCompletionRequestSystemMessage", "ChatCompletionRequestToolMessage", "ChatCompletionRequestUserMessage",
    "ChatCompletionToolFunction", "CreateCompletionStreamResponse", "CreateCompletionResponse", "CreateEmbeddingResponse",
    "ChatCompletionRequestResponseFormat",
]  # fmt: skip
MODULES = [
    "llama", "llama_cpp", "mtmd_cpp", "llava_cpp", "llama_cache", "llama_chat_format", "llama_grammar", "llama_speculative",
    "llama_tokenizer", "llama_types", "_internals", "_logger", "_utils", "_ctypes_extensions", "_ggml",
]  # fmt: skip
#: Parameters of the constructor, in llama-cpp-python's order, with the defaults that are no faults.
CREATION = {
    "model_path": inspect.Parameter.empty, "n_gpu_layers": -1, "split_mode": 1, "main_gpu": 0, "tensor_split": None,
    "vocab_only": False, "use_mmap": True, "use_mlock": False, "kv_overrides": None, "seed": None, "n_ctx": 512, "n_batch": 512,
    "n_ubatch": 512, "n_threads": None, "n_threads_batch": None, "rope_scaling_type": -1, "pooling_type": -1,
    "attention_type": -1, "rope_freq_base": 0.0, "rope_freq_scale": 0.0, "yarn_ext_factor": -1.0, "yarn_attn_factor": 1.0,
    "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0, "yarn_orig_ctx": 0, "logits_all": False, "embedding": False,
    "offload_kqv": True, "flash_attn": None, "op_offload": None, "swa_full": None, "no_perf": True, "last_n_tokens_size": 64,
    "lora_base": None, "lora_scale": 1.0, "lora_path": None, "numa": False, "chat_format": None, "chat_handler": None,
    "draft_model": None, "tokenizer": None, "type_k": None, "type_v": None, "spm_infill": False, "verbose": None,
}  # fmt: skip
METHODS = [
    "tokenize", "detokenize", "set_cache", "set_seed", "reset", "eval", "sample", "generate", "embed", "create_embedding",
    "create_completion", "__call__", "create_chat_completion", "create_chat_completion_openai_v1", "save_state", "load_state",
    "n_ctx", "n_embd", "n_vocab", "tokenizer", "token_eos", "token_bos", "token_nl", "pooling_type", "close",
    "logits_to_logprobs", "longest_token_prefix", "from_pretrained",
]  # fmt: skip
PROPERTIES = ["ctx", "model", "eval_tokens", "eval_logits", "metadata", "scores", "input_ids", "n_tokens", "_ctx", "_model",
              "_batch", "_scores", "_input_ids", "context_params", "model_params"]  # fmt: skip


@pytest.mark.offers(*(name for names in TOP.values() for name in names), how="same")
@pytest.mark.parametrize("module", TOP)
def test_top_level_names(module):
    home = importlib.import_module(f"llama_cpp.{module}")
    for name in TOP[module]:
        assert getattr(llama_cpp, name) is getattr(home, name)


@pytest.mark.offers("llama_types", *TYPES, how="same")
@pytest.mark.parametrize("name", TYPES)
def test_types_at_top_level(name):
    found = getattr(llama_cpp, name)
    assert found is getattr(importlib.import_module("llama_cpp.llama_types"), name)
    assert typing.is_typeddict(found) or typing.get_origin(found) is dict or typing.get_args(found)


@pytest.mark.offers(*MODULES, how="same")
@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    assert getattr(llama_cpp, name) is importlib.import_module(f"llama_cpp.{name}")


@pytest.mark.offers("Llama(…)", how="better", note="more parameters, for many requests at once; each is visible by name")
def test_the_constructors_parameters():
    found = inspect.signature(Llama.__init__).parameters
    assert {name: found[name].default for name in CREATION} == CREATION
    given = [name for name in found if name in CREATION]
    assert sorted(given) == sorted(CREATION) and found["kwargs"].kind is inspect.Parameter.VAR_KEYWORD
    for name in ("n_gpu_layers", "verbose"):
        assert found[name].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.offers(*(f"Llama.{name}" for name in METHODS), how="same")
def test_methods_are_attributes_of_the_class():
    assert {name for name in METHODS if not callable(getattr(Llama, name, None))} == set()
    assert {name for name in PROPERTIES if not isinstance(inspect.getattr_static(Llama, name, None), property)} == set()
    with mock.patch("llama_cpp.Llama", spec=Llama) as mocked:
        assert isinstance(mocked, Llama)
        for name in METHODS:
            if not name.startswith("__"):
                getattr(mocked, name)


@pytest.mark.offers("__version__", how="same")
def test_the_version_is_three_numbers_below_the_next_minor_one():
    """llama-index takes the installed version apart into exactly three numbers, and asks for less than 0.4."""
    version = importlib.metadata.version("llama-cpp-python")
    assert version == llama_cpp.__version__ and re.fullmatch(r"0\.3\.\d+", version)
    assert int(version.split(".")[2]) >= 3600  # above all that the index has


@pytest.mark.offers("importlib.reload(llama_cpp)", how="same")
def test_the_package_can_be_reloaded():
    code = (
        "import importlib, llama_cpp; kind = llama_cpp.Llama; importlib.reload(llama_cpp)\n"
        "assert llama_cpp.Llama is kind and llama_cpp.LlamaGrammar and llama_cpp.llama_max_devices() > 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.offers("from llama_cpp import *", how="same")
def test_everything_at_once():
    names = {}
    exec("from llama_cpp import *", names)
    assert {"Llama", "LlamaGrammar", "ChatCompletionTool", "llama_decode", "LLAMA_SPLIT_MODE_LAYER", "ggml_type"} <= names.keys()
    assert {"Llama", "llama_chat_format"} <= set(dir(llama_cpp))


def test_what_there_is_not_says_so():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = llama_cpp.no_such_name
    with pytest.raises(AttributeError, match="llama_no_such_function"):
        _ = llama_cpp.llama_no_such_function
    with pytest.raises(AttributeError, match="ChatCompletionNothing"):
        _ = llama_cpp.ChatCompletionNothing

"""Chat formats, formatters and handlers, under the names llama-cpp-python's users import."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .chat import formats
from .chat.messages import read_response_format
from .chat_handlers import (
    ChatFormatter,
    ChatFormatterResponse,
    Jinja2ChatFormatter,
    LlamaChatCompletionHandler,
    LlamaChatCompletionHandlerRegistry,
    chat_formatter_to_chat_completion_handler,
    convert_completion_to_chat,
    convert_logprobs,
    handler_of_format,
)
from .errors import InvalidArgumentError, MissingPackageError
from .llama_grammar import JSON_GBNF, LlamaGrammar
from .media_handlers import HANDLERS

# --- well-known templates and tokens ---

CHATML_CHAT_TEMPLATE = formats.FORMATS["chatml"].template()
CHATML_BOS_TOKEN, CHATML_EOS_TOKEN = "<s>", "<|im_end|>"
MISTRAL_INSTRUCT_CHAT_TEMPLATE = formats.FORMATS["mistral-instruct"].template()
MISTRAL_INSTRUCT_BOS_TOKEN, MISTRAL_INSTRUCT_EOS_TOKEN = "<s>", "</s>"
LLAMA3_INSTRUCT_CHAT_TEMPLATE = formats.FORMATS["llama-3"].template()
LLAMA3_INSTRUCT_BOS_TOKEN, LLAMA3_INSTRUCT_EOS_TOKEN = "<|begin_of_text|>", "<|eot_id|>"

# --- handlers by name ---


def get_chat_completion_handler(name: str) -> LlamaChatCompletionHandler:
    """The handler of a name.

    Raises:
        InvalidArgumentError: there is none.
    """
    return LlamaChatCompletionHandlerRegistry().get_chat_completion_handler_by_name(name)


def register_chat_completion_handler(name: str) -> Callable[[LlamaChatCompletionHandler], LlamaChatCompletionHandler]:
    """Marks a function as the handler of a name."""

    def decorator(handler: LlamaChatCompletionHandler) -> LlamaChatCompletionHandler:
        LlamaChatCompletionHandlerRegistry().register_chat_completion_handler(name, handler, overwrite=True)
        return handler

    return decorator


def register_chat_format(name: str) -> Callable[[ChatFormatter], ChatFormatter]:
    """Marks a function as the formatter of a name."""

    def decorator(formatter: ChatFormatter) -> ChatFormatter:
        handler = chat_formatter_to_chat_completion_handler(formatter)
        LlamaChatCompletionHandlerRegistry().register_chat_completion_handler(name, handler, overwrite=True)
        return formatter

    return decorator


# --- from the Hugging Face hub's files ---


def hf_tokenizer_config_to_chat_formatter(
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> ChatFormatter:
    """A formatter from the content of ``tokenizer_config.json``.

    Raises:
        InvalidArgumentError: it has no chat template. ChatTemplateError: that does not parse.
    """
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {one["name"]: one["template"] for one in template}
        template = named.get("default", next(iter(named.values()), None))
    if not isinstance(template, str):
        raise InvalidArgumentError("tokenizer_config has no chat_template.", remedy="Give the model's chat_template.jinja to it.")
    return Jinja2ChatFormatter(
        template, _token(tokenizer_config, "eos_token"), _token(tokenizer_config, "bos_token"), add_generation_prompt
    )


def _token(tokenizer_config: Mapping[str, Any], name: str) -> str:
    token = tokenizer_config.get(name) or ""
    return str(token["content"]) if isinstance(token, Mapping) else str(token)


def hf_tokenizer_config_to_chat_completion_handler(
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> LlamaChatCompletionHandler:
    """As :func:`hf_tokenizer_config_to_chat_formatter`, as a handler."""
    return chat_formatter_to_chat_completion_handler(
        hf_tokenizer_config_to_chat_formatter(tokenizer_config, add_generation_prompt)
    )


def hf_autotokenizer_to_chat_formatter(pretrained_model_name_or_path: str) -> ChatFormatter:
    """A formatter from a folder with ``tokenizer_config.json``, or from a tokenizer of the Python package transformers.

    Raises:
        MissingPackageError: there is no such file, and transformers is not installed.
    """
    file = Path(pretrained_model_name_or_path) / "tokenizer_config.json"
    if file.is_file():
        return hf_tokenizer_config_to_chat_formatter(json.loads(file.read_text(encoding="utf-8")))
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingPackageError(
            f"{pretrained_model_name_or_path} is no folder with tokenizer_config.json, and transformers is not installed.",
            remedy="pip install transformers",
        ) from error
    tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path)

    def formatter(*, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> ChatFormatterResponse:
        prompt = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return ChatFormatterResponse(prompt, tokenizer.eos_token, None, True)

    return formatter


def hf_autotokenizer_to_chat_completion_handler(pretrained_model_name_or_path: str) -> LlamaChatCompletionHandler:
    """As :func:`hf_autotokenizer_to_chat_formatter`, as a handler."""
    return chat_formatter_to_chat_completion_handler(hf_autotokenizer_to_chat_formatter(pretrained_model_name_or_path))


def guess_chat_format_from_gguf_metadata(metadata: Mapping[str, str]) -> str | None:
    """The name of the format that a model file's template writes; None where it is none of those."""
    template = metadata.get("tokenizer.chat_template", "")
    for name, marks in (
        ("chatml", ("<|im_start|>", "<|im_end|>")), ("llama-3", ("<|start_header_id|>", "<|eot_id|>")),
        ("mistral-instruct", ("[INST]", "[/INST]")),
    ):  # fmt: skip
        if all(mark in template for mark in marks) and "<<SYS>>" not in template:
            return name
    return None


# --- pieces that programs reach for ---


def _convert_completion_to_chat(completion_or_chunks: Any, stream: bool = False) -> Any:
    return convert_completion_to_chat(completion_or_chunks, stream)


def _convert_text_completion_logprobs_to_chat(logprobs: Any) -> Any:
    return convert_logprobs(logprobs)


def _grammar_for_json(verbose: bool = False) -> LlamaGrammar:
    return LlamaGrammar.from_string(JSON_GBNF, verbose)


def _grammar_for_json_schema(schema: str, verbose: bool = False, fallback_to_json: bool = True) -> LlamaGrammar:
    return LlamaGrammar.from_json_schema(schema, verbose)


def _grammar_for_response_format(response_format: Mapping[str, Any], verbose: bool = False) -> LlamaGrammar | None:
    schema = read_response_format(response_format)
    return None if schema is None else LlamaGrammar.from_json_schema(schema, verbose)


def _get_system_message(messages: Sequence[Mapping[str, Any]]) -> str:
    return next((str(message["content"] or "") for message in messages if message["role"] == "system"), "")


def _map_roles(messages: Sequence[Mapping[str, Any]], role_map: Mapping[str, str]) -> list[tuple[str, str | None]]:
    return [(role_map[message["role"]], message.get("content")) for message in messages if message["role"] in role_map]


def _joined(
    start: str, messages: Sequence[tuple[str, str | None]], said: Callable[[str, str, int], str], asked: Callable[[str], str]
) -> str:
    return start + "".join(said(role, text, at) if text else asked(role) for at, (role, text) in enumerate(messages))


def _format_llama2(system_message: str, messages: Any, sep: str, sep2: str) -> str:
    ends = (sep, sep2)
    return _joined(
        system_message, messages,
        lambda role, text, at: f"{text}{sep}" if system_message and at == 0 else f"{role}{text}{ends[at % 2]}",
        lambda role: f"{role} ",
    )  # fmt: skip


def _format_add_colon_single(system_message: str, messages: Any, sep: str) -> str:
    return _joined(system_message + sep, messages, lambda role, text, _: f"{role}: {text}{sep}", lambda role: f"{role}:")


def _format_add_colon_two(system_message: str, messages: Any, sep: str, sep2: str) -> str:
    ends = (sep, sep2)
    return _joined(
        system_message + sep, messages, lambda role, text, at: f"{role}: {text}{ends[at % 2]}", lambda role: f"{role}:"
    )


def _format_no_colon_single(system_message: str, messages: Any, sep: str) -> str:
    return _joined(system_message, messages, lambda role, text, _: f"{role}{text}{sep}", lambda role: role)


def _format_add_colon_space_single(system_message: str, messages: Any, sep: str) -> str:
    return _joined(system_message + sep, messages, lambda role, text, _: f"{role}: {text}{sep}", lambda role: f"{role}: ")


def _format_chatml(system_message: str, messages: Any, sep: str) -> str:
    start = "" if system_message == "" else f"{system_message}{sep}\n"
    return _joined(start, messages, lambda role, text, _: f"{role}\n{text}{sep}\n", lambda role: f"{role}\n")


def _format_chatglm3(system_message: str, messages: Any, sep: str) -> str:
    return _joined(system_message, messages, lambda role, text, _: f"{role}\n {text}", lambda role: role)


def _format(name: str, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> ChatFormatterResponse:
    found = Jinja2ChatFormatter(formats.FORMATS[name].template(), "", "")(messages=messages)
    return ChatFormatterResponse(found.prompt, list(formats.FORMATS[name].stop), None, False)


#: A formatter for each named format, such as ``format_llama2`` and ``format_mistral_instruct``.
_FUNCTIONS = {
    {"llama-2": "format_llama2", "llama-3": "format_llama3", "baichuan-2": "format_baichuan2"}.get(
        name, f"format_{name.replace('-', '_').removesuffix('_incite')}"
    ): functools.partial(_format, name)
    for name in formats.FORMATS
}


def __getattr__(name: str) -> Any:
    if name in HANDLERS:
        return HANDLERS[name]
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    if name.endswith("_chat_handler") or name in ("chatml_function_calling", "functionary_v1_v2_chat_handler"):
        return handler_of_format("chatml-function-calling" if name.startswith("chatml") else "functionary")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *HANDLERS, *_FUNCTIONS, "chatml_function_calling"]


__all__ = [
    "ChatFormatter",
    "ChatFormatterResponse",
    "Jinja2ChatFormatter",
    "LlamaChatCompletionHandler",
    "LlamaChatCompletionHandlerRegistry",
    "chat_formatter_to_chat_completion_handler",
    "get_chat_completion_handler",
    "guess_chat_format_from_gguf_metadata",
    "hf_autotokenizer_to_chat_completion_handler",
    "hf_autotokenizer_to_chat_formatter",
    "hf_tokenizer_config_to_chat_completion_handler",
    "hf_tokenizer_config_to_chat_formatter",
    "register_chat_completion_handler",
    "register_chat_format",
]  # fmt: skip

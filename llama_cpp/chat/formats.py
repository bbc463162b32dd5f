"""Chat formats by name, as data: what is written around messages for models whose files have no template."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import InvalidArgumentError


@dataclass(frozen=True)
class NamedFormat:
    """What is before and after the text of each role.

    Attributes:
        system, user, assistant: before and after a message. An answer begins with what is before the assistant's.
        begin: before everything. stop: strings that end an answer, besides the model's end tokens.
        in_user: whether instructions are a part of the user's message that follows: between what is before that and its text.
    """

    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    begin: str = ""
    stop: tuple[str, ...] = ()
    in_user: bool = False

    def template(self) -> str:
        """The same as a Jinja template."""
        start, end = self.user
        if self.in_user:
            first = _said(start + self.system[0], self.system[1])
            alone = "loop.index0 > 0 and messages[loop.index0 - 1].role == 'system'"
            user = f"{{% if {alone} %}}{_said('', end)}{{% else %}}{_said(start, end)}{{% endif %}}"
        else:
            first, user = _said(*self.system), _said(start, end)
        return (
            f"{_text(self.begin)}{{% for message in messages %}}"
            f"{{% if message.role == 'system' %}}{first}"
            f"{{% elif message.role == 'assistant' %}}{_said(*self.assistant)}"
            f"{{% else %}}{user}{{% endif %}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{_text(self.assistant[0].rstrip(' '))}{{% endif %}}"
        )


def _text(text: str) -> str:
    return f"{{{{ {json.dumps(text)} }}}}" if text else ""


def _said(before: str, after: str) -> str:
    return f"{_text(before)}{{{{ message.content }}}}{_text(after)}"


def _headed(start: str, end: str, after: str) -> NamedFormat:
    """Each role's name between a start and an end."""
    system, user, assistant = ((f"{start}{role}{end}", after) for role in ("system", "user", "assistant"))
    return NamedFormat(system, user, assistant)


_CHATML = _headed("<|im_start|>", "\n", "<|im_end|>\n")
_LLAMA3 = _headed("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>")

#: In the order and under the names that llama-cpp-python has.
FORMATS: Mapping[str, NamedFormat] = {
    "llama-2": NamedFormat(
        ("<<SYS>>\n", "\n<</SYS>>\n\n"), ("[INST] ", " [/INST]"), (" ", " </s><s>"), stop=("</s>",), in_user=True
    ),
    "llama-3": NamedFormat(_LLAMA3.system, _LLAMA3.user, _LLAMA3.assistant, stop=("<|eot_id|>",)),
    "alpaca": NamedFormat(
        ("", "\n\n"), ("### Instruction:\n", "\n\n"), ("### Response:\n", "\n\n"), stop=("### Instruction:", "</s>")
    ),
    "qwen": NamedFormat(_CHATML.system, _CHATML.user, _CHATML.assistant, stop=("<|im_end|>", "<|endoftext|>")),
    "vicuna": NamedFormat(("", " "), ("USER: ", " "), ("ASSISTANT: ", "</s>"), stop=("</s>", "USER:")),
    "oasst_llama": NamedFormat(
        ("[INST] <<SYS>>\n", "\n<</SYS>>\n\n"), ("<|prompter|>", "</s>"), ("<|assistant|>", "</s>"), stop=("</s>",)
    ),
    "baichuan-2": NamedFormat(("", ""), ("<reserved_106>", ""), ("<reserved_107>", ""), stop=("<reserved_106>",)),
    "baichuan": NamedFormat(("", ""), ("<reserved_102>", ""), ("<reserved_103>", ""), stop=("<reserved_102>",)),
    "openbuddy": NamedFormat(("", "\n"), ("User: ", "\n"), ("Assistant: ", "\n"), stop=("User:",)),
    "redpajama-incite": NamedFormat(("", "\n"), ("<human>: ", "\n"), ("<bot>: ", "\n"), stop=("<human>",)),
    "snoozy": NamedFormat(("### Instruction:\n", "\n"), ("### Prompt: ", "\n"), ("### Response: ", "\n"), stop=("###",)),
    "phind": NamedFormat(
        ("### System Prompt\n", "\n\n"), ("### User Message\n", "\n\n"), ("### Assistant\n", "\n\n"), stop=("### User Message",)
    ),
    "intel": NamedFormat(("### System:\n", "\n"), ("### User:\n", "\n"), ("### Assistant:\n", "\n"), stop=("### User:",)),
    "open-orca": NamedFormat(
        ("", "\n"), ("User: ", "<|end_of_turn|>\n"), ("Assistant: ", "<|end_of_turn|>\n"), stop=("User:", "<|end_of_turn|>")
    ),
    "mistrallite": NamedFormat(
        ("<|system|>", "</s>"), ("<|prompter|>", "</s>"), ("<|assistant|>", "</s>"), stop=("</s>", "<|prompter|>")
    ),
    "zephyr": NamedFormat(("<|system|>\n", "</s>\n"), ("<|user|>\n", "</s>\n"), ("<|assistant|>\n", "</s>\n"), stop=("</s>",)),
    "pygmalion": NamedFormat(("<|system|>", "\n"), ("<|user|>", "\n"), ("<|model|>", "\n"), stop=("\n", "<|user|>")),
    "chatml": NamedFormat(_CHATML.system, _CHATML.user, _CHATML.assistant, stop=("<|im_end|>",)),
    "mistral-instruct": NamedFormat(("", "\n\n"), ("[INST] ", " [/INST]"), (" ", "</s>"), stop=("</s>",), in_user=True),
    "chatglm3": NamedFormat(
        ("<|system|>\n ", "\n"), ("<|user|>\n ", "\n"), ("<|assistant|>\n ", "\n"), stop=("</s>", "<|user|>", "<|observation|>")
    ),
    "openchat": NamedFormat(
        ("", "<|end_of_turn|>"),
        ("GPT4 Correct User: ", "<|end_of_turn|>"),
        ("GPT4 Correct Assistant: ", "<|end_of_turn|>"),
        stop=("<|end_of_turn|>",),
    ),
    "saiga": NamedFormat(("<s>system\n", "</s>\n"), ("<s>user\n", "</s>\n"), ("<s>bot\n", "</s>\n"), stop=("</s>",)),
    "gemma": NamedFormat(
        ("", "\n\n"),
        ("<start_of_turn>user\n", "<end_of_turn>\n"),
        ("<start_of_turn>model\n", "<end_of_turn>\n"),
        stop=("<end_of_turn>",), in_user=True,
    ),
}  # fmt: skip

#: Formats with tools: those of a model's own template, which llama.cpp's parsers read, or tools described to any model.
WITH_TOOLS: Mapping[str, str | None] = {
    "functionary": None, "functionary-v1": None, "functionary-v2": None, "chatml-function-calling": "chatml",
}  # fmt: skip

_OWN = "tokenizer.chat_template"


@dataclass(frozen=True)
class ChosenFormat:
    """A chat template, and the strings that end an answer besides it; a template of None is the model's own."""

    template: str | None
    stop: tuple[str, ...] = ()


def choose(name: str | None, metadata: Mapping[str, str], others: Iterable[str] = ()) -> ChosenFormat:
    """The template that a ``chat_format`` asks for.

    Args:
        name: a name, a Jinja template, or None for the model's own.
        metadata: of the model's file, which can have several templates.
        others: further names, to suggest one for a misspelt name.

    Raises:
        InvalidArgumentError: there is no such format.
    """
    if name is None or "{" in name:
        return ChosenFormat(name)
    wanted = name.lower()
    if wanted in FORMATS:
        return ChosenFormat(FORMATS[wanted].template(), FORMATS[wanted].stop)
    if wanted in WITH_TOOLS:
        base = WITH_TOOLS[wanted]
        if base is not None:
            return ChosenFormat(FORMATS[base].template(), FORMATS[base].stop)
        if _OWN not in metadata:
            raise InvalidArgumentError(
                f"chat_format={name!r} is the model's own template, and its file has none.",
                remedy="Take a GGUF file with a chat template, or chat_format='chatml-function-calling'.",
            )
        return ChosenFormat(None)
    own = {key[len(_OWN) + 1 :]: template for key, template in metadata.items() if key.startswith(f"{_OWN}.")}
    short = wanted.removeprefix("chat_template.")  # as llama-cpp-python calls those of the file
    if short == "default" and _OWN in metadata:
        return ChosenFormat(None)
    for key, template in own.items():
        if key.lower() == short:
            return ChosenFormat(template)
    known = [*FORMATS, *WITH_TOOLS, *own, *others]
    close = difflib.get_close_matches(wanted, known, n=1)
    raise InvalidArgumentError(
        f"chat_format={name!r} is neither a format's name nor a Jinja template.",
        remedy=(f"Did you mean {close[0]!r}? " if close else "")
        + f"There are {', '.join(known)}. Leave it out for the model's own.",
    )

"""A chat request on its way to the template."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ChatTemplateError, InvalidArgumentError
from ..json_schema.check import can_check
from ..values import flag, refused, text
from . import generic_tools, placement, schemas
from .messages import choose_tools, is_strict, read_functions, read_messages, read_response_format, read_tools
from .response_parser import ResponseParser
from .schemas import AnswerChecks
from .templates import ChatPrompt, ChatTemplates, json_schema_to_grammar

logger = logging.getLogger("llama_cpp")

#: What of a format tells where the model thinks.
_THINKING = ("thinking_start_tag", "thinking_end_tags", "generation_prompt", "grammar_lazy")


@dataclass(frozen=True)
class Conversation:
    """A conversation ready to be answered.

    Attributes:
        text: the prompt, without a BOS that tokenization adds.
        stop, preserved: as in :class:`~.templates.ChatPrompt`.
        grammar: what the answer has to follow, as ``llama_common_grammar_init()`` reads it; None for nothing.
        format: what a parser of the answer is made from.
        how: ``"format"`` reads the answer by that. ``"parsed"`` does so even where nothing but content can be in it, since JSON
            may have a frame around it. ``"plain"`` takes it as it is, and ``"tools"`` reads :mod:`.generic_tools`' JSON.
        checks: what the finished answer is compared with; None for nothing.
        thinking: what tells where the model thinks: a part of ``format``; None where it does not.
    """

    text: str
    stop: tuple[str, ...]
    preserved: tuple[str, ...]
    grammar: Mapping[str, Any] | None
    format: Mapping[str, Any]
    how: str = "format"
    checks: AnswerChecks | None = None
    thinking: Mapping[str, Any] | None = None

    def response_parser(self) -> ResponseParser:
        """What reads the answer."""
        return ResponseParser(self.format, self.how, self.checks)


@dataclass(frozen=True)
class ChatRequest:
    """What of a chat completion request concerns the template, in OpenAI's form."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: str | bool | Mapping[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: Mapping[str, Any] | None = None
    user_grammar: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    reasoning_effort: str | None = None
    functions: Sequence[Mapping[str, Any]] | None = None
    function_call: str | Mapping[str, Any] | None = None

    def render(self, templates: ChatTemplates) -> Conversation:
        """Renders the conversation, with a grammar for everything that was asked of the answer.

        Some templates, or their parsers, leave out tools or a schema: then tools are described in the first message, and the
        grammar is the schema's own.

        Raises:
            InvalidArgumentError: messages, tools or formats that are none, or that contradict each other.
            GrammarError: a schema that no grammar can be made of. ChatTemplateError, LimitReachedError.
        """
        messages = placement.joined(read_messages(self.messages))
        if self.functions is not None:
            tools, choice = choose_tools(read_functions(self.functions), self.function_call, "function_call")
        else:
            tools, choice = choose_tools(read_tools(self.tools), self.tool_choice)
        schema, strict = self._schema()
        if tools and choice == "required":
            schema = None  # it is for what is said, and a call is what is wanted
        if self.user_grammar and (schema is not None or (tools and choice != "none")):
            raise InvalidArgumentError("A grammar of your own cannot be combined with tools or a response_format.")
        request: dict[str, Any] = {"messages": messages, **self._options()}
        given = {"tools": tools, "tool_choice": choice} if tools else {}
        enforced = {} if schema is None else {"json_schema": schema}
        # what is wrong with schemas is told first, and where
        if schema is not None:
            own = schemas.told("response_format", lambda: schemas.own_grammar(schema, templates.limits, strict))
        called = tools if choice != "none" else []
        schemas.check_tools(called, templates.limits)
        loose = {at for at, tool in enumerate(called) if not schemas.is_strict_tool(tool)}
        answered = placement.answers(messages)
        try:
            prompt, messages = _apply(templates, {**request, **given, **enforced}, strict)
            knows_tools = not placement.left_out(messages, placement.answers(messages), prompt.text)
        except ChatTemplateError:
            if not called and not answered and not any("tool_calls" in message for message in messages):
                raise
            knows_tools = False
        if not knows_tools:
            # a template that knows no tools may refuse what was said with them, or drop it
            messages = generic_tools.as_texts(messages)
            prompt, messages = _apply(templates, {**request, "messages": messages, **enforced}, strict)
        found = prompt.format
        if self.user_grammar:
            thinks = bool(request.get("enable_thinking"))
            return self._conversation(prompt, {"grammar": self.user_grammar}, "format" if thinks else "plain")
        if schema is not None and (not found["grammar"] or found["grammar_lazy"]):
            return self._conversation(prompt, {"grammar": own}, "plain", _checks(None if strict else schema, called, loose))
        if tools and choice != "none" and not found["grammar"]:
            described = generic_tools.add_to_messages(messages, tools, choice == "required")
            answers = generic_tools.schema(tools, choice == "required", bool(request.get("parallel_tool_calls", False)))
            prompt, _ = _apply(templates, {**request, "messages": described})
            grammar = json_schema_to_grammar(answers, templates.limits, strict=not loose)
            return self._conversation(prompt, {"grammar": grammar}, "tools", _checks(None, called, loose))
        checks = _checks(None if strict else schema, called, loose, prompt.unheld if called else ())
        return self._conversation(prompt, found if found["grammar"] else None, "format" if schema is None else "parsed", checks)

    def _conversation(
        self, prompt: ChatPrompt, grammar: Mapping[str, Any] | None, how: str, checks: AnswerChecks | None = None
    ) -> Conversation:
        thinking = None
        if how in ("format", "parsed"):
            text = prompt.text
            if prompt.format["thinking_start_tag"] and prompt.format["thinking_end_tags"]:
                thinking = {name: prompt.format[name] for name in _THINKING}
        else:
            text = _without_thoughts(prompt)
        return Conversation(text, prompt.stop, prompt.preserved, grammar, prompt.format, how, checks, thinking)

    def _options(self) -> dict[str, Any]:
        """What else the template is told."""
        options: dict[str, Any] = {}
        if self.parallel_tool_calls is not None:
            options["parallel_tool_calls"] = flag("parallel_tool_calls", self.parallel_tool_calls)
        if self.chat_template_kwargs is not None and not isinstance(self.chat_template_kwargs, Mapping):
            raise refused("chat_template_kwargs", self.chat_template_kwargs, "a mapping from variables to values")
        kwargs = {str(name): value for name, value in (self.chat_template_kwargs or {}).items()}
        thinking = kwargs.get("enable_thinking")
        if self.reasoning_effort is not None:
            effort = text("reasoning_effort", self.reasoning_effort)
            kwargs.setdefault("reasoning_effort", effort)
            thinking = thinking if thinking is not None or effort != "none" else False
        if thinking is not None:
            kwargs["enable_thinking"] = flag("enable_thinking", thinking)
        elif self.user_grammar:
            # what the grammar describes is the answer, and not what is thought before it
            kwargs["enable_thinking"] = False
        if "enable_thinking" in kwargs:
            options["enable_thinking"] = kwargs["enable_thinking"]
        if kwargs:
            options["chat_template_kwargs"] = kwargs
        return options

    def _schema(self) -> tuple[Any, bool]:
        """The schema of the answer, and whether a grammar must hold it to all of it."""
        schema = read_response_format(self.response_format)
        if schema is False:
            raise InvalidArgumentError("response_format has the schema false, which no answer can follow.")
        if schema is True or schema == {}:
            schema = {"type": ["object", "array", "string", "number", "boolean", "null"]}  # anything
        return schema, is_strict(self.response_format)


def _apply(templates: ChatTemplates, request: dict[str, Any], strict: bool = True) -> tuple[ChatPrompt, list[dict[str, Any]]]:
    """A rendered conversation, and its messages as they had to be for the template to take them all.

    Raises:
        ChatTemplateError: the template refuses them however they are said.
    """
    messages = request["messages"]
    places = placement.unusual(messages)
    try:
        prompt = templates.apply(request, strict=strict)
    except ChatTemplateError:
        if not places:
            raise
    else:
        if placement.left_out(messages, thoughtful := placement.thoughtful(messages), prompt.text):
            # some templates take thoughts for the whole of what was said
            messages = [
                {name: value for name, value in message.items() if at not in thoughtful or name != "reasoning_content"}
                for at, message in enumerate(messages)
            ]
            prompt = templates.apply({**request, "messages": messages}, strict=strict)
        # a later instruction can be taken for the first one
        if not placement.left_out(messages, [0, *places] if places else (), prompt.text):
            return prompt, messages
    messages = placement.as_user(messages, places)
    return templates.apply({**request, "messages": messages}, strict=strict), messages


def _checks(
    schema: Any, tools: Sequence[Mapping[str, Any]], loose: Iterable[int], unheld: Iterable[int] = ()
) -> AnswerChecks | None:
    """What no grammar holds the answer to: tools that did not ask for it, and those that a chat format leaves ``unheld``."""
    compared = set(loose)
    for at in set(unheld) - compared:
        function = tools[at]["function"]
        if function.get("strict") is True or can_check():
            compared.add(at)
        else:
            logger.warning(
                "%r: this chat format holds no arguments to their schema, and jsonschema is not installed", function["name"]
            )
    arguments = {tools[at]["function"]["name"]: schemas.text_of(tools[at]["function"]["parameters"]) for at in compared}
    if schema is None and not arguments:
        return None
    return AnswerChecks(None if schema is None else schemas.text_of(schema), arguments)


def _without_thoughts(prompt: ChatPrompt) -> str:
    """The prompt; where the template has begun to think although nothing is to be thought, that is ended."""
    start, ends = prompt.format["thinking_start_tag"], prompt.format["thinking_end_tags"]
    if start and ends and prompt.text.rstrip().endswith(start):
        return f"{prompt.text.rstrip()}\n{ends[0]}\n\n"
    return prompt.text

"""Chat handlers: functions that answer a conversation in place of ``Llama``'s own way, as llama-cpp-python has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .chat import formats, generic_tools
from .chat.jinja_templates import JinjaTemplate
from .chat.messages import choose_tools, read_functions, read_messages, read_response_format, read_tools
from .chat.templates import json_schema_to_grammar
from .completions.openai_format import told
from .errors import InvalidArgumentError

if TYPE_CHECKING:
    from .engine.logits_processors import StoppingCriteriaList
    from .llama import Llama


class LlamaChatCompletionHandler(Protocol):
    """Answers a conversation: called with ``llama``, ``messages`` and all keywords of ``create_chat_completion``."""

    def __call__(self, *, llama: Llama, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        """What :meth:`Llama.create_chat_completion` returns: a response, or an iterator of chunks."""
        ...


@dataclass
class ChatFormatterResponse:
    """A rendered conversation.

    Attributes:
        prompt: text. stop: strings that end the answer. stopping_criteria: functions that do.
        added_special: whether the prompt begins with BOS where the model wants one. It is never doubled, whatever this says.
    """

    prompt: str
    stop: str | Sequence[str] | None = None
    stopping_criteria: StoppingCriteriaList | None = None
    added_special: bool = False


class ChatFormatter(Protocol):
    """Renders a conversation: called with ``messages`` and further keywords."""

    def __call__(self, *, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> ChatFormatterResponse:
        """The prompt."""
        ...


class Jinja2ChatFormatter:
    """A chat template, rendered by jinja2 in a sandbox.

    Args:
        template: Jinja. eos_token, bos_token: what these variables are in it; the first ends an answer.
        add_generation_prompt: end the prompt where the answer begins. stop_token_ids: tokens that end an answer, too.

    Raises:
        ChatTemplateError: it does not parse, or, when it is called, refused the conversation.
    """

    def __init__(
        self, template: str, eos_token: str, bos_token: str, add_generation_prompt: bool = True,
        stop_token_ids: list[int] | None = None,
    ) -> None:  # fmt: skip
        self.template, self.eos_token, self.bos_token = template, eos_token, bos_token
        self.add_generation_prompt = add_generation_prompt
        self.stop_token_ids = set(stop_token_ids) if stop_token_ids is not None else None
        self._jinja = JinjaTemplate(template, bos_token, eos_token)

    def __call__(
        self, *, messages: Sequence[Mapping[str, Any]], functions: Any = None, function_call: Any = None, tools: Any = None,
        tool_choice: Any = None, **kwargs: Any,
    ) -> ChatFormatterResponse:  # fmt: skip
        prompt = self._jinja.render(
            messages, self.add_generation_prompt, functions=functions, function_call=function_call, tools=tools,
            tool_choice=tool_choice,
        )  # fmt: skip
        return ChatFormatterResponse(prompt, [self.eos_token] if self.eos_token else [], self._criteria(), True)

    def _criteria(self) -> StoppingCriteriaList | None:
        from .engine.logits_processors import StoppingCriteriaList

        ends = self.stop_token_ids
        if ends is None:
            return None
        return StoppingCriteriaList([lambda tokens, logits: bool(len(tokens)) and int(tokens[-1]) in ends])

    def to_chat_handler(self) -> LlamaChatCompletionHandler:
        """A handler that answers with this template."""
        return chat_formatter_to_chat_completion_handler(self)


#: Keywords of a completion that a handler hands through as they are.
_THROUGH = {
    "temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "max_tokens", "presence_penalty", "frequency_penalty",
    "repeat_penalty", "tfs_z", "mirostat_mode", "mirostat_tau", "mirostat_eta", "model", "logits_processor", "logit_bias",
    "stream",
}  # fmt: skip


def chat_formatter_to_chat_completion_handler(chat_formatter: ChatFormatter) -> LlamaChatCompletionHandler:
    """A handler that renders a conversation by a formatter, and holds the answer to tools or a response_format by a grammar."""

    def chat_completion_handler(*, llama: Llama, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        read: list[dict[str, Any]] = read_messages(messages)
        legacy = kwargs.get("functions") is not None
        if legacy:
            tools, choice = choose_tools(read_functions(kwargs["functions"]), kwargs.get("function_call"), "function_call")
        else:
            tools, choice = choose_tools(read_tools(kwargs.get("tools")), kwargs.get("tool_choice"))
        calls = bool(tools) and choice != "none"
        grammar = kwargs.get("grammar")
        schema = read_response_format(kwargs.get("response_format"))
        if calls:
            parallel = bool(kwargs.get("parallel_tool_calls"))
            grammar = json_schema_to_grammar(generic_tools.schema(tools, choice == "required", parallel), strict=False)
            read = generic_tools.add_to_messages(read, tools, choice == "required")
        elif schema is not None:
            grammar = json_schema_to_grammar(schema)
        given = {name: kwargs[name] for name in ("functions", "function_call", "tools", "tool_choice") if kwargs.get(name)}
        result = chat_formatter(messages=read, **({} if calls else given))
        stop = kwargs.get("stop") or []
        # a grammar says where JSON ends, which can have line breaks and the like in it
        ends = [] if calls or schema is not None else result.stop or []
        stops = [*([stop] if isinstance(stop, str) else stop), *([ends] if isinstance(ends, str) else ends)]
        logprobs = kwargs.get("top_logprobs") or 0 if kwargs.get("logprobs") else None
        answer: Any = llama.create_completion(
            tokens_of(llama, result.prompt), stop=stops, grammar=grammar, logprobs=logprobs,
            stopping_criteria=result.stopping_criteria, **{name: kwargs[name] for name in _THROUGH if name in kwargs},
        )  # fmt: skip
        if calls and isinstance(answer, dict):
            return _called(answer, legacy)
        if calls:
            return _called_chunks(answer, legacy)
        return convert_completion_to_chat(answer, stream=not isinstance(answer, dict))

    return chat_completion_handler


def tokens_of(llama: Llama, prompt: str) -> list[int]:
    """Token ids of a rendered prompt, with one BOS where the model wants one, whether the template wrote it or not."""
    model = llama._model
    tokens = llama.tokenize(prompt.encode("utf-8", "replace"), add_bos=False, special=True)
    bos = model.token_bos()
    if model.add_bos_token() and bos >= 0 and tokens[:1] != [bos]:
        tokens.insert(0, bos)
    return tokens


def _called(answer: dict[str, Any], legacy: bool) -> dict[str, Any]:
    message = generic_tools.read(answer["choices"][0]["text"])
    found = convert_completion_to_chat(answer, stream=False)
    choice = found["choices"][0]
    choice["message"] = told(message, legacy)
    if "tool_calls" in message and choice["finish_reason"] == "stop":
        choice["finish_reason"] = "function_call" if legacy else "tool_calls"
    return dict(found)


def _called_chunks(chunks: Iterator[dict[str, Any]], legacy: bool) -> Iterator[dict[str, Any]]:
    """What is a call is known at the end."""
    text, last = "", None
    for chunk in chunks:
        if chunk["choices"]:
            if not text and last is None:
                yield _chunk(chunk, {"role": "assistant", "content": ""})
            text += chunk["choices"][0]["text"]
            last = chunk
    if last is None:
        return
    message = generic_tools.read(text)
    for delta in generic_tools.deltas(message):
        yield _chunk(last, told(delta, legacy))
    reason = last["choices"][0]["finish_reason"]
    if "tool_calls" in message and reason == "stop":
        reason = "function_call" if legacy else "tool_calls"
    yield _chunk(last, {}, reason)


def _chunk(chunk: Mapping[str, Any], delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {
        "id": f"chat{chunk['id']}", "object": "chat.completion.chunk", "created": chunk["created"], "model": chunk["model"],
        "choices": [choice],
    }  # fmt: skip


def convert_completion_to_chat(completion: Any, stream: bool = False) -> Any:
    """A text completion, or its chunks, as a chat completion's."""
    if stream:
        return _chat_chunks(completion)
    choice = completion["choices"][0]
    message = {"role": "assistant", "content": choice["text"]}
    found = {**completion, "id": f"chat{completion['id']}", "object": "chat.completion"}
    found["choices"] = [
        {
            "index": choice["index"], "message": message, "logprobs": convert_logprobs(choice["logprobs"]),
            "finish_reason": choice["finish_reason"],
        }
    ]  # fmt: skip
    return found


def _chat_chunks(chunks: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for at, chunk in enumerate(chunks):
        if at == 0:
            yield _chunk(chunk, {"role": "assistant", "content": ""})
        for choice in chunk["choices"]:
            found = _chunk(chunk, {"content": choice["text"]} if choice["text"] else {}, choice["finish_reason"])
            found["choices"][0]["logprobs"] = convert_logprobs(choice["logprobs"])
            if "timings" in chunk:
                found["timings"] = chunk["timings"]
            yield found
        if not chunk["choices"]:
            yield {**_chunk(chunk, {}), "choices": [], "usage": chunk.get("usage")}


def convert_logprobs(logprobs: Any) -> Any:
    """Log-probabilities of a text completion as a chat completion's."""
    if logprobs is None:
        return None

    def one(token: str, value: float | None) -> dict[str, Any]:
        return {"token": token, "bytes": list(token.encode("utf-8", "replace")), "logprob": value}

    content = [
        {**one(token, value), "top_logprobs": [one(*pair) for pair in (top or {}).items()]}
        for token, value, top in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"])
    ]
    return {"content": content, "refusal": None}


class LlamaChatCompletionHandlerRegistry:
    """Handlers by name. There is one of these."""

    _instance: LlamaChatCompletionHandlerRegistry | None = None
    _chat_handlers: dict[str, LlamaChatCompletionHandler]

    def __new__(cls) -> LlamaChatCompletionHandlerRegistry:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
            cls._instance._chat_handlers = {}
        return cls._instance

    def register_chat_completion_handler(
        self, name: str, chat_handler: LlamaChatCompletionHandler, overwrite: bool = False
    ) -> None:
        """Gives a handler a name, for ``Llama(chat_format=name)``.

        Raises:
            InvalidArgumentError: there is one of that name.
        """
        if not overwrite and name in self._chat_handlers:
            raise InvalidArgumentError(f"There is a chat handler {name!r} already.", remedy="Give overwrite=True.")
        self._chat_handlers[name] = chat_handler

    def unregister_chat_handler(self, name: str) -> None:
        """Takes a name back.

        Raises:
            InvalidArgumentError: there is none of that name.
        """
        if self._chat_handlers.pop(name, None) is None:
            raise InvalidArgumentError(f"There is no chat handler {name!r}.")

    def get_chat_completion_handler_by_name(self, name: str) -> LlamaChatCompletionHandler:
        """The handler of a name: one that was registered, or one of a named format.

        Raises:
            InvalidArgumentError: there is none.
        """
        found = self._chat_handlers.get(name) or self._chat_handlers.get(name.lower())
        return found if found is not None else handler_of_format(name)


def handler_of_format(name: str) -> LlamaChatCompletionHandler:
    """A handler that answers by a named format, whatever the model's own is.

    Raises:
        InvalidArgumentError: there is no such format.
    """
    others = LlamaChatCompletionHandlerRegistry()._chat_handlers
    chosen = None if formats.WITH_TOOLS.get(name.lower(), "") is None else formats.choose(name, {}, others)

    def handler(*, llama: Llama, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        if chosen is None or chosen.template is None:
            return llama._answer(messages, kwargs)
        formatter = Jinja2ChatFormatter(chosen.template, chosen.stop[0] if chosen.stop else "", "")

        def format(*, messages: Sequence[Mapping[str, Any]], **given: Any) -> ChatFormatterResponse:
            found = formatter(messages=messages, **given)
            found.stop = list(chosen.stop)
            return found

        return chat_formatter_to_chat_completion_handler(format)(llama=llama, messages=messages, **kwargs)

    return handler

"""Conversations, tools and formats as callers give them, read into what the engine's templates take.

What is null in them is absent: programs send back what OpenAI's and other servers answered, with all of its keys. What is wrong
is named by its place, such as ``messages[2]["tool_calls"][0]["function"]``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidArgumentError
from ..values import flag, items, plain, refused

#: Of a function's definition or call, what has to be text.
_TEXTS = ("role", "name", "tool_call_id", "reasoning_content", "reasoning")
_CHOICES = {"auto": "auto", "none": "none", "required": "required", "any": "required"}
#: What ``response_format["json_schema"]`` has around its schema.
_AROUND_SCHEMA = {"name", "description", "strict", "schema"}


def read_messages(given: Any) -> list[dict[str, Any]]:
    """A conversation: role and content of each message, and what else is not null.

    Raises:
        InvalidArgumentError: it is none.
    """
    messages: list[dict[str, Any]] = []
    for at, message in enumerate(items("messages", given)):
        messages.append(_as_tool(_message(f"messages[{at}]", message), messages))
    if not messages:
        raise InvalidArgumentError("messages is empty.", remedy='Give at least [{"role": "user", "content": "…"}].')
    return messages


def read_tools(given: Any) -> list[dict[str, Any]]:
    """Functions that can be called.

    Raises:
        InvalidArgumentError: they are no such definitions.
    """
    return [_tool(f"tools[{at}]", tool) for at, tool in enumerate(items("tools", given))] if given is not None else []


def read_functions(given: Any) -> list[dict[str, Any]]:
    """Functions in OpenAI's older form, which is what a tool has below "function".

    Raises:
        InvalidArgumentError: they are no such definitions.
    """
    functions = enumerate(items("functions", given))
    return [_tool(f"functions[{at}]", {"type": "function", "function": function}) for at, function in functions]


def choose_tools(tools: list[dict[str, Any]], choice: Any, argument: str = "tool_choice") -> tuple[list[dict[str, Any]], str]:
    """The tools there are to choose from, and whether one has to be called: "auto", "none" or "required".

    Args:
        argument: the name under which the caller gave the ``choice``. True is "required", and False "none".

    Raises:
        InvalidArgumentError: no such choice, or there is nothing to choose from.
    """
    if choice is None:
        return tools, "auto"
    if isinstance(choice, bool):
        choice = "required" if choice else "none"
    if isinstance(choice, str) and choice in _CHOICES:
        if _CHOICES[choice] == "required" and not tools:
            raise InvalidArgumentError(f"{argument}={choice!r}, and there are no tools.")
        return tools, _CHOICES[choice]
    if isinstance(choice, str) and any(tool["function"]["name"] == choice for tool in tools):
        choice = {"name": choice}  # as LangChain does
    named = _mapping(argument, choice) if not isinstance(choice, str) else {}
    kind = named.get("type", "function")
    if kind in _CHOICES and "function" not in named:
        return choose_tools(tools, kind, argument)
    function = named.get("function", named)
    name = function.get("name") if isinstance(function, Mapping) else None
    if kind != "function" or not isinstance(name, str):
        wanted = '"auto", "none", "required", or {"type": "function", "function": {"name": …}}'
        raise refused(argument, choice, wanted if argument == "tool_choice" else '"auto", "none", or {"name": …}')
    # one function by name: the same as being required to call it, with no other there
    found = [tool for tool in tools if tool["function"]["name"] == name]
    if not found:
        raise InvalidArgumentError(f"{argument} names {name!r}, which is not among the tools.")
    return found, "required"


def read_response_format(given: Any) -> Any:
    """The JSON schema that an answer has to follow; None for none.

    A schema is taken from wherever OpenAI's, llama.cpp's and llama-cpp-python's callers put it: below "json_schema" and
    "schema", below either of them, beside ``"type": "json_object"``, as JSON text, and from a pydantic model.

    Raises:
        InvalidArgumentError: no such format, or no schema where there must be one.
    """
    if given is None:
        return None
    if callable(dump := getattr(given, "model_json_schema", None)):  # a pydantic model
        return dump()
    if isinstance(given, str) or not isinstance(given, Mapping):
        raise refused("response_format", given, "a mapping", 'Give {"type": "json_object"}, for example.')
    kind = given.get("type", "text")
    places = [name for name in ("schema", "json_schema") if given.get(name) is not None]
    if kind == "text":
        if places:
            raise InvalidArgumentError(
                'response_format has a schema, and type "text".', remedy='Its type is to be "json_schema".'
            )
        return None
    if kind not in ("json_object", "json_schema"):
        raise InvalidArgumentError(
            f"response_format type {kind!r} does not exist.", remedy='Use "text", "json_object" or "json_schema".'
        )
    if len(places) > 1:
        raise InvalidArgumentError('response_format has both "schema" and "json_schema".', remedy="Give one of them.")
    if not places:
        if kind == "json_schema":
            raise InvalidArgumentError(
                'response_format of type "json_schema" has no schema.',
                remedy='Give {"type": "json_schema", "json_schema": {"name": …, "schema": …}}.',
            )
        return {"type": "object"}
    name = places[0]
    schema, place = given[name], f'response_format["{name}"]'
    if name == "json_schema" and isinstance(schema, Mapping) and schema and schema.keys() <= _AROUND_SCHEMA:
        place += '["schema"]'
        if schema.get("schema") is None:
            raise InvalidArgumentError(f"{place} is missing.", remedy="It is the JSON schema that the answer has to follow.")
        schema = schema["schema"]
    return read_schema(place, schema)


def is_strict(given: Any) -> bool:
    """Whether the answer is to be held to all of a response format's schema while it is written: what "strict" does not deny."""
    around = given.get("json_schema") if isinstance(given, Mapping) else None
    if isinstance(around, Mapping) and around and around.keys() <= _AROUND_SCHEMA and around.get("strict") is not None:
        return flag('response_format["json_schema"]["strict"]', around["strict"])
    return True


def read_schema(place: str, schema: Any) -> Any:
    """A JSON schema, which may be written as JSON text: a mapping or a truth value.

    Raises:
        InvalidArgumentError: it is none.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise refused(place, schema, "a JSON schema", f"As text it has to be JSON ({error}).") from None
    if not isinstance(schema, (Mapping, bool)):
        raise refused(place, schema, "a JSON schema: a mapping, True, or JSON text")
    return schema


def _message(place: str, given: Any) -> dict[str, Any]:
    message = _mapping(place, given)
    for name in _TEXTS:
        if name in message and not isinstance(message[name], str):
            raise refused(f'{place}["{name}"]', message[name], "a str")
    if "role" not in message:
        raise InvalidArgumentError(f'{place}["role"] is missing.', remedy='It is "system", "user", "assistant" or "tool".')
    if "reasoning" in message:  # some servers' name of the same
        message.setdefault("reasoning_content", message.pop("reasoning"))
    if "function_call" in message and "tool_calls" not in message:
        function = message.pop("function_call")
        message["tool_calls"] = [{"id": "call_function", "type": "function", "function": function}]
    calls = message.get("tool_calls")
    if calls is not None:
        where = f'{place}["tool_calls"]'
        message["tool_calls"] = [_call(f"{where}[{at}]", call) for at, call in enumerate(items(where, calls))]
        if not message["tool_calls"]:
            del message["tool_calls"]
    content = message.get("content")
    if content is None:
        if message["role"] in ("system", "developer", "user", "tool", "function"):
            raise InvalidArgumentError(f'{place}["content"] is missing.', remedy="It is a text, or a list of parts.")
        # templates that look at it want to find it
        message["content"] = None if "tool_calls" in message else ""
    elif not isinstance(content, str):
        where = f'{place}["content"]'
        message["content"] = [_part(f"{where}[{at}]", part) for at, part in enumerate(items(where, content))]
    return message


def _as_tool(message: dict[str, Any], before: list[dict[str, Any]]) -> dict[str, Any]:
    """What a function answered, in OpenAI's older form, as what a tool answered: templates know that."""
    if message["role"] != "function":
        return message
    calls = [call for earlier in before for call in earlier.get("tool_calls", ())]
    ids = [call["id"] for call in calls if "id" in call and call["function"]["name"] == message.get("name")]
    return {"tool_call_id": ids[-1] if ids else "call_function", **message, "role": "tool"}


def _part(place: str, given: Any) -> dict[str, Any]:
    part = _mapping(place, given)
    kind = part.get("type")
    if not isinstance(kind, str):
        raise InvalidArgumentError(f'{place}["type"] is missing.', remedy='Give {"type": "text", "text": …}.')
    if kind in ("text", "input_text", "output_text"):
        if not isinstance(part.get("text"), str):
            raise refused(f'{place}["text"]', part.get("text"), "a str")
        return {"type": "text", "text": part["text"]}
    raise InvalidArgumentError(f"{place} is of type {kind!r}.", remedy='This version reads parts of type "text".')


def _call(place: str, given: Any) -> dict[str, Any]:
    """A call that an earlier answer made."""
    call = _mapping(place, given)
    call.setdefault("type", "function")
    if call["type"] != "function":
        raise refused(f'{place}["type"]', call["type"], '"function"')
    if "id" in call and not isinstance(call["id"], str):
        raise refused(f'{place}["id"]', call["id"], "a str")
    where = f'{place}["function"]'
    function = _mapping(where, call.get("function"))
    if not isinstance(function.get("name"), str):
        raise refused(f'{where}["name"]', function.get("name"), "a str")
    arguments = function.get("arguments", "")
    if not isinstance(arguments, str):
        if not isinstance(arguments, Mapping):
            raise refused(f'{where}["arguments"]', arguments, "JSON text, or a mapping")
        arguments = to_json(f'{where}["arguments"]', arguments)
    function["arguments"] = (arguments.strip() and arguments) or "{}"
    call["function"] = function
    return call


def _tool(place: str, given: Any) -> dict[str, Any]:
    tool = _mapping(place, given)
    tool.setdefault("type", "function")
    if tool["type"] != "function":
        raise refused(f'{place}["type"]', tool["type"], '"function"')
    where = f'{place}["function"]'
    function = _mapping(where, tool.get("function"))
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise refused(f'{where}["name"]', function.get("name"), "a str")
    if not isinstance(function.setdefault("description", ""), str):
        raise refused(f'{where}["description"]', function["description"], "a str")
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    function["parameters"] = read_schema(f'{where}["parameters"]', parameters)
    if "strict" in function:
        function["strict"] = flag(f'{where}["strict"]', function["strict"])
    tool["function"] = function
    return tool


def _mapping(place: str, given: Any) -> dict[str, Any]:
    """A mapping without what is null in it; an object of a client library (pydantic's) is one, too."""
    if not isinstance(given, Mapping):
        dump = getattr(given, "model_dump", None)
        if not callable(dump):
            raise refused(place, given, "a mapping")
        given = dump()
    for key in given:
        if not isinstance(key, str):
            raise refused(f"a key of {place}", key, "a str")
    return {key: value for key, value in given.items() if value is not None}


def to_json(place: str, value: Any) -> str:
    """JSON text.

    Raises:
        InvalidArgumentError: it cannot be written as such.
    """
    try:
        return json.dumps(value, default=plain, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{place} cannot be written as JSON: {error}.") from None

"""Tools for chat templates that cannot express them: described in the first message, called in JSON that a grammar enforces."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .messages import to_json

_LETTERS = string.ascii_letters + string.digits


def add_to_messages(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], required: bool
) -> list[dict[str, Any]]:
    """The conversation with the tools in its first message, and with calls and their results as text."""
    listed = "\n".join(to_json("tools", tool["function"]) for tool in tools)
    how = 'Answer with JSON: {"tool_calls": [{"name": …, "arguments": {…}}]} to call tools'
    how += "." if required else ', or {"response": …} to say something.'
    told = f"You can call these tools:\n{listed}\n\n{how}"
    rest = as_texts(messages)
    if rest and rest[0]["role"] in ("system", "developer") and isinstance(rest[0].get("content"), str):
        first = {**rest[0], "content": f"{rest[0]['content']}\n\n{told}"}
        return [first, *rest[1:]]
    return [{"role": "system", "content": told}, *rest]


def schema(tools: Sequence[Mapping[str, Any]], required: bool, parallel: bool) -> dict[str, Any]:
    """The JSON schema of such an answer.

    Args:
        parallel: whether there can be several calls at once.
    """
    calls = []
    for at, tool in enumerate(tools):
        function = tool["function"]
        parameters = function["parameters"]
        if not isinstance(parameters, Mapping) or not parameters:
            parameters = {"type": "object"}
        elif "$id" not in parameters:
            parameters = {"$id": f"tool:{at}", **parameters}  # references in it are its own
        properties = {"name": {"const": function["name"]}, "arguments": parameters}
        calls.append({"type": "object", "properties": properties, "required": ["name", "arguments"]})
    several = {} if parallel else {"maxItems": 1}
    called = {
        "type": "object", "required": ["tool_calls"],
        "properties": {"tool_calls": {"type": "array", "minItems": 1, **several, "items": {"anyOf": calls}}},
    }  # fmt: skip
    if required:
        return called
    said = {"type": "object", "properties": {"response": {"type": "string"}}, "required": ["response"]}
    return {"anyOf": [called, said]}


def read(text: str) -> dict[str, Any]:
    """The message of such an answer; one that was cut off is given as it is."""
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and isinstance(answer.get("tool_calls"), list):
        calls = [
            {
                "id": "call_" + "".join(secrets.choice(_LETTERS) for _ in range(24)),
                "type": "function",
                "function": {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)},
            }
            for call in answer["tool_calls"]
        ]
        return {"role": "assistant", "content": None, "tool_calls": calls}
    if isinstance(answer, dict) and isinstance(answer.get("response"), str):
        return {"role": "assistant", "content": answer["response"]}
    return {"role": "assistant", "content": text}


def deltas(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A message as stream deltas."""
    if message["content"]:
        yield {"content": message["content"]}
    for index, call in enumerate(message.get("tool_calls", ())):
        yield {"tool_calls": [{"index": index, **call}]}


def as_texts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A conversation with calls and their results as text, for templates that know neither.

    What the user says in a row is one message then: many templates want them to take turns.
    """
    found: list[dict[str, Any]] = []
    for message in messages:
        text, answered = _as_text(message), message["role"] == "tool"
        after_answer = bool(found) and found[-1]["role"] == "user" == text["role"] and (answered or found[-1].get("answered"))
        if after_answer and isinstance(text["content"], str) and isinstance(found[-1]["content"], str):
            found[-1] = {**found[-1], "content": f"{found[-1]['content']}\n\n{text['content']}", "answered": answered}
        else:
            found.append({**text, "answered": answered})
    for message in found:
        del message["answered"]
    return found


def _as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    if message["role"] in ("tool", "function"):
        name = f" {message['name']}" if "name" in message else ""
        return {"role": "user", "content": f"The tool{name} answered:\n{message['content']}"}
    if "tool_calls" in message:
        calls = [
            {"name": call["function"]["name"], "arguments": _parsed(call["function"]["arguments"])}
            for call in message["tool_calls"]
        ]
        text = f"{message['content']}\n" if message.get("content") else ""
        return {"role": "assistant", "content": text + to_json("tool_calls", {"tool_calls": calls})}
    return dict(message)


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments

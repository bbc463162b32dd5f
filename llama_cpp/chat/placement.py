"""Messages where a template does not expect them: instructions in the middle of a conversation, answers of tools nobody called.

Templates refuse them, or leave them out without a word. They are said by the user then.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

_INSTRUCTING = ("system", "developer")


def joined(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with instructions at its beginning in one message: many templates read one only, the first or the last."""
    n = 0
    while n < len(messages) and messages[n]["role"] in _INSTRUCTING and isinstance(messages[n]["content"], str):
        n += 1
    if n < 2:
        return list(messages)
    text = "\n\n".join(message["content"] for message in messages[:n] if message["content"])
    return [{**messages[0], "content": text}, *messages[n:]]


def unusual(messages: Sequence[dict[str, Any]]) -> list[int]:
    """Where messages are that a template may not expect there."""
    found, called = [], 0
    for at, message in enumerate(messages):
        role = message["role"]
        if role == "assistant":
            called = len(message.get("tool_calls", ()))
        elif role == "tool":
            if called <= 0:
                found.append(at)
            called -= 1
        else:
            called = 0
            if role in _INSTRUCTING and at > 0:
                found.append(at)
    return found


def answers(messages: Sequence[dict[str, Any]]) -> list[int]:
    """Where answers of tools are whose text a prompt must have; of JSON a template may write it in another way."""
    found = []
    for at, message in enumerate(messages):
        if message["role"] == "tool" and not any(text.lstrip()[:1] in ("{", "[") for text in _texts(message)):
            found.append(at)
    return found


def thoughtful(messages: Sequence[dict[str, Any]]) -> list[int]:
    """Where the model has said something, and what it thought comes with it."""
    return [at for at, message in enumerate(messages) if "reasoning_content" in message and message.get("content")]


def left_out(messages: Sequence[dict[str, Any]], places: Iterable[int], prompt: str) -> list[int]:
    """Those of the messages whose text the prompt does not have, as it is or as JSON has it."""
    return [at for at in places if not all(_is_in(text, prompt) for text in _texts(messages[at]))]


def as_user(messages: Sequence[dict[str, Any]], places: Iterable[int]) -> list[dict[str, Any]]:
    """The conversation with some messages said by the user; what the user says in a row is one message, as templates want it."""
    moved = set(places)
    found: list[dict[str, Any]] = []
    for at, message in enumerate(messages):
        if at in moved:
            text = "\n".join(_texts(message))
            if message["role"] == "tool":
                name = f" {message['name']}" if "name" in message else ""
                text = f"The tool{name} answered:\n{text}"
            message = {"role": "user", "content": text}
        follows = found and found[-1]["role"] == message["role"] == "user" and (at in moved or at - 1 in moved)
        if follows and isinstance(message["content"], str) and isinstance(found[-1]["content"], str):
            found[-1] = {**found[-1], "content": f"{found[-1]['content']}\n\n{message['content']}"}
        else:
            found.append(dict(message))
    return found


def _texts(message: dict[str, Any]) -> list[str]:
    content = message["content"]
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or () if "text" in part]


def _is_in(text: str, prompt: str) -> bool:
    text = text.strip()  # as many templates do
    return text in prompt or any(json.dumps(text, ensure_ascii=ascii)[1:-1] in prompt for ascii in (False, True))

"""Responses in OpenAI's form, as llama-cpp-python gives them: plain dictionaries.

Source of the shapes: OpenAI's API reference, completions and chat completions; ``timings`` has llama-server's names.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..engine.requests import Generation, TokenLogprobs


def new_id(prefix: str) -> str:
    """A response id such as ``cmpl-…`` or ``chatcmpl-…``."""
    return f"{prefix}-{uuid.uuid4()}"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())


def usage(generation: Generation) -> dict[str, Any]:
    """Token counts of a request."""
    n_completion = len(generation.tokens)
    return {
        "prompt_tokens": generation.n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": generation.n_prompt + n_completion,
        "prompt_tokens_details": {"cached_tokens": generation.n_cached},
    }


def timings(generation: Generation) -> dict[str, Any]:
    """How long a request took: milliseconds, and tokens per second where something was computed."""

    def rate(n: int, seconds: float) -> float:
        return n / seconds if n > 0 and seconds > 0 else 0.0

    n_prompt = generation.n_prompt - generation.n_cached
    # the first token comes with the prompt; the others each took a step
    n_predicted = max(len(generation.tokens) - 1, 0)
    return {
        "cache_n": generation.n_cached,
        "prompt_n": n_prompt,
        "prompt_ms": generation.prompt_seconds * 1e3,
        "prompt_per_second": rate(n_prompt, generation.prompt_seconds),
        "predicted_n": len(generation.tokens),
        "predicted_ms": generation.predicted_seconds * 1e3,
        "predicted_per_second": rate(n_predicted, generation.predicted_seconds),
    }


def text_logprobs(
    entries: Sequence[tuple[TokenLogprobs | None, int]], piece: Callable[[int], bytes], n_before: int, first: int = -1
) -> dict[str, Any]:
    """Log-probabilities in the form of text completions.

    Args:
        entries: tokens, each with where its text begins in characters; None for the ``first`` of a prompt, which follows nothing.
        piece: the bytes of a token.
        n_before: characters before the first one.
    """
    return {
        "tokens": [_text(piece(entry.token if entry is not None else first)) for entry, _ in entries],
        "token_logprobs": [None if entry is None else entry.logprob for entry, _ in entries],
        "top_logprobs": [None if entry is None else _most_probable(entry, piece) for entry, _ in entries],
        "text_offset": [n_before + start for _, start in entries],
    }


def _most_probable(entry: TokenLogprobs, piece: Callable[[int], bytes]) -> dict[str, float]:
    """The most probable tokens by their texts, the chosen one among them; of two with one text the more probable."""
    found: dict[str, float] = {}
    for token, value in entry.top:
        found.setdefault(_text(piece(token)), value)
    if all(token != entry.token for token, _ in entry.top):
        found.setdefault(_text(piece(entry.token)), entry.logprob)
    return found


def chat_logprobs(entries: Sequence[tuple[TokenLogprobs, int]], piece: Callable[[int], bytes]) -> dict[str, Any]:
    """Log-probabilities in the form of chat completions."""

    def one(token: int, value: float) -> dict[str, Any]:
        return {"token": _text(piece(token)), "logprob": value, "bytes": list(piece(token))}

    content = [{**one(entry.token, entry.logprob), "top_logprobs": [one(*pair) for pair in entry.top]} for entry, _ in entries]
    return {"content": content, "refusal": None}


def _text(piece: bytes) -> str:
    """A token's text, or its bytes in OpenAI's form where they are a part of a character only."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def completion(
    id: str, created: int, model: str, text: str, finish_reason: str | None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A text completion, or one chunk of a streamed one."""
    choice = {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}
    return {"id": id, "object": "text_completion", "created": created, "model": model, "choices": [choice]}


def chat_completion(
    id: str, created: int, model: str, message: dict[str, Any], finish_reason: str, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A whole chat completion."""
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish_reason}
    return {"id": id, "object": "chat.completion", "created": created, "model": model, "choices": [choice]}


def told(message: Mapping[str, Any], legacy: bool) -> dict[str, Any]:
    """A message or a delta as clients read it: thoughts under both of their names, and a call in the form that was asked for."""
    found = dict(message)
    if "reasoning_content" in found:
        found["reasoning"] = found["reasoning_content"]
    if legacy and (calls := found.pop("tool_calls", None)):
        # of several there is no way to tell
        first = next((call for call in calls if call.get("index", 0) == 0), None)
        if first is not None:
            found["function_call"] = first["function"]
    return found


def chat_chunk(
    id: str,
    created: int,
    model: str,
    delta: dict[str, Any],
    finish_reason: str | None = None,
    logprobs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One chunk of a streamed chat completion."""
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return {"id": id, "object": "chat.completion.chunk", "created": created, "model": model, "choices": [choice]}

"""JSON schemas of requests: into grammars, into the grammars of chat formats, and what is checked when the answer is there."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import json_schema
from ..errors import GrammarError, InvalidArgumentError
from ..json_schema import Written
from ..json_schema.check import Check
from ..limits import Limits
from ..values import plain

#: How ``llama_common_chat_apply()`` says that a value is written part by part.
_PART_BY_PART = ("members", "items", "union")


def text_of(schema: Any) -> str:
    """A schema as JSON text, as the engine writes it, too: what is made of it is made once."""
    if isinstance(schema, str):
        return schema
    try:
        return json.dumps(schema, default=plain, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"The schema cannot be written as JSON: {error}.") from None


def tool_place(at: int) -> str:
    """How errors name the schema of a tool's arguments."""
    return f'tools[{at}]["function"]["parameters"]'


def told(place: str, make: Callable[[], Any]) -> Any:
    """What ``make`` makes; its errors name the place that the schema has in the request."""
    try:
        return make()
    except GrammarError as error:
        named = GrammarError(f"{place}: {error}")
        named.remedy = error.remedy
        raise named from None


def is_strict_tool(tool: Mapping[str, Any]) -> bool:
    """Whether a tool's arguments are to be held to their schema while they are written: what "strict" does not deny."""
    return tool["function"].get("strict") is not False


def own_grammar(schema: Any, limits: Limits, strict: bool) -> str:
    """The grammar of a schema alone; made of the same rules as the grammar of a chat format with it.

    Raises:
        GrammarError, LimitReachedError: as :func:`~llama_cpp.json_schema.rules`.
    """
    return json_schema.standing_alone(*json_schema.rules(text_of(schema), "#", Written(), limits, strict))


def check_tools(tools: Sequence[Mapping[str, Any]], limits: Limits) -> None:
    """Tells what is wrong with the schemas of tools, before a template is asked.

    Raises:
        GrammarError: of the first that no grammar can be made of.
    """
    for at, tool in enumerate(tools):
        text = text_of(tool["function"]["parameters"])
        told(tool_place(at), functools.partial(json_schema.rules, text, "#", Written(), limits, is_strict_tool(tool)))


def fill(found: dict[str, Any], request: Mapping[str, Any], limits: Limits, strict: bool) -> tuple[int, ...]:
    """Puts the rules of schemas where the grammar of a format has marks for them.

    Args:
        found: of ``llama_common_chat_apply()`` with ``collect_schemas``; changed.
        strict: whether the response's schema must be one that a grammar can express.

    Returns:
        The tools whose arguments the grammar does not hold to their schemas.

    Raises:
        GrammarError, LimitReachedError: a schema of which no rules can be made.
    """
    items, text = found.pop("schemas", []), found["grammar"]
    tools = request.get("tools") or []
    documents = [item["document"] if "document" in item else items[item["same_as"]]["document"] for item in items]
    parameters = [tool["function"]["parameters"] for tool in tools]
    loaded = [json.loads(text_of(schema)) for schema in parameters] if items else []
    owners: dict[str, int | None] = {}
    made: dict[str, str] = {}
    held = set()
    for item, document in zip(items, documents):
        if document not in owners:
            # tools come first: the response's schema is not there where they are
            value = json.loads(document)
            owners[document] = loaded.index(value) if value in loaded else None
        owner = owners[document]
        if not text or not (item["how"] in _PART_BY_PART or item["mark"] in text):
            continue
        held.add(owner)
        hard = strict if owner is None else is_strict_tool(tools[owner])
        place = "response_format" if owner is None else tool_place(owner)
        if item["how"] in _PART_BY_PART:
            told(place, functools.partial(json_schema.check_parts, document, item["place"], item["how"], limits, hard))
            continue
        how = Written("" if item["how"] == "json" else item["how"], item["end"], item["with_end"], item["absent"])
        name, lines = told(place, functools.partial(json_schema.rules, document, item["place"], how, limits, hard))
        made[name] = lines
        text = text.replace(item["mark"], name)
    found["grammar"] = "\n".join([text.rstrip("\n"), *made.values()]) + "\n" if made else text
    if not text:
        return ()
    # tools of the same schema are held alike
    schemas = [parameters[at] for at in held if at is not None]
    return tuple(at for at, schema in enumerate(parameters) if schema not in schemas and not _says_nothing(schema))


def _says_nothing(schema: Any) -> bool:
    """Whether any object satisfies it."""
    if schema is True or schema == {}:
        return True
    if not isinstance(schema, Mapping) or schema.get("type") != "object":
        return False
    named = schema.get("properties") or schema.get("required")
    return not named and set(schema) <= {"type", "properties", "required", "title", "description"}


class AnswerChecks:
    """What is compared when an answer is finished: its content, and the arguments of the tools that are called."""

    def __init__(self, content: str | None, arguments: Mapping[str, str]) -> None:
        self._content = Check(content, "The answer") if content is not None else None
        self._arguments = {name: Check(schema, f"The call of {name!r}") for name, schema in arguments.items()}

    def __call__(self, message: Mapping[str, Any]) -> None:
        """Raises a SchemaViolationError for the first that breaks its schema."""
        calls = message.get("tool_calls") or []
        for call in calls:
            check = self._arguments.get(call["function"]["name"])
            if check is not None:
                check(call["function"]["arguments"] or "{}")
        if self._content is not None and not calls:
            self._content(message.get("content") or "")

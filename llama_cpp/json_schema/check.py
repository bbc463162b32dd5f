"""Whether a finished answer satisfies its schema, where no grammar held it to all of it."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from ..errors import GrammarError, MissingPackageError, SchemaViolationError
from . import patterns
from .automata import Matches, TooLarge, accepts


def can_check() -> bool:
    """Whether ``jsonschema`` is installed."""
    return importlib.util.find_spec("jsonschema") is not None


class Check:
    """Compares texts with a schema, by the package ``jsonschema``.

    Args:
        schema: JSON text. what: how errors name the text, such as "The answer".

    Raises:
        MissingPackageError: ``jsonschema`` is not installed. GrammarError: a pattern is none.
    """

    def __init__(self, schema: str, what: str) -> None:
        try:
            import jsonschema
            from jsonschema import validators
        except ImportError:
            raise MissingPackageError(
                "strict=False checks the finished answer with the package jsonschema, which is not installed.",
                remedy="pip install jsonschema",
            ) from None
        document = json.loads(schema, parse_float=_number)
        self._what = what
        self._patterns: dict[str, Matches | re.Pattern[str]] = {}
        for place, pattern in _patterns(document):
            self._matcher(place, pattern)
        kind = validators.validator_for(document, default=jsonschema.Draft202012Validator)
        self._error = jsonschema.ValidationError
        extend: Any = validators.extend  # its types know no arguments
        kind = extend(kind, {"pattern": self._pattern})
        self._validator = kind(document, format_checker=kind.FORMAT_CHECKER)

    def __call__(self, text: str) -> None:
        """Raises a SchemaViolationError where the text breaks the schema."""
        try:
            value = json.loads(text, parse_float=_number)
        except (ValueError, RecursionError) as error:
            raise SchemaViolationError(self._what, text, "", "#", f"it is not JSON: {error}") from None
        for found in self._validator.iter_errors(value):
            place = "".join(f"/{_word(word)}" for word in found.absolute_path)
            schema_place = "#" + "".join(f"/{_word(word)}" for word in found.absolute_schema_path)
            message = found.message if len(found.message) < 300 else found.message[:299] + "…"
            raise SchemaViolationError(self._what, text, place, schema_place, message)

    def _pattern(self, validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
        if validator.is_type(instance, "string"):
            matcher = self._matcher("pattern", pattern)
            matches = accepts(matcher, instance) if isinstance(matcher, Matches) else bool(matcher.search(instance))
            if not matches:
                yield self._error(f"{instance!r} does not match {pattern!r}")

    def _matcher(self, place: str, pattern: str) -> Matches | re.Pattern[str]:
        if pattern not in self._patterns:
            try:
                self._patterns[pattern] = Matches(patterns.parse(pattern))
            except (patterns.Unsupported, TooLarge):
                # what looks ahead or behind means the same to Python
                try:
                    self._patterns[pattern] = re.compile(pattern)
                except re.error as error:
                    raise GrammarError(f"{place}: {pattern[:80]!r} cannot be looked for: {error}.") from None
        return self._patterns[pattern]


def _word(word: object) -> str:
    return str(word).replace("~", "~0").replace("/", "~1")


def _number(text: str) -> int | Decimal:
    value = Decimal(text)
    return int(value) if value.adjusted() < 400 and value == value.to_integral_value() else value


def _patterns(schema: Any) -> Iterator[tuple[str, str]]:
    todo = [("#", schema)]
    while todo:
        place, value = todo.pop()
        if isinstance(value, Mapping):
            if isinstance(value.get("pattern"), str):
                yield f"{place}/pattern", value["pattern"]
            todo += [
                (f"{place}/{_word(name)}", item)
                for name, item in value.items()
                if name not in ("const", "enum", "default", "examples")
            ]
        elif isinstance(value, list):
            todo += [(f"{place}/{n}", item) for n, item in enumerate(value)]

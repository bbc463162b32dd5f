"""Grammars as objects, under the names llama-cpp-python's users import."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .chat.templates import json_schema_to_grammar
from .engine.grammar_check import check_grammar
from .errors import GrammarError, InvalidArgumentError
from .limits import Limits
from .values import path as read_path

#: The rule that a text begins with.
LLAMA_GRAMMAR_DEFAULT_ROOT = "root"

# --- grammars that programs import ---

_JSON_VALUE = r"""
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (member ("," ws member)*)? "}" ws
member ::= string ":" ws value
array ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= "-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})? ws
ws ::= [ \t\n]{0,20}
"""
#: A JSON object.
JSON_GBNF = "root ::= object\n" + _JSON_VALUE.lstrip()
#: A JSON array.
JSON_ARR_GBNF = "root ::= array\n" + _JSON_VALUE.lstrip()
#: Items of a list, each in a line of its own.
LIST_GBNF = 'root ::= item+\nitem ::= "- " [^\\r\\n\\x0b\\x0c\\x85\\u2028\\u2029]+ "\\n"\n'
#: A sum, product and the like, and what it comes to, in each line.
ARITHMETIC_GBNF = r"""
root ::= (expr "=" ws term "\n")+
expr ::= term ([-+*/] term)*
term ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num ::= [0-9]+ ws
ws ::= [ \t\n]*
""".lstrip()


class LlamaGrammar:
    """A grammar that a text has to follow, in GBNF; ``grammar=`` of completions takes it, and GBNF as a str as well.

    Args:
        _grammar: GBNF.

    Raises:
        GrammarError: it does not parse, with the line and the column. InvalidArgumentError: it is no str.
    """

    def __init__(self, *args: Any, _grammar: str = "", **kwargs: Any) -> None:
        grammar = _grammar or (args[0] if args else "")
        if not isinstance(grammar, str):
            raise InvalidArgumentError(f"A grammar is a str, not {type(grammar).__name__}.", remedy="Give GBNF.")
        check_grammar(grammar)
        self._grammar = grammar
        self._root = LLAMA_GRAMMAR_DEFAULT_ROOT

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        """A grammar from GBNF. ``verbose`` has no effect."""
        return cls(_grammar=grammar)

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], verbose: bool = True) -> LlamaGrammar:
        """A grammar from a file of GBNF, in UTF-8.

        Raises:
            GrammarError: it is empty or does not parse, or the file cannot be read.
        """
        name = read_path("file", file)
        try:
            found = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise GrammarError(f"The grammar file {name} cannot be read: {error}.") from error
        if not found.strip():
            raise GrammarError(f"The grammar file {name} is empty.")
        return cls.from_string(found)

    @classmethod
    def from_json_schema(cls, json_schema: str | dict[str, Any] | type, verbose: bool = True) -> LlamaGrammar:
        """A grammar for the JSON documents that a schema describes: JSON text, a mapping, or a pydantic model."""
        return cls.from_string(json_schema_to_gbnf(json_schema))

    def reset(self) -> None:
        """Does nothing: a grammar has no state of its own."""

    def __repr__(self) -> str:
        return f"LlamaGrammar.from_string({self._grammar!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LlamaGrammar) and other._grammar == self._grammar

    def __hash__(self) -> int:
        return hash(self._grammar)


def json_schema_to_gbnf(schema: str | dict[str, Any] | type, prop_order: Sequence[str] | None = None) -> str:
    """GBNF for the JSON documents that a schema describes.

    Args:
        schema: JSON text, a mapping, or a pydantic model.
        prop_order: names of properties that come first, in this order, whatever the schema's own is.

    Raises:
        GrammarError: not a schema, or one that a grammar cannot express. InvalidArgumentError: not JSON. LimitReachedError.
    """
    if isinstance(schema, type) and callable(getattr(schema, "model_json_schema", None)):
        schema = schema.model_json_schema()  # type: ignore[attr-defined]
    if prop_order:
        schema = _ordered(schema, {name: at for at, name in enumerate(prop_order)})
    return json_schema_to_grammar(schema, Limits())  # type: ignore[arg-type]


def _ordered(schema: Any, places: dict[str, int]) -> Any:
    """The schema with some properties first."""
    import json

    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise InvalidArgumentError(f"The schema is not JSON ({error}).") from None

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            found = {key: walk(item) for key, item in value.items()}
            if isinstance(found.get("properties"), dict):
                names = sorted(found["properties"], key=lambda name: places.get(name, len(places)))
                found["properties"] = {name: found["properties"][name] for name in names}
            return found
        return [walk(item) for item in value] if isinstance(value, list) else value

    return walk(schema)


class SchemaConverter:
    """JSON schema to GBNF, in two steps, as llama.cpp's script of that name has them.

    Args:
        prop_order: the place of properties that are to come first, by name.
    """

    def __init__(
        self, *, prop_order: dict[str, int] | None = None, allow_fetch: bool = False, dotall: bool = False,
        raw_pattern: bool = False,
    ) -> None:  # fmt: skip
        if allow_fetch or dotall or raw_pattern:
            raise InvalidArgumentError(
                "SchemaConverter fetches nothing, and reads patterns as JSON Schema has them.",
                remedy="Leave allow_fetch, dotall and raw_pattern out.",
            )
        self._places = dict(prop_order or {})
        self._grammar = ""

    def resolve_refs(self, schema: dict[str, Any], url: str) -> dict[str, Any]:
        """The schema as it is: references within it are followed by :meth:`visit`."""
        return schema

    def visit(self, schema: dict[str, Any], name: str = "") -> str:
        """Reads a schema; returns the name of its rule."""
        self._grammar = json_schema_to_gbnf(schema, sorted(self._places, key=self._places.__getitem__))
        return LLAMA_GRAMMAR_DEFAULT_ROOT

    def format_grammar(self) -> str:
        """GBNF of the schema that was read."""
        return self._grammar


__all__ = [
    "ARITHMETIC_GBNF", "JSON_ARR_GBNF", "JSON_GBNF", "LIST_GBNF", "LLAMA_GRAMMAR_DEFAULT_ROOT", "LlamaGrammar", "SchemaConverter",
    "json_schema_to_gbnf",
]  # fmt: skip

"""JSON schemas into grammars (GBNF) whose every text is JSON that the schema accepts. Knows nothing of chats."""

from __future__ import annotations

import functools
import json
from typing import Any

from ..errors import GrammarError
from ..limits import Limits
from .budget import Budget
from .compiler import Compiler
from .document import Document
from .gbnf import Grammar


def parse(text: str) -> Any:
    """A schema from its JSON text.

    Raises:
        InvalidArgumentError: not JSON. GrammarError: nested too deep.
    """
    from ..errors import InvalidArgumentError

    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise GrammarError("The JSON schema is nested too deep to be read.") from None
    except ValueError as error:
        raise InvalidArgumentError(f"The JSON schema is not valid JSON: {error}.") from None


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


@functools.lru_cache(maxsize=128)
def grammar(text: str, limits: Limits = Limits(), strict: bool = True) -> str:
    """The GBNF grammar of the JSON that a schema, given as JSON text, accepts; its first rule is ``root``.

    Args:
        limits: what it may cost.
        strict: whether a keyword that a grammar cannot express is an error, or left out.

    Raises:
        InvalidArgumentError: not JSON.
        GrammarError: no schema, one that a grammar cannot express, or that nothing satisfies; with the keyword and its place.
        LimitReachedError: it costs too much.
    """
    document = Document(parse(text))
    made = Grammar(Budget(limits.seconds, limits.grammar_bytes))
    try:
        return Compiler(document, made, strict).compile(document.root, "root")
    except RecursionError:
        raise GrammarError("The JSON schema is nested too deep for a grammar.") from None

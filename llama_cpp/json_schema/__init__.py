"""JSON schemas into grammars (GBNF) whose every text is JSON that the schema accepts. Knows nothing of chats."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from ..errors import GrammarError, InvalidArgumentError
from ..limits import Limits
from . import parts
from .budget import Budget
from .compiler import SPACE_RULE, Compiler
from .document import Document
from .gbnf import Grammar


def parse(text: str) -> Any:
    """A schema from its JSON text.

    Raises:
        InvalidArgumentError: not JSON. GrammarError: nested too deep.
    """
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
    return _compiled(text, "#", Written(), "root", "", limits, strict)


@dataclass(frozen=True)
class Written:
    """How a value is written into an answer: as JSON, or a string raw until ``end``.

    Attributes:
        raw: "" for JSON, "string", or "mixed": other values are written as JSON, so no string reads as such.
        with_end: whether the rule has ``end``, too. absent: what a raw string must not hold, besides.
    """

    raw: str = ""
    end: str = ""
    with_end: bool = False
    absent: str = ""


@functools.lru_cache(maxsize=1024)
def rules(text: str, place: str, written: Written, limits: Limits = Limits(), strict: bool = True) -> tuple[str, str]:
    """The rules of the schema at a place of a document, for use in another grammar: the name of the first, and all of them.

    The grammar must have the rule ``space``; names are the same for the same schema, and else no other's.

    Raises:
        As :func:`grammar`.
    """
    digest = hashlib.sha256(repr((text, place, written, strict)).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    prefix = f"schema-{digest}-"
    lines = _compiled(text, place, written, f"{prefix}root", prefix, limits, strict).splitlines()
    return f"{prefix}root", "\n".join(line for line in lines if not line.startswith("space ::="))


def standing_alone(name: str, lines: str) -> str:
    """The grammar of what :func:`rules` gives, and nothing else."""
    return f"root ::= {name}\n{SPACE_RULE}\n{lines}\n"


def _compiled(text: str, place: str, written: Written, name: str, prefix: str, limits: Limits, strict: bool) -> str:
    document = Document(parse(text))
    try:
        with Budget(limits.seconds, limits.grammar_bytes).used() as budget:
            compiler = Compiler(document, Grammar(budget, prefix), strict)
            node = document.locate(place)
            if not written.raw:
                return compiler.compile(node, name)
            mixed = written.raw == "mixed"
            return compiler.compile_raw(node, name, written.end, with_end=written.with_end, mixed=mixed, absent=written.absent)
    except RecursionError:
        raise GrammarError("The JSON schema is nested too deep for a grammar.") from None


def check_parts(text: str, place: str, how: str, limits: Limits = Limits(), strict: bool = True) -> None:
    """Whether an object or array at a place of a document satisfies its schema when each of its parts does.

    Args:
        how: "members", "items" or "union", as ``llama_common_chat_apply()`` says.

    Raises:
        GrammarError: it need not; with the keyword and its place.
    """
    document = Document(parse(text))
    with Budget(limits.seconds, limits.grammar_bytes).used() as budget:
        parts.check(Compiler(document, Grammar(budget), strict), document.locate(place), how)

"""Objects and arrays that a chat template writes part by part: what their schemas say about the whole must be what it keeps to.

Such a template writes the arguments that a schema names, those that are required and others, each held to its own schema. What
else may be said about an object (how many members, which go together) nothing holds it to.
"""

from __future__ import annotations

from ..errors import GrammarError
from . import arrays, objects
from .alternatives import ASSERTIONS
from .compiler import Compiler
from .document import Document, Node
from .negation import disjoint

_APPLICATORS = {
    "$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "not", "if", "dependentRequired", "dependentSchemas",
    "dependencies",
}  # fmt: skip
_KEPT = {
    "members": {"type", "properties", "required", "additionalProperties", "unevaluatedProperties"},
    "items": {"type", "items", "minItems", "maxItems"},
    "union": {"anyOf", "oneOf"},
}
_OF_SCALARS = {
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern", "format",
}  # fmt: skip
#: What says nothing about values of that kind.
_OF_OTHERS: dict[str, set[str]] = {
    "members": _OF_SCALARS | arrays.KEYWORDS,
    "items": _OF_SCALARS | objects.KEYWORDS,
    "union": set(),
}


def check(compiler: Compiler, node: Node, how: str) -> None:
    """Whether what is written part by part satisfies the schema then.

    Args:
        how: "members", "items" or "union", as ``llama_common_chat_apply()`` says.

    Raises:
        GrammarError: it need not.
    """
    document = compiler.document
    document.check(node)
    schema = node.schema
    if isinstance(schema, bool):
        if not schema:
            raise GrammarError(f"{node.place}: it is false, which nothing satisfies.")
        return
    types = schema.get("type")
    if how == "union" and isinstance(types, list) and "anyOf" not in schema and "oneOf" not in schema:
        return  # one of several types, each with all the rest of it
    for word in schema:
        if word in (ASSERTIONS | _APPLICATORS) - _KEPT[how] - _OF_OTHERS[how]:
            if word == "minProperties" and schema[word] <= len(schema.get("required", ())):
                continue
            if word == "maxProperties" and schema[word] >= len(schema.get("properties", ())):
                continue
            compiler.unsupported(
                node.at(word), word, f"this chat template writes arguments one by one, and {word} is about all of them"
            )
    if how == "members":
        for name in schema.get("required", ()):
            if name not in schema.get("properties", ()):
                compiler.unsupported(
                    node.at("required"), "required", f"{name!r} is required and no property: this chat template cannot write it"
                )
    if "oneOf" in schema and how == "union":
        _check_alternatives(compiler, document, node)


def _check_alternatives(compiler: Compiler, document: Document, node: Node) -> None:
    branches = [document.child(node, "oneOf", n) for n in range(len(node.schema["oneOf"]))]
    for n, one in enumerate(branches):
        for m in range(n):
            if not disjoint(document, one, branches[m]):
                compiler.unsupported(node.at("oneOf"), "oneOf", f"a value may satisfy both its alternatives {m} and {n}")

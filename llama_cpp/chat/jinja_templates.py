"""Chat templates of the user's own, rendered by jinja2 in a sandbox that changes nothing, reaches nothing, and has limits."""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.runtime import str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..capi.interrupts import is_unwanted
from ..errors import ChatTemplateError, LimitReachedError
from ..limits import Limits

#: Lines of a template that run between two looks at the time.
_LINES_BETWEEN_TICKS = 200
#: Characters of a text at most, whatever the limits: several are there at once.
_LONGEST = 1 << 26


class JinjaTemplate:
    """A chat template.

    Args:
        source: Jinja. bos_token, eos_token: what these variables are in it.
        limits: what it may cost: seconds, and bytes of each text that it makes.

    Raises:
        ChatTemplateError: it does not parse.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "", limits: Limits = Limits()) -> None:
        environment = _Sandbox(min(limits.template_bytes, _LONGEST))
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise ChatTemplateError(f"The chat template does not parse: {error}.") from error
        # what ~ compiles to
        self._template.root_render_func.__globals__["str_join"] = environment.join
        self._limits = limits
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The prompt of a conversation.

        Raises:
            ChatTemplateError: the template refused the conversation, or reached for what it may not.
            LimitReachedError: it costs too much, or nobody waits any more.
        """
        given = {name: value for name, value in variables.items() if value is not None}
        # dates under the names that templates of some families ask for
        dates = {"date_string": _now("%d %b %Y"), "datetime": _now("%b %d %Y")}
        context = {"messages": messages, "add_generation_prompt": add_generation_prompt, **self._tokens, **dates, **given}
        try:
            return _within(self._limits.seconds, lambda: self._template.render(**context))
        except LimitReachedError:
            raise
        except Exception as error:  # whatever the template does
            raise ChatTemplateError(f"The chat template refused the messages: {error}.") from error


def _within(seconds: float, render: Callable[[], str]) -> str:
    """Runs a template with its lines counted: loops without output are heard of in no other way."""
    end = time.monotonic() + seconds if seconds else float("inf")
    left = _LINES_BETWEEN_TICKS

    def line(_frame: Any, event: str, _argument: Any) -> Any:
        nonlocal left
        left -= 1
        if left <= 0:
            left = _LINES_BETWEEN_TICKS
            if time.monotonic() > end:
                raise _too_much(f"takes more than {seconds:g} s")
            if is_unwanted():
                raise LimitReachedError("nobody waits any more for the chat template.")
        return line

    def call(frame: Any, _event: str, _argument: Any) -> Any:
        return line if frame.f_code.co_filename == "<template>" else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        return render()
    finally:
        sys.settrace(before)


def _too_much(what: str) -> LimitReachedError:
    return LimitReachedError(f"the chat template {what}.", remedy="Simplify it, or raise Limits(…).")


class _Generation(Extension):
    """``{% generation %}`` marks what a model is trained to write; in a prompt it means nothing."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 has it

    def parse(self, parser: Any) -> list[nodes.Node]:
        """What is between the tags."""
        next(parser.stream)
        found: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return found


class _Sandbox(ImmutableSandboxedEnvironment):
    """A sandbox in which no text is longer than ``n_most``; 0 is no limit."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, n_most: int) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
        self._n_most = n_most or sys.maxsize
        self.filters["tojson"] = self._to_json
        for name in ("replace", "join", "indent", "center", "format", "wordwrap", "urlize"):
            self.filters[name] = self._guarded(self.filters[name], name)
        self.globals.update(raise_exception=_refuse, strftime_now=_now)

    def _check(self, n: int) -> None:
        if n > self._n_most:
            raise _too_much(f"makes a text of more than {self._n_most} bytes")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, (str, list, tuple)) and isinstance(other, int):
                    self._check(len(one) * other)
        elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            self._check(len(left) + len(right))
        elif operator == "**":
            self._check(abs(right) * 64 if isinstance(right, int) else 0)
        elif operator == "%" and isinstance(left, str):
            raise ValueError("% is not for texts here")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **keywords: Any) -> Any:  # as jinja2 has it
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            __self._check(_size(__obj.__name__, owner, *args, **keywords))
        return super().call(__context, __obj, *args, **keywords)

    def join(self, parts: Any) -> str:
        """What ``~`` does."""
        texts = [str(part) for part in parts]
        self._check(sum(map(len, texts)))
        return str_join(texts)

    def _guarded(self, function: Any, name: str) -> Any:
        # jinja2 looks at marks on the function for what else it is to be given
        def guarded(*args: Any, **keywords: Any) -> Any:
            given = [arg for arg in args if arg is not self and type(arg).__name__ not in ("EvalContext", "Context")]
            if name == "join" and given:
                given[0] = list(given[0])
                args = (*args[: len(args) - len(given)], *given)
            self._check(_size(name, *given, **keywords))
            return function(*args, **keywords)

        for mark in ("jinja_pass_arg", "jinja_async_variant"):
            if hasattr(function, mark):
                setattr(guarded, mark, getattr(function, mark))
        return guarded

    def _to_json(self, value: Any, indent: int | None = None, ensure_ascii: bool = False, **_: Any) -> str:
        self._check((indent or 0) * 8)
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)


def _size(name: str, text: Any, *args: Any, **keywords: Any) -> int:
    """How long what comes out may be, at most."""
    numbers = [arg for arg in (*args, *keywords.values()) if isinstance(arg, int)]
    texts = [str(arg) for arg in (*args, *keywords.values()) if isinstance(arg, str)]
    if name in ("ljust", "rjust", "center", "zfill"):
        return max([0, *numbers])
    if name == "expandtabs":
        return len(text) * max([8, *numbers])
    if name == "replace" and len(texts) == 2:
        count = str(text).count(texts[0]) if texts[0] else len(str(text)) + 1
        return len(str(text)) + count * len(texts[1])
    if name == "join":
        if isinstance(text, list):  # the filter: the items, and what is between them
            return sum(len(str(item)) for item in text) + len(text) * sum(map(len, texts))
        items = args[0] if args and isinstance(args[0], (list, tuple)) else ()
        return sum(len(str(item)) for item in items) + len(items) * len(text)
    if name in ("indent", "wordwrap", "urlize"):
        return len(str(text)) + (str(text).count("\n") + 1) * max([4, *numbers, *map(len, texts)])
    if name in ("format", "format_map"):
        # {:1000000000}
        digits = "".join(char if char.isdigit() else " " for char in str(text)).split()
        return len(str(text)) + sum(map(len, texts)) + sum(map(int, digits)) + sum(numbers)
    return 0


def _refuse(message: str) -> None:
    raise ValueError(message)


def _now(format: str) -> str:
    return datetime.datetime.now().strftime(format)

"""Values that callers give. Numbers of numpy and the like are numbers, as Python's own; another kind is an error that says so."""

from __future__ import annotations

import operator
import os
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import InvalidArgumentError


def refused(name: str, value: object, must: str, remedy: str = "") -> InvalidArgumentError:
    """The error of an argument that ``must`` be something else."""
    try:
        shown = reprlib.repr(value)
    except Exception:  # it is the caller's own code
        shown = f"<{type(value).__name__}>"
    return InvalidArgumentError(f"{name}={shown} must be {must}.", remedy=remedy)


def integer(name: str, value: Any, least: int | None = None, most: int | None = None, remedy: str = "") -> int:
    """A whole number from ``least`` to ``most``.

    Raises:
        InvalidArgumentError: of another kind (True is not 1), or out of that range.
    """
    found = None
    if not _is_truth(value):
        try:
            found = operator.index(value)
        except (TypeError, ValueError):  # an array of several
            found = None
    if found is None or (least is not None and found < least) or (most is not None and found > most):
        raise refused(name, value, f"a whole number{_range(least, most)}", remedy)
    return found


def number(name: str, value: Any) -> float:
    """A number that a double can hold; it may be infinite, or none.

    Raises:
        InvalidArgumentError: of another kind, or too large.
    """
    if not _is_truth(value) and (hasattr(type(value), "__float__") or hasattr(type(value), "__index__")):
        try:
            return float(value)
        except OverflowError:
            raise refused(name, value, "a number below 1.8e308") from None
        except (TypeError, ValueError):  # an array of several
            pass
    raise refused(name, value, "a number")


def flag(name: str, value: Any, *, none: bool | None = None) -> bool:
    """True or False, which 1 and 0 are as well; ``none`` is what None means, where it means something.

    Raises:
        InvalidArgumentError: of another kind.
    """
    if value is None and none is not None:
        return none
    if _is_truth(value):
        return bool(value)
    try:
        return {0: False, 1: True}[operator.index(value)]
    except (TypeError, ValueError, KeyError):
        raise refused(name, value, "True or False") from None


def text(name: str, value: Any) -> str:
    """A str.

    Raises:
        InvalidArgumentError: of another kind.
    """
    if not isinstance(value, str):
        raise refused(name, value, "a str")
    return value


def path(name: str, value: Any) -> str:
    """A file's path.

    Raises:
        InvalidArgumentError: of another kind, or one that no file can have.
    """
    try:
        found = os.fsdecode(os.fspath(value))
    except TypeError:
        raise refused(name, value, "a path") from None
    if "\0" in found:
        raise refused(name, value, "a path", "No file's name has a NUL character.")
    try:
        os.fsencode(found)
    except UnicodeEncodeError:
        raise refused(name, value, "a path", "No file's name has such characters.") from None
    return found


def items(name: str, value: Any, must: str = "a list") -> list[Any]:
    """What is in a list, an array or whatever else gives its items one by one; a text or a mapping is no list.

    Raises:
        InvalidArgumentError: something else.
    """
    if not isinstance(value, (str, bytes, bytearray, memoryview, Mapping)) and isinstance(value, Iterable):
        try:
            return list(value)
        except TypeError:  # an array without a dimension
            pass
    raise refused(name, value, must)


def token_ids(name: str, value: Any) -> list[int]:
    """Token ids, of a list, an array or whatever else gives them one by one.

    Raises:
        InvalidArgumentError: something else, or something else among them.
    """
    given = items(name, value, "a list of token ids")
    return [item if type(item) is int else integer(f"{name}[{at}]", item) for at, item in enumerate(given)]


def plain(value: Any) -> Any:
    """For ``json.dumps(default=…)``: numbers and lists of numpy's as Python's.

    Raises:
        TypeError: it is something else.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")


def _is_truth(value: Any) -> bool:
    """Whether it is a bool of Python's or numpy's."""
    return isinstance(value, bool) or (
        getattr(getattr(value, "dtype", None), "kind", "") == "b" and not getattr(value, "shape", ())
    )


def _range(least: int | None, most: int | None) -> str:
    if most is None:
        return "" if least is None else f", {least} or more"
    return f" from {least} to {most}"

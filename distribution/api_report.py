"""What changed in llama.cpp's C API between two header trees."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import HeaderError, ToolNotFoundError
from .interruption import run_program

HEADERS = (
    "include/llama.h",
    "ggml/include/ggml.h",
    "ggml/include/ggml-alloc.h",
    "ggml/include/ggml-backend.h",
    "ggml/include/ggml-cpu.h",
    "ggml/include/ggml-cuda.h",
    "ggml/include/ggml-rpc.h",
    "ggml/include/ggml-opt.h",
    "ggml/include/gguf.h",
    "tools/mtmd/mtmd.h",
    "tools/mtmd/mtmd-helper.h",
)
INCLUDE = ("include", "ggml/include", "tools/mtmd")


@dataclass
class Api:
    """What headers declare.

    Attributes:
        functions: name → prototype.
        fields: ``struct.field`` → its type and position, for example ``int32_t (#3)``.
        constants: name of an enumerator → its value.
    """

    functions: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)


def require_libclang() -> Any:
    """Import libclang's Python module.

    Raises:
        ToolNotFoundError: it is not installed.
    """
    try:
        import clang.cindex
    except ImportError:
        raise ToolNotFoundError("comparing headers needs libclang", "pip install libclang") from None
    return clang.cindex


def read_api(tree: Path) -> Api:
    """Parse the public C headers below a llama.cpp tree; those it lacks count as empty.

    Raises:
        ToolNotFoundError: libclang or a C compiler, for its stddef.h, is not installed.
        HeaderError: a header does not parse.
    """
    cindex = require_libclang()
    arguments = ["-x", "c", "-std=c11", "-isystem", _compiler_headers(), *(f"-I{tree / folder}" for folder in INCLUDE)]
    index = cindex.Index.create()
    api = Api()
    for header in HEADERS:
        if os.path.exists(tree / header):
            unit = _parse(index, tree / header, arguments, cindex)
            _refuse_errors(unit, header, cindex)
            for cursor in unit.cursor.get_children():
                if cursor.location.file and cursor.location.file.name == str(tree / header):
                    _add(api, cursor, cindex.CursorKind)
    return api


def _parse(index: Any, header: Path, arguments: list[str], cindex: Any) -> Any:
    try:
        return index.parse(str(header), args=arguments)
    except cindex.TranslationUnitLoadError as error:
        raise HeaderError(f"{header.name} cannot be read as C: {error}", "look at the header") from None


def _compiler_headers() -> str:
    for compiler in ("cc", "gcc", "clang"):
        if shutil.which(compiler):
            done = run_program([compiler, "-print-file-name=include"])
            if done.returncode == 0:
                return done.stdout.strip()
    raise ToolNotFoundError("parsing headers needs a C compiler's stddef.h", "install gcc (Debian: apt-get install gcc)")


def _refuse_errors(unit: Any, header: str, cindex: Any) -> None:
    errors = [str(one) for one in unit.diagnostics if one.severity >= cindex.Diagnostic.Error]
    if errors:
        raise HeaderError(f"{header} does not parse as C:\n    " + "\n    ".join(errors[:3]), "look at the header")


def _add(api: Api, cursor: Any, kinds: Any) -> None:
    if cursor.kind == kinds.FUNCTION_DECL:
        api.functions[cursor.spelling] = _prototype(cursor)
    elif cursor.kind in (kinds.STRUCT_DECL, kinds.UNION_DECL) and cursor.is_definition():
        _add_fields(api, cursor, cursor.spelling, kinds)
    elif cursor.kind == kinds.ENUM_DECL:
        for constant in cursor.get_children():
            if constant.kind == kinds.ENUM_CONSTANT_DECL:
                api.constants[constant.spelling] = str(constant.enum_value)
    elif cursor.kind == kinds.TYPEDEF_DECL:
        declaration = cursor.underlying_typedef_type.get_declaration()
        # `typedef struct { … } name;`: the structure has no name of its own
        if declaration.kind in (kinds.STRUCT_DECL, kinds.UNION_DECL) and declaration.is_anonymous():
            _add_fields(api, declaration, cursor.spelling, kinds)


def _add_fields(api: Api, cursor: Any, name: str, kinds: Any, within: str = "") -> None:
    if not within and (not name or "(" in name):
        return
    for position, member in enumerate(cursor.type.get_fields(), start=1):
        place = f"{within}#{position}"
        declaration = member.type.get_declaration()
        if member.is_anonymous() or not member.spelling.isidentifier():
            # the members of an anonymous union are named as the structure's own
            _add_fields(api, declaration, name, kinds, f"{place}.")
        else:
            api.fields[f"{name}.{member.spelling}"] = f"{_type_name(member.type)} ({place})"


def _type_name(kind: Any) -> str:
    # an unnamed type is spelled with the path and line of its declaration, which differ between trees
    return "(anonymous)" if "(unnamed" in kind.spelling or "(anonymous" in kind.spelling else kind.spelling


def _prototype(cursor: Any) -> str:
    parameters = [f"{argument.type.spelling} {argument.spelling}".strip() for argument in cursor.get_arguments()]
    if cursor.type.is_function_variadic():
        parameters.append("...")
    return f"{cursor.result_type.spelling} {cursor.spelling}({', '.join(parameters) or 'void'})"


def compare(old: Api, new: Api) -> str:
    """The differences, as text: ``+`` added, ``-`` removed, ``~`` changed."""
    parts = [
        _section("functions", old.functions, new.functions, named=True),
        _section("struct fields", old.fields, new.fields),
        _section("enum constants", old.constants, new.constants),
    ]
    return "\n".join(part for part in parts if part) or "the C API is unchanged"


def _section(title: str, old: Mapping[str, str], new: Mapping[str, str], named: bool = False) -> str:
    """``named``: the values hold the names already."""

    def show(name: str, values: Mapping[str, str]) -> str:
        return values[name] if named else f"{name}: {values[name]}"

    added = sorted(new.keys() - old.keys())
    removed = sorted(old.keys() - new.keys())
    changed = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
    if not (added or removed or changed):
        return ""
    lines = [f"{title}: {len(added)} added, {len(removed)} removed, {len(changed)} changed"]
    lines += [f"  + {show(name, new)}" for name in added]
    lines += [f"  - {show(name, old)}" for name in removed]
    for name in changed:
        lines += [f"  ~ {show(name, old)}", f"    becomes {new[name]}"]
    return "\n".join(lines)

"""Reads C headers with libclang into plain records. Knows C; what Python makes of it is _bindings_emit's."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import subprocess
from collections.abc import Iterator

from clang.cindex import (
    AvailabilityKind,
    Cursor,
    CursorKind,
    Diagnostic,
    Index,
    StorageClass,
    TokenKind,
    TranslationUnit,
    Type,
    TypeKind,
)


class HeaderError(Exception):
    """A header does not parse, or holds something the generator has no rule for."""


# --- what a header says ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class CType:
    """A C type.

    Attributes:
        kind: "void", "scalar" (a type of the language or of stdint.h), "enum", "typedef", "record",
            "opaque" (a struct without a definition in our headers), "pointer", "array" or "function".
        spelling: as C writes it, without const.
        name: the tag or typedef name, where there is one.
        target: what a pointer points to, an array holds, a typedef means, a function returns.
        parameters: of a function.
        size: of an array.
    """

    kind: str
    spelling: str
    name: str = ""
    target: CType | None = None
    parameters: tuple[CType, ...] = ()
    size: int = 0
    const: bool = False

    @property
    def inner(self) -> CType:
        """The target of a kind that has one."""
        if self.target is None:
            raise HeaderError(f"{self.spelling or self.kind} is made of no other type")
        return self.target

    def resolved(self) -> CType:
        return self.target.resolved() if self.kind == "typedef" and self.target else self


@dataclasses.dataclass(frozen=True)
class Macro:
    name: str
    value: str  # a Python literal
    offset: int


@dataclasses.dataclass(frozen=True)
class Enum:
    name: str  # empty where C gives none
    base: str  # the underlying integer type
    constants: tuple[tuple[str, int], ...]
    offset: int


@dataclasses.dataclass(frozen=True)
class Typedef:
    name: str
    type: CType
    offset: int


@dataclasses.dataclass(frozen=True)
class Field:
    name: str
    type: CType
    bits: int | None
    anonymous: bool


@dataclasses.dataclass(frozen=True)
class Record:
    name: str
    spelling: str  # how C names it: "struct x", "union x", "x", or "struct x.member" for a nested one without a tag
    union: bool
    fields: tuple[Field, ...]
    nested: tuple[Record, ...]  # defined inside this one, without a tag
    offset: int


@dataclasses.dataclass(frozen=True)
class Opaque:
    """A struct declared without a definition."""

    name: str
    offset: int


@dataclasses.dataclass(frozen=True)
class Function:
    name: str
    returns: CType
    parameters: tuple[tuple[str, CType], ...]
    prototype: tuple[str, tuple[str, ...]]  # "const char * name", ("int32_t a", …)
    deprecated: bool
    obstacle: str  # why ctypes cannot call it by name: "variadic", "inline", or nothing
    offset: int


Declaration = Macro | Enum | Typedef | Record | Opaque | Function

STDINT = {
    "int8_t", "int16_t", "int32_t", "int64_t", "uint8_t", "uint16_t", "uint32_t", "uint64_t",
    "size_t", "ssize_t", "intptr_t", "uintptr_t",
}  # fmt: skip

BUILTIN = {
    TypeKind.BOOL: "bool",
    TypeKind.CHAR_S: "char",
    TypeKind.CHAR_U: "char",
    TypeKind.SCHAR: "signed char",
    TypeKind.UCHAR: "unsigned char",
    TypeKind.SHORT: "short",
    TypeKind.USHORT: "unsigned short",
    TypeKind.INT: "int",
    TypeKind.UINT: "unsigned int",
    TypeKind.LONG: "long",
    TypeKind.ULONG: "unsigned long",
    TypeKind.LONGLONG: "long long",
    TypeKind.ULONGLONG: "unsigned long long",
    TypeKind.FLOAT: "float",
    TypeKind.DOUBLE: "double",
}


class Parser:
    """All headers as one translation unit, so that a struct opaque in one and defined in another is known.

    Args:
        headers: the headers, in an order in which each may use those before it.
        include: folders to search for what they include.
        anonymous: names for members without one, by record.
    """

    def __init__(self, headers: list[pathlib.Path], include: list[pathlib.Path], anonymous: dict[str, list[str]]) -> None:
        self._headers = {str(header): header for header in headers}
        self._anonymous = anonymous
        self._arguments = ["-x", "c", "-std=c11", "-isystem", _compiler_headers()]
        self._arguments += [f"-I{folder}" for folder in include]
        self._source = "".join(f'#include "{header}"\n' for header in headers)
        self._unit = self._parse(self._source, TranslationUnit.PARSE_DETAILED_PROCESSING_RECORD)
        _raise_errors(self._unit)
        # A struct without a tag goes by its typedef's name.
        self._typedef_names: dict[str, str] = {}
        for cursor in self._declarations():
            if cursor.kind == CursorKind.TYPEDEF_DECL:
                declared = cursor.underlying_typedef_type.get_declaration()
                if declared.kind in (CursorKind.STRUCT_DECL, CursorKind.UNION_DECL, CursorKind.ENUM_DECL):
                    self._typedef_names.setdefault(_identity(declared), cursor.spelling)

    def header(self, path: pathlib.Path) -> list[Declaration]:
        """The declarations of one header, in its order."""
        declarations: dict[str, Declaration] = {}
        for cursor in self._declarations(str(path)):
            declaration = None if cursor.kind.is_preprocessing() else self._declaration(cursor)
            if declaration:
                declarations.setdefault(f"{type(declaration).__name__} {declaration.name}", declaration)
        return sorted([*declarations.values(), *self._macros(str(path))], key=lambda each: each.offset)

    def _declarations(self, header: str | None = None) -> Iterator[Cursor]:
        for cursor in self._unit.cursor.get_children():
            file = cursor.location.file
            if file and (file.name == header if header else file.name in self._headers):
                yield cursor

    def _declaration(self, cursor: Cursor) -> Declaration | None:
        offset = cursor.location.offset
        if cursor.kind in (CursorKind.STRUCT_DECL, CursorKind.UNION_DECL):
            if cursor.is_definition():
                return self._record(cursor)
            return None if cursor.get_definition() else Opaque(cursor.spelling, offset)
        if cursor.kind == CursorKind.ENUM_DECL:
            constants = tuple((each.spelling, each.enum_value) for each in cursor.get_children())
            return Enum(self._name(cursor), BUILTIN[cursor.enum_type.kind], constants, offset)
        if cursor.kind == CursorKind.TYPEDEF_DECL:
            meaning = self._type(cursor.underlying_typedef_type)
            return None if meaning.name == cursor.spelling else Typedef(cursor.spelling, meaning, offset)
        if cursor.kind == CursorKind.FUNCTION_DECL:
            return self._function(cursor)
        if cursor.kind == CursorKind.VAR_DECL and cursor.storage_class == StorageClass.STATIC:
            value = self._integers([cursor.spelling]).get(cursor.spelling)
            if value is not None:
                return Macro(cursor.spelling, str(value), offset)
        raise HeaderError(f"{cursor.location.file}:{cursor.location.line}: no rule for {cursor.kind.name}")

    # --- records ----------------------------------------------------------------------------------

    def _name(self, cursor: Cursor) -> str:
        if _identity(cursor) in self._typedef_names and not self._tag(cursor):
            return self._typedef_names[_identity(cursor)]
        return self._tag(cursor)

    @staticmethod
    def _tag(cursor: Cursor) -> str:
        tokens = [token.spelling for _, token in zip(range(2), cursor.get_tokens(), strict=False)]
        return tokens[1] if len(tokens) == 2 and tokens[1].isidentifier() else ""

    def _record(self, cursor: Cursor, name: str = "", spelling: str = "") -> Record:
        union = cursor.kind == CursorKind.UNION_DECL
        if not name:
            name = self._name(cursor)
            spelling = f"{'union' if union else 'struct'} {name}" if self._tag(cursor) else name
        fields: list[Field] = []
        nested: list[Record] = []
        unnamed: dict[str, Cursor] = {}  # struct { … } seen, and not yet known to be a field's type
        for child in cursor.get_children():
            if child.kind in (CursorKind.STRUCT_DECL, CursorKind.UNION_DECL) and not self._tag(child):
                unnamed[_identity(child)] = child
                index = sum(field.anonymous for field in fields)
                names = self._anonymous.get(name, [])
                member = names[index] if index < len(names) else f"anonymous_{index}"
                inner = self._record(child, f"{name}_{member}", f"{spelling}.(anonymous)")
                nested.append(inner)
                fields.append(Field(member, CType("record", inner.spelling, inner.name), None, anonymous=True))
            elif child.kind == CursorKind.FIELD_DECL:
                declared = _element(child.type).get_declaration()
                if _identity(declared) in unnamed:  # the struct just seen was this field's type
                    fields.pop()
                    nested.pop()
                    inner = self._record(declared, f"{name}_{child.spelling}", f"{spelling}.{child.spelling}")
                    nested.append(inner)
                    if child.type.kind == TypeKind.CONSTANTARRAY:
                        raise HeaderError(f"{spelling}.{child.spelling}: an array of a struct without a tag")
                    kind = CType("record", inner.spelling, inner.name)
                else:
                    kind = self._type(child.type)
                bits = child.get_bitfield_width() if child.is_bitfield() else None
                fields.append(Field(child.spelling, kind, bits, anonymous=False))
        return Record(name, spelling, union, tuple(fields), tuple(nested), cursor.location.offset)

    # --- functions --------------------------------------------------------------------------------

    def _function(self, cursor: Cursor) -> Function:
        kind = cursor.type
        variadic = kind.kind == TypeKind.FUNCTIONPROTO and kind.is_function_variadic()
        inline = cursor.storage_class == StorageClass.STATIC or cursor.is_definition()
        returns = self._type(cursor.result_type)
        arguments = [(argument.spelling, self._type(argument.type)) for argument in cursor.get_arguments()]
        parameters = [_declare(kind, name) for name, kind in arguments]
        if variadic:
            parameters.append("...")
        return Function(
            name=cursor.spelling,
            returns=returns,
            parameters=tuple((name or f"arg{i}", _passed(kind)) for i, (name, kind) in enumerate(arguments)),
            prototype=(f"{returns.spelling} {cursor.spelling}", tuple(parameters or ["void"])),
            deprecated=cursor.availability == AvailabilityKind.DEPRECATED,
            obstacle="variadic" if variadic else "inline" if inline else "",
            offset=cursor.location.offset,
        )

    # --- types ------------------------------------------------------------------------------------

    def _type(self, kind: Type) -> CType:
        described = self._unqualified(kind)
        if not kind.is_const_qualified():
            return described
        pointer = described.kind == "pointer" and described.spelling.endswith("*")
        spelling = f"{described.spelling} const" if pointer else f"const {described.spelling}"
        return dataclasses.replace(described, spelling=spelling, const=True)

    def _unqualified(self, kind: Type) -> CType:
        if kind.kind == TypeKind.VOID:
            return CType("void", "void")
        if kind.kind in BUILTIN:
            return CType("scalar", BUILTIN[kind.kind], BUILTIN[kind.kind])
        if kind.kind == TypeKind.POINTER:
            target = self._type(kind.get_pointee())
            if target.kind == "function":
                accepted = ", ".join(parameter.spelling for parameter in target.parameters) or "void"
                return CType("pointer", f"{target.inner.spelling} (*)({accepted})", target=target)
            star = "*" if target.spelling.endswith("*") else " *"
            return CType("pointer", f"{target.spelling}{star}", target=target)
        if kind.kind in (TypeKind.CONSTANTARRAY, TypeKind.INCOMPLETEARRAY):
            element = self._type(kind.element_type)
            size = kind.element_count if kind.kind == TypeKind.CONSTANTARRAY else 0
            return CType("array", f"{element.spelling} [{size or ''}]", target=element, size=size)
        if kind.kind == TypeKind.FUNCTIONPROTO:
            if kind.is_function_variadic():
                raise HeaderError(f"a pointer to a variadic function: {kind.spelling}")
            parameters = tuple(self._type(argument) for argument in kind.argument_types())
            return CType("function", "", target=self._type(kind.get_result()), parameters=parameters)
        declared = kind.get_declaration()
        if declared.kind == CursorKind.TYPEDEF_DECL:
            name = declared.spelling
            if name in STDINT:
                return CType("scalar", name, name)
            if declared.location.file and declared.location.file.name in self._headers:
                return CType("typedef", name, name, target=self._type(declared.underlying_typedef_type))
            return dataclasses.replace(self._type(declared.underlying_typedef_type.get_canonical()), spelling=name)
        if declared.kind == CursorKind.ENUM_DECL:
            name = self._name(declared)
            tagged = f"enum {name}" if self._tag(declared) else name
            return CType("enum", tagged, name, target=CType("scalar", "", BUILTIN[declared.enum_type.kind]))
        if declared.kind in (CursorKind.STRUCT_DECL, CursorKind.UNION_DECL):
            name = self._name(declared)
            keyword = "union" if declared.kind == CursorKind.UNION_DECL else "struct"
            spelling = f"{keyword} {name}" if self._tag(declared) else name
            definition = declared.get_definition()
            ours = definition and definition.location.file and definition.location.file.name in self._headers
            return CType("record" if ours else "opaque", spelling, name)
        if kind.get_canonical().kind != kind.kind:  # restrict, parentheses and other sugar
            return self._type(kind.get_canonical())
        raise HeaderError(f"no rule for the type {kind.spelling} ({kind.kind.name})")

    # --- macros -----------------------------------------------------------------------------------

    def _macros(self, header: str) -> list[Macro]:
        """Object-like macros that are a constant, with the value the compiler gives them."""
        texts: dict[str, tuple[list[str], int]] = {}
        for cursor in self._declarations(header):
            if cursor.kind == CursorKind.MACRO_DEFINITION:
                tokens = list(cursor.get_tokens())[1:]
                words = [token.spelling for token in tokens]
                if {token.kind for token in tokens} <= CONSTANT_TOKENS and not {"{", ";"} & set(words):
                    texts[cursor.spelling] = (words, cursor.location.offset)
        values = {name: _literal(words) for name, (words, _) in texts.items()}
        unknown = [name for name, value in values.items() if value is None and texts[name][0]]
        integers = self._integers(unknown)
        for name in unknown:
            if name in integers:
                (words, _) = texts[name]
                hexadecimal = re.fullmatch(r"0[xX]([0-9a-fA-F]+)[uUlL]*", "".join(words))
                if hexadecimal:
                    values[name] = f"0x{hexadecimal[1].upper()}"
                elif words[0] in texts:  # another macro's name
                    values[name] = words[0] if len(words) == 1 else str(integers[name])
                else:
                    values[name] = str(integers[name])
        return [Macro(name, value, offset) for name, (_, offset) in texts.items() if (value := values[name]) is not None]

    def _integers(self, names: list[str]) -> dict[str, int]:
        """The values of the names that are integer constants, by making each an enumerator."""
        if not names:
            return {}
        lines = self._source.count("\n") + 1
        probes = "".join(f"enum {{ probe_{i} = ({name}) }};\n" for i, name in enumerate(names))
        unit = self._parse(self._source + probes)
        failed = {each.location.line for each in unit.diagnostics if each.severity >= Diagnostic.Error}
        values = {}
        for cursor in unit.cursor.get_children():
            if cursor.kind == CursorKind.ENUM_DECL and cursor.location.file.name == PROBE:
                for constant in cursor.get_children():
                    index = int(constant.spelling.removeprefix("probe_"))
                    if lines + index not in failed:
                        values[names[index]] = constant.enum_value
        return values

    def _parse(self, source: str, options: int = 0) -> TranslationUnit:
        return Index.create().parse(PROBE, self._arguments, unsaved_files=[(PROBE, source)], options=options)


PROBE = "bindings_probe.c"
CONSTANT_TOKENS = {TokenKind.LITERAL, TokenKind.IDENTIFIER, TokenKind.PUNCTUATION}


def _element(kind: Type) -> Type:
    while kind.kind == TypeKind.CONSTANTARRAY:
        kind = kind.element_type
    return kind


def _identity(cursor: Cursor) -> str:
    location = cursor.location
    return f"{location.file}:{location.offset}"


def _passed(kind: CType) -> CType:
    """C passes an array as a pointer to its first element."""
    return CType("pointer", f"{kind.inner.spelling} *", target=kind.target) if kind.kind == "array" else kind


def _declare(kind: CType, name: str) -> str:
    if kind.kind == "array":
        return f"{kind.inner.spelling} {name}[{kind.size or ''}]"
    return f"{kind.spelling} {name}".rstrip()


def _literal(words: list[str]) -> str | None:
    """The Python literal for a C string or floating-point literal."""
    if words and all(re.fullmatch(r'"(?:[^"\\]|\\.)*"', word) for word in words):
        text = "".join(word[1:-1] for word in words)
        return '"' + text + '"'
    number = "".join(word for word in words if word not in "()")
    if re.fullmatch(r"-?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?[fFlL]?", number):
        return repr(float(number.rstrip("fFlL")))
    return None


def _compiler_headers() -> str:
    """stddef.h and its like come with a compiler; the libclang wheel has none."""
    for compiler in ("gcc", "cc", "clang"):
        try:
            answer = subprocess.run([compiler, "-print-file-name=include"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        if (pathlib.Path(answer.stdout.strip()) / "stddef.h").is_file():
            return answer.stdout.strip()
    raise HeaderError("no C compiler found; the generator needs the stddef.h of gcc or clang")


def _raise_errors(unit: TranslationUnit) -> None:
    errors = [str(each) for each in unit.diagnostics if each.severity >= Diagnostic.Error]
    if errors:
        raise HeaderError("the headers do not parse:\n" + "\n".join(errors))

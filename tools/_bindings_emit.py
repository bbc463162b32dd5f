"""Writes one Python module of ctypes declarations for the declarations of one C header."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable

from _bindings_parse import CType, Declaration, Enum, Field, Function, HeaderError, Macro, Opaque, Record, Typedef

WIDTH = 120

SCALARS = {
    "bool": ("c_bool", "bool"),
    "char": ("c_char", "bytes"),
    "signed char": ("c_int8", "int"),
    "unsigned char": ("c_uint8", "int"),
    "short": ("c_short", "int"),
    "unsigned short": ("c_ushort", "int"),
    "int": ("c_int", "int"),
    "unsigned int": ("c_uint", "int"),
    "long": ("c_long", "int"),
    "unsigned long": ("c_ulong", "int"),
    "long long": ("c_longlong", "int"),
    "unsigned long long": ("c_ulonglong", "int"),
    "float": ("c_float", "float"),
    "double": ("c_double", "float"),
    "size_t": ("c_size_t", "int"),
    "ssize_t": ("c_ssize_t", "int"),
    "intptr_t": ("c_ssize_t", "int"),
    "uintptr_t": ("c_size_t", "int"),
    **{f"{sign}int{bits}_t": (f"c_{sign}int{bits}", "int") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
CTYPES = {name for name, _ in SCALARS.values()} | {"POINTER", "CFUNCTYPE", "Structure", "Union", "c_char_p", "c_void_p"}
TYPING = {"NewType"}
HINTS = {"Array", "Pointer", "PointerLike", "AddressLike", "StringBuffer", "Callback"}


class Names:
    """What every generated module so far defines, and how C's tags are called in Python.

    C keeps functions and tags apart; Python has one namespace. Where both exist the function keeps the
    name and the type is called as C calls it: ``enum_llama_vocab_type``.
    """

    def __init__(self, declarations: Iterable[Declaration]) -> None:
        declarations = list(declarations)
        functions = {each.name for each in declarations if isinstance(each, Function)}
        self.module_of: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        for each in declarations:
            if isinstance(each, (Enum, Record)) and each.name in functions:
                prefix = "enum" if isinstance(each, Enum) else each.spelling.split()[0]
                self._tags[each.name] = f"{prefix}_{each.name}"

    def tag(self, name: str) -> str:
        return self._tags.get(name, name)


class Module:
    """The text of one generated module.

    Args:
        name: of the module.
        names: shared by all modules; this one adds its own.
        declarations: of the header.
        decorators: for each function that is to be bound, the start of its decorator: ``bind("llama"``.
    """

    def __init__(self, name: str, names: Names, declarations: list[Declaration], decorators: dict[str, str]) -> None:
        self.name = name
        self.public: list[str] = []
        self._names = names
        self._decorators = decorators
        self._chunks: list[tuple[str, str]] = []  # (what it is, its lines)
        self._imports: dict[str, set[str]] = {}
        self._hint_imports: dict[str, set[str]] = {}
        self._records = {names.tag(each.name): each for each in declarations if isinstance(each, Record)}
        self._started: set[str] = set()  # records whose class exists but whose fields may not yet
        self._forward: set[str] = set()  # those started because something before them points to them
        for declaration in declarations:
            self._declare(declaration)

    # --- the text ---------------------------------------------------------------------------------

    def text(self, docstring: str) -> str:
        runtime = [_import(source, names) for source, names in sorted(self._imports.items(), key=_import_order)]
        hints = {source: names - self._imports.get(source, set()) for source, names in self._hint_imports.items()}
        only_hints = [_import(source, names, 4) for source, names in sorted(hints.items(), key=_import_order) if names]
        library = [line for line in runtime if not line.startswith("from .")]
        ours = [line for line in runtime if line.startswith("from .")]
        header = f'"""{docstring}"""\n# mypy: disable-error-code="empty-body"'
        parts = [header, "from __future__ import annotations", "\n".join(library), "\n".join(ours)]
        if only_hints:
            split = "\n\n" if only_hints[0].startswith("    from ctypes") and len(only_hints) > 1 else "\n"
            parts.append("if TYPE_CHECKING:\n" + only_hints[0] + split + "\n".join(only_hints[1:]))
        text = "\n\n".join(part for part in parts if part)
        previous = ""
        for kind, chunk in self._chunks:
            roomy = "definition" in (kind, previous)
            tight = kind == previous and kind != "group"
            text += "\n\n\n" if roomy else "\n" if tight else "\n\n"
            text += chunk
            previous = kind
        exported = [_quoted(name) for name in sorted(self.public)]
        return f"{text}\n\n\n{_filled('__all__ = [', exported, ']  # fmt: skip')}\n"

    def _add(self, kind: str, text: str, *defines: str) -> None:
        for name in defines:
            self._names.module_of[name] = self.name
            self.public.append(name)
        self._chunks.append((kind, text))

    def _import(self, source: str, name: str, *, hint: bool = False) -> None:
        (self._hint_imports if hint else self._imports).setdefault(source, set()).add(name)

    # --- declarations -----------------------------------------------------------------------------

    def _declare(self, declaration: Declaration) -> None:
        if isinstance(declaration, Macro):
            self._add("constant", f"{declaration.name} = {declaration.value}", declaration.name)
        elif isinstance(declaration, Enum):
            self._enum(declaration)
        elif isinstance(declaration, Typedef):
            if declaration.name not in self._names.module_of:
                self._typedef(declaration)
        elif isinstance(declaration, Opaque):
            self._opaque(declaration.name)
        elif isinstance(declaration, Record):
            self._record(declaration, self._names.tag(declaration.name))
        elif isinstance(declaration, Function) and declaration.name in self._decorators:
            self._function(declaration)

    def _enum(self, enum: Enum) -> None:
        lines = []
        defines = [name for name, _ in enum.constants]
        if enum.name:
            alias = self._names.tag(enum.name)
            lines.append(f"{alias} = {self._use(SCALARS[enum.base][0])}")
            defines.append(alias)
        lines += [f"{name} = {value}" for name, value in enum.constants]
        self._add("group", "\n".join(lines), *defines)

    def _typedef(self, typedef: Typedef) -> None:
        name, meaning = typedef.name, typedef.type.resolved()
        if meaning.kind == "pointer" and meaning.inner.resolved().kind == "opaque":
            self._import("typing", "NewType")
            lines = f'{name} = NewType("{name}", int)\n{name}_ctypes = {self._use("c_void_p")}'
            self._add("group", lines, name, f"{name}_ctypes")
            return
        self._alias(name, self._ctype(typedef.type))
        if meaning.kind == "scalar":
            self._alias(f"{name}_p", f"POINTER({name})")

    def _alias(self, name: str, expression: str) -> None:
        """name = expression; its own name stays usable, and what it uses is imported."""
        self._use(expression, defining=name)
        head, bracket, arguments = expression.partition("(")
        line = f"{name} = {expression}"
        if bracket and len(line) > WIDTH:
            line = _call(f"{name} = {head}(", _split(arguments[:-1]), ")")
        self._add("alias", line, name)

    def _opaque(self, name: str) -> None:
        pointer = f"{name}_p"
        if pointer not in self._names.module_of:
            self._import("typing", "NewType")
            lines = f'{pointer} = NewType("{pointer}", int)\n{pointer}_ctypes = {self._use("c_void_p")}'
            self._add("group", lines, pointer, f"{pointer}_ctypes")

    def _record(self, record: Record, name: str) -> None:
        for nested in record.nested:
            self._record(nested, nested.name)
        callbacks = {}
        for field in record.fields:
            if field.type.kind == "pointer" and field.type.inner.kind == "function":
                callbacks[field.name] = f"{name}_{field.name}"
                self._alias(callbacks[field.name], self._ctype(field.type))
        types = [callbacks.get(field.name) or self._ctype(field.type) for field in record.fields]
        itself = any(re.search(rf"\b{name}\b", kind) for kind in types)
        for kind in types:
            self._use(kind, defining=name)
        rows = [self._field(field, kind) for field, kind in zip(record.fields, types, strict=True)]
        fields = "\n".join(["_fields_ = [", *(f"    {row}," for row in rows), "]"])
        anonymous = [_quoted(field.name) for field in record.fields if field.anonymous]
        if anonymous:
            fields = f"_anonymous_ = ({', '.join(anonymous)},)\n{fields}"
        if itself and name not in self._started:
            self._start(record, name)
        if name in self._started:
            self._add("group", re.sub(r"^(?=_)", f"{name}.", fields, flags=re.MULTILINE))
        else:
            self._start(record, name, fields)
        self._names.module_of[name] = self.name
        if record.spelling.split(".")[0] == record.spelling:
            self._alias(f"{name}_p", f"POINTER({name})")
            if name in self._forward:
                self._alias(f"{name}_p_ctypes", f"{name}_p")

    def _start(self, record: Record, name: str, fields: str = "") -> None:
        """The class; without fields where it must exist before it can be laid out."""
        self._started.add(name)
        base = self._use("Union" if record.union else "Structure")
        lines = [f"class {name}({base}):", f'    """{record.spelling}"""']
        if record.fields:
            self._import("typing", "TYPE_CHECKING")
            lines += ["", "    if TYPE_CHECKING:"]
            for field in record.fields:
                lines.append(f"        {_safe(field.name)}: {self._use_hint(self._hint(field.type), defining=name)}")
        if fields:
            lines += ["", *(f"    {line}" for line in fields.split("\n"))]
        self._add("definition", "\n".join(lines), name)

    @staticmethod
    def _field(field: Field, kind: str) -> str:
        bits = f", {field.bits}" if field.bits is not None else ""
        return f"({_quoted(_safe(field.name))}, {kind}{bits})"

    def _function(self, function: Function) -> None:
        returns = "None" if function.returns.kind == "void" else self._use(self._ctype(function.returns, returned=True))
        arguments = [self._use(self._ctype(kind)) for _, kind in function.parameters]
        binder, _, library = self._decorators[function.name].partition("(")
        self._import(".binding", binder)
        decorator = _call(f"@{binder}(", [library, returns, *arguments], ")")
        accepted = [(name, self._use_hint(self._hint(kind, accepted=True))) for name, kind in function.parameters]
        hints = [f"{_safe(name)}: {hint}" for name, hint in accepted]
        result = self._use_hint(self._hint(function.returns, returned=True))
        head = _call(f"def {function.name}(", [*hints, "/"] if hints else [], f") -> {result}:")
        start, parameters = function.prototype
        start = f"DEPRECATED {start}" if function.deprecated else start
        prototype = _docstring(f"{start}(", list(parameters), ")")
        self._add("definition", f"{decorator}\n{head}\n{prototype}\n    ...", function.name)

    # --- types ------------------------------------------------------------------------------------

    def _ctype(self, kind: CType, *, returned: bool = False) -> str:
        """The ctypes expression for a C type."""
        if kind.kind == "scalar":
            return SCALARS[kind.name][0]
        if kind.kind == "enum":
            return self._names.tag(kind.name)
        if kind.kind == "record":
            return self._names.tag(kind.name)
        if kind.kind == "typedef":
            meaning = kind.resolved()
            if meaning.kind in ("record", "enum"):
                return self._ctype(meaning)
            opaque = meaning.kind == "pointer" and meaning.inner.resolved().kind == "opaque"
            return f"{kind.name}_ctypes" if opaque else kind.name
        if kind.kind == "array":
            return f"{_factor(self._ctype(kind.inner))} * {kind.size}"
        if kind.kind == "pointer":
            return self._pointer(kind.inner, returned)
        raise HeaderError(f"no ctypes expression for {kind.spelling}")

    def _pointer(self, target: CType, returned: bool) -> str:
        meaning = target.resolved()
        if meaning.kind == "function":
            # A callback can only return what ctypes can convert by itself: pointers become addresses.
            result = "None" if meaning.inner.kind == "void" else self._ctype(meaning.inner)
            result = "c_void_p" if result.startswith("POINTER") else result
            return f"CFUNCTYPE({', '.join([result, *(self._ctype(each) for each in meaning.parameters)])})"
        if meaning.kind == "void":
            return "c_void_p"
        if meaning.kind == "scalar" and meaning.name == "char":
            # What may be written to was allocated for the caller, who needs the address to free it.
            return "c_void_p" if returned and not target.const else "c_char_p"
        if meaning.kind == "opaque":
            return "c_void_p" if meaning.name in FOREIGN else f"{meaning.name}_p_ctypes"
        return f"POINTER({self._ctype(target)})"

    def _hint(self, kind: CType, *, accepted: bool = False, returned: bool = False) -> str:
        """What a type checker is told: of a parameter (accepted), a result (returned) or a field."""
        if kind.kind == "void":
            return "None"
        if kind.kind == "typedef":
            meaning = kind.resolved()
            if meaning.kind in ("scalar", "enum", "record"):
                return self._hint(meaning)
            if meaning.kind == "pointer" and meaning.inner.resolved().kind == "opaque":
                return f"{kind.name} | {'c_void_p | ' if accepted else ''}None"
            return self._hint(meaning, accepted=accepted, returned=returned)
        if kind.kind == "scalar":
            return SCALARS[kind.name][1]
        if kind.kind == "enum":
            return "int"
        if kind.kind == "record":
            return self._names.tag(kind.name)
        if kind.kind == "array":
            return "bytes" if kind.inner.name == "char" else f"Array[{self._hint_element(kind.inner)}]"
        target = kind.inner
        meaning = target.resolved()
        if meaning.kind == "function":
            return "Callback"
        if meaning.kind == "opaque" and meaning.name not in FOREIGN:
            # an out-parameter of another function has filled a c_void_p
            return f"{meaning.name}_p | {'c_void_p | ' if accepted else ''}None"
        if meaning.kind in ("void", "opaque"):
            return "AddressLike" if accepted else "int | None"
        if meaning.kind == "scalar" and meaning.name == "char":
            if returned:
                return "bytes | None" if target.const else "int | None"
            return "bytes | None" if target.const or not accepted else "StringBuffer"
        return f"{'PointerLike' if accepted else 'Pointer'}[{self._hint_element(target)}]"

    def _hint_element(self, kind: CType) -> str:
        """A ctypes type as a type checker can read it: POINTER(x) is not one, Pointer[x] is."""
        meaning = kind.resolved()
        if meaning.kind == "array":
            return f"Array[{self._hint_element(meaning.inner)}]"
        if meaning.kind == "pointer" and meaning.inner.kind == "function":
            return "Callback"
        expression = self._ctype(kind)
        if expression.startswith("POINTER"):
            return f"Pointer[{self._hint_element(meaning.inner)}]"
        return expression

    # --- names ------------------------------------------------------------------------------------

    def _use(self, expression: str, *, defining: str = "") -> str:
        for name in re.findall(r"[A-Za-z_]\w*", expression):
            if name in CTYPES:
                self._import("ctypes", name)
            elif name not in (defining, "None"):
                self._resolve(name, hint=False)
        return expression

    def _use_hint(self, expression: str, *, defining: str = "") -> str:
        for name in re.findall(r"[A-Za-z_]\w*", expression):
            if name in CTYPES or name in HINTS:
                self._import("typing", "TYPE_CHECKING")
                source = "ctypes" if name in CTYPES or name == "Array" else ".pointers"
                self._import(source, name, hint=True)
            elif name not in (defining, "None", "int", "float", "bool", "bytes"):
                self._resolve(name, hint=True)
        return expression

    def _resolve(self, name: str, *, hint: bool) -> None:
        """Makes a name available: it exists here, in another module, or is declared now."""
        module = self._names.module_of.get(name)
        if module and module != self.name:
            if hint:
                self._import("typing", "TYPE_CHECKING")
            self._import(f".{module}", name, hint=hint)
        elif not module and name in self._records:
            self._forward.add(name)
            self._start(self._records[name], name)
        elif not module and (opaque := re.fullmatch(r"(\w+?)_p(_ctypes)?", name)):
            self._opaque(opaque[1])
        elif not module:
            raise HeaderError(f"{self.name}: {name} is used before it is declared")


# structs of the C library; ours to pass on, not to name
FOREIGN = {"_IO_FILE", "FILE", "__sFILE"}


def _safe(name: str) -> str:
    return f"{name}_" if keyword.iskeyword(name) else name


def _quoted(name: str) -> str:
    return f'"{name}"'


def _factor(expression: str) -> str:
    return f"({expression})" if " * " in expression else expression


def _import_order(item: tuple[str, set[str]]) -> tuple[bool, str]:
    return (item[0].startswith("."), item[0])


def _name_order(name: str) -> tuple[bool, bool, list[object]]:
    """CONSTANTS, Classes, then the rest; c_int8 before c_int32."""
    parts = re.split(r"(\d+)", name)
    return (not name.isupper(), name[0].islower(), [int(part) if part.isdigit() else part for part in parts])


def _import(source: str, names: set[str], indent: int = 0) -> str:
    margin = " " * indent
    ordered = sorted(names, key=_name_order)
    line = f"{margin}from {source} import {', '.join(ordered)}"
    if len(line) <= WIDTH:
        return line
    return f"{margin}from {source} import (\n" + "".join(f"{margin}    {name},\n" for name in ordered) + f"{margin})"


def _call(start: str, items: list[str], end: str) -> str:
    """On one line, or the items on one line of their own, or each on its own."""
    inner = ", ".join(items)
    if len(start + inner + end) <= WIDTH:
        return f"{start}{inner}{end}"
    if len(inner) + 4 <= WIDTH:
        return f"{start}\n    {inner}\n{end}"
    return f"{start}\n" + "".join(f"    {item},\n" for item in items) + end


def _split(arguments: str) -> list[str]:
    """The arguments of a call, taking no notice of commas inside brackets."""
    return re.findall(r"(?:[^,(]|\([^)]*\))+", arguments.replace(", ", ","))


def _filled(start: str, items: list[str], end: str) -> str:
    """Items in lines as long as fit."""
    lines = [start]
    for item in items:
        if len(lines) == 1 or len(f"{lines[-1]} {item},") > WIDTH:
            lines.append(f"    {item},")
        else:
            lines[-1] += f" {item},"
    return "\n".join([*lines, end])


def _docstring(start: str, items: list[str], end: str) -> str:
    line = f'    """{start}{", ".join(items)}{end}"""'
    if len(line) <= WIDTH:
        return line
    lines = [f'    """{start}']
    for item in items:
        separator = "" if item is items[-1] else ","
        if len(lines) == 1 or len(f"{lines[-1]} {item}{separator}") > WIDTH:
            lines.append(f"        {item}{separator}")
        else:
            lines[-1] += f" {item}{separator}"
    return "\n".join([*lines, f'    {end}"""'])

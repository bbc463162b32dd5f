"""The bindings against the compiler: sizes, offsets, kinds and values must be what C says they are."""

from __future__ import annotations

import ast
import ctypes
import importlib
import inspect
import keyword
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

import llama_cpp.capi
from llama_cpp.capi import pinned

ROOT = Path(__file__).resolve().parents[2]
GENERATED = re.compile(r'"""ctypes declarations of ')
CAPI = Path(llama_cpp.capi.__file__).parent
SOURCES = {path.stem: path.read_text() for path in CAPI.glob("*.py") if GENERATED.match(path.read_text())}
MODULES = {name: importlib.import_module(f"llama_cpp.capi.{name}") for name in sorted(SOURCES)}


def own(module: ModuleType, kind: type) -> dict[str, type]:
    classes = inspect.getmembers(module, inspect.isclass)
    return {name: each for name, each in classes if issubclass(each, kind) and each.__module__ == module.__name__}


RECORDS = {}
for each in MODULES.values():
    RECORDS |= own(each, ctypes.Structure) | own(each, ctypes.Union)
FUNCTIONS = {
    node.name: getattr(MODULES[module], node.name)
    for module, text in SOURCES.items()
    for node in ast.parse(text).body
    if isinstance(node, ast.FunctionDef)
}


def module_values(kind: type) -> dict[str, object]:
    """Module-level names that hold an int (or a str), with their values."""
    return {name: value for module in MODULES.values() for name in module.__all__ if type(value := getattr(module, name)) is kind}


def c_name(field: str) -> str:
    """A field whose name is a Python keyword has an underscore more in Python."""
    return field[:-1] if field.endswith("_") and keyword.iskeyword(field[:-1]) else field


def c_type(record: type) -> str:
    """How C can name the type: the docstring says "struct x", "x" or "struct x.member"."""
    owner, _, member = inspect.getdoc(record).partition(".")
    return f"__typeof__((({owner} *)0)->{member})" if member else owner


def is_anonymous(record: type) -> bool:
    return inspect.getdoc(record).endswith("(anonymous)")


def fields(record: type) -> list[tuple[str, type]]:
    """The fields as C can address them: those of an anonymous member belong to its parent."""
    found = []
    for field in record._fields_:
        assert len(field) == 2, f"{record.__name__}.{field[0]} is a bit field, which this test cannot measure yet"
        if field[0] in getattr(record, "_anonymous_", ()):
            found += fields(field[1])
        else:
            found.append(field)
    return found


def kind_of(ctype: type) -> str:
    """A name for how a value is passed and read, comparable with the compiler's."""
    if ctype is None:
        return "void"
    if issubclass(ctype, (ctypes.Structure, ctypes.Union)):
        return f"record{ctypes.sizeof(ctype)}"
    if issubclass(ctype, ctypes.Array):
        return f"array{ctypes.sizeof(ctype)}"
    code = getattr(ctype, "_type_", None)
    if code == "?":
        return "bool1"
    if code == "z":
        return "string8"
    if code == "c":
        return "char1"
    if not isinstance(code, str) or code == "P":
        return "pointer8"
    sort = "float" if code in "fd" else "uint" if code in "BHILQ" else "int"
    return f"{sort}{ctypes.sizeof(ctype)}"


C_KINDS = """
#define KIND(x) _Generic((x), _Bool: "bool", char: "char", signed char: "int", short: "int", int: "int", \\
    long: "int", long long: "int", unsigned char: "uint", unsigned short: "uint", unsigned: "uint", \\
    unsigned long: "uint", unsigned long long: "uint", float: "float", double: "float", \\
    char *: "string", const char *: "string", default: "other")
"""


@pytest.fixture(scope="module")
def include(llama_source: Path) -> list[str]:
    """What makes a C or C++ compiler see every bound header."""
    headers = [*(llama_source / header for header in pinned.HEADERS), ROOT / "native/llama-common-c.h"]
    folders = sorted({str(header.parent) for header in headers})
    return [*(f"-I{folder}" for folder in folders), *(f"-include{header}" for header in headers)]


def run_probe(compiler: list[str], source: str, suffix: str, folder: Path) -> list[str]:
    path, program = folder / f"probe{suffix}", folder / "probe"
    path.write_text(source)
    flags = ["-w", "-O0", "-o", str(program), str(path)]
    compiled = subprocess.run([*compiler, *flags], capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr[:4000]
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()


def c_program(statements: list[str]) -> str:
    body = "\n".join(f"    {statement}" for statement in statements)
    return f"#include <stddef.h>\n#include <stdio.h>\n{C_KINDS}\nint main(void) {{\n{body}\n    return 0;\n}}\n"


def test_every_record_has_the_size_offsets_and_kinds_of_c(include: list[str], tmp_path: Path) -> None:
    statements, expected, measured = [], [], set()
    for name, record in RECORDS.items():
        if is_anonymous(record):
            continue
        measured.add(name)
        spelling = c_type(record)
        statements.append(f'printf("{name} %zu %zu\\n", sizeof({spelling}), _Alignof({spelling}));')
        expected.append(f"{name} {ctypes.sizeof(record)} {ctypes.alignment(record)}")
        for field, ctype in fields(record):
            member = f"(({spelling} *)0)->{c_name(field)}"
            kind, descriptor = kind_of(ctype), getattr(record, field)
            label = f"{name}.{field}"
            where = f"offsetof({spelling}, {c_name(field)}), sizeof({member})"
            if kind.startswith(("record", "array", "pointer")):  # what _Generic cannot tell
                statements.append(f'printf("{label} %zu %zu\\n", {where});')
                expected.append(f"{label} {descriptor.offset} {descriptor.size}")
            else:
                statements.append(f'printf("{label} %zu %zu %s\\n", {where}, KIND({member}));')
                expected.append(f"{label} {descriptor.offset} {descriptor.size} {kind.rstrip('0123456789')}")
    anonymous = {name for name, record in RECORDS.items() if is_anonymous(record)}
    owners = [(record, member) for record in RECORDS.values() for member in getattr(record, "_anonymous_", ())]
    inside = {dict(record._fields_)[member].__name__ for record, member in owners}
    assert len(measured) > 40
    assert measured | inside == set(RECORDS) and anonymous == inside
    assert run_probe(["gcc", "-std=gnu11", *include], c_program(statements), ".c", tmp_path) == expected


def test_every_constant_has_the_value_of_c(include: list[str], tmp_path: Path) -> None:
    numbers, texts = module_values(int), module_values(str)
    assert len(numbers) > 400 and texts
    statements = [f'printf("{name} %lld\\n", (long long)({name}));' for name in numbers]
    statements += [f'printf("{name} %s\\n", {name});' for name in texts]
    expected = [f"{name} {value}" for name, value in {**numbers, **texts}.items()]
    assert run_probe(["gcc", "-std=gnu11", *include], c_program(statements), ".c", tmp_path) == expected


def test_every_enum_and_integer_type_has_the_size_and_sign_of_c(include: list[str], tmp_path: Path) -> None:
    statements, expected = [], []
    paths = [option.removeprefix("-include") for option in include if option.startswith("-include")]
    headers = "".join(Path(path).read_text() for path in paths)
    for module, text in SOURCES.items():
        for name in re.findall(r"^(\w+) = c_u?int\d*$", text, flags=re.MULTILINE):
            tag = name.removeprefix("enum_")
            spelling = f"enum {tag}" if re.search(rf"\benum\s+{tag}\s*{{", headers) else tag
            statements.append(f'printf("{name} %s%zu\\n", KIND(({spelling})0), sizeof({spelling}));')
            expected.append(f"{name} {kind_of(getattr(MODULES[module], name))}")
    assert len(expected) > 30
    assert run_probe(["gcc", "-std=gnu11", *include], c_program(statements), ".c", tmp_path) == expected


CPP_KINDS = """
#include <cstdio>
#include <string>
#include <type_traits>
template <class T> std::string kind(bool result = false) {
    using U = std::remove_cv_t<T>;
    std::string size;
    if constexpr (!std::is_void_v<U>) size = std::to_string(sizeof(U));
    if constexpr (std::is_void_v<U>) return "void";
    else if constexpr (std::is_same_v<U, bool>) return "bool" + size;
    else if constexpr (std::is_same_v<U, const char *>) return "string" + size;
    else if constexpr (std::is_same_v<U, char *>) return (result ? "pointer" : "string") + size;
    else if constexpr (std::is_pointer_v<U>) return "pointer" + size;
    else if constexpr (std::is_enum_v<U>) return kind<std::underlying_type_t<U>>();
    else if constexpr (std::is_floating_point_v<U>) return "float" + size;
    else if constexpr (std::is_integral_v<U>) return (std::is_signed_v<U> ? "int" : "uint") + size;
    else return "record" + size;
}
template <class F> struct signature;
template <class R, class... A> struct signature<R(A...)> {
    static void show(const char * name) {
        std::string line = std::string(name) + " " + kind<R>(true);
        ((line += " " + kind<A>()), ...);
        std::puts(line.c_str());
    }
};
"""


def test_every_function_passes_and_returns_what_c_does(include: list[str], tmp_path: Path) -> None:
    expected = [
        " ".join([name, kind_of(function.restype), *map(kind_of, function.argtypes)]) for name, function in FUNCTIONS.items()
    ]
    assert len(expected) > 800
    calls = "\n".join(f'    signature<decltype({name})>::show("{name}");' for name in FUNCTIONS)
    source = f"{CPP_KINDS}\nint main() {{\n{calls}\n}}\n"
    assert run_probe(["g++", "-std=c++17", *include], source, ".cpp", tmp_path) == expected


def test_every_docstring_is_a_prototype_c_agrees_with(include: list[str], tmp_path: Path) -> None:
    prototypes = [inspect.getdoc(function).removeprefix("DEPRECATED ") for function in FUNCTIONS.values()]
    assert all(prototypes)
    statements = "\n".join(f"{' '.join(prototype.split())};" for prototype in prototypes)
    run_probe(["gcc", "-std=gnu11", *include], f"{statements}\nint main(void) {{ return 0; }}\n", ".c", tmp_path)


def test_records_survive_a_round_trip_by_value(lib_dir: Path) -> None:
    """Structs larger than two registers go through memory; each side must find every field where the other put it."""
    library = ctypes.CDLL(str(min(lib_dir.glob("libllama.so*"))))
    api = MODULES["llama"]
    default = library.llama_context_default_params
    default.restype = api.llama_context_params
    parameters = default()
    assert (parameters.n_ctx, parameters.n_seq_max, parameters.flash_attn_type) == (512, 1, -1)
    assert (parameters.offload_kqv, parameters.type_k) == (True, MODULES["ggml"].GGML_TYPE_F16)
    assert parameters.n_samplers == 0

    library.llama_batch_init.restype = api.llama_batch
    library.llama_batch_init.argtypes = [ctypes.c_int32] * 3
    library.llama_batch_free.argtypes = [api.llama_batch]
    library.llama_batch_free.restype = None
    batch = library.llama_batch_init(8, 0, 2)
    assert batch.n_tokens == 0 and batch.token and batch.seq_id and not batch.embd
    batch.token[7], batch.seq_id[7][1], batch.logits[7] = 11, 12, 1
    assert (batch.token[7], batch.seq_id[7][1], batch.logits[7]) == (11, 12, 1)
    library.llama_batch_free(batch)

"""The shape of the repository: which way imports point, and what no file may contain."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llama_cpp"

#: What the modules of each part may import of the package. Parts in the same line of DESIGN.md do not import each
#: other unless it is said here.
ALLOWED = {
    "errors": set(),
    "values": {"errors"},
    "capi": {"errors"},
    "limits": {"capi", "errors", "values"},
    "gguf": {"capi", "errors"},
    "models": {"gguf", "capi", "errors", "values"},
    "fit": {"models", "capi", "errors"},
    "json_schema": {"capi", "errors", "limits"},
    "chat": {"json_schema", "models", "capi", "errors", "limits", "values"},
    "engine": {"models", "gguf", "fit", "capi", "errors", "limits", "values"},
    "arguments": {"engine", "capi", "errors", "limits", "values"},
    "model_loading": {"arguments", "chat", "engine", "fit", "models", "capi", "errors", "limits"},
    "completions": {"model_loading", "engine", "chat", "models", "capi", "errors", "limits", "arguments", "values"},
    "embeddings": {"model_loading", "models", "capi", "errors", "values"},
    "rerank": {"completions", "model_loading", "engine", "chat", "models", "capi", "errors", "values"},
    "tokens": {"models", "errors", "values"},
    "model_front": {"model_loading", "engine", "arguments", "capi", "limits"},
    "low_level": {"llama_grammar", "_internals", "model_front", "engine", "arguments", "capi", "errors", "values"},
    "_internals": {"model_loading", "engine", "models", "capi", "errors", "values"},
    "chat_handlers": {"llama", "completions", "chat", "engine", "errors"},
    "media_handlers": {"llama", "chat_handlers", "errors", "values"},
    "llama": {
        "llama_tokenizer", "errors", "low_level", "model_front", "completions", "embeddings", "rerank", "arguments",
        "tokens", "values",
    },
    "async_llama": {"model_front", "completions", "embeddings", "rerank", "arguments", "tokens", "values", "capi", "errors"},
    "llama_cpp": {"capi"},
    "mtmd_cpp": {"capi"},
    "server": {"llama", "completions", "engine", "chat", "fit", "models", "capi", "errors", "arguments", "server"},
    "cli": {"llama", "server", "completions", "engine", "chat", "fit", "models", "gguf", "capi", "errors", "arguments"},
}  # fmt: skip
#: How modules are called that hold names for llama-cpp-python's users to import.
NAMES = ("llama_", "llava_", "_ggml", "_ctypes_extensions", "_logger", "_utils")
# the loader looks up llama_cpp.__path__ to find the libraries that lie beside the package
EXCEPTIONS = {("capi", "")}


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """Absolute names of everything a file imports, also inside functions and ``if TYPE_CHECKING``."""
    module = path.relative_to(ROOT).with_suffix("").parts
    package = module[:-1]  # of __init__.py too: its own name is no part of it
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            prefix = ".".join(base + ([node.module] if node.module else []))
            found |= {f"{prefix}.{alias.name}" for alias in node.names}
    return found


def _part(name: str) -> str:
    """ "chat" for ``llama_cpp.chat.templates.ChatParser``; "" for the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def _parts_of(path: Path) -> set[str]:
    return {_part(name) for name in _imports(path) if name.split(".")[0] == "llama_cpp"}


@pytest.mark.parametrize(
    "path", [p for p in _modules() if p.parent != PACKAGE or p.name != "__init__.py"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_point_one_way(path):
    own = _part(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own not in ALLOWED and path.parent == PACKAGE and own.startswith(NAMES):
        allowed = ALLOWED.keys() - {"server", "cli"} | {name for name in _parts_of(path) if name.startswith(NAMES)}
    else:
        assert own in ALLOWED, "a new part of the package: say here what it may import"
        allowed = ALLOWED[own]
    for part in _parts_of(path) - {own}:
        assert part in allowed or (own, part) in EXCEPTIONS, f"{own} imports {part or 'the package itself'}"


def test_capi_has_no_circle():
    """Also not by imports within functions: loader → backends, logs → generated modules → binding."""
    known = {path.stem for path in (PACKAGE / "capi").glob("*.py")} - {"__init__"}
    needs = {}
    for name in known:
        found = _imports(PACKAGE / "capi" / f"{name}.py")
        parts = {one.split(".")[2] for one in found if one.startswith("llama_cpp.capi.")}
        needs[name] = parts & known - {name}
    while ready := [name for name, other in needs.items() if not other & needs.keys()]:
        for name in ready:
            del needs[name]
    assert not needs, f"these import each other: {sorted(needs)}"


def test_the_package_itself_imports_nothing_when_it_is_imported():
    """``import llama_cpp`` is instant; names are resolved when they are used."""
    top = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert names <= {"__future__", "importlib", "typing"}


def test_distribution_and_the_package_do_not_know_each_other():
    for path in _modules():
        assert not any(name.split(".")[0] == "distribution" for name in _imports(path)), path
    for path in sorted((ROOT / "distribution").rglob("*.py")):
        assert not any(name.split(".")[0] == "llama_cpp" for name in _imports(path)), path


def test_chat_knows_no_http():
    forbidden = {"http", "socket", "urllib", "asyncio", "fastapi", "starlette", "uvicorn", "aiohttp", "requests", "httpx"}
    for part in ("chat", "engine", "capi", "fit"):
        # a handle can be waited for in an event loop
        allowed = {"asyncio"} if part == "engine" else set()
        for path in sorted((PACKAGE / part).rglob("*.py")):
            assert not {name.split(".")[0] for name in _imports(path)} & (forbidden - allowed), path


def test_nothing_unpickles_or_evaluates():
    for path in _modules():
        assert not {name.split(".")[0] for name in _imports(path)} & {"pickle", "marshal", "shelve"}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path


def test_imports_are_resolved_as_python_does(tmp_path):
    """What the tests above rely on: relative imports of each kind lead to the right part."""
    templates = _imports(PACKAGE / "chat" / "templates.py")
    assert {"llama_cpp.capi.llama_common_c", "llama_cpp.errors.InvalidArgumentError", "llama_cpp.models.model.Model"} <= templates
    assert "llama_cpp.chat.templates.ChatPrompt" in _imports(PACKAGE / "chat" / "request.py")
    assert "llama_cpp.llama.Llama" in _imports(PACKAGE / "cli" / "chat.py")
    assert "completions" in _parts_of(PACKAGE / "llama.py") and "" in _parts_of(PACKAGE / "capi" / "loader.py")


# --- files ---


def _tracked() -> list[Path]:
    if not (shutil.which("git") and (ROOT / ".git").exists()):
        pytest.skip("needs git and a clone of the repository")
    done = subprocess.run(["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return [ROOT / name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_no_file_holds_a_place_of_one_machine():
    """No package registry's mirror, no home folder: what is here works for everybody."""
    # put together, so that this file does not find itself
    forbidden = ["/" + folder + "/" for folder in ("root", "home", "Users")] + [
        "arti" + "factory",
        "jfrog" + ".io",
        "nexus" + "3",
        ":" + "//" + "localhost:8081",
        "index" + "-url =",
        "code" + "artifact",
    ]
    pattern = re.compile("|".join(rf"(?<![\w.$}}~-]){re.escape(text)}" for text in forbidden))
    for path in _tracked():
        text = path.read_bytes().decode("utf-8", "replace")
        found = pattern.search(text)
        assert not found, f"{path.relative_to(ROOT)}: {text[max(0, found.start() - 40) : found.end() + 40]!r}"


def test_no_file_is_large():
    for path in _tracked():
        assert path.stat().st_size <= 2 << 20, f"{path.relative_to(ROOT)} has {path.stat().st_size} bytes"


def test_no_built_file_is_tracked():
    for path in _tracked():
        assert not re.search(r"\.(so(\.\d+)*|a|o|pyc|gguf|whl|conda)$|/__pycache__/", str(path)), path
        assert "vendor/llama.cpp/source/" not in path.relative_to(ROOT).as_posix()


# --- docstrings ---

#: Their names say it all, and their class's docstring the rest.
PLAIN = {"close", "n_ctx", "n_embd", "n_vocab", "token_bos", "token_eos", "token_nl", "reset"}
#: Thin objects around C functions of the same names; their methods are those.
THIN = {"_internals.py"}


def _public(tree: ast.AST, inside: str = ""):
    for node in getattr(tree, "body", []):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if not any(ast.unparse(one).endswith(".setter") for one in node.decorator_list):  # the property has it
            yield f"{inside}{node.name}", node
        if isinstance(node, ast.ClassDef):
            yield from _public(node, f"{inside}{node.name}.")


def _generated(path: Path) -> bool:
    return "Generated by" in path.read_text(encoding="utf-8")[:2000]


@pytest.mark.parametrize("path", [p for p in _modules() if not _generated(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_what_is_public_is_documented(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module says what it is for"
    for name, node in _public(tree):
        assert ast.get_docstring(node) or node.name in PLAIN or (path.name in THIN and "." in name), name


def test_generated_files_say_so():
    assert sum(_generated(path) for path in (PACKAGE / "capi").glob("*.py")) >= 10
    assert not any(_generated(path) for path in _modules() if path.parent != PACKAGE / "capi")

"""What the libraries export is bound, or listed in unbound.toml with a reason; and nothing else is in either place."""

from __future__ import annotations

import ast
import fnmatch
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import llama_cpp.capi

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CAPI = Path(llama_cpp.capi.__file__).parent
UNBOUND = tomllib.loads((CAPI / "unbound.toml").read_text())["unbound"]
LIBRARIES = ("ggml-base", "ggml", "llama", "mtmd", "llama-common-c")


def bound_functions(binder: str) -> dict[str, set[str]]:
    """Bound functions by the library (or plugin) their decorator names."""
    found = defaultdict(set)
    for path in CAPI.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                for decorator in node.decorator_list:
                    if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == binder:
                        found[decorator.args[0].value].add(node.name)
    return found


BOUND = bound_functions("bind")
BOUND_IN_PLUGINS = bound_functions("bind_plugin")


def exported(lib_dir: Path, library: str) -> set[str]:
    """Symbols with C linkage that a library defines."""
    path = min(lib_dir.glob(f"lib{library}.so*"), default=None)
    assert path, f"lib{library}.so* is not in {lib_dir}"
    command = ["nm", "-D", "--defined-only", "--format=posix", str(path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {line.split()[0].split("@")[0] for line in listing.splitlines()}
    return {name for name in names if not name.startswith(("_Z", "_init", "_fini", "_edata", "_end", "__bss_start"))}


def listed(library: str) -> list[str]:
    return [name for entry in UNBOUND if entry.get("library") == library for name in entry["names"]]


def test_every_library_is_one_this_test_knows() -> None:
    assert set(BOUND) == set(LIBRARIES)
    assert {entry["library"] for entry in UNBOUND if "library" in entry} <= set(LIBRARIES)


def test_every_entry_gives_a_reason() -> None:
    for entry in UNBOUND:
        assert ("header" in entry) != ("library" in entry)
        assert entry["reason"] and entry["names"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_bound_function_is_exported(lib_dir: Path, library: str) -> None:
    assert BOUND[library] - exported(lib_dir, library) == set()


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_export_is_bound_or_listed(lib_dir: Path, library: str) -> None:
    rest = exported(lib_dir, library) - BOUND[library]
    unexplained = {name for name in rest if not any(fnmatch.fnmatchcase(name, each) for each in listed(library))}
    assert unexplained == set()


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_listed_export_exists_and_is_not_bound(lib_dir: Path, library: str) -> None:
    symbols = exported(lib_dir, library)
    for pattern in listed(library):
        matches = set(fnmatch.filter(symbols, pattern))
        assert matches, f"{pattern} matches nothing that lib{library} exports"
        assert not matches & BOUND[library], f"{pattern} matches what is bound"


ASK_REGISTRY = """
import ctypes, sys
folder, plugin, *names = sys.argv[1:]
base, ggml = (ctypes.CDLL(path) for path in folder.split(":"))
ggml.ggml_backend_load.restype, ggml.ggml_backend_load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
ask = base.ggml_backend_reg_get_proc_address
ask.restype, ask.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]
registry = ggml.ggml_backend_load(plugin.encode())
assert registry, plugin
print(*(name for name in names if ask(registry, name.encode())))
"""


@pytest.mark.parametrize("plugin", sorted({"cpu", "cuda", *BOUND_IN_PLUGINS}))
def test_plugins_hand_out_what_is_bound_and_nothing_else_of_their_header(lib_dir: Path, plugin: str) -> None:
    bound = BOUND_IN_PLUGINS[plugin]
    entries = [entry for entry in UNBOUND if entry.get("header", "").endswith(f"ggml-{plugin}.h")]
    patterns = [name for entry in entries for name in entry["names"]]
    libraries = sorted(lib_dir.glob(f"libggml-{plugin}*.so"))
    if not libraries:
        pytest.skip(f"the {plugin} backend is not built")
    generic = [path for path in libraries if path.stem in (f"libggml-{plugin}", "libggml-cpu-x64")]
    names = [*bound, *(name for name in patterns if "*" not in name and "[" not in name)]
    shared = ":".join(str(min(lib_dir.glob(f"lib{name}.so*"))) for name in ("ggml-base", "ggml"))
    command = [sys.executable, "-c", ASK_REGISTRY, shared, str((generic or libraries)[0]), *names]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(lib_dir)}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr
    assert set(answer.stdout.split()) == bound

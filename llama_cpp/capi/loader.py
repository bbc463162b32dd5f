"""Finds the native libraries, proves that they belong to these bindings, and opens them in a safe order.

The order matters: libraries first, then their identity, then the loggers, then every backend plugin by its own path.
llama.cpp searches for plugins by itself, beside the *python* executable and in the current directory. It does so as soon as
something asks for a device while none is registered. So nothing may ask before the plugins are in.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from pathlib import Path
from typing import Any

from ..errors import ForkedProcessError, LibraryMismatchError, LibraryNotFoundError, MissingSymbolError
from . import binding, pinned
from .interrupts import DeferredInterrupts

#: Library names as the bindings use them, in the order in which they depend on one another.
SONAMES = {
    "ggml-base": "libggml-base.so.0",
    "ggml": "libggml.so.0",
    "llama": "libllama.so.0",
    "mtmd": "libmtmd.so.0",
    "llama-common": "libllama-common.so.0",
    "llama-common-c": "libllama-common-c.so.0",
}

_lock = threading.RLock()
_libraries: dict[str, ctypes.CDLL] | None = None
_folder: Path | None = None
_ready = False  # the backends are in too: nobody else may see the libraries before
_gpu_pid: int | None = None  # the process that a GPU backend was loaded in


# --- symbols -------------------------------------------------------------------------------------


def _library_symbol(library: str, name: str, restype: Any, argtypes: tuple[Any, ...]) -> Any:
    handle = libraries()[library]
    try:
        function = getattr(handle, name)
    except AttributeError:
        raise MissingSymbolError(
            f"{SONAMES[library]} in {_folder} has no function {name}().",
            remedy="The bindings know it from the headers; the library was built without it.",
        ) from None
    function.restype, function.argtypes = restype, argtypes
    return function


def _plugin_symbol(registry: str, name: str, restype: Any, argtypes: tuple[Any, ...]) -> Any:
    libraries()
    from . import ggml_backend as api

    for index in range(api.ggml_backend_reg_count()):
        reg = api.ggml_backend_reg_get(index)
        if (api.ggml_backend_reg_name(reg) or b"").decode().lower() == registry.lower():
            address = api.ggml_backend_reg_get_proc_address(reg, name.encode())
            if address:
                return ctypes.CFUNCTYPE(restype, *argtypes)(address)
            break
    raise MissingSymbolError(
        f"No loaded backend named {registry} offers {name}().",
        remedy=f"It lives in the plugin libggml-{registry.lower()}*.so, which is not loaded here or lacks it.",
    )


binding.resolvers.update(library=_library_symbol, plugin=_plugin_symbol)


# --- loading --------------------------------------------------------------------------------------


def libraries() -> dict[str, ctypes.CDLL]:
    """The opened libraries by name, loading them and every backend plugin on the first call.

    Raises:
        LibraryNotFoundError: none of the places searched holds them, or one cannot be opened.
        LibraryMismatchError: what was found was built from other headers.
        BackendLoadError: a plugin is there and cannot be opened.
        ForkedProcessError: this process was forked after a GPU backend had been loaded.
    """
    global _libraries, _folder, _ready, _gpu_pid
    if _ready and _libraries is not None:
        refuse_forked_gpu(_gpu_pid, os.getpid())
        return _libraries
    with _lock:
        if _libraries is None:
            folder = find_library_folder()
            opened = _open(folder)
            _check_identity(opened, folder)
            # what follows calls bound functions, which ask for the libraries again
            _folder, _libraries = folder, opened
            try:
                from . import backends, logs

                # loading them logs, and starting a GPU takes seconds
                with DeferredInterrupts():
                    logs.route(opened["llama-common-c"].llama_common_log_discard)
                    backends.load(folder)
                    _gpu_pid = os.getpid() if backends.has_gpu() else None
                    _ready = True
            except BaseException:
                if not _ready:
                    _libraries = None
                raise
    return _libraries


def refuse_forked_gpu(loaded_in: int | None, pid: int) -> None:
    """CUDA, and its like, does not survive ``fork()``: the first call in the child fails, and the engine aborts on it.

    Args:
        loaded_in: the process a GPU backend was loaded in; None when there is no GPU, and forking does no harm.
        pid: the process that wants to use it.

    Raises:
        ForkedProcessError: it is another one.
    """
    if loaded_in is not None and loaded_in != pid:
        raise ForkedProcessError(
            f"The GPU backend was loaded in process {loaded_in} and cannot be used in {pid}, forked from it.",
            remedy="Start processes with multiprocessing's 'spawn' method, or load the first model after the fork.",
        )


def library_folder() -> Path:
    """The folder the libraries were loaded from."""
    libraries()
    assert _folder is not None
    return _folder


def candidate_folders() -> list[Path]:
    """Where the libraries are searched, in order."""
    import llama_cpp

    explicit = os.environ.get("LLAMA_CPP_LIB_PATH")
    if explicit:
        return [Path(explicit)]
    # an editable install has two entries: the checkout, and site-packages with the built libraries
    own = [Path(entry) / "lib" for entry in llama_cpp.__path__]
    return [*own, Path(sys.prefix) / "lib"]


def find_library_folder() -> Path:
    """The first candidate that holds the libraries."""
    folders = candidate_folders()
    for folder in folders:
        if (folder / SONAMES["llama"]).exists() or (folder / "libllama.so").exists():
            return folder.resolve()
    searched = "\n  ".join(str(folder) for folder in folders)
    if os.environ.get("LLAMA_CPP_LIB_PATH"):
        remedy = "LLAMA_CPP_LIB_PATH must name the folder that holds them; unset it to use the ones installed."
    else:
        remedy = "Build them with `pip install .` in a checkout, or set LLAMA_CPP_LIB_PATH to a folder that holds them."
    raise LibraryNotFoundError(f"{SONAMES['llama']} was not found in:\n  {searched}\n", remedy=remedy)


def _open(folder: Path) -> dict[str, ctypes.CDLL]:
    if not (folder / SONAMES["llama-common-c"]).exists():
        raise LibraryMismatchError(
            f"{folder} holds a llama.cpp without {SONAMES['llama-common-c']}: it was not built by this project.",
            remedy=f"Point LLAMA_CPP_LIB_PATH to a build of llama.cpp {pinned.LLAMA_CPP_COMMIT[:12]} made with this "
            "package (LLAMA_CPP_SOURCE_DIR builds from your own checkout), or unset it.",
        )
    opened = {}
    for name, soname in SONAMES.items():
        try:
            opened[name] = ctypes.CDLL(str(folder / soname))
        except OSError as error:
            raise LibraryNotFoundError(
                f"{folder / soname} cannot be opened: {error}.",
                remedy="The installation is incomplete, or another copy is in the way on LD_LIBRARY_PATH.",
            ) from error
    return opened


def _check_identity(opened: dict[str, ctypes.CDLL], folder: Path) -> None:
    def text(library: str, function: str) -> str:
        f = getattr(opened[library], function)
        f.restype, f.argtypes = ctypes.c_char_p, ()
        return str(f().decode())

    headers = text("llama-common-c", "llama_common_headers_sha256")
    commit = text("llama-common-c", "llama_common_commit")
    if headers != pinned.HEADERS_SHA256:
        raise LibraryMismatchError(
            f"The libraries in {folder} were built from llama.cpp {commit[:12]} with other headers than these "
            f"bindings ({pinned.LLAMA_CPP_COMMIT[:12]}): calling them could corrupt memory.",
            remedy="Rebuild (`pip install .`), or regenerate the bindings from the source you built: "
            "`python tools/generate_bindings.py --source DIR`.",
        )
    # asked through each library that needs it: another package's copy, loaded first, would be found under the soname
    for library in SONAMES:
        base = text(library, "ggml_commit")
        if base != commit:
            raise LibraryMismatchError(
                f"libggml-base in this process is from llama.cpp {base}, the other libraries in {folder} from {commit}.",
                remedy="Another package loaded its own copy first, or LD_LIBRARY_PATH leads to one; use one of the two.",
            )

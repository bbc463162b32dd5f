"""Folders, hashes and TOML."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .console import say
from .errors import PinError

REPOSITORY = Path(__file__).resolve().parent.parent


def cache_dir() -> Path:
    """The folder for downloads: ``$LLAMA_CPP_CACHE``, else ``$XDG_CACHE_HOME/llama-cpp``, else ``~/.cache/llama-cpp``."""
    if chosen := os.environ.get("LLAMA_CPP_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "llama-cpp"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        PinError: the file is missing or is not TOML.
    """
    toml = _toml_module()
    try:
        return toml.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PinError(f"{path} is missing", f"restore it: git checkout -- {path}") from None
    except toml.TOMLDecodeError as error:
        raise PinError(f"{path} is not valid TOML: {error}", f"restore it: git checkout -- {path}") from None


def _toml_module() -> Any:
    # tomllib came with Python 3.11; on 3.10 pip, which is there wherever we can download, carries the same code
    for path in ([], [str(wheel) for wheel in bundled_pip()]):
        sys.path.extend(path)
        for name in ("tomllib", "tomli", "pip._vendor.tomli"):
            with contextlib.suppress(ImportError):
                return importlib.import_module(name)
    raise PinError("Python 3.10 needs tomli to read TOML files", "python -m pip install tomli")


def bundled_pip() -> list[Path]:
    """The wheel of pip that this interpreter brings for ensurepip, if it brings one."""
    with contextlib.suppress(ImportError):
        import ensurepip

        found = sorted((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))
        # Debian keeps the wheels elsewhere
        return found or sorted(Path("/usr/share/python-wheels").glob("pip-*.whl"))
    return []


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp makes the file private
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextlib.contextmanager
def staging_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A temporary folder in ``parent`` that is gone afterwards, whatever happens in between."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
    try:
        yield folder
    finally:
        remove_tree(folder)


def remove_tree(folder: Path) -> None:
    """Remove a folder that may hold read-only files; a missing one is fine."""
    if not folder.exists():
        return
    shutil.rmtree(folder, onerror=_make_writable_and_retry)


def _make_writable_and_retry(function: Any, path: str, _: Any) -> None:
    os.chmod(os.path.dirname(path), 0o700)
    function(path)


@contextlib.contextmanager
def locked(path: Path, purpose: str, for_everybody: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; wait, and say so, while another process has it.

    ``for_everybody``: other users of this machine can lock it, too.

    Raises:
        OSError: the file cannot be opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(_open_for_everybody(path)) if for_everybody else path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is busy with {purpose}; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open_for_everybody(path: Path) -> int:
    # the right to read is enough for a lock; and in /tmp not even root may open for creation what somebody else has made
    while True:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.suppress(FileExistsError):
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL, 0o644)
            os.fchmod(handle, 0o644)  # whatever this user's umask is
            return handle

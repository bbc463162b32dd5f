"""Folders and files: where they are, and reading and writing them when they may be damaged, missing or something else."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import importlib
import json
import math
import os
import shutil
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from .console import megabytes, say
from .errors import DiskSpaceError, HomeNotFoundError, NotInstalledError, PinError
from .interruption import deferred

REPOSITORY = Path(__file__).resolve().parent.parent
if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

LARGEST_DOCUMENT = 64 << 20
"""Bytes that a JSON file of ours may have."""
_LARGEST_TOML = 1 << 20
_MOST_DOTS = 200
_DEEPEST = 100
_LARGEST_NUMBER = 2**63
_A_MOMENT, _QUIET_ROUNDS, _MOST_ROUNDS = 0.02, 3, 250
"""Seconds of a round; rounds in which a folder must not come back, and how many there are at most."""


def cache_dir() -> Path:
    """The folder for downloads: ``$LLAMA_CPP_CACHE``, else ``$XDG_CACHE_HOME/llama-cpp``, else ``~/.cache/llama-cpp``.

    Raises:
        HomeNotFoundError: nothing says where it is.
    """
    if chosen := os.environ.get("LLAMA_CPP_CACHE"):
        return expand(chosen).absolute()
    return xdg_folder("XDG_CACHE_HOME", ".cache") / "llama-cpp"


def other_place(path: str) -> str:
    """How to have another place than ``path``, which cannot be used, for people."""
    with contextlib.suppress(HomeNotFoundError, ValueError):
        if Path(os.path.abspath(path)).is_relative_to(cache_dir()) or cache_dir().is_relative_to(os.path.abspath(path)):
            return "name another place for downloads: LLAMA_CPP_CACHE=/a/folder"
    return "name another place"


def need_space(folder: Path, needed: int, what: str, remedy: str) -> None:
    """Refuse what needs more bytes in ``folder`` than are free.

    Args:
        what: needs them, for people.

    Raises:
        DiskSpaceError: there are fewer.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskSpaceError(f"{what} needs {megabytes(needed)} in {folder}, and {megabytes(free)} are free", remedy)


def xdg_folder(variable: str, default: str) -> Path:
    """The folder that ``$XDG_…`` names, else ``default`` in the user's home; a relative one is ignored, as XDG asks.

    Raises:
        HomeNotFoundError: the variable is not set, and nothing says where the home is.
    """
    base = os.environ.get(variable, "")
    return Path(base) if os.path.isabs(base) else expand("~") / default


def expand(path: str | Path) -> Path:
    """A path with ``~`` as the home folder.

    Raises:
        HomeNotFoundError: there is no such user, or nothing says where the home is.
    """
    remedy = "set HOME, or name the folder without ~"
    if os.fspath(path).split(os.sep)[0] == "~" and not os.path.isabs(os.environ.get("HOME", os.sep)):
        # everything would land in the folder that one is in, or at the root of the file system
        raise HomeNotFoundError(f"HOME is {os.environ['HOME']!r:.80}, which is no folder's absolute path", remedy)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise HomeNotFoundError(f"nothing says where the home folder of {path} is", remedy) from None


def sha256_of(path: Path, largest: int | None = None) -> str:
    """The SHA-256 of a plain file, in hex.

    Args:
        largest: bytes that it may have: a file that is empty but for its size takes no room, and hours to read.

    Raises:
        OSError: it is missing, cannot be read, is larger, or is no plain file.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        if largest is not None and os.fstat(file.fileno()).st_size > largest:
            raise _too_large(path, largest)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def open_regular(path: Path) -> IO[bytes]:
    """Open a plain file for reading. A fifo does not wait for a writer, and a device is not read.

    Raises:
        OSError: it is missing, cannot be read, or is no plain file.
    """
    return _open_special_never(path, os.O_RDONLY)


def _open_special_never(path: Path, flags: int) -> IO[bytes]:
    try:
        # looked at before it is opened, as that alone makes some devices do something; and after, as it may be another by now
        try:
            _refuse_special(os.stat(path), path)
        except FileNotFoundError:
            if os.path.islink(path):
                # what it leads to would be made, wherever that is
                raise FileNotFoundError(errno.ENOENT, "it is a link to nothing", str(path)) from None
        # a signal would leave a number behind that nobody closes
        with deferred():
            handle = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
            try:
                _refuse_special(os.fstat(handle), path)
                return os.fdopen(handle, "wb" if flags & os.O_WRONLY else "rb")
            except BaseException:
                os.close(handle)
                raise
    except ValueError as error:
        # a NUL, or half a character
        raise OSError(errno.EINVAL, f"it is no name of a file ({error})", ascii(str(path))) from None


def _refuse_special(found: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", str(path))
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise OSError(errno.EINVAL, f"it is {kinds.get(stat.S_IFMT(found.st_mode), 'a device')}, not a plain file", str(path))


def read_regular(path: Path, largest: int) -> bytes:
    """The content of a plain file of at most ``largest`` bytes.

    Raises:
        OSError: it is missing, cannot be read, is larger, or is no plain file.
    """
    with open_regular(path) as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise _too_large(path, largest)
    return data


def _too_large(path: Path, largest: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than {largest:,} bytes", str(path))


def load_json(data: bytes | str, largest: int = LARGEST_DOCUMENT, deepest: int = _DEEPEST) -> Any:
    """Read JSON that nobody vouches for.

    Stricter than ``json.loads``: UTF-8 alone; no key twice; numbers that are finite and, if whole, fit into 64 bits; texts
    that can be written and used as a path (no NUL, no half of a surrogate pair). What the document *is* the caller checks.

    Args:
        largest: bytes (of a text: characters) that it may have.
        deepest: how many lists and mappings may be inside one another.

    Raises:
        ValueError: it is not JSON, or not such JSON; the message is one line.
    """
    if len(data) > largest:
        raise ValueError(f"it is larger than {largest:,} bytes")
    text = data.decode("utf-8") if isinstance(data, bytes) else data
    try:
        document = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_int=_whole, parse_float=_finite, parse_constant=_finite
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _refuse_deep(document, deepest)
    if "\\u" in text or not isinstance(data, bytes):
        # only an escape can say what UTF-8 cannot
        _refuse_unusable_text(document)
    return document


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return mapping


def _whole(digits: str) -> int:
    # the length first: a number of a million digits takes long to read
    if len(digits) > 20 or not -_LARGEST_NUMBER <= (number := int(digits)) < _LARGEST_NUMBER:
        raise ValueError(f"the number {digits[:30]} is too large")
    return number


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"the number {digits[:30]} is not finite")
    return number


def _refuse_deep(document: Any, deepest: int) -> None:
    level = [document]
    for _ in range(deepest):
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node if type(node) is list else ())
            if type(child) in (dict, list)
        ]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {deepest} levels")


def _refuse_unusable_text(document: Any) -> None:
    for text in _texts_of(document):
        if "\0" in text:
            raise ValueError("a text in it holds a NUL")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("a text in it is not Unicode") from None


def _texts_of(document: Any) -> Iterator[str]:
    waiting = [document]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            yield node
        elif isinstance(node, dict):
            waiting += [*node, *node.values()]
        elif isinstance(node, list):
            waiting += node


def load_yaml(data: bytes | str, largest: int = 1 << 20, deepest: int = _DEEPEST) -> Any:
    """Read YAML that nobody vouches for, with PyYAML: plain values alone, no aliases, no key twice.

    An alias costs a few bytes and stands for any number of them.

    Raises:
        ValueError: it is not YAML, or not such YAML; the message may have several lines.
        NotInstalledError: PyYAML is not installed.
    """
    try:
        import yaml
    except ModuleNotFoundError:
        raise NotInstalledError(f"{sys.executable} has no pyyaml", f"{sys.executable} -m pip install pyyaml") from None
    if len(data) > largest:
        raise ValueError(f"it is larger than {largest:,} bytes")

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                alias = self.peek_event()  # type: ignore[no-untyped-call]  # it has no types yet
                raise ValueError(f"it has an alias (*{alias.anchor}), which is not understood here")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            mapping = super().construct_mapping(node, deep)
            if len(mapping) < len(node.value):
                raise ValueError(f"a key is there twice in the mapping of line {node.start_mark.line + 1}")
            return mapping

    try:
        document = yaml.load(data.decode("utf-8") if isinstance(data, bytes) else data, Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:
        raise
    # PyYAML lets out any of half a dozen kinds where a tag does not fit its value
    except Exception as error:
        raise ValueError(str(error) or repr(error)) from None
    _refuse_deep(document, deepest)
    _refuse_unusable_text(document)
    return document


def record(kind: type[T], table: Any, name: str = "") -> T:
    """Make a dataclass of a table of a TOML or JSON file. Values of fields that are text or whole numbers are checked.

    Args:
        name: of the table, for messages.

    Raises:
        ValueError: a key is missing or unknown, a value is of another type, or a text has characters that cannot be printed.
    """
    if not isinstance(table, dict):
        raise ValueError(f"{name or 'it'} is no table")
    fields = {one.name: one.type for one in dataclasses.fields(kind)}
    within = f"{name}." if name else ""
    if odd := sorted(table.keys() ^ fields.keys()):
        raise ValueError(f"{'unknown' if odd[0] in table else 'missing'} key {within}{odd[0]!s:.40}")
    for key, expected in fields.items():
        value = table[key]
        if expected in ("str", "int") and type(value).__name__ != expected:
            raise ValueError(f"{within}{key} is {value!r:.40}, and should be {'text' if expected == 'str' else 'a whole number'}")
        if isinstance(value, str) and not value.isprintable():
            raise ValueError(f"{within}{key} has a character that cannot be printed")
    return kind(**table)


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        PinError: the file is missing, cannot be read or is not TOML.
    """
    toml = _toml_module()
    remedy = f"restore it: git checkout -- {path}"
    try:
        text = read_regular(path, _LARGEST_TOML).decode("utf-8")
        # a key of many parts takes the square of their number, and minutes
        if any(line.count(".") > _MOST_DOTS for line in text.splitlines()):
            raise ValueError(f"a line has more than {_MOST_DOTS} dots")
        document: dict[str, Any] = toml.loads(text)
        return document
    except FileNotFoundError:
        raise PinError(f"{path} is missing", remedy) from None
    except OSError as error:
        raise PinError(f"{path} cannot be read: {error.strerror}", remedy) from None
    except (ValueError, RecursionError) as error:
        raise PinError(f"{path} is not valid TOML: {error}", remedy) from None


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


def link_to_nothing(path: Path) -> Path | None:
    """The link on the way to a path that leads nowhere, as to a disk that is not mounted; None where there is no such link.

    For who would take what is missing for what was never there.
    """
    return next((one for one in (path, *path.parents) if one.is_symlink() and not one.exists()), None)


def write_atomically(path: Path, text: str | bytes) -> None:
    """Write a text file so that a reader sees the old content or the new, never a part.

    Raises:
        OSError: it cannot be written, or what is at ``path`` is no plain file.
    """
    refuse_to_replace_special(path)
    with naming(path), deferred():
        # a name of up to 255 bytes is allowed, and the temporary one is longer
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(text.encode() if isinstance(text, str) else text)
            # mkstemp makes the file private
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name ``path`` in an error of the system that names no file: when a disk is full while a file is written, for one."""
    try:
        yield
    except OSError as error:
        if isinstance(error.errno, int) and error.filename is None:
            error.filename = str(path)
        raise


def refuse_to_replace_special(path: Path) -> None:
    """For who renames a file to ``path``: root could put one in the place of /dev/null.

    Raises:
        OSError: what is there is no plain file, nor a link to one or to nothing.
    """
    with contextlib.suppress(FileNotFoundError):
        _refuse_special(os.stat(path), path)


@contextlib.contextmanager
def staging_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A temporary folder in ``parent`` that is gone afterwards, whatever happens in between.

    ``parent`` is made if it is not there; if nothing came to be in it because of an error, it is gone, too.
    """
    # a second Ctrl-C does not keep it from being removed
    with deferred() as signals, made_folder(parent):
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix[:40]))
        try:
            with naming(parent), signals.released():
                yield folder
        finally:
            remove_tree(folder)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder that nobody else can enter, where temporary files lie. It is gone afterwards, also after a signal."""
    # tempfile's own would stay there if a signal came between two of its lines
    with staging_folder(Path(tempfile.gettempdir()), "llama-cpp-") as folder:
        yield folder


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[list[Path]]:
    """Make a folder and its parents where they are not there; those that are empty after an error are gone again.

    It gives those that it made, the innermost first.
    """
    made = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield made
    except BaseException:
        for one in made:
            with contextlib.suppress(OSError):
                # it refuses what is not empty
                one.rmdir()
        raise


def remove_tree(folder: Path) -> None:
    """Remove a folder that may hold read-only files, or whatever is there in its place; nothing there is fine."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder, onerror=_make_writable_and_retry)
    else:
        folder.unlink(missing_ok=True)


def remove_for_good(folder: Path) -> None:
    """Remove a folder that py-rattler was writing to when it failed or was interrupted, and wait until it stays away.

    Its threads finish the files they are at, make their folders anew for that, and cannot be waited for.
    """
    quiet = 0
    for _ in range(_MOST_ROUNDS):
        quiet = 0 if os.path.lexists(folder) else quiet + 1
        if quiet == _QUIET_ROUNDS:
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(_A_MOMENT)
    remove_tree(folder)


def _make_writable_and_retry(function: Any, path: str, _: Any) -> None:
    os.chmod(os.path.dirname(path), 0o700)
    function(path)


@contextlib.contextmanager
def locked(path: Path, purpose: str, for_everybody: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; wait, and say so, while another process has it.

    ``for_everybody``: other users of this machine can lock it, too.

    Raises:
        OSError: the file cannot be opened, or is no plain file.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open_for_everybody(path) if for_everybody else _open_special_never(path, os.O_WRONLY | os.O_CREAT) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another process is busy with {purpose}; waiting")
                fcntl.flock(file, fcntl.LOCK_EX)
            # who had it may have taken its file away, and another one is made and locked by now
            if _is_at(file, path):
                yield
                return


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _open_for_everybody(path: Path) -> IO[bytes]:
    # the right to read is enough for a lock; and in /tmp not even root may open for creation what somebody else has made
    while True:
        with contextlib.suppress(FileNotFoundError):
            return open_regular(path)
        try:
            with deferred():
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL, 0o644)
                os.fchmod(handle, 0o644)  # whatever this user's umask is
                return os.fdopen(handle, "rb")
        except FileExistsError:
            # another process was faster
            if os.path.islink(path) and not os.path.exists(path):
                raise FileNotFoundError(errno.ENOENT, "it is a link to nothing", str(path)) from None

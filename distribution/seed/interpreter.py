"""Makes conda packages of the running Python: ``python`` itself and ``python_abi``.

Shared libraries that are not glibc's come along in ``lib/``, so that the package needs nothing else of the machine
it is installed on. Left out: the test suite, Tk, what is in site-packages, and scripts that name this installation.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from ..errors import InterpreterError
from ..interruption import run_program
from . import libraries
from .conda_package import PLACEHOLDER, SeedPackage, files_in

OMITTED = shutil.ignore_patterns(
    "__pycache__", "*.pyc", "site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "tkinter", "turtle.py",
    "turtledemo", "EXTERNALLY-MANAGED", "sitecustomize.py", "_distutils_system_mod.py", "_tkinter.*", "_test*.so",
    "_ctypes_test*.so", "xxlimited*.so", "nis.*.so", "*.a", "*.o", "config.c*", "python-config.py", "libpython*", "Setup*",
    "makesetup", "install-sh",
)  # fmt: skip
"""Tk and ``nis`` would bring in dozens of libraries, and Debian's own modules would install to Debian's folders."""

# Debian's Python installs to, and looks in, folders of other names than conda's. Its `site` is frozen into the program,
# so that another site.py would not be read.
DEBIAN_SCHEMES = re.compile(r"prefix_scheme = '(posix_local|deb_system)'")
SITECUSTOMIZE = """\
import os
import site
import sys

FOLDER = os.path.join("lib", "python%d.%d" % sys.version_info[:2], "site-packages")


def getsitepackages(prefixes=None):
    return [os.path.join(prefix, FOLDER) for prefix in dict.fromkeys(prefixes or site.PREFIXES)]


site.getsitepackages = getsitepackages
site.addsitepackages(set(sys.path))
"""

PROBE = """
import bz2, ctypes, hashlib, json, lzma, site, sqlite3, ssl, sys, sysconfig, zlib
print(json.dumps({
    "prefix": sys.prefix, "purelib": sysconfig.get_path("purelib"), "path": site.getsitepackages(),
    "stdlib": json.__file__, "version": sys.version,
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """The base installation of the Python that runs (the one a virtual environment was made with)."""

    prefix: Path
    executable: Path
    stdlib: Path
    version: tuple[int, int, int]
    build: str

    @classmethod
    def running(cls) -> Interpreter:
        """The one that runs this.

        Raises:
            InterpreterError: it is not CPython for x86-64 Linux with glibc.
        """
        machine = f"{platform.python_implementation()} {platform.system()} {platform.machine()} {platform.libc_ver()[0]}"
        if machine != "CPython Linux x86_64 glibc":
            raise InterpreterError(f"a seed is made of CPython on x86-64 Linux with glibc, and this is {machine}", REMEDY)
        if sys.version_info.releaselevel != "final" or sys.abiflags:
            raise InterpreterError(f"Python {platform.python_version()}{sys.abiflags} is not a usual release", REMEDY)
        prefix = Path(sys.base_prefix)
        name = f"python{sys.version_info.major}.{sys.version_info.minor}"
        executable, stdlib = prefix / "bin" / name, prefix / "lib" / name
        if not executable.is_file() or not (stdlib / "os.py").is_file():
            raise InterpreterError(f"{prefix} has no bin/{name} or no lib/{name}", REMEDY)
        return cls(prefix, executable.resolve(), stdlib, sys.version_info[:3], sys.version)

    @property
    def name(self) -> str:
        """``python3.11``."""
        return f"python{self.version[0]}.{self.version[1]}"

    @property
    def release(self) -> str:
        """``3.11.7``."""
        return ".".join(map(str, self.version))

    @property
    def abi(self) -> str:
        """``cp311``."""
        return f"cp{self.version[0]}{self.version[1]}"

    @property
    def programs(self) -> list[Path]:
        """Every file with machine code that belongs to it."""
        modules = sorted((self.stdlib / "lib-dynload").glob("*.so"))
        omitted = OMITTED("", [module.name for module in modules])
        return [self.executable, *(module for module in modules if module.name not in omitted)]

    @functools.cached_property
    def bundled(self) -> dict[str, Path]:
        """The shared libraries that come along: soname to file."""
        found = libraries.needed_by(self.programs)
        return {soname: file for soname, file in found.items() if soname not in libraries.COMPILER}

    def digest(self) -> str:
        """Differs wherever another package would come out."""
        content = hashlib.sha256(f"{self.prefix} {self.build}".encode())
        for file in [self.executable, *self.bundled.values()]:
            content.update(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
        return content.hexdigest()


REMEDY = "run this with another Python, for example one from pyenv, or Debian's python3 (apt-get install python3-venv)"


def packages(interpreter: Interpreter, patchelf: Path, staging: Path) -> list[SeedPackage]:
    """``python`` and ``python_abi``; the files of the former are put together in ``staging``.

    Raises:
        InterpreterError: the copy does not run.
    """
    # resolved, because the copy is asked for the path it runs from
    tree = staging.resolve() / "python"
    _copy(interpreter, tree)
    bundled = _bundle(interpreter, tree, patchelf)
    _adapt_debian(tree / "lib" / interpreter.name)
    _generalise(interpreter, tree)
    _check(interpreter, tree)
    low = f"{interpreter.version[0]}.{interpreter.version[1]}"
    abi = f"python_abi {low}.* *_{interpreter.abi}"
    notes = {soname: str(file.resolve().name) for soname, file in bundled.items()}
    python = SeedPackage(
        "python",
        interpreter.release,
        build=("h", "_0_cpython"),
        depends=[f"__glibc >={platform.libc_ver()[1]},<3.0.a0", "libgcc", "libstdcxx"],
        constrains=[abi],
        license="Python-2.0",
        summary="The Python of the machine that made this seed",
        home="https://www.python.org/",
        files=files_in(tree),
        licences={**libraries.licences_of(bundled.values()), "LICENSE.txt": _licence(interpreter)},
        run_exports={"weak": [abi], "noarch": ["python"]},
        index={"python_site_packages_path": f"lib/{interpreter.name}/site-packages"},
        extra={"bundled_libraries": notes, "build": interpreter.build},
    )
    names = SeedPackage(
        "python_abi",
        low,
        build=("", f"_{interpreter.abi}"),
        subdir="noarch",
        noarch="generic",
        constrains=[f"python {low}.* *_cpython"],
        license="BSD-3-Clause",
        summary="Says which ABI of Python a package was built for",
    )
    return [python, names]


def _copy(interpreter: Interpreter, tree: Path) -> None:
    (tree / "bin").mkdir(parents=True)
    shutil.copy(interpreter.executable, tree / "bin" / interpreter.name)
    for link in ("python3", "python"):
        (tree / "bin" / link).symlink_to(interpreter.name)
    shutil.copytree(interpreter.stdlib, tree / "lib" / interpreter.name, ignore=OMITTED)
    (tree / "lib" / interpreter.name / "site-packages").mkdir()
    (tree / "lib" / interpreter.name / "site-packages" / "README.txt").write_text("Packages are installed here.\n")
    headers = Path(sysconfig.get_path("include", vars={"installed_base": str(interpreter.prefix)}))
    if (headers / "Python.h").is_file():
        shutil.copytree(headers, tree / "include" / interpreter.name, ignore=shutil.ignore_patterns("site"))


def _bundle(interpreter: Interpreter, tree: Path, patchelf: Path) -> dict[str, Path]:
    bundled = interpreter.bundled
    for soname, file in bundled.items():
        shutil.copy(file, tree / "lib" / soname)
        libraries.set_rpath(patchelf, tree / "lib" / soname, "$ORIGIN")
    shared = f"lib{interpreter.name}.so.1.0"
    if shared in bundled:
        (tree / "lib" / f"lib{interpreter.name}.so").symlink_to(shared)
    libraries.set_rpath(patchelf, tree / "bin" / interpreter.name, "$ORIGIN/../lib")
    for module in sorted((tree / "lib" / interpreter.name / "lib-dynload").glob("*.so")):
        libraries.set_rpath(patchelf, module, "$ORIGIN/../..")
    return bundled


def _adapt_debian(stdlib: Path) -> None:
    if "dist-packages" not in (stdlib / "site.py").read_text(encoding="utf-8"):
        return
    (stdlib / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
    for file in [*stdlib.glob("sysconfig.py"), *stdlib.glob("sysconfig/__init__.py")]:
        text = file.read_text(encoding="utf-8")
        file.write_text(DEBIAN_SCHEMES.sub("prefix_scheme = 'posix_prefix'", text), encoding="utf-8")


def _generalise(interpreter: Interpreter, tree: Path) -> None:
    """Put the placeholder where build settings name this installation."""
    prefix = re.compile(rf"(?<![\w/-]){re.escape(str(interpreter.prefix))}(?![\w.-])")
    stdlib = tree / "lib" / interpreter.name
    settings = ("_sysconfigdata_*.py", "_sysconfig_vars_*.json", "config-*/Makefile")
    for file in (file for pattern in settings for file in stdlib.glob(pattern)):
        text = file.read_text(encoding="utf-8")
        # linker flags put a path right behind the letter
        text = re.sub(rf"(-[LI]|-Wl,-rpath[,=]){re.escape(str(interpreter.prefix))}(?=/)", rf"\g<1>{PLACEHOLDER}", text)
        file.write_text(prefix.sub(PLACEHOLDER, text), encoding="utf-8")


def _check(interpreter: Interpreter, tree: Path) -> None:
    """Run the copy on its own, and see that it is one and looks where conda installs."""
    command = [str(tree / "bin" / interpreter.name), "-E", "-s", "-B", "-c", PROBE]
    done = run_program(command, env={}, cwd=os.sep)
    if done.returncode:
        raise InterpreterError(f"a copy of {interpreter.prefix} does not run:\n{done.stderr.strip()}", REMEDY)
    found = json.loads(done.stdout)
    site_packages = str(tree / "lib" / interpreter.name / "site-packages")
    right = (
        found["prefix"] == str(tree)
        and found["stdlib"].startswith(f"{tree}/")
        and found["version"] == interpreter.build
        and found["purelib"] == site_packages
        and site_packages in found["path"]
    )
    if not right:
        raise InterpreterError(f"a copy of {interpreter.prefix} does not look in its own site-packages: {found}", REMEDY)


def _licence(interpreter: Interpreter) -> bytes:
    for file in (interpreter.stdlib / "LICENSE.txt", Path(f"/usr/share/doc/{interpreter.name}/copyright")):
        if file.is_file():
            return file.read_bytes()
    return b"Python Software Foundation License Version 2\n"

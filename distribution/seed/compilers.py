"""Packages that stand for the system's compiler: activation scripts, its runtime libraries, and the glibc it links to.

The compiler itself is not copied. The names are conda-forge's, so that ``compiler('cxx')`` and ``stdlib('c')`` of a
recipe find them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..errors import SeedError, ToolNotFoundError
from ..interruption import run_program
from . import libraries
from .activation_scripts import scripts
from .conda_package import PackedFile, SeedPackage

REMEDY = "install gcc and g++ (Debian: apt-get install g++), or set CC and CXX to them"

TOOLS = {
    "AR": "ar", "AS": "as", "LD": "ld", "NM": "nm", "OBJCOPY": "objcopy",
    "OBJDUMP": "objdump", "RANLIB": "ranlib", "READELF": "readelf", "STRIP": "strip",
}  # fmt: skip

GLIBC = (
    "ld-linux-x86-64.so.2", "libanl.so.1", "libc.so.6", "libdl.so.2", "libm.so.6", "libmvec.so.1", "libpthread.so.0",
    "libresolv.so.2", "librt.so.1", "libutil.so.1",
)  # fmt: skip
SYSROOT = "x86_64-conda-linux-gnu/sysroot/lib64"

# What conda-forge's activation sets, less what belongs to its own compiler (-march, a sysroot), and without flags for the
# compiler: a cache then answers with what a build outside of conda left in it. Inside a build $PREFIX is where the result
# goes.
BEFORE = """\
_seed_prefix="$CONDA_PREFIX"
if [ "${CONDA_BUILD:-0}" = "1" ]; then
    _seed_prefix="$PREFIX"
fi
"""
LINK_FLAGS = (
    "-Wl,--as-needed -Wl,-z,relro -Wl,-z,now -Wl,--disable-new-dtags"
    " -Wl,-rpath,$_seed_prefix/lib -Wl,-rpath-link,$_seed_prefix/lib -L$_seed_prefix/lib"
)
CMAKE_ARGS = (
    "-DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_LIBDIR=lib -DCMAKE_INSTALL_PREFIX=$_seed_prefix"
    " -DCMAKE_PREFIX_PATH=$_seed_prefix -DCMAKE_AR=$AR -DCMAKE_RANLIB=$RANLIB -DCMAKE_STRIP=$STRIP"
)


@dataclass(frozen=True)
class Compiler:
    """The system's GCC.

    Attributes:
        cc: the C compiler.
        cxx: the C++ compiler.
        version: for example ``12.2.0``.
        release: what it says about itself, the distribution's build included.
        glibc: the version of the C library that it links to.
    """

    cc: Path
    cxx: Path
    version: str
    release: str
    glibc: str

    @classmethod
    def of_system(cls) -> Compiler:
        """``$CC`` and ``$CXX``, or ``gcc`` and ``g++``.

        Raises:
            ToolNotFoundError: there is none, or a part of it is missing.
            SeedError: it is another compiler, or the two differ in version.
        """
        cc, cxx = _program("CC", "gcc"), _program("CXX", "g++")
        versions = {_say(cc, "-dumpfullversion"), _say(cxx, "-dumpfullversion")}
        release = _say(cc, "--version").splitlines()[0]
        if "Free Software Foundation" not in _say(cc, "--version") or len(versions) != 1:
            raise SeedError(f"{cc} and {cxx} are not GCC of one version: {', '.join(sorted(versions))}", REMEDY)
        return cls(cc, cxx, versions.pop(), release, platform.libc_ver()[1])

    @functools.cached_property
    def runtime(self) -> dict[str, Path]:
        """Soname to file of the libraries that come with it."""
        found = {soname: Path(_say(self.cxx, f"-print-file-name={soname}")) for soname in libraries.COMPILER}
        if missing := [soname for soname, file in found.items() if not file.is_file()]:
            raise ToolNotFoundError(f"{self.cxx} has no {', '.join(missing)}", REMEDY)
        return {soname: file.resolve() for soname, file in found.items()}

    def digest(self) -> str:
        """Differs wherever other packages would come out."""
        content = hashlib.sha256(f"{self.cc} {self.cxx} {self.release} {self.glibc} {_tools()}".encode())
        for file in self.runtime.values():
            content.update(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
        return content.hexdigest()


def packages(compiler: Compiler) -> list[SeedPackage]:
    """Compilers, runtime libraries and the C library.

    Raises:
        ToolNotFoundError: a part of the compiler is missing.
    """
    major = compiler.version.partition(".")[0]
    return [
        _activation(compiler, "gcc_linux-64", {"CC": compiler.cc, **_tools()}, [f"libgcc >={major}"], []),
        _activation(
            compiler,
            "gxx_linux-64",
            {"CXX": compiler.cxx},
            [f"libgcc >={major}", f"libstdcxx >={major}"],
            [f"gcc_linux-64 {compiler.version}.*"],
        ),
        *(_runtime(compiler, soname, file) for soname, file in compiler.runtime.items()),
        _sysroot(compiler),
    ]


def _activation(
    compiler: Compiler, name: str, programs: dict[str, Path], run_exports: list[str], depends: list[str]
) -> SeedPackage:
    settings = {variable: shlex.quote(str(program)) for variable, program in programs.items()}
    if name.startswith("gcc"):
        settings |= {"CPPFLAGS": '"-isystem $_seed_prefix/include"', "LDFLAGS": f'"{LINK_FLAGS}"'}
        settings["CMAKE_ARGS"] = f'"{CMAKE_ARGS}"'
    return SeedPackage(
        name,
        compiler.version,
        depends=[*depends, f"sysroot_linux-64 {compiler.glibc}.*"],
        license="MIT",
        summary="Sets the variables that make a build use the system's GCC",
        files=scripts(name, settings, BEFORE),
        run_exports={"strong": run_exports},
        extra={"compiler": compiler.release},
    )


def _runtime(compiler: Compiler, soname: str, file: Path) -> SeedPackage:
    files = {f"lib/{file.name}": PackedFile(source=file)}
    if file.name != soname:
        files[f"lib/{soname}"] = PackedFile(link=file.name)
    name = libraries.COMPILER[soname]
    return SeedPackage(
        name,
        compiler.version,
        depends=[f"__glibc >={compiler.glibc},<3.0.a0", *(["libgcc"] if name == "libstdcxx" else [])],
        license="GPL-3.0-only WITH GCC-exception-3.1",
        summary=f"{soname} of the system's GCC",
        files=files,
        licences=libraries.licences_of([file]),
        extra={"compiler": compiler.release},
    )


def _sysroot(compiler: Compiler) -> SeedPackage:
    text = (
        f"What is compiled in this environment is linked to the build machine's own glibc {compiler.glibc}.\n"
        "It does not run where glibc is older. conda-forge's sysroot packages reach further back.\n"
    )
    # rattler-build lets a library need what it finds here, and nothing else that is outside the environment
    found = {name: _say(compiler.cc, f"-print-file-name={name}") for name in GLIBC}
    links = {f"{SYSROOT}/{name}": PackedFile(link=path) for name, path in found.items() if os.path.isabs(path)}
    return SeedPackage(
        "sysroot_linux-64",
        compiler.glibc,
        subdir="noarch",
        noarch="generic",
        license="MIT",
        summary="Says which glibc the system's compiler links to",
        files={"share/sysroot_linux-64/README": PackedFile(text.encode()), **links},
        run_exports={"strong": [f"__glibc >={compiler.glibc},<3.0.a0"]},
    )


def _program(variable: str, name: str) -> Path:
    chosen = os.environ.get(variable) or name
    # the words after the program would be lost in a path; ccache and the like have variables of their own
    found = shutil.which(chosen)
    if not found:
        raise ToolNotFoundError(f"there is no program {chosen!r}", REMEDY)
    return Path(found)


def _tools() -> dict[str, Path]:
    found = {variable: shutil.which(name) for variable, name in TOOLS.items()}
    if missing := [TOOLS[variable] for variable, path in found.items() if path is None]:
        raise ToolNotFoundError(f"there is no {', '.join(missing)}", "install binutils (Debian: apt-get install binutils)")
    return {variable: Path(path) for variable, path in found.items() if path}


def _say(program: Path, option: str) -> str:
    done = run_program([str(program), option], env={**os.environ, "LC_ALL": "C"})
    if done.returncode:
        raise SeedError(f"{program} {option} failed: {done.stderr.strip()}", REMEDY)
    return done.stdout.strip()

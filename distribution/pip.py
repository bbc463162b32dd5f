"""Fetching pinned files from the user's Python package index, through pip."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .console import STDERR, say
from .errors import DownloadError, HashMismatchError, ToolNotFoundError
from .files import bundled_pip, sha256_of, staging_folder

ATTEMPTS = 2

# The user's index, proxy and certificates stay in force, PIP_NO_INDEX among them: whoever sets it
# (a conda build does) wants no download. These go: they change what pip would fetch, or refuse to
# fetch outside a virtual environment although nothing is installed.
DROPPED = (
    "PYTHONPATH",  # inside pip's build isolation it hides pip
    "PIP_REQUIRE_VIRTUALENV",
    "PIP_NO_BINARY",
    "PIP_ONLY_BINARY",
    "PIP_NO_BUILD_ISOLATION",
    "PIP_PLATFORM",
    "PIP_PYTHON_VERSION",
    "PIP_REQUIRE_HASHES",
    "PIP_BUILD_TRACKER",  # of the pip that may be running us
)


@dataclass(frozen=True)
class IndexFile:
    """One file of a release on the index. ``sha256`` is empty where it is not known yet."""

    name: str
    version: str
    filename: str
    sha256: str

    @property
    def is_wheel(self) -> bool:
        return self.filename.endswith(".whl")


def fetch(file: IndexFile, cache: Path) -> Path:
    """Return the path of a pinned file in the cache, downloading it if it is not there.

    The hash is checked every time, and by pip before pip opens what it downloaded.

    Raises:
        HashMismatchError: the index or the cache holds other bytes than the pinned ones.
        DownloadError: the index could not be reached, or has no such file.
        ToolNotFoundError: this interpreter has no pip and no ensurepip.
    """
    target = cached_path(file, cache)
    if not target.exists():
        _download_into(file, target)
    check_sha256(target, file.sha256)
    return target


def fetch_release(name: str, version: str, cache: Path) -> Path:
    """Return the path of a release's source distribution, whose hash is not known yet.

    Raises:
        DownloadError: the index could not be reached, or has no such release.
        ToolNotFoundError: this interpreter has no pip and no ensurepip.
    """
    file = IndexFile(name, version, f"{name.replace('-', '_')}-{version}.tar.gz", "")
    target = cached_path(file, cache)
    if not target.exists():
        _download_into(file, target)
    return target


def cached_path(file: IndexFile, cache: Path) -> Path:
    """Where a file lies, or will lie, in the cache."""
    return cache / "downloads" / file.filename


def check_sha256(path: Path, expected: str) -> None:
    """Raise HashMismatchError unless the file has the expected hash."""
    found = sha256_of(path)
    if found != expected:
        raise HashMismatchError(
            f"{path} is not the pinned file\n  expected sha256 {expected}\n  found    sha256 {found}",
            f"delete {path} and run this again; if it happens again, the index serves another file: do not use it",
        )


def _download_into(file: IndexFile, target: Path) -> None:
    with staging_folder(target.parent, ".part-") as folder:
        _download(file, folder)
        fetched = folder / file.filename
        if not fetched.exists():
            names = ", ".join(sorted(path.name for path in folder.glob(f"*{target.suffix}"))) or "nothing"
            raise DownloadError(f"pip fetched {names} instead of {file.filename}", _remedy(target))
        if file.sha256:
            check_sha256(fetched, file.sha256)
        os.replace(fetched, target)


def _download(file: IndexFile, folder: Path) -> None:
    requirements = folder / "requirements.txt"
    pinned = f" --hash=sha256:{file.sha256}" if file.sha256 else ""
    requirements.write_text(f"{file.name}=={file.version}{pinned}\n")
    command, environment = pip_command()
    command += ["download", "--no-deps", "--retries", "2", "--dest", ".", "--requirement", requirements.name]
    # not :all:, which would also compile what the source distribution is built with
    command += ["--only-binary", ":all:"] if file.is_wheel else ["--no-binary", file.name]
    if file.sha256:
        command.append("--require-hashes")
    for attempt in range(ATTEMPTS):
        if attempt:
            say("the download failed; trying once more")
        # pip's progress goes to stderr, so that stdout holds results only; its complaints wait for the verdict
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=STDERR, stderr=subprocess.PIPE, text=True
        )
        if done.returncode == 0:
            return
        if "DO NOT MATCH THE HASHES" in done.stderr:
            raise HashMismatchError(
                f"the index serves another {file.filename} than the pinned one; pip says:\n{_tail(done.stderr)}",
                "do not use it; ask where the package index gets its files from",
            )
    raise DownloadError(
        f"could not download {file.filename}; pip says:\n{_tail(done.stderr)}",
        _remedy(folder.parent / file.filename),
    )


def pip_command() -> tuple[list[str], dict[str, str]]:
    """The start of a pip command line, and the environment to run it in.

    Raises:
        ToolNotFoundError: this interpreter has no pip and no ensurepip.
    """
    environment = {name: value for name, value in os.environ.items() if name not in DROPPED}
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    environment["PIP_NO_INPUT"] = "1"
    command = [sys.executable, "-m", "pip"]
    probe = subprocess.run([*command, "--version"], env=environment, cwd=os.sep, capture_output=True)
    if probe.returncode == 0:
        return command, environment
    for wheel in bundled_pip():
        # pip runs from inside its own wheel
        return command, {**environment, "PYTHONPATH": str(wheel)}
    raise ToolNotFoundError(
        f"{sys.executable} has no pip",
        "run this with a Python that has pip (Debian: apt-get install python3-pip python3-venv)",
    )


def _remedy(target: Path) -> str:
    hint = "PIP_NO_INDEX is set: unset it, or " if os.environ.get("PIP_NO_INDEX") else "check the network, or "
    return f"{hint}put the file at {target} by hand"


def _tail(text: str, lines: int = 6) -> str:
    kept = [line for line in text.strip().splitlines() if "WARNING: Location" not in line][-lines:]
    return "\n".join(f"    {line}" for line in kept)

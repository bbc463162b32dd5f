"""Fetching pinned files from the user's Python package index, through pip."""

from __future__ import annotations

import ast
import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .console import STDERR, say
from .errors import DownloadError, HashMismatchError, ToolNotFoundError
from .files import bundled_pip, sha256_of, staging_folder
from .interruption import run_program

# What of pip's settings counts, from the environment and from its configuration files: where files come from and how that is
# reached. Everything else could change what is fetched, or forbid it: conda builds export PIP_NO_DEPENDENCIES, and people
# allow installing in virtual environments alone. PIP_NO_INDEX stays: whoever sets it wants no download.
KEPT = frozenset({
    "cache-dir", "cert", "client-cert", "default-timeout", "extra-index-url", "find-links", "index-url", "keyring-provider",
    "no-cache-dir", "no-index", "proxy", "pypi-url", "resume-retries", "retries", "timeout", "trusted-host",
})  # fmt: skip
# ... and of these the one value that says which certificates are believed
KEPT_VALUES = {"use-feature": "truststore", "use-deprecated": "legacy-certs"}
PATHS = ("cache-dir", "cert", "client-cert", "find-links")
# What of Python's variables counts: where this Python, and perhaps pip, is.
PYTHONS_OWN = frozenset({"PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONPLATLIBDIR", "PYTHONUSERBASE"})
RETRIES = "2"
DOWNLOAD_SECONDS = 7200
"""For one run of pip that downloads: the largest file has some 400 MB, and a seed some 50 small ones."""
_CONFIG_SECONDS = 300
_LARGEST = 4 << 30
"""Bytes of a file on an index: the largest that is pinned has some 400 MB."""

# pip asks a source distribution for its metadata before it keeps the file, and would install what that is built with, and
# run it. This stands in for the build backend, in the one process that pip starts for it: the metadata is in PKG-INFO, which
# every source distribution has. A backend that lies in the archive itself is left alone.
BACKEND = """\
import email.parser, os, pathlib, sys, types

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    text = pathlib.Path("PKG-INFO").read_text(encoding="utf-8")
    found = email.parser.HeaderParser().parsestr(text)
    made = pathlib.Path(folder, f"{found['Name'].replace('-', '_')}-{found['Version']}.dist-info")
    made.mkdir()
    (made / "METADATA").write_text(text, encoding="utf-8")
    return made.name

for prefix in ("_PYPROJECT_HOOKS_", "PEP517_"):  # newer and older pips
    name, _, attributes = os.environ.get(f"{prefix}BUILD_BACKEND", "").partition(":")
    if name and not any(variable.startswith(f"{prefix}BACKEND_PATH") for variable in os.environ):
        stand_in = sys.modules[name] = types.ModuleType(name)
        stand_in.prepare_metadata_for_build_wheel = prepare_metadata_for_build_wheel
        for attribute in filter(None, attributes.split(".")):
            setattr(stand_in, attribute, stand_in)
"""

# What pip says, in its log or on stderr, and what to do about it; the first that matches counts.
CAUSES = (
    (r"No space left on device|Disk quota exceeded|File too large", "free some space in {folder}"),
    (
        # the last where pip asks the system's authorities about a server that is named by its number
        r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerification|check_hostname requires server_hostname",
        "name the authority that your network trusts: PIP_CERT=/path/to/ca.pem",
    ),
    (
        r"[Pp]roxy(Error| server)|Cannot connect to proxy|Tunnel connection failed|\b407 (Client Error|Proxy Auth)",
        "correct the proxy: PIP_PROXY, HTTPS_PROXY or pip's configuration",
    ),
    (r"\b40[13] Client Error", "give pip the index's password: in PIP_INDEX_URL, ~/.netrc or pip's configuration"),
    (r"\b5\d\d Server Error|too many 5\d\d error", "ask whoever runs the index, or try again later"),
    (
        r"NewConnectionError|ConnectTimeout|ReadTimeout|NameResolution|Connection (refused|reset|aborted)|Retrying \(|"
        r"connection error|Failed to establish|ConnectionResetError|ProtocolError|IncompleteRead|Network is unreachable",
        "check the network",
    ),
    (r"No matching distribution|Could not find a version", "name an index that has it: PIP_INDEX_URL"),
    (r"", "put right what pip complains about"),
)  # fmt: skip


VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,99}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FILENAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,199}")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class IndexFile:
    """One file of a release on the index. ``sha256`` is empty where it is not known yet."""

    name: str
    version: str
    filename: str
    sha256: str

    def check(self, ending: str, within: str = "") -> None:
        """Raise ValueError where a value is none that this key can have: they become paths, and what pip is asked for.

        Args:
            ending: of the filename.
            within: what stands before the keys, for messages.
        """
        forms = {"name": _NAME, "version": VERSION, "filename": _FILENAME, "sha256": _SHA256}
        for key, form in forms.items():
            value = getattr(self, key)
            if not form.fullmatch(value) or (key == "filename" and not value.endswith(ending)):
                raise ValueError(f"{within}{key} cannot be {value!r:.80}")

    @property
    def is_wheel(self) -> bool:
        return self.filename.endswith(".whl")


def fetch(file: IndexFile, cache: Path) -> Path:
    """Return the path of a pinned file in the cache, downloading it if it is not there.

    The hash is checked every time, and by pip before pip opens what it downloaded.

    Raises:
        HashMismatchError: the index or the cache holds other bytes than the pinned ones.
        DownloadError: the index could not be reached or has no such file, or pip cannot read its configuration.
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
    found = digest_of(path)
    if found != expected:
        raise HashMismatchError(
            f"{path} is not the pinned file\n  expected sha256 {expected}\n  found    sha256 {found}",
            f"delete {path} and run this again; if it happens again, the index serves another file: do not use it",
        )


def digest_of(path: Path) -> str:
    """The SHA-256 of a file from an index.

    Raises:
        HashMismatchError: it is larger than any file there.
        OSError: it cannot be read.
    """
    try:
        return sha256_of(path, _LARGEST)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise HashMismatchError(f"{path} is no file of an index: {error.strerror}", f"delete {path} and run this again") from None


def _download_into(file: IndexFile, target: Path) -> None:
    with staging_folder(target.parent, ".part-") as folder:
        _download(file, folder, target)
        fetched = folder / file.filename
        if not fetched.exists():
            names = ", ".join(sorted(path.name for path in folder.glob(f"*{target.suffix}"))) or "nothing"
            remedy = _remedy("No matching distribution", target, False)
            raise DownloadError(f"pip fetched {names} instead of {file.filename}", remedy)
        if file.sha256:
            check_sha256(fetched, file.sha256)
        os.replace(fetched, target)


def _download(file: IndexFile, folder: Path, target: Path) -> None:
    requirements = folder / "requirements.txt"
    pinned = f" --hash=sha256:{file.sha256}" if file.sha256 else ""
    requirements.write_text(f"{file.name}=={file.version}{pinned}\n")
    command, environment = pip_command()
    command += ["download", "--no-deps", "--dest", ".", "--log", "pip.log", "--requirement", requirements.name]
    # not :all:, which would also compile what the source distribution is built with
    command += ["--only-binary", ":all:"] if file.is_wheel else ["--no-binary", file.name]
    if file.sha256:
        command.append("--require-hashes")
    # the second time in pip's own way: what a source distribution is built with is installed and run
    attempts = [([], environment)] * 2 if file.is_wheel else [_without_building(folder, environment), ([], environment)]
    for number, (options, variables) in enumerate(attempts):
        if number:
            say("the download failed; trying once more")
        # pip's progress goes to stderr, so that stdout holds results only; its complaints wait for the verdict
        done = run(
            [*command, *options], DOWNLOAD_SECONDS, f"could not download {file.filename}", cwd=folder, env=variables,
            stdout=STDERR,
        )  # fmt: skip
        if done.returncode == 0:
            return
        if "DO NOT MATCH THE HASHES" in done.stderr:
            raise HashMismatchError(
                f"the index serves another {file.filename} than the pinned one; pip says:\n{_tail(done.stderr)}",
                "do not use it; ask where the package index gets its files from",
            )
    log = folder / "pip.log"
    said = done.stderr + (log.read_text(encoding="utf-8", errors="replace") if log.exists() else "")
    raise DownloadError(
        f"could not download {file.filename}; pip says:\n{_tail(done.stderr, _unreached(said))}",
        _remedy(said, target, environment.get("PIP_NO_INDEX", "").lower() in ("1", "true", "yes", "on", "t", "y")),
    )


def run(command: Sequence[str], seconds: float, what: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run pip, which waits for a server as long as that sends a byte now and then.

    Args:
        what: what could not be done where it takes longer than ``seconds``.

    Raises:
        DownloadError: it takes longer.
    """
    try:
        return run_program(command, seconds, **options)
    except subprocess.TimeoutExpired:
        raise DownloadError(
            f"{what}: pip did not end within {seconds:.0f} s", "check the network, or name an index that is nearer: PIP_INDEX_URL"
        ) from None


def _without_building(folder: Path, environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The options and the environment of a pip that builds nothing of a source distribution."""
    hooks = folder / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(BACKEND, encoding="utf-8")
    places = [str(hooks), *filter(None, [environment.get("PYTHONPATH")])]
    return ["--no-build-isolation"], {**environment, "PYTHONPATH": os.pathsep.join(places)}


def pip_command() -> tuple[list[str], dict[str, str]]:
    """The start of a pip command line, and the environment to run it in: of the user's settings for pip those in ``KEPT``.

    Raises:
        ToolNotFoundError: this interpreter has no pip and no ensurepip.
        DownloadError: pip cannot read its configuration.
    """
    # PYTHONPATH hides pip inside its build isolation. PYTHONWARNINGS, PYTHONINSPECT and, of compiler packages,
    # _PYTHON_SYSCONFIGDATA_NAME make it fail. It says errors of the system in the language of who uses it, and CAUSES is English
    dropped = ("PIP_", "PYTHON", "_PYTHON")
    clean = {name: value for name, value in os.environ.items() if name in PYTHONS_OWN or not name.startswith(dropped)}
    clean = {**clean, "LC_ALL": "C.UTF-8"}
    clean.pop("LANGUAGE", None)
    command = [sys.executable, "-m", "pip"]
    for wheel in (None, *bundled_pip()):
        # pip runs from inside its own wheel
        environment = {**clean, "PYTHONPATH": str(wheel)} if wheel else clean
        configured = _configuration(command, environment)
        if configured is None:
            continue
        chosen = _kept({**configured, **_variables()})
        for option, value in {**chosen, "disable-pip-version-check": "1", "no-input": "1", "config-file": os.devnull}.items():
            environment[f"PIP_{option.upper().replace('-', '_')}"] = value
        environment.setdefault("PIP_RETRIES", RETRIES)
        return command, environment
    raise ToolNotFoundError(
        f"{sys.executable} has no pip",
        "run this with a Python that has pip (Debian: apt-get install python3-pip python3-venv)",
    )


def _configuration(command: list[str], environment: Mapping[str, str]) -> dict[str, str] | None:
    """What pip's configuration files say for ``pip download``; None where there is no pip."""
    # variables overrule files: nothing in them may silence the answer, or make it that of one kind of file alone
    asked = {**environment, **{f"PIP_{name}": "0" for name in ("QUIET", "VERBOSE", "USER", "GLOBAL", "SITE")}}
    if file := os.environ.get("PIP_CONFIG_FILE"):
        asked["PIP_CONFIG_FILE"] = file
    done = run([*command, "config", "list"], _CONFIG_SECONDS, "cannot read pip's configuration", env=asked, cwd=os.sep)
    if done.returncode and re.search(r"No module named '?pip\b", done.stderr):
        return None
    if done.returncode:
        raise DownloadError(
            f"pip cannot read its configuration; pip says:\n{_tail(done.stderr)}",
            "correct that file, or name another: PIP_CONFIG_FILE",
        )
    sections: dict[str, dict[str, str]] = {"global": {}, "download": {}}
    for section, option, value in re.findall(r"^([\w-]+)\.([\w-]+)=(['\"].*)$", done.stdout, re.MULTILINE):
        if section in sections:
            # a list stands on several lines there, and in a variable on one
            sections[section][option] = " ".join(ast.literal_eval(value).split("\n")).strip()
    return {**sections["global"], **sections["download"]}


def _variables() -> dict[str, str]:
    """What the environment says to pip, by the names of its options. An empty variable says nothing, as for pip."""
    return {
        name.removeprefix("PIP_").lower().replace("_", "-"): value
        for name, value in os.environ.items()
        if name.startswith("PIP_") and value
    }


def _kept(settings: Mapping[str, str]) -> dict[str, str]:
    chosen = {option: value for option, value in settings.items() if option in KEPT}
    chosen |= {option: value for option, value in KEPT_VALUES.items() if value in settings.get(option, "").split()}
    for option in PATHS:
        # pip runs in another folder than we do
        if option in chosen:
            words = chosen[option].split() if option == "find-links" else [chosen[option]]
            chosen[option] = " ".join(str(Path(word).absolute()) if Path(word).exists() else word for word in words)
    return chosen


def _remedy(said: str, target: Path, no_index: bool) -> str:
    cause = next(cause for pattern, cause in CAUSES if re.search(pattern, said))
    if no_index:
        cause = "PIP_NO_INDEX is set, or no-index in pip's configuration: unset it"
    return f"{cause.format(folder=target.parent)}, or put the file at {target} by hand"


def _unreached(said: str) -> list[str]:
    """What pip could not read, as only its log tells."""
    found = re.findall(r"Could not fetch URL (\S+): (.+?)(?: - skipping)?$", said, re.MULTILINE)
    return list(dict.fromkeys(f"{address} {reason}" for address, reason in found))


def _tail(text: str, more: Iterable[str] = (), lines: int = 6) -> str:
    kept = [line for line in text.strip().splitlines() if "WARNING: Location" not in line][-lines:]
    return "\n".join(f"    {line}" for line in (*kept, *more))

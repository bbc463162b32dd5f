"""Where conda looks for environments."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ..errors import EnvironmentFileError, HomeNotFoundError
from ..files import expand, read_regular

_FORBIDDEN = "/ :#"
_RESERVED = ("base", "root")
_LARGEST_LIST = 16 << 20


def find_prefix(name: str) -> Path:
    """The folder of the environment ``name``, by conda's rules.

    It is the first folder of ``$CONDA_ENVS_PATH`` (or ``$CONDA_ENVS_DIRS``), else ``envs`` in conda's own folder where
    conda is installed and we may write there, else ``~/.conda/envs``.

    Raises:
        EnvironmentFileError: conda allows no such name.
    """
    allowed = not name.startswith(".") and name.isprintable() and not any(one in name for one in _FORBIDDEN)
    # with what is put around it while it is made, a name may have 255 bytes
    if not name or name in _RESERVED or not allowed or len(os.fsencode(name)) > 200:
        raise EnvironmentFileError(
            f"an environment cannot be called {name!r:.80}" if name else "the file gives the environment no name",
            "give it one with -n, or a folder with -p",
        )
    return _folder() / name


def _folder() -> Path:
    for variable in ("CONDA_ENVS_PATH", "CONDA_ENVS_DIRS"):
        listed = [one for one in os.environ.get(variable, "").split(os.pathsep) if one]
        if listed:
            return Path(os.path.abspath(expand(listed[0])))
    executable = os.environ.get("CONDA_EXE", "")
    if os.path.isabs(executable):
        envs = Path(executable).parent.parent / "envs"
        if os.access(envs if os.path.exists(envs) else envs.parent, os.W_OK):
            return envs
    return Path(os.path.abspath(expand("~"))) / ".conda" / "envs"


def is_environment(prefix: Path) -> bool:
    """Whether conda would take this folder for an environment."""
    return os.path.isfile(prefix / "conda-meta" / "history")


def register(prefix: Path) -> None:
    """Tell conda about an environment, so that ``conda env list`` shows it wherever it lies."""
    line = os.fsencode(prefix)
    if b"\n" in line or b"\r" in line:
        # the list has one path a line
        return
    # only a convenience, and conda itself goes on without it
    with contextlib.suppress(OSError, HomeNotFoundError):
        listed = expand("~") / ".conda" / "environments.txt"
        listed.parent.mkdir(exist_ok=True)
        known = read_regular(listed, _LARGEST_LIST) if os.path.lexists(listed) else b""
        if line not in known.splitlines():
            with listed.open("ab") as file:
                file.write((b"" if known.endswith(b"\n") or not known else b"\n") + line + b"\n")

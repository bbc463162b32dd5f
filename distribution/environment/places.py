"""Where conda looks for environments."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import EnvironmentFileError

_FORBIDDEN = "/ :#"
_RESERVED = ("base", "root")


def find_prefix(name: str) -> Path:
    """The folder of the environment ``name``, by conda's rules.

    It is the first folder of ``$CONDA_ENVS_PATH`` (or ``$CONDA_ENVS_DIRS``), else ``envs`` in conda's own folder where
    conda is installed and we may write there, else ``~/.conda/envs``.

    Raises:
        EnvironmentFileError: conda allows no such name.
    """
    if not name or name in _RESERVED or name.startswith(".") or any(one in name for one in _FORBIDDEN):
        raise EnvironmentFileError(
            f"an environment cannot be called {name!r}" if name else "the file gives the environment no name",
            "give it one with -n, or a folder with -p",
        )
    return _folder() / name


def _folder() -> Path:
    for variable in ("CONDA_ENVS_PATH", "CONDA_ENVS_DIRS"):
        listed = [one for one in os.environ.get(variable, "").split(os.pathsep) if one]
        if listed:
            return Path(os.path.abspath(Path(listed[0]).expanduser()))
    if executable := os.environ.get("CONDA_EXE"):
        envs = Path(executable).parent.parent / "envs"
        if os.access(envs if envs.exists() else envs.parent, os.W_OK):
            return envs
    return Path.home() / ".conda" / "envs"


def is_environment(prefix: Path) -> bool:
    """Whether conda would take this folder for an environment."""
    return (prefix / "conda-meta" / "history").is_file()


def register(prefix: Path) -> None:
    """Tell conda about an environment, so that ``conda env list`` shows it wherever it lies."""
    listed = Path.home() / ".conda" / "environments.txt"
    try:
        listed.parent.mkdir(exist_ok=True)
        known = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
        if str(prefix) not in known:
            with listed.open("a", encoding="utf-8") as file:
                file.write(f"{prefix}\n")
    except OSError:
        # only a convenience, and conda itself goes on without it
        return

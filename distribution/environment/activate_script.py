"""Activation where there is no conda: a file in the environment that a shell reads."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from ..files import write_atomically

FILENAME = "activate.sh"

# `find | sort`, not a glob: zsh complains about globs that match nothing, and the order must not follow the locale.
# The scripts are read from a here-document because a pipe would run them in a subshell. They are listed from inside their
# folder because a folder may have a newline in its path.
_SCRIPT = """\
# Activates this environment in sh, bash and zsh where there is no conda (with conda: conda activate): read it with `.`
# `deactivate` undoes it.

# an environment of ours or a virtual environment; a program of this name is neither
case "$(type deactivate 2> /dev/null)" in *function*) deactivate ;; esac

_CONDA_OLD_PATH=$PATH
_CONDA_OLD_PREFIX=${{CONDA_PREFIX-}}
_CONDA_OLD_DEFAULT_ENV=${{CONDA_DEFAULT_ENV-}}
_CONDA_OLD_SHLVL=${{CONDA_SHLVL-}}
_CONDA_OLD_PS1=${{PS1-}}

export CONDA_PREFIX={prefix}
export CONDA_DEFAULT_ENV={name}
export CONDA_SHLVL=1
export PATH="$CONDA_PREFIX/bin:$PATH"
if [ -n "${{PS1-}}" ]; then PS1={prompt}"$PS1"; fi

_conda_run_scripts() {{
    [ -d "$1" ] || return 0
    while IFS= read -r _CONDA_SCRIPT; do
        if [ -n "$_CONDA_SCRIPT" ]; then . "$1/$_CONDA_SCRIPT"; fi
    done <<SCRIPTS
$(\\cd "$1" > /dev/null && command find . -name '*.sh' | LC_ALL=C command sort ${{2-}})
SCRIPTS
    unset _CONDA_SCRIPT
}}

_conda_restore() {{
    if [ -n "$2" ]; then export "$1=$2"; else unset "$1"; fi
}}

deactivate() {{
    _conda_run_scripts "$CONDA_PREFIX/etc/conda/deactivate.d" -r
    PATH=$_CONDA_OLD_PATH
    if [ -n "$_CONDA_OLD_PS1" ]; then PS1=$_CONDA_OLD_PS1; fi
    _conda_restore CONDA_PREFIX "$_CONDA_OLD_PREFIX"
    _conda_restore CONDA_DEFAULT_ENV "$_CONDA_OLD_DEFAULT_ENV"
    _conda_restore CONDA_SHLVL "$_CONDA_OLD_SHLVL"
    unset _CONDA_OLD_PATH _CONDA_OLD_PREFIX _CONDA_OLD_DEFAULT_ENV _CONDA_OLD_SHLVL _CONDA_OLD_PS1
    unset -f deactivate _conda_run_scripts _conda_restore
    hash -r 2> /dev/null || true
}}

_conda_run_scripts "$CONDA_PREFIX/etc/conda/activate.d"
hash -r 2> /dev/null || true
"""


def write_script(folder: Path, prefix: Path) -> None:
    """Write ``activate.sh`` into ``folder``, for an environment that will lie at ``prefix``.

    It is not ``bin/activate``: that name, first on PATH, would take the place of conda's own ``source activate``.
    """
    quoted, name = shlex.quote(str(prefix)), shlex.quote(prefix.name)
    # a shell runs what looks like a command in its prompt
    shown = re.sub(r"[^\w .+@=,:~-]", "?", prefix.name)
    text = _SCRIPT.format(prefix=quoted, name=name, prompt=shlex.quote(f"({shown}) "))
    # a path that is no text is written as the bytes it has; and a package may have put a link there
    write_atomically(folder / FILENAME, os.fsencode(text))

"""Scripts that set variables when an environment is activated, and put them back when it is deactivated."""

from __future__ import annotations

from collections.abc import Mapping

from .conda_package import PackedFile

# A variable that two packages change is put back right, because each keeps what it found under a name of its own and conda
# deactivates in the opposite order. The names are also those of the level that conda counts, and say which environment they
# are of: conda runs the activation scripts of the lower of two stacked environments again, while they are in force.
ACTIVATE = """\
_seed_mark="{mark}_${{CONDA_SHLVL:-0}}"
eval "_seed_found=\\"\\${{$_seed_mark-}}\\""
if [ "$_seed_found" != "${{CONDA_PREFIX:-nowhere}}" ]; then
    export "$_seed_mark=${{CONDA_PREFIX:-nowhere}}"
    _seed_set() {{
        eval "export ${{_seed_mark}}_$1=\\"\\${{$1-__unset__}}\\""
        export "$1=$2"
    }}
{before}{settings}
    unset -f _seed_set
fi
unset _seed_mark _seed_found
"""
DEACTIVATE = """\
_seed_mark="{mark}_${{CONDA_SHLVL:-0}}"
eval "_seed_found=\\"\\${{$_seed_mark-}}\\""
if [ -n "$_seed_found" ]; then
    for _seed_name in {names}; do
        eval "_seed_value=\\"\\${{${{_seed_mark}}_$_seed_name-__unset__}}\\""
        if [ "$_seed_value" = "__unset__" ]; then
            unset "$_seed_name"
        else
            export "$_seed_name=$_seed_value"
        fi
        unset "${{_seed_mark}}_$_seed_name"
    done
    unset "$_seed_mark" _seed_name _seed_value
fi
unset _seed_mark _seed_found
"""


def scripts(name: str, settings: Mapping[str, str], before: str = "") -> dict[str, PackedFile]:
    """The two scripts of a package.

    ``settings`` maps variables to words of POSIX shell, in the order they are set; ``before`` runs first.
    """
    mark = "CONDA_BACKUP_" + "".join(letter if letter.isalnum() else "_" for letter in name)
    lines = "\n".join(f"_seed_set {variable} {word}" for variable, word in settings.items())
    activate = ACTIVATE.format(mark=mark, before=before, settings=lines)
    deactivate = DEACTIVATE.format(mark=mark, names=" ".join(reversed(list(settings))))
    return {
        f"etc/conda/activate.d/{name}.sh": PackedFile(activate.encode()),
        f"etc/conda/deactivate.d/{name}.sh": PackedFile(deactivate.encode()),
    }

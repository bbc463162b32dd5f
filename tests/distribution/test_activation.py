"""``activate.sh``, in environments whose paths have whatever a path may have."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from distribution.environment import activate_script, prefixes
from distribution.errors import EnvironmentFileError

SHELLS = [shell for shell in ("bash", "dash", "zsh", "busybox") if shutil.which(shell)]
NAMES = ["plain", "new\nline", "\nfirst and last\n", "a b", "q'u\"o'te", "$(touch pwned)", "`touch pwned`", "$HOME",
"a;touch pwned", "-x", "*?[x]", "\\n\\", "ü",
         "caf\udce9", "#x", "%s", "a\tb", "\x1b[31m", "}", "!!", "~", "SCRIPTS", "line\nSCRIPTS\ntouch pwned"]  # fmt: skip
PROBE = """
before=$(env -0 | sort -z | tr '\\0' '\\001'); PS1='> '
. "$FOLDER/activate.sh" || exit 9
printf '%s\\0' "$CONDA_PREFIX" "$CONDA_DEFAULT_ENV" "${PATH%%:*}" "$ORDER" "$PS1"
command -v deactivate > /dev/null || exit 8
deactivate
test "$PS1" = '> ' || exit 7
unset PS1 ORDER
after=$(env -0 | sort -z | tr '\\0' '\\001')
test "$before" = "$after" || { echo "$before" >&2; echo "$after" >&2; exit 6; }
"""


def environment(folder: Path, name: str) -> Path:
    prefix = folder / name
    for scripts, text in (("activate.d", "ORDER=$ORDER$(basename $BASE)"), ("deactivate.d", "true")):
        (prefix / "etc" / "conda" / scripts / "below").mkdir(parents=True)
        for script in ("a one", "b", "below/c"):
            (prefix / "etc" / "conda" / scripts / f"{script}.sh").write_text(
                text.replace("$BASE", f"'{script}'").replace("basename", "echo") + "\n"
            )
    activate_script.write_script(prefix, prefix)
    return prefix


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", NAMES)
def test_activation(tmp_path, shell, name):
    prefix = environment(tmp_path / "envs", name)
    (tmp_path / "cwd").mkdir()
    command = [shell, "sh"] if shell == "busybox" else [shell]
    done = subprocess.run(
        [*command, "-c", PROBE],
        cwd=tmp_path / "cwd",
        capture_output=True,
        env={"PATH": os.environ["PATH"], "FOLDER": str(prefix), "HOME": "/nowhere"},
    )
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    found, default, first, order, prompt = done.stdout.split(b"\0")[:5]
    assert (found, default) == (os.fsencode(prefix), os.fsencode(name))
    assert first == os.fsencode(prefix / "bin") and order == b"a onebbelow/c"
    # what a shell would run or obey when it shows its prompt
    assert not set(prompt) & set(b"$`\\!%\n\x1b") and prompt.endswith(b") > ")
    assert os.listdir(tmp_path / "cwd") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_where_people_have_other_commands_of_these_names(tmp_path, shell):
    """An interactive shell knows aliases and functions: ``find`` may be fd there, and ``cd`` tell what is in the folder."""
    prefix = environment(tmp_path / "envs", "here")
    command = [shell, "sh"] if shell == "busybox" else [shell]
    habits = """
    [ -z "${BASH_VERSION-}" ] || shopt -s expand_aliases
    alias cd='echo alias' find=false sort=false
    """
    done = subprocess.run(
        [*command], input=f"{habits}\nset -eu\nORDER=\n. '{prefix}/activate.sh'\necho $ORDER\ndeactivate\n", text=True,
        capture_output=True, env={"PATH": os.environ["PATH"], "HOME": "/nowhere"},
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "a onebbelow/c", "")


@pytest.mark.parametrize("shell", [shell for shell in SHELLS if shell != "busybox"])
def test_the_script_is_one_of_the_shell(tmp_path, shell):
    for number, name in enumerate(NAMES):
        activate_script.write_script(tmp_path, tmp_path / name)
        assert subprocess.run([shell, "-n", tmp_path / "activate.sh"], capture_output=True).returncode == 0, (number, name)


@pytest.mark.parametrize(
    "name", ["", "base", "root", ".x", "a/b", "a b", "a:b", "a#b", "new\nline", "\x1b", "x" * 300, "ü" * 150, ".."]
)
def test_names_that_an_environment_cannot_have(name):
    with pytest.raises(EnvironmentFileError) as caught:
        prefixes.find_prefix(name)
    assert "-n" in caught.value.remedy and len(caught.value.message) < 300


def test_the_list_of_environments_is_only_a_convenience(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    listed = tmp_path / ".conda" / "environments.txt"
    for prefix in ("/a", "/b", "/a", "/new\nline", "/caf\udce9"):
        prefixes.register(Path(prefix))
    assert listed.read_bytes() == b"/a\n/b\n/caf\xe9\n"
    listed.write_bytes(b"/without its end \xff")
    prefixes.register(Path("/c"))
    assert listed.read_bytes() == b"/without its end \xff\n/c\n"
    for kind in ("fifo", "folder", "loop", "huge"):
        listed.unlink()
        if kind == "fifo":
            os.mkfifo(listed)
        elif kind == "loop":
            listed.symlink_to(listed)
        elif kind == "huge":
            listed.touch()
            os.truncate(listed, 1 << 40)
        else:
            listed.mkdir()
        prefixes.register(Path("/d"))
        if kind == "folder":
            listed.rmdir()
            listed.touch()
    monkeypatch.setenv("HOME", "")
    prefixes.register(Path("/e"))

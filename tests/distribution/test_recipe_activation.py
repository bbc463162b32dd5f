"""The activation scripts of the recipe and of seeded packages, in the order in which conda runs them.

What conda does on `activate`, `activate --stack`, `deactivate` and after an install is modelled as its ``activate.py`` has it:
the deactivation scripts run while CONDA_PREFIX and CONDA_SHLVL still say the old environment, then these change, then the
activation scripts run. Stepping down from a stacked environment runs the activation scripts of the one below *again*.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from distribution.seed.activation_scripts import scripts as seeded_scripts

ROOT = Path(__file__).resolve().parents[2]
ACTIVATE = ROOT / "recipe" / "activate"
SHOW = 'show() { echo "${LLAMA_CPP_LIB_PATH-nothing}|${FLAGS-nothing}|${CONDA_SHLVL-}"; }\n'
LEFT = "set | grep -E '^(_LLAMA_CPP|_llama_cpp|CONDA_BACKUP|_seed)' || :"


class Shell:
    """The commands that conda gives a shell, and what is to be seen after each.

    Args:
        before: LLAMA_CPP_LIB_PATH in the shell; None where it is not set.
        environments: folder of each environment, and whether it has our packages.
    """

    def __init__(self, before: str | None, environments: dict[Path, bool]) -> None:
        self.commands: list[str] = []
        self.expected: list[str] = []
        self.before, self._has = before, dict(environments)
        self._levels: list[tuple[Path, bool]] = []  # environment, and whether it is stacked on the one below

    @property
    def is_active(self) -> bool:
        """Whether an environment is."""
        return bool(self._levels)

    def activate(self, environment: Path, stack: bool = False) -> None:
        if self._levels and self._levels[-1][0] == environment:
            self.reactivate()
            return
        if self._levels and not stack:
            self._run("deactivate", self._levels[-1][0])
        self._levels.append((environment, stack and bool(self._levels)))
        self._at_level()
        self._run("activate", environment)
        self._show()

    def deactivate(self) -> None:
        if self._levels:
            self._run("deactivate", self._levels.pop()[0])
            self._at_level()
            if self._levels:
                self._run("activate", self._levels[-1][0])
        self._show()

    def reactivate(self) -> None:
        """What conda does by itself after `conda install`, and for the environment that is active already."""
        if self._levels:
            self._run("deactivate", self._levels[-1][0])
            self._run("activate", self._levels[-1][0])
        self._show()

    def install(self) -> None:
        """Into the active environment, unless it is also further below, where conda tells it nothing."""
        top = [environment for environment, _ in self._levels[-1:]]
        if [environment for environment, _ in self._levels if environment in top] == top:
            self._has.update(dict.fromkeys(top, True))
        self.reactivate()

    def _run(self, step: str, environment: Path) -> None:
        if self._has[environment]:
            scripts = sorted((environment / "etc" / "conda" / f"{step}.d").glob("*.sh"), reverse=step == "deactivate")
            self.commands += [f". {shlex.quote(str(script))}" for script in scripts]

    def _at_level(self) -> None:
        names = {"CONDA_SHLVL": str(len(self._levels))}
        if self._levels:
            names["CONDA_PREFIX"] = str(self._levels[-1][0])
        else:
            self.commands.append("unset CONDA_PREFIX")
        self.commands += [f"export {name}={shlex.quote(value)}" for name, value in names.items()]

    def _show(self) -> None:
        """Of the environments whose activation counts, the topmost that has our packages decides."""
        below = (self._levels[level - 1][0] for level in range(len(self._levels) - 1, 0, -1) if self._levels[level][1])
        counting = [level[0] for level in self._levels[-1:]] + list(below)
        ours = [environment for environment in counting if self._has[environment]]
        path = f"{ours[0]}/lib" if ours else "nothing" if self.before is None else self.before
        flags = "".join(f" {environment.name}" for environment in reversed(ours))
        self.commands.append("show")
        self.expected.append(f"{path}|own{flags}|{len(self._levels)}")


@pytest.fixture(scope="module", params=["bash", "dash", "zsh"])
def shell(request: pytest.FixtureRequest) -> str:
    if not shutil.which(request.param):
        pytest.skip(f"there is no {request.param}")
    return request.param


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four environments with our scripts, those of libllama and of a seeded compiler; in the last one they are found late."""
    made = {}
    for name in ("one", "two's $HOME", "three", "late"):
        made[name] = tmp_path_factory.mktemp("environments") / name
        settings = {"FLAGS": f'"${{FLAGS-}} {name}"'.replace("$HOME", "\\$HOME")}
        files = {path: entry.data for path, entry in seeded_scripts("gcc_linux-64", settings).items()}
        for step in ("activate", "deactivate"):
            files[f"etc/conda/{step}.d/libllama.sh"] = (ACTIVATE / f"{step}.sh").read_bytes()
        for path, data in files.items():
            (made[name] / path).parent.mkdir(parents=True, exist_ok=True)
            (made[name] / path).write_bytes(data)
    return made


def check(shell: str, told: list[Shell], options: str = "eu") -> None:
    """Each of ``told`` in a shell of its own that stops at the first error.

    What is seen is what is expected, and nothing is left.
    """
    script = SHOW + f"set -{options}\n"
    for number, one in enumerate(told):
        before = "unset LLAMA_CPP_LIB_PATH" if one.before is None else f"export LLAMA_CPP_LIB_PATH={shlex.quote(one.before)}"
        script += "(\n" + "\n".join([f"echo {number}", before, "export FLAGS=own CONDA_SHLVL=0", *one.commands, LEFT]) + "\n)\n"
    clean = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    done = subprocess.run([shell], input=script, env=clean, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    expected = [line for number, one in enumerate(told) for line in (str(number), *one.expected)]
    found = done.stdout.splitlines()
    for at, (line, wanted) in enumerate(zip(found, expected)):
        if line != wanted:
            number = sum(word.isdigit() for word in expected[:at]) - 1
            raise AssertionError(
                "\n".join([f"{line!r} instead of {wanted!r}", repr(told[number].before), *told[number].commands])
            )
    assert len(found) == len(expected)


@pytest.fixture(params=[None, "", "/my folder/$HOME\"'`lib", "unset", "own"])
def before(request: pytest.FixtureRequest, environments: dict[str, Path]) -> str | None:
    """LLAMA_CPP_LIB_PATH in the shell before all; also what an environment would set it to."""
    return f"{environments['one']}/lib" if request.param == "own" else request.param


def telling(before: str | None, environments: dict[str, Path]) -> Shell:
    return Shell(before, {path: name != "late" for name, path in environments.items()})


def test_environments_on_top_of_one_another(shell: str, before: str | None, environments: dict[str, Path]) -> None:
    """Two, the lower of which is activated again when the upper one goes; the same one twice; three."""
    one, two, three, _ = environments.values()
    cases = []
    for order in ((one, two), (two, one), (one, two, one), (one, two, three)):
        told = telling(before, environments)
        for environment in order:
            told.activate(environment, stack=True)
        for _ in order:
            told.deactivate()
        cases.append(told)
    check(shell, cases)
    assert cases[0].expected[-1].split("|")[0] == ("nothing" if before is None else before)


def test_environments_one_after_the_other(shell: str, before: str | None, environments: dict[str, Path]) -> None:
    one, two, three, late = environments.values()
    told = telling(before, environments)
    for environment in (one, two, late, three, one):
        told.activate(environment)
    told.activate(one)  # the active one again
    for _ in range(6):
        told.deactivate()
    check(shell, [told])


def test_an_install_into_the_active_environment(shell: str, before: str | None, environments: dict[str, Path]) -> None:
    """The scripts are there only then, and conda runs both."""
    told = telling(before, environments)
    told.activate(environments["late"])
    told.install()
    told.reactivate()
    told.activate(environments["one"], stack=True)
    told.deactivate()
    told.deactivate()
    check(shell, [told])


@pytest.mark.parametrize("length", [12, pytest.param(60, marks=pytest.mark.slow)])
def test_whatever_conda_does_in_whatever_order(shell: str, environments: dict[str, Path], length: int) -> None:
    for seed in range(40 if length == 12 else 400, 0, -20):
        check(shell, [walk(random.Random(number), environments, length) for number in range(seed - 20, seed)])


def walk(chance: random.Random, environments: dict[str, Path], length: int) -> Shell:
    places = list(environments.values())
    told = telling(chance.choice([None, "", "set:x", "unset", f"{places[0]}/lib"]), environments)
    for _ in range(chance.randrange(length)):
        step = chance.choice(["activate", "activate", "stack", "stack", "deactivate", "deactivate", "reactivate", "install"])
        if step in ("activate", "stack"):
            told.activate(chance.choice(places), stack=step == "stack")
        else:
            getattr(told, step)()
    while told.is_active:
        told.deactivate()
    return told


def test_a_value_left_over_at_a_level_is_not_put_back(shell: str, environments: dict[str, Path]) -> None:
    told = telling(None, environments)
    told.commands.append("export _LLAMA_CPP_LIB_PATH_BEFORE_1=set:/left/over")
    told.activate(environments["one"])
    told.deactivate()
    check(shell, [told])


def test_a_shell_that_counts_no_levels_is_restored_too(shell: str, before: str | None, environments: dict[str, Path]) -> None:
    for level in ("unset CONDA_SHLVL", "export CONDA_SHLVL=", "export CONDA_SHLVL='x; echo run'"):
        told = telling(before, environments)
        folder = f"{shlex.quote(str(environments['one']))}/etc/conda"
        told.commands += [f"export CONDA_PREFIX={shlex.quote(str(environments['one']))}", level]
        told.commands += [
            f". {folder}/activate.d/libllama.sh",
            f". {folder}/deactivate.d/libllama.sh",
            "unset CONDA_SHLVL",
            "show",
        ]
        told.expected.append(f"{'nothing' if before is None else before}|own|")
        check(shell, [told])

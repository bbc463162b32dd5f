"""The scripts that build packages, run as a build engine runs them, with programs that note what they are told to compile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from llama_cpp import __version__ as VERSION

ROOT = Path(__file__).resolve().parents[2]

from distribution import pip, vendor
from distribution.packaging import inputs, staged
from engine_carrier import PATCH, Setting, git

RECIPE = ROOT / "recipe"
CMAKE = """#!/usr/bin/env bash
echo "cmake $*" >> "$BUILT/compiled"
case "$*" in
  *--install*) mkdir -p "$PREFIX"/{bin,etc,lib,share/llama.cpp/licenses}
    cp vendor/llama.cpp/source/CMakeLists.txt "$PREFIX/lib/libllama.so"; echo licence > "$PREFIX/share/llama.cpp/licenses/LICENSE"
    touch vendor/llama.cpp/source/LICENSE ;;
  *-B*) mkdir -p build/conda; echo "{}" > build/conda/settings.json
    for name in CCACHE_DIR CCACHE_DISABLE LLAMA_CPP_SOURCE_DIR; do echo "$name=${!name-}"; done >> "$BUILT/compiled" ;;
esac
"""
# pip and what writes provenance; all else is real
PYTHON = """#!/usr/bin/env bash
case "$*" in
  "-m distribution provenance"*) exit 0 ;;
  "-m pip install"*) env | grep -c ^PIP_ > "$BUILT/pip-variables"
    info="$PREFIX/lib/python3.12/site-packages/llama_cpp_python-1.0.dist-info"; mkdir -p "$info"
    echo "{}" > "$info/direct_url.json"
    printf '%s\\n' "llama_cpp/__init__.py,sha256=one,1" "llama_cpp_python-1.0.dist-info/RECORD,," \
      "llama_cpp_python-1.0.dist-info/direct_url.json,sha256=two,2" > "$info/RECORD" ;;
  *) exec PYTHON "$@" ;;
esac
"""


class Build:
    """A checkout with a small engine, and what a build engine does with its scripts.

    Attributes:
        checkout: the folder of the repository.
        output: where the engine puts packages.
        home: the builder's.
    """

    def __init__(self, root: Path, setting: Setting) -> None:
        self.root, self.setting = root, setting
        self.checkout, self.output, self.home = root / "check out", root / "output", root / "home"
        for name in inputs.files_of((*inputs.PYTHON, "distribution")):
            (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.checkout / name)
        shutil.rmtree(self.checkout / "vendor" / "llama.cpp")
        shutil.copytree(setting.folder, self.checkout / "vendor" / "llama.cpp")
        self.home.mkdir()
        (root / "tools").mkdir()
        for name, text in {"cmake": CMAKE, "python": PYTHON.replace("PYTHON", sys.executable)}.items():
            (root / "tools" / name).write_text(text)
            (root / "tools" / name).chmod(0o755)
        self.count = 0

    def run(self, script: str, package: str = "libllama", expect: int = 0, new: bool = False, **variables: str) -> Path:
        """Run a script of the recipe; return the folder with what it installed. ``self.said`` is what it printed.

        ``new`` is for a build of its own, which takes nothing that was compiled before.
        """
        self.count += 1
        if new:
            shutil.rmtree(self.home / ".cache" / "llama-cpp" / "staged", ignore_errors=True)
        place = self.output / "bld" / f"rattler-build_{package}_{self.count}"
        work, installed = place / "work", place / "host_env"
        # what git ignores is not copied
        ignored = shutil.ignore_patterns("source", ".source-*", "__pycache__")
        shutil.copytree(self.checkout, work, ignore=ignored)
        for folder in (installed / "lib", installed / "conda-meta", place / "build_env" / "conda-meta"):
            folder.mkdir(parents=True)
        # what compiler packages export to where the result goes
        (installed / "lib" / "libstdc++.so.6.0.30").write_text("of a package")
        (installed / "lib" / "libstdc++.so.6").symlink_to("libstdc++.so.6.0.30")
        record = {"name": "libstdcxx", "files": ["lib/libstdc++.so.6", "lib/libstdc++.so.6.0.30"]}
        (installed / "conda-meta" / "libstdcxx-12.2.0-h1_0.json").write_text(json.dumps(record))
        environment = {
            "PATH": f"{self.root / 'tools'}:/usr/bin:/bin", "HOME": str(work), "SRC_DIR": str(work), "PREFIX": str(installed),
            "BUILD_PREFIX": str(place / "build_env"), "BUILD_DIR": str(place), "RECIPE_DIR": str(self.checkout / "recipe"),
            "CPU_COUNT": "2", "BUILT": str(self.root), "PKG_NAME": package, "PKG_VERSION": VERSION,
            "PKG_BUILD_STRING": "h1234567_0",
            "LLAMA_CPP_PACKAGES": f"libllama-{VERSION}-h*_0 llama.cpp-{VERSION}-h*_0",
            "PIP_NO_DEPENDENCIES": "True", "PIP_NO_INDEX": "1",
            "PIP_CACHE_DIR": str(place / "pip_cache"), "PIP_IGNORE_INSTALLED": "True", "PIP_NO_BUILD_ISOLATION": "False",
            "PIP_FIND_LINKS": str(self.setting.index), "PIP_CONFIG_FILE": os.devnull, "LLAMA_CPP_HOME": str(self.home),
            "LLAMA_CPP_PWD": str(self.root), **variables,
        }  # fmt: skip
        command = ["bash", "-e", str(self.checkout / "recipe" / script)]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=300)
        self.said = done.stdout + done.stderr
        assert done.returncode == expect, self.said
        return installed

    def package(self, name: str = "libllama", suffix: str = "conda") -> Path:
        """What the engine does after the scripts."""
        made = self.output / "linux-64" / f"{name}-{VERSION}-h1234567_0.{suffix}"
        made.parent.mkdir(exist_ok=True)
        made.write_text("packed")
        return made

    def package_script(self, engine: Path, expect: int = 0, **variables: str) -> None:
        """The script of a package of what ``engine`` was made from: in its work folder, as the build engine restores that."""
        digest = (engine.parent / "work" / "sources-digest").read_text()
        made = self.run("build-package.sh", expect=expect, SRC_DIR=str(engine.parent / "work"), **variables)
        assert digest and {path.name for path in made.iterdir()} == {"lib", "conda-meta"}

    @property
    def compiles(self) -> int:
        """How many times something was compiled."""
        log = self.root / "compiled"
        return log.read_text().count("cmake --build") if log.exists() else 0


@pytest.fixture
def uncached(tmp_path: Path, setting: Setting) -> Build:
    return Build(tmp_path / "building", setting)


@pytest.fixture
def build(uncached: Build) -> Build:
    """With the engine in the builder's cache, so that pip is not asked."""
    downloads = uncached.home / ".cache" / "llama-cpp" / "downloads"
    downloads.mkdir(parents=True)
    shutil.copy(uncached.setting.archive, downloads)
    return uncached


# where the engine comes from ------------------------------------------------------------------------------------------


def test_the_engine_is_fetched_with_empty_caches_into_the_builders(uncached: Build) -> None:
    installed = uncached.run("build-engine.sh")
    assert (installed / "lib" / "libllama.so").read_text() == "project(engine)\n"
    assert (uncached.home / ".cache" / "llama-cpp" / "downloads" / uncached.setting.archive.name).exists()
    assert (installed.parent / "work" / "licenses" / "LICENSE").exists()


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"XDG_CACHE_HOME": "/BUILD/xdg"}, "xdg/llama-cpp"),
        ({"LLAMA_CPP_CACHE": "/BUILD/own"}, "own"),
        ({"LLAMA_CPP_CACHE": "relative/own"}, "relative/own"),
        ({"LLAMA_CPP_CACHE": "~/own"}, "home/own"),
        ({"LLAMA_CPP_CACHE": "", "XDG_CACHE_HOME": ""}, "home/.cache/llama-cpp"),
    ],
)
def test_the_cache_is_the_one_that_the_builder_names(uncached: Build, variables: dict[str, str], place: str) -> None:
    downloads = uncached.root / place / "downloads"
    downloads.mkdir(parents=True)
    shutil.copy(uncached.setting.archive, downloads)
    named = {name: value.replace("/BUILD", str(uncached.root)) for name, value in variables.items()}
    uncached.run("build-engine.sh", PIP_FIND_LINKS="/nowhere", **named)


def test_what_the_remedies_name_works(uncached: Build) -> None:
    """Without an index: the remedies are printed, and each of them helps."""
    uncached.run("build-engine.sh", expect=1, PIP_FIND_LINKS="/nowhere")
    downloads = uncached.home / ".cache" / "llama-cpp" / "downloads"
    ways = (str(downloads / uncached.setting.archive.name), "vendor --from-git", "LLAMA_CPP_SOURCE_DIR=")
    assert [way for way in ways if way not in uncached.said] == []

    # a checkout of llama.cpp that is somewhere else by now, and edited
    (uncached.setting.repository / "CMakeLists.txt").write_text("edited\n")
    git("commit", "--all", "--quiet", "--message=newer", cwd=uncached.setting.repository)
    (uncached.setting.repository / "include" / "llama.h").write_text("edited, too\n")
    for named in (str(uncached.setting.repository), os.path.relpath(uncached.setting.repository, uncached.root)):
        installed = uncached.run("build-engine.sh", new=True, PIP_FIND_LINKS="/nowhere", LLAMA_CPP_SOURCE_DIR=named)
        assert (installed / "lib" / "libllama.so").read_text() == "project(engine)\n", "the pinned commit"
        assert "packages are made of the pinned llama.cpp" in uncached.said
    assert "LLAMA_CPP_SOURCE_DIR=\n" in (uncached.root / "compiled").read_text()

    vendor.vendor(uncached.checkout / "vendor" / "llama.cpp", from_git=str(uncached.setting.repository))
    uncached.run("build-engine.sh", new=True, PIP_FIND_LINKS="/nowhere")

    shutil.rmtree(uncached.checkout / "vendor" / "llama.cpp" / "source")
    downloads.mkdir(parents=True, exist_ok=True)
    shutil.copy(uncached.setting.archive, downloads)
    uncached.run("build-engine.sh", new=True, PIP_FIND_LINKS="/nowhere")
    assert uncached.compiles == 4


def test_what_lies_in_the_checkout_is_used_if_it_is_the_pinned_engine_with_todays_patches(build: Build) -> None:
    folder = build.checkout / "vendor" / "llama.cpp"
    vendor.vendor(folder, build.setting.cache)
    build.run("build-engine.sh", new=True, PIP_FIND_LINKS="/nowhere")
    (folder / "patches" / "0001-greet.patch").write_text(PATCH)
    (folder / "patches" / "series").write_text("0001-greet.patch\n")
    installed = build.run("build-engine.sh", new=True)
    assert "it is not used" in build.said and "hello" in (installed / "lib" / "libllama.so").read_text()
    (folder / "source" / "CMakeLists.txt").write_text("edited\n")
    installed = build.run("build-engine.sh", new=True)
    assert "it is not used" in build.said and "edited" not in (installed / "lib" / "libllama.so").read_text()
    assert (folder / "source" / "CMakeLists.txt").read_text() == "edited\n", "the checkout is left alone"


def test_settings_of_pip_that_say_where_files_come_from_reach_the_build() -> None:
    recipe = yaml.safe_load((RECIPE / "recipe.yaml").read_text())
    scripts = [one["build"]["script"] for one in recipe["outputs"] if "staging" in one]
    assert len(scripts) == 2 and scripts[0]["secrets"] == scripts[1]["secrets"]
    passed = {name for name in (*scripts[0]["env"], *scripts[0]["secrets"]) if name.startswith("PIP_")}
    assert passed == {name for name in (*scripts[1]["env"], *scripts[1]["secrets"]) if name.startswith("PIP_")}
    # those that follow are the build's own or say the same under another name
    left = {"cache-dir", "no-cache-dir", "pypi-url", "resume-retries", "use-deprecated", "config-file"}
    kept = {*pip.KEPT, *pip.KEPT_VALUES, "config-file"} - left | {"config-file"}
    assert passed == {f"PIP_{name.upper().replace('-', '_')}" for name in kept}
    assert {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"} <= {*scripts[0]["secrets"]}, "a password must not stand in a package"


# ccache ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "variables", "expected"),
    [
        (".config", {}, "home/.cache/ccache"),
        (".ccache", {}, "home/.ccache"),
        (".config", {"XDG_CACHE_HOME": "/BUILD/xdg"}, "xdg/ccache"),
        (".ccache", {"CCACHE_DIR": "my/own"}, "my/own"),
    ],
)
def test_the_builders_ccache_is_used(build: Build, there: str, variables: dict[str, str], expected: str) -> None:
    (build.home / there).mkdir()
    build.run("build-engine.sh", **{name: value.replace("/BUILD", str(build.root)) for name, value in variables.items()})
    assert f"CCACHE_DIR={build.root}/{expected}\nCCACHE_DISABLE=\n" in (build.root / "compiled").read_text()


def test_a_ccache_that_cannot_be_written_to_is_no_error(build: Build) -> None:
    (build.home / ".cache" / "ccache").write_text("")
    build.run("build-engine.sh")
    assert "CCACHE_DISABLE=1" in (build.root / "compiled").read_text() and "compiling without ccache" in build.said


# one compile for several packages -------------------------------------------------------------------------------------


def test_what_was_compiled_for_one_package_serves_the_next_of_the_same_build(build: Build) -> None:
    first = build.run("build-engine.sh", "libllama", CFLAGS="-O2", LDFLAGS="")
    second = build.run("build-engine.sh", "llama.cpp", CFLAGS="-O2", LDFLAGS="")
    assert build.compiles == 1 and "compiled before, for another package" in build.said
    assert (second / "lib" / "libllama.so").read_text() == (first / "lib" / "libllama.so").read_text()
    assert (second.parent / "work" / "licenses" / "LICENSE").exists()
    kept = {path.name for path in (build.home / ".cache" / "llama-cpp" / "staged").rglob("*")}
    assert "libllama.so" in kept and "libstdc++.so.6" not in kept, "what packages brought is there already"
    for one in (first, second):
        assert (
            not (one.parent / "work" / "vendor/llama.cpp/source").exists() and not (one.parent / "work" / "build/conda").exists()
        )


def test_flags_that_name_the_packages_folders_are_the_same_flags(build: Build) -> None:
    for package in ("libllama", "llama.cpp"):
        place = build.output / "bld" / f"rattler-build_{package}_{build.count + 1}"
        build.run("build-engine.sh", package, LDFLAGS=f"-L{place}/host_env/lib", CFLAGS=f"-fdebug-prefix-map={place}/work=/src")
    assert build.compiles == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda build: {"CXXFLAGS": "-O3"},
        lambda build: {"LLAMA_CPP_INPUTS": "01234567"},
        lambda build: (build.checkout / "native" / "chat.cpp").write_text("// changed\n") and {},
        lambda build: (build.checkout / "recipe" / "build-common.sh").open("a").write("# changed\n") and {},
    ],
    ids=["flags", "inputs", "source", "script"],
)
def test_what_was_compiled_otherwise_is_not_taken(build: Build, change: Callable[[Build], dict[str, str]]) -> None:
    build.run("build-engine.sh")
    build.run("build-engine.sh", **change(build))
    assert build.compiles == 2


def test_another_compiler_package_compiles_again(tmp_path: Path) -> None:
    variables = {"PREFIX": str(tmp_path / "host"), "BUILD_PREFIX": str(tmp_path / "build"), "SRC_DIR": str(tmp_path / "work")}
    records = tmp_path / "build" / "conda-meta"
    records.mkdir(parents=True)
    keys = set()
    for name in ("gcc_linux-64-14.3.0-h1_0.json", "gcc_linux-64-14.3.0-h2_0.json"):
        (records / name).write_text("{}")
        keys.add(staged.key("process", "sources", variables))
        (records / name).unlink()
    assert len(keys) == 2


def test_another_build_compiles_again(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that an earlier build left is taken, and it is removed."""
    build.run("build-engine.sh")
    place = build.home / ".cache" / "llama-cpp" / "staged"
    [entry] = (path for path in place.iterdir() if path.is_dir())
    process = (entry / "process").read_text().split(" ")
    assert process == staged.identity(os.getpid()).split(" ")
    for changed in (1, 4):  # another boot, another start of a process of that number
        other = place / ("0" * 31 + str(changed))
        entry.rename(other)
        (other / "process").write_text(" ".join([*process[:changed], "1234", *process[changed + 1 :]]))
        build.run("build-engine.sh")
        assert not other.exists()
        [entry] = (path for path in place.iterdir() if path.is_dir())
    assert build.compiles == 3


def test_half_a_result_is_not_taken(build: Build) -> None:
    build.run("build-engine.sh")
    place = build.home / ".cache" / "llama-cpp" / "staged"
    [entry] = (path for path in place.iterdir() if path.is_dir())
    entry.rename(place / "new-killed")
    build.run("build-engine.sh")
    assert build.compiles == 2 and not (place / "new-killed").exists()
    assert entry.is_dir()


def test_a_compile_that_fails_leaves_nothing(build: Build) -> None:
    (build.root / "tools" / "cmake").write_text("#!/bin/sh\nexit 7\n")
    build.run("build-engine.sh", expect=7)
    assert [path.name for path in (build.home / ".cache" / "llama-cpp" / "staged").iterdir()] == ["lock"]


def test_only_a_few_results_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_STAGED", str(tmp_path / "staged"))
    prefix = tmp_path / "prefix"
    for name in staged.FOLDERS:
        (prefix / name).mkdir(parents=True)
    for number in range(staged.LIMIT + 3):
        staged.keep(prefix, os.getpid(), str(number))
        time.sleep(0.01)
    assert sum(path.is_dir() for path in (tmp_path / "staged").iterdir()) == staged.LIMIT
    assert staged.take(tmp_path / "new", os.getpid(), str(number)) and not staged.take(tmp_path / "no", os.getpid(), "0")


def test_two_builds_at_once_do_not_meet(build: Build, tmp_path: Path) -> None:
    """Each has its own process; here they are shells that build twice."""
    script = 'for package in 1 2; do "$@" "$package" || exit 1; done'
    one = tmp_path / "one.py"
    one.write_text(
        "import os, sys\nfrom pathlib import Path\nfrom distribution.packaging import staged\n"
        "prefix = Path(sys.argv[1], sys.argv[2])\n"
        "for name in staged.FOLDERS: (prefix / name).mkdir(parents=True)\n"
        "if staged.take(prefix, os.getppid(), 'same'): print('taken', (prefix / 'lib/owner').read_text())\n"
        "else:\n    (prefix / 'lib/owner').write_text(str(os.getppid()))\n    staged.keep(prefix, os.getppid(), 'same')\n"
    )
    environment = {**os.environ, "LLAMA_CPP_STAGED": str(tmp_path / "staged"), "PYTHONPATH": str(ROOT)}
    for number in range(6):
        (tmp_path / str(number)).mkdir()
    running = [
        subprocess.Popen(
            ["bash", "-c", script, "-", sys.executable, str(one), str(tmp_path / str(number))],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    for process in running:
        said, _ = process.communicate(timeout=120)
        # with as many at once as are kept, some compile twice; nobody takes another's
        assert process.returncode == 0 and said in ("", f"taken {process.pid}\n")


# packages of the same name --------------------------------------------------------------------------------------------


def test_a_package_of_other_sources_is_not_overwritten(build: Build) -> None:
    engine = build.run("build-engine.sh")
    build.package_script(engine)
    made = build.package()
    # the same sources again: that is said
    build.package_script(build.run("build-engine.sh"))
    assert "is made anew" in build.said

    before = (build.checkout / "native" / "chat.cpp").read_text()
    (build.checkout / "native" / "chat.cpp").write_text("// changed\n")
    compiles = build.compiles
    build.run("build-engine.sh", expect=1)
    assert build.compiles == compiles, "before anything is compiled"
    assert f"libllama-{VERSION}-h1234567_0 in" in build.said and "raise build_number" in build.said and made.exists()

    # each way out works: the old sources, another build number, the file moved away
    (build.checkout / "native" / "chat.cpp").write_text(before)
    build.run("build-engine.sh")
    (build.checkout / "native" / "chat.cpp").write_text("// changed\n")
    build.run("build-engine.sh", LLAMA_CPP_PACKAGES=f"libllama-{VERSION}-h*_1 llama.cpp-{VERSION}-h*_1")
    made.unlink()
    build.package_script(build.run("build-engine.sh"))


def test_the_packages_own_script_refuses_too(build: Build) -> None:
    """Where the build engine restores what was compiled earlier, and the first script does not run."""
    engine = build.run("build-engine.sh")
    build.package_script(engine)
    build.package(suffix="tar.bz2")
    (engine.parent / "work" / "sources-digest").write_text("01234567\n")
    build.package_script(engine, expect=1)
    assert "was made from other sources" in build.said


def test_packages_that_are_named_after_their_sources_are_none_of_its_business(build: Build) -> None:
    build.package_script(build.run("build-engine.sh"))
    build.package()
    (build.checkout / "native" / "chat.cpp").write_text("// changed\n")
    build.package_script(build.run("build-engine.sh", LLAMA_CPP_INPUTS="01234567"), LLAMA_CPP_INPUTS="01234567")


def test_another_gpus_plugin_may_be_made_from_newer_scripts(build: Build) -> None:
    """What only the plugins are made with renames none of them; each is compared with its own kind."""
    for tool in ("nvcc",):
        (build.root / "tools" / tool).touch()
    variables = {
        "LLAMA_CPP_CUDA_ARCHITECTURES": "120a-real", "LLAMA_CPP_CUDA_FA_QUANTS": "f16-f16",
        "PKG_BUILD_STRING": "cuda134_sm120_h1_0", "LLAMA_CPP_PACKAGES": f"libggml-cuda-{VERSION}-cuda134_sm120_h*_0",
    }  # fmt: skip
    (build.checkout / "recipe" / "nvidia_licences.py").write_text("# none here\n")
    engine = build.run("build-cuda.sh", "libggml-cuda", **variables)
    build.package_script(engine, PKG_NAME="libggml-cuda", PKG_BUILD_STRING="cuda134_sm120_h1_0")
    (build.output / "linux-64").mkdir()
    (build.output / "linux-64" / f"libggml-cuda-{VERSION}-cuda134_sm120_h1_0.conda").write_text("packed")
    (build.checkout / "recipe" / "NVIDIA.txt").open("a").write("changed\n")
    build.run("build-cuda.sh", "libggml-cuda", expect=1, **variables)
    other = {name: value.replace("120", "90") for name, value in variables.items()}
    build.run("build-cuda.sh", "libggml-cuda", **other)


# build-python.sh ------------------------------------------------------------------------------------------------------


def test_the_folder_that_pip_installed_from_is_forgotten_and_no_setting_reaches_pip(build: Build) -> None:
    installed = build.run("build-python.sh", "llama-cpp-python")
    [info] = installed.glob("lib/python3.12/site-packages/*.dist-info")
    assert [path.name for path in info.iterdir()] == ["RECORD"]
    assert info.joinpath("RECORD").read_text().splitlines() == [
        "llama_cpp/__init__.py,sha256=one,1", "llama_cpp_python-1.0.dist-info/RECORD,,"
    ]  # fmt: skip
    assert (build.root / "pip-variables").read_text() == "1\n", "PIP_CONFIG_FILE alone"


def test_a_python_package_of_other_sources_is_not_overwritten(build: Build) -> None:
    build.run("build-python.sh", "llama-cpp-python")
    (build.output / "noarch").mkdir()
    (build.output / "noarch" / f"llama-cpp-python-{VERSION}-h1234567_0.conda").write_text("packed")
    build.run("build-python.sh", "llama-cpp-python")
    (build.checkout / "llama_cpp" / "llama.py").write_text("# changed\n")
    build.run("build-python.sh", "llama-cpp-python", expect=1)
    assert "was made from other sources" in build.said


def scripts() -> Sequence[Path]:
    return sorted(RECIPE.glob("*.sh"))


@pytest.mark.parametrize("script", scripts(), ids=lambda path: path.name)
def test_scripts_are_whole(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert script.read_text().startswith("#!") == script.name.startswith("build-") or script.name == "build-common.sh"

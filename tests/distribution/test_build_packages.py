"""Building packages: what is taken out of them, how a difference is named, and what cannot be built."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from engine_carrier import Setting

engine = pytest.importorskip("rattler_build", reason="pip install llama_cpp_python[conda]")

from distribution.errors import BuildError, DamagedPackageError, NotReproducibleError
from distribution.files import REPOSITORY
from distribution.packaging import build, inputs, rebuild
from distribution.packaging.normalise import members, normalise

STAMP = 1_790_812_800  # 1 October 2026

RECIPE = """\
schema_version: 1
package: {name: small, version: "1.0"}
build:
  script:
    - mkdir -p $PREFIX/share $PREFIX/bin
    - echo CONTENT > $PREFIX/share/small.txt
    - printf '#!/bin/sh\\necho small\\n' > $PREFIX/bin/small
    - chmod 755 $PREFIX/bin/small
    - ln -s small $PREFIX/bin/also-small
about: {license: MIT}
"""


def build_small(
    folder: Path, content: str = "one", channels: Sequence[Path] = (), run: Sequence[str] = (), name: str = "small"
) -> Path:
    """A package by the real engine, built where ``folder`` is."""
    recipe = folder / "recipe" / "recipe.yaml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    requirements = f"requirements: {{run: {json.dumps([*run])}}}\n" if run else ""
    recipe.write_text(RECIPE.replace("CONTENT", content).replace("name: small", f"name: {name}") + requirements)
    [rendered] = engine.Stage0Recipe.from_file(recipe).render(engine.VariantConfig())
    places = [str(channel) for channel in channels]
    built = rendered.run_build(output_dir=folder / "output", channels=places, no_build_id=True)
    return Path(shutil.copy(built.packages[0], folder))


def test_what_the_engine_notes_about_time_and_machine_is_taken_out(tmp_path: Path) -> None:
    place = tmp_path / "place"
    first = shutil.move(build_small(place), tmp_path / "first.conda")
    shutil.rmtree(place)
    second = shutil.move(build_small(place), tmp_path / "second.conda")
    assert first.read_bytes() != second.read_bytes(), "two builds at different times are equal without help"
    for package in (first, second):
        normalise(package, STAMP)
    assert first.read_bytes() == second.read_bytes()

    found = members(first)
    assert json.loads(found["info/index.json"][0])["timestamp"] == STAMP * 1000
    notes = found["info/recipe/rendered_recipe.yaml"][0].decode()
    assert "__linux=" not in notes and "__archspec" not in notes and "timestamp: 2026-10-01T00:00:00Z" in notes
    assert "__glibc=" in notes, "what the result depends on stays"


def test_folders_of_this_machine_are_taken_out(tmp_path: Path) -> None:
    from tiny_packages import index

    packages_made = []
    for user in ("ann", "bob"):
        channel = index(tmp_path / user / "cache" / "seed-0123")
        place = tmp_path / "place"
        package = Path(shutil.move(build_small(place, channels=[channel]), tmp_path / f"{user}.conda"))
        # the folders above may be written in another way
        assert f"/{user}/cache/seed-0123" in members(package)["info/recipe/rendered_recipe.yaml"][0].decode()
        normalise(package, STAMP, {str(channel): "seed"})
        packages_made.append(package.read_bytes())
        shutil.rmtree(place)
    assert packages_made[0] == packages_made[1]


def test_the_order_of_dependencies_is_settled(tmp_path: Path) -> None:
    needs = ["zlib >=1", "__glibc >=2.17", "aaa"]
    package = build_small(tmp_path / "place", run=needs)
    notes = members(package)["info/recipe/rendered_recipe.yaml"][0].decode()
    assert json.loads(members(package)["info/index.json"][0])["depends"] == needs
    normalise(package, STAMP)
    found = members(package)
    assert json.loads(found["info/index.json"][0])["depends"] == sorted(needs)
    again = found["info/recipe/rendered_recipe.yaml"][0].decode()
    before, after = (yaml.safe_load(text)["finalized_dependencies"]["run"]["depends"] for text in (notes, again))
    assert before != after and sorted(before, key=str) == sorted(after, key=str)
    before, after = (yaml.safe_load(text)["recipe"] for text in (notes, again))
    assert before == after, "what a person wrote keeps its order"


def test_what_other_packages_of_the_recipe_are_called_is_taken_out(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe" / "recipe.yaml"
    recipe.parent.mkdir()
    outputs = "".join(
        f"""
  - package:
      name: {name}
    build:
      script: mkdir -p $PREFIX/share && echo {text} > $PREFIX/share/{name}"""
        for name, text in (("one", "same"), ("other", "${{ flavour }}"))
    )
    recipe.write_text(f"schema_version: 1\nrecipe:\n  name: both\n  version: '1'\noutputs:{outputs}\n")
    made = []
    for flavour in ("sweet", "salty"):
        one, _ = engine.Stage0Recipe.from_file(recipe).render(engine.VariantConfig({"flavour": [flavour]}))
        built = one.run_build(output_dir=tmp_path / "output", channels=[], no_build_id=True)
        made.append(Path(shutil.move(built.packages[0], tmp_path / f"{flavour}.conda")))
        normalise(made[-1], STAMP)
    assert made[0].read_bytes() == made[1].read_bytes()
    notes = yaml.safe_load(members(made[0])["info/recipe/rendered_recipe.yaml"][0])
    assert list(notes["build_configuration"]["subpackages"]) == ["one"]


@pytest.mark.parametrize("name", ["libllama", "libggml-cuda"])
def test_files_of_the_recipe_that_a_package_is_not_made_from_are_taken_out(tmp_path: Path, name: str) -> None:
    """Else a new file in recipe/variants/ gives a package of the same name other bytes."""
    made = []
    for text in ("one", "two"):
        place = tmp_path / "place"
        for file in (*inputs.CUDA, "recipe/variants.yaml", f"recipe/variants/{text}.yaml", "recipe/build-engine.sh"):
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_text("# same\n" if "engine" in file else f"# {text}\n")
        made.append(Path(shutil.move(build_small(place, name=name), tmp_path / f"{text}.conda")))
        normalise(made[-1], STAMP)
        shutil.rmtree(place)
    one, two = (members(package) for package in made)
    assert "info/recipe/build-engine.sh" in one
    assert not [file for file in (*one, *two) if "variants" in file]
    differ = {file for file in one.keys() | two.keys() if one.get(file) != two.get(file) and file.startswith("info/recipe/")}
    assert differ == ({f"info/{file}" for file in inputs.CUDA} if name == "libggml-cuda" else set())
    assert name == "libggml-cuda" or made[0].read_bytes() == made[1].read_bytes()


def test_caches_of_this_machine_are_taken_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the recipe passes of the builder's environment, and nothing else."""
    recipe = yaml.safe_load((REPOSITORY / "recipe" / "recipe.yaml").read_text())
    scripts = [one["build"]["script"] for one in recipe["outputs"] if isinstance(one["build"].get("script"), dict)]
    passed = {name for script in scripts for name, value in script.get("env", {}).items() if "env.get(" in value}
    assert {"CCACHE_DIR", "LLAMA_CPP_CACHE", "LLAMA_CPP_HOME", "PIP_NO_INDEX", "XDG_CACHE_HOME"} <= passed
    lines = "".join(f"      {name}: /of/somebody\n" for name in sorted(passed))
    script = f"env:\n{lines}      KEPT: value\n    content:"
    monkeypatch.setitem(globals(), "RECIPE", RECIPE.replace("  script:", f"  script:\n    {script}"))
    package = build_small(tmp_path / "place")
    assert members(package)["info/recipe/rendered_recipe.yaml"][0].count(b"/of/somebody") == len(passed)
    normalise(package, STAMP)
    notes = members(package)["info/recipe/rendered_recipe.yaml"][0]
    assert b"/of/somebody" not in notes and b"KEPT: value" in notes


def test_the_password_of_an_index_stands_in_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    recipe = yaml.safe_load((REPOSITORY / "recipe" / "recipe.yaml").read_text())
    [secrets, _] = [one["build"]["script"]["secrets"] for one in recipe["outputs"] if "staging" in one]
    for name in secrets:
        monkeypatch.setenv(name, f"https://user:pass-word@127.0.0.1/{name}")
    script = f"secrets: {json.dumps(secrets)}\n    content:\n    - env | grep -c @127 > $PREFIX/found.txt || true; env"
    monkeypatch.setitem(globals(), "RECIPE", RECIPE.replace("  script:", f"  script:\n    {script}"))
    found = members(build_small(tmp_path / "place"))
    assert found["found.txt"][0] == f"{len(secrets)}\n".encode(), "the script has them"
    assert not [name for name, (content, _) in found.items() if b"pass-word" in content]
    said = capfd.readouterr()
    assert "pass-word" not in said.out + said.err


def test_of_a_checkout_that_is_named_the_pinned_engine_is_taken(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packages say which llama.cpp they are made of, and that must be true."""
    repository = setting.folder.parents[1]
    (setting.repository / "CMakeLists.txt").write_text("edited\n")
    monkeypatch.setenv("LLAMA_CPP_SOURCE_DIR", str(setting.repository))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    build.fetch_engine(repository)
    assert (setting.folder / "source" / "CMakeLists.txt").read_text() == "project(engine)\n"
    assert os.environ["LLAMA_CPP_SOURCE_DIR"] == str(setting.repository)
    with build._build_environment(None):
        assert "LLAMA_CPP_SOURCE_DIR" not in os.environ
    assert os.environ["LLAMA_CPP_SOURCE_DIR"] == str(setting.repository)


def test_a_build_sees_no_empty_setting_of_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """The build engine would hide an empty secret everywhere in what it prints."""
    monkeypatch.setenv("PIP_INDEX_URL", "")
    monkeypatch.setenv("PIP_PROXY", "http://127.0.0.1")
    with build._build_environment(None):
        assert "PIP_INDEX_URL" not in os.environ and os.environ["PIP_PROXY"] == "http://127.0.0.1"
    assert os.environ["PIP_INDEX_URL"] == ""


def test_a_normalised_package_still_installs(tmp_path: Path) -> None:
    from rattler.package_streaming import extract

    package = build_small(tmp_path / "place")
    before = members(package)
    normalise(package, STAMP)
    after = members(package)
    assert after.keys() == before.keys()
    same = [name for name in before if not name.startswith("info/") and name != "metadata.json"]
    assert same and all(after[name][0] == before[name][0] for name in same)
    extract(str(package), str(tmp_path / "out"))
    assert (tmp_path / "out" / "share" / "small.txt").read_text() == "one\n"
    assert (tmp_path / "out" / "bin" / "also-small").readlink() == Path("small")
    assert (tmp_path / "out" / "bin" / "small").stat().st_mode & 0o111


def test_the_first_file_that_differs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "REPOSITORY", tmp_path)
    one, other = build_small(tmp_path / "one"), build_small(tmp_path / "other", content="two")
    with pytest.raises(NotReproducibleError) as caught:
        rebuild.compare(one, other)
    # the first in the alphabet with another time: that of a file, when a second began between the two
    assert caught.value.member in ("bin/also-small", "info/index.json")
    for package in (one, other):
        normalise(package, STAMP)
    with pytest.raises(NotReproducibleError) as caught:
        rebuild.compare(one, other)
    assert caught.value.member in ("info/paths.json", "info/recipe/recipe.yaml")
    rebuild.compare(one, one)
    kept = list((tmp_path / "build" / "not-reproducible").iterdir())
    assert len(kept) == 2


def test_half_a_package_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    package = build_small(tmp_path / "place")
    package.write_bytes(package.read_bytes()[:-200])
    before = package.read_bytes()
    with pytest.raises(BuildError):
        normalise(package, STAMP)
    assert package.read_bytes() == before
    assert not list(package.parent.glob(".*.part"))


def _flip(package: Path) -> None:
    data = bytearray(package.read_bytes())
    data[len(data) // 2] ^= 1
    package.write_bytes(data)


DAMAGES = {
    "cut": lambda package: os.truncate(package, 1000),
    "empty": lambda package: os.truncate(package, 0),
    "flipped": _flip,
    "a fifo": lambda package: (package.unlink(), os.mkfifo(package)),
    "a folder": lambda package: (package.unlink(), package.mkdir()),
    "a link to nothing": lambda package: (package.unlink(), package.symlink_to("nowhere")),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_package_is_not_built_on(tmp_path: Path, how: str) -> None:
    """One that was built before, whose disk was full, say. The indexer panics, or takes it."""
    pytest.importorskip("rattler")
    package, workspace = build_small(tmp_path / "place"), tmp_path / "workspace"
    normalise(package, STAMP)
    workspace.mkdir()
    build._offer(package, workspace)
    DAMAGES[how](package)
    with pytest.raises(DamagedPackageError) as caught:
        build._offer(package, workspace)
    assert str(package) in caught.value.remedy


def test_what_was_fetched_or_compiled_is_no_input() -> None:
    for path in inputs.files_of((*inputs.PYTHON, *inputs.INSPECTED)):
        assert "__pycache__" not in path.parts and path.parts[:3] != ("vendor", "llama.cpp", "source")


def test_a_digest_changes_with_content_and_name(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    file = tmp_path / "recipe" / "a.txt"
    file.write_text("one")
    digests = {inputs.digest_of(["recipe"], tmp_path)}
    file.write_text("two")
    digests.add(inputs.digest_of(["recipe"], tmp_path))
    file.rename(file.with_name("b.txt"))
    digests.add(inputs.digest_of(["recipe"], tmp_path))
    assert len(digests) == 3


def test_a_build_without_the_engines_source_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "vendor" / "llama.cpp").mkdir(parents=True)
    for name in (*inputs.PYTHON, "distribution"):
        target = tmp_path / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("")
    with pytest.raises(BuildError) as caught:
        inputs.export(tmp_path / "out", tmp_path)
    assert "distribution vendor" in caught.value.remedy


def test_the_folder_that_must_be_the_same_everywhere_must_be_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = tmp_path / "llama-cpp-build"
    (tmp_path / "elsewhere").mkdir()
    foreign.symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(build, "ROOT", foreign)
    with pytest.raises(BuildError, match="belongs to somebody else"), build._workspace():
        raise AssertionError("it was used")
    assert foreign.is_symlink()


def test_what_goes_wrong_inside_a_build_is_not_blamed_on_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "ROOT", tmp_path / "llama-cpp-build")
    with pytest.raises(PermissionError, match="elsewhere"), build._workspace() as workspace:
        (workspace / "left").write_text("")
        raise PermissionError(13, "Permission denied", "/elsewhere")
    assert not (tmp_path / "llama-cpp-build").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user, which root alone can")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_another_user_can_build_when_the_first_has_done(monkeypatch: pytest.MonkeyPatch, umask: int) -> None:
    """/tmp keeps the first user's lock file, which the second may not open for writing there."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o1777)
    monkeypatch.setattr(build, "ROOT", place / "llama-cpp-build")

    def as_user(user: int) -> int:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.umask(umask)
                os.setgid(user)
                os.setuid(user)
                with build._workspace():
                    status = 0
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    try:
        assert (as_user(1001), as_user(1002), as_user(0)) == (0, 0, 0)
    finally:
        shutil.rmtree(place)


def test_an_output_folder_that_cannot_be_written_to_is_named_before_anything_is_built(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match=f"{tmp_path}/file/packages cannot be written") as caught:
        build.build(output=tmp_path / "file" / "packages")
    assert caught.value.remedy == "name another folder: --output" and "rm -r" not in str(caught.value)


def test_a_folder_that_becomes_full_or_denied_keeps_no_part_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, target = build_small(tmp_path / "place"), tmp_path / "output" / "linux-64" / "made.conda"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(BuildError, match=f"{made} cannot be rewritten: File too large"):
            normalise(made, STAMP)
        assert not list(made.parent.glob(".*.part"))
        with pytest.raises(BuildError, match=f"{target} cannot be written: File too large"):
            build._deliver(made, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(target.parent.iterdir())

    def full(source: Path, destination: Path) -> None:
        Path(destination).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(destination))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(BuildError, match=f"{target} cannot be written: No space left") as caught:
        build._deliver(made, target)
    assert "free some space" in caught.value.remedy and not list(target.parent.iterdir())


@pytest.mark.skipif(not shutil.which("make") or not shutil.which("git"), reason="needs make and git")
@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="needs a git checkout")
def test_make_clean_leaves_nothing_that_git_ignores(tmp_path: Path) -> None:
    def git(*command: str, where: Path = tmp_path) -> str:
        return subprocess.run(["git", *command], cwd=where, check=True, capture_output=True, text=True).stdout

    for name in git("ls-files", "-z", where=REPOSITORY).split("\0"):
        if name and (REPOSITORY / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, tmp_path / name)
    git("init", "--quiet")
    git("add", "--all")

    # something for every line of .gitignore, at the root and deeper where the line allows it
    for pattern in (REPOSITORY / ".gitignore").read_text().split():
        name = pattern.replace("[co]", "c").replace("*", "x")
        for folder in ("",) if name.startswith("/") else ("", "llama_cpp/engine/"):
            place = tmp_path / (folder + name.strip("/") + ("/file" if name.endswith("/") else ""))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("made here")
    ignored = git("status", "--porcelain", "--ignored")
    assert all(word in ignored for word in ("llama_cpp/lib/", "x.egg-info/", ".tmpx/", "llama_cpp/engine/x.pyc")), ignored

    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert not [line for line in git("status", "--porcelain", "--ignored").splitlines() if not line.startswith("A ")]


def test_the_inspection_of_the_cuda_package_fails_when_it_is_too_large(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("inspect_cuda", REPOSITORY / ".ci" / "inspect_cuda.py")
    assert spec and spec.loader
    inspection = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(inspection)
    package = tmp_path / "libggml-cuda.conda"
    for size, fits in ((30_000_000, True), (30_000_001, False)):
        with package.open("wb") as file:
            file.truncate(size)
        if fits:
            inspection.check_size(package)
        else:
            with pytest.raises(SystemExit, match="more than the 30 MB"):
                inspection.check_size(package)


@pytest.mark.parametrize(
    "arguments",
    [{"channels": ["/tmp/a \udcff"]}, {"output": Path("/tmp/a \udcff")}, {"repository": Path("/tmp/a \udcff")}],
    ids=str,
)
def test_names_that_the_build_engine_cannot_take_are_refused(arguments) -> None:
    with pytest.raises(BuildError, match="is not UTF-8"):
        build.build(**arguments)

"""Making environments from small real packages: all of it, or nothing."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import http.server
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("rattler")
pytest.importorskip("rattler_build")

from distribution import environment, files
from distribution.environment import install, prefixes, solving, specification
from distribution.errors import (
    ChannelUnreachableError,
    DiskSpaceError,
    DistributionError,
    EnvironmentExistsError,
    EnvironmentFileError,
    EnvironmentInstallError,
    HashMismatchError,
)
from packed_by_hand import add, model, write
from tiny_packages import add_package, index

# before a test gives itself a home of its own
CACHE = files.cache_dir()
FILE = """\
name: tiny-dev
channels: ["${LLAMA_CPP_CHANNEL}"]
dependencies: [tiny >=1]
"""
SCRIPTS = {
    "bin/hello": "#!/bin/sh\necho hello\n",
    "etc/conda/activate.d/a.sh": 'export TINY="$CONDA_PREFIX"\nexport ORDER=a\n',
    "etc/conda/activate.d/b.sh": "export ORDER=${ORDER}b\n",
    "etc/conda/deactivate.d/a.sh": "unset TINY\nORDER=${ORDER}A\n",
    "etc/conda/deactivate.d/b.sh": "ORDER=${ORDER}B\n",
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A home folder of its own, so that nothing of this machine is read or changed."""
    for name in [name for name in os.environ if name.startswith(("CONDA_", "LLAMA_CPP_CHANNEL", "VIRTUAL_ENV"))]:
        monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / ".config"))
    monkeypatch.setenv("RATTLER_CACHE_DIR", str(tmp_path / "repodata"))
    monkeypatch.setenv("LLAMA_CPP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def channel(tmp_path) -> Path:
    add_package(tmp_path / "channel", "tiny", "1.0", files=SCRIPTS, depends=("tiny-base", "__glibc >=2.17"))
    add_package(tmp_path / "channel", "tiny-base", "1.0")
    (tmp_path / "environment.yml").write_text(FILE)
    return index(tmp_path / "channel")


def run(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    environment.add_commands(parser)
    options = parser.parse_args([str(one) for one in arguments])
    options.run(options)


def solved(channel: Path) -> solving.Solution:
    return solving.solve_environment(specification.parse(FILE, "environment.yml", str(channel)))


def staged(parent: Path) -> list[Path]:
    return list(parent.glob(".*.creating-*"))


def test_makes_an_environment_of_conda(channel, home, capsys):
    run("create", "--channel", channel)
    prefix = home / ".conda/envs/tiny-dev"
    assert capsys.readouterr().out == f". {shlex.quote(str(prefix / 'activate.sh'))}\n"
    assert subprocess.check_output([prefix / "bin/hello"]) == b"hello\n"
    assert prefix.stat().st_mode & 0o777 == 0o777 & ~_umask()
    history = (prefix / "conda-meta/history").read_text()
    assert history.startswith("==> ") and "# update specs: ['tiny >=1']" in history
    assert f"+{channel.as_uri()}/linux-64::tiny-1.0-h0_0\n" in history
    record = json.loads((prefix / "conda-meta/tiny-1.0-h0_0.json").read_text())
    assert record["requested_specs"] == ["tiny >=1"] and record["depends"] == ["tiny-base", "__glibc >=2.17"]
    assert record["url"] == f"{channel.as_uri()}/linux-64/tiny-1.0-h0_0.conda"
    assert {path.name for path in prefix.parent.iterdir()} == {"tiny-dev"}
    run("create", "--channel", channel, "--force")
    assert (home / ".conda/environments.txt").read_text() == f"{prefix}\n"
    for path in prefix.rglob("*"):
        assert not path.is_file() or b".creating-" not in path.read_bytes()


def _umask() -> int:
    mask = os.umask(0o22)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("shell", ["bash", "dash", "zsh"])
def test_activation_where_there_is_no_conda(channel, tmp_path, shell):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    prefix = tmp_path / "with space" / "env"
    run("create", "--channel", channel, "-p", prefix)
    script = f"""
        set -u
        before=$PATH
        . '{prefix}/activate.sh'
        hello
        echo "$TINY|$ORDER|$CONDA_PREFIX|$CONDA_DEFAULT_ENV|$CONDA_SHLVL"
        deactivate
        echo "${{TINY-unset}}|$ORDER|${{CONDA_PREFIX-unset}}|${{CONDA_SHLVL-unset}}"
        test "$PATH" = "$before" && echo restored
        . '{prefix}/activate.sh'
        . '{prefix}/activate.sh'
        deactivate
        test "$PATH" = "$before" && echo restored
    """
    environment = {"PATH": os.defpath, "HOME": str(tmp_path)}
    done = subprocess.run([shutil.which(shell), "-c", script], capture_output=True, text=True, env=environment)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "hello",
        f"{prefix}|ab|{prefix}|env|1",
        "unset|abBA|unset|unset",
        "restored",
        "restored",
    ]


def test_says_conda_activate_where_conda_is(channel, tmp_path, monkeypatch, capsys):
    (tmp_path / "conda/bin").mkdir(parents=True)
    monkeypatch.setenv("CONDA_EXE", str(tmp_path / "conda/bin/conda"))
    run("create", "--channel", channel)
    run("create", "--channel", channel, "-p", "by-folder")
    by_folder = shlex.quote(str(tmp_path / "by-folder"))
    assert capsys.readouterr().out == f"conda activate tiny-dev\nconda activate {by_folder}\n"
    assert (tmp_path / "conda/envs/tiny-dev/bin/hello").exists()


def test_where_environments_are(home, tmp_path, monkeypatch):
    assert prefixes.find_prefix("a") == home / ".conda/envs/a"
    monkeypatch.setenv("CONDA_EXE", str(tmp_path / "miniforge/bin/conda"))
    assert prefixes.find_prefix("a") == home / ".conda/envs/a"
    (tmp_path / "miniforge").mkdir()
    assert prefixes.find_prefix("a") == tmp_path / "miniforge/envs/a"
    monkeypatch.setenv("CONDA_ENVS_DIRS", f"{tmp_path}/two")
    assert prefixes.find_prefix("a") == tmp_path / "two/a"
    monkeypatch.setenv("CONDA_ENVS_PATH", f"{tmp_path}/one:{tmp_path}/other")
    assert prefixes.find_prefix("a") == tmp_path / "one/a"
    for name in ("", "base", "a/b", "a b", "a#b", ".."):
        with pytest.raises(EnvironmentFileError, match=r"name|called"):
            prefixes.find_prefix(name)


def test_name_that_exists(channel, home):
    run("create", "--channel", channel)
    kept = home / ".conda/envs/tiny-dev/mine"
    kept.write_text("mine")
    with pytest.raises(EnvironmentExistsError, match="tiny-dev") as caught:
        run("create", "--channel", channel)
    assert "--force" in caught.value.remedy and kept.exists()
    add_package(channel, "tiny", "2.0", files={"bin/hello": "#!/bin/sh\necho two\n"})
    index(channel)
    run("create", "--channel", channel, "--force")
    assert not kept.exists() and not staged(kept.parent.parent)
    assert subprocess.check_output([kept.parent / "bin/hello"]) == b"two\n"


def test_force_that_fails_keeps_the_old(channel, home):
    run("create", "--channel", channel)
    prefix = home / ".conda/envs/tiny-dev"
    broken = add_package(channel, "tiny", "2.0")
    index(channel)
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(DistributionError):
        run("create", "--channel", channel, "--force")
    assert subprocess.check_output([prefix / "bin/hello"]) == b"hello\n" and not staged(prefix.parent)


def test_force_does_not_touch_what_is_no_environment(channel, tmp_path):
    precious = tmp_path / "work/thesis.tex"
    precious.parent.mkdir()
    precious.write_text("...")
    (tmp_path / "link").symlink_to("work")
    for prefix in (precious.parent, precious, tmp_path / "link"):
        with pytest.raises(EnvironmentExistsError, match="no conda environment"):
            run("create", "--channel", channel, "-p", prefix, "--force")
    assert precious.read_text() == "..."
    (tmp_path / "empty").mkdir()
    run("create", "--channel", channel, "-p", tmp_path / "empty")
    assert prefixes.is_environment(tmp_path / "empty")


def test_exchange_without_support_of_the_file_system(tmp_path, monkeypatch):
    class WithoutExchange:
        def renameat2(self, *_: object) -> int:
            import ctypes

            ctypes.set_errno(22)
            return -1

    monkeypatch.setattr(install.ctypes, "CDLL", lambda *_, **__: WithoutExchange())
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    install._exchange(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old/which").read_text() == "new"
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob("*.old"))


def test_download_that_is_not_what_the_index_says(channel, home, stalling):
    stalling.handler.go_on.set()
    (channel / "linux-64/tiny-1.0-h0_0.conda").unlink()
    add_package(channel, "tiny", "1.0", files={"bin/hello": "#!/bin/sh\necho evil\n"})
    with pytest.raises(HashMismatchError, match=r"tiny-1\.0"):
        run("create", "--channel", f"http://127.0.0.1:{stalling.server_address[1]}")
    # nor the folders in which it would have been
    assert not (home / ".conda").exists()


@pytest.mark.parametrize("damage", ["other bytes", "half"])
def test_package_that_is_not_what_the_index_says(channel, home, damage):
    package = channel / "linux-64/tiny-1.0-h0_0.conda"
    content = package.read_bytes()
    if damage == "half":
        package.write_bytes(content[: len(content) // 2])
    else:
        package.unlink()
        add_package(channel, "tiny", "1.0", files={"bin/hello": "#!/bin/sh\necho evil\n"})
    with pytest.raises(HashMismatchError, match=r"tiny-1\.0") as caught:
        run("create", "--channel", channel)
    assert caught.value.remedy and not (home / ".conda").exists()


def test_the_history_has_one_entry_a_line(channel, tmp_path, monkeypatch):
    """conda reads it; an argument may hold anything."""
    monkeypatch.setattr(sys, "argv", ["distribution", "-p", "a\n==> b\udcff é"])
    run("create", "--channel", channel, "-p", "env")
    text = (tmp_path / "env/conda-meta/history").read_text(encoding="utf-8")
    assert text.count("==>") == 2 and r"a\n==> b\udcff é" in text and len(text.splitlines()) == 5


@pytest.mark.parametrize("wrong", ["/dev/null", "file", "loop"])
def test_a_home_that_is_no_folder(channel, tmp_path, monkeypatch, wrong):
    """py-rattler reads the user's credentials from there."""
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("HOME", str(tmp_path / wrong))
    with pytest.raises(ChannelUnreachableError, match="credentials"):
        run("create", "--channel", channel, "-p", "env")
    assert not (tmp_path / "env").exists()


def test_a_package_that_is_there_twice_is_refused(channel, tmp_path):
    """py-rattler would write both into one place at once."""
    records = solved(channel).records
    with pytest.raises(EnvironmentInstallError, match="tiny would be installed 2 times"):
        install.create([*records, next(one for one in records if one.name.normalized == "tiny")], tmp_path / "env")
    assert not (tmp_path / "env").exists()


def test_rebuilt_package_of_the_same_name_is_not_taken_from_the_cache(channel, tmp_path):
    run("create", "--channel", channel, "-p", "one")
    add_package(channel, "tiny", "1.0", files={"bin/hello": "#!/bin/sh\necho rebuilt\n"})
    index(channel)
    run("create", "--channel", channel, "-p", "two")
    assert subprocess.check_output([tmp_path / "two/bin/hello"]) == b"rebuilt\n"
    assert subprocess.check_output([tmp_path / "one/bin/hello"]) == b"hello\n"


def test_prefix_that_cannot_be_written(channel, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentInstallError, match="file") as caught:
        run("create", "--channel", channel, "-p", tmp_path / "file/env")
    assert caught.value.remedy
    with _mounted(tmp_path / "mount", "size=1m,ro"), pytest.raises(EnvironmentInstallError, match="cannot be written"):
        run("create", "--channel", channel, "-p", tmp_path / "mount/env")


def test_full_disk(channel, tmp_path):
    # there is room for the bytes: what runs out is the number of files
    add_package(channel, "tiny", "2.0", files={f"share/{number}": "" for number in range(100)})
    index(channel)
    with _mounted(tmp_path / "mount", "size=64m,nr_inodes=60"):
        prefix = tmp_path / "mount/env"
        with pytest.raises(DiskSpaceError, match="full") as caught:
            run("create", "--channel", channel, "-p", prefix)
        assert caught.value.remedy
        assert not prefix.exists() and not staged(prefix.parent)


def test_hopeless_disk_is_said_before_anything_is_unpacked(channel, tmp_path):
    records = solved(channel).records
    records[0].size = 1 << 60
    with pytest.raises(DiskSpaceError, match="free"):
        install.create(records, tmp_path / "envs/env")
    assert not (tmp_path / "envs").exists() and not (tmp_path / "cache").exists()


@contextlib.contextmanager
def _mounted(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("this user may not mount a file system of a known size")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


class _Stalling(http.server.SimpleHTTPRequestHandler):
    """Serves a channel, and stops in the middle of a package until it is told to go on."""

    reached = threading.Event()
    go_on = threading.Event()

    def copyfile(self, source, outputfile) -> None:
        if self.path.endswith(".conda"):
            outputfile.write(source.read(100))
            outputfile.flush()
            self.reached.set()
            self.go_on.wait(60)
        with contextlib.suppress(OSError):
            super().copyfile(source, outputfile)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stalling(channel) -> Iterator[str]:
    handler = type("Handler", (_Stalling,), {"reached": threading.Event(), "go_on": threading.Event()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(channel)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.handler = handler
    yield server
    handler.go_on.set()
    server.shutdown()
    server.server_close()


CHILD = """
import argparse, sys
sys.path.insert(0, sys.argv.pop(1))
from distribution import environment
parser = argparse.ArgumentParser()
environment.add_commands(parser)
options = parser.parse_args()
try:
    options.run(options)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_while_it_downloads(stalling, home, number):
    url = f"http://127.0.0.1:{stalling.server_address[1]}"
    command = [sys.executable, "-c", CHILD, str(ROOT), "create", "--channel", url]
    # a parent that ignores SIGINT (a background job) hands that down
    child = subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    envs = home / ".conda/envs"
    try:
        assert stalling.handler.reached.wait(60)
        assert len(staged(envs)) == 1
        child.send_signal(number)
        assert child.wait(30) == (130 if number == signal.SIGINT else -number)
    finally:
        child.kill()
    assert not (envs / "tiny-dev").exists()
    assert len(staged(envs)) == (0 if number == signal.SIGINT else 1)
    stalling.handler.go_on.set()
    run("create", "--channel", url)
    assert {path.name for path in envs.iterdir()} == {"tiny-dev"}


def test_another_creation_that_runs_is_left_alone(channel, tmp_path):
    names = [".env.creating-0123abcd", ".env.creating-mine", ".other.creating-0123abcd"]
    for name in [*names, ".env.creating-deadbeef"]:
        (tmp_path / name).mkdir()
    lock = os.open(tmp_path / names[0], os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    run("create", "--channel", channel, "-p", tmp_path / "env")
    os.close(lock)
    assert sorted(path.name for path in staged(tmp_path)) == sorted(names)


def test_two_at_once_give_one_environment(channel, tmp_path):
    """Both are past the first look at the folder before either renames."""
    barrier = threading.Barrier(2)
    results: list[object] = []
    records = solved(channel).records
    original = install._install

    def install_together(*arguments: object) -> None:
        original(*arguments)
        barrier.wait(60)

    def make() -> None:
        try:
            results.append(install.create(records, tmp_path / "envs/env"))
        except EnvironmentExistsError as error:
            results.append(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(install, "_install", install_together)
        threads = [threading.Thread(target=make) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(type(one).__name__ for one in results) == ["EnvironmentExistsError", "PosixPath"]
    assert [path.name for path in (tmp_path / "envs").iterdir()] == ["env"]
    assert subprocess.check_output([tmp_path / "envs/env/bin/hello"]) == b"hello\n"


def test_environment_file_from_a_url(channel, tmp_path, stalling):
    stalling.handler.go_on.set()
    (channel / "environment.yml").write_text(FILE)
    url = f"http://127.0.0.1:{stalling.server_address[1]}"
    run("create", "-f", f"{url}/environment.yml", "--channel", url, "-p", "env")
    assert (tmp_path / "env/bin/hello").exists()


@pytest.mark.parametrize("place", ["activate.sh", "conda-meta/history"])
def test_nothing_is_written_through_a_link_of_a_package(tmp_path, place):
    """A channel without signatures may hold what ``publish`` refuses."""
    mine = tmp_path / "mine"
    mine.write_text("precious")
    made = model()
    made.index["depends"] = []
    add(made, place, b"", kind=b"2", target=str(mine), listed="softlink")
    (tmp_path / "channel/linux-64").mkdir(parents=True)
    write(tmp_path / "channel/linux-64", made)
    index(tmp_path / "channel")
    Path("environment.yml").write_text(f"channels: [{tmp_path}/channel]\ndependencies: [{made.index['name']}]\n")
    run("create", "-p", "env")
    assert mine.read_text() == "precious"
    assert Path("env", place).is_file() and not Path("env", place).is_symlink()


def test_python_and_its_packages_from_the_seed(tmp_path, home):
    """The interpreter of this machine, repacked: its scripts must name the folder they end up in."""
    found = sorted(CACHE.glob("seed-*/linux-64/repodata.json")) or pytest.skip("no seed is there")
    text = 'name: real\nchannels: ["${LLAMA_CPP_CHANNEL}"]\ndependencies: [python, numpy, jinja2, pytest]\n'
    (tmp_path / "environment.yml").write_text(text)
    run("create", "--channel", found[-1].parents[1])
    prefix = home / ".conda/envs/real"
    script = f". {prefix}/activate.sh && pytest --version && python -c 'import numpy, jinja2, sys; print(sys.prefix)'"
    done = subprocess.run(["sh", "-c", script], env={"PATH": os.defpath}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pytest" in done.stdout and done.stdout.splitlines()[-1] == str(prefix)
    for script in (prefix / "bin").iterdir():
        if script.is_file() and script.open("rb").read(2) == b"#!":
            assert b".creating-" not in script.read_bytes()

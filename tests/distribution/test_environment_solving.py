"""Environment files, the packages they resolve to, and locks."""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_cpp import __version__ as VERSION

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("rattler")
pytest.importorskip("rattler_build")

from distribution import environment
from distribution.environment import lock, solving, specification
from distribution.errors import (
    ChannelUnreachableError,
    DriverTooOldError,
    EnvironmentFileError,
    EnvironmentUnsolvableError,
    HashMismatchError,
)
from distribution.hardware import VARIANTS, Gpu, Hardware
from tiny_packages import add_package, index

RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", (12, 0))
H100 = Gpu("NVIDIA H100", (9, 0))
PORTABLE = VARIANTS[-1].build_prefix
CUDA_FILE = 'channels: ["${LLAMA_CPP_CHANNEL}"]\ndependencies: [libllama, libggml-cuda=*=*_sm120_*]\n'


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch) -> None:
    """Folders of the test's own, so that nothing of this machine is read or changed."""
    for name in [name for name in os.environ if name.startswith(("CONDA_", "LLAMA_CPP_CHANNEL"))]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/.config"))
    monkeypatch.setenv("RATTLER_CACHE_DIR", str(tmp_path / "repodata"))
    monkeypatch.setenv("LLAMA_CPP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def channel(tmp_path) -> Path:
    """Packages of ours by name and build string; none holds more than a line of text."""
    folder = tmp_path / "channel"
    add_package(folder, "libllama", VERSION, "h1_0")
    for cuda in sorted({variant.cuda for variant in VARIANTS}):
        add_package(folder, "cuda-version", cuda, "h1_0")
    for variant in VARIANTS:
        driver = {"cuda129": "12.8", "portable": "12"}.get(variant.file, "13")
        pins = (f"libllama =={VERSION} h1_0", f"cuda-version >={variant.cuda},<{int(variant.cuda[:2]) + 1}")
        build = f"{variant.build_prefix}_h1_0"
        add_package(folder, "libggml-cuda", VERSION, build, pins, (f"__cuda >={driver}",))
    return index(folder)


def parse(text: str, **options: object) -> specification.Specification:
    return specification.parse(text, "environment.yml", **options)


def solve(text: str, channel: Path | str, **options: object) -> list[str]:
    """Our packages as ``name build``."""
    solution = solving.solve_environment(parse(text, channel=str(channel)), **options)
    ours = [record for record in solution.records if record.name.normalized.startswith("lib")]
    return sorted(f"{record.name.normalized} {record.build}" for record in ours)


def run(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    environment.add_commands(parser)
    options = parser.parse_args([str(one) for one in arguments])
    options.run(options)


def test_reads_an_environment_file(tmp_path, monkeypatch):
    (tmp_path / "local").mkdir()
    monkeypatch.setenv("LLAMA_CPP_CHANNEL", "local")
    found = parse("name: a\nchannels: [$LLAMA_CPP_CHANNEL, conda-forge, nodefaults]\ndependencies: [python >=3.10, a=1=b*]\n")
    local = (tmp_path / "local").as_uri()
    assert found == specification.Specification("a", (local, "conda-forge"), ("python >=3.10", "a=1=b*"))
    text = 'channels: ["${LLAMA_CPP_CHANNEL}/linux", ./other]\ndependencies: [a]\n'
    assert parse(text, channel="http://host:8000").channels == ("http://host:8000/linux", (tmp_path / "other").as_uri())
    text = "channels: [conda-forge]\ndependencies: [a]\n"
    assert parse(text, channel="local").channels == (local, "conda-forge")
    assert parse(text, channel="local", only=["local"]).channels == (local,)
    assert parse("dependencies: [a]\n", channel="local").channels == (local,)


def test_published_channel_is_not_resolved_to_a_generation(tmp_path):
    (tmp_path / "generation").mkdir()
    (tmp_path / "published").symlink_to("generation")
    assert parse("dependencies: [a]\n", channel="published").channels == ((tmp_path / "published").as_uri(),)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("channels: [a\n", "not YAML"),
        ("- a\n", "no mapping"),
        ("", "no mapping"),
        ("channels: [a]\n", "`dependencies`"),
        ("channels: [a]\ndependencies: []\n", "`dependencies`"),
        ("channels: [a]\ndependencies: numpy\n", "`dependencies`"),
        ("channels: [a]\ndependencies: [1.0]\n", "`dependencies`"),
        ("channels: a\ndependencies: [a]\n", "`channels`"),
        ("dependencies: [a]\n", "no channels"),
        ("name: [a]\nchannels: [a]\ndependencies: [a]\n", "`name`"),
        ("channel: [a]\ndependencies: [a]\n", "unknown key `channel`"),
        ("channels: [a]\ndependencies: [a]\nvariables: {A: 1}\n", "`variables` is understood by conda"),
        ("channels: [a]\ndependencies: [a, pip: [b]]\n", "pip"),
        ("channels: [a]\ndependencies: ['python >=>3']\n", "`python >=>3` is no package"),
        ("channels: ['${NO_SUCH_VARIABLE}/a']\ndependencies: [a]\n", r"\$\{NO_SUCH_VARIABLE\}, which is not set"),
        ("channels: ['${LLAMA_CPP_CHANNEL}']\ndependencies: [a]\n", r"\$\{LLAMA_CPP_CHANNEL\}, which is not set"),
    ],
)
def test_environment_files_that_cannot_be_understood(text, complaint):
    with pytest.raises(EnvironmentFileError, match=complaint) as caught:
        parse(text)
    assert caught.value.remedy


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for source in ("missing.yml", "binary", str(tmp_path)):
        with pytest.raises(EnvironmentFileError, match=source):
            specification.read_text(source)
    with pytest.raises(ChannelUnreachableError, match=r"127\.0\.0\.1"):
        specification.read_text("http://127.0.0.1:9/environment.yml")


def test_commands_say_what_is_missing(tmp_path, channel):
    (tmp_path / "unnamed.yml").write_text("dependencies: [libllama]\n")
    (tmp_path / "some.lock").write_text("@EXPLICIT\n")
    for arguments, complaint in (
        (("create", "-f", "unnamed.yml", "--channel", channel), "no name"),
        (("create", "-f", "unnamed.yml", "--channel", channel, "-n", "base"), "'base'"),
        (("create", "-f", "unnamed.yml", "--override-channels"), "needs a channel"),
        (("create", "-f", "some.lock", "--cpu"), "is a lock"),
        (("lock", "-f", "some.lock", "--channel", channel), "not YAML"),
        (("lock", "-f", "unnamed.yml", "--channel", channel, "-o", "no/such/folder"), "cannot be written"),
    ):
        with pytest.raises(EnvironmentFileError, match=complaint):
            run(*arguments)


@pytest.mark.parametrize(
    ("found", "build"),
    [
        (Hardware((RTX_5090,), "580.65"), "cuda134_sm120_h1_0"),
        (Hardware((RTX_5090,), "575.1"), "cuda129_sm120_h1_0"),
        (Hardware((H100,), "580.65"), "cuda134_sm90_h1_0"),
        (Hardware((H100, RTX_5090), "580.65"), f"{PORTABLE}_h1_0"),
    ],
)
def test_plugin_follows_the_gpu(channel, found, build):
    assert solve(CUDA_FILE, channel, found=found) == [f"libggml-cuda {build}", "libllama h1_0"]


def test_plugin_is_taken_from_the_channel_that_the_file_names(channel, tmp_path):
    better = tmp_path / "better"
    add_package(better, "libggml-cuda", "0.5.0", f"{VARIANTS[0].build_prefix}_h1_0")
    channels = [index(better).as_uri(), channel.as_uri()]
    text = f"channels: {channels}\ndependencies: [libggml-cuda, libllama]\n"
    found = Hardware((RTX_5090,), "580.65")
    pinned = text.replace("[libggml", f"[{channel.as_uri()}::libggml")
    for wanted, version in ((text, "0.5.0"), (pinned, VERSION)):
        records = solving.solve_environment(parse(wanted), found).records
        assert [str(one.version) for one in records if one.name.normalized == "libggml-cuda"] == [version]


def test_plugin_falls_back_to_what_is_published(channel):
    found = Hardware((RTX_5090,), "580.65")
    (channel / f"linux-64/libggml-cuda-{VERSION}-cuda134_sm120_h1_0.conda").unlink()
    assert "libggml-cuda cuda129_sm120_h1_0" in solve(CUDA_FILE, index(channel), found=found)
    for path in channel.glob("linux-64/libggml-cuda-*_sm120_*"):
        path.unlink()
    assert f"libggml-cuda {PORTABLE}_h1_0" in solve(CUDA_FILE, index(channel), found=found)
    for path in channel.glob("linux-64/libggml-cuda-*_sm75_*"):
        path.unlink()
    with pytest.raises(EnvironmentUnsolvableError, match=r"RTX 5090.*they have .*cuda134_sm90_h1_0") as caught:
        solve(CUDA_FILE, index(channel), found=found)
    assert "--cpu" in caught.value.remedy and solve(CUDA_FILE, channel, found=found, cpu=True) == ["libllama h1_0"]


def test_plugin_is_left_out_without_a_gpu(channel, monkeypatch):
    assert solve(CUDA_FILE, channel, found=Hardware()) == ["libllama h1_0"]
    monkeypatch.setenv("CONDA_OVERRIDE_CUDA", "")
    assert solve(CUDA_FILE, channel, found=Hardware((RTX_5090,), "580.65")) == ["libllama h1_0"]


def test_conda_override_cuda_solves_for_another_machine(channel, monkeypatch):
    for version, build in (("13.0", "cuda134_sm120_h1_0"), ("12.8", "cuda129_sm120_h1_0")):
        monkeypatch.setenv("CONDA_OVERRIDE_CUDA", version)
        assert f"libggml-cuda {build}" in solve(CUDA_FILE, channel)
    monkeypatch.setenv("CONDA_OVERRIDE_CUDA", "12.2")
    with pytest.raises(EnvironmentUnsolvableError, match="__cuda") as caught:
        solve(CUDA_FILE, channel)
    assert "driver" in caught.value.remedy
    monkeypatch.setenv("CONDA_OVERRIDE_CUDA", "new est")
    with pytest.raises(EnvironmentFileError, match="new est") as caught:
        solve(CUDA_FILE, channel)
    assert "CONDA_OVERRIDE_CUDA" in caught.value.remedy


def test_driver_that_is_too_old(channel):
    with pytest.raises(DriverTooOldError, match=r"560\.35"):
        solve(CUDA_FILE, channel, found=Hardware((RTX_5090,), "560.35"))


@pytest.mark.parametrize(
    ("found", "there", "remedy"),
    [
        (Hardware((RTX_5090,), "575.51"), "cuda134_sm120", "build --variant cuda129; or install driver 580 or later"),
        (Hardware((H100,), "550.54"), "cuda134_sm90", "build --variant portable; or install driver 580 or later"),
    ],
)
def test_driver_that_is_too_old_for_what_the_channel_has_names_the_variant_that_fits(
    channel, tmp_path, monkeypatch, found, there, remedy
):
    for path in channel.glob("linux-64/libggml-cuda-*"):
        if f"-{there}_" not in path.name:
            path.unlink()
    index(channel)
    monkeypatch.setattr("distribution.hardware.detect", lambda: found)
    (tmp_path / "environment.yml").write_text("name: dev\n" + CUDA_FILE.replace("_sm120_", "_sm*_"))
    with pytest.raises(DriverTooOldError, match=f"{found.driver} is installed") as caught:
        run("create", "-f", "environment.yml", "--channel", channel, "-p", "env")
    assert remedy in caught.value.remedy and not (tmp_path / "env").exists()


def test_reason_of_the_solver_is_shown(channel):
    add_package(channel, "needs-new-libc", depends=("__glibc >=99",))
    add_package(channel, "needs-old-engine", depends=("libllama <0.3",))
    index(channel)
    for wanted, reason, remedy in (
        ("no-such-package", "no-such-package", "environment file"),
        ("libllama >=9", "libllama >=9", "environment file"),
        ("needs-old-engine", "libllama <0.3", "environment file"),
        ("needs-new-libc", "__glibc >=99", "newer Linux"),
    ):
        with pytest.raises(EnvironmentUnsolvableError, match=reason) as caught:
            solve(f"dependencies: ['{wanted}']", channel)
        assert remedy in caught.value.remedy


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/channel", "missing", "file:///no/such/folder"])
def test_channel_that_cannot_be_read(address, tmp_path):
    address = address if "://" in address else tmp_path / address
    with pytest.raises(ChannelUnreachableError) as caught:
        solve("dependencies: [libllama]", address)
    assert str(address).split("://")[-1] in caught.value.message and caught.value.remedy


def test_program_that_ends_right_after_a_solve_ends_well(tmp_path):
    """py-rattler's threads crash an interpreter that ends too early: one run in three, where a channel is out of reach."""
    child = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from distribution.environment import solving, specification
try:
    solving.solve_environment(specification.parse("dependencies: [a]", "", "https://127.0.0.1:9/channel"))
except OSError:
    sys.exit(3)
"""
    assert {subprocess.run([sys.executable, "-c", child]).returncode for _ in range(8)} == {3}


def test_first_channel_wins_whatever_the_versions(channel, tmp_path):
    add_package(tmp_path / "other", "libllama", "9.9", "h9_0")
    text = f'channels: ["${{LLAMA_CPP_CHANNEL}}", "{index(tmp_path / "other")}"]\ndependencies: [libllama]\n'
    assert solve(text, channel) == ["libllama h1_0"]


@pytest.mark.parametrize("folder", ["repository", "elsewhere"])
def test_environment_file_of_this_repository(tmp_path, monkeypatch, folder):
    """From our own folder and from another project's, with the channel set in the variable alone."""
    text = (ROOT / "environment.yml").read_text()
    names = [line.split("#")[0].strip(" -").split("=")[0].split(" ")[0] for line in text.split("dependencies:")[1].splitlines()]
    versions = {"python": "3.12.1", "llama-cpp-python": VERSION}
    for name in filter(None, names):
        build = f"{VARIANTS[0].build_prefix}_h1_0" if name == "libggml-cuda" else "h1_0"
        add_package(tmp_path / "published", name, versions.get(name, "1.0"), build)
    index(tmp_path / "published")
    monkeypatch.chdir(ROOT if folder == "repository" else tmp_path)
    monkeypatch.setenv("LLAMA_CPP_CHANNEL", str(tmp_path / "published"))
    found = specification.parse(text, "environment.yml")
    assert found.name == "llm-dev" and found.channels == ((tmp_path / "published").as_uri(), "conda-forge")
    alone = specification.parse(text, "environment.yml", only=[str(tmp_path / "published")])
    everything = set(names) - {""}
    for found, expected in ((Hardware((RTX_5090,), "580.65"), everything), (Hardware(), everything - {"libggml-cuda"})):
        records = solving.solve_environment(alone, found=found).records
        assert {record.name.normalized for record in records} == expected


@pytest.fixture
def served(channel) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(channel)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("how", ["folder", "http"])
def test_lock_recreates_the_environment_after_newer_builds(channel, tmp_path, served, how, capsys):
    address = served if how == "http" else str(channel)
    (tmp_path / "environment.yml").write_text(f"name: dev\nchannels: ['{address}']\ndependencies: [libllama]\n")
    run("lock", "-o", "dev.lock")
    run("lock")
    text = (tmp_path / "dev.lock").read_text()
    assert capsys.readouterr().out == text == lock.explicit([address], tmp_path / "environment.yml", Hardware())
    assert text.splitlines()[1:3] == ["# platform: linux-64", "@EXPLICIT"] and lock.is_lock(text)
    add_package(channel, "libllama", VERSION, "h2_1")
    add_package(channel, "libllama", "0.5.0", "h3_0")
    index(channel)
    run("create", "-f", "dev.lock", "-p", "locked")
    run("create", "-p", "fresh")
    for folder, package in (("locked", f"libllama-{VERSION}-h1_0"), ("fresh", "libllama-0.5.0-h3_0")):
        assert [path.stem for path in (tmp_path / folder / "conda-meta").glob("*.json")] == [package]
    assert (tmp_path / "locked/share/libllama").read_text() == f"{VERSION}\n"


def test_lock_lists_dependencies_first_and_keeps_metadata(channel, tmp_path):
    (tmp_path / "environment.yml").write_text(CUDA_FILE)
    text = lock.explicit([str(channel)], tmp_path / "environment.yml", Hardware((RTX_5090,), "580.65"))
    entries = text.split("@EXPLICIT\n")[1].splitlines()
    names = [entry.split("/")[-1].rsplit("-", 2)[0] for entry in entries]
    assert names[2:] == ["libggml-cuda"] and set(names[:2]) == {"cuda-version", "libllama"}
    assert all("#sha256:" in entry and entry.startswith(channel.as_uri()) for entry in entries)
    plugin = lock.read(text, "dev.lock")[2]
    assert (
        plugin.depends == [f"libllama =={VERSION} h1_0", "cuda-version >=13.4,<14"] and plugin.channel == f"{channel.as_uri()}/"
    )


def test_lock_with_md5_as_conda_writes_it(channel, tmp_path):
    record = solving.solve_environment(parse("dependencies: [libllama]", channel=str(channel))).records[0]
    (tmp_path / "dev.lock").write_text(f"@EXPLICIT\n{record.url}#{record.md5.hex()}\n")
    run("create", "-f", "dev.lock", "-p", "env")
    assert (tmp_path / "env/share/libllama").exists()
    (tmp_path / "dev.lock").write_text(f"@EXPLICIT\n{record.url}#{'0' * 32}\n")
    with pytest.raises(HashMismatchError):
        run("create", "-f", "dev.lock", "-p", "other")


def test_locks_that_cannot_be_used(channel, tmp_path, served):
    package = f"{channel.as_uri()}/linux-64/libllama-{VERSION}-h1_0.conda"
    good = "#sha256:" + "0" * 64
    for line, error, complaint in (
        (package, EnvironmentFileError, "no URL of a package with its hash"),
        (f"{package}#sha256:12", EnvironmentFileError, "no URL"),
        (f"linux-64/libllama-{VERSION}-h1_0.conda" + good, EnvironmentFileError, "no URL"),
        (f"{channel.as_uri()}/osx-arm64/a-1-0.conda{good}", EnvironmentFileError, "osx-arm64"),
        (f"{channel.as_uri()}/linux-64/gone-1-0.conda{good}", ChannelUnreachableError, "gone-1-0"),
        (f"{served}/linux-64/gone-1-0.conda{good}", ChannelUnreachableError, "gone-1-0"),
        (f"{channel.as_uri()}/linux-64/repodata.conda{good}", ChannelUnreachableError, "repodata"),
        (package + good, HashMismatchError, "libllama"),
        (f"{served}/linux-64/libllama-{VERSION}-h1_0.conda{good}", HashMismatchError, "libllama"),
    ):
        (channel / "linux-64/repodata.conda").write_text("no package")
        (tmp_path / "dev.lock").write_text(f"@EXPLICIT\n{line}\n")
        with pytest.raises(error, match=complaint):
            run("create", "-f", "dev.lock", "-p", "env")
    assert not (tmp_path / "env").exists() and not list(tmp_path.glob(".env.*"))

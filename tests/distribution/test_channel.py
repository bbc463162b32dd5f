"""Publishing to a channel: what goes in, what is refused, what comes out."""

from __future__ import annotations

import datetime
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conda_packages import COMMIT, ROOT, release, solve, write_package
from distribution.channel import commands, environment_files, publishing, store
from distribution.channel.manifest import Wanted
from distribution.channel.package_file import inspect
from distribution.channel.pruning import prune
from distribution.channel.publishing import State
from distribution.channel.store import KEPT_GENERATIONS, Channel
from distribution.channel.verification import verify
from distribution.errors import (
    ChannelDamagedError,
    ChannelNotFoundError,
    ChannelNotWritableError,
    CommitMismatchError,
    DamagedPackageError,
    DiskSpaceError,
    EnvironmentFileError,
    HomeNotFoundError,
    PackageExistsError,
    UnsatisfiedPinError,
)
from llama_cpp import __version__ as VERSION

OTHER_COMMIT = "f" * 40


def test_published_packages_are_solved_from_the_folder(place, tmp_path):
    done = place.publish(*release(tmp_path / "one", 0))
    assert done.generation == 1 and len(done.added) == 4 and done.complete
    assert place.channel.path.is_symlink() and place.channel.path.resolve() == place.channel.current()
    assert solve(place.channel.url, "llama-cpp-python", "libggml-cuda", "llama.cpp") == {
        "llama-cpp-python": "ha0_0", "libllama": "ha0_0", "llama.cpp": "ha0_0", "libggml-cuda": "cuda134_sm120_ha0_0",
    }  # fmt: skip
    place.publish(*release(tmp_path / "two", 1))
    assert solve(place.channel.url, "llama-cpp-python") == {"llama-cpp-python": "ha1_1", "libllama": "ha1_1"}
    assert solve(place.channel.url, "llama-cpp-python=*=ha0_0") == {"llama-cpp-python": "ha0_0", "libllama": "ha0_0"}


def test_packages_of_the_build_engine_are_taken(place, tmp_path):
    from rattler_build import assemble_package

    (tmp_path / "files/lib").mkdir(parents=True)
    (tmp_path / "files/lib/data").write_bytes(os.urandom(300_000))
    (tmp_path / "files/lib/link").symlink_to("data")
    (tmp_path / "files/lib/empty").mkdir()
    moment = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    made = assemble_package(
        "tool", "2.0", "linux-64", "h1_0", tmp_path, files_dir=tmp_path / "files", homepage="x", timestamp=moment
    )
    found: dict[str, bytes] = {}
    inspect(Path(made.path), lambda path, blocks: found.update({path: b"".join(blocks)}))
    assert found == {"lib/data": (tmp_path / "files/lib/data").read_bytes()}
    assert place.publish(Path(made.path)).added == ("linux-64/tool-2.0-h1_0.conda",)


def test_every_form_of_the_index_says_the_same(place, tmp_path):
    place.publish(*release(tmp_path / "one", 0))
    place.publish(*release(tmp_path / "two", 1))
    for subdir in ("linux-64", "noarch"):
        folder = place.channel.current() / subdir
        names = {path.name for path in folder.glob("*.conda")}
        assert json.loads((folder / "repodata.json").read_text())["packages.conda"].keys() == names
        assert {"repodata.json.zst", "repodata_shards.msgpack.zst", "shards"} <= {path.name for path in folder.iterdir()}


def test_a_package_is_one_file_in_every_generation(place, tmp_path):
    files = release(tmp_path / "one", 0)
    place.publish(*files)
    before = place.channel.current() / "linux-64" / files[0].name
    place.publish(*release(tmp_path / "two", 1))
    after = place.channel.current() / "linux-64" / files[0].name
    assert before != after and before.samefile(after)
    # what is done to the builder's file later does not reach the channel
    files[0].write_bytes(b"")
    assert after.stat().st_size > 0


def test_shards_of_the_last_generation_stay(place, tmp_path):
    place.publish(*release(tmp_path / "one", 0))
    before = {path.name for path in place.channel.current().glob("*/shards/*")}
    place.publish(*release(tmp_path / "two", 1))
    after = {path.name for path in place.channel.current().glob("*/shards/*")}
    assert before and before < after


def test_the_same_again_changes_nothing(place, tmp_path):
    files = release(tmp_path / "one", 0)
    first = place.publish(*files)
    again = place.publish(*files, files[0])
    assert (again.generation, again.added, len(again.present)) == (1, (), 4) and first.generation == 1
    assert os.listdir(place.channel.store).count("000002") == 0


def test_a_name_with_other_content_is_refused(place, tmp_path):
    place.publish(*release(tmp_path / "one", 0))
    other = write_package(tmp_path / "other", "libllama", VERSION, "ha0_0", files={"x": b"x"}, extra={"llama_cpp_commit": COMMIT})
    with pytest.raises(PackageExistsError) as caught:
        place.publish(*release(tmp_path / "two", 1), other)
    assert "build number" in caught.value.remedy
    assert place.held() == {path.name for path in release(tmp_path / "one", 0)}
    assert place.channel.current().name == "000001"


def test_a_name_in_both_folders_is_refused(place, tmp_path):
    place.publish(write_package(tmp_path / "a", "tool", "1.0", "h_0", subdir="linux-64"))
    with pytest.raises(PackageExistsError):
        place.publish(write_package(tmp_path / "b", "tool", "1.0", "h_0", subdir="noarch"))


def test_every_half_of_a_file_is_refused(place, tmp_path):
    place.publish(*release(tmp_path / "one", 0))
    whole = write_package(tmp_path / "two", "tool", files={"share/a": b"a" * 3000, "share/b": b"b"})
    content = whole.read_bytes()
    half = tmp_path / "half" / whole.name
    half.parent.mkdir()
    for size in range(0, len(content), len(content) // 40):
        half.write_bytes(content[:size])
        with pytest.raises(DamagedPackageError) as caught:
            place.publish(half)
        assert whole.name in caught.value.message
    for position in (len(content) // 9, len(content) // 2):
        half.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(DamagedPackageError):
            place.publish(half)
    assert place.channel.current().name == "000001" and len(place.held()) == 4
    place.publish(whole)


@pytest.mark.parametrize(
    ("files", "listed", "complaint"),
    [
        ({"a": b"1"}, {"a": b"2"}, "a in it is damaged"),
        ({"a": b"1"}, {"a": b"1", "b": b"2"}, "b is missing"),
        ({"a": b"1", "b": b"2"}, {"a": b"1"}, "b is not listed"),
        ({"../a": b"1"}, {"../a": b"1"}, "../a"),
    ],
)
def test_members_are_compared_with_the_list(place, tmp_path, files, listed, complaint):
    with pytest.raises(DamagedPackageError, match=complaint):
        place.publish(write_package(tmp_path / "one", "tool", files=files, listed=listed))
    assert not place.channel.exists()


def test_what_is_no_package_of_this_name_is_refused(place, tmp_path):
    package = write_package(tmp_path / "one", "tool")
    for name in ("other-1.0-0.conda", "tool-1.0-0.tar.bz2"):
        with pytest.raises(DamagedPackageError):
            place.publish(package.rename(package.with_name(name)))
        package = package.with_name(name)
    with pytest.raises(DamagedPackageError, match="osx-arm64"):
        place.publish(write_package(tmp_path / "mac", "tool", subdir="osx-arm64"))


def test_another_commit_is_refused(place, tmp_path):
    ours = release(tmp_path / "one", 0)
    stranger = release(tmp_path / "other", 0, OTHER_COMMIT)
    with pytest.raises(CommitMismatchError, match=OTHER_COMMIT):
        place.publish(ours[0], stranger[1])
    assert not place.channel.exists()
    place.publish(ours[0])
    with pytest.raises(CommitMismatchError, match=OTHER_COMMIT):
        place.publish(stranger[1])
    with pytest.raises(CommitMismatchError, match="does not say"):
        place.publish(write_package(tmp_path / "silent", "llama.cpp", VERSION, depends=[f"libllama =={VERSION} ha0_0"]))
    assert place.held() == {ours[0].name}


def test_a_pin_that_nothing_meets_is_refused(place, tmp_path):
    engine, tools, python, _ = release(tmp_path / "one", 0)
    with pytest.raises(UnsatisfiedPinError, match=re.escape(f"libllama =={VERSION} ha0_0")):
        place.publish(tools, python)
    place.publish(engine)
    place.publish(tools, python)
    with pytest.raises(UnsatisfiedPinError):
        place.publish(release(tmp_path / "two", 1)[2])
    assert len(place.held()) == 3


@pytest.mark.parametrize("parent", ["/sys", "file"])
def test_a_folder_that_cannot_be_written_to(place, tmp_path, parent):
    (tmp_path / "file").write_text("")
    with pytest.raises(ChannelNotWritableError) as caught:
        publishing.publish(release(tmp_path / "one", 0), Channel.at(tmp_path / parent / "channel"), place.environment)
    assert "another" in caught.value.remedy


def test_what_somebody_else_made_is_left_alone(place, tmp_path):
    files = release(tmp_path / "one", 0)
    place.channel.path.mkdir(parents=True)
    (place.channel.path / "letter").write_text("dear")
    with pytest.raises(ChannelNotWritableError, match="not made by"):
        place.publish(*files)
    (place.channel.path / "letter").unlink()
    assert place.publish(*files).generation == 1
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path)
    with pytest.raises(ChannelNotWritableError, match="link"):
        publishing.publish(files, Channel.at(linked), place.environment)


def test_nothing_is_there_yet(place):
    with pytest.raises(ChannelNotFoundError) as caught:
        place.channel.current()
    assert "channel publish" in caught.value.remedy


def test_old_generations_go_and_the_newest_stay(place, tmp_path):
    for number in range(KEPT_GENERATIONS + 3):
        place.publish(write_package(tmp_path, "tool", "1.0", f"h_{number}", number))
    kept = sorted(path.name for path in place.channel.store.iterdir() if path.is_dir())
    assert kept == [f"{number:06d}" for number in range(3, KEPT_GENERATIONS + 4)]


def test_what_a_killed_writer_left_is_cleared_away(place, tmp_path):
    place.publish(*release(tmp_path / "one", 0))
    (place.channel.store / ".staging-killed/linux-64").mkdir(parents=True)
    (place.channel.store / "000007").mkdir()
    (place.channel.store / "next").symlink_to("000007")
    assert place.publish(*release(tmp_path / "two", 1)).generation == 2
    assert sorted(os.listdir(place.channel.store)) == ["000001", "000002", "lock"]


def test_a_package_that_changed_underneath_is_not_published_on(place, tmp_path):
    files = release(tmp_path / "one", 0)
    place.publish(*files)
    stored = place.channel.current() / "linux-64" / files[0].name
    stored.unlink()
    stored.write_bytes(b"something else")
    index = place.channel.current() / "linux-64/repodata.json"
    content = json.loads(index.read_text())
    content["packages.conda"][files[0].name]["sha256"] = "0" * 64
    index.write_text(json.dumps(content))
    with pytest.raises(ChannelDamagedError):
        place.publish(*release(tmp_path / "two", 1))
    assert place.channel.current().name == "000001"


def test_prune_keeps_the_newest_and_what_they_need(place, tmp_path):
    oldest, older, newest = (release(tmp_path / str(number), number) for number in range(3))
    portable = write_package(
        tmp_path / "portable", "libggml-cuda", VERSION, "cuda129_sm75_90_h1_0", depends=[f"libllama =={VERSION} ha1_1"],
        extra={"llama_cpp_commit": COMMIT},
    )  # fmt: skip
    other = write_package(tmp_path / "other", "numpy")
    for files in (oldest, older, newest, [portable, other]):
        place.publish(*files)
    expected = {path.name for path in newest} | {portable.name, other.name, f"libllama-{VERSION}-ha1_1.conda"}
    planned = prune(place.channel, environment=place.environment, dry_run=True)
    assert len(planned.removed) == 7 and len(place.held()) == 14
    done = prune(place.channel, environment=place.environment)
    assert done.removed == planned.removed and place.held() == expected
    assert solve(place.channel.url, "llama-cpp-python")["libllama"] == "ha2_2"
    assert [path.name for path in place.channel.store.iterdir() if path.is_dir()] == [place.channel.current().name]
    assert prune(place.channel, environment=place.environment).removed == ()


def test_a_generation_that_somebody_holds_stays(place, tmp_path):
    for number in range(2):
        place.publish(*release(tmp_path / str(number), number))
    with place.channel.holding() as held:
        prune(place.channel, environment=place.environment)
        assert held != place.channel.current() and len(list(held.glob("*/*.conda"))) == 8
    prune(place.channel, environment=place.environment)
    assert [path.name for path in place.channel.store.iterdir() if path.is_dir()] == [place.channel.current().name]


def test_prune_can_keep_more(place, tmp_path):
    for number in range(3):
        place.publish(*release(tmp_path / str(number), number))
    prune(place.channel, 2, place.environment)
    assert {name.rpartition("_")[2] for name in place.held()} == {"1.conda", "2.conda"}


def test_the_environment_file_names_the_channel(place, tmp_path):
    place.publish(*release(tmp_path / "one", 0))
    folder = place.channel.current()
    with_gpu = (folder / environment_files.ENVIRONMENT).read_text()
    assert yaml.safe_load(with_gpu) == {
        "name": "llm-dev",
        "channels": [place.channel.url],
        "dependencies": [
            f"libllama={VERSION}=ha0_0",
            f"llama-cpp-python={VERSION}=ha0_0",
            "libggml-cuda=*=*_sm120_*",
            "llama.cpp",
        ],
    }
    assert "repository" not in with_gpu and f"conda env create -f {place.channel.url}" in with_gpu
    without = (folder / environment_files.ENVIRONMENT_CPU).read_text()
    assert yaml.safe_load(without)["dependencies"] == [
        f"libllama={VERSION}=ha0_0", f"llama-cpp-python={VERSION}=ha0_0", "llama.cpp",
    ]  # fmt: skip
    lock = (folder / environment_files.LOCK).read_text()
    assert "@EXPLICIT" in lock and f"{place.channel.url}/linux-64/libggml-cuda-{VERSION}-cuda134_sm120_ha0_0.conda#" in lock
    assert "libggml-cuda" not in (folder / environment_files.LOCK_CPU).read_text()


@pytest.mark.parametrize("order", ["abc", "cba", "bca", "acb"])
def test_of_builds_that_differ_in_name_alone_the_last_published_is_taken(place, tmp_path, order):
    """One version, one number, one timestamp: nothing but the order of publication says which is the newest."""
    for tag in order:
        place.publish(*release(tmp_path / tag, 0, tag=tag))
        folder, expected = place.channel.current(), f"h{tag}0_0"
        for file, lock in (("environment.yml", "explicit.txt"), ("environment-cpu.yml", "explicit-cpu.txt")):
            wanted = yaml.safe_load((folder / file).read_text())["dependencies"]
            assert wanted[:2] == [f"libllama={VERSION}={expected}", f"llama-cpp-python={VERSION}={expected}"]
            found = solve(place.channel.url, *wanted)
            assert found["llama-cpp-python"] == found["libllama"] == found["llama.cpp"] == expected
            assert found.get("libggml-cuda", f"cuda134_sm120_{expected}") == f"cuda134_sm120_{expected}"
            lines = (folder / lock).read_text().splitlines()
            locked = {Path(line.partition("#")[0]).name for line in lines if "://" in line}
            assert locked == {f"{name}-{VERSION}-{build}.conda" for name, build in found.items()}
    prune(place.channel, environment=place.environment)
    assert place.held() == {path.name for path in release(tmp_path / "again", 0, tag=order[-1])}


def test_an_older_number_that_is_published_last_is_the_newest(place, tmp_path):
    for number in (1, 0):
        place.publish(*release(tmp_path / str(number), number))
    assert f"llama-cpp-python={VERSION}=ha0_0\n" in (place.channel.current() / environment_files.ENVIRONMENT).read_text()
    prune(place.channel, environment=place.environment)
    assert place.held() == {path.name for path in release(tmp_path / "again", 0)}


def test_a_build_without_a_plugin_is_the_newest_for_the_cpu_alone(place, tmp_path):
    for tag in "ab":
        place.publish(*release(tmp_path / tag, 0, cuda=tag == "a", tag=tag))
    folder = place.channel.current()
    assert f"llama-cpp-python={VERSION}=ha0_0\n" in (folder / environment_files.ENVIRONMENT).read_text()
    assert f"llama-cpp-python={VERSION}=hb0_0\n" in (folder / environment_files.ENVIRONMENT_CPU).read_text()
    assert "cuda134_sm120_ha0_0" in (folder / environment_files.LOCK).read_text()
    assert f"llama-cpp-python-{VERSION}-hb0_0" in (folder / environment_files.LOCK_CPU).read_text()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["llama.cpp"], [f"libllama={VERSION}=hb0_0", "llama.cpp"]),
        ([f"libllama >={VERSION}"], [f"libllama={VERSION}=hb0_0"]),
        # the build that was published last has no plugin
        (["libggml-cuda", "libllama"], ["libggml-cuda", f"libllama={VERSION}=ha0_0"]),
        (["numpy", "llama.cpp", "libllama >=9"], ["numpy", f"libllama={VERSION}=hb0_0", "llama.cpp"]),
        (["llama.cpp", "libllama", "llama-cpp-python"],
         ["llama.cpp", f"libllama={VERSION}=hb0_0", f"llama-cpp-python={VERSION}=hb0_0"]),
        (["numpy"], ["numpy"]),
    ],
)  # fmt: skip
def test_the_engine_is_named_whatever_is_wanted_of_ours(place, tmp_path, wanted, expected):
    for tag in "ab":
        place.publish(*release(tmp_path / tag, 0, cuda=tag == "a", tag=tag))
    packages = list(State.of(place.channel).packages.values())
    assert environment_files.dependencies_of(Wanted("x", tuple(wanted)), packages) == expected
    # conda would look for a channel of the address's last name at anaconda.org
    assert "::" not in environment_files.render(Wanted("x", tuple(wanted)), "x.yml", place.channel.url, [], packages)


@pytest.mark.parametrize("dependency", ["é" * 50, "https://host/evil.conda", "channel::numpy", "numpy[url=x]", "=1"])
def test_an_environment_in_a_manifest_names_packages(dependency):
    """Somebody may have signed anything."""
    with pytest.raises(EnvironmentFileError, match="what the channel's environment holds"):
        environment_files.dependencies_of(Wanted("x", (dependency,)), [])


def test_the_environment_file_asks_for_what_there_is(place, tmp_path):
    place.publish(*release(tmp_path / "one", 0, cuda=False))
    folder = place.channel.current()
    assert "libggml-cuda" not in (folder / environment_files.ENVIRONMENT).read_text()
    assert not (folder / environment_files.ENVIRONMENT_CPU).exists() and (folder / environment_files.LOCK).exists()
    hopper = write_package(
        tmp_path, "libggml-cuda", VERSION, "cuda134_sm90_h1_0", depends=[f"libllama =={VERSION} ha0_0"],
        extra={"llama_cpp_commit": COMMIT},
    )  # fmt: skip
    place.publish(hopper)
    assert "- libggml-cuda=*=cuda134_sm90_*\n" in (place.channel.current() / environment_files.ENVIRONMENT).read_text()


def test_a_channel_that_lacks_something_names_the_one_that_has_it(place, tmp_path):
    lacking = write_package(tmp_path, "tool", depends=["openssl >=3", "__glibc >=2.17"])
    done = place.publish(*release(tmp_path / "one", 0), lacking)
    assert not done.complete and State.of(place.channel).manifest.also == ("conda-forge",)
    assert any("no explicit" in note and "seed --print-path" in note for note in done.notes), done.notes
    text = (place.channel.current() / environment_files.ENVIRONMENT).read_text()
    assert yaml.safe_load(text)["channels"] == [place.channel.url, "conda-forge"]
    assert place.publish(write_package(tmp_path, "openssl", "3.1")).complete


@pytest.mark.parametrize("text", ["name: x\n", "channels: [a]\ndependencies: b\n", "\tdependencies"])
def test_a_malformed_environment_file_is_refused(place, tmp_path, text):
    place.environment.write_text(text)
    with pytest.raises(EnvironmentFileError):
        place.publish(*release(tmp_path / "one", 0))
    assert not place.channel.exists()


def test_default_channel(monkeypatch, capsys):
    for value, expected in {
        "": ROOT / "dist/channel", "/a/channel": Path("/a/channel"), "file:///a/my%20channel": Path("/a/my channel"),
    }.items():  # fmt: skip
        monkeypatch.setenv("LLAMA_CPP_CHANNEL", value)
        assert commands.default_channel() == expected and not capsys.readouterr().err
    monkeypatch.setenv("LLAMA_CPP_CHANNEL", "http://host:8000")
    assert commands.default_channel() == ROOT / "dist/channel"
    said = capsys.readouterr().err
    assert "http://host:8000, which is no folder" in said and str(ROOT / "dist/channel") in said


def test_command_line(place, tmp_path):
    def run(*arguments: str | Path, at: str = str(place.channel.path)) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "distribution", "channel", *map(str, arguments)]
        environment = {**os.environ, "LLAMA_CPP_CHANNEL": at}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    release(tmp_path / "one", 0, cuda=False)
    done = run("publish", tmp_path / "one", "--environment", place.environment)
    assert done.returncode == 0 and f"+ noarch/llama-cpp-python-{VERSION}-ha0_0.conda" in done.stdout
    assert "generation 1" in done.stderr and "made a signing key" in done.stderr
    assert COMMIT[:12] in run("list").stdout
    listed = json.loads(run("list", "--json").stdout)
    assert listed["generation"] == 1 and {one["name"] for one in listed["packages"]} == {
        "libllama", "llama.cpp", "llama-cpp-python",
    }  # fmt: skip
    verified = run("verify")
    assert verified.returncode == 0 and verified.stdout.count("ok ") == 4
    refused = run("publish", tmp_path / "environment.yml")
    assert refused.returncode == 1 and "not a .conda file" in refused.stderr and "remedy" in refused.stderr
    for nothing in (tmp_path / "nowhere.conda", tmp_path / "config"):
        refused = run("publish", nothing)
        assert refused.returncode == 1 and "remedy" in refused.stderr and "Traceback" not in refused.stderr
    for command in ("list", "verify"):
        elsewhere = run(command, at="http://127.0.0.1:9")
        assert "http://127.0.0.1:9, which is no folder" in elsewhere.stderr
        assert "no folder" not in run(command, "--channel", place.channel.path, at="http://127.0.0.1:9").stderr
    missing = run("list", "--channel", tmp_path / "nowhere")
    assert missing.returncode == 1 and "no published channel" in missing.stderr


def test_a_generation_that_went_before_it_could_be_held(place, tmp_path, monkeypatch):
    place.publish(*release(tmp_path / "one", 0))
    folders = [place.channel.store / "000000", place.channel.current()]
    monkeypatch.setattr(Channel, "current", lambda _: folders.pop(0))
    with place.channel.holding() as held:
        assert held.name == "000001" and not folders


def test_where_folders_cannot_be_locked(place, tmp_path, monkeypatch):
    """On a network file system that refuses, old generations go as they always did."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    place.publish(*release(tmp_path / "one", 0))
    place.publish(*release(tmp_path / "two", 1))
    with place.channel.writing(), monkeypatch.context() as patched:
        patched.setattr(store.fcntl, "flock", refuse)
        with place.channel.holding() as held:
            assert held == place.channel.current()
        place.channel.drop_old_generations(0)
    assert [path.name for path in place.channel.store.iterdir() if path.is_dir()] == ["000002"]


@pytest.mark.parametrize("odd", ["file", "fifo", "link"])
def test_an_old_generation_that_is_none_does_not_matter(place, tmp_path, odd):
    place.publish(*release(tmp_path / "one", 0))
    place.publish(*release(tmp_path / "two", 1))
    old = place.channel.store / "000001"
    shutil.rmtree(old)
    {"file": old.touch, "fifo": lambda: os.mkfifo(old), "link": lambda: old.symlink_to("/proc/self/fd")}[odd]()
    prune(place.channel, environment=place.environment)
    assert [path.name for path in place.channel.store.iterdir() if path.name.isdigit()] == ["000003"]


def test_an_old_generation_that_cannot_be_removed_is_said(place, tmp_path, monkeypatch, capsys):
    """The new one is there already: that is no failure."""
    place.publish(*release(tmp_path / "one", 0))

    def refuse(*_: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(store, "remove_tree", refuse)
    monkeypatch.setattr(store, "KEPT_GENERATIONS", 0)
    place.publish(*release(tmp_path / "two", 1))
    with place.channel.writing():
        place.channel.drop_old_generations(0)
    assert "000001 cannot be removed: Device or resource busy" in capsys.readouterr().err
    assert place.channel.current().name == "000002"


def test_a_first_publish_that_fails_leaves_nothing(place, tmp_path):
    (tmp_path / "broken.conda").write_bytes(b"x")
    channel = Channel.at(tmp_path / "new/channel")
    with pytest.raises(DamagedPackageError):
        publishing.publish([tmp_path / "broken.conda"], channel, place.environment)
    assert not (tmp_path / "new").exists()


def test_a_switch_that_fails_leaves_the_old_generation_alone(place, tmp_path, monkeypatch):
    place.publish(*release(tmp_path / "one", 0))

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(DiskSpaceError):
        patched.setattr(store.os, "symlink", refuse)
        place.publish(*release(tmp_path / "two", 1))
    assert sorted(path.name for path in place.channel.store.iterdir()) == ["000001", "lock"]


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [("build", "other", "as 'linux-64/tool-1.0-other.conda'"), ("subdir", "noarch", "as 'noarch/tool-1.0-0.conda'"),
     ("version", "*", "as no package can be"), ("build_number", -1, "as no package can be")],
)  # fmt: skip
def test_an_index_that_describes_another_package(place, tmp_path, key, value, complaint):
    place.publish(write_package(tmp_path, "tool"))
    index = place.channel.current() / "linux-64/repodata.json"
    content = json.loads(index.read_text())
    content["packages.conda"]["tool-1.0-0.conda"][key] = value
    index.unlink()
    index.write_text(json.dumps(content))
    with pytest.raises(ChannelDamagedError, match=re.escape(complaint)):
        State.of(place.channel)
    assert any(complaint in problem for one in verify(place.channel) for problem in one.problems)


def test_a_file_that_is_empty_but_for_its_size(place, tmp_path):
    """Reading it would take hours, and copying it the disk."""
    huge = write_package(tmp_path / "huge", "tool")
    os.truncate(huge, 1 << 40)
    with pytest.raises((DamagedPackageError, DiskSpaceError)):
        place.publish(huge)
    place.publish(write_package(tmp_path, "tool"))
    path = place.channel.current() / "linux-64/tool-1.0-0.conda"
    path.chmod(0o644)
    os.truncate(path, 1 << 40)
    with pytest.raises(ChannelDamagedError, match="larger than"):
        place.publish(write_package(tmp_path, "other"))


def test_a_folder_of_nobody():
    with pytest.raises(HomeNotFoundError, match="nobody-of-this-name"):
        Channel.at(Path("~nobody-of-this-name/channel"))


def test_a_package_of_another_size_is_not_read(place, tmp_path):
    """A sparse file of 64 GiB takes minutes to read."""
    place.publish(*release(tmp_path / "one", 0, cuda=False))
    grown = next(place.channel.path.glob("noarch/*.conda"))
    grown.chmod(0o644)
    os.truncate(grown, 1 << 36)
    (wrong,) = [finding for finding in verify(place.channel) if finding.problems]
    assert grown.name in wrong.path and f"has {1 << 36} bytes instead of" in wrong.problems[0]
    no_archive = tmp_path / grown.name
    no_archive.touch()
    os.truncate(no_archive, 1 << 36)
    with pytest.raises(DamagedPackageError):
        inspect(no_archive)

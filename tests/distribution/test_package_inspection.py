"""What a package says of itself and holds, and that nothing gets through which an installer would take otherwise."""

from __future__ import annotations

import copy
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rattler")

from conda_packages import write_package
from distribution.channel import package_file, trial
from distribution.channel.package_file import inspect
from distribution.channel.verification import verify
from distribution.errors import DamagedPackageError, DiskSpaceError
from document_damages import SPECS
from packed_by_hand import PLACEHOLDER, Entry, Model, add, at, digest, entry, model, packed, read, write, zstd

GENERATOR = Path(__file__).with_name("damaged_packages.py")


@pytest.mark.parametrize("python", [False, True])
def test_a_whole_package(tmp_path, python):
    made = model(python)
    path = write(tmp_path, made)
    found = inspect(path)
    assert (found.name, found.version, found.build, found.subdir) == ("tool", "1.0", "h1_0", "noarch" if python else "linux-64")
    assert found.depends == ("python >=3.10", "libfoo 1.2.* h*_0") and found.size == path.stat().st_size
    shown = read(path)
    assert shown["share/tool/ü"] == b"umlaut" and shown["share/tool/empty"] == b"" and "share/tool/up" not in shown
    # nothing is left of the installation on trial
    assert os.listdir(tmp_path) == [path.name]


def test_what_is_not_read_is_checked_nevertheless(tmp_path):
    made = model()
    entry(made, "bin/tool")[0].data += b"x"
    for visit in (None, lambda path, blocks: None, lambda path, blocks: next(blocks, None)):
        with pytest.raises(DamagedPackageError, match="bin/tool in it is damaged"):
            inspect(write(tmp_path, made), visit)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("../x", "no path inside"), ("/x", "no path inside"), ("./x", "no path inside"), ("a//x", "no path inside"),
        ("a/./x", "no path inside"),
        ("a/../x", "no path inside"), ("a/", "no path inside"), ("a\\x", "no path inside"), ("a\nx", "no path inside"),
        ("a\x7f", "no path inside"),
        ("a\u2028x", "no path inside"), ("n" * 256, "no path inside"), ("d/" * 512 + "x", "no path inside"),
        ("bin/tool", "twice"),
        ("bin/tool/x", "folder and something else"), ("share/tool", "twice"), ("share/tool/up/x", "folder and something else"),
        ("conda-meta/tool-1.0-h1_0.json", "keep their records"), ("conda-meta/history", "keep their records"),
        ("info/x", "keep their records"),
        ("info", "keep their records"),
    ],
)  # fmt: skip
def test_paths_that_do_not_stay_where_they_are(tmp_path, path, complaint):
    with pytest.raises(DamagedPackageError, match=complaint) as caught:
        inspect(write(tmp_path, add(model(), path)))
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("path", "kind", "target", "complaint"),
    [
        ("x", b"2", "/etc/passwd", "lead out"), ("x", b"2", "..", "lead out"), ("share/x", b"2", "../../up", "lead out"),
        ("x", b"2", "a/../b", "lead out"),
        ("share/x", b"2", "tool/up/..", "lead out"), ("x", b"2", "", "leads to"), ("x", b"2", "a\nb", "leads to"),
        ("x", b"2", "a" * 1025, "leads to"),
        ("x/sysroot/a", b"2", "../../../up", "lead out"),
        ("x", b"1", "nothing", "not in front of it"), ("x", b"1", "share/dangling", "not in front of it"),
        ("x", b"1", "share/tool", "not in front of it"),
        ("x", b"1", "../x", "no path inside"), ("x", b"1", "/etc/passwd", "no path inside"),
        ("x", b"1", "info/files", "not in front of it"),
    ],
)  # fmt: skip
def test_links_that_lead_elsewhere(tmp_path, path, kind, target, complaint):
    made = add(model(), path, b"", kind, target, "softlink" if kind == b"2" else "hardlink")
    with pytest.raises(DamagedPackageError, match=complaint):
        inspect(write(tmp_path, made))


def test_the_list_and_what_is_there(tmp_path):
    def refused(complaint: str, change: Callable[[Model], Any]) -> None:
        made = model()
        change(made)
        with pytest.raises(DamagedPackageError, match=complaint):
            inspect(write(tmp_path, made))

    refused("bin/tool in it is damaged", lambda made: entry(made, "bin/tool")[1].update(sha256=digest(b"x")))
    refused("bin/tool in it is damaged", lambda made: entry(made, "bin/tool")[1].update(size_in_bytes=3))
    refused("share/tool/same in it is damaged", lambda made: entry(made, "share/tool/same")[1].update(sha256=digest(b"x")))
    refused("share/tool/empty is missing", lambda made: made.payload.remove(entry(made, "share/tool/empty")[0]))
    refused("bin/tool is not listed", lambda made: made.paths.remove(entry(made, "bin/tool")[1]))
    refused("extra is not listed", lambda made: made.payload.append(Entry(b"extra/", kind=b"5", mode=0o755)))
    refused("is in it twice", lambda made: made.payload.append(entry(made, "bin/tool")[0]))
    refused("lists bin/tool twice", lambda made: made.paths.append(entry(made, "bin/tool")[1]))
    refused(
        "bin/tool in it is a file, and info/paths.json says softlink",
        lambda made: entry(made, "bin/tool")[1].update(path_type="softlink"),
    )
    refused(
        "is a link, and info/paths.json says hardlink", lambda made: entry(made, "share/dangling")[1].update(path_type="hardlink")
    )
    refused("leads to another file", lambda made: entry(made, "lib/libtool.so")[1].update(sha256=digest(b"x")))
    refused("no hash or no size", lambda made: entry(made, "bin/tool")[1].pop("sha256"))
    refused("no hash or no size", lambda made: entry(made, "bin/tool")[1].update(size_in_bytes=None))
    refused("the size -1", lambda made: entry(made, "bin/tool")[1].update(size_in_bytes=-1))
    refused("the size True", lambda made: entry(made, "bin/tool")[1].update(size_in_bytes=True))
    refused("as 'windows'", lambda made: entry(made, "bin/tool")[1].update(path_type="windows"))
    refused(
        "too short for the path",
        lambda made: entry(made, "share/tool/here")[1].update(file_mode="binary", prefix_placeholder="/p" * 39),
    )
    refused("what to replace", lambda made: entry(made, "share/tool/here")[1].pop("file_mode"))
    refused(
        "what to replace", lambda made: entry(made, "share/dangling")[1].update(file_mode="text", prefix_placeholder=PLACEHOLDER)
    )
    refused("no_link", lambda made: entry(made, "bin/tool")[1].update(no_link=0))


@pytest.mark.parametrize(
    "spec",
    ["https://example.org/linux-64/foo-1-0.conda", "file:///foo-1-0.conda", "conda-forge::foo", "foo[channel=x]", "x:foo",
     "foo[subdir=noarch]",
     "foo[md5=00000000000000000000000000000000]", "foo[url='https://example.org/foo-1-0.conda']", "foo[when='python >=3']",
     "foo # x", " foo", "foo\n"],
)  # fmt: skip
def test_dependencies_that_are_more_than_a_name_and_a_version(tmp_path, spec):
    for key in ("depends", "constrains"):
        made = model()
        made.index[key] = [spec]
        with pytest.raises(DamagedPackageError, match=f"{key} in info/index.json holds"):
            inspect(write(tmp_path, made))
    made = model()
    made.run_exports = {"strong": [spec]}
    with pytest.raises(DamagedPackageError, match=r"strong in info/run_exports\.json holds"):
        inspect(write(tmp_path, made))


def test_dependencies_that_are_taken(tmp_path):
    made = model()
    made.index["depends"] = [
        "foo",
        "foo 1",
        "foo ==1.0 h_0",
        "foo >=1,<2|3",
        "foo[version='>=1',build=cuda*]",
        "__glibc >=2.17",
        "foo * *netlib",
    ]
    assert inspect(write(tmp_path, made)).depends == tuple(made.index["depends"])
    assert {"foo", "__glibc >=2.17"} < {spec for spec in SPECS if isinstance(spec, str)}


INDEXES: list[tuple[str, Any]] = [
    ("name", "Tool"), ("name", "__tool"), ("name", 1), ("name", None), ("name", "../tool"), ("version", 1.0),
    ("version", "1-0"), ("version", ""), ("build", 0),
    ("build", "h-0"), ("build", ""), ("build_number", "0"), ("build_number", True), ("build_number", -1),
    ("build_number", 0.0), ("subdir", 64), ("subdir", "osx-64"),
    ("depends", "foo"), ("depends", None), ("depends", {"foo": 1}), ("depends", [1]), ("depends", ["foo >="]),
    ("depends", ["foo " + "(" * 490]), ("noarch", True),
    ("noarch", "perl"), ("constrains", "foo"), ("timestamp", "now"), ("license", 1), ("track_features", 1),
    ("extra_depends", {"a": ["conda-forge::foo"]}),
    ("python_site_packages_path", "../x"), ("arch", []),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), INDEXES)
def test_types_of_the_index(tmp_path, key, value):
    made = model()
    made.index[key] = value
    path = tmp_path / "tool-1.0-h1_0.conda"
    path.write_bytes(packed(made, stem="tool-1.0-h1_0"))
    with pytest.raises(DamagedPackageError):
        inspect(path)


@pytest.mark.parametrize(
    "name", ["info/index.json", "info/paths.json", "info/about.json", "info/run_exports.json", "info/link.json"]
)
@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[]", b"1", b"{", b"\xff", b"\xef\xbb\xbf{}", '{"a": 1}'.encode("utf-16"), b'{"a": 1, "a": 2}', b'{"a": NaN}',
     b'{"a": 1e999}',
     b'{"a": ' + b"9" * 5000 + b"}", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"a": "\\ud800"}',
     b'{"a": [' + b"1," * 2_000_001 + b"1]}"],
    ids=lambda text: repr(text[:12]),
)  # fmt: skip
def test_json_that_parsers_differ_about(tmp_path, name, text):
    with pytest.raises(DamagedPackageError):
        inspect(write(tmp_path, model(python=True), at("text", lambda texts: {**texts, name: text})))


@pytest.mark.parametrize(
    "points",
    [["../x = a:b"], ["x/y = a:b"], [".x = a:b"], ["x"], ["x = a"], ["x = a:b; c"], ["x = a:b()"], [1], "x = a:b", ["tool = a:b"],
     ["old-tool = a:b"], ["y = a:b", "y = c:d"]],
)  # fmt: skip
def test_programs_that_would_be_made_elsewhere_or_twice(tmp_path, points):
    made = model(python=True)
    made.link["noarch"]["entry_points"] = points
    with pytest.raises(DamagedPackageError):
        inspect(write(tmp_path, made))


def test_packages_that_are_for_every_python_by_one_file_alone(tmp_path):
    """conda looks into link.json, and py-rattler into index.json."""
    made = model()
    made.link = model(python=True).link
    with pytest.raises(DamagedPackageError, match="disagree about noarch"):
        inspect(write(tmp_path, made))
    made = model(python=True)
    made.link["noarch"]["type"] = "generic"
    with pytest.raises(DamagedPackageError, match="disagree about noarch"):
        inspect(write(tmp_path, made))


def test_two_paths_of_a_python_package_that_become_one(tmp_path):
    made = add(model(python=True), "lib/python3.12/site-packages/tool/__init__.py")
    with pytest.raises(DamagedPackageError, match="is in it twice"):
        inspect(write(tmp_path, made))


def test_the_machines_own_c_library(tmp_path):
    """The seed's sysroot is links to the system's files."""
    made = add(model(), "x86_64-conda-linux-gnu/sysroot/lib64/libc.so.6", b"", b"2", "/lib/x/../libc.so.6", "softlink")
    assert read(write(tmp_path, made))


# What the installer says.


def test_what_the_installer_refuses_is_refused(tmp_path):
    """py-rattler cannot make folders that are listed; where a later one can, this needs something else that it cannot."""
    made = model()
    made.paths.append({"_path": "empty", "path_type": "directory"})
    with pytest.raises(DamagedPackageError, match="the installer refuses it"):
        inspect(write(tmp_path, made))
    assert len(os.listdir(tmp_path)) == 1


def test_an_installation_that_differs_is_seen(tmp_path, monkeypatch):
    path = write(tmp_path, model())
    caught: list[tuple[Any, ...]] = []
    monkeypatch.setattr(package_file, "install_once", lambda *given: caught.append(given))
    inspect(path)
    (package, index, python, expected, folder) = caught[0]
    trial.install_once(package, index, python, expected, folder)

    def differs(complaint: str, change: Callable[[trial.Expected], Any]) -> None:
        other = copy.deepcopy(expected)
        change(other)
        with pytest.raises(ValueError, match=complaint):
            trial.install_once(package, index, python, other, folder)

    files = expected.contents.files
    differs(
        "unpacks bin/tool otherwise",
        lambda other: other.contents.files.update({"bin/tool": files["bin/tool"]._replace(sha256=b"x")}),
    )
    differs(
        "unpacks bin/tool otherwise",
        lambda other: other.contents.files.update({"bin/tool": files["bin/tool"]._replace(executable=False)}),
    )
    differs("unpacks bin/tool otherwise", lambda other: other.contents.files.pop("bin/tool"))
    differs("unpacks lib/libtool.so otherwise", lambda other: other.contents.links.update({"lib/libtool.so": "x"}))
    differs("does not unpack x", lambda other: other.contents.files.update(x=files["bin/tool"]))
    differs("adds bin/tool", lambda other: other.places.pop("bin/tool"))
    differs("leaves out info/files", lambda other: other.places.update({"info/files": "x"}))
    differs("something else of share/tool/here", lambda other: object.__setattr__(other, "relocated", frozenset()))
    differs(
        "something else of (bin/tool|lib/libtool.so)",
        lambda other: other.places.update({"lib/libtool.so": "bin/tool", "bin/tool": "lib/libtool.so"}),
    )
    assert os.listdir(tmp_path) == [path.name]


def test_large_packages_are_installed_beside_the_file(tmp_path, monkeypatch):
    path = write(tmp_path, model())
    monkeypatch.setattr(trial, "_SMALL", 0)
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    inspect(path)
    monkeypatch.setattr(trial.shutil, "disk_usage", lambda place: os.statvfs_result and type("Usage", (), {"free": 0}))
    with pytest.raises(DiskSpaceError, match="on trial"):
        inspect(path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(DiskSpaceError, match="elsewhere"):
        inspect(path, scratch=elsewhere)
    assert not before or set(os.listdir("/dev/shm")) <= before | {"elsewhere"}
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", path.name]


def test_what_a_killed_one_left_is_swept_away(tmp_path, monkeypatch):
    path = write(tmp_path, model())
    monkeypatch.setattr(trial, "_SMALL", 0)
    old, young, busy = (tmp_path / f"llama-cpp-trial-{name}" for name in ("old", "young", "busy"))
    for folder in (old, young, busy):
        (folder / "packages").mkdir(parents=True)
    for folder in (old, busy):
        os.utime(folder, (time.time() - 600,) * 2)
    lock = os.open(busy, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    inspect(path)
    os.close(lock)
    assert not old.exists() and young.exists() and busy.exists()


def test_a_package_of_many_files(tmp_path):
    made = model()
    made.payload, made.paths = [], []
    for number in range(3000):
        add(made, f"lib/{number % 50}/{number}", b"%d" % number)
    found = read(write(tmp_path, made))
    assert len(found) == 3000 and found["lib/7/7"] == b"7"


def test_nobody_waits_for_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe-1.0-0.conda")
    (tmp_path / "folder-1.0-0.conda").mkdir()
    (tmp_path / "link-1.0-0.conda").symlink_to("nothing")
    for name in ("pipe", "folder", "link", "missing"):
        with pytest.raises(OSError):
            inspect(tmp_path / f"{name}-1.0-0.conda")


def test_verification_goes_on_after_whatever_it_finds(place, tmp_path):
    names = ("bomb", "pipe", "folder", "link", "short", "whole")
    place.publish(*(write_package(tmp_path / "made", name) for name in names))
    folder = place.channel.current() / "linux-64"
    files = {name: folder / f"{name}-1.0-0.conda" for name in names}
    for name in names[:-1]:
        files[name].unlink()
    large = zstd.compress(Entry(b"info/x", bytes(80 << 20)).packed())
    write(tmp_path, model(), at("frame", lambda frames: {**frames, "info": large})).rename(files["bomb"])
    os.mkfifo(files["pipe"])
    files["folder"].mkdir()
    files["link"].symlink_to("nothing")
    files["short"].write_bytes(b"PK")
    (place.channel.current() / "environment.yml").unlink()
    os.mkfifo(place.channel.current() / "environment.yml")
    found = {one.path.split("/")[-1]: one.problems for one in verify(place.channel) if one.problems}
    assert found.keys() >= {f"{name}-1.0-0.conda" for name in names[:-1]} | {"environment.yml"}
    assert "whole-1.0-0.conda" not in found


# All of it at once.


def generate(first: int, count: int, folder: Path, *more: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, GENERATOR, str(first), str(count), folder, *more], capture_output=True, text=True, timeout=60 + 4 * count
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-1500:])
    return json.loads(done.stdout)


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_damaged_packages_are_refused_or_installed_as_they_were_read(tmp_path, first):
    check(generate(first, 100, tmp_path), 5)


@pytest.mark.slow
@pytest.mark.generator
@pytest.mark.parametrize("first", range(1000, 21_000, 1000))
def test_many_more_damaged_packages(tmp_path, first):
    check(generate(first, 1000, tmp_path), 50)


def check(found: dict[str, Any], least: int) -> None:
    assert not found["wrong"], "\n".join(found["wrong"])
    kinds = found["kinds"]
    # both come about, and for many reasons
    assert kinds["accepted"] >= least and kinds["refused"] >= 10 * least and len(found["reasons"]) >= 3 * least
    assert found["memory"] < 1 << 30


def test_the_generator_finds_a_reader_that_believes_too_much(tmp_path):
    """One that reads as conda does, with Python's own modules, and leaves it at that."""
    try:
        found = generate(0, 40, tmp_path, "lenient")
    except AssertionError as died:
        assert "-6" in str(died) or "134" in str(died)  # py-rattler ended the process
    else:
        assert len(found["wrong"]) >= 5

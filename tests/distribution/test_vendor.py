"""Vendoring, with a small carrier that pip serves from a folder, and once with the real one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from distribution import files, git_tree, patches, pip, sources, vendor
from distribution.errors import (
    DirtySourceError,
    DownloadError,
    HashMismatchError,
    PatchError,
    PinError,
    SourceNotFoundError,
    TreeMismatchError,
    UnsafeArchiveError,
)
from distribution.pin import Pin
from engine_carrier import ENGINE, PATCH, PREFIX, ROOT, command, git, pack, write_engine


def test_tree_id_is_gits(tmp_path):
    engine = write_engine(tmp_path / "engine", {**ENGINE, "ä/ö": b"\0\xff", "a b": b"x"})
    (engine / "link").symlink_to("ggml/CMakeLists.txt")
    (engine / "empty").mkdir()
    git("init", "--quiet", ".", cwd=engine)
    git("add", "--all", ".", cwd=engine)
    expected = git("write-tree", cwd=engine)
    shutil.rmtree(engine / ".git")
    (engine / "scripts/__pycache__").mkdir()
    (engine / "scripts/__pycache__/x.pyc").write_bytes(b"byte code is no edit")
    assert git_tree.tree_id(git_tree.scan(engine)) == expected


def test_vendor_unpacks_the_engine_and_nothing_else(setting):
    source = setting.vendor()
    assert git_tree.tree_id(git_tree.scan(source)) == setting.tree
    assert git_tree.scan(source).keys() == ENGINE.keys()
    assert os.access(source / "scripts/run.sh", os.X_OK)
    assert setting.status().state == "pristine" and setting.status().current
    assert setting.leftovers() == []


def test_second_run_changes_nothing_and_a_second_clone_downloads_nothing(setting, monkeypatch):
    source = setting.vendor()
    before = source.stat().st_ino, (source / "CMakeLists.txt").stat().st_mtime_ns
    monkeypatch.setenv("PIP_FIND_LINKS", str(setting.root / "nowhere"))
    setting.vendor()
    assert before == (source.stat().st_ino, (source / "CMakeLists.txt").stat().st_mtime_ns)
    shutil.rmtree(source)
    shutil.rmtree(setting.folder / ".source-state")
    setting.vendor()
    assert setting.status().current


def test_index_with_another_file_is_refused(setting):
    setting.pin("0" * 64)
    with pytest.raises(HashMismatchError, match="another"):
        setting.vendor()
    assert not (setting.folder / "source").exists()
    assert setting.leftovers() == [] and not list(setting.cache.rglob("*.tar.gz"))


def test_changed_file_in_the_cache_is_refused(setting):
    (setting.cache / "downloads").mkdir(parents=True)
    (setting.cache / "downloads" / setting.archive.name).write_bytes(setting.archive.read_bytes() + b"\0")
    with pytest.raises(HashMismatchError) as caught:
        setting.vendor()
    assert str(setting.cache) in caught.value.remedy


def test_right_hash_with_the_wrong_tree_is_refused(setting):
    setting.pin(files.sha256_of(setting.archive), tree="1" * 40)
    with pytest.raises(TreeMismatchError, match=setting.tree):
        setting.vendor()
    assert not (setting.folder / "source").exists() and setting.leftovers() == []


def test_no_network_in_the_build_of_a_package(setting):
    done = command("vendor", "--folder", str(setting.folder), PIP_FIND_LINKS=str(setting.root), CONDA_BUILD="1")
    assert "or name a checkout that has the pinned commit: LLAMA_CPP_SOURCE_DIR=" in done.stderr


@pytest.mark.parametrize("how", ["no index", "nobody listens"])
def test_no_network(setting, how):
    environment = {"PIP_FIND_LINKS": str(setting.root)}
    if how == "nobody listens":
        environment |= {"PIP_NO_INDEX": "", "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0"}
    done = command("vendor", "--folder", str(setting.folder), **environment)
    assert done.returncode == 1
    assert "error: could not download" in done.stderr and "Traceback" not in done.stderr
    for way_out in (str(setting.cache / "downloads" / setting.archive.name), "--from-git", "LLAMA_CPP_SOURCE_DIR"):
        assert way_out in done.stderr
    assert "or name a checkout that you have (for packages one that has the pinned commit)" in done.stderr
    assert ("PIP_NO_INDEX is set" in done.stderr) == (how == "no index")
    assert setting.leftovers() == []


def test_carrier_put_into_the_cache_by_hand(setting, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(setting.root))
    (setting.cache / "downloads").mkdir(parents=True)
    shutil.copy(setting.archive, setting.cache / "downloads")
    setting.vendor()
    assert setting.status().current


def test_python_without_pip_uses_the_bundled_one(setting, tmp_path):
    pytest.importorskip("ensurepip")
    python = tmp_path / "bare/bin/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", python.parents[1]], check=True)
    script = "import sys; from distribution.__main__ import main; sys.exit(main())"
    done = subprocess.run([python, "-c", script, "vendor", "--folder", setting.folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert setting.status().current


def test_settings_of_pip_that_would_change_the_file_are_dropped(setting, monkeypatch):
    for name, value in {"PIP_REQUIRE_VIRTUALENV": "1", "PIP_ONLY_BINARY": ":all:", "PYTHONPATH": "/nowhere"}.items():
        monkeypatch.setenv(name, value)
    setting.vendor()
    assert setting.status().current


def test_patch_applies_inside_a_repository_that_ignores_the_folder(setting):
    (setting.root / "repo/.gitignore").write_text("/vendor/llama.cpp/source/\n/vendor/llama.cpp/.source-*/\n")
    setting.patch(PATCH)
    source = setting.vendor()
    assert "hello" in (source / "CMakeLists.txt").read_text()
    assert setting.status().state == "patched" and setting.status().current
    assert "0001-greet.patch" in setting.status().text()
    assert git("status", "--porcelain", "--untracked-files=all", cwd=setting.root / "repo").count("source") == 0


def test_patched_tree_is_recognised_when_nothing_is_recorded(setting):
    setting.patch(PATCH)
    source = setting.vendor()
    shutil.rmtree(setting.folder / ".source-state")
    inode = source.stat().st_ino
    assert setting.status().state == "patched"
    setting.vendor()
    assert source.stat().st_ino == inode
    (source / "ggml-b/a").write_text("edited")
    assert setting.status().files == ["ggml-b/a"]
    shutil.rmtree(setting.folder / ".source-state")
    assert setting.status().state == "dirty"


def test_without_git_patch_does_it(setting, monkeypatch, tmp_path):
    if not shutil.which("patch"):
        pytest.skip("patch is not installed")
    setting.patch(PATCH)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/patch").symlink_to(shutil.which("patch"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    source = setting.vendor()
    assert "hello" in (source / "CMakeLists.txt").read_text() and not list(source.rglob("*.orig"))
    shutil.rmtree(setting.folder / ".source-state")
    assert setting.status().state == "patched"


def test_patch_that_does_not_apply_leaves_everything_as_it_was(setting):
    source = setting.vendor()
    setting.patch(PATCH.replace(" project(engine)", " project(other)"))
    with pytest.raises(PatchError, match=r"0001-greet\.patch"):
        setting.vendor()
    assert git_tree.tree_id(git_tree.scan(source)) == setting.tree and setting.leftovers() == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [(PATCH[PATCH.index("diff") :], "header"), ("Why: no reason.\n", "header"), ("Why.\n\n--- x\n+++ y\n", "no file")],
)
def test_patch_must_say_why_and_touch_something(setting, text, complaint):
    setting.patch(text)
    with pytest.raises(PatchError, match=complaint):
        setting.status()


def test_patch_that_is_listed_must_be_there(setting):
    (setting.folder / "patches/series").write_text("0009-lost.patch\n")
    with pytest.raises(PatchError, match="0009-lost"):
        setting.status()


def test_edited_source_is_not_overwritten_unless_forced(setting):
    source = setting.vendor()
    (source / "CMakeLists.txt").write_text("mine")
    (source / "new.txt").write_text("mine too")
    with pytest.raises(DirtySourceError) as caught:
        setting.vendor()
    assert caught.value.files == ["CMakeLists.txt", "new.txt"]
    assert "--force" in caught.value.remedy and "LLAMA_CPP_SOURCE_DIR" in caught.value.remedy
    assert setting.status().state == "dirty" and "new.txt" in setting.status().text()
    setting.vendor(force=True)
    assert setting.status().state == "pristine" and not (source / "new.txt").exists()


def test_changed_mode_is_an_edit(setting):
    (setting.vendor() / "scripts/run.sh").chmod(0o644)
    assert setting.status().files == ["scripts/run.sh"]


def test_clean_source_follows_the_patches_without_asking(setting):
    source = setting.vendor()
    setting.patch(PATCH)
    assert not setting.status().current
    setting.vendor()
    assert "hello" in (source / "CMakeLists.txt").read_text()
    (setting.folder / "patches/series").write_text("")
    assert setting.status().state == "outdated"
    setting.vendor()
    assert setting.status().state == "pristine"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_unpacking_leaves_nothing(setting, end, tmp_path):
    # slow enough to be interrupted in the middle: every file of the engine is read through a pause
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time, signal\n"
        "from distribution import sources\n"
        "from distribution.__main__ import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "write = sources._write_member\n"
        "def slowly(*arguments):\n"
        "    write(*arguments)\n"
        "    print('wrote', flush=True)\n"
        "    time.sleep(60)\n"
        "sources._write_member = slowly\n"
        "sys.exit(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, script, "vendor", "--folder", setting.folder],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "wrote\n"
    assert setting.leftovers() != []
    process.send_signal(end)
    process.communicate()
    assert process.returncode == (130 if end == signal.SIGINT else 143)
    assert setting.leftovers() == [] and not (setting.folder / "source").exists()


def test_killed_run_is_cleared_up_by_the_next(setting):
    source = setting.vendor()
    (setting.folder / ".source-dead").mkdir()
    os.rename(source, setting.folder / ".source-dead/old")
    setting.vendor()
    assert setting.status().current and setting.leftovers() == []


def test_two_at_once_both_succeed(setting):
    runs = [
        subprocess.Popen([sys.executable, "-m", "distribution", "vendor", "--folder", setting.folder], cwd=ROOT) for _ in range(2)
    ]
    assert [run.wait() for run in runs] == [0, 0]
    assert setting.status().current and setting.leftovers() == []


def bad_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(f"engine_carrier-1.0/{PREFIX}/{name}")
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "members",
    [
        [bad_member("../../../../escaped")],
        [bad_member("/etc/escaped")],
        [bad_member("link", tarfile.SYMTYPE, "/etc")],
        [bad_member("link", tarfile.SYMTYPE, "../../..")],
        [bad_member("link", tarfile.LNKTYPE, "elsewhere")],
        [bad_member("device", tarfile.CHRTYPE)],
        [bad_member("here", tarfile.SYMTYPE, "there"), bad_member("here/file")],
    ],
)
def test_archives_cannot_write_elsewhere(tmp_path, members):
    archive = tmp_path / "engine_carrier-1.0.tar.gz"
    pack(archive, {str(number): member for number, member in enumerate(members)})
    with pytest.raises(UnsafeArchiveError):
        sources.unpack_tree(archive, PREFIX, tmp_path / "a/b/c/d/target")
    assert not list(tmp_path.rglob("escaped"))


def test_damaged_archive(tmp_path, setting):
    archive = tmp_path / setting.archive.name
    archive.write_bytes(setting.archive.read_bytes()[:-200])
    with pytest.raises(PinError, match="damaged"):
        sources.unpack_tree(archive, PREFIX, tmp_path / "target")


def test_from_git(setting, monkeypatch):
    setting.patch(PATCH)
    monkeypatch.setenv("PIP_FIND_LINKS", str(setting.root / "nowhere"))
    # something newer than the pin, and settings that would rewrite line ends
    (setting.repository / "newer").write_text("x")
    git("add", "newer", cwd=setting.repository)
    git("commit", "--quiet", "--message=newer", cwd=setting.repository)
    (setting.root / "config").write_text("[core]\n\tautocrlf = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(setting.root / "config"))
    done = command("vendor", "--folder", str(setting.folder), "--from-git")
    assert done.returncode == 0, done.stderr
    assert setting.status().state == "patched" and not (setting.folder / "source/newer").exists()
    assert not (setting.folder / "source/.git").exists() and setting.leftovers() == []


def test_from_git_without_the_commit(setting):
    setting.pin("0" * 64, commit="1" * 40)
    with pytest.raises(DownloadError, match="1" * 40):
        setting.vendor(from_git=str(setting.repository))
    with pytest.raises(DownloadError, match="nowhere"):
        setting.vendor(from_git=str(setting.root / "nowhere"))
    assert setting.leftovers() == []


def test_source_dir(setting, monkeypatch, capsys):
    with pytest.raises(SourceNotFoundError, match=r"no llama\.cpp"):
        vendor.source_dir(setting.folder)
    monkeypatch.setenv("LLAMA_CPP_SOURCE_DIR", str(setting.repository))
    assert setting.vendor() == vendor.source_dir(setting.folder) == setting.repository
    assert str(setting.repository) in capsys.readouterr().err and not (setting.folder / "source").exists()
    assert setting.status().override == str(setting.repository) and "is set" in setting.status().text()
    monkeypatch.setenv("LLAMA_CPP_SOURCE_DIR", str(setting.root))
    with pytest.raises(SourceNotFoundError, match="LLAMA_CPP_SOURCE_DIR"):
        setting.vendor()
    monkeypatch.delenv("LLAMA_CPP_SOURCE_DIR")
    assert setting.vendor() == vendor.source_dir(setting.folder)


def test_status_command(setting):
    done = command("vendor", "--folder", str(setting.folder), "status", "--json")
    found = json.loads(done.stdout)
    assert (found["state"], found["commit"], found["current"]) == ("missing", setting.commit, False)
    setting.vendor()
    done = command("vendor", "--folder", str(setting.folder), "status")
    assert done.returncode == 0 and "pristine" in done.stdout and setting.commit in done.stdout


def test_pin_file_is_readable_by_cmake_and_complete(setting):
    pin = Pin.load(ROOT / "vendor/llama.cpp/pin.toml")
    assert pin.dumps() == (ROOT / "vendor/llama.cpp/pin.toml").read_text()
    assert f'\ncommit = "{pin.commit}"\n' in pin.dumps()
    (setting.folder / "pin.toml").write_text('commit = "x"\n')
    with pytest.raises(PinError, match="carrier"):
        setting.status()
    (setting.folder / "pin.toml").write_text("commit = ")
    with pytest.raises(PinError, match="TOML"):
        setting.status()


def test_patches_of_this_repository_are_explained():
    for patch in patches.load_series(ROOT / "vendor/llama.cpp/patches"):
        assert "Why:" in patch.header and "Goes when:" in patch.header, patch.name


@pytest.mark.network
def test_the_real_carrier(tmp_path):
    """The pinned release, from the user's cache or the index, unpacked, proved and patched."""
    folder = tmp_path / "llama.cpp"
    shutil.copytree(ROOT / "vendor/llama.cpp/patches", folder / "patches")
    shutil.copy(ROOT / "vendor/llama.cpp/pin.toml", folder)
    try:
        pip.fetch(Pin.load(folder / "pin.toml").carrier, files.cache_dir())
    except DownloadError as error:
        pytest.skip(f"not cached, and {error.message}")
    environment = {"LLAMA_CPP_SOURCE_DIR": ""}
    assert command("vendor", "--folder", str(folder), **environment).returncode == 0
    found = json.loads(command("vendor", "--folder", str(folder), "status", "--json", **environment).stdout)
    assert found["current"] and found["state"] == ("patched" if found["patches"] else "pristine")
    began = time.monotonic()
    assert "carried" not in command("vendor", "--folder", str(folder), **environment).stderr
    print(f"no-op: {time.monotonic() - began:.1f} s")
    shutil.rmtree(folder)


@pytest.mark.parametrize("head", ["HEAD", ".git/HEAD"])
def test_a_repository_whose_head_is_a_fifo_is_not_waited_for(tmp_path, head):
    (tmp_path / "repository/.git").mkdir(parents=True)
    os.mkfifo(tmp_path / "repository" / head)
    with pytest.raises(DownloadError, match="named pipe"):
        sources.checkout(str(tmp_path / "repository"), "0" * 40, tmp_path / "target")
    assert not (tmp_path / "target").exists()

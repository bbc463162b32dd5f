"""Reading what may be damaged or something else, and writing without a trace of what failed."""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from distribution import files, pip
from distribution.errors import HashMismatchError, HomeNotFoundError, PinError
from engine_carrier import ROOT


def specials(folder: Path) -> dict[str, Path]:
    """Everything that is no plain file, by what it is called."""
    made = {name: folder / name for name in ("folder", "named pipe", "socket", "link to nothing", "loop")}
    made["folder"].mkdir()
    os.mkfifo(made["named pipe"])
    with socket.socket(socket.AF_UNIX) as one:
        os.chdir(folder)
        one.bind("socket")
    made["link to nothing"].symlink_to("nowhere")
    made["loop"].symlink_to("loop")
    made["device"] = Path("/dev/zero")
    return made


@pytest.fixture
def odd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return specials(tmp_path)


@pytest.mark.parametrize(
    "read", [files.open_regular, files.sha256_of, lambda path: files.read_regular(path, 10)], ids=["open", "hash", "read"]
)
def test_only_plain_files_are_read(odd, read):
    opened = len(os.listdir("/proc/self/fd"))
    for name, path in odd.items():
        with pytest.raises(OSError) as caught:
            read(path)
        assert caught.value.errno and str(path) in str(caught.value), name
        if name in ("folder", "named pipe", "socket", "device"):
            assert name in caught.value.strerror
    for name in ("a\0b", "\ud800", "x" * 5000):
        with pytest.raises(OSError):
            read(Path(name))
    assert len(os.listdir("/proc/self/fd")) == opened


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="larger than 100 bytes"):
        files.read_regular(tmp_path / "sparse", 100)
    (tmp_path / "fits").write_bytes(b"x" * 100)
    assert files.read_regular(tmp_path / "fits", 100) == b"x" * 100


@pytest.mark.parametrize("for_everybody", [False, True])
def test_a_lock_is_a_plain_file(odd, tmp_path, for_everybody):
    for path in odd.values():
        with pytest.raises(OSError), files.locked(path, "a test", for_everybody):
            pass
    # what the link leads to was not made
    assert not (tmp_path / "nowhere").exists()
    for _ in range(2):
        with files.locked(tmp_path / "new" / "lock", "a test", for_everybody):
            assert (tmp_path / "new" / "lock").is_file()


def test_what_is_no_plain_file_is_not_replaced(odd, tmp_path):
    before = sorted(os.listdir(tmp_path))
    for name in ("folder", "named pipe", "socket", "loop", "device"):
        mode = odd[name].lstat().st_mode
        with pytest.raises(OSError):
            files.write_atomically(odd[name], "x")
        assert odd[name].lstat().st_mode == mode
    assert sorted(os.listdir(tmp_path)) == before
    files.write_atomically(tmp_path / ("n" * 255), "long")
    assert (tmp_path / ("n" * 255)).read_text() == "long"
    assert stat.S_IMODE((tmp_path / ("n" * 255)).stat().st_mode) == 0o644


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    script = (
        "import resource; from pathlib import Path; from distribution import files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "for write in (lambda: files.write_atomically(folder / 'file', 'x' * 5000), staged := lambda: staging()):\n"
        "    try:\n"
        "        write()\n"
        "    except OSError as error:\n"
        "        print(error.errno, error.filename)\n"
    ).replace("staged := lambda: staging()", "lambda: staging(folder)")
    function = (
        "def staging(folder):\n"
        "    from distribution import files\n"
        "    with files.staging_folder(folder / 'a' / 'b', '.x-') as made, (made / 'file').open('wb') as file:\n"
        "        file.write(bytes(5000))\n"
    )
    done = subprocess.run([sys.executable, "-c", function + script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{errno.EFBIG} {tmp_path / 'file'}\n{errno.EFBIG} {tmp_path / 'a' / 'b'}\n", done.stderr
    assert os.listdir(tmp_path) == [] and resource.getrlimit(resource.RLIMIT_FSIZE)


def test_whatever_is_in_the_place_of_a_folder_is_removed(odd, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("x")
    (tmp_path / "link").symlink_to("outside")
    for path in (
        *(odd[name] for name in ("folder", "named pipe", "socket", "link to nothing", "loop")),
        tmp_path / "link",
        tmp_path / "missing",
    ):
        files.remove_tree(path)
        assert not os.path.lexists(path)
    assert (tmp_path / "outside" / "kept").exists()


GOOD_JSON = {
    '{"a": [1, -2.5, "ü", null, true], "b": {}}': {"a": [1, -2.5, "ü", None, True], "b": {}},
    '["\\u00e4", "\\\\u0000", "\\ud83d\\ude00", 9223372036854775807, 1e300]': ["ä", "\\u0000", "😀", 2**63 - 1, 1e300],
    " 3 ": 3,
}
BAD_JSON = [
    "", "x", "[1,]", "NaN", "[Infinity]", "1e999", "-1e999", "9223372036854775808", "-9223372036854775809", "9" * 10_000,
    '{"a": 1, "b": 2, "a": 3}',
    '{"a": {"b": 1, "b": 1}}', "[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000, "[" * 101 + "]" * 101,
    '"\\ud800"', '{"\\udfff": 1}',
    '"\\u0000"', '{"\\u0000": 1}', "\ufeff{}", "[1] [2]", '"a\nb"', "'a'",
]  # fmt: skip


def test_json():
    for text, document in GOOD_JSON.items():
        assert files.load_json(text) == files.load_json(text.encode()) == document
    assert files.load_json("[" * 100 + "]" * 100)
    for text in BAD_JSON:
        for data in (text, text.encode()):
            with pytest.raises(ValueError) as caught:
                files.load_json(data)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    for data in (b'"\xff"', b'"\xed\xa0\x80"', "{}".encode("utf-16"), "{}".encode("utf-32"), b"\0"):
        with pytest.raises(ValueError):
            files.load_json(data)
    with pytest.raises(ValueError, match="larger than 3 bytes"):
        files.load_json(b"[10]", largest=3)
    with pytest.raises(ValueError, match="deeper than 1 level"):
        files.load_json(b"[[]]", deepest=1)
    with pytest.raises(ValueError):
        files.load_json('"\ud800"')


def test_a_document_of_many_megabytes_takes_seconds():
    began = time.process_time()
    document = files.load_json(b"[" + b",".join([b'{"name":"a","size":1,"list":["\\u00e4"]}'] * 100_000) + b"]")
    assert len(document) == 100_000 and time.process_time() - began < 20


def test_yaml():
    pytest.importorskip("yaml")
    assert files.load_yaml("a: [1, x]\nb: {c: null}\n") == {"a": [1, "x"], "b": {"c": None}}
    levels = "\n".join(f"l{one}: &l{one} [{', '.join([f'*l{one - 1}'] * 9)}]" for one in range(1, 30))
    merges = "\n".join(f"m{one}: &m{one} {{<<: [{', '.join([f'*m{one - 1}'] * 9)}]}}" for one in range(1, 30))
    began = time.process_time()
    for text in (
        f"l0: &l0 [x]\n{levels}\n", f"m0: &m0 {{x: 1}}\n{merges}\n", "a: &a [*a]", "[" * 100_000, "- " * 10_000,
        "{a: " * 10_000, "a: 1\na: 2",
        "!!python/object/apply:os.system [ls]", "!!int x", "!!int ''", "!!float ''", "!!timestamp x", "!!bool x", "2026-99-99",
        "a: " + "9" * 5000, "? [a]\n: b", "<<: 3", "a: b: c", "\0", '"\\0"', '"\\ud800"', "@x", "\t- a", b"\xff",
        "[" * 101 + "]" * 101,
    ):  # fmt: skip
        with pytest.raises(ValueError):
            files.load_yaml(text)
    assert time.process_time() - began < 20
    with pytest.raises(ValueError, match="larger"):
        files.load_yaml("x" * 100, largest=10)


@pytest.mark.parametrize("text", [
    b"a = ", b"a = 1\na = 2", b"a = " + b"9" * 5000, b"a = " + b"[" * 100_000, b"a = '\xff'", b"\xef\xbb\xbfa = 1",
    b"a = 2026-99-99", b"a = \"\\ud800\"",
    b".".join([b"a"] * 50_000) + b" = 1",
])  # fmt: skip
def test_toml_that_is_none(tmp_path, text):
    (tmp_path / "file.toml").write_bytes(text)
    with pytest.raises(PinError, match=r"file\.toml"):
        files.load_toml(tmp_path / "file.toml")


def test_toml_that_cannot_be_read(odd):
    for path in odd.values():
        with pytest.raises(PinError, match=path.name):
            files.load_toml(path)


def test_folders_of_the_user(monkeypatch, tmp_path):
    for name in ("LLAMA_CPP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_dir() == tmp_path / ".cache" / "llama-cpp"
    # XDG says that a relative one is to be ignored
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert files.cache_dir() == tmp_path / ".cache" / "llama-cpp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_dir() == tmp_path / "xdg" / "llama-cpp"
    monkeypatch.setenv("LLAMA_CPP_CACHE", "~nobody-of-this-name/x")
    with pytest.raises(HomeNotFoundError, match="nobody-of-this-name"):
        files.cache_dir()
    monkeypatch.delenv("LLAMA_CPP_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    for wrong in ("", "relative"):
        monkeypatch.setenv("HOME", wrong)
        with pytest.raises(HomeNotFoundError):
            files.cache_dir()


def test_a_file_that_is_empty_but_for_its_size_is_not_hashed(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="larger than 1,000 bytes"):
        files.sha256_of(tmp_path / "huge", 1000)
    with pytest.raises(HashMismatchError, match="no file of an index"):
        pip.check_sha256(tmp_path / "huge", "0" * 64)


def test_folders_that_were_made_for_nothing_are_gone(tmp_path):
    with pytest.raises(KeyError), files.made_folder(tmp_path / "a/b/c") as made:
        assert made == [tmp_path / "a/b/c", tmp_path / "a/b", tmp_path / "a"]
        raise KeyError
    assert not (tmp_path / "a").exists()
    with pytest.raises(KeyError), files.made_folder(tmp_path / "a/b/c"):
        (tmp_path / "a/kept").write_text("")
        raise KeyError
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


def test_a_folder_that_comes_back_is_removed_for_good(tmp_path):
    folder = tmp_path / "folder"

    def come_back() -> None:
        for _ in range(5):
            (folder / "deeper").mkdir(parents=True, exist_ok=True)
            time.sleep(0.02)

    thread = threading.Thread(target=come_back)
    thread.start()
    files.remove_for_good(folder)
    thread.join()
    assert not folder.exists()


def test_a_lock_whose_file_was_taken_away_is_taken_anew(tmp_path):
    """Who had it removed it and its folder; a third one would lock another file."""
    path, order = tmp_path / "folder/lock", []

    def second() -> None:
        with files.locked(path, "a test"):
            order.append("second")
            assert path.exists()

    thread = threading.Thread(target=second)
    with files.locked(path, "a test"):
        thread.start()
        time.sleep(0.2)
        order.append("first")
        path.unlink()
        path.parent.rmdir()
    thread.join()
    assert order == ["first", "second"] and path.exists()

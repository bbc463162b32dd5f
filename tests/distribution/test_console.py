"""What a person sees: closed pipes, full disks, closed streams, errors of the system and of our own."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from distribution import console
from distribution.errors import PinError
from engine_carrier import ROOT

COMMANDS = (
    "vendor --folder $PIN status",
    "vendor --folder $PIN status --json",
    "toolkit --status",
    "--help",
    "channel --help",
    "vendor --no-such",
)


@pytest.fixture(autouse=True)
def pin(tmp_path, monkeypatch):
    """A vendor folder whose status is quickly told."""
    (tmp_path / "pin").mkdir()
    shutil.copy(ROOT / "vendor" / "llama.cpp" / "pin.toml", tmp_path / "pin")
    monkeypatch.setenv("PIN", str(tmp_path / "pin"))


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of bash in the repository, with ``D`` as the command."""
    command = f'D() {{ {shlex.quote(sys.executable)} -m distribution "$@"; }}'
    return subprocess.run(
        ["bash", "-c", f"{command}\n{script}"],
        cwd=ROOT,
        env={**os.environ, "LLAMA_CPP_SOURCE_DIR": "", **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", COMMANDS)
def test_a_closed_pipe_is_no_error(words, unbuffered):
    usual = shell(f"D {words}").returncode
    assert usual == (2 if words.endswith("--no-such") else 0)
    done = shell(f"D {words} | true; echo ${{PIPESTATUS[0]}}", PYTHONUNBUFFERED=unbuffered)
    assert done.stdout == f"{usual}\n", done.stderr
    assert done.stderr == "" or usual
    # stderr, too, and both at once
    done = shell(f"D {words} 2>&1 | true; echo ${{PIPESTATUS[0]}}", PYTHONUNBUFFERED=unbuffered)
    assert (done.stdout, done.stderr) == (f"{usual}\n", "")


def test_the_work_goes_on_when_nobody_reads_any_more(tmp_path):
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from distribution import console
def work():
    for number in range(100_000):
        print("a line that is long enough to fill a pipe soon", number)
        console.say("progress")
    open({str(tmp_path / "done")!r}, "w").close()
    return 3
sys.exit(console.run(work))
"""
    done = shell(f"{shlex.quote(sys.executable)} - 2>&1 <<'EOF' | head -n 1; echo ${{PIPESTATUS[0]}}\n{script}\nEOF")
    assert done.stdout.splitlines()[-1] == "3" and done.stderr == "" and (tmp_path / "done").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_results_that_cannot_be_written_are_an_error(unbuffered):
    done = shell("D vendor --folder $PIN status > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1 and done.stderr.startswith("error: the results (stdout): No space left on device")
    # nobody can be told that progress cannot be shown
    done = shell("D vendor --folder $PIN status 2> /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 0 and done.stdout
    assert shell("D vendor --folder /nowhere status 2> /dev/full").returncode == 1


def test_closed_streams():
    assert shell("D vendor --folder $PIN status >&-").returncode == 0
    # what is for stderr must not come out of stdout, nor land in a file that took its number
    done = shell("D vendor --folder /nowhere status 2>&-")
    assert (done.returncode, done.stdout) == (1, "")
    assert shell("D vendor --folder /nowhere status <&- >&- 2>&-").returncode == 1
    done = shell("D vendor --folder /nowhere status <&- >&-")
    assert done.returncode == 1 and "pin.toml is missing" in done.stderr


def test_a_name_that_is_no_text_is_printed_as_the_bytes_it_has(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    done = subprocess.run(
        [sys.executable, "-m", "distribution", "toolkit", "--status"], cwd=ROOT, capture_output=True,
        env={**os.environb, b"LLAMA_CPP_CACHE": folder, b"PYTHONIOENCODING": b"utf-8:strict"},
    )  # fmt: skip
    assert done.returncode == 0 and b"folder: " + folder + b"/cuda" in done.stdout
    # and what the terminal's encoding lacks is escaped
    done = subprocess.run(
        [sys.executable, "-m", "distribution", "toolkit", "--status"], cwd=ROOT, capture_output=True,
        env={**os.environ, "LLAMA_CPP_CACHE": str(tmp_path / "über"), "PYTHONIOENCODING": "ascii:strict"},
    )  # fmt: skip
    assert done.returncode == 0 and b"\\xfcber/cuda" in done.stdout


def raising(error: BaseException):
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PinError("wrong", "do this"), "error: wrong\n  remedy: do this\n"),
        (PinError("wrong"), "error: wrong\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a/b"),
        "error: /a/b: No such file\n  remedy: look at /a/b, or name another place\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/a", None, "/b"),
        "error: /a → /b: No space left on device\n  remedy: free some space"),
        (PermissionError(errno.EACCES, "Permission denied", b"/a"), "error: /a: Permission denied\n  remedy: look at who may"),
        (OSError(errno.EMFILE, "Too many open files"), "error: Too many open files\n  remedy: allow more open files"),
        (ModuleNotFoundError("No module named 'yaml'", name="yaml"),
        f"error: {sys.executable} has no yaml\n  remedy: make tools"),
        (FileNotFoundError(errno.ENOENT, "No such file", "\n/a"), "error: \\n/a: No such file\n"),
        (MemoryError(), "error: there is not enough memory"),
        (KeyError("x"), "error: internal error: KeyError: 'x' (test_console.py:"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "error: Broken pipe\n"),
        (type("PanicException", (BaseException,), {})("a panic"), "error: internal error: PanicException: a panic"),
        (RecursionError("too deep"), "error: internal error: RecursionError"),
    ],
)  # fmt: skip
def test_errors(capsys, error, message):
    assert console.run(raising(error)) == 1
    said = capsys.readouterr()
    assert said.err.startswith(message) and said.out == "" and "Traceback" not in said.err


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOTDIR])
@pytest.mark.parametrize(("place", "named"), [("a/cache", True), ("a/cache/archives/x", True), ("a", True), ("a/cached", False)])
def test_a_cache_that_cannot_be_used_is_named_by_its_variable(capsys, monkeypatch, tmp_path, number, place, named):
    monkeypatch.setenv("LLAMA_CPP_CACHE", str(tmp_path / "a/cache"))
    assert console.run(raising(OSError(number, os.strerror(number), str(tmp_path / place)))) == 1
    assert ("or name another place for downloads: LLAMA_CPP_CACHE=" in capsys.readouterr().err) == named


def test_the_traceback_is_there_for_who_asks(capsys, monkeypatch):
    monkeypatch.setenv(console.DEBUG_VARIABLE, "1")
    assert console.run(raising(KeyError("x"))) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_and_an_exit(capsys):
    assert console.run(raising(KeyboardInterrupt())) == 130
    with pytest.raises(SystemExit):
        console.run(raising(SystemExit(143)))
    assert "Traceback" not in capsys.readouterr().err


def test_a_message_from_elsewhere_does_not_command_the_terminal(capsys):
    console.run(raising(PinError("red: \x1b[31m\x07\x9b\n\ttab ü", "x" * 1_000_000)))
    said = capsys.readouterr().err
    assert said.startswith("error: red: \\x1b[31m\\x07\\x9b\n\ttab ü\n") and len(said) < 10_000


def test_nohup_is_respected():
    done = subprocess.run(
        [sys.executable, "-c", "import signal; from distribution.__main__ import main; main(['toolkit', '--status']);"
         "print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"],
        cwd=ROOT, capture_output=True, text=True, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert done.stdout.endswith("True\n")

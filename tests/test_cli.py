"""The ``llama-cpp`` command: what goes where, and a conversation on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

COMMAND = [sys.executable, "-c", "from llama_cpp.cli import main; main()"]
GREEDY = ["--temperature", "0", "--n-ctx", "512"]
PATIENCE = 120  # seconds until a silent child is given up


@pytest.fixture
def run_cli(tmp_path):
    """Runs the command to its end, with text piped in."""

    def run(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *args], input=stdin, capture_output=True, text=True, timeout=300, check=False,
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "COLUMNS": "200"},
        )  # fmt: skip

    return run


# --- one answer ---


def test_a_prompt_is_answered_on_stdout_and_figures_go_to_stderr(run_cli, smollm2, llm):
    done = run_cli("chat", "-m", str(smollm2), "--prompt", "Say hello.", "--max-tokens", "8", *GREEDY)
    assert done.returncode == 0, done.stderr
    expected = llm.create_chat_completion([{"role": "user", "content": "Say hello."}], max_tokens=8, temperature=0)
    assert done.stdout == expected["choices"][0]["message"]["content"] + "\n"
    assert re.search(r"8 tokens, [\d.]+ tokens/s; prompt \d+ tokens", done.stderr)
    assert "Traceback" not in done.stderr and "llama_model_loader" not in done.stderr


def test_figures_can_be_left_out(run_cli, smollm2):
    done = run_cli("chat", "-m", str(smollm2), "-p", "Say hello.", "--max-tokens", "2", "--no-stats", *GREEDY)
    assert done.returncode == 0
    assert "tokens/s" not in done.stderr


def test_piped_text_is_the_prompt(run_cli, smollm2):
    arguments = ["chat", "-m", str(smollm2), "--max-tokens", "8", *GREEDY]
    piped = run_cli(*arguments, stdin="Say hello.\n")
    assert piped.returncode == 0
    assert piped.stdout == run_cli(*arguments, "-p", "Say hello.").stdout


def test_prompt_and_piped_text_together(run_cli, smollm2, llm):
    done = run_cli("chat", "-m", str(smollm2), "-p", "Repeat this:", "--max-tokens", "8", *GREEDY, stdin="kumquat\n")
    messages = [{"role": "user", "content": "Repeat this:\n\nkumquat"}]
    expected = llm.create_chat_completion(messages, max_tokens=8, temperature=0)["choices"][0]["message"]["content"]
    assert done.stdout == expected + "\n"


def test_a_system_message_changes_the_answer(run_cli, smollm2, llm):
    done = run_cli("chat", "-m", str(smollm2), "-s", "You are a pirate.", "-p", "Who are you?", "--max-tokens", "8", *GREEDY)
    messages = [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "Who are you?"}]
    expected = llm.create_chat_completion(messages, max_tokens=8, temperature=0)["choices"][0]["message"]["content"]
    assert done.stdout == expected + "\n"


def test_nothing_to_answer_is_an_error(run_cli, smollm2):
    done = run_cli("chat", "-m", str(smollm2), stdin="  \n")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error:")


def test_verbose_shows_the_engine_s_log_on_stderr(run_cli, smollm2):
    done = run_cli("chat", "-m", str(smollm2), "-p", "Hi", "--max-tokens", "1", "-v", *GREEDY)
    assert done.returncode == 0
    assert "llama" in done.stderr.split("tokens/s")[0]
    assert len(done.stderr.splitlines()) > 10
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_a_model_that_is_none_is_one_line_and_status_1(run_cli, tmp_path, content):
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    done = run_cli("chat", "-m", str(path), "-p", "Hi")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and str(path) in line


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["chat", "--nonsense"], ["chat", "--n-ctx", "-1"], ["chat", "--max-tokens", "0"]]
)
def test_a_wrong_command_line_is_status_2_without_a_traceback(run_cli, arguments):
    done = run_cli(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr and done.stderr


def test_a_prompt_that_does_not_fit_is_one_error(run_cli, smollm2):
    done = run_cli("chat", "-m", str(smollm2), "--n-ctx", "256", stdin="word " * 1000)
    assert (done.returncode, done.stdout.strip()) == (1, "")
    assert "error: The prompt has" in done.stderr and "Traceback" not in done.stderr


def test_a_reader_that_leaves_is_no_traceback(smollm2):
    """``llama-cpp chat … | head -c 1``"""
    child = subprocess.Popen(
        [*COMMAND, "chat", "-m", str(smollm2), "-p", "Count to one hundred.", "--max-tokens", "200", *GREEDY],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout.read(1)
    child.stdout.close()
    stderr = child.stderr.read().decode()
    child.stderr.close()
    child.wait(PATIENCE)
    assert "Traceback" not in stderr


def test_help_lists_the_commands(run_cli):
    done = run_cli("--help")
    assert done.returncode == 0
    for command in ("chat", "models", "devices"):
        assert command in done.stdout


def test_devices_lists_the_cpu(run_cli):
    done = run_cli("devices")
    assert done.returncode == 0, done.stderr
    assert re.search(r"CPU\b.*\bcpu\b", done.stdout)
    assert re.search(r"loaded libggml-cpu\S*\.so", done.stdout)


def test_models_prints_the_sample_s_path(run_cli, smollm2):
    done = run_cli("models")
    assert (done.returncode, done.stdout) == (0, f"{smollm2}\n")


# --- a conversation on a terminal ---


class Terminal:
    """The command on a pseudo terminal: type lines, wait for text."""

    def __init__(self, *args: str, state: str, command: Sequence[str] = COMMAND) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(XDG_STATE_HOME=state, TERM="dumb", COLUMNS="200")
            os.execv(command[0], [*command, *args])
        self.seen = ""

    def type(self, line: str) -> None:
        self.seen = ""
        os.write(self.fd, line.encode() + b"\n")

    def press(self, key: bytes) -> None:
        os.write(self.fd, key)

    def wait_for(self, pattern: str) -> str:
        """Reads until what was written since the last line matches; returns that."""
        end = time.monotonic() + PATIENCE
        while not re.search(pattern, self.seen):
            assert time.monotonic() < end, f"waiting for {pattern!r}, saw {self.seen!r}"
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.fd, 4096).decode("utf-8", "replace")
                except OSError:
                    raise AssertionError(f"it ended, having written {self.seen!r}") from None
        return self.seen

    def status(self, pressing: bytes = b"") -> int:
        """Its exit status, once it has ended; ``pressing`` a key every two seconds until it writes a line."""
        end = time.monotonic() + PATIENCE
        pressed = 0.0
        if pressing:
            self.seen = ""
        while time.monotonic() < end:
            # a process that is on its way out can be killed by the next Ctrl-C
            if pressing and "\n" not in self.seen and time.monotonic() > pressed + 2:
                self.press(pressing)
                pressed = time.monotonic()
            if select.select([self.fd], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.fd, 4096).decode("utf-8", "replace")
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError(f"it does not end: {self.seen!r}")

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def terminal(smollm2, tmp_path):
    opened = []

    def start(*args: str) -> Terminal:
        opened.append(Terminal("chat", "-m", str(smollm2), *GREEDY, *args, state=str(tmp_path)))
        opened[-1].wait_for(r"/help lists the commands[\s\S]*> ")
        return opened[-1]

    yield start
    for one in opened:
        one.close()


_FIGURES = r"(\d+) tokens, [\d.]+ tokens/s; prompt (\d+) tokens, [\d.]+ tokens/s, (\d+) cached"
_AFTER = _FIGURES + r"[\s\S]*> $"


def _prompt_tokens(text: str) -> int:
    """All tokens of the last prompt: computed and cached."""
    _, computed, cached = re.search(_FIGURES, text).groups()
    return int(computed) + int(cached)


def test_a_conversation_remembers_until_it_is_reset(terminal):
    chat = terminal("--max-tokens", "6")
    chat.type("My name is Ann.")
    first = _prompt_tokens(chat.wait_for(_AFTER))
    chat.type("What is my name?")
    second = _prompt_tokens(chat.wait_for(_AFTER))
    assert second > first + 6, "the second prompt holds the first question and its answer"
    chat.type("/reset")
    chat.wait_for(r"> $")
    chat.type("My name is Ann.")
    assert _prompt_tokens(chat.wait_for(_AFTER)) == first
    chat.type("/exit")
    assert chat.status() == 0
    assert "Traceback" not in chat.seen


def test_stats_switches_the_figures(terminal):
    chat = terminal("--max-tokens", "4")
    chat.type("/stats")
    chat.wait_for(r"> $")
    chat.type("Hello")
    assert "tokens/s" not in chat.wait_for(r"Hello[\s\S]*\n[\s\S]+\n> $")
    chat.type("/stats")
    chat.wait_for(r"> $")
    chat.type("Hello again")
    chat.wait_for(_AFTER)


def test_help_and_unknown_commands_list_what_there_is(terminal):
    chat = terminal()
    for line in ("/help", "/nonsense"):
        chat.type(line)
        assert "/reset" in chat.wait_for(r"/exit[\s\S]*> $")


def test_ctrl_c_ends_the_answer_and_not_the_conversation(terminal):
    chat = terminal()
    chat.type("Write a very long story about a dog.")
    chat.wait_for(r"dog\.\r?\n[\s\S]*\w+ \w+ \w+")  # it has begun
    chat.press(b"\x03")
    assert "Traceback" not in chat.wait_for(r"\n> $")
    chat.type("/reset")
    chat.wait_for(r"> $")
    chat.type("Say hi.")
    chat.wait_for(r"Say hi\.\r?\n[\s\S]*\w+")
    chat.press(b"\x03")
    chat.wait_for(r"> $")
    chat.type("/exit")
    assert chat.status() == 0


def test_ctrl_d_leaves(terminal):
    chat = terminal()
    chat.press(b"\x04")
    assert chat.status() == 0
    assert "Traceback" not in chat.seen


def test_ctrl_c_at_the_prompt_leaves(terminal):
    chat = terminal()
    # more than once, as a person would: CPython's input() does not notice a signal that comes after it has printed
    # the prompt and before it waits for a key
    assert chat.status(pressing=b"\x03") == 0
    assert "Traceback" not in chat.seen


# waits, in the middle of loading, for the key to be pressed
_STOPS_WHILE_LOADING = """
import logging, os, select, signal
from llama_cpp.cli import main

pressed, wakeup = os.pipe()
os.set_blocking(wakeup, False)
signal.set_wakeup_fd(wakeup)

class Stop(logging.Handler):
    def emit(self, record):
        if "loading model tensors" in record.getMessage():
            print("now", flush=True)
            select.select([pressed], [], [])

native = logging.getLogger("llama_cpp.native")
native.addHandler(Stop())
main()
"""


def test_ctrl_c_while_the_model_loads_ends_the_command(smollm2, tmp_path):
    command = [sys.executable, "-c", _STOPS_WHILE_LOADING]
    chat = Terminal("chat", "-m", str(smollm2), "--verbose", state=str(tmp_path), command=command)
    try:
        chat.wait_for(r"now\r?\n")
        chat.press(b"\x03")
        assert chat.status() == 130
        assert "Traceback" not in chat.seen and "ignored" not in chat.seen
        assert "llama_context" not in chat.seen, "it went on"
    finally:
        chat.close()


def test_a_conversation_that_no_longer_fits_says_so_and_goes_on(smollm2, tmp_path):
    chat = Terminal("chat", "-m", str(smollm2), "--n-ctx", "256", "--max-tokens", "2", "--temperature", "0", state=str(tmp_path))
    try:
        chat.wait_for(r"> $")
        chat.type("word " * 300)
        chat.wait_for(r"The prompt has \d+ tokens[\s\S]*/reset\s+forgets the conversation[\s\S]*> $")
        chat.type("Hi")
        chat.wait_for(_AFTER)
    finally:
        chat.close()


def test_lines_are_kept_for_the_next_time(terminal, tmp_path):
    pytest.importorskip("readline")
    chat = terminal("--max-tokens", "1")
    chat.type("a line to remember")
    chat.wait_for(_AFTER)
    chat.type("/exit")
    assert chat.status() == 0
    assert "a line to remember" in (tmp_path / "llama-cpp" / "history").read_text()


# --- odd input and output ---


def run_raw(*args, **how):
    return subprocess.run([*COMMAND, *args], capture_output=how.get("stdout") is None, text=True, timeout=300, check=False, **how)


def test_it_is_run_as_a_module():
    done = subprocess.run([sys.executable, "-m", "llama_cpp.cli", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"llama-cpp-python \d+\.\d+\.\d+, llama\.cpp [0-9a-f]{12}\n", done.stdout)


def test_what_is_piped_in_is_text(smollm2, tmp_path):
    (tmp_path / "latin1").write_bytes("Grüße".encode("latin-1"))
    with (tmp_path / "latin1").open("rb") as file:
        done = run_raw("chat", "-m", str(smollm2), *GREEDY, stdin=file)
    assert done.returncode == 1 and done.stdout == ""
    assert "error: What was piped in is not text in UTF-8: byte 2 is 0xfc. Convert it" in done.stderr


def test_a_closed_stdin_is_nothing_piped_in(smollm2):
    command = f"exec {shlex.join([*COMMAND, 'chat', '-m', str(smollm2), *GREEDY])} <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "nothing was piped in" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run(
        ["sh", "-c", command.replace(" <&-", " -p Hi --max-tokens 2 <&-")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_said(smollm2):
    with open("/dev/full", "w") as full:
        done = run_raw("chat", "-m", str(smollm2), "-p", "Hi", "--max-tokens", "2", *GREEDY, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and "error: the output could not be written: No space left on device." in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_closed_pipe_is_no_error(smollm2):
    command = (
        f"{shlex.join([*COMMAND, 'chat', '-m', str(smollm2), '-p', 'Tell me a story.', '--max-tokens', '60', *GREEDY])} | true"
    )
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "error" not in done.stderr.lower()


def test_advice_names_the_command_s_flags(run_cli, smollm2):
    done = run_cli("chat", "-m", str(smollm2), "--n-ctx", "64", "-p", "word " * 500)
    assert done.returncode == 1 and re.search(r"--n-ctx \d+ or more", done.stderr) and "n_ctx=" not in done.stderr


def test_an_answer_that_was_cut_is_said_to_be(run_cli, smollm2):
    done = run_cli("chat", "-m", str(smollm2), "-p", "Count to a hundred.", "--max-tokens", "3", "--no-stats", *GREEDY)
    assert "(cut: 3 tokens; --max-tokens" in done.stderr
    done = run_cli("chat", "-m", str(smollm2), "-p", "Say yes.", "--no-stats", *GREEDY)
    assert "(cut" not in done.stderr

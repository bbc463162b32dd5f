"""Ctrl-C, and whatever else a signal handler raises, during native calls: it arrives, and nothing is lost or kept."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from llama_cpp.capi.interrupts import DeferredInterrupts

# What the children share: a signal is sent, by the process to itself, from the middle of a native call: when the engine
# logs a certain line.
_PRELUDE = """
import logging, os, signal, sys
from llama_cpp import Llama

native = logging.getLogger("llama_cpp.native")
native.setLevel(logging.DEBUG)
native.propagate = False

class At(logging.Handler):
    def __init__(self, text, act=lambda: signal.raise_signal(signal.SIGINT)):
        super().__init__()
        self.text, self.act, self.lines, self.done = text, act, [], False
        native.addHandler(self)
    def emit(self, record):
        self.lines.append(record.getMessage())
        if self.text in record.getMessage() and not self.done:
            self.done = True
            self.act()
    def __enter__(self):
        return self
    def __exit__(self, *_):
        native.removeHandler(self)

def mapped():
    with open("/proc/self/maps") as maps:
        return sum(sys.argv[1] in line for line in maps)

def answer():
    with Llama(sys.argv[1], n_ctx=256) as llm:
        return llm.create_completion("The capital of France is", max_tokens=1, temperature=0)["choices"][0]["text"]
"""

# lines of the engine's log, from the first to the last moment
_LOADING = ["loaded meta data with", "printing all EOG tokens", "loading model tensors, this can take a while"]
_CREATING = ["constructing llama_context", "reserving ...", "reserve took"]


def _quiet(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-3000:]
    return done.stdout.splitlines()


def test_ctrl_c_ends_loading_and_frees_everything(run_python, smollm2):
    """While libraries are opened, the model is loaded, and the context is created."""
    lines = _quiet(
        run_python(
            _PRELUDE
            + """
for text in sys.argv[2:]:
    with At(text) as at:
        try:
            Llama(sys.argv[1], n_ctx=256)
        except KeyboardInterrupt:
            print(text, at.done, any("cancelled model load" in line for line in at.lines), mapped(), sep="|")
print(answer())
""",
            str(smollm2),
            "loaded CPU backend",
            *_LOADING,
            *_CREATING,
        )
    )
    expected = ["loaded CPU backend|True|False|0"]
    expected += [f"{text}|True|True|0" for text in _LOADING]  # the engine stopped by itself, before it was done
    expected += [f"{text}|True|False|0" for text in _CREATING]
    assert lines == [*expected, " Paris"]


def test_an_interrupted_model_does_not_stay_in_memory(run_python, smollm2):
    """Read into memory instead of mapped, ten models would be a gigabyte."""
    (grown,) = _quiet(
        run_python(
            _PRELUDE
            + """
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

answer()
before = resident()
for _ in range(5):
    for text in ("loading model tensors", "reserve took"):
        with At(text):
            try:
                Llama(sys.argv[1], n_ctx=256, use_mmap=False)
            except KeyboardInterrupt:
                pass
            else:
                print("not interrupted")
print(resident() - before)
""",
            str(smollm2),
        )
    )
    assert int(grown) < 150


def test_ctrl_c_from_outside(smollm2):
    """The child waits inside the engine's log callback until the signal has been sent."""
    child = subprocess.Popen(
        [sys.executable, "-c", _PRELUDE + """
def wait():
    print("loading", flush=True)
    sys.stdin.readline()

with At("printing all EOG tokens", wait):
    try:
        Llama(sys.argv[1], n_ctx=256)
        print("loaded")
    except KeyboardInterrupt:
        print("interrupted", mapped())
""", str(smollm2)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout.readline() == "loading\n"
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate("go on\n", timeout=120)
    assert (child.returncode, stdout, stderr) == (0, "interrupted 0\n", "")


def test_a_handler_that_does_not_raise_does_not_end_loading(run_python, smollm2):
    """Servers set a flag. The handler runs at once, not after the load."""
    assert _quiet(
        run_python(
            _PRELUDE
            + """
with At("printing all EOG tokens") as at:
    signal.signal(signal.SIGINT, lambda *_: print("noted", any("loading model tensors" in line for line in at.lines)))
    Llama(sys.argv[1], n_ctx=256).close()
print(answer())
""",
            str(smollm2),
        )
    ) == ["noted False", " Paris"]


def test_a_time_limit_and_a_request_to_stop_arrive_too(run_python, smollm2):
    assert _quiet(
        run_python(
            _PRELUDE
            + """
def too_late(*_):
    raise TimeoutError("too late")
signal.signal(signal.SIGALRM, too_late)
signal.signal(signal.SIGTERM, lambda *_: sys.exit("stop"))
for number in (signal.SIGALRM, signal.SIGTERM):
    with At("printing all EOG tokens", lambda: signal.raise_signal(number)):
        try:
            Llama(sys.argv[1], n_ctx=256)
        except BaseException as error:
            print(repr(error), mapped())
""",
            str(smollm2),
        )
    ) == ["TimeoutError('too late') 0", "SystemExit('stop') 0"]


def test_ctrl_c_during_tokenization(run_python, llama_source):
    """It ends with a warning about two BOS tokens, in whose callback the signal is noticed."""
    assert _quiet(
        run_python(
            _PRELUDE
            + """
with Llama(sys.argv[1], vocab_only=True) as llm:
    with At("Added a BOS token") as at:
        try:
            llm.tokenize(b"<s>" + b"hello " * 1000, special=True)
        except KeyboardInterrupt:
            print("interrupted", at.done)
    print(llm.tokenize(b"hello"))
""",
            str(llama_source / "models" / "ggml-vocab-llama-spm.gguf"),
        )
    ) == ["interrupted True", "[1, 22172]"]


def test_ctrl_c_while_closing(run_python, smollm2):
    assert _quiet(
        run_python(
            _PRELUDE
            + """
llm = Llama(sys.argv[1], n_ctx=256)
with At("~llama_context") as at:
    try:
        llm.close()
    except KeyboardInterrupt:
        print("interrupted", at.done)
llm.close()
print(mapped())
""",
            str(smollm2),
        )
    ) == ["interrupted True", "0"]


# --- the mechanism ---


@pytest.fixture
def handlers():
    """Puts back the handlers a test has changed."""
    numbers = (signal.SIGALRM, signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before):
        signal.signal(number, handler)


def _raise(number, _frame):
    raise RuntimeError(f"signal {number}")


def test_what_a_handler_raises_comes_on_leaving(handlers):
    signal.signal(signal.SIGALRM, _raise)
    reached = False
    with pytest.raises(RuntimeError, match="signal 14"), DeferredInterrupts() as interrupts:
        assert interrupts.pending is None
        signal.raise_signal(signal.SIGALRM)
        assert isinstance(interrupts.pending, RuntimeError)
        reached = True
    assert reached
    assert signal.getsignal(signal.SIGALRM) is _raise


def test_it_comes_even_when_the_block_raises(handlers):
    signal.signal(signal.SIGTERM, _raise)
    with pytest.raises(RuntimeError, match="signal 15") as caught, DeferredInterrupts():
        signal.raise_signal(signal.SIGTERM)
        raise KeyError("meanwhile")
    assert isinstance(caught.value.__context__, KeyError)


def test_the_first_of_several_counts_and_all_handlers_come_back(handlers):
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise)
    with pytest.raises(RuntimeError, match="signal 15"), DeferredInterrupts():
        for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT):
            signal.raise_signal(number)
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
        assert signal.getsignal(number) is _raise


def test_one_inside_another(handlers):
    signal.signal(signal.SIGALRM, _raise)
    steps = []
    with pytest.raises(RuntimeError), DeferredInterrupts():
        with DeferredInterrupts():
            signal.raise_signal(signal.SIGALRM)
            steps.append("inner")
        steps.append("outer")
    assert steps == ["inner", "outer"]
    assert signal.getsignal(signal.SIGALRM) is _raise


def test_a_handler_set_meanwhile_stays(handlers):
    signal.signal(signal.SIGALRM, _raise)
    with DeferredInterrupts():
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_IGN


@pytest.mark.parametrize("disposition", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_is_no_handler_is_left_alone(handlers, disposition):
    signal.signal(signal.SIGALRM, disposition)
    with DeferredInterrupts():
        assert signal.getsignal(signal.SIGALRM) is disposition
    assert signal.getsignal(signal.SIGALRM) is disposition


def test_another_thread_leaves_the_handlers_alone(handlers):
    signal.signal(signal.SIGALRM, _raise)
    seen = []

    def run():
        with DeferredInterrupts() as interrupts:
            seen.extend([signal.getsignal(signal.SIGALRM), interrupts.pending])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [_raise, None]


def test_a_signal_at_any_moment_is_raised_exactly_once(run_python):
    """Thousands of signals from a timer, so that some come while the handlers are being exchanged."""
    done = run_python(
        """
import signal
from llama_cpp.capi.interrupts import DeferredInterrupts
class Tick(Exception): pass
sent = caught = 0
def handler(*_):
    global sent
    sent += 1
    raise Tick
signal.signal(signal.SIGALRM, handler)
while sent < 2000:
    before = sent
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.00002 + sent % 50 * 1e-6)
        while sent == before:
            with DeferredInterrupts():
                pass
    except Tick:
        caught += 1
    assert signal.getsignal(signal.SIGALRM) is handler
print(sent == caught)
"""
    )
    assert _quiet(done) == ["True"]

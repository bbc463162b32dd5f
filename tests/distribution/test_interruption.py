"""Signals wait where something must be finished, and a program that was started has ended whatever happens."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distribution import files, interruption
from engine_carrier import ROOT


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    interruption.install()
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit)]
)
def test_a_signal_waits_for_the_end(number, raised):
    done = []
    with pytest.raises(raised) as caught:
        with interruption.deferred():
            with interruption.deferred():
                signal.raise_signal(number)
                done.append("inner")
            done.append("outer")
        done.append("never")
    assert done == ["inner", "outer"]
    assert raised is KeyboardInterrupt or caught.value.code == 128 + number
    with interruption.deferred():
        pass


def test_the_first_of_several_counts():
    with pytest.raises(SystemExit) as caught, interruption.deferred():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert caught.value.code == 143


def test_it_raises_where_that_is_asked_for():
    done = []
    with pytest.raises(KeyboardInterrupt), interruption.deferred() as pending:
        try:
            with pending.released():
                done.append("before")
                signal.raise_signal(signal.SIGINT)
                done.append("never")
        finally:
            # a second one does not disturb what clears away
            signal.raise_signal(signal.SIGTERM)
            done.append("cleared")
    assert done == ["before", "cleared"]


def test_a_signal_that_came_before_is_not_forgotten():
    with pytest.raises(SystemExit), interruption.deferred() as pending:
        signal.raise_signal(signal.SIGTERM)
        with pending.released():
            pytest.fail("it should have been raised")


def test_a_staging_folder_is_removed_in_spite_of_a_second_signal(tmp_path, monkeypatch):
    removed = files.remove_tree

    def interrupted(folder: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        removed(folder)

    monkeypatch.setattr(files, "remove_tree", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)), files.staging_folder(tmp_path / "new", ".x-"):
        signal.raise_signal(signal.SIGTERM)
    assert os.listdir(tmp_path) == []


def later(number: int, seconds: float) -> None:
    threading.Timer(seconds, lambda: os.kill(os.getpid(), number)).start()


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_program_has_ended_when_a_signal_raises(tmp_path, monkeypatch, stubborn):
    monkeypatch.setattr(interruption, "_PATIENCE", 1)
    script = f"echo $$ > {tmp_path / 'pid'}; {'trap : TERM; ' if stubborn else ''}while :; do sleep 0.1; done"
    later(signal.SIGTERM, 1)
    with pytest.raises(SystemExit):
        interruption.run_program(["bash", "-c", script])
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_program_has_ended_when_its_time_is_over():
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        interruption.run_program(["sleep", "60"], seconds=0.2)
    assert time.monotonic() - began < 20
    assert interruption.run_program(["sh", "-c", "echo out; echo err >&2; exit 3"]).returncode == 3


@pytest.mark.parametrize("stubborn", [False, True])
def test_what_a_program_started_has_ended_with_it(tmp_path, monkeypatch, stubborn):
    monkeypatch.setattr(interruption, "_PATIENCE", 1)
    child = f"{'trap : TERM; ' if stubborn else ''}echo $$ > '{tmp_path / 'pid'}'; while :; do sleep 0.1; done"
    later(signal.SIGTERM, 1)
    with pytest.raises(SystemExit):
        # the child holds none of the pipes
        interruption.run_program(["bash", "-c", f"bash -c {shlex.quote(child)} >/dev/null 2>&1 & wait"], start_new_session=True)
    state = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_every_line_is_given_as_it_comes():
    lines = []
    done = interruption.run_program(["sh", "-c", "echo out; echo err >&2; printf end; exit 3"], each_line=lines.append)
    assert (lines, done.returncode, done.stdout) == (["out\n", "err\n", "end"], 3, "")

    def refuse(line: str) -> None:
        raise ValueError(line)

    began = time.monotonic()
    with pytest.raises(ValueError, match="out"):
        interruption.run_program(["sh", "-c", "echo out; exec sleep 60"], each_line=refuse)
    assert time.monotonic() - began < 20


def test_what_waits_for_py_rattler_is_cancelled():
    pytest.importorskip("rattler")
    script = f"""
import asyncio, sys, time
sys.path.insert(0, {str(ROOT)!r})
from distribution import console, interruption, rattler_async
async def forever():
    try:
        print("waiting", flush=True)
        await asyncio.sleep(60)
    finally:
        print("cancelled", flush=True)
interruption.install()
sys.exit(console.run(lambda: rattler_async.wait(forever())))
"""
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout and process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (out, process.returncode) == ("cancelled\n", status) and "Traceback" not in err


def test_when_one_of_several_fails_the_others_have_ended():
    pytest.importorskip("rattler")
    import asyncio

    from distribution import rattler_async

    ended = []

    async def one(number: int) -> int:
        try:
            await asyncio.sleep(number / 10)
            if number == 1:
                raise ValueError("one")
            return number
        finally:
            ended.append(number)

    assert rattler_async.wait(rattler_async.all_of(map(one, (3, 2)))) == [3, 2]
    ended.clear()
    with pytest.raises(ValueError, match="one"):
        rattler_async.wait(rattler_async.all_of(map(one, (300, 1, 200))))
    assert sorted(ended) == [1, 200, 300]


def test_what_takes_too_long_is_given_up():
    pytest.importorskip("rattler")
    import asyncio

    from distribution import rattler_async
    from distribution.errors import ChannelUnreachableError

    ended = []

    async def drip() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def refuse() -> None:
        raise TimeoutError("its own")

    with pytest.raises(ChannelUnreachableError, match="did not answer completely within 0 s"):
        rattler_async.wait(drip(), seconds=0.2)
    assert ended
    with pytest.raises(TimeoutError, match="its own"):
        rattler_async.wait(refuse(), seconds=60)


def test_the_indexer_writes_nothing_after_a_signal(tmp_path, monkeypatch):
    pytest.importorskip("rattler")
    import asyncio
    import importlib

    from distribution import rattler_async

    written = []

    async def index_fs(folder: Path) -> None:
        # its threads go on
        threading.Timer(0.2, written.append, [folder]).start()
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(60)

    monkeypatch.setattr(importlib.import_module("rattler.index"), "index_fs", index_fs)
    with pytest.raises(KeyboardInterrupt):
        rattler_async.index_channel(tmp_path)
    assert written == [tmp_path]


def test_a_signal_does_not_wait_for_other_threads():
    """It is the main thread's; in another one nobody would catch what it raises."""
    inside, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with interruption.deferred():
            inside.set()
            go_on.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(60)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    go_on.set()
    thread.join()


def test_a_scratch_folder_is_removed_whenever_a_signal_comes(tmp_path, monkeypatch):
    """Also while it is made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make = tempfile.mkdtemp

    def interrupted(*arguments: object, **more: object) -> str:
        made = make(*arguments, **more)
        signal.raise_signal(signal.SIGINT)
        return made

    monkeypatch.setattr(tempfile, "mkdtemp", interrupted)
    with pytest.raises(KeyboardInterrupt), files.scratch_folder():
        raise AssertionError("the signal comes first")
    assert not list(tmp_path.iterdir())


def test_the_indexer_takes_no_path_that_is_not_utf_8(tmp_path):
    pytest.importorskip("rattler")
    from distribution import rattler_async

    with pytest.raises(OSError, match="not UTF-8"):
        rattler_async.index_channel(tmp_path / os.fsdecode(b"\xff"))

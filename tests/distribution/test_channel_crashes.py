"""A channel while writers are killed, race each other or run out of room, and readers never stop reading."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import rattler

from conda_packages import Place, release, write_package
from distribution.channel import manifest, publishing
from distribution.channel.publishing import State
from distribution.channel.server import ChannelServer
from distribution.channel.store import Channel
from distribution.channel.verification import verify
from distribution.errors import DiskSpaceError
from distribution.files import sha256_of

pytestmark = pytest.mark.slow  # CI runs them; `make test ARGS="-m slow"` does

ROUNDS = 20
NAMES = ("libggml-cuda", "libllama", "llama-cpp-python", "llama.cpp")

# Solves again and again, as another process would: what it finds must be one release, whole.
READER = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from conda_packages import solve
for line in sys.stdin:
    for _ in range(int(line)):
        try:
            found = solve(sys.argv[2], "llama-cpp-python", "libggml-cuda", "llama.cpp")
        except Exception as error:
            found = {"error": str(error)}
        print(json.dumps(found), flush=True)
    print("", flush=True)
"""

# Publishes in a child of its own for each request. It is forked off a process in which the indexer never ran, as that one's
# threads would be missing in the child, and which has all modules loaded, so that a round costs no start of Python.
WRITER = """
import json, os, resource, signal, sys
from pathlib import Path
sys.path[:0] = json.loads(sys.argv[1])
from conda_packages import Channel, publishing
from distribution.errors import DiskSpaceError, PackageExistsError

ACCESSES = ("open", "os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.chmod")

def die_at_step(step, folder):
    left = step
    def count(event, arguments):
        nonlocal left
        if event in ACCESSES and any(folder in str(argument) for argument in arguments[:2]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)

def die_before(access, path):
    def compare(event, arguments):
        if event == access and path in map(str, arguments[:2]):
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(compare)

def publish(request):
    channel = Channel.at(Path(request["channel"]))
    if "limit" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
    if "step" in request:
        die_at_step(request["step"], str(channel.path.parent))
    if "before" in request:
        die_before(*request["before"])
    for files in request["files"]:
        publishing.publish([Path(file) for file in files], channel, Path(request["environment"]))

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            publish(json.loads(line))
            os._exit(0)
        except DiskSpaceError:
            os._exit(3)
        except PackageExistsError:
            os._exit(4)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
NO_ROOM, EXISTS = 3, 4


class Writer:
    """A process that publishes on request."""

    def __init__(self, place: Place) -> None:
        self._place = place
        command = [sys.executable, "-c", WRITER, json.dumps(sys.path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(self, *publications: Sequence[Path], **request: object) -> int:
        """Publish one set of files after another; return the process id of who does."""
        assert self._process.stdin and self._process.stdout
        where = {"channel": str(self._place.channel.path), "environment": str(self._place.environment)}
        files = [[str(file) for file in one] for one in publications]
        self._process.stdin.write(json.dumps({**where, "files": files, **request}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def is_busy(self) -> bool:
        return not select.select([self._process.stdout], [], [], 0.01)[0]

    def result(self) -> int:
        """The exit status, once it is there; negative for a signal."""
        assert self._process.stdout
        return int(self._process.stdout.readline())

    def publish(self, *publications: Sequence[Path], **request: object) -> int:
        self.start(*publications, **request)
        return self.result()


class Reader:
    """A process that solves from a channel without pause, and remembers every answer."""

    def __init__(self, channel: str) -> None:
        command = [sys.executable, "-c", READER, json.dumps(sys.path), channel]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answers: list[dict[str, str]] = []

    def __enter__(self) -> Reader:
        self.ask()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self.ask()
        self._process.communicate()

    def ask(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("5\n")
        self._process.stdin.flush()
        while answer := self._process.stdout.readline().strip():
            self.answers.append(json.loads(answer))

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.ask()


def number_of(found: dict[str, str]) -> int:
    """Which release a solver found; it must be one and whole."""
    assert sorted(found) == list(NAMES), found
    numbers = {build.rpartition("_")[2] for build in found.values()}
    assert len(numbers) == 1, f"a mix of releases: {found}"
    return int(numbers.pop())


def check_whole(place: Place) -> set[str]:
    """The names of the packages in the current generation, every file of which is as its manifest says."""
    folder = place.channel.current()
    content = manifest.read(folder)
    expected = {**content.files, **{path: entry.sha256 for path, entry in content.packages.items()}}
    assert {path: sha256_of(folder / path) for path in expected} == expected
    return place.held()


def test_killed_at_any_moment(place, tmp_path):
    """A writer dies at fifty moments, a reader solves all the while: the old or the new packages, whole."""
    place.publish(*release(tmp_path / "0", 0))
    dice, number, killed, turn = random.Random(3), 1, 0, 0
    with Writer(place) as writer, Reader(place.channel.url) as reader:
        started = time.monotonic()
        assert writer.publish([write_package(tmp_path, "tool")]) == 0
        usual = time.monotonic() - started
        held = check_whole(place)
        # some writers are done before they are killed: those do not count
        while killed < ROUNDS:
            turn += 1
            assert turn < 10 * ROUNDS, f"only {killed} writers of {turn} died"
            files = release(tmp_path / str(number), number)
            if turn % 3 == 0:
                child = writer.start(files)
                time.sleep(dice.uniform(0, 1.5 * usual))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            else:
                # the clock seldom hits the moments that matter: these are at one access to the files and no other
                writer.start(files, step=dice.randrange(1, 160))
            killed += writer.result() == -signal.SIGKILL
            now = check_whole(place)
            assert now in (held, held | {file.name for file in files})
            if now != held:
                held, number = now, number + 1
    seen = [number_of(answer) for answer in reader.answers]
    assert seen == sorted(seen) and seen[0] == 0 and seen[-1] == number - 1
    check_goes_on(place, tmp_path, number)


def test_killed_around_the_switch(place, tmp_path):
    """The last accesses of a publication, one by one: on this side of rename(2) the old packages, on that side the new."""
    place.publish(*release(tmp_path / "0", 0))
    link = place.channel.path
    moments = ("os.symlink", place.channel.store / "next"), ("os.rename", link), ("open", link.parent)
    held, outcomes = check_whole(place), []
    with Writer(place) as writer:
        for number, (access, path) in enumerate(moments, 1):
            files = release(tmp_path / str(number), number)
            assert writer.publish(files, before=(access, str(path))) == -signal.SIGKILL
            now = check_whole(place)
            outcomes.append(now != held)
            assert now in (held, held | {file.name for file in files})
            held = now
    assert outcomes == [False, False, True]
    check_goes_on(place, tmp_path, 4)


def test_read_over_http_while_it_changes(place, tmp_path):
    """Here the index comes in parts, the list of shards and then the shards: the old ones must still be there."""
    place.publish(*release(tmp_path / "0", 0))
    with Writer(place) as writer, ChannelServer(place.channel, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Reader(server.address) as reader:
            for number in range(1, 10):
                assert writer.publish(release(tmp_path / str(number), number)) == 0
        server.shutdown()
    seen = [number_of(answer) for answer in reader.answers]
    assert seen == sorted(seen) and (seen[0], seen[-1]) == (0, 9)


def check_goes_on(place: Place, folder: Path, number: int) -> None:
    """Publishing works as if nothing had happened, and nothing is wrong with what is there."""
    assert len(place.publish(*release(folder / "last", number)).added) == 4
    problems = [one for one in verify(place.channel) if one.problems and "libggml-cuda-" not in one.path]
    assert not problems


def test_two_writers_lose_nothing(place, tmp_path):
    names = "left", "right"
    with Writer(place) as left, Writer(place) as right:
        for writer, name in zip((left, right), names, strict=True):
            writer.start(*([write_package(tmp_path, name, "1.0", f"h_{number}", number)] for number in range(ROUNDS)))
        assert (left.result(), right.result()) == (0, 0)
    assert check_whole(place) == {f"{name}-1.0-h_{number}.conda" for name in names for number in range(ROUNDS)}
    assert State.of(place.channel).manifest.generation == 2 * ROUNDS


def test_two_writers_of_one_name_leave_the_first_ones_bytes(place, tmp_path):
    """Both have a package of the same name, with other bytes in it: one is published, and the other one is told."""
    place.publish(*release(tmp_path / "0", 0))
    sides = "left", "right"
    with Writer(place) as left, Writer(place) as right:
        for number in range(ROUNDS):
            files = [
                write_package(tmp_path / side, "tool", "1.0", f"h_{number}", number, files={"side": side.encode()})
                for side in sides
            ]
            for writer, file in zip((left, right), files, strict=True):
                writer.start([file])
            results = left.result(), right.result()
            assert sorted(results) == [0, EXISTS]
            winner = files[results.index(0)]
            stored = place.channel.current() / "linux-64" / winner.name
            assert stored.read_bytes() == winner.read_bytes()
    assert len(check_whole(place)) == 4 + ROUNDS and State.of(place.channel).manifest.generation == 1 + ROUNDS


def test_the_second_writer_waits_and_says_so(place, tmp_path, capfd):
    with Writer(place) as second:
        with place.channel.writing():
            second.start(release(tmp_path / "one", 0))
            said = ""
            while "waiting" not in said:
                assert second.is_busy()
                said += capfd.readouterr().err
            assert not place.channel.exists()
        assert second.result() == 0
    assert len(place.held()) == 4


def test_a_reader_between_two_generations_finds_one_release(place, tmp_path):
    """Half of the index from before the link moved and half from after it: never half of a release."""
    folders = []
    for number in range(3):
        place.publish(*release(tmp_path / str(number), number))
        folders.append(place.channel.current())

    def found(linux: Path, noarch: Path) -> int:
        channel = rattler.Channel(place.channel.url)
        halves = [
            rattler.SparseRepoData(channel, subdir, folder / subdir / "repodata.json")
            for subdir, folder in (("linux-64", linux), ("noarch", noarch))
        ]
        specs = [rattler.MatchSpec(name) for name in NAMES]
        machine = rattler.VirtualPackage.detect()
        records = asyncio.run(rattler.solve_with_sparse_repodata(specs, halves, virtual_packages=machine))
        return number_of({record.name.normalized: str(record.build) for record in records})

    assert [found(one, other) for one in folders for other in folders] == [0, 0, 0, 0, 1, 1, 0, 1, 2]


def generations_of(channel: Channel) -> list[str]:
    """The names of the generations. Beside them may be a folder in which the indexer fails at this moment."""
    return sorted(name for name in os.listdir(channel.store) if name.isdigit())


def test_a_file_that_cannot_grow(place, tmp_path):
    place.publish(*release(tmp_path / "0", 0))
    large = write_package(tmp_path, "tool", files={"data": os.urandom(300_000)})
    with Writer(place) as writer:
        assert writer.publish([large], limit=100_000) == NO_ROOM
        assert len(check_whole(place)) == 4 and generations_of(place.channel) == ["000001"]
        assert writer.publish([large]) == 0
        assert sorted(os.listdir(place.channel.store)) == ["000001", "000002", "lock"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=2m"):
        pytest.skip(f"mounting a small file system: {errno.errorcode[ctypes.get_errno()]}")
    yield folder
    libc.umount2(os.fsencode(folder), 2)


def test_a_full_disk_at_every_step(place, small_disk, tmp_path):
    """The room left grows until publishing succeeds; before that it fails with one error and changes nothing."""
    here = Place(tmp_path, place.channel.at(small_disk / "channel"), place.environment)
    here.publish(*release(tmp_path / "0", 0))
    filler, refused = small_disk / "filler", 0
    held = check_whole(here)
    files = release(tmp_path / "1", 1)
    for room in range(0, 2 << 20, 16 << 10):
        filler.unlink(missing_ok=True)
        filler.write_bytes(b"\0" * max(0, shutil.disk_usage(small_disk).free - room))
        before = generations_of(here.channel)
        try:
            here.publish(*files)
        except DiskSpaceError as error:
            refused += 1
            assert "prune" in error.remedy
            assert check_whole(here) == held and generations_of(here.channel) == before
        else:
            break
    assert refused > 5 and check_whole(here) == held | {file.name for file in files}
    with here.channel.writing():  # clears away what the indexer's threads wrote after its last error
        assert sorted(os.listdir(here.channel.store)) == ["000001", "000002", "lock"]


@pytest.mark.parametrize("stage", ["index", "describe", "sign", "commit"])
def test_interrupted_by_hand(place, tmp_path, monkeypatch, stage):
    """Ctrl-C in the middle leaves the channel as it was, and no folder behind."""
    place.publish(*release(tmp_path / "0", 0))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr(publishing._NextGeneration, stage, interrupt)
        place.publish(*release(tmp_path / "1", 1))
    assert len(check_whole(place)) == 4 and sorted(os.listdir(place.channel.store)) == ["000001", "lock"]

"""One run of a command with damaged inputs, and what must hold after it.

A command ends within its time, with status 0, 1 or 2 (or 130, 143 after a signal). Where it failed, a line begins with
``error:``, and everything is as it was before. It never shows a traceback, and leaves no temporary file, open file, thread or
process. Afterwards, with its inputs in order again, it succeeds.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # pytest finds these modules by itself
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import damage
import damage_server
from damage_process import Disk, as_user, captured, left_over, limited_to, misbehaving_server, own_things, watched
from damage_setting import COMMANDS, Command, Snapshot, World

LIMIT = 60.0
"""Seconds that a run may take, on a machine with other work."""
_UNWANTED = (
    "Traceback (most recent",
    "Exception ignored",
    "never retrieved",
    "never awaited",
    "panicked at",
    "ResourceWarning",
    "internal error",
)
# what a failed run may leave: locks, folders of the caches, keys that were made, what is remembered about channels, downloads
_MAY_APPEAR = re.compile(
    r"(.*/)?lock|.*\.lock|cache|cache/(downloads|archives)(/.*\.(conda|lock))?|(home/)?(\.cache|xdg-cache)(/.*)?"
    r"|state(/.*)?|config|config/llama-cpp"
    r"|config/llama-cpp/signing-key\.(pem|pub)|repo/vendor/llama\.cpp/\.source-state|home(/\.config.*|/\.local.*)?"
)
# what a build does before it can fail: it fetches the engine, and writes a log
_MAY_COME_WITH_A_BUILD = re.compile(r"repo/build(/package-[a-z]+\.log)?|repo/vendor/llama\.cpp/(source|\.source-state)(/.*)?")
_TEMPORARY = re.compile(
    r"(.*/)?\.(source(?!-state)|part|staging|creating|cuda|seed|provenance|pins|new|signing-key|out)-.*"
    r"|(.*/)?.*\.creating-.*|.*\.part|tmp/.*"
)
# with which `tempfile` tries once whether it can write there
_PROBE = re.compile(r"tmp/[a-z0-9_]{8}$")


@dataclass
class Case:
    """A command with damaged inputs; ``notes`` say what was damaged."""

    seed: int
    name: str
    command: Command
    arguments: list[str]
    environment: dict[str, str]
    notes: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    largest_file: int | None = None
    user: int | None = None
    signal: signal.Signals | None = None
    after: float = 0

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.name}: {'; '.join(self.notes)}"


@dataclass(frozen=True)
class Outcome:
    """What a run gave back; ``hung`` is the stack of a run that took too long."""

    status: int | None
    out: str
    err: str
    seconds: float
    hung: str = ""
    left: tuple[str, ...] = ()


def make_case(world: World, seed: int, names: tuple[str, ...], url: str) -> Case:
    """Choose a command among ``names`` and damage the setting for it."""
    rng = random.Random(seed)
    name = rng.choices(names, [COMMANDS[one].share for one in names])[0]
    command = COMMANDS[name]
    case = Case(seed, name, command, world.arguments(command), dict(world.environment))
    for path in command.before:
        _remove(world.root / path)
        case.damaged.append(path)
    wanted = rng.choice((1, 1, 1, 2))
    while len(case.notes) < wanted:
        kind = rng.random()
        if kind < 0.68 and command.inputs:
            _damage_input(case, world, rng)
        elif kind < 0.80 and command.values:
            _damage_argument(case, world, rng)
        elif kind < 0.90:
            _damage_environment(case, world, rng)
        elif kind < 0.94 and command.server and not any("http" in note for note in case.notes):
            behaviour = rng.choice((*damage_server.QUICK, *damage_server.QUICK, *damage_server.SLOW, *damage_server.ENDLESS))
            if behaviour in damage_server.QUICK or "--from-git" not in case.arguments:
                case.arguments = world.arguments(command, command.server, f"{url}/{behaviour}")
                case.notes.append(f"http {behaviour}")
        elif kind < 0.98:
            case.largest_file = rng.choice((0, 1, 100, 1000, rng.randrange(20_000)))
            case.notes.append(f"files of {case.largest_file} bytes at most")
        elif os.getuid() == 0 and "seed" not in name and "--from-git" not in case.arguments:
            case.user = 65534
            case.notes.append("as another user")
    return case


def _damage_input(case: Case, world: World, rng: random.Random) -> None:
    name = rng.choice(list(case.command.inputs))
    kind, path = case.command.inputs[name], world.path(name)
    relative = os.path.relpath(path, world.root)
    if not os.path.lexists(path) or (kind != "folder" and not _is_small_file(path)):
        # another damage was there first
        return
    documents = {"toml": damage.damage_toml, "json": damage.damage_json, "yml": damage.damage_yaml, "lines": damage.damage_lines,
                 "tar": damage.damage_tar, "carrier": damage.damage_tar, "conda": damage.damage_package,
                 "index": damage.damage_json}  # fmt: skip
    try:
        if kind in documents and rng.random() < 0.6:
            data = documents[kind](path.read_bytes(), rng)
            path.unlink()
            path.write_bytes(data)
            how = "changed"
            if kind == "carrier":
                _pin(world, damage.sha256(data))
                case.damaged.append("repo/vendor/llama.cpp/pin.toml")
            if kind in ("index", "conda") and relative.startswith("dist/") and rng.random() < 0.7:
                resign(world, path.parents[1], relative.partition("/000002/")[2])
                case.damaged.append("dist/.channel.generations/000002/manifest.json")
                how = "changed and signed again"
        elif kind == "signed" and rng.random() < 0.6:
            document = json.loads(path.read_bytes())
            if rng.random() < 0.7:
                signed, inserted = damage.damage_document(document["signed"], rng, damage.RAW_JSON)
                document["signed"] = signed
                sign(world, document)
            else:
                document, inserted = damage.damage_document(document, rng, damage.RAW_JSON)
            path.unlink()
            path.write_bytes(json.dumps(document).replace(json.dumps(damage.RAW), inserted).encode("utf-8", "surrogatepass"))
            how = "changed and signed again"
        else:
            kinds = damage.FOLDER_DAMAGE if kind == "folder" else damage.FILE_DAMAGE
            how = rng.choice(list(kinds))
            kinds[how](path, rng)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        EOFError,
        RecursionError,
        zipfile.BadZipFile,
        tarfile.TarError,
    ) as error:
        # two damages of one input do not always go together
        case.notes.append(f"{relative}: {type(error).__name__}")
        return
    finally:
        case.damaged.append(relative)
    case.notes.append(f"{relative}: {how}")


def _is_small_file(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISREG(found.st_mode) and found.st_size < 1 << 24


def _pin(world: World, digest: str) -> None:
    pin = world.root / "repo/vendor/llama.cpp/pin.toml"
    pin.write_text(re.sub(r'(?m)^sha256 = ".*"$', f'sha256 = "{digest}"', pin.read_text()))


def resign(world: World, folder: Path, path: str) -> None:
    """Give a file of a generation the hash and the signature it would have had if it had been published so."""
    file = folder / "manifest.json"
    document = json.loads(file.read_bytes())
    signed, digest = document["signed"], damage.sha256((folder / path).read_bytes())
    if path in signed["files"]:
        signed["files"][path] = digest
    else:
        from distribution.channel import keys, manifest

        key = keys.signing_key()
        old = manifest.parse(file.read_bytes(), "")
        changed = manifest.replace(old.packages[path], sha256=digest, size=(folder / path).stat().st_size, signatures={})
        entry = manifest.sign_entry(path, changed, key)
        signed["packages"][path] = {**manifest.asdict(entry), "signatures": dict(entry.signatures)}
    sign(world, document)
    file.unlink()
    file.write_text(json.dumps(document))


def sign(world: World, document: dict[str, Any]) -> None:
    """Sign a manifest, whatever is in it, with the setting's own key."""
    from cryptography.hazmat.primitives import serialization

    from distribution.channel import keys, manifest

    key = serialization.load_pem_private_key((world.path("config/llama-cpp/signing-key.pem")).read_bytes(), None)
    document["signature"] = keys.sign(key, manifest._canonical(document["signed"]))


def _damage_argument(case: Case, world: World, rng: random.Random) -> None:
    position = rng.choice(case.command.values)
    if position >= len(case.arguments):
        return
    odd = rng.choice(damage.odd_arguments(world.root))
    if odd == "cpu" and case.name.startswith("build"):
        # that is one that can be built
        return
    case.arguments[position] = odd
    case.notes.append(f"argument {position} is {odd[:40]!r}")


def _damage_environment(case: Case, world: World, rng: random.Random) -> None:
    variables = damage.odd_environment(world.root)
    name = rng.choice(list(variables))
    value = rng.choice(variables[name])
    case.environment.pop(name, None)
    if value is not None:
        case.environment[name] = value
    case.notes.append(f"{name}={value if value is None else value[:40]!r}")


def run(world: World, case: Case, limit: float = LIMIT) -> Outcome:
    """Run the command in this process, as it would run in one of its own."""
    from distribution.__main__ import main

    def work() -> int:
        return main(case.arguments)

    before = own_things()
    argv, sys.argv = sys.argv, ["distribution", *case.arguments]
    with (
        world.entered(case.environment), world.patched(), captured() as texts, as_user(case.user), limited_to(case.largest_file)
    ):  # fmt: skip
        started = time.monotonic()
        status, hung = watched(work, limit, case.signal, case.after)
        seconds = time.monotonic() - started
    sys.argv = argv
    out, err = texts()
    return Outcome(status, out, err, seconds, hung, left_over(before))


def run_apart(world: World, case: Case, limit: float = LIMIT * 2) -> Outcome:
    """Run the command in a process of its own, without the setting's short limits: its beginning and its end are real."""
    root = str(Path(__file__).resolve().parents[2])
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "distribution", *case.arguments], cwd=world.root / "cwd", env={**case.environment,
            "PYTHONPATH": root},
            capture_output=True, stdin=subprocess.DEVNULL, timeout=limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return Outcome(None, "", (error.stderr or b"").decode(errors="replace"), limit, "(a process of its own)")
    out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    return Outcome(done.returncode, out, err, time.monotonic() - started)


def faults(case: Case, outcome: Outcome, before: Snapshot, after: Snapshot) -> list[str]:
    """What does not hold."""
    wrong = []
    if outcome.hung:
        wrong.append(f"took longer than {outcome.seconds:.0f} s: {outcome.hung}")
    elif outcome.status not in (0, 1, 2):
        wrong.append(f"status {outcome.status}")
    if outcome.status in (1, 2) and not re.search(r"(?m)^(error: |.*: error: ).", outcome.err):
        wrong.append("no line with error:")
    if "LLAMA_CPP_DEBUG" not in case.environment:
        wrong += [f"{text} in stderr" for text in _UNWANTED if text in outcome.err]
    elif "internal error" in outcome.err:
        wrong.append("internal error in stderr")
    wrong += [f"left: {one}" for one in outcome.left]
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    for path in changed:
        gone = path not in after
        if _TEMPORARY.fullmatch(path) and not gone:
            wrong.append(f"left behind: {path}")
        elif case.name == "build" and _MAY_COME_WITH_A_BUILD.fullmatch(path):
            continue
        elif outcome.status != 0 and not _is_harmless(path, before, after, changed):
            wrong.append(f"{'removed' if gone else 'changed' if path in before else 'made'} although it failed: {path}")
    return wrong


def _is_harmless(path: str, before: Snapshot, after: Snapshot, changed: list[str]) -> bool:
    if _MAY_APPEAR.fullmatch(path):
        return True
    # an older generation, what a killed run left, and what is no generation, may be cleared away by any writer
    gone = path not in after
    current = "dist/.channel.generations/000002"
    kept = path.startswith(current) and _is_folder(before.get(current))
    return gone and path.startswith("dist/.channel.generations/") and not kept


def _is_folder(described: tuple[Any, ...] | None) -> bool:
    return described is not None and stat.S_ISDIR(described[0])


def check(world: World, seed: int, names: tuple[str, ...], url: str, again: bool = False) -> tuple[Case, list[str]]:
    """Make a case, run it, and say what is wrong; with ``again``, run the command once more with its inputs in order."""
    with world.entered():
        case = make_case(world, seed, names, url)
    before = world.snapshot()
    # now and then in a process of its own; never where that would miss what `World.patched` keeps apart
    apart = (
        seed % 97 == 5
        and case.user is None
        and case.largest_file is None
        and case.name.startswith(("vendor", "channel list", "env"))
    )
    apart = apart and not any(word in " ".join(case.notes) for word in ("HOME", "http", "TMPDIR"))
    outcome = run_apart(world, case) if apart else run(world, case)
    wrong = faults(case, outcome, before, world.snapshot())
    if again and not wrong and outcome.status:
        wrong += _run_again(world, case, (*case.damaged, *_RESULTS))
    if wrong:
        wrong.append(f"status {outcome.status}, {outcome.seconds:.1f} s: {outcome.err[-1500:]}")
    world.reset()
    return case, wrong


def check_full_disk(world: World, seed: int, names: tuple[str, ...], disk: Disk) -> tuple[Case, list[str]]:
    """Run a command, all of its inputs in order, while everything lies on a disk with little room."""
    rng = random.Random(seed)
    case = _undamaged(world, seed, rng.choices(names, [COMMANDS[one].share for one in names])[0])
    case.damaged += case.command.before
    before = world.snapshot()
    kind, amount = (
        rng.choice(("bytes", "bytes", "bytes", "files", "read-only")),
        rng.choice((0, 1, 5, rng.randrange(60), rng.randrange(200))),
    )
    case.notes.append(f"{amount} {'pages' if kind == 'bytes' else kind} are left" if kind != "read-only" else kind)
    with disk.limited(kind, amount):
        outcome = run(world, case)
        after = world.snapshot()
    wrong = faults(case, outcome, before, after)
    if not wrong and outcome.status:
        wrong += _run_again(world, case, ("tmp", "home", *_RESULTS))
    if wrong:
        wrong.append(f"status {outcome.status}, {outcome.seconds:.1f} s: {outcome.err[-1500:]}")
    world.reset()
    return case, wrong


def check_interrupted(world: World, seed: int, names: tuple[str, ...]) -> tuple[Case, list[str]]:
    """Interrupt or terminate a command at a moment of its run; the next run may have to clear away what it could not."""
    rng = random.Random(seed)
    case = _undamaged(world, seed, rng.choices(names, [COMMANDS[one].share for one in names])[0])
    case.signal, case.after = (
        rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
        rng.choice((0.003, 0.03, 0.3)) * rng.random() + 1e-4,
    )
    case.notes.append(f"{case.signal.name} after {case.after:.4f} s")
    before = world.snapshot()
    outcome = run(world, case)
    wrong = []
    if outcome.hung or outcome.status not in (0, 1, 128 + case.signal):
        wrong.append(f"status {outcome.status}: {outcome.hung}")
    # a file that is opened at this very moment is closed when nothing refers to it
    wrong += [f"{text} in stderr" for text in _UNWANTED if text in outcome.err and text != "ResourceWarning"]
    wrong += [f"left: {one}" for one in outcome.left if not _PROBE.search(one)]
    for path in case.command.before:
        _remove(world.root / path)
    second = run(world, _undamaged(world, seed, case.name))
    exists = outcome.status in (0, 128 + case.signal) and re.search(r"exists|is there", second.err)
    if second.status != _EXPECTED.get(case.name, 0) and not exists:
        wrong.append(f"the next run: status {second.status}: {second.err[-800:]}")
    after = world.snapshot()
    new = [path for path in after if path not in before and not _PROBE.search(path)]
    wrong += [f"left behind by both: {path}" for path in new if _TEMPORARY.fullmatch(path)]
    if wrong:
        wrong.append(f"status {outcome.status}, {outcome.seconds:.1f} s: {outcome.err[-1500:]}")
    world.reset()
    return case, wrong


def _undamaged(world: World, seed: int, name: str) -> Case:
    command = COMMANDS[name]
    for path in command.before:
        _remove(world.root / path)
    return Case(seed, name, command, world.arguments(command), dict(world.environment))


def _run_again(world: World, case: Case, repaired: tuple[str, ...]) -> list[str]:
    """Run the command with its inputs in order, and with all that the failed run made."""
    world.reset(repaired)
    second = run(world, _undamaged(world, case.seed, case.name))
    if second.status == _EXPECTED.get(case.name, 0) and not second.hung:
        return []
    return [f"a second, undamaged run: status {second.status}: {second.hung or second.err[-500:]}"]


_RESULTS = ("tmp", "home", "new", "made", "out.tar", "new.lock")
_EXPECTED = {"build --arch": 1, "build --output": 1}


def _remove(path: Path) -> None:
    from distribution.files import remove_tree

    remove_tree(path)


def warm_up(world: World, but: tuple[str, ...] = ()) -> list[str]:
    """Run every command undamaged: what is loaded at first use is there then. Return what does not succeed."""
    wrong = []
    for name, command in COMMANDS.items():
        if name in but:
            continue
        for path in command.before:
            _remove(world.root / path)
        case = Case(0, name, command, world.arguments(command), dict(world.environment))
        outcome = run(world, case, 60)
        if outcome.status != _EXPECTED.get(name, 0):
            wrong.append(f"{name}: status {outcome.status}: {outcome.hung or outcome.err[-1000:]}")
        world.reset()
    return wrong


def main() -> int:
    """Run seeds by hand: ``damage_run.py SEED [COUNT] [NAME]``; with DISK=1 or SIGNAL=1, those with a full disk or a signal."""
    import shutil
    import tempfile

    first, count = int(sys.argv[1]), int((sys.argv[2:] or ["1"])[0])
    names = tuple(name for name in COMMANDS if re.match((sys.argv[3:] or [""])[0], name))
    bad = 0
    folder = Path(tempfile.mkdtemp(prefix="damage-"))
    folder.chmod(0o755)
    disk = Disk(folder / "world") if os.environ.get("DISK") else None
    with misbehaving_server() as url:
        world = World(folder)
        for one in warm_up(world):
            print(f"WRONG undamaged: {one}", file=sys.stderr)
        started, cpu = time.monotonic(), time.process_time()
        for seed in range(first, first + count):
            before = time.monotonic()
            if disk:
                case, wrong = check_full_disk(world, seed, names, disk)
            elif os.environ.get("SIGNAL"):
                case, wrong = check_interrupted(world, seed, names)
            else:
                case, wrong = check(world, seed, names, url, again=seed % 4 == 0)
            took = time.monotonic() - before
            if wrong or count == 1 or took > 10:
                bad += bool(wrong)
                print(f"{'FAULT' if wrong else 'ok'} {case} [{took:.1f} s]", *wrong, sep="\n    ", flush=True)
        print(f"{bad} of {count} at fault; {time.monotonic() - started:.0f} s, {time.process_time() - cpu:.0f} s of processor")
    world.unlock()
    if disk:
        disk.close()
    shutil.rmtree(folder)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())

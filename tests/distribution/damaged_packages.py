"""Asks of packages that were damaged by a seed: is each refused, or installed exactly as it was inspected?

``python damaged_packages.py FIRST COUNT FOLDER [lenient]`` does that in a process of limited memory, and prints what it found as
JSON. Whatever takes a claim of a package for true dies there, and the last seed on stderr says of which.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from package_damages import damaged
from packed_by_hand import zstd

MEMORY = 4 << 30
"""Bytes of address space; py-rattler's threads reserve some hundreds of MB of it."""
PATIENCE = 30
"""Seconds that one package may take."""


def as_conda_reads(package: Path) -> dict[str, bytes | str]:
    """The files and links that Python's own modules find in a package, as conda uses them; where both say a path, the last."""
    found: dict[str, bytes | str] = {}
    stem = package.name.removesuffix(".conda")
    with zipfile.ZipFile(package) as archive:
        for part in ("pkg", "info"):
            (member,) = [one for one in archive.infolist() if one.filename.startswith(f"{part}-{stem}")]
            with zstd.open(archive.open(member)) as stream, tarfile.open(fileobj=stream, mode="r|", encoding="utf-8") as tar:
                for one in tar:
                    if one.issym():
                        found[one.name] = one.linkname
                    elif one.islnk():
                        found[one.name] = found[one.linkname]
                    elif not one.isdir():
                        found[one.name] = tar.extractfile(one).read()
    return found


def check(package: Path, scratch: Path, index: bool = True) -> tuple[str, str]:
    """``("refused", why)`` or ``("accepted", "")``; anything else that is found is an AssertionError.

    ``index``: whether the indexer is tried, too, which takes ten times as long as everything else.
    """
    from distribution.channel.package_file import inspect
    from distribution.errors import DamagedPackageError

    seen: dict[str, bytes] = {}
    try:
        found = inspect(package, lambda path, blocks: seen.update({path: b"".join(blocks)}))
    except DamagedPackageError as error:
        assert error.message.isprintable() and len(error.message) < 1000 and error.remedy, error.message[:300]
        return "refused", error.message
    conda = as_conda_reads(package)
    described = json.loads(conda["info/index.json"])
    assert found.name == described["name"] and list(found.depends) == described.get("depends", [])
    payload = {path: content for path, content in conda.items() if not path.startswith("info/")}
    links = {path for path, content in payload.items() if isinstance(content, str)}
    # a second name of a file is not shown again
    assert seen.items() <= payload.items() and {payload[path] for path in payload.keys() - seen.keys() - links} <= set(
        seen.values()
    )
    installed = _installed(package, described, scratch)
    expected, made = _expected(payload, conda, scratch / "a" / "b" / "c")
    assert installed.keys() == expected.keys() | made and not expected.keys() & made, (
        f"{installed.keys() ^ (expected.keys() | made)}"
    )
    assert {path: content for path, content in installed.items() if path not in made} == expected
    if index:
        check_index(package, found, scratch)
    return "accepted", ""


def _installed(package: Path, index: dict[str, Any], scratch: Path) -> dict[str, bytes | str]:
    from rattler import PackageRecord, RepoDataRecord, install

    from conda_packages import write_package

    def record(file: Path, described: dict[str, Any]) -> RepoDataRecord:
        (scratch / "described.json").write_text(json.dumps(described))
        return RepoDataRecord(PackageRecord.from_index_json(scratch / "described.json"), file.name, file.as_uri(), "file:///x")

    prefix = scratch / "a" / "b" / "c"
    python = write_package(scratch / "python", "python", "3.12.1", files={"bin/python3.12": b""})
    described = {"name": "python", "version": "3.12.1", "build": "0", "build_number": 0, "subdir": "linux-64"}
    records = [record(package, index)] + [record(python, described)] * (index.get("noarch") == "python")
    before = _tree(scratch)
    asyncio.run(
        install(records, target_prefix=prefix, cache_dir=scratch / "cache", show_progress=False, execute_link_scripts=False)
    )
    outside = {path for path in _tree(scratch) if not path.startswith(("a/b/c/", "cache/"))}
    assert outside == set(before), f"it wrote {outside - set(before)}"
    return {
        path: content for path, content in _tree(prefix).items() if path != "CACHEDIR.TAG" and not path.startswith("conda-meta/")
    }


def check_index(package: Path, found: Any, scratch: Path) -> None:
    """The indexer takes it, and says of it what it says of itself."""
    from rattler import MatchSpec
    from rattler.index import index_fs

    channel = scratch / "channel" / found.subdir
    channel.mkdir(parents=True)
    shutil.copy(package, channel)
    asyncio.run(index_fs(str(channel.parent)))
    listed = json.loads((channel / "repodata.json").read_text())["packages.conda"][package.name]
    assert (listed["name"], listed["version"], listed["build"]) == (found.name, found.version, found.build)
    assert (listed["build_number"], listed["subdir"]) == (found.build_number, found.subdir)
    # it writes some of them in another way
    assert [MatchSpec(one).to_canonical_string() for one in listed["depends"]] == [
        MatchSpec(one).to_canonical_string() for one in found.depends
    ]


def _expected(payload: dict[str, Any], conda: dict[str, Any], prefix: Path) -> tuple[dict[str, bytes | str], set[str]]:
    """What an environment should hold of a payload, and the names of the programs that are made for it."""
    noarch = json.loads(conda["info/index.json"]).get("noarch") == "python"
    replaced = {
        one["_path"]: one for one in json.loads(conda["info/paths.json"])["paths"] if one.get("prefix_placeholder") is not None
    }
    expected = {}
    for path, content in payload.items():
        if path in replaced and replaced[path]["file_mode"] == "text":
            content = content.replace(replaced[path]["prefix_placeholder"].encode(), str(prefix).encode())
        for before, after in {"site-packages/": "lib/python3.12/site-packages/", "python-scripts/": "bin/"}.items():
            if noarch and path.startswith(before):
                path = after + path.removeprefix(before)
        if path != "CACHEDIR.TAG":
            expected[path] = content
    if not noarch:
        return expected, set()
    points = json.loads(conda.get("info/link.json", b"{}")).get("noarch", {}).get("entry_points", [])
    return expected, {"bin/python3.12"} | {f"bin/{point.split('=')[0].strip()}" for point in points}


def _tree(folder: Path) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(root, name)
            if os.path.islink(path):
                found[os.path.relpath(path, folder)] = os.readlink(path)
            elif os.path.isfile(path):
                found[os.path.relpath(path, folder)] = Path(path).read_bytes()
    return found


def as_conda_inspects(package: Path, visit: Callable[[str, Iterator[bytes]], None]) -> Any:
    """A reader that believes what Python's own modules find; ``check`` must find something about it."""
    from distribution.channel.package_file import ChannelPackage
    from distribution.errors import DamagedPackageError

    try:
        found = as_conda_reads(package)
        index = json.loads(found["info/index.json"])
        for path, content in found.items():
            if isinstance(content, bytes) and not path.startswith("info/"):
                visit(path, iter([content]))
        return ChannelPackage(
            index["name"],
            index["version"],
            index["build"],
            index["build_number"],
            index["subdir"],
            "",
            0,
            tuple(index["depends"]),
            {},
        )
    except Exception as error:
        raise DamagedPackageError(ascii(error)[:200], "x") from None


def main(first: int, count: int, folder: Path, lenient: bool = False) -> None:
    if lenient:
        from distribution.channel import package_file

        package_file.inspect = as_conda_inspects
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    kinds, reasons, wrong = Counter(), Counter(), []
    for seed in range(first, first + count):
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as made:
            name, data, damages = damaged(seed)
            package = Path(made, "p", name)
            package.parent.mkdir()
            package.write_bytes(data)
            print(seed, damages, file=sys.stderr, flush=True)
            signal.alarm(PATIENCE)
            try:
                kind, reason = check(package, Path(made), index=seed % 20 == 0)
            except Exception as error:
                kind, reason = "wrong", f"{seed} {damages}: {type(error).__name__}: {error}"[:600]
                wrong.append(reason)
            signal.alarm(0)
            kinds[kind] += 1
            kinds.update(f"{kind} {damage}" for damage in damages)
            reasons[re.sub(r"[\d,]+", "0", reason.split(": ", 1)[-1])[:60] if kind == "refused" else kind] += 1
    print(json.dumps({"kinds": kinds, "reasons": reasons, "wrong": wrong, "memory": most_memory()}))


def most_memory() -> int:
    """Bytes of memory that this program had at most. What getrusage says includes who started it."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), "lenient" in sys.argv)

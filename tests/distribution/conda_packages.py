"""Small conda packages, written by hand so that a test decides about every byte, and channels to publish them to."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import rattler

from llama_cpp import __version__ as VERSION

ROOT = Path(__file__).resolve().parents[2]

from distribution.channel import publishing
from distribution.channel.publishing import Publication, State
from distribution.channel.store import Channel

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TIMESTAMP = 1_767_225_600_000


def write_package(
    folder: Path,
    name: str,
    version: str = "1.0",
    build: str = "0",
    build_number: int = 0,
    subdir: str = "linux-64",
    depends: Sequence[str] = (),
    constrains: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
    extra: Mapping[str, object] | None = None,
    listed: Mapping[str, bytes] | None = None,
) -> Path:
    """A ``.conda`` file. ``listed`` is what info/paths.json says of the files, where that is not the truth."""
    files = {f"share/{name}/{build}": build.encode()} if files is None else files
    index = {
        "name": name, "version": version, "build": build, "build_number": build_number, "subdir": subdir,
        "depends": list(depends), "constrains": list(constrains), "timestamp": TIMESTAMP,
        **({"noarch": "generic"} if subdir == "noarch" else {"arch": "x86_64", "platform": "linux"}),
    }  # fmt: skip
    paths = [
        {"_path": path, "path_type": "hardlink", "sha256": hashlib.sha256(data).hexdigest(), "size_in_bytes": len(data)}
        for path, data in (files if listed is None else listed).items()
    ]
    info = {
        "info/index.json": json.dumps(index).encode(),
        "info/about.json": json.dumps({"extra": dict(extra or {})}).encode(),
        "info/paths.json": json.dumps({"paths": paths, "paths_version": 1}).encode(),
        "info/files": "".join(f"{path}\n" for path in files).encode(),
    }
    stem = f"{name}-{version}-{build}"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{stem}.conda"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for member, data in {
            "metadata.json": b'{"conda_pkg_format_version": 2}',
            f"pkg-{stem}.tar.zst": zstandard(tarball(files)),
            f"info-{stem}.tar.zst": zstandard(tarball(info)),
        }.items():
            archive.writestr(zipfile.ZipInfo(member), data)
    return target


def release(folder: Path, number: int, commit: str = COMMIT, cuda: bool = True, tag: str = "a") -> list[Path]:
    """One build of all of our packages, tied to one another as the recipe ties them."""

    def ours(name: str, build: str, subdir: str = "linux-64", depends: Sequence[str] = ()) -> Path:
        provenance = {"llama_cpp_commit": commit, "patches": [], "toolkit": None, "flags": {}, "sbom": "sbom.cdx.json"}
        files = {f"share/llama.cpp/{name}/provenance.json": json.dumps(provenance).encode()}
        if name == "libggml-cuda":
            files["lib/libggml-cuda.so"] = b"no machine code"
        extra = {"llama_cpp_commit": commit}
        return write_package(folder, name, VERSION, build, number, subdir, depends, files=files, extra=extra)

    engine = f"h{tag}{number}_{number}"
    tied = f"libllama =={VERSION} {engine}"
    packages = [
        ours("libllama", engine, depends=["__glibc >=2.17"]),
        ours("llama.cpp", engine, depends=[tied]),
        ours("llama-cpp-python", engine, "noarch", [tied]),
    ]
    if cuda:
        packages.append(ours("libggml-cuda", f"cuda134_sm120_h{tag}{number}_{number}", depends=[tied]))
    return packages


def tarball(files: Mapping[str, bytes]) -> bytes:
    """A tar file in memory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zstandard(data: bytes) -> bytes:
    """A Zstandard frame that stores ``data`` as it is (RFC 8878: magic, header with a 1 MiB window, raw blocks)."""
    blocks = [data[start : start + (1 << 17)] for start in range(0, len(data), 1 << 17)] or [b""]
    frame = b"\x28\xb5\x2f\xfd\x00\x50"
    for number, block in enumerate(blocks):
        frame += ((len(block) << 3) | (number == len(blocks) - 1)).to_bytes(3, "little") + block
    return frame


TEMPLATE = f"""\
# How to set the channel in the repository.
name: llm-dev

channels:
  # the one place
  - ${{LLAMA_CPP_CHANNEL}}
  - conda-forge

dependencies:
  - llama-cpp-python >={VERSION}
  # The GPU.
  - libggml-cuda=*=*_sm120_*
  # programs
  - llama.cpp
"""


@dataclass(frozen=True)
class Place:
    """A folder where a test publishes, with keys and an environment file of its own."""

    folder: Path
    channel: Channel
    environment: Path

    def publish(self, *files: Path) -> Publication:
        return publishing.publish(files, self.channel, self.environment)

    def held(self) -> set[str]:
        """The file names of the packages in the channel."""
        return {package.file_name for package in State.of(self.channel).packages.values()}


def place_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Nothing published yet, no key configured, and channels elsewhere out of reach."""
    for variable in ("LLAMA_CPP_CHANNEL", "LLAMA_CPP_CHANNEL_KEY", "CONDA_OVERRIDE_CUDA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.setenv("CONDA_OFFLINE", "1")
    environment = folder / "environment.yml"
    environment.write_text(TEMPLATE)
    return Place(folder, Channel.at(folder / "dist" / "channel"), environment)


def solve(channel: str, *specs: str) -> dict[str, str]:
    """What py-rattler would install from a channel that it reads afresh: builds by name."""
    return {record.name.normalized: str(record.build) for record in solve_records(channel, *specs)}


def solve_records(channel: str, *specs: str) -> list[rattler.RepoDataRecord]:
    """As ``solve``, with all that the index says of each package."""
    gateway = rattler.Gateway(default_config=rattler.SourceConfig(cache_action="no-cache"))
    driver = rattler.GenericVirtualPackage(rattler.PackageName("__cuda"), rattler.Version("13.4"), rattler.BuildString("0"))
    machine = [*rattler.VirtualPackage.detect(), driver]
    wanted = [rattler.MatchSpec(one) for one in specs]
    return asyncio.run(
        rattler.solve([rattler.Channel(channel)], wanted, gateway, ["linux-64", "noarch"], virtual_packages=machine)
    )

"""A small engine, the source distribution that carries it, and a vendor folder that pins it."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

from distribution import files, vendor
from distribution.pin import Carrier, Pin

NAME, RELEASE, PREFIX = "engine-carrier", "1.0", "vendor/llama.cpp"
HEADER = """\
#include <stdint.h>
struct llama_params { int32_t n_ctx; float scale; union { int64_t i; double d; }; };
enum llama_kind { LLAMA_KIND_A, LLAMA_KIND_B };
int llama_decode(struct llama_params params);
void llama_free(void * pointer);
"""
ENGINE = {
    "CMakeLists.txt": b"project(engine)\n",
    "include/llama.h": HEADER.encode(),
    "ggml/CMakeLists.txt": b"project(ggml)\n",
    "ggml.txt": b"sorts after the folder's files, before or after the folder: git has a rule\n",
    "ggml-b/a": b"",
    "scripts/run.sh": b"#!/bin/sh\n",
}
BACKEND = """\
import pathlib
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    path = pathlib.Path(folder, "engine_carrier-{release}.dist-info")
    path.mkdir()
    (path / "METADATA").write_text("Metadata-Version: 2.1\\nName: engine-carrier\\nVersion: {release}\\n")
    return path.name
"""
PATCH = """\
Greet.

Why: a test. Goes when: the test goes.

diff --git a/CMakeLists.txt b/CMakeLists.txt
--- a/CMakeLists.txt
+++ b/CMakeLists.txt
@@ -1 +1,2 @@
 project(engine)
+message(STATUS hello)
"""


def git(*arguments: str, cwd: Path) -> str:
    if not shutil.which("git"):
        pytest.skip("needs git")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "core.autocrlf=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=cwd, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def write_engine(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "scripts/run.sh").chmod(0o755)
    return folder


def commit_engine(folder: Path, contents: dict[str, bytes]) -> tuple[str, str]:
    """A git repository with the engine; its commit's and tree's ids."""
    write_engine(folder, contents)
    git("init", "--quiet", ".", cwd=folder)
    git("add", "--all", ".", cwd=folder)
    git("commit", "--quiet", "--message=engine", cwd=folder)
    return git("rev-parse", "HEAD", cwd=folder), git("rev-parse", "HEAD^{tree}", cwd=folder)


def pack(archive: Path, members: dict[str, bytes | tarfile.TarInfo]) -> None:
    with (
        archive.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb") as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                tar.addfile(data)
                continue
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755 if name.endswith(".sh") else 0o644
            tar.addfile(info, io.BytesIO(data))


def make_carrier(index: Path, repository: Path, contents: dict[str, bytes], release: str = RELEASE) -> Path:
    """A source distribution that pip accepts, holding the engine and its git metadata."""
    root = f"engine_carrier-{release}"
    members: dict = {
        f"{root}/PKG-INFO": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {release}\n".encode(),
        f"{root}/pyproject.toml": b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        f"{root}/backend.py": BACKEND.format(release=release).encode(),
        f"{root}/{PREFIX}-other/file": b"not the engine",
        f"{root}/{PREFIX}/.git": b"gitdir: ../../.git/modules/vendor/llama.cpp\n",
    }
    members |= {f"{root}/{PREFIX}/{name}": data for name, data in contents.items()}
    metadata = repository / ".git"
    for path in (p for p in metadata.rglob("*") if p.is_file()):
        members[f"{root}/.git/modules/{PREFIX}/{path.relative_to(metadata).as_posix()}"] = path.read_bytes()
    index.mkdir(parents=True, exist_ok=True)
    pack(index / f"{root}.tar.gz", members)
    return index / f"{root}.tar.gz"


class Setting:
    """A vendor folder with its pin, an index for pip, a cache and the git repository the engine comes from."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder, self.index, self.cache = root / "repo/vendor/llama.cpp", root / "index", root / "cache"
        self.repository = root / "engine"
        self.commit, self.tree = commit_engine(self.repository, ENGINE)
        self.archive = make_carrier(self.index, self.repository, ENGINE)
        (self.folder / "patches").mkdir(parents=True)
        # inside a git repository, as in life
        git("init", "--quiet", ".", cwd=root / "repo")
        self.pin(files.sha256_of(self.archive))

    def pin(self, sha256: str, **changes: str) -> Pin:
        carrier = Carrier(NAME, RELEASE, self.archive.name, sha256, PREFIX)
        values = {"commit": self.commit, "tree": self.tree, "date": "2026-10-01", "git": str(self.repository)}
        pin = Pin(**{**values, **changes}, carrier=carrier)
        (self.folder / "pin.toml").write_text(pin.dumps())
        return pin

    def patch(self, text: str, name: str = "0001-greet.patch") -> None:
        (self.folder / "patches" / name).write_text(text)
        (self.folder / "patches" / "series").write_text(f"# a comment\n{name}\n")

    def vendor(self, **options) -> Path:
        return vendor.vendor(self.folder, self.cache, **options)

    def status(self) -> vendor.Status:
        return vendor.status(self.folder)

    def leftovers(self) -> list[str]:
        here = {path.name for path in self.folder.iterdir()} - {"pin.toml", "patches", "source", ".source-state"}
        parts = [path.name for path in self.cache.rglob(".part-*")]
        return sorted(here) + parts


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "distribution", *arguments],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip

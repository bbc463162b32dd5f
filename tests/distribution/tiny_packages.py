"""Real conda packages and channels, small enough to be made by the dozen."""

from __future__ import annotations

import asyncio
import datetime
import tempfile
from pathlib import Path

from rattler.index import index_fs
from rattler_build import assemble_package

EPOCH = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)


def add_package(
    channel: Path,
    name: str,
    version: str = "1.0",
    build: str = "h0_0",
    depends: tuple[str, ...] = (),
    constrains: tuple[str, ...] = (),
    files: dict[str, str] | None = None,
) -> Path:
    """Make a package in ``channel``; ``bin/`` files are executable. The channel must be indexed afterwards."""
    with tempfile.TemporaryDirectory() as staged:
        for path, text in (files or {f"share/{name}": f"{version}\n"}).items():
            target = Path(staged, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            target.chmod(0o755 if path.startswith("bin/") else 0o644)
        made = assemble_package(
            name,
            version,
            "linux-64",
            build,
            channel / "linux-64",
            files_dir=staged,
            depends=depends,
            constrains=constrains,
            timestamp=EPOCH,
            compression_level=1,
        )
    return made.path


def index(channel: Path) -> Path:
    """Write the channel's index anew; return the channel."""
    for subdir in ("linux-64", "noarch"):
        (channel / subdir).mkdir(parents=True, exist_ok=True)
    # by itself it does not look again at a file name that it knows
    asyncio.run(index_fs(str(channel), force=True))
    return channel

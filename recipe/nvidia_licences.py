"""Copies the licence texts of NVIDIA's packages that the CUDA plugin is made with.

Usage: python nvidia_licences.py OUTPUT PREFIX...

They are in each package's info/licenses, which is not linked into environments; an environment records where its packages
were unpacked to.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

NAMES = ("cuda-nvcc", "cuda-cudart", "cuda-cccl", "libcublas")


def copy(output: Path, prefixes: list[Path]) -> list[str]:
    """Copy them into a folder for each package; return the packages' names."""
    found = []
    for record in sorted(path for prefix in prefixes for path in (prefix / "conda-meta").glob("*.json")):
        package = json.loads(record.read_text())
        texts = Path(package.get("extracted_package_dir") or "/nowhere", "info", "licenses")
        if package["name"].startswith(NAMES) and texts.is_dir():
            shutil.copytree(texts, output / package["name"], dirs_exist_ok=True)
            found.append(package["name"])
    return found


if __name__ == "__main__":
    copied = copy(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
    print("NVIDIA's licence texts come from", ", ".join(copied) or "no package")
    if not copied:
        sys.exit("the plugin cannot be shared without NVIDIA's terms, and no package of the toolkit has them")

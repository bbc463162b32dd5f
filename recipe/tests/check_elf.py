"""What must be true of every program and library in these packages, whoever built them.

Usage: python check_elf.py PREFIX NAME_PATTERN...   (patterns of files below PREFIX, such as lib/libggml*.so*)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

# folders that exist on machines that build, never where these files are used
BUILD_PATHS = (b"/work/native/", b"_h_env_placehold", b"/build_env/", b"rattler-build_", b"conda-bld")


def dynamic(elf: ELFFile) -> dict[str, list[str]]:
    section = next(s for s in elf.iter_sections() if isinstance(s, DynamicSection))
    found: dict[str, list[str]] = {}
    for tag in section.iter_tags():
        for kind in ("needed", "soname", "rpath", "runpath"):
            if hasattr(tag, kind):
                found.setdefault(kind, []).append(getattr(tag, kind))
    return found


def strong_symbols(elf: ELFFile) -> set[str]:
    """Names that this file defines for everybody and that win over others of the same name."""
    table = elf.get_section_by_name(".dynsym")
    return {
        symbol.name
        for symbol in table.iter_symbols()
        if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] == "STB_GLOBAL"
    }


def complaints(path: Path, prefix: Path, libstdcxx: set[str]) -> list[str]:
    """What is wrong with one file; empty when nothing is."""
    found = []
    with path.open("rb") as file:
        elf = ELFFile(file)
        # a program takes copies of a library's variables (copy relocations), which is no second definition
        is_program = any(segment["p_type"] == "PT_INTERP" for segment in elf.iter_segments())
        tags, strong = dynamic(elf), set() if is_program else strong_symbols(elf)
    for entry in ":".join(tags.get("rpath", []) + tags.get("runpath", [])).split(":"):
        place = os.path.normpath(entry.replace("$ORIGIN", str(path.parent)))
        if entry and (not entry.startswith("$ORIGIN") or not Path(place).is_relative_to(prefix)):
            found.append(f"looks for libraries in {entry}, outside the environment")
    if both := strong & libstdcxx:
        found.append(f"defines {len(both)} symbols of libstdc++, {sorted(both)[0]} for one")
    data = path.read_bytes()
    for needle in (*BUILD_PATHS, os.fsencode(prefix) + b"/"):
        if (at := data.find(needle)) >= 0:
            found.append(f"holds a path of the machine that built it: {data[max(at - 40, 0) : at + 60]!r}")
    return found


def main(prefix: Path, patterns: list[str]) -> int:
    with (prefix / "lib" / "libstdc++.so.6").open("rb") as file:
        libstdcxx = strong_symbols(ELFFile(file))
    assert len(libstdcxx) > 1000, "libstdc++ could not be read"
    wrong = checked = 0
    for pattern in patterns:
        files = sorted(prefix.glob(pattern))
        if not files:
            print(f"FAILED: there is no {pattern}")
            wrong += 1
        for path in files:
            checked += 1
            for complaint in complaints(path, prefix, libstdcxx):
                print(f"FAILED: {path.relative_to(prefix)} {complaint}")
                wrong += 1
    print(f"{checked} files checked, {wrong} complaints")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))

"""What must be true of every program and library in these packages, whoever built them.

Usage: python check_elf.py PREFIX NAME_PATTERN...   (patterns of files below PREFIX, such as lib/libggml*.so*)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

WINS = ("STB_GLOBAL",)
WINS_OR_NOT = ("STB_GLOBAL", "STB_WEAK", "STB_GNU_UNIQUE")


def dynamic(elf: ELFFile) -> dict[str, list[str]]:
    section = next(s for s in elf.iter_sections() if isinstance(s, DynamicSection))
    found: dict[str, list[str]] = {}
    for tag in section.iter_tags():
        for kind in ("needed", "soname", "rpath", "runpath"):
            if hasattr(tag, kind):
                found.setdefault(kind, []).append(getattr(tag, kind))
    return found


def defined(elf: ELFFile, bindings: tuple[str, ...]) -> set[str]:
    """Names that this file defines for everybody."""
    table = elf.get_section_by_name(".dynsym")
    return {
        symbol.name
        for symbol in table.iter_symbols()
        if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] in bindings
    }


def complaints(path: Path, prefix: Path, libstdcxx: set[str]) -> list[str]:
    """What is wrong with one file; empty when nothing is."""
    found = []
    with path.open("rb") as file:
        elf = ELFFile(file)
        # a program takes copies of a library's variables (copy relocations), which is no second definition
        is_program = any(segment["p_type"] == "PT_INTERP" for segment in elf.iter_segments())
        tags, strong = dynamic(elf), set() if is_program else defined(elf, WINS)
    for entry in ":".join(tags.get("rpath", []) + tags.get("runpath", [])).split(":"):
        place = os.path.normpath(entry.replace("$ORIGIN", str(path.parent)))
        if entry and (not entry.startswith("$ORIGIN") or not Path(place).is_relative_to(prefix)):
            found.append(f"looks for libraries in {entry}, outside the environment")
    if both := strong & libstdcxx:
        found.append(f"defines {len(both)} symbols of libstdc++, {sorted(both)[0]} for one")
    return found


def main(prefix: Path, patterns: list[str]) -> int:
    with (prefix / "lib" / "libstdc++.so.6").open("rb") as file:
        # all of them: operator new is weak there, so that a program can replace it, which a library must not
        libstdcxx = defined(ELFFile(file), WINS_OR_NOT)
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

"""The CUDA plugin holds machine code for exactly the architectures its name promises, and FP4 instructions for Blackwell.

Usage: python check_cuda.py PREFIX ARCHITECTURES   (such as "120a-real" or "75-real 80-real 120a-real")
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

prefix, asked = Path(sys.argv[1]), sys.argv[2].replace(";", " ").replace(",", " ").split()
plugin = prefix / "lib" / "libggml-cuda.so"


def cuobjdump(*options: str) -> str:
    return subprocess.run(["cuobjdump", *options, str(plugin)], check=True, capture_output=True, text=True).stdout


promised = {"sm_" + name.removesuffix("-real") for name in asked}
found = set(re.findall(r"\.(sm_\w+)\.cubin", cuobjdump("--list-elf")))
assert found == promised, f"machine code for {sorted(found)}, promised: {sorted(promised)}"
assert not re.search(r"\.ptx$", cuobjdump("--list-ptx"), re.MULTILINE), "holds PTX, which no variant has"

manifest = json.loads((prefix / "lib" / "libggml-cuda.json").read_text())
assert manifest["architectures"] == asked, manifest

if "sm_120a" in found:
    dump = subprocess.Popen(
        ["cuobjdump", "-sass", "-arch", "sm_120a", str(plugin)], stdout=subprocess.PIPE, text=True, errors="replace"
    )
    assert dump.stdout is not None
    fp4 = 0
    for line in dump.stdout:
        fp4 += "OMMA" in line and "E2M1" in line
        if fp4 > 1000:
            dump.kill()  # all kernels would take ten minutes
            break
    dump.wait()
    assert fp4 > 1000, f"{fp4} FP4 tensor-core instructions: compiled for plain sm_120?"
    print("FP4 tensor-core instructions: more than 1000")
print(f"{plugin.stat().st_size / 1e6:.1f} MB for {', '.join(sorted(found))}")

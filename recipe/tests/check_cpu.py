"""Every level of x86-64 is there, and this processor gets the best it can run.

Build engines export SOURCE_DATE_EPOCH, at which ggml quietly leaves AVX out of a build without levels.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

LEVELS = {"x64", "sse42", "sandybridge", "ivybridge", "piledriver", "haswell", "skylakex", "cannonlake", "cascadelake",
          "cooperlake", "icelake", "zen4", "alderlake", "sapphirerapids"}  # fmt: skip
WITHOUT_AVX2 = {"x64", "sse42", "sandybridge", "ivybridge", "piledriver"}

lib = Path(os.environ.get("CONDA_PREFIX") or sys.prefix) / "lib"
present = {path.name[len("libggml-cpu-") : -len(".so")] for path in lib.glob("libggml-cpu-*.so")}
assert present >= LEVELS, f"missing: {sorted(LEVELS - present)}"

for name in ("libggml-base.so.0", "libggml.so.0"):
    ggml = ctypes.CDLL(str(lib / name), mode=ctypes.RTLD_GLOBAL)
ggml.ggml_backend_load_all()
loaded = set(re.findall(r"/(libggml-cpu-\w+\.so)", Path("/proc/self/maps").read_text()))
assert len(loaded) == 1, f"loaded: {loaded or 'no CPU plugin'}"
level = loaded.pop()[len("libggml-cpu-") : -len(".so")]

flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
if flags and {"avx2", "fma", "f16c", "bmi2"} <= set(flags[1].split()):
    assert level not in WITHOUT_AVX2, f"this processor has AVX2, and the plugin for {level} runs"
print(f"{len(present)} levels; this processor runs {level}")

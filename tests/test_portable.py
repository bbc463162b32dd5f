"""The CPU libraries run on processors without AVX, and use more where there is more."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
import tiny_model
from pathlib import Path
tiny_model.write(Path(sys.argv[1]))
from llama_cpp import Llama
from llama_cpp.fit.devices import summary
with Llama(sys.argv[1], n_ctx=64, n_threads=1) as llm:
    answer = llm.create_completion("the tea", max_tokens=8, temperature=0)
    print(summary(), answer["usage"]["completion_tokens"])
"""


def run(root: Path, model: Path, *emulator: str) -> str:
    # A machine may tell numpy's OpenBLAS which processor it has, which is not the emulated one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    done = subprocess.run(
        [*emulator, sys.executable, "-c", _SCRIPT, str(model), str(root / "recipe" / "tests")],
        capture_output=True, text=True, timeout=300, check=False, env={**environment, "PYTHONNOUSERSITE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(not shutil.which("qemu-x86_64"), reason="needs qemu-x86_64 (Debian: apt-get install qemu-user)")
@pytest.mark.parametrize(("processor", "level"), [("Nehalem", "sse42"), ("SandyBridge", "sandybridge")])
def test_it_runs_on_an_older_processor(root: Path, tmp_path: Path, processor: str, level: str) -> None:
    """An instruction that this processor lacks would end the process with SIGILL."""
    output = run(root, tmp_path / "tiny.gguf", "qemu-x86_64", "-cpu", processor)
    assert re.search(rf"\b{level} code\) 8$", output.strip()), output


def test_avx2_is_used_where_it_is(root: Path, tmp_path: Path) -> None:
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    if not flags or not {"avx2", "fma", "f16c", "bmi2"} <= set(flags[1].split()):
        pytest.skip("this processor has no AVX2")
    assert not re.search(r"\b(x64|sse42|sandybridge|ivybridge|piledriver) code", run(root, tmp_path / "tiny.gguf"))

"""llama.cpp's own programs find the plugins beside the libraries, wherever the program is, and nowhere else."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

TRAP = """
#include <stdio.h>
__attribute__((constructor)) static void sprung(void) { puts("SPRUNG"); }
int ggml_backend_score(void) { return 1000000; }
"""


def test_plugins_are_found_beside_the_libraries_and_not_in_the_current_directory(
    engine_tool: Callable[[str], Path], smollm2: Path, tmp_path: Path
) -> None:
    program = engine_tool("llama-completion")
    elsewhere, here = tmp_path / "bin", tmp_path / "here"
    elsewhere.mkdir()
    here.mkdir()
    shutil.copy(program, elsewhere)
    for folder in (elsewhere, here):
        (folder / "trap.c").write_text(TRAP)
        for name in ("libggml-cpu-trap.so", "libggml-cuda.so"):
            subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / name, folder / "trap.c"], check=True)
    done = subprocess.run(
        [elsewhere / program.name, "-m", smollm2, "-p", "Hello", "-n", "4", "-no-cnv", "--temp", "0", "-t", "1"],
        cwd=here, env={**os.environ, "LD_LIBRARY_PATH": str(program.parent)}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Hello" in done.stdout
    assert "SPRUNG" not in done.stdout, "a plugin that lay in the current directory or beside the program was loaded"

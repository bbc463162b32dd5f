"""What ``import llama_cpp`` costs on top of the interpreter, beside the bare interpreter, in one run.

Usage: python benchmarks/import_time.py [runs]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

STATEMENTS = {
    "nothing": "pass",
    "import llama_cpp": "import llama_cpp",
    "from llama_cpp import Llama": "from llama_cpp import Llama",
    "import llama_cpp.llama_cpp": "import llama_cpp.llama_cpp",
}


def milliseconds(statement: str) -> float:
    """Wall time of one interpreter that runs a statement."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    """Prints the median of each statement and what it adds to the bare interpreter."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 21
    for statement in STATEMENTS.values():
        milliseconds(statement)  # writes .pyc files, fills the page cache
    # in turn, so that a machine that changes its speed changes it for all
    samples: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(runs):
        for name, statement in STATEMENTS.items():
            samples[name].append(milliseconds(statement))
    bare = statistics.median(samples["nothing"])
    print(f"{'':30} median ms   added ms   ({runs} runs, Python {sys.version.split()[0]})")
    for name, values in samples.items():
        median = statistics.median(values)
        print(f"{name:30} {median:9.1f} {median - bare:10.1f}")


if __name__ == "__main__":
    main()

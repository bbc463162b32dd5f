"""What one package for every x86-64 processor costs against a build for this one: llama-bench of both, taking turns.

    cmake -S vendor/llama.cpp/source -B /tmp/native -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON
    cmake --build /tmp/native --target llama-bench
    python benchmarks/portable.py --model MODEL.gguf --packaged PREFIX/bin/llama-bench --native /tmp/native/bin/llama-bench

Prints the median of all rounds on both sides, and the median of the ratios of each round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess


def run(program: str, model: str, threads: int) -> dict[str, float]:
    """Tokens per second of reading 256 tokens and of generating 64."""
    command = [program, "-m", model, "-p", "256", "-n", "64", "-r", "2", "-t", str(threads), "-fa", "1", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"generating" if row["n_gen"] else "reading": max(row["samples_ts"]) for row in json.loads(done.stdout)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "packaged", "native"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    o = parser.parse_args()
    rounds = []
    for number in range(o.rounds):
        # whoever comes first does so every other time
        order = [o.packaged, o.native][:: 1 if number % 2 else -1]
        found = {program: run(program, o.model, o.threads) for program in order}
        rounds.append((found[o.packaged], found[o.native]))
    for what in ("reading", "generating"):
        ours, theirs = ([one[what] for one in side] for side in zip(*rounds))
        ratio = statistics.median(a / b for a, b in zip(ours, theirs))
        print(f"{what}: packaged {statistics.median(ours):.1f} tok/s, native {statistics.median(theirs):.1f}, ratio {ratio:.3f}")


if __name__ == "__main__":
    main()

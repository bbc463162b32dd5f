"""What the conda packages cost: sizes, time to build, to solve and to make the environment.

Usage: python benchmarks/packages.py [--arch cpu] [--build] [--rounds 5] [--json FILE]

Without ``--build`` it measures the packages that are in dist/packages; with it, it builds them first, once with an
empty compiler cache (cold) and once more with what is in it then (warm). Every time is of the wall clock, in seconds; of
several rounds the median.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from distribution.channel.publishing import publish  # noqa: E402
from distribution.channel.store import Channel  # noqa: E402
from distribution.environment import install, solving, specification  # noqa: E402
from distribution.packaging import build  # noqa: E402
from distribution.packaging.commands import variants_of  # noqa: E402


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def time_build(variants: list[str], dependencies: list[str]) -> dict[str, float]:
    """Seconds to build all packages, tests inside them included."""
    with tempfile.TemporaryDirectory() as cache:
        return {
            label: timed(lambda: build.build(variants, dependencies, rebuild=True, compiler_cache=Path(cache)))[0]
            for label in ("build, cold", "build, warm")
        }


def time_install(built: list[Path], dependencies: list[str], rounds: int) -> dict[str, float]:
    """Seconds to publish, to solve for environment.yml without the CUDA plugin, and to make the environment."""
    seconds: dict[str, list[float]] = {"publish": [], "solve": [], "create": []}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds):
            channel = Channel.at(Path(scratch, f"channel-{number}"))
            local = [Path(channel) for channel in dependencies if os.path.isdir(channel)]
            files = built + sorted(file for folder in local for file in folder.glob("*/*.conda"))
            seconds["publish"].append(timed(functools.partial(publish, files, channel))[0])
            source = str(channel.path / "environment.yml")
            wanted = specification.parse(specification.read_text(source), source)
            spent, solution = timed(functools.partial(solving.solve_environment, wanted, cpu=True))
            seconds["solve"].append(spent)
            prefix = Path(scratch, f"environment-{number}")
            make = functools.partial(install.create, solution.records, prefix, solution.requested)
            seconds["create"].append(timed(make)[0])
    return {label: statistics.median(spent) for label, spent in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="cpu", help="a compute capability without the dot, or cpu")
    parser.add_argument("--build", action="store_true", help="build first, cold and warm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    variants = variants_of(options.arch)
    dependencies = build.dependencies(cuda=build.CPU_ONLY not in variants)
    seconds = time_build(variants, dependencies) if options.build else {}
    built = build.build(variants, dependencies)
    seconds |= time_install(built, dependencies, options.rounds)
    result: dict[str, Any] = {
        "machine": f"{os.cpu_count()} x {processor()}",
        "megabytes": {path.name: round(path.stat().st_size / 1e6, 2) for path in built},
        "seconds": {label: round(spent, 2) for label, spent in seconds.items()},
    }
    print(f"{result['machine']}\n")
    for key, unit in (("megabytes", "MB"), ("seconds", "s")):
        for label, value in result[key].items():
            print(f"| {label} | {value} {unit} |")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def processor() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()

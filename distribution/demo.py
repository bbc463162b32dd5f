"""``make demo``: from this checkout to an answer, through the packages, the channel and the environment.

Everything it makes is in ``build/`` and ``dist/``; downloads are kept in the user's cache.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import hardware
from .console import say
from .errors import BuildError
from .files import REPOSITORY, cache_dir
from .interruption import run_program
from .packaging import build

CHANNEL = REPOSITORY / "dist" / "channel"
PREFIX = REPOSITORY / "dist" / "envs" / "llm-dev"
PROMPT = "Explain in two sentences why the sky is blue."


def variants_for(found: hardware.Hardware, toolkits: Sequence[str] | None = None) -> list[str]:
    """The files of ``recipe/variants/`` that make packages for this machine's GPUs; ``cpu`` where there is none.

    ``toolkits`` are the CUDA versions that can be built with; None stands for all.

    Raises:
        DriverTooOldError: the driver is too old for every build there is.
    """
    if not found.gpus:
        return ["cpu"]
    suitable = hardware.suitable_variants(found.gpus, found.driver)
    if not suitable:
        say("none of the CUDA variants is for this GPU: building for the CPU (docs/guides/conda.md says how to add one)")
        return ["cpu"]
    chosen = next((variant for variant in suitable if toolkits is None or variant.cuda in toolkits), None)
    if chosen is None:
        needed = ", ".join(sorted({variant.cuda for variant in suitable}))
        say(
            f"what runs here needs CUDA {needed}, and CUDA {', '.join(toolkits or ())} is all that can be had without"
            " conda-forge: building for the CPU"
        )
        return ["cpu"]
    return build.variant_files(chosen.cuda, chosen.architectures)


def demo(prompt: str = PROMPT) -> int:
    """Build, publish, install and answer; return the exit status of the last step."""
    _check_places()
    found = hardware.detect()
    say(f"this machine has {found}")
    variants = variants_for(found, build.toolkits())
    channels = build.dependencies(cuda="cpu" not in variants)
    say("\n1. the packages")
    built = build.build(variants, channels)
    say("\n2. the channel")
    _publish(built, channels)
    say("\n3. the environment")
    _make_environment(cpu="cpu" in variants)
    say("\n4. the answer")
    print(f"> {prompt}", flush=True)
    done = _run_inside("llama-cpp", "chat", "--prompt", prompt, "--max-tokens", "120")
    if done == 0:
        how = f". {shlex.quote(os.path.relpath(PREFIX / 'activate.sh'))}"
        print(f"\nNext: {how}   and then: llama-cpp chat          (--help lists the options)")
    return done


def _check_places() -> None:
    """Raise BuildError for what would end all this only after minutes."""
    from .channel import keys

    written = {"LLAMA_CPP_CACHE": cache_dir(), "XDG_CONFIG_HOME": keys.config_dir()}
    for variable, folder in written.items():
        there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise BuildError(f"{folder} cannot be written to", f"name another folder: {variable}=/a/folder make demo")
    build.check_root()


def _publish(ours: Sequence[Path], channels: Sequence[str]) -> None:
    from .channel.publishing import publish
    from .channel.store import Channel

    files = list(ours)
    for channel in channels:
        if os.path.isdir(channel):
            # a seeded channel is nowhere else: with its packages inside, ours is complete in itself
            files += sorted(Path(channel).glob("*/*.conda"))
    result = publish(files, Channel.at(CHANNEL))
    say(f"{CHANNEL}: {len(result.added)} packages added, {len(result.present)} were there")


def _make_environment(cpu: bool) -> None:
    command = [sys.executable, "-m", "distribution", "env", "create", "--force", "--prefix", str(PREFIX)]
    # there are two when the channel has packages for a GPU, too
    without_gpu = CHANNEL / "environment-cpu.yml"
    file = without_gpu if cpu and without_gpu.exists() else CHANNEL / "environment.yml"
    # with a trusted key the newest generation seen is remembered, and `make clean` begins with the first one again
    command += ["--file", str(file), "--allow-older", *(["--cpu"] if cpu else [])]
    done = run_program(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=None)
    if done.returncode:
        raise BuildError("the environment could not be made", "the message above says why")


def _run_inside(*command: str) -> int:
    """Run a command as a shell does that has the environment activated."""
    script = f". {shlex.quote(str(PREFIX / 'activate.sh'))} && exec {shlex.join(command)}"
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "LLAMA_CPP_LIB"))}
    return run_program(["bash", "-c", script], env=clean, stdout=None, stderr=None).returncode


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Set up ``python -m distribution demo``."""
    parser.add_argument("--prompt", default=PROMPT)
    parser.set_defaults(run=lambda options: demo(options.prompt))

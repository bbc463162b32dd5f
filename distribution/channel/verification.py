"""Whether a channel is what its publisher signed, and its packages what their names say."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import toolkit
from ..errors import DamagedPackageError, DistributionError, ToolkitError
from ..files import LARGEST_DOCUMENT, load_json, scratch_folder, sha256_of
from ..interruption import run_program
from . import dependencies, environment_files, manifest
from .keys import Trust, load_trust
from .manifest import MANIFEST, Manifest, ManifestEntry
from .package_file import SUBDIRS, ChannelPackage, inspect
from .publishing import INDEX, described, read_index
from .store import Channel
from .trust import require_signatures, signature_problem, signer_problem

PROVENANCE_KEYS = ("llama_cpp_commit", "patches", "toolkit", "flags", "sbom")
_CUDA_LIBRARY = re.compile(r"lib/libggml-cuda\.so[.\d]*$")
_CUDA_RECORD = "lib/libggml-cuda.json"
_LARGEST_RECORD = 4 << 20
_CUOBJDUMP_SECONDS = 600
_CUBIN = re.compile(r"\.sm_(\d+[af]?)\.cubin")
NOT_DISASSEMBLED = "architectures not disassembled: no cuobjdump"
"""A fact about a CUDA plugin: what it records about itself was compared, and the machine code was not looked at."""


@dataclass(frozen=True)
class Finding:
    """What was found about one file of a channel.

    Attributes:
        path: in the channel.
        problems: what is wrong; empty where nothing is.
        facts: what was checked beyond hashes, or could not be.
    """

    path: str
    problems: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()


def verify(channel: Channel, key: Path | None = None) -> Iterator[Finding]:
    """Check the current generation, file by file.

    Args:
        key: the public key that must have signed every package (default: the configured ones).

    Raises:
        ChannelNotFoundError: nothing was published there.
        ChannelDamagedError: the manifest cannot be read.
        SigningKeyError: a configured key cannot be read.
    """
    trust = load_trust(key)
    with channel.holding() as folder:
        content = manifest.read(folder)
        yield _check_manifest(content, trust, channel)
        yield from _check_other_files(folder, content)
        listed, problems = _read_indexes(folder)
        yield from problems
        packages = {path: ChannelPackage.from_record(record) for path, record in listed.items()}
        for path, entry in content.packages.items():
            yield _check_package(folder, path, entry, listed.get(path), content, trust, packages)
        for path in sorted(listed.keys() - content.packages.keys()):
            yield Finding(path, ("the index lists it and the manifest does not",))


def _check_manifest(content: Manifest, trust: Trust, channel: Channel) -> Finding:
    try:
        note = require_signatures(content, trust, str(channel.path))
    except DistributionError:
        # said here and for each package below
        note = ""
    problems = (signer_problem(content, trust),)
    facts = (f"generation {content.generation}", note)
    return Finding(MANIFEST, tuple(filter(None, problems)), tuple(filter(None, facts)))


def _check_other_files(folder: Path, content: Manifest) -> Iterator[Finding]:
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()}
    for path, digest in content.files.items():
        try:
            if path not in there:
                yield Finding(path, ("it is missing",))
            elif sha256_of(folder / path, LARGEST_DOCUMENT) != digest:
                yield Finding(path, ("it was changed",))
        except OSError as error:
            yield Finding(path, (f"it cannot be read: {error.strerror}",))
    for path in sorted(there - content.files.keys() - content.packages.keys() - {MANIFEST}):
        yield Finding(path, ("the manifest does not list it",))


def _read_indexes(folder: Path) -> tuple[dict[str, dict[str, Any]], list[Finding]]:
    listed, problems = {}, []
    for subdir in SUBDIRS:
        try:
            records = {f"{subdir}/{name}": record for name, record in read_index(folder / subdir).items()}
            listed.update(records)
            for path, record in records.items():
                described(path, record)
        except DistributionError as error:
            problems.append(Finding(f"{subdir}/{INDEX}", (error.message,)))
    return listed, problems


def _check_package(
    folder: Path,
    path: str,
    entry: ManifestEntry,
    record: Mapping[str, Any] | None,
    content: Manifest,
    trust: Trust,
    packages: Mapping[str, ChannelPackage],
) -> Finding:
    problems: list[str] = []
    facts: list[str] = []
    if problem := signature_problem(content, path, trust):
        problems.append(problem)
    if record is None:
        problems.append("the index does not list it")
    elif (record["sha256"], record["size"]) != (entry.sha256, entry.size):
        problems.append("the index has another hash or size than the manifest")
    with scratch_folder() as scratch:
        interesting = _Interesting(scratch)
        try:
            # a channel that is served gets no folder of ours, not for a moment
            package = inspect(folder / path, interesting, scratch, entry.size)
        except DamagedPackageError as error:
            problems.append(error.message)
        except FileNotFoundError:
            problems.append("it is missing")
        except OSError as error:
            problems.append(f"it cannot be checked: {error.strerror or error}")
        else:
            if (package.sha256, package.size) != (entry.sha256, entry.size):
                problems.append("it was changed: its hash is not the one in the manifest")
            if package.path != path:
                problems.append(f"it belongs in {package.path}")
            if package.is_ours:
                _check_ours(package, interesting, problems, facts)
                _check_partners(package, content, packages, problems)
    return Finding(path, tuple(problems), tuple(facts))


class _Interesting:
    """Keeps the files of a package that are looked at more closely."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self.provenance: bytes | None = None
        self.cuda_record: bytes | None = None
        self.cuda_library: Path | None = None

    def __call__(self, name: str, blocks: Iterator[bytes]) -> None:
        if name.startswith("share/llama.cpp/") and name.endswith("/provenance.json"):
            self.provenance = _read_small(blocks)
        elif name == _CUDA_RECORD:
            self.cuda_record = _read_small(blocks)
        elif _CUDA_LIBRARY.fullmatch(name):
            self.cuda_library = self._scratch / "libggml-cuda.so"
            with self.cuda_library.open("wb") as file:
                file.writelines(blocks)


def _read_small(blocks: Iterable[bytes]) -> bytes:
    """The content of a file of a few kilobytes; what is larger than it can be is cut off."""
    content = b""
    for block in blocks:
        content += block
        if len(content) > _LARGEST_RECORD:
            break
    return content[:_LARGEST_RECORD]


def _check_ours(package: ChannelPackage, interesting: _Interesting, problems: list[str], facts: list[str]) -> None:
    if not package.llama_cpp_commit:
        problems.append("info/about.json does not say the llama.cpp commit")
    try:
        provenance = load_json(interesting.provenance or b"null")
    except ValueError:
        provenance = None
    if not isinstance(provenance, dict):
        problems.append("it has no provenance.json")
    elif lacking := [name for name in PROVENANCE_KEYS if name not in provenance]:
        problems.append(f"its provenance.json lacks {', '.join(lacking)}")
    elif provenance["llama_cpp_commit"] != package.llama_cpp_commit:
        problems.append(f"its provenance.json says llama.cpp {provenance['llama_cpp_commit']!s:.80}")
    elif not isinstance(provenance["patches"], list):
        problems.append("its provenance.json does not list patches")
    else:
        facts.append(f"llama.cpp {str(package.llama_cpp_commit)[:12]}, {len(provenance['patches'])} patches")
    if package.name == environment_files.PLUGIN:
        _check_architectures(package, interesting, provenance, problems, facts)


def _check_partners(
    package: ChannelPackage, content: Manifest, packages: Mapping[str, ChannelPackage], problems: list[str]
) -> None:
    for dependency, partners in dependencies.pinned(package, packages.values()):
        commits = {content.packages[one.path].llama_cpp_commit for one in partners if one.path in content.packages}
        if not partners:
            problems.append(f"nothing in the channel satisfies `{dependency}`")
        elif package.llama_cpp_commit not in commits:
            problems.append(f"`{dependency}` was built from another llama.cpp commit")


def _check_architectures(
    package: ChannelPackage, interesting: _Interesting, provenance: Any, problems: list[str], facts: list[str]
) -> None:
    variant = environment_files.variant_of(package)
    recorded = _recorded_architectures(interesting.cuda_record)
    if variant is None:
        problems.append(f"its build string {package.build} does not name the architectures")
    elif recorded is None:
        problems.append(f"it has no {_CUDA_RECORD} that lists architectures")
    else:
        # a build string leaves the letter out: sm120 for 120a
        if {one.rstrip("af") for one in recorded} != set(variant[2]):
            problems.append(f"its {_CUDA_RECORD} says {_listed(recorded)}, and its name says {_listed(variant[2])}")
        built = _architectures_of_provenance(provenance)
        if built != recorded:
            problems.append(f"its provenance.json says {_listed(built)}, and its {_CUDA_RECORD} says {_listed(recorded)}")
        _check_machine_code(interesting.cuda_library, recorded, problems, facts)


def _check_machine_code(library: Path | None, recorded: set[str], problems: list[str], facts: list[str]) -> None:
    if library is None:
        problems.append("it has no lib/libggml-cuda.so")
        return
    try:
        found = architectures(library)
    except DamagedPackageError as error:
        problems.append(error.message)
    else:
        if found is None:
            facts.append(NOT_DISASSEMBLED)
        elif found != recorded:
            problems.append(f"it holds code for {_listed(found)}, and its {_CUDA_RECORD} says {_listed(recorded)}")
        else:
            facts.append(f"code for {_listed(found)}")


def architectures(library: Path) -> set[str] | None:
    """The CUDA architectures of the machine code in a library, such as ``{"120a"}``; None where no cuobjdump is at hand.

    Raises:
        ToolkitError: cuobjdump cannot be run, or does not end.
        DamagedPackageError: cuobjdump cannot read the library.
    """
    assembled = toolkit.assembled_path()
    # None where the toolkit was assembled, and its file is gone
    program = (assembled and shutil.which(assembled / "bin" / "cuobjdump")) or shutil.which("cuobjdump")
    if program is None:
        return None
    try:
        done = run_program([program, "--list-elf", str(library)], _CUOBJDUMP_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it did not end within {_CUOBJDUMP_SECONDS} s"
        raise ToolkitError(
            f"{program} cannot be run: {reason}", "python -m distribution toolkit --verify says whether the toolkit is damaged"
        ) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise DamagedPackageError(f"cuobjdump cannot read its {library.name}: {said}", "build it again, then publish")
    return set(_CUBIN.findall(done.stdout))


def _recorded_architectures(record: bytes | None) -> set[str] | None:
    """The architectures that the plugin's own record lists, such as ``{"120a"}``; None where it does not."""
    try:
        return {str(one).removesuffix("-real") for one in load_json(record or b"null")["architectures"]}
    except (ValueError, KeyError, TypeError):
        return None


def _architectures_of_provenance(provenance: Any) -> set[str]:
    try:
        return {one.removesuffix("-real") for one in provenance["toolkit"]["architectures"].split()}
    except (KeyError, TypeError, AttributeError):
        return set()


def _listed(targets: Iterable[str]) -> str:
    return ", ".join(f"sm_{one}" for one in sorted(targets, key=lambda one: (len(one.rstrip("af")), one))) or "no GPU"

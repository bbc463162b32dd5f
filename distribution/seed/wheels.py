"""Turns wheels into conda packages: pure Python ones for every interpreter, the others for the one that runs."""

from __future__ import annotations

import configparser
import re
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

from ..errors import SeedError
from .conda_package import PLACEHOLDER, PackedFile, SeedPackage

CONDA_NAMES = {"typing-extensions": "typing_extensions", "boolean-py": "boolean.py"}
"""Distributions whose package on conda-forge has another name than the normalised one."""

PROGRAMS = {"cmake": ("cmake/data/",), "ninja": ("ninja-{version}.data/scripts/", "bin/")}
"""Wheels that only carry a program: what to take out, and where it goes. The result needs no Python."""

LAUNCHER = """\
#!{prefix}/bin/python
import sys

from {module} import {first}

if __name__ == "__main__":
    sys.exit({function}())
"""


def package(wheel: Path, python: tuple[int, int] = sys.version_info[:2]) -> SeedPackage:
    """The conda package of a wheel.

    Raises:
        SeedError: its metadata cannot be read or translated.
    """
    with zipfile.ZipFile(wheel) as archive:
        members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        contents = {
            name: PackedFile(archive.read(info), executable=bool(info.external_attr >> 16 & 0o100))
            for name, info in members.items()
        }
    info, metadata = read_metadata(wheel)
    made = SeedPackage(
        name=conda_name(metadata["Name"]),
        version=metadata["Version"],
        license=metadata["License-Expression"] or _classified_license(metadata),
        summary=metadata["Summary"] or "",
        licences=_licences(contents, info),
        extra={"wheel": wheel.name},
    )
    if made.name in PROGRAMS:
        _fill_program(made, contents, _platform(wheel.name) or "")
    else:
        _fill_python(made, contents, info, metadata, _platform(wheel.name), python)
    return made


def read_metadata(wheel: Path) -> tuple[str, Message]:
    """The ``.dist-info`` folder of a wheel, and its METADATA.

    Raises:
        SeedError: it has none.
    """
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            folder, _, file = name.partition("/")
            if folder.endswith(".dist-info") and file == "METADATA":
                return folder, Parser().parsestr(archive.read(name).decode("utf-8"))
    raise SeedError(f"{wheel.name} has no metadata", "do not use it")


def requirements(metadata: Message, python: tuple[int, int]) -> list[str]:
    """What a distribution requires on Linux with ``python``, as conda specs, sorted.

    Raises:
        SeedError: a requirement cannot be translated.
    """
    specs = (conda_requirement(line, python) for line in metadata.get_all("Requires-Dist", []))
    return sorted({spec for spec in specs if spec})


def conda_name(name: str) -> str:
    """conda-forge's name for a distribution of the Python package index.

    >>> conda_name("Typing.Extensions"), conda_name("MarkupSafe")
    ('typing_extensions', 'markupsafe')
    """
    normalised = re.sub(r"[-_.]+", "-", name).lower()
    return CONDA_NAMES.get(normalised, normalised)


def conda_requirement(line: str, python: tuple[int, int] = sys.version_info[:2]) -> str | None:
    """A ``Requires-Dist`` as a conda spec, or None where its marker does not hold for Linux and ``python``.

    >>> conda_requirement("tomli>=1; python_version < '3.11'", (3, 12)), conda_requirement("Foo.Bar (>=1,<2)", (3, 12))
    (None, 'foo-bar >=1,<2')
    """
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        required = Requirement(line)
    except InvalidRequirement as error:
        raise SeedError(f"cannot read the requirement {line!r}: {error}", "pin another version in pins.toml") from None
    dotted = ".".join(map(str, python))
    machine = {"python_version": dotted, "python_full_version": f"{dotted}.0", "platform_system": "Linux"}
    machine |= {"sys_platform": "linux", "os_name": "posix", "extra": "", "implementation_name": "cpython"}
    if required.marker and not required.marker.evaluate(machine):
        return None
    versions = ",".join(sorted(str(specifier) for specifier in required.specifier))
    return f"{conda_name(required.name)} {versions}".strip()


def _platform(filename: str) -> str | None:
    """The platform tag of a wheel, or None for one that runs anywhere."""
    tag = filename.removesuffix(".whl").rpartition("-")[2]
    return None if tag == "any" else tag


def _fill_program(made: SeedPackage, contents: dict[str, PackedFile], platform: str) -> None:
    made.depends = needs_glibc(platform)
    prefix, *target = PROGRAMS[made.name]
    prefix = prefix.format(version=made.version)
    for name, entry in contents.items():
        if name.startswith(prefix):
            path = "".join(target) + name.removeprefix(prefix)
            made.files[path] = PackedFile(entry.data, executable=path.startswith("bin/"))
    if not made.files:
        raise SeedError(f"the wheel of {made.name} {made.version} has nothing in {prefix}", "pin another version")


def _fill_python(
    made: SeedPackage,
    contents: dict[str, PackedFile],
    info: str,
    metadata: Message,
    platform: str | None,
    python: tuple[int, int],
) -> None:
    folder = f"lib/python{python[0]}.{python[1]}/site-packages" if platform else "site-packages"
    scripts = "bin" if platform else "python-scripts"
    data = info.replace(".dist-info", ".data")
    places = {"purelib": folder, "platlib": folder, "scripts": scripts, "data": "."}
    for name, entry in contents.items():
        if name.startswith(f"{data}/"):
            kind, _, path = name.removeprefix(f"{data}/").partition("/")
            if kind not in places:
                raise SeedError(f"{made.name} has files of the unknown kind {kind!r}", "pin another version in pins.toml")
            target = f"{places[kind]}/{path}".removeprefix("./")
            made.files[target] = _script(entry) if kind == "scripts" else entry
        else:
            made.files[f"{folder}/{name}"] = entry
    made.files[f"{folder}/{info}/INSTALLER"] = PackedFile(b"conda\n")

    commands = _entry_points(contents, info)
    made.depends = requirements(metadata, python)
    if platform:
        low, high = f"{python[0]}.{python[1]}", f"{python[0]}.{python[1] + 1}"
        abi = f"cp{python[0]}{python[1]}"
        made.build = (f"py{python[0]}{python[1]}h", "_0")
        made.depends += [f"python >={low},<{high}.0a0", f"python_abi {low}.* *_{abi}", *needs_glibc(platform)]
        for command in commands:
            program, launcher = _launcher(command)
            made.files[f"bin/{program}"] = PackedFile(launcher, executable=True, relocate=True)
    else:
        made.build = ("pyh", "_0")
        made.subdir, made.noarch, made.entry_points = "noarch", "python", commands
        made.depends.insert(0, f"python {metadata['Requires-Python'] or ''}".strip().replace(", ", ","))


def needs_glibc(filename: str) -> list[str]:
    """The glibc that a wheel's name asks for, as conda specs: one or none.

    >>> needs_glibc("a-1-py3-none-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl")
    ['__glibc >=2.27,<3.0.a0']
    """
    # a wheel may name several tags: all of them are promises, the lowest is enough
    found = [(int(major), int(minor)) for major, minor in re.findall(r"manylinux_(\d+)_(\d+)_", filename)]
    return [f"__glibc >={'.'.join(map(str, min(found)))},<3.0.a0"] if found else []


def _script(entry: PackedFile) -> PackedFile:
    data = entry.data or b""
    first, newline, rest = data.partition(b"\n")
    if first.startswith(b"#!python"):
        return PackedFile(f"#!{PLACEHOLDER}/bin/python".encode() + newline + rest, executable=True, relocate=True)
    return PackedFile(data, executable=True)


def _launcher(command: str) -> tuple[str, bytes]:
    name, _, target = (part.strip() for part in command.partition("="))
    module, _, function = target.partition(":")
    text = LAUNCHER.format(prefix=PLACEHOLDER, module=module, first=function.split(".")[0], function=function)
    return name, text.encode()


class _CommandParser(configparser.ConfigParser):
    """Names of commands keep their case."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def _entry_points(contents: dict[str, PackedFile], info: str) -> list[str]:
    entry = contents.get(f"{info}/entry_points.txt")
    if entry is None:
        return []
    parser = _CommandParser(delimiters=("=",), interpolation=None)
    parser.read_string(_text(entry))
    commands = parser["console_scripts"].items() if parser.has_section("console_scripts") else ()
    # an extra in brackets says what else to install, not what to call
    return sorted(f"{name} = {target.split('[')[0].strip()}" for name, target in commands)


def _licences(contents: dict[str, PackedFile], info: str) -> dict[str, bytes]:
    found = {}
    for name, entry in contents.items():
        folder, _, rest = name.partition("/")
        if folder == info and (rest.startswith("licenses/") or rest.split(".")[0].upper() in ("LICENSE", "LICENCE", "COPYING")):
            found[rest.removeprefix("licenses/")] = entry.data or b""
    return found


def _classified_license(metadata: Message) -> str:
    classifiers = [line for line in metadata.get_all("Classifier", []) if line.startswith("License ::")]
    if classifiers:
        return classifiers[0].rpartition(" :: ")[2]
    first = (metadata["License"] or "").strip().split("\n")[0]
    return first if len(first) < 80 else ""


def _text(entry: PackedFile) -> str:
    return (entry.data or b"").decode("utf-8")

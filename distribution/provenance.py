"""What a package was made from: ``provenance.json`` and a CycloneDX bill of materials, put inside the package.

Everything in both follows from the inputs, so that the same inputs give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import uuid
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import patches
from .errors import PinError, ProvenanceError
from .files import REPOSITORY, load_json, read_regular, staging_folder
from .pin import Pin

PACKAGES = ("libllama", "libggml-cuda", "llama.cpp", "llama-cpp-python")
VENDOR = REPOSITORY / "vendor" / "llama.cpp"
SETTINGS = "settings.json"
"""Written into the build tree by CMakeLists.txt: compiler, flags, options."""

_LARGEST_SOURCE = 16 << 20
PUBLIC_DOMAIN = "LicenseRef-Public-Domain"
CCCL_LICENSE = "Apache-2.0 WITH LLVM-exception AND BSL-1.0 AND BSD-3-Clause"


@dataclass(frozen=True)
class BundledCode:
    """Code of others that llama.cpp carries inside.

    Attributes:
        file: where it is in llama.cpp's source.
        packages: those of ours that it ends up in, by the symbols in their files.
        version: finds the version in ``file``, as one group or several; empty where the file names none, and the commit of
            llama.cpp has to tell.
    """

    name: str
    license: str
    file: str
    packages: tuple[str, ...]
    version: str = ""


# Of vendor/hash only sha256 is linked to libmtmd, which calls nothing else of it: no xxhash, no sha1.
VENDORED = (
    BundledCode("nlohmann-json", "MIT", "vendor/nlohmann/json.hpp", ("libllama",),
         r"NLOHMANN_JSON_VERSION_MAJOR (\d+).*NLOHMANN_JSON_VERSION_MINOR (\d+).*NLOHMANN_JSON_VERSION_PATCH (\d+)"),
    BundledCode("cpp-httplib", "MIT", "vendor/cpp-httplib/httplib.h", ("libllama", "llama.cpp"),
         r'CPPHTTPLIB_VERSION "([\d.]+)"'),
    BundledCode("miniaudio", "MIT-0", "vendor/miniaudio/miniaudio.h", ("libllama",),
         r"define MA_VERSION_MAJOR +(\d+)\s.*MA_VERSION_MINOR +(\d+)\s.*MA_VERSION_REVISION +(\d+)\s"),
    BundledCode("stb_image", "MIT", "vendor/stb/stb_image.h", ("libllama",), r"stb_image - v([\d.]+)"),
    BundledCode("sheredom-subprocess", "Unlicense", "vendor/sheredom/subprocess.h", ("libllama", "llama.cpp")),
    BundledCode("sha256", PUBLIC_DOMAIN, "vendor/hash/sha256/sha256.c", ("libllama",)),
    BundledCode("rotate-bits", "MIT", "vendor/hash/rotate-bits/rotate-bits.h", ("libllama",)),
    BundledCode("base64", "Unlicense", "common/base64.hpp", ("llama.cpp",)),
    BundledCode("llamafile-sgemm", "MIT", "ggml/src/ggml-cpu/llamafile/sgemm.cpp", ("libllama",)),
)  # fmt: skip


def write(package: str, output: Path, build_tree: Path | None = None) -> None:
    """Write ``provenance.json`` and ``sbom.cdx.json`` for a package into ``output``.

    Args:
        package: its name.
        output: a folder; made if it is not there.
        build_tree: CMake's, for packages that were compiled.

    Raises:
        ProvenanceError: the build tree does not say how it was configured, or a vendored part no longer names its version.
        PinError, PatchError: the pin or a patch cannot be read.
    """
    pin = Pin.load(VENDOR / "pin.toml")
    series = patches.load_series(VENDOR / "patches")
    settings = _settings(build_tree)
    document = {
        "package": package,
        "version": _version(),
        "llama_cpp_commit": pin.commit,
        "llama_cpp_tree": pin.tree,
        "llama_cpp_git": pin.git,
        "patches": [{"name": patch.name, "sha256": patch.sha256} for patch in series],
        "toolkit": settings.pop("cuda", None) or None,
        "compiler": settings.pop("compiler", None),
        "flags": settings,
        "sbom": "sbom.cdx.json",
    }
    texts = {
        "provenance.json": json.dumps(document, indent=2) + "\n",
        "sbom.cdx.json": bill_of_materials(package, pin, document) + "\n",
    }
    _write_together(output, texts)


def _write_together(folder: Path, texts: dict[str, str]) -> None:
    """Write both files or neither, as far as the disk has room."""
    with staging_folder(folder, ".provenance-") as staging:
        for name, text in texts.items():
            (staging / name).write_text(text, encoding="utf-8")
        for name in texts:
            os.replace(staging / name, folder / name)


def bill_of_materials(package: str, pin: Pin, document: dict[str, Any]) -> str:
    """The CycloneDX 1.6 document of a package, as JSON.

    Raises:
        ProvenanceError: a part that llama.cpp vendors does not name its version where it used to.
    """
    from cyclonedx.model import ExternalReference, ExternalReferenceType, Property, XsUri
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    try:
        from cyclonedx.contrib.license.factories import LicenseFactory
    except ImportError:  # before cyclonedx-python-lib 11
        from cyclonedx.factory.license import LicenseFactory

    def component(name: str, version: str, license_id: str, **more: Any) -> Component:
        return Component(
            type=more.pop("type", ComponentType.LIBRARY),
            name=name,
            version=version or None,
            bom_ref=f"{name}@{version}" if version else name,
            licenses=[LicenseFactory().make_from_string(license_id)],
            **more,
        )

    root = component(package, document["version"], "MIT")
    parts = []
    if package != "llama-cpp-python":
        # the Python package holds none of it
        parts.append(
            component(
                "llama.cpp",
                pin.commit,
                "MIT",
                external_references=[ExternalReference(type=ExternalReferenceType.VCS, url=XsUri(pin.git))],
                properties=[Property(name="patch", value=f"{p['name']} {p['sha256']}") for p in document["patches"]],
            )
        )
        parts += [component(part.name, _version_of(part), part.license) for part in VENDORED if package in part.packages]
    if document["toolkit"]:
        parts.append(component("cuda-nvcc", document["toolkit"]["version"], "LicenseRef-NVIDIA-End-User-License-Agreement"))
        parts.append(component("cccl", document["toolkit"].get("cccl", ""), CCCL_LICENSE))
    bom = Bom(components=parts)
    bom.metadata.component = root
    bom.register_dependency(root, parts)
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, f"{pin.git}#{package}-{json.dumps(document, sort_keys=True)}")
    bom.metadata.timestamp = datetime.fromisoformat(pin.date).replace(tzinfo=timezone.utc)
    return JsonV1Dot6(bom).output_as_string(indent=2)


def _version_of(part: BundledCode) -> str:
    if not part.version:
        return ""
    file = VENDOR / "source" / part.file
    try:
        text = read_regular(file, _LARGEST_SOURCE).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ProvenanceError(f"{file} cannot be read: {reason}", "python -m distribution vendor") from None
    if not (found := re.search(part.version, text, re.DOTALL)):
        raise ProvenanceError(f"{file} does not say its version where it used to", "adapt VENDORED in provenance.py")
    return ".".join(found.groups())


def _settings(build_tree: Path | None) -> dict[str, Any]:
    """What the build tree says of itself: ``compiler`` and ``cuda``, which may be missing, and others."""
    if build_tree is None:
        return {}
    file = build_tree / SETTINGS
    try:
        settings = load_json(read_regular(file, _LARGEST_SOURCE))
        if not isinstance(settings, dict):
            raise ValueError("it is no mapping")
        if cuda := settings.get("cuda"):
            named = (cuda.get("version"), cuda.get("cccl", "")) if isinstance(cuda, dict) else (None,)
            if not all(isinstance(one, str) for one in named):
                raise ValueError("`cuda` does not say its version")
        return settings
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ProvenanceError(f"{file} cannot be read: {reason}", "configure the build tree again") from None


def _version() -> str:
    """The project's, which stands in the package itself."""
    source = REPOSITORY / "llama_cpp" / "__init__.py"
    try:
        found = re.search(rb'^__version__ = "([\w.+-]+)"', read_regular(source, _LARGEST_SOURCE), re.MULTILINE)
        if found is None:
            raise ValueError("it has no __version__")
        return found[1].decode("ascii")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PinError(f"{source} does not say its version: {reason}", "git checkout -- llama_cpp/__init__.py") from None


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Set up ``python -m distribution provenance``."""
    parser.add_argument("--package", required=True, choices=PACKAGES)
    parser.add_argument("--output", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--build-tree", type=Path, help="CMake's, for a compiled package")
    parser.set_defaults(run=lambda options: write(options.package, options.output, options.build_tree))

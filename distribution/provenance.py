"""What a package was made from: ``provenance.json`` and a CycloneDX bill of materials, put inside the package.

Everything in both follows from the inputs, so that the same inputs give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import patches
from .errors import PinError, ProvenanceError
from .files import REPOSITORY, load_toml
from .pin import Pin

VENDOR = REPOSITORY / "vendor" / "llama.cpp"
SETTINGS = "settings.json"
"""Written into the build tree by CMakeLists.txt: compiler, flags, options."""

# What llama.cpp carries inside: name, licence, and the packages of ours it ends up in. Its commit says which version.
VENDORED = (
    ("nlohmann-json", "MIT", {"libllama", "llama.cpp"}),
    ("cpp-httplib", "MIT", {"libllama", "llama.cpp"}),
    ("miniaudio", "MIT-0", {"libllama"}),
    ("stb_image", "MIT", {"libllama"}),
    ("sheredom-subprocess", "Unlicense", {"libllama", "llama.cpp"}),
    ("xxhash", "BSD-2-Clause", {"llama.cpp"}),
    ("llamafile-sgemm", "MIT", {"libllama"}),
)


def write(package: str, output: Path, build_tree: Path | None = None) -> None:
    """Write ``provenance.json`` and ``sbom.cdx.json`` for a package into ``output``.

    Args:
        package: its name.
        output: a folder; made if it is not there.
        build_tree: CMake's, for packages that were compiled.

    Raises:
        ProvenanceError: the build tree does not say how it was configured.
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
    output.mkdir(parents=True, exist_ok=True)
    (output / "provenance.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (output / "sbom.cdx.json").write_text(bill_of_materials(package, pin, document) + "\n", encoding="utf-8")


def bill_of_materials(package: str, pin: Pin, document: dict[str, Any]) -> str:
    """The CycloneDX 1.6 document of a package, as JSON."""
    from cyclonedx.model import ExternalReference, ExternalReferenceType, Property, XsUri
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    def component(name: str, version: str, license_id: str, **more: Any) -> Component:
        from cyclonedx.factory.license import LicenseFactory

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
        parts += [component(name, "", spdx) for name, spdx, inside in VENDORED if package in inside]
    if document["toolkit"]:
        parts.append(component("cuda-nvcc", document["toolkit"]["version"], "LicenseRef-NVIDIA-End-User-License-Agreement"))
        parts.append(component("cccl", document["toolkit"].get("cccl", ""), "Apache-2.0 WITH LLVM-exception"))
    bom = Bom(components=parts)
    bom.metadata.component = root
    bom.register_dependency(root, parts)
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, f"{pin.git}#{package}-{json.dumps(document, sort_keys=True)}")
    bom.metadata.timestamp = datetime.fromisoformat(pin.date).replace(tzinfo=timezone.utc)
    return JsonV1Dot6(bom).output_as_string(indent=2)


def _settings(build_tree: Path | None) -> dict[str, Any]:
    if build_tree is None:
        return {}
    try:
        return json.loads((build_tree / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProvenanceError(f"{build_tree / SETTINGS}: {error}", "configure the build tree again") from None


def _version() -> str:
    data = load_toml(REPOSITORY / "pyproject.toml")
    try:
        return data["project"]["version"]
    except KeyError:
        raise PinError("pyproject.toml has no version", "git checkout -- pyproject.toml") from None


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Set up ``python -m distribution provenance``."""
    parser.add_argument("--package", required=True)
    parser.add_argument("--output", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--build-tree", type=Path, help="CMake's, for a compiled package")
    parser.set_defaults(run=lambda options: write(options.package, options.output, options.build_tree))

"""The pinned CUDA toolkit as conda packages, laid out as conda-forge's: nvcc in one environment, libraries in another.

Real files lie in ``targets/x86_64-linux/``; ``lib/`` holds links to the libraries.
"""

from __future__ import annotations

import re
from pathlib import Path

from .. import toolkit
from ..errors import SeedError
from .activation_scripts import scripts
from .compilers import Compiler
from .conda_package import PackedFile, SeedPackage, files_in
from .wheels import needs_glibc

TARGET = "targets/x86_64-linux"
LICENCE = "LicenseRef-NVIDIA-End-User-License-Agreement"
HOME = "https://developer.nvidia.com/cuda-toolkit"
LEVEL = 3

# package: the wheel that its version is of, and what it holds of the toolkit
CONTENTS = {
    "cuda-nvcc_linux-64": (
        "nvidia-cuda-nvcc",
        r"bin/(?!cuobjdump|nvdisasm|nvcc\.profile).*|nvvm/.*|include/(crt/.*|fatbinary_section\.h|nvvm\.h)",
    ),
    "cuda-cccl": ("nvidia-cuda-cccl", r"include/cccl/.*|cccl/lib/.*"),
    "cuda-cudart": ("nvidia-cuda-runtime", r"lib/libcudart\.so\.\d+"),
    "cuda-cudart-dev": (
        "nvidia-cuda-runtime",
        r"include/(?!crt/|cccl/|fatbinary_section|nvvm\.h|cublas|nvblas).*|lib/libcudart\.so|lib/libcuda\w+\.a",
    ),
    "cuda-driver-dev": ("nvidia-cuda-runtime", r"lib/stubs/libcuda\.so"),
    "libcublas": ("nvidia-cublas", r"lib/lib(cublas|cublasLt|nvblas)\.so\.\d+"),
    "libcublas-dev": ("nvidia-cublas", r"include/(cublas|nvblas).*|lib/lib(cublas|cublasLt|nvblas)\.so"),
    "cuda-cuobjdump": ("nvidia-cuda-cuobjdump", r"bin/cuobjdump"),
    "cuda-nvdisasm": ("nvidia-cuda-nvdisasm", r"bin/nvdisasm"),
}
# in the toolkit, but in no package: the profile is written anew; libnvvm is for programs that compile at run time
LEFT_OUT = re.compile(
    r"bin/nvcc\.profile|lib/libnvvm\.so.*|lib/stubs/libcuda_stub\.c|lib64|cccl/LICENSE|licenses/.*|manifest\.json"
)

PROFILE = f"""\
TOP                 = $(_HERE_)/..
CICC_PATH           = $(TOP)/nvvm/bin
NVVMIR_LIBRARY_DIR  = $(TOP)/nvvm/libdevice
PATH               += $(CICC_PATH):$(_HERE_):
INCLUDES           += "-I$(TOP)/{TARGET}/include" $(_SPACE_)
SYSTEM_INCLUDES    += "-isystem" "$(TOP)/{TARGET}/include/cccl" $(_SPACE_)
LIBRARIES          =+ $(_SPACE_) "-L$(TOP)/{TARGET}/lib/stubs" "-L$(TOP)/{TARGET}/lib"
CUDAFE_FLAGS       +=
PTXAS_FLAGS        +=
"""

# nvcc sees its own environment by its profile; in a build the libraries are in another one, which is put behind
BEFORE = f"""\
_seed_include=""
_seed_link=""
_seed_toolkit="$CONDA_PREFIX/{TARGET}"
if [ "${{CONDA_BUILD:-0}}" = "1" ]; then
    _seed_include="-I$PREFIX/{TARGET}/include"
    _seed_link="-L$PREFIX/{TARGET}/lib -L$PREFIX/{TARGET}/lib/stubs"
    _seed_toolkit="$PREFIX;$PREFIX/{TARGET};$BUILD_PREFIX/{TARGET}"
fi
"""
SETTINGS = {
    "NVCC_PREPEND_FLAGS": '"${NVCC_PREPEND_FLAGS:-} -ccbin=${CXX:-g++}"',
    "NVCC_APPEND_FLAGS": '"${NVCC_APPEND_FLAGS:-} $_seed_include $_seed_link"',
    "CXXFLAGS": '"${CXXFLAGS:-} $_seed_include"',
    "CFLAGS": '"${CFLAGS:-} $_seed_include"',
    "LDFLAGS": '"${LDFLAGS:-} $_seed_link"',
    "CMAKE_ARGS": '"${CMAKE_ARGS:-} -DCMAKE_FIND_ROOT_PATH=$_seed_toolkit"',
}


def packages(tree: Path, pins: toolkit.Pins, compiler: Compiler) -> list[SeedPackage]:
    """The packages of the toolkit assembled in ``tree``.

    Raises:
        SeedError: it has a file that belongs to no package, or to several.
    """
    wheel_of = {wheel.name: wheel for wheel in pins.wheels}
    release = ".".join(pins.cuda.split(".")[:2])
    minor = int(release.partition(".")[2])
    major = release.partition(".")[0]
    same = f"cuda-version >={release},<{major}.{minor + 1}.0a0"
    licences = {file.parent.name + ".txt": file.read_bytes() for file in sorted(tree.glob("licenses/*/License.txt"))}
    # Apache, Boost and BSD, for the headers whose code ends up in what is compiled
    licences["nvidia_cuda_cccl-LICENSE.txt"] = (tree / "cccl" / "LICENSE").read_bytes()
    made = {
        name: SeedPackage(
            name, wheel_of[wheel].version, depends=[same, *needs_glibc(wheel_of[wheel].filename)],
            license=LICENCE, home=HOME, level=LEVEL,
            summary=f"{name} of CUDA {pins.cuda}, from NVIDIA's wheels", extra={"cuda": pins.cuda, "wheel": wheel},
            licences={file: text for file, text in licences.items() if file.startswith(_licence_of(wheel))},
        )
        for name, (wheel, _) in CONTENTS.items()
    }  # fmt: skip
    for path, entry in files_in(tree).items():
        for name in _owners(path):
            made[name].files.update(_place(path, entry))
    _connect(made, major, release, compiler)
    return [_cuda_version(release, major), *made.values()]


def _licence_of(wheel: str) -> str:
    return wheel.replace("-", "_") + "-"


def _owners(path: str) -> list[str]:
    owners = [name for name, (_, pattern) in CONTENTS.items() if re.fullmatch(pattern, path)]
    if len(owners) != (0 if LEFT_OUT.fullmatch(path) else 1):
        raise SeedError(f"the toolkit's file {path} belongs to {owners or 'no package'}", "adapt distribution/seed/cuda.py")
    return owners


def _place(path: str, entry: PackedFile) -> dict[str, PackedFile]:
    """Where a file of the toolkit goes: libraries get a second name in ``lib/``."""
    if path.startswith(("bin/", "nvvm/")):
        return {path: entry}
    target = f"{TARGET}/{path.removeprefix('cccl/')}"
    placed = {target: entry}
    if re.fullmatch(r"lib/[^/]+\.so(\.\d+)?", path):
        placed[path] = PackedFile(link=f"../{target}")
    elif path.startswith("lib/stubs/"):
        placed[path] = PackedFile(link=f"../../{target}")
    return placed


def _connect(made: dict[str, SeedPackage], major: str, release: str, compiler: Compiler) -> None:
    nvcc, cudart, cublas = made["cuda-nvcc_linux-64"], made["cuda-cudart"], made["libcublas"]
    nvcc.files["bin/nvcc.profile"] = PackedFile(PROFILE.encode())
    # its name starts like this so that it runs after the C++ compiler's, whose variables it extends
    nvcc.files.update(scripts("~cuda-nvcc_linux-64", SETTINGS, BEFORE))
    nvcc.depends += ["cuda-cccl", "cuda-cudart-dev", "cuda-driver-dev", f"sysroot_linux-64 {compiler.glibc}.*"]
    nvcc.run_exports = {"strong": [f"cuda-version >={release},<{int(major) + 1}"]}
    for library in (cudart, cublas):
        library.depends += ["libgcc", "libstdcxx"]
        dev = made[f"{library.name}-dev"]
        dev.depends.append(f"{library.name} {library.version}.*")
        following = int(library.version.partition(".")[0]) + 1
        dev.run_exports = {"weak": [f"{library.name} >={library.version},<{following}.0a0"]}
    made["cuda-cudart-dev"].depends.append("cuda-cccl")
    made["cuda-cuobjdump"].depends.append("cuda-nvdisasm")


def _cuda_version(release: str, major: str) -> SeedPackage:
    return SeedPackage(
        "cuda-version",
        release,
        build=("h", "_0"),
        subdir="noarch",
        noarch="generic",
        constrains=[f"__cuda >={major}", f"cudatoolkit {release}|{release}.*"],
        license=LICENCE,
        summary="Says which version of CUDA an environment is for",
        home=HOME,
    )

"""In which folders the engine can be built: names are quoted everywhere, and what cannot be quoted is refused at the start."""

from __future__ import annotations

import os
import random
import re
import shutil
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

from distribution.install import InstallError, check_folders

TOOLS = Path(sys.executable).parent
REFUSED = '"#$;|<>*?`[]\n\\'
HARD = "my projects/llämä, it's (日本) & 50% + {a}=b@c~^!"

# what the real project does with a folder's name, with two files to compile
PROJECT = """
cmake_minimum_required(VERSION 3.21...3.31)
include("FOLDERS")
refuse_unusable_name("${CMAKE_CURRENT_SOURCE_DIR}")
project(probe LANGUAGES C CXX)
foreach(folder "${PROJECT_SOURCE_DIR}" "..")
  quote_flag("-ffile-prefix-map=${folder}=plain" flag)
  string(APPEND CMAKE_C_FLAGS " ${flag}")
  string(APPEND CMAKE_CXX_FLAGS " ${flag}")
endforeach()
file(GLOB sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/*.c" "${PROJECT_SOURCE_DIR}/*.cpp")
add_library(probe SHARED ${sources})
target_include_directories(probe PRIVATE include)
add_custom_target(all_of_it ALL DEPENDS probe)
install(TARGETS probe LIBRARY DESTINATION lib)
"""


def cmake(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("CUDA", "CMAKE_", "GGML_", "LLAMA_"))
    }
    environment |= {"PATH": f"{TOOLS}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8", **variables}
    command = [str(word) for word in (TOOLS / "cmake", *arguments)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    return re.sub(r"\s+", " ", done.stderr)


def refused_by_install(folder: Path) -> bool:
    try:
        check_folders(folder)
    except InstallError:
        return True
    return False


def build_probe(folder: Path) -> None:
    """Builds and installs the small project there; nothing of the folder's name may be in the library."""
    (folder / "include").mkdir(parents=True)
    (folder / "CMakeLists.txt").write_text(PROJECT.replace("FOLDERS", str(ROOT / "native/cmake/folders.cmake")))
    (folder / "include/here.h").write_text("static const char * here(void) { return __FILE__; }\n")
    (folder / "c.c").write_text('#include "here.h"\nconst char * c(void) { return here(); }\n')
    (folder / "cc.cpp").write_text('#include "here.h"\nconst char * cc() { return here() + sizeof __FILE__; }\n')
    tree = folder / "build"
    for arguments in (
        ("-G", "Ninja", "-S", folder, "-B", tree),
        ("--build", tree),
        ("--install", tree, "--prefix", folder / "out"),
    ):
        done = cmake(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    library = (folder / "out/lib/libprobe.so").read_bytes()
    assert b"plain/include/here.h" in library and os.fsencode(folder) not in library
    os.utime(folder / "include/here.h")
    assert "c.c.o" in cmake("--build", tree, "--verbose").stdout, "ninja does not know that the header is read"


def names(count: int, seed: int) -> list[str]:
    """Folder names of everything that a file system takes, half of them without what must be refused."""
    generator = random.Random(seed)
    letters = "aé日\u00a0\u202e😀" + string.ascii_letters + string.digits
    allowed = [character for character in string.punctuation + " \t" if character not in REFUSED + "/:"]
    everything = [*allowed, *REFUSED, "\x7f", "\x01"]
    return [
        "".join(generator.choice(generator.choice((letters, kind))) for _ in range(12)).strip(".")
        for kind in ((everything if number % 2 else allowed) for number in range(count))
    ]


def walk(tmp_path: Path, several: list[str]) -> None:
    for name in several:
        folder = tmp_path / name
        if not any(character in name for character in REFUSED):
            build_probe(folder)
            assert not refused_by_install(folder), name
            shutil.rmtree(folder)
            continue
        assert refused_by_install(folder), name
        if "\n" not in name and "\\" not in name:  # CMake says itself that there is no such folder
            folder.mkdir()
            (folder / "CMakeLists.txt").write_text(PROJECT.replace("FOLDERS", str(ROOT / "native/cmake/folders.cmake")))
            done = cmake("-G", "Ninja", "-S", folder, "-B", tmp_path / "tree")
            assert done.returncode != 0 and "cannot be built in" in one_line(done), name
            assert "compiler" not in done.stdout, "refused before anything is tried"


def test_folders_of_every_kind(tmp_path: Path) -> None:
    walk(tmp_path, ["plain", "a b", *names(6, seed=14)])


@pytest.mark.slow
@pytest.mark.generator
def test_many_folders(tmp_path: Path) -> None:
    walk(tmp_path, names(150, seed=random.randrange(1 << 30)))


def test_the_build_and_what_begins_it_refuse_the_same(tmp_path: Path) -> None:
    script = tmp_path / "check.cmake"
    script.write_text(f'include("{ROOT}/native/cmake/folders.cmake")\nrefuse_unusable_name("$ENV{{FOLDER}}")\n')
    for character in string.punctuation + " \n":
        folder = f"/a{character}b"
        refused = cmake("-P", script, FOLDER=folder).returncode != 0
        assert refused == (character in REFUSED), character
        # the colon separates folders in PATH, so that there can be no virtual environment
        assert refused_by_install(Path(folder)) == (refused or character == ":"), character


def test_make_takes_less_than_ninja(tmp_path: Path) -> None:
    script = tmp_path / "check.cmake"
    script.write_text(f'include("{ROOT}/native/cmake/folders.cmake")\nrefuse_unusable_name("$ENV{{FOLDER}}")\n')
    assert cmake("-P", script, FOLDER="/a:b").returncode == 0
    assert cmake("-DCMAKE_GENERATOR=Unix Makefiles", "-P", script, FOLDER="/a:b").returncode != 0


def test_a_folder_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="UTF-8"):
        check_folders(tmp_path / "a\udcffb")


def test_plain_flags_stay_as_they_are(tmp_path: Path) -> None:
    """Quotes that nothing needs would have every object compiled again."""
    script = tmp_path / "quote.cmake"
    script.write_text(
        f'include("{ROOT}/native/cmake/folders.cmake")\n'
        'quote_flag("$ENV{FLAG}" flag)\nquote_flag_for_nvcc("$ENV{FLAG}" cuda_flag)\nmessage("${flag} ${cuda_flag}")\n'
    )
    plain = "-ffile-prefix-map=/work/llama_1.0+x-y=llama.cpp"
    assert cmake("-P", script, FLAG=plain).stderr.strip() == f"{plain} -Xcompiler={plain}"
    assert cmake("-P", script, FLAG="-f=it's").stderr.strip() == r"""'-f=it'\''s' '-Xcompiler="-f=it'\''s"'"""


@pytest.fixture
def checkout(tmp_path: Path, llama_source: Path) -> Path:
    """What a build needs of this checkout, in a folder with a hard name, the engine's source inside."""
    folder = tmp_path / HARD
    folder.mkdir(parents=True)
    for name in ("CMakeLists.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("native", "distribution", "llama_cpp", "vendor"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("source", ".source-*", "lib", "__pycache__"))

    def link(source: str, target: str) -> str:
        try:
            os.link(source, target)
            return target
        except OSError:
            return shutil.copy2(source, target)

    shutil.copytree(llama_source, folder / "vendor/llama.cpp/source", copy_function=link, symlinks=True)
    return folder


def compile_objects(checkout: Path, *objects: str) -> list[bytes]:
    tree = checkout / "build" / "tree"
    done = subprocess.run([TOOLS / "ninja", "-C", tree, *objects], capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-3000:]
    return [(tree / name).read_bytes() for name in objects]


def test_the_engine_in_a_folder_with_a_hard_name(checkout: Path) -> None:
    source = {"LLAMA_CPP_SOURCE_DIR": str(checkout / "vendor/llama.cpp/source")}
    done = cmake("-G", "Ninja", "-S", checkout, "-B", checkout / "build" / "tree", **source, PYTHONSAFEPATH="1")
    assert done.returncode == 0, done.stderr[-3000:]
    ggml = "llama.cpp/ggml/src/CMakeFiles/ggml-base.dir"
    for data in compile_objects(
        checkout, f"{ggml}/ggml-threading.cpp.o", f"{ggml}/ggml-alloc.c.o", "native/CMakeFiles/llama-common-c.dir/support.cpp.o"
    ):
        assert os.fsencode(checkout) not in data
    # how packages say they were made: no path
    settings = (checkout / "build/tree/settings.json").read_text()
    assert "prefix-map" not in settings and "projects" not in settings


@pytest.mark.toolkit
def test_cuda_in_a_folder_with_a_hard_name(checkout: Path) -> None:
    toolkit = subprocess.run(
        [sys.executable, "-m", "distribution", "toolkit", "--print-path"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    source = {"LLAMA_CPP_SOURCE_DIR": str(checkout / "vendor/llama.cpp/source")}
    wanted = {"CMAKE_CUDA_ARCHITECTURES": "120", "CUDA_PATH": toolkit}
    done = cmake("-G", "Ninja", "-S", checkout, "-B", checkout / "build" / "tree", **source, **wanted)
    assert done.returncode == 0, done.stderr[-3000:]
    (data,) = compile_objects(checkout, "llama.cpp/ggml/src/ggml-cuda/CMakeFiles/ggml-cuda.dir/scale.cu.o")
    assert os.fsencode(checkout) not in data


def test_a_compiler_cache_that_cannot_be_written_is_left_alone(root: Path, tmp_path: Path) -> None:
    """It would fail, and every compile with it: where HOME is read-only, or is none."""
    if not (shutil.which("ccache") or shutil.which("ccache", path=str(TOOLS))):
        pytest.skip("needs ccache")
    done = cmake("-G", "Ninja", "-S", root, "-B", tmp_path / "tree", CCACHE_DIR="/proc/nothing")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "without ccache, which cannot be used" in done.stdout
    assert "ccache" not in (tmp_path / "tree/build.ninja").read_text().lower().replace("ccache_probe", "")


@pytest.mark.parametrize("name", ["CMakeLists.txt", "native/cmake/cuda.cmake", "vendor/llama.cpp/source/ggml/CMakeLists.txt"])
def test_a_file_from_the_future_is_named(checkout: Path, name: str) -> None:
    """The clock was ahead when the checkout was made, or is behind now: ninja would configure a hundred times."""
    file = checkout / name
    shutil.copy(file, checkout / "copy")
    os.replace(checkout / "copy", file)  # the engine's files are links
    os.utime(file, (time.time() + 7200, time.time() + 7200))
    source = {"LLAMA_CPP_SOURCE_DIR": str(checkout / "vendor/llama.cpp/source")}
    done = cmake("-G", "Ninja", "-S", checkout, "-B", checkout / "build" / "tree", **source)
    assert done.returncode != 0 and f"{name} is newer than this machine's clock" in one_line(done), done.stderr


def test_the_day_that_a_build_engine_stamps_with_is_not_taken_for_today(root: Path, tmp_path: Path) -> None:
    """CMake's clock says SOURCE_DATE_EPOCH where that is set. conda-build sets it, and what is fetched after that is newer."""
    done = cmake("-G", "Ninja", "-S", root, "-B", tmp_path / "tree", SOURCE_DATE_EPOCH="1000000000")
    assert done.returncode == 0, done.stderr[-3000:]

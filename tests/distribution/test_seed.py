"""How a seed's packages are made. What comes out is used in test_seed_environment.py and test_seed_build.py."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("rattler")

from distribution import __main__ as command_line
from distribution import toolkit
from distribution.errors import (
    DiskSpaceError,
    PinError,
    SeedError,
    ToolNotFoundError,
)
from distribution.seed import activation_scripts, channel, compilers, conda_package, cuda, pins, wheels
from distribution.seed.conda_package import PLACEHOLDER, PackedFile, SeedPackage


def make_wheel(folder: Path, members: dict[str, str], tag: str = "py3-none-any", name: str = "Some.Thing") -> Path:
    info = "some_thing-1.0.dist-info"
    metadata = (
        f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\nLicense-Expression: MIT\nRequires-Python: >=3.9, !=3.9.7\n"
        "Requires-Dist: typing-extensions>=4; python_version < '3.99'\nRequires-Dist: tomli; python_version < '3.0'\n"
        "Requires-Dist: colorama; platform_system == 'Windows'\nRequires-Dist: extra-one; extra == 'more'\n"
    )
    members = {f"{info}/METADATA": metadata, f"{info}/licenses/LICENSE": "the licence", **members}
    wheel = folder / f"some_thing-1.0-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in members.items():
            archive.writestr(path, text)
    return wheel


COMMANDS = "[console_scripts]\nThing = some_thing.cli:main\nother = some_thing:App.run [more]\n\n[other]\nx = y\n"


def test_pure_wheel(tmp_path):
    members = {
        "some_thing/__init__.py": "",
        "some_thing-1.0.data/scripts/old": "#!python\nprint(1)\n",
        "some_thing-1.0.data/data/share/doc.txt": "text",
        "some_thing-1.0.dist-info/entry_points.txt": COMMANDS,
    }
    made = wheels.package(make_wheel(tmp_path, members), (3, 11))
    assert (made.name, made.version, made.subdir, made.noarch) == ("some-thing", "1.0", "noarch", "python")
    assert made.depends == ["python >=3.9,!=3.9.7", "typing_extensions >=4"]
    assert made.entry_points == ["Thing = some_thing.cli:main", "other = some_thing:App.run"]
    assert {"site-packages/some_thing/__init__.py", "share/doc.txt"} <= set(made.files)
    script = made.files["python-scripts/old"]
    assert script.relocate and script.executable and script.data == f"#!{PLACEHOLDER}/bin/python\nprint(1)\n".encode()
    assert made.licences == {"LICENSE": b"the licence"} and made.license == "MIT"


def test_wheel_of_one_python(tmp_path):
    members = {"some_thing/fast.so": "elf", "some_thing-1.0.dist-info/entry_points.txt": COMMANDS}
    wheel = make_wheel(tmp_path, members, "cp312-cp312-manylinux_2_28_x86_64.manylinux_2_17_x86_64")
    made = wheels.package(wheel, (3, 12))
    assert (made.subdir, made.noarch, made.entry_points) == ("linux-64", None, [])
    assert made.depends[-3:] == ["python >=3.12,<3.13.0a0", "python_abi 3.12.* *_cp312", "__glibc >=2.17,<3.0.a0"]
    assert "lib/python3.12/site-packages/some_thing/fast.so" in made.files
    launcher = made.files["bin/other"]
    assert launcher.relocate and b"from some_thing import App\n" in launcher.data and b"App.run()" in launcher.data


def test_wheel_of_a_program(tmp_path):
    wheel = make_wheel(tmp_path, {"ninja-1.0.data/scripts/ninja": "elf"}, "py3-none-manylinux_2_5_x86_64", "ninja")
    made = wheels.package(wheel)
    assert made.files == {"bin/ninja": PackedFile(b"elf", executable=True)} and made.depends == ["__glibc >=2.5,<3.0.a0"]
    with pytest.raises(SeedError, match="nothing in"):
        wheels.package(make_wheel(tmp_path, {"elsewhere": ""}, name="cmake"))


@pytest.mark.parametrize("path", ["../../escaped", "/escaped", "a/../../../escaped"])
def test_wheel_that_writes_elsewhere(tmp_path, path):
    made = wheels.package(make_wheel(tmp_path, {f"some_thing-1.0.data/data/{path}": "x"}))
    with pytest.raises(SeedError, match="path"):
        conda_package.write(made, tmp_path / "channel")
    assert not list(tmp_path.rglob("*.conda"))


def test_wheel_that_is_none(tmp_path):
    with zipfile.ZipFile(tmp_path / "some_thing-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("file", "")
    with pytest.raises(SeedError, match="no metadata"):
        wheels.package(tmp_path / "some_thing-1.0-py3-none-any.whl")
    with pytest.raises(SeedError, match="unknown kind"):
        wheels.package(make_wheel(tmp_path, {"some_thing-1.0.data/odd/x": ""}))
    with pytest.raises(SeedError, match="cannot read the requirement"):
        wheels.conda_requirement("what is this?")


def test_same_content_same_bytes(tmp_path):
    def write(folder: str, data: bytes) -> Path:
        files = {"lib/b": PackedFile(data), "lib/a": PackedFile(link="b"), "bin/x": PackedFile(b"#!", executable=True)}
        return conda_package.write(SeedPackage("some", "1.0", files=files, run_exports={"weak": ["some"]}), tmp_path / folder)

    first, second, other = write("1", b"content"), write("2", b"content"), write("3", b"changed")
    assert first.name == second.name != other.name
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert [info.compress_type for info in archive.infolist()] == [zipfile.ZIP_STORED] * 3


def test_activation_is_undone(tmp_path):
    first = activation_scripts.scripts("one-64", {"SEEDED": '"1 $before"', "FRESH": "new"}, 'before="b"\n')
    second = activation_scripts.scripts("~two", {"SEEDED": '"${SEEDED:-} 2"'})
    for path, entry in {**first, **second}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(entry.data)
    on, off = "etc/conda/activate.d", "etc/conda/deactivate.d"
    script = f"""
        set -eu
        . {on}/one-64.sh; . {on}/~two.sh; echo "[$SEEDED] [$FRESH]"
        . {off}/~two.sh; echo "[$SEEDED]"; . {off}/one-64.sh; echo "[${{SEEDED-unset}}] [${{FRESH-unset}}]"
        env | grep -c CONDA_BACKUP || true
    """
    for kept, environment in {"[old 'value \"]": {"SEEDED": "old 'value \""}, "[unset]": {}}.items():
        run = subprocess.run(["bash", "-c", script], cwd=tmp_path, env={"PATH": "/usr/bin:/bin", **environment},
                             capture_output=True, text=True, check=True)  # fmt: skip
        assert run.stdout.splitlines() == ["[1 b 2] [new]", "[1 b]", f"{kept} [unset]", "0"]


def test_pins_fit_every_python():
    roots = {wheels.conda_name(name) for name in pins.ROOTS}
    for python in pins.PYTHONS:
        pinned = pins.load(python)
        assert roots <= {wheels.conda_name(wheel.name) for wheel in pinned}
        assert len({wheel.name for wheel in pinned}) == len(pinned), "one release each"
        abi = f"cp{python[0]}{python[1]}"
        tags = {wheel.filename.split("-")[-2] for wheel in pinned}
        assert tags == {"none", abi} and any(wheel.name == "numpy" and f"-{abi}-" in wheel.filename for wheel in pinned)
    assert {"tomli", "exceptiongroup"} <= {wheel.name for wheel in pins.load((3, 10))}
    assert all(len(wheel.sha256) == 64 for wheel in pins.load((3, 11)))


def test_python_without_pins(tmp_path):
    with pytest.raises(PinError, match=r"3\.9") as caught:
        pins.load((3, 9))
    assert "3.10, 3.11, 3.12, 3.13, 3.14" in caught.value.remedy
    (tmp_path / "pins.toml").write_text('[[wheel]]\nname = "x"\npython = ["3.11"]\n')
    with pytest.raises(PinError, match=r"missing key wheel\.filename"):
        pins.load((3, 11), tmp_path / "pins.toml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "-r"), ("version", "1 --index-url=x"), ("filename", "../x.whl"), ("filename", "x.tar.gz"), ("sha256", "ab"),
        ("python", "3.11"), ("python", [3]), ("python", ["latest"]), ("odd", "x"), ("sha256", 5),
    ],
)  # fmt: skip
def test_pins_that_cannot_be(tmp_path, key, value):
    """They become paths in the cache, and what pip is asked for."""
    wheel = {"name": "x", "version": "1", "filename": "x-1-py3-none-any.whl", "sha256": "0" * 64, "python": ["3.11"], key: value}
    # a value of JSON is one of TOML
    text = "".join(f"{name} = {json.dumps(one)}\n" for name, one in wheel.items())
    (tmp_path / "pins.toml").write_text(f"[[wheel]]\n{text}")
    with pytest.raises(PinError, match=key):
        pins.load((3, 12), tmp_path / "pins.toml")


def test_no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ToolNotFoundError, match="gcc") as caught:
        compilers.Compiler.of_system()
    assert "apt-get install g++" in caught.value.remedy


def test_other_compiler(tmp_path, monkeypatch):
    (tmp_path / "clang").write_text("#!/bin/sh\necho 99.0.0\n")
    (tmp_path / "clang").chmod(0o755)
    monkeypatch.setenv("CC", str(tmp_path / "clang"))
    with pytest.raises(SeedError, match=r"99\.0\.0"):
        compilers.Compiler.of_system()


def test_other_inputs_have_another_key(monkeypatch):
    machine = channel.Inputs.of_machine(with_cuda=False)
    assert machine.key == channel.Inputs.of_machine(with_cuda=False).key
    assert machine.key != channel.Inputs.of_machine(with_cuda=True).key
    fewer = channel.Inputs(machine.python, machine.compiler, machine.wheels[1:], None)
    assert fewer.key != machine.key


def test_folder_with_something_else_is_kept(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(SeedError, match="no seed channel"):
        channel.seed(cache=tmp_path / "cache", output=tmp_path)
    with pytest.raises(SeedError, match="no seed channel"):
        channel.variants(tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize("damage", [os.mkfifo, lambda file: file.write_text("[]"), lambda file: file.write_text("[" * 100_000)])
def test_a_record_that_is_none(tmp_path, damage):
    damage(tmp_path / channel.RECORD)
    with pytest.raises(SeedError, match="no seed channel"):
        channel.variants(tmp_path)
    assert "not made yet" in channel.status(cache=tmp_path / "cache", output=tmp_path)


def test_folders_made_for_nothing_are_gone(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(DiskSpaceError):
        patched.setattr(channel, "NEEDED", 1 << 60)
        channel.seed(cache=tmp_path / "cache", output=tmp_path / "new/seed")
    assert not (tmp_path / "new").exists()

    def refuse(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "seed").mkdir()
    monkeypatch.setattr(channel, "write_atomically", refuse)
    with pytest.raises(OSError, match="space"):
        channel._write_variant_files(tmp_path / "seed", channel.Inputs.of_machine(with_cuda=False))
    assert not list((tmp_path / "seed").iterdir())


def test_full_disk_is_said_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(channel, "NEEDED", 1 << 60)
    with pytest.raises(DiskSpaceError, match="free"):
        channel.seed(cache=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".seed.lock"]


def test_command(capsys):
    assert command_line.main(["seed", "--status"]) == 0
    said = capsys.readouterr().out
    assert "glibc" in said and sys.base_prefix in said
    assert command_line.main(["seed", "--cuda", "99.1"]) == 1
    assert "ask for 13." in capsys.readouterr().err


def make_toolkit(folder: Path) -> Path:
    """A toolkit of empty files, with the names that matter."""
    names = """
        bin/nvcc bin/nvcc.profile bin/crt/link.stub bin/cuobjdump bin/nvdisasm nvvm/bin/cicc nvvm/libdevice/libdevice.10.bc
        include/crt/mma.h include/cuda.h include/nvvm.h include/cublas_v2.h include/nvblas.h include/nv/target
        include/cccl/cub/cub.cuh cccl/lib/cmake/cccl/cccl-config.cmake cccl/LICENSE lib/libcudart.so.13 lib/libcudart_static.a
        lib/libcudadevrt.a lib/libcublas.so.13 lib/libcublasLt.so.13 lib/libnvblas.so.13 lib/libnvvm.so.4
        lib/stubs/libcuda.so lib/stubs/libcuda_stub.c licenses/nvidia_cublas-13/License.txt manifest.json
    """
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for name in ("cudart", "cublas", "cublasLt", "nvblas", "nvvm"):
        target = next((folder / "lib").glob(f"lib{name}.so.*"))
        (folder / f"lib/lib{name}.so").symlink_to(target.name)
    (folder / "lib64").symlink_to("lib")
    return folder


def test_toolkit_is_split_as_on_conda_forge(tmp_path):
    compiler = compilers.Compiler.of_system()
    made = {one.name: one for one in cuda.packages(make_toolkit(tmp_path), toolkit.Pins.load(), compiler)}
    target = "targets/x86_64-linux"
    assert {"bin/nvcc", "bin/nvcc.profile", "bin/crt/link.stub", f"{target}/include/crt/mma.h"} <= set(
        made["cuda-nvcc_linux-64"].files
    )
    assert made["libcublas"].files["lib/libcublas.so.13"].link == f"../{target}/lib/libcublas.so.13"
    assert set(made["libcublas-dev"].run_exports) == set(made["cuda-cudart-dev"].run_exports) == {"weak"}
    assert f"{target}/lib/stubs/libcuda.so" in made["cuda-driver-dev"].files
    assert {f"{target}/include/cccl/cub/cub.cuh", f"{target}/lib/cmake/cccl/cccl-config.cmake"} <= set(made["cuda-cccl"].files)
    assert made["cuda-cccl"].licences == {"nvidia_cuda_cccl-LICENSE.txt": b"cccl/LICENSE"}, "of what is compiled in"
    assert made["libcublas"].licences and "__cuda >=13" in made["cuda-version"].constrains
    paths = [path for one in made.values() for path in one.files]
    assert len(paths) == len(set(paths)), "no file is in two packages"


def test_unknown_file_of_a_toolkit(tmp_path):
    (make_toolkit(tmp_path) / "lib/libnew.so.1").write_text("")
    with pytest.raises(SeedError, match="libnew"):
        cuda.packages(tmp_path, toolkit.Pins.load(), compilers.Compiler.of_system())


def test_sysroot_says_which_glibc():
    compiler = compilers.Compiler.of_system()
    sysroot = next(one for one in compilers.packages(compiler) if one.name == "sysroot_linux-64")
    assert sysroot.run_exports == {"strong": [f"__glibc >={compiler.glibc},<3.0.a0"]}
    libc = sysroot.files["x86_64-conda-linux-gnu/sysroot/lib64/libc.so.6"].link
    assert Path(libc).is_absolute() and Path(libc).read_bytes()[:4] == b"\x7fELF"

"""A small good setting in which every command succeeds, and the commands, each with the inputs that can be damaged."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import os
import pwd
import shutil
import stat
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import damage
from conda_packages import COMMIT, TEMPLATE, release, write_package
from engine_carrier import ENGINE, HEADER, PATCH, Setting, commit_engine, make_carrier
from llama_cpp import __version__ as VERSION

Snapshot = dict[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Command:
    """A command that succeeds in the undamaged setting.

    Attributes:
        arguments: ``{w}`` stands for the setting's folder.
        inputs: paths in the setting, with what they are: ``toml``, ``json``, ``yml``, ``lines``, ``tar``, ``conda``, ``file``,
            ``folder``, ``signed`` (a channel's manifest), ``index`` (one that is signed).
        values: positions of arguments that may be odd.
        before: paths that are removed before, so that there is something to do.
        share: how often it is chosen.
        server: arguments by which it reads from an address, which takes the place of ``{u}``.
    """

    arguments: tuple[str, ...]
    inputs: dict[str, str]
    values: tuple[int, ...] = ()
    before: tuple[str, ...] = ()
    share: int = 4
    server: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


VENDOR = {
    "repo/vendor/llama.cpp/pin.toml": "toml", "repo/vendor/llama.cpp/patches/series": "lines",
    "repo/vendor/llama.cpp/patches/0001-greet.patch": "lines", "repo/vendor/llama.cpp/patches": "folder",
    "repo/vendor/llama.cpp/.source-state/state.json": "json", "repo/vendor/llama.cpp/.source-state": "folder",
    "repo/vendor/llama.cpp/.source-state/lock": "file", "repo/vendor/llama.cpp/source": "folder",
    "repo/vendor/llama.cpp/source/CMakeLists.txt": "file", "repo/vendor/llama.cpp/source/ggml-b": "folder",
    "repo/vendor/llama.cpp": "folder",
}  # fmt: skip
CARRIER = {
    "cache/downloads/engine_carrier-1.0.tar.gz": "carrier", "cache/downloads": "folder", "cache": "folder",
}  # fmt: skip
KEYS = {
    "config/llama-cpp/signing-key.pem": "lines", "config/llama-cpp/signing-key.pub": "lines", "config/llama-cpp": "folder",
    "config/llama-cpp/trusted-keys/own.pub": "lines", "config/llama-cpp/trusted-keys": "folder",
    "state/llama-cpp/channels.json": "json", "state": "folder",
}  # fmt: skip
CHANNEL = {
    "dist/.channel.generations/000002/manifest.json": "signed",
    "dist/.channel.generations/000002/linux-64/repodata.json": "index",
    "dist/.channel.generations/000002/noarch/repodata.json": "index", "dist/.channel.generations/000002/noarch": "folder",
    f"dist/.channel.generations/000002/linux-64/libllama-{VERSION}-ha1_1.conda": "conda",
    "dist/.channel.generations/000002": "folder",
    "dist/.channel.generations/000002/environment.yml": "yml", "dist/.channel.generations/000002/channel-key.pub": "lines",
    "dist/.channel.generations/lock": "file", "dist/.channel.generations": "folder", "dist/channel": "folder", "dist": "folder",
    "dist/.channel.generations/000001": "folder",
}  # fmt: skip
TREE = {
    "tree/settings.json": "json",
    "tree": "folder",
    "repo/llama_cpp/__init__.py": "lines",
    "repo/vendor/llama.cpp/pin.toml": "toml",
}
TOOLKIT = {
    "toolkit.toml": "toml",
    "cache/{toolkit}/manifest.json": "json",
    "cache/{toolkit}/bin/nvcc": "file",
    "cache/{toolkit}": "folder",
    "cache": "folder",
}
SEED = {
    "pins.toml": "toml",
    "cache/{seed}/seed.json": "json",
    "cache/{seed}/noarch/a-1-0.conda": "file",
    "cache/{seed}": "folder",
    "cache": "folder",
}
ENVIRONMENT = {"environment-local.yml": "yml", "environment-local.yml ": "yml", **CHANNEL, **KEYS}
FOLDER = ("--folder", "{w}/repo/vendor/llama.cpp")
SOURCE = ("repo/vendor/llama.cpp/source", "repo/vendor/llama.cpp/.source-state")
PACKAGES = {f"packages/{name}": "conda" for name in (
    f"libllama-{VERSION}-hb2_2.conda", f"llama.cpp-{VERSION}-hb2_2.conda", f"llama-cpp-python-{VERSION}-hb2_2.conda",
    f"libggml-cuda-{VERSION}-cuda134_sm120_hb2_2.conda",
)}  # fmt: skip

RECIPE = """\
# In place of the real one, which compiles for minutes: one package that holds a file of the repository.
package: {name: small, version: "1"}
build: {number: 0, script: ['mkdir -p "$PREFIX/share"', 'cp "$RECIPE_DIR/../native/small.c" "$PREFIX/share/small.c"']}
"""

COMMANDS = {
    "vendor": Command(("vendor", *FOLDER), {**VENDOR, **CARRIER}, (2,), SOURCE, 8),
    "vendor again": Command(("vendor", *FOLDER), VENDOR, (2,)),
    "vendor --force": Command(("vendor", *FOLDER, "--force"), {**VENDOR, **CARRIER}, (2,), SOURCE, 1),
    "vendor --from-git": Command(
        ("vendor", *FOLDER, "--from-git", "{w}/engine"),
        {"engine/.git/HEAD": "lines", "engine/.git/objects": "folder", "engine/.git": "folder", "engine": "folder", **VENDOR},
        (2, 4), SOURCE, 1, ("vendor", *FOLDER, "--from-git", "{u}/repository"),
    ),
    "vendor status": Command(("vendor", *FOLDER, "status"), VENDOR, (2,), share=8),
    "vendor status --json": Command(("vendor", *FOLDER, "status", "--json"), VENDOR, (2,), share=2),
    "vendor update": Command(
        ("vendor", *FOLDER, "update", "1.1", "--dry-run"), {"cache/downloads/engine_carrier-1.1.tar.gz": "tar", **VENDOR,
        **CARRIER}, (2, 4), share=4
    ),
    "toolkit --status": Command(("toolkit", "--status"), TOOLKIT, share=4),
    "toolkit --verify": Command(("toolkit", "--verify"), TOOLKIT, share=4),
    "toolkit --assembled-path": Command(("toolkit", "--assembled-path"), TOOLKIT, share=2),
    "seed --status": Command(("seed", "--status"), SEED, share=3),
    "seed --print-path": Command(("seed", "--print-path", "--output", "{w}/cache/{seed}"), SEED, (3,), share=1),
    "build --arch": Command(("build", "--arch", "no-such"), {}, (2,), share=1),
    "build --output": Command(("build", "--arch", "cpu", "--channel", "{w}/dist/channel", "--output", "{w}/a file"), {}, (),
    share=1),
    "build": Command(
        ("build", "--arch", "cpu", "--no-test", "--channel", "{w}/dist/channel", "--output", "{w}/made/packages"),
        {"repo/recipe/recipe.yaml": "yml", "repo/recipe/variants.yaml": "yml", "repo/recipe/variants/cpu.yaml": "yml",
        "repo/recipe": "folder", "repo/native/small.c": "file", "repo/native": "folder", **VENDOR}, (2, 5, 7), share=2,
    ),
    "channel publish": Command(
        ("channel", "publish", "--channel", "{w}/dist/channel", "--environment", "{w}/environment.yml", "{w}/packages"),
        {**PACKAGES, "packages": "folder", "environment.yml": "yml", **CHANNEL, **KEYS}, (3, 5, 6), share=7,
    ),
    "channel publish anew": Command(
        ("channel", "publish", "--channel", "{w}/new/channel", "--environment", "{w}/environment.yml", "{w}/packages"),
        {**PACKAGES, "packages": "folder", "environment.yml": "yml", **KEYS}, (3, 5, 6), share=3,
    ),
    "channel list": Command(("channel", "list", "--channel", "{w}/dist/channel"), CHANNEL, (3,), share=6),
    "channel list --json": Command(("channel", "list", "--json", "--channel", "{w}/dist/channel"), CHANNEL, (4,), share=2),
    "channel verify": Command(
        ("channel", "verify", "--channel", "{w}/dist/channel", "--key", "{w}/key.pub"), {"key.pub": "lines", **CHANNEL, **KEYS},
        (3, 5), share=5
    ),
    "channel export": Command(("channel", "export", "--channel", "{w}/dist/channel", "{w}/out.tar"), {**CHANNEL, **KEYS}, (3,
    4), share=6),
    "channel import": Command(
        ("channel", "import", "--channel", "{w}/new/channel", "--key", "{w}/key.pub", "{w}/bundle.tar"),
        {"bundle.tar": "tar", "bundle.tar ": "tar", "bundle.tar  ": "tar", "key.pub": "lines", **KEYS}, (3, 5, 6), share=5,
    ),
    "channel prune": Command(
        ("channel", "prune", "--channel", "{w}/dist/channel", "--environment", "{w}/environment.yml", "--keep", "1"),
        {"environment.yml": "yml", **CHANNEL, **KEYS}, (3, 5, 7), share=4,
    ),
    "channel prune --dry-run": Command(
        ("channel", "prune", "--dry-run", "--channel", "{w}/dist/channel"), {**CHANNEL, **KEYS}, (4,), share=2
    ),
    "channel serve": Command(("channel", "serve", "--channel", "{w}/dist/channel", "--port", "0"), CHANNEL, (3, 5), share=2),
    "env create": Command(
        ("env", "create", "-f", "{w}/environment-local.yml", "--channel", "{w}/dist/channel", "-p", "{w}/made"), ENVIRONMENT,
        (3, 5, 7), (), 12,
        ("env", "create", "-f", "{w}/environment-local.yml", "--channel", "{u}", "-p", "{w}/made"),
    ),
    "env create -f URL": Command(
        ("env", "create", "-f", "{w}/environment-local.yml", "--channel", "{w}/dist/channel", "-n", "made"), ENVIRONMENT, (7,),
        (), 2,
        ("env", "create", "-f", "{u}/environment.yml", "-n", "made"),
    ),
    "env create --force": Command(
        ("env", "create", "-f", "{w}/environment-local.yml", "--channel", "{w}/dist/channel", "-p", "{w}/envs/there", "--force"),
        {"envs/there/conda-meta/history": "lines", "envs/there/conda-meta": "folder", "envs/there": "folder", "envs": "folder",
        **ENVIRONMENT}, (7,), share=3,
    ),
    "env create from a lock": Command(
        ("env", "create", "-f", "{w}/llm.lock", "-p", "{w}/made"), {"llm.lock": "lines", "llm.lock ": "lines",
        "llm.lock  ": "lines", **CHANNEL}, (3, 5), share=6
    ),
    "env lock": Command(
        ("env", "lock", "-f", "{w}/environment-local.yml", "--channel", "{w}/dist/channel"), ENVIRONMENT, (3, 5), (), 6,
        ("env", "lock", "-f", "{w}/environment-local.yml", "--channel", "{u}"),
    ),
    "env lock -o": Command(
        ("env", "lock", "-f", "{w}/environment-local.yml", "--channel", "{w}/dist/channel", "-o", "{w}/new.lock"), ENVIRONMENT,
        (3, 5, 7), share=3
    ),
    "provenance": Command(("provenance", "--package", "libggml-cuda", "--build-tree", "{w}/tree", "--output", "{w}/new/out"),
    TREE, (2, 4, 6), share=4),
    "provenance of Python": Command(("provenance", "--package", "llama-cpp-python", "--output", "{w}/new/out"), TREE, (2, 4),
    share=1),
}  # fmt: skip

WHEEL = """\
[[wheel]]
name = "nv-{0}"
version = "1.0"
filename = "nv_{0}-1.0-py3-none-any.whl"
sha256 = "{1}"
size = 3
unpacked = 4
"""
LOCAL = f"""\
name: made
channels:
  - ${{LLAMA_CPP_CHANNEL}}
dependencies:
  - llama-cpp-python >={VERSION}
  # programs
  - llama.cpp
"""
SETTINGS = {
    "compiler": "GNU 14.3.0",
    "cuda": {"version": "13.4.92", "architectures": "120a-real", "cccl": "13.3"},
    "flags": "-O2",
}


class _Setting(Setting):
    """One whose pin names a repository elsewhere: a path may have characters that a pin has not."""

    def pin(self, sha256: str, **changes: str) -> Any:
        return super().pin(sha256, **{"git": "https://example.invalid/engine.git", **changes})


class World:
    """The setting: made once, and put back as it was after each run."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "world"
        self._template = folder / "template"
        self.names: dict[str, str] = {}
        # it may be a disk of its own
        self.root.mkdir(parents=True, exist_ok=True)
        self.environment = self._environment()
        with self.entered(), self.patched():
            self._make()
        shutil.copytree(self.root, self._template, symlinks=True, ignore=self._ignored)
        damage.special_files(self.root)
        damage.special_files(self._template)
        self.good = self.snapshot()

    def _ignored(self, folder: str, names: list[str]) -> list[str]:
        return [name for name in names if name == "hooks"]

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
        folders = {
            "HOME": "home", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "xdg-cache", "XDG_STATE_HOME": "state",
            "LLAMA_CPP_CACHE": "cache",
            "TMPDIR": "tmp", "PIP_FIND_LINKS": "index",
        }  # fmt: skip
        # a proxy that refuses at once: no run asks a server elsewhere
        nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
        return {
            **kept, **{name: str(self.root / folder) for name, folder in folders.items()}, **nowhere, "no_proxy": "127.0.0.1",
            "CONDA_OFFLINE": "1",
            "NO_PROXY": "127.0.0.1", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "LANG": "C.UTF-8",
            "CONDA_OVERRIDE_CUDA": "", "CC": "cc",
            "GIT_CONFIG_NOSYSTEM": "1",
        }  # fmt: skip

    @contextlib.contextmanager
    def entered(self, environment: dict[str, str] | None = None) -> Iterator[None]:
        """The environment of a run, and its folder."""
        import tempfile

        before, folder, temporary = dict(os.environ), os.getcwd(), tempfile.tempdir
        os.environ.clear()
        os.environ.update(self.environment if environment is None else environment)
        tempfile.tempdir = None
        for name in ("tmp", "cwd", "home"):
            (self.root / name).mkdir(exist_ok=True)
        os.chdir(self.root / "cwd")
        try:
            yield
        finally:
            os.chdir(folder)
            tempfile.tempdir = temporary
            os.environ.clear()
            os.environ.update(before)

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        """What has no option or variable of its own lies in the setting; limits of time are short."""
        home = pwd.struct_passwd(("u", "x", os.getuid(), os.getgid(), "", str(self.root / "home"), "/bin/sh"))
        from distribution.channel.server import ChannelServer

        changes: list[tuple[Any, str, Any]] = [
            (pwd, "getpwuid", lambda uid: home),
            (ChannelServer, "serve_forever", _interrupted),
        ]
        for name, attribute, value in (
            ("toolkit", "PINS", self.root / "toolkit.toml"), ("provenance", "VENDOR", self.root / "repo/vendor/llama.cpp"),
            ("vendor", "FOLDER", self.root / "repo/vendor/llama.cpp"), ("seed.pins", "PINS", self.root / "pins.toml"),
            ("channel.trial", "_MEMORY", self.root / "tmp"), ("channel.manifest", "_SECONDS", 1), ("environment.specification",
            "_SECONDS", 1),
            ("environment.lock", "_SECONDS", 2), ("environment.solving", "SOLVING", 5), ("package_files", "_SECONDS", 5),
            ("seed.pins", "fetch", _no_network),
            # a process of pip takes a second; there is nothing for it to find
            ("pip", "_download", _no_network),
            ("packaging.build", "ROOT", self.root / "building"),
        ):  # fmt: skip
            module = importlib.import_module(f"distribution.{name}")
            changes.append((module, attribute, value))
        building = importlib.import_module("distribution.packaging.build")
        # its default is what REPOSITORY was when it was loaded
        changes.append((building, "build", functools.partial(building.build, repository=self.root / "repo")))
        changes += [(module, "REPOSITORY", self.root / "repo") for module in _modules() if hasattr(module, "REPOSITORY")]
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
        for owner, name, value in changes:
            setattr(owner, name, value)
        try:
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)

    def _make(self) -> None:
        root = self.root
        setting = _Setting(root)
        setting.patch(PATCH)
        contents = {**ENGINE, "include/llama.h": f"{HEADER}int llama_added(void);\n".encode()}
        commit_engine(root / "newer", contents)
        (root / "cache" / "downloads").mkdir(parents=True)
        make_carrier(root / "cache" / "downloads", root / "newer", contents, "1.1")
        shutil.copy(setting.archive, root / "cache" / "downloads")
        shutil.rmtree(root / "newer")
        setting.vendor()
        repository = Path(__file__).resolve().parents[2]
        (root / "repo" / "llama_cpp").mkdir()
        shutil.copy(repository / "llama_cpp" / "__init__.py", root / "repo" / "llama_cpp")
        shutil.copy(repository / "distribution" / "seed" / "pins.toml", root)
        shutil.copytree(repository / "recipe" / "variants", root / "repo" / "recipe" / "variants")
        shutil.copy(repository / "recipe" / "variants.yaml", root / "repo" / "recipe")
        (root / "repo" / "recipe" / "recipe.yaml").write_text(RECIPE)
        (root / "repo" / "native").mkdir()
        (root / "repo" / "native" / "small.c").write_text("int small;\n")
        (root / "repo" / "environment.yml").write_text(TEMPLATE)
        (root / "environment.yml").write_text(TEMPLATE)
        (root / "environment-local.yml").write_text(LOCAL)
        (root / "tree").mkdir()
        (root / "tree" / "settings.json").write_text(json.dumps(SETTINGS))
        self._make_toolkit()
        self._make_seed()
        self._make_channel()

    def _make_toolkit(self) -> None:
        from distribution import toolkit

        wheels = "\n".join(WHEEL.format(name, damage.sha256(name.encode())) for name in ("compiler", "library"))
        (self.root / "toolkit.toml").write_text(f'cuda = "13.4.3"\n\n{wheels}')
        folder = toolkit.Pins.load().folder(self.root / "cache")
        self.names["toolkit"] = folder.name
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "nvcc").write_text("#!/bin/sh\n")
        (folder / "bin" / "cuobjdump").write_text("#!/bin/sh\necho ELF file 1: x.sm_120a.cubin\n")
        (folder / "bin" / "cuobjdump").chmod(0o755)
        (folder / "link").symlink_to("bin")
        (folder / "manifest.json").write_text(json.dumps(toolkit._list(folder)))

    def _make_seed(self) -> None:
        from distribution.seed import channel

        inputs = channel.Inputs.of_machine(with_cuda=False)
        folder = self.root / "cache" / f"seed-{inputs.key}"
        self.names["seed"] = folder.name
        write_package(folder / "noarch", "a", "1", "0", subdir="noarch")
        record = {"key": inputs.key, **inputs.record(), "variants": inputs.variants(), "packages": channel._sizes(folder)}
        (folder / "seed.json").write_text(json.dumps(record))

    def _make_channel(self) -> None:
        from distribution.__main__ import main

        root = self.root
        keys = root / "config" / "llama-cpp"
        one, two = _release(root / "one", 0), _release(root / "two", 1)
        _release(root / "packages", 2, tag="b")
        arguments = ["channel", "publish", "--channel", f"{root}/dist/channel", "--environment", f"{root}/environment.yml"]
        assert main([*arguments, *map(str, one)]) == 0
        (keys / "trusted-keys").mkdir(exist_ok=True)
        shutil.copy(keys / "signing-key.pub", keys / "trusted-keys" / "own.pub")
        shutil.copy(keys / "signing-key.pub", root / "key.pub")
        assert main([*arguments, *map(str, two)]) == 0
        assert main(["channel", "export", "--channel", f"{root}/dist/channel", f"{root}/bundle.tar"]) == 0
        common = ["-f", f"{root}/environment-local.yml", "--channel", f"{root}/dist/channel"]
        assert main(["env", "lock", *common, "-o", f"{root}/llm.lock"]) == 0
        assert main(["env", "create", *common, "-p", f"{root}/envs/there"]) == 0
        shutil.rmtree(root / "one")
        shutil.rmtree(root / "two")

    def arguments(self, command: Command, texts: tuple[str, ...] | None = None, url: str = "") -> list[str]:
        names = {"{w}": str(self.root), "{u}": url, "{seed}": self.names["seed"]}
        made = []
        for text in texts or command.arguments:
            for name, value in names.items():
                text = text.replace(name, value)
            made.append(text)
        return made

    def path(self, name: str) -> Path:
        for key, value in self.names.items():
            name = name.replace(f"{{{key}}}", value)
        return self.root / name.strip()

    def snapshot(self) -> Snapshot:
        """Every path in the setting, with what it is."""
        found: Snapshot = {}
        waiting = [str(self.root)]
        while waiting:
            try:
                entries = sorted(os.scandir(waiting.pop()), key=lambda entry: entry.name)
            except PermissionError:  # a case took it away; root looks into it all the same
                continue
            for entry in entries:
                found[entry.path[len(str(self.root)) + 1 :]] = _describe(entry)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
        return found

    def reset(self, only: tuple[str, ...] = ()) -> None:
        """Put the setting back as it was made, or these paths of it."""
        self.unlock()
        now = self.snapshot()
        wrong = {path for path in now.keys() | self.good.keys() if now.get(path) != self.good.get(path)}
        if only:
            # what is below them, and the folders they are in
            wrong = {
                path
                for path in wrong
                if any(f"{path}/".startswith(f"{one}/") or f"{one}/".startswith(f"{path}/") for one in only)
            }
        for path in sorted(wrong):
            here, there = self.root / path, self._template / path
            is_folder = there.is_dir() and not there.is_symlink()
            if is_folder and here.is_dir() and not here.is_symlink():
                here.chmod(stat.S_IMODE(there.stat().st_mode))
                continue
            if here.is_dir() and not here.is_symlink():
                shutil.rmtree(here)
            elif os.path.lexists(here):
                here.unlink()
            if is_folder:
                here.mkdir()
                here.chmod(stat.S_IMODE(there.stat().st_mode))
            elif os.path.lexists(there):
                _copy(there, here)

    def unlock(self) -> None:
        """Make every folder one that can be entered and changed."""
        for folder, names, _ in os.walk(self.root):
            for name in names:
                path = os.path.join(folder, name)
                if not os.path.islink(path) and os.lstat(path).st_mode & 0o700 != 0o700:
                    os.chmod(path, 0o755)


def _release(folder: Path, number: int, tag: str = "a") -> list[Path]:
    """One build of all of our packages, with a CUDA plugin that says what it should."""
    toolkit = {"version": "13.4.92", "architectures": "120a-real"}
    provenance = {"llama_cpp_commit": COMMIT, "patches": [], "toolkit": toolkit, "flags": {}, "sbom": "sbom.cdx.json"}
    files = {
        "lib/libggml-cuda.so": b"machine code",
        "lib/libggml-cuda.json": json.dumps({"cuda": "13.4.92", "architectures": ["120a-real"]}).encode(),
        "share/llama.cpp/libggml-cuda/provenance.json": json.dumps(provenance).encode(),
    }
    plugin = write_package(
        folder, "libggml-cuda", VERSION, f"cuda134_sm120_h{tag}{number}_{number}", number, files=files,
        extra={"llama_cpp_commit": COMMIT},
        depends=[f"libllama =={VERSION} h{tag}{number}_{number}"],
    )  # fmt: skip
    return [*release(folder, number, cuda=False, tag=tag), plugin]


def _copy(source: Path, target: Path) -> None:
    mode = source.lstat().st_mode
    if stat.S_ISFIFO(mode):
        os.mkfifo(target)
    elif stat.S_ISSOCK(mode) or stat.S_ISCHR(mode):
        # they do not change; a command that takes one away is at fault, and the next runs do without it
        os.link(source, target)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def _describe(entry: os.DirEntry[str]) -> tuple[Any, ...]:
    found = entry.stat(follow_symlinks=False)
    kind, mode = stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode)
    if stat.S_ISLNK(kind):
        return kind, os.readlink(entry.path)
    if stat.S_ISREG(kind):
        if found.st_size > 1 << 24:
            return kind, mode, found.st_size
        try:
            with open(entry.path, "rb") as file:
                return kind, mode, hashlib.sha256(file.read()).hexdigest()
        except PermissionError:  # a case took it away; root reads it all the same
            return kind, mode, found.st_size, found.st_mtime_ns
    return kind, mode


def _interrupted(server: object) -> None:
    raise KeyboardInterrupt


def _no_network(*arguments: object) -> None:
    from distribution.errors import DownloadError

    raise DownloadError("no network in this test", "none")


def _modules() -> list[types.ModuleType]:
    """Every module of the package, loaded."""
    folder = Path(__file__).resolve().parents[2] / "distribution"
    names = (".".join(("distribution", *file.relative_to(folder).with_suffix("").parts)) for file in sorted(folder.rglob("*.py")))
    return [importlib.import_module(name) for name in names if not name.endswith(("__init__", "__main__"))]

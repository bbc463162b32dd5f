"""Runs the README's two commands on machines that this one is not.

    sudo python3 tools/other_machines.py --list
    sudo python3 tools/other_machines.py space german                  # make demo and make test on each
    sudo python3 tools/other_machines.py space --run 'make test ARGS="tests/test_cli.py -n 1"' --keep

Each is a Debian or an Ubuntu in a chroot, made by debootstrap from the mirror that apt is configured with here, and has what
people's machines have or lack: see MACHINES. pip's settings are handed in. Of this machine's caches, downloads and what ccache
holds can be read there, and nothing changes here. Needs root, debootstrap, overlayfs, and 25 GB of disk.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORK = Path("/var/tmp/llama-cpp-machines")
COMMANDS = ("make demo", "make test")
UID = 4321
# what somebody without root has installed; nothing that the README does not ask for
PACKAGES = ("make", "g++", "python3", "python3-venv", "ca-certificates", "libnss-extrausers", "locales")
UBUNTU = ("jammy", "noble")
"""Its releases, which a mirror of Debian has beside that, if at all."""
LOCALES = ("de_DE.UTF-8 UTF-8", "de_DE.ISO-8859-1 ISO-8859-1")


@dataclass(frozen=True)
class Machine:
    """What is special about a machine.

    Attributes:
        release: Debian's or Ubuntu's name for it.
        folder: where the checkout lies.
        user: who builds; ``root``, or somebody who stands in no file that the C library reads by itself.
        packages: installed besides PACKAGES.
        shm, exec_tmp, writable_home: whether there is /dev/shm, programs can run in /tmp, and HOME can be written to.
        cores, memory: how many processors, and how many bytes; 0 is all there are.
        closed_stdin, background: without standard input; with Ctrl-C ignored, as a shell starts what ends in ``&``.
        refused: commands that cannot work there, each with a part of the line that says why; they are run first.
        environment: variables of the user's.
        about: in a few words, for --list.
    """

    release: str
    folder: str
    user: str
    about: str
    packages: tuple[str, ...] = ()
    umask: int = 0o022
    shm: bool = True
    exec_tmp: bool = True
    writable_home: bool = True
    cores: int = 0
    memory: int = 0
    closed_stdin: bool = False
    background: bool = False
    refused: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> str:
        return "/root" if self.user == "root" else str(Path("/home", self.user))


MACHINES = {
    "space": Machine(
        "bookworm", "my projects/llämä, it's (mine)", "jörg",
        "a folder with a space, an apostrophe and an umlaut; umask 077; LANG=C; no /dev/shm; no git; PIP_USER, PYTHONPATH "
        "and more",
        packages=("ccache", "patch"), umask=0o077, shm=False,
        environment={
            "LANG": "C", "PIP_USER": "1", "PYTHONSAFEPATH": "1", "PYTHONPATH": "/nonexistent", "TMPDIR": "/var/tmp/my files",
        },
    ),
    "german": Machine(
        "trixie", "llama", "user",
        "German; HOME read-only; one core, 4 GiB; no git, no ccache; no standard input; Ctrl-C ignored",
        packages=("patch",), writable_home=False, cores=1, memory=4 << 30, closed_stdin=True, background=True,
        refused={"env -u XDG_CACHE_HOME make demo": "LLAMA_CPP_CACHE=/a/folder"},
        environment={
            "LANG": "de_DE.UTF-8", "LANGUAGE": "de", "XDG_CACHE_HOME": "/srv/user", "XDG_CONFIG_HOME": "/srv/user/config",
            "XDG_STATE_HOME": "/srv/user/state",
        },
    ),
    "flags": Machine(
        "trixie", "llama", "user",
        "CFLAGS, CXXFLAGS, CPPFLAGS, LDFLAGS and CMAKE_GENERATOR=Ninja set; umask 027",
        packages=("ccache", "git"), umask=0o027,
        environment={
            "CFLAGS": "-O1 -g1 -Wall", "CXXFLAGS": "-O1 -g1 -std=c++14 -fvisibility=hidden", "CPPFLAGS": "-DUNUSED='a b'",
            "LDFLAGS": "-Wl,--as-needed", "CMAKE_GENERATOR": "Ninja",
        },
    ),
    "ubuntu": Machine(
        "jammy", "llama", "user", "Ubuntu 22.04 with Python 3.10; MAKEFLAGS, NINJA_STATUS and DESTDIR set; umask 002",
        packages=("ccache", "git"), umask=0o002,
        environment={"MAKEFLAGS": "-j4", "NINJA_STATUS": "ninja ", "DESTDIR": "/nonexistent", "LANG": "C.UTF-8"},
    ),
    "latin": Machine(
        "bookworm", "llama+llama", "root",
        "root; a locale that is not UTF-8; nothing runs in /tmp; make instead of ninja; CC and CXX are ccache; PYTHONHOME set",
        packages=("ccache", "git"), exec_tmp=False,
        refused={"make demo": "no program can run in"},
        environment={
            "LC_ALL": "de_DE.ISO-8859-1", "CC": "ccache gcc", "CXX": "ccache g++", "CMAKE_GENERATOR": "Unix Makefiles",
            "PYTHONHOME": "/nonexistent",
        },
    ),
}  # fmt: skip


def sh(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], check=True, text=True, **options)


def apt_sources(release: str) -> list[str]:
    """The lines of sources.list for a release, on the mirrors that apt has here."""
    here = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.MULTILINE))["VERSION_CODENAME"]
    listed = sh(
        "apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages", stdout=subprocess.PIPE
    ).stdout
    sites = {suite.removeprefix(here): site for site, suite in map(str.split, listed.splitlines()) if suite.startswith(here)}
    if "" not in sites:
        sys.exit("apt is not configured with a mirror of Debian here.")
    if release in UBUNTU:
        site = re.sub(r"/debian/?$", "/ubuntu", sites[""])
        return [f"deb {site} {release}{suite} main universe" for suite in ("", "-updates", "-security")]
    return [f"deb {site} {release}{suite} main" for suite, site in sites.items() if suite in ("", "-updates", "-security")]


def base(release: str) -> Path:
    """A Debian with PACKAGES, made once."""
    folder = WORK / f"{release}.base"
    if folder.exists():
        return folder
    part = WORK / f"{release}.part"
    shutil.rmtree(part, ignore_errors=True)
    WORK.mkdir(parents=True, exist_ok=True)
    sources = apt_sources(release)
    site = next(line.split()[1] for line in sources if line.split()[2] == release)
    options, script = ["--variant=minbase"], []
    if release in UBUNTU:
        # one script is for all of its releases; afterwards its own apt checks what it gets
        script = [Path("/usr/share/debootstrap/scripts/gutsy")]
        keys = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")
        options.append(f"--keyring={keys}" if keys.exists() else "--no-check-gpg")
    sh("debootstrap", *options, release, part, site, *script)
    (part / "etc/apt/sources.list").write_text("\n".join(sources) + "\n")
    (part / "etc/locale.gen").write_text("\n".join(LOCALES) + "\n")
    install(part, *PACKAGES)
    sh("chroot", part, "locale-gen")
    part.rename(folder)
    return folder


def install(root: Path, *packages: str) -> None:
    """Packages of Debian's; no service is started."""
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    for file in ("resolv.conf", "hosts"):
        shutil.copy(Path("/etc", file), root / "etc" / file)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    sh("chroot", root, "apt-get", "update", env=environment)
    sh("chroot", root, "apt-get", "install", "-y", "--no-install-recommends", *packages, env=environment)


def pip_settings() -> tuple[dict[str, str], set[Path]]:
    """pip's configuration and the network's as variables, and the files and folders that they name."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PIP_QUIET": "0"}).stdout
    found = {name: ast.literal_eval(value) for name, value in re.findall(r"^\w[\w:]*\.([\w-]+)=(['\"].*)$", said, re.MULTILINE)}
    variables = {f"PIP_{name.upper().replace('-', '_')}": " ".join(value.split()) for name, value in found.items()}
    network = re.compile(r"(https?|no|all)_proxy|(SSL|REQUESTS|CURL)_C\w+", re.IGNORECASE)
    variables |= {name: value for name, value in os.environ.items() if network.fullmatch(name)}
    words = {word.removeprefix("file://") for value in variables.values() for word in value.split()}
    files = {Path(word) for word in words if word.startswith("/") and Path(word).exists()}
    # the parent of a simple index comes along, which links to files beside it
    folders = {file.parent if file.name == "simple" else file for file in files}
    return variables, {file for file in folders if not folders & set(file.parents)}


def mount(*arguments: object) -> None:
    sh("mount", *arguments)


def bind(source: Path, target: Path) -> None:
    """Shows a file or a folder of this machine there, for reading."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount("--bind", source.resolve(), target)
    mount("-o", "remount,bind,ro", target)


def layered(lower: Path, upper: Path, target: Path) -> None:
    """Shows a folder of this machine there; what is written goes to ``upper``."""
    for folder in (upper / "changes", upper / "work", target):
        folder.mkdir(parents=True, exist_ok=True)
    os.chmod(upper / "changes", lower.stat().st_mode)
    mount("-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={upper / 'changes'},workdir={upper / 'work'}", target)


def copy_checkout(target: Path, record: Path, umask: int, uid: int) -> None:
    """What a clone would have if all that is here were committed; in a checkout that was kept only what differs is copied."""
    listed = sh("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT, stdout=subprocess.PIPE).stdout
    names = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    for name in set(record.read_text().split("\0")) - names if record.exists() else ():
        (target / name).unlink(missing_ok=True)
    for name in sorted(names):
        source, path = ROOT / name, target / name
        if path.exists() and path.read_bytes() == source.read_bytes():
            continue
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, path)
        for made in missing or [path]:
            made.chmod((source.stat().st_mode if made == path else 0o777) & ~umask)
            os.chown(made, uid, uid)
    record.write_text("\0".join(sorted(names)))


def start(machine: Machine, place: Path, again: bool) -> tuple[Path, dict[str, str]]:
    """Mounts the machine and copies the checkout there, as it is now; one that was kept gets what has changed.

    Returns its root and its user's variables.
    """
    root = place / "root"
    layered(base(machine.release), place / "system", root)
    if machine.packages and not again:
        install(root, *machine.packages)
    mount("-t", "proc", "proc", root / "proc")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", root / "dev")
    for name, number in {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}.items():
        os.mknod(root / "dev" / name, 0o020666, os.makedev(1, number))
        os.chmod(root / "dev" / name, 0o666)
    os.mknod(root / "dev/tty", 0o020666, os.makedev(5, 0))
    os.chmod(root / "dev/tty", 0o666)
    (root / "dev/pts").mkdir()
    mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=620", "devpts", root / "dev/pts")
    (root / "dev/ptmx").symlink_to("pts/ptmx")
    (root / "dev/fd").symlink_to("/proc/self/fd")
    if machine.shm:
        (root / "dev/shm").mkdir()
        mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", root / "dev/shm")

    uid = 0 if machine.user == "root" else UID
    if uid:
        extra = root / "var/lib/extrausers"
        extra.mkdir(exist_ok=True)
        (extra / "passwd").write_text(f"{machine.user}:x:{uid}:{uid}::{machine.home}:/bin/bash\n")
        (extra / "group").write_text(f"{machine.user}:x:{uid}:\n")
        switch = root / "etc/nsswitch.conf"
        switch.write_text(re.sub(r"^(passwd|group):.*", r"\1: files extrausers", switch.read_text(), flags=re.MULTILINE))
    home = root / machine.home.lstrip("/")
    checkout = home / machine.folder
    copy_checkout(checkout, place / "files", machine.umask, uid)
    if not again:
        sh("chown", "-R", f"{uid}:{uid}", home)

    variables, files = pip_settings()
    for file in files:
        bind(file, root / str(file).lstrip("/"))
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": machine.home, "USER": machine.user, "TERM": "dumb",
        **variables, **machine.environment,
    }  # fmt: skip
    cache = root / environment.get("XDG_CACHE_HOME", f"{machine.home}/.cache").lstrip("/")
    here = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    shared = {here / "llama-cpp/downloads": cache / "llama-cpp/downloads"}
    if "ccache" in machine.packages:
        shared[Path(os.environ.get("CCACHE_DIR") or here / "ccache")] = cache / "ccache"
    for number, (lower, target) in enumerate(shared.items()):
        if lower.is_dir():
            layered(lower, place / f"cache-{number}", target)
            # the folders are the user's to write to, the files are read
            sh("find", target, "-type", "d", "-exec", "chown", f"{uid}:{uid}", "{}", "+")
    for folder in (cache.parent, cache, cache / "llama-cpp", root / environment.get("TMPDIR", "/tmp").lstrip("/")):
        folder.mkdir(parents=True, exist_ok=True)
        if uid and folder != root / "tmp" and folder not in (root / "srv", root / "home"):
            os.chown(folder, uid, uid)
    if not machine.writable_home:
        # what is built lies in the checkout
        mount("--bind", home, home)
        mount("--bind", checkout, checkout)
        mount("-o", "remount,bind,ro", home)
    if not machine.exec_tmp:
        mount("-t", "tmpfs", "-o", "noexec,mode=1777", "tmpfs", root / "tmp")
    return root, environment


@contextlib.contextmanager
def memory_group(machine: Machine) -> Iterator[Path | None]:
    """A control group with no more than the machine's memory; None where there is no limit."""
    if not machine.memory:
        yield None
        return
    groups = Path("/sys/fs/cgroup")
    # the second kind of control groups has one tree, the first one for each resource
    tree, name = (groups, "memory.max") if (groups / "cgroup.procs").exists() else (groups / "memory", "memory.limit_in_bytes")
    group = tree / f"llama-cpp-{time.time_ns()}"
    group.mkdir()
    (group / name).write_text(str(machine.memory))
    try:
        yield group
    finally:
        with contextlib.suppress(OSError):  # what was left running there
            group.rmdir()


def run(machine: Machine, root: Path, environment: dict[str, str], command: str, log: Path) -> int:
    """Runs a command of the shell as the machine's user, in the checkout; returns its exit status."""
    uid = 0 if machine.user == "root" else UID
    stdin = "<&-" if machine.closed_stdin else "</dev/null"
    script = f"exec {stdin}; cd {shlex.quote(f'{machine.home}/{machine.folder}')} && umask {machine.umask:03o} && {command}"
    user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs"]

    def prepare() -> None:
        if machine.cores:
            os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: machine.cores]))
        if group:
            (group / "cgroup.procs").write_text("0")
        if machine.background:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    with memory_group(machine) as group, log.open("w", encoding="utf-8") as record:
        process = subprocess.Popen(
            [shutil.which("chroot") or "chroot", str(root), *user, "bash", "-c", script],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=prepare,
        )  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            text = line.decode(errors="replace")
            record.write(text)
            record.flush()
            print(text, end="", flush=True)
        return process.wait()


def try_out(name: str, commands: list[str], keep: bool, again: bool) -> bool:
    """Whether all commands do what they should on a machine, new or the one that was kept."""
    machine, place = MACHINES[name], WORK / name
    again = again and place.exists()
    if not again:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    root, environment = start(machine, place, again)
    good = True
    for number, command in enumerate([*machine.refused, *(command for command in commands if command not in machine.refused)]):
        print(f"== {name}: {command}", flush=True)
        began, log = time.monotonic(), WORK / f"{name}-{number}.log"
        status = run(machine, root, environment, command, log)
        reason = machine.refused.get(command)
        fine = status == 0 if reason is None else status != 0 and reason in log.read_text(encoding="utf-8")
        outcome = ("works" if reason is None else "is refused, as it should be") if fine else "IS WRONG"
        print(f"== {name}: {command}: {outcome} (exit status {status}, {time.monotonic() - began:.0f} s)", flush=True)
        good &= fine
    if keep:
        print(f"== {place} is kept: --again goes on with it")
    else:
        # its mounts end with this process, and it must not reach through them
        sh("umount", "--recursive", "--lazy", root)
        shutil.rmtree(place, ignore_errors=True)
    return good


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("machine", nargs="*", choices=[[], *MACHINES], help="all of them, if none is named")
    parser.add_argument("--list", action="store_true", help="say what they are")
    parser.add_argument("--run", action="append", metavar="COMMAND", help=f"instead of {' and '.join(COMMANDS)}")
    parser.add_argument("--keep", action="store_true", help="leave what was built there")
    parser.add_argument("--again", action="store_true", help="go on with what was kept and what has changed here")
    options = parser.parse_args()
    if options.list:
        for name, machine in MACHINES.items():
            maker = "Ubuntu" if machine.release in UBUNTU else "Debian"
            print(f"{name:8} {maker} {machine.release}, {machine.user}, {machine.home}/{machine.folder}: {machine.about}")
        return 0
    if os.getuid() != 0:
        sys.exit("Only root can make chroots: sudo python3 tools/other_machines.py")
    if "LLAMA_CPP_INSIDE" not in os.environ:
        # mounts and processes of its own: none is left behind, however this ends
        os.execvpe(
            "unshare", ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, *sys.argv],
            {**os.environ, "LLAMA_CPP_INSIDE": "1"},
        )  # fmt: skip
    good = True
    for name in options.machine or MACHINES:
        good &= try_out(name, options.run or list(COMMANDS), options.keep, options.again)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

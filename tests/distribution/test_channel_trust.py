"""Keys and signatures, verification, and the file for a machine without a network."""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import stat
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from conda_packages import COMMIT, Place, release, solve, write_package
from distribution import toolkit
from distribution.channel import bundle, commands, keys, manifest, verification
from distribution.channel.pruning import prune
from distribution.channel.publishing import State
from distribution.channel.server import ChannelServer
from distribution.channel.store import Channel
from distribution.channel.trust import open_signed, require_signatures
from distribution.channel.verification import Finding, verify
from distribution.errors import (
    BundleError,
    ChannelDamagedError,
    ChannelNotFoundError,
    ChannelNotWritableError,
    ChannelUnreachableError,
    EnvironmentUnsolvableError,
    HomeNotFoundError,
    PackageExistsError,
    SigningKeyError,
    ToolkitError,
    UnsignedPackageError,
)
from llama_cpp import __version__ as VERSION


@pytest.fixture
def published(place, tmp_path) -> Place:
    """A release without the CUDA plugin, and something that is not ours."""
    place.publish(*release(tmp_path / "one", 0, cuda=False), write_package(tmp_path, "tool"))
    return place


@pytest.fixture
def stranger(tmp_path, monkeypatch) -> Path:
    """The public key of somebody else."""
    with monkeypatch.context() as patched:
        patched.setenv("XDG_CONFIG_HOME", str(tmp_path / "stranger"))
        keys.signing_key()
    return tmp_path / "stranger/llama-cpp/signing-key.pub"


def check_signatures(location: str, key: Path | None = None) -> dict[str, str]:
    """The SHA-256 of each package of a channel by file name, after its signatures were checked."""
    content = open_signed(location, keys.load_trust(key))
    return {path.rpartition("/")[2]: entry.sha256 for path, entry in content.packages.items()} if content else {}


def move_to_another_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """No key here, neither made nor configured."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "elsewhere"))


def problems(place: Place, key: Path | None = None) -> dict[str, tuple[str, ...]]:
    """What is wrong, by path."""
    return {one.path: one.problems for one in verify(place.channel, key) if one.problems}


def rewrite(path: Path, content: bytes) -> None:
    """Change a file of a generation without touching the other names it has."""
    path.unlink()
    path.write_bytes(content)


def test_the_key_is_made_once_and_for_its_owner_alone(published, tmp_path):
    folder = tmp_path / "config/llama-cpp"
    private = folder / "signing-key.pem"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600 and stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = private.read_bytes()
    published.publish(write_package(tmp_path, "more"))
    assert private.read_bytes() == before and sorted(os.listdir(folder)) == ["signing-key.pem", "signing-key.pub"]
    assert (published.channel.current() / manifest.CHANNEL_KEY).read_bytes() == (folder / "signing-key.pub").read_bytes()


def test_many_first_uses_make_one_key(place, tmp_path):
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(keys.fingerprint(keys.signing_key().public_key()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8 and len(set(made)) == 1


@pytest.mark.parametrize("content", ["", "no key", "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n"])
def test_a_key_that_is_none(published, tmp_path, content):
    bad = tmp_path / "bad.pub"
    bad.write_text(content)
    with pytest.raises(SigningKeyError, match=r"bad\.pub"):
        keys.load_trust(bad)
    with pytest.raises(SigningKeyError):
        keys.load_trust(tmp_path / "missing.pub")
    (tmp_path / "config/llama-cpp/signing-key.pem").write_text(content)
    with pytest.raises(SigningKeyError):
        published.publish(write_package(tmp_path, "more"))
    assert published.channel.current().name == "000001"


def test_every_package_is_signed(published, tmp_path):
    content = manifest.read(published.channel.current())
    own = keys.load_public(tmp_path / "config/llama-cpp/signing-key.pub")
    name = keys.fingerprint(own)
    assert content.signer == name and len(content.packages) == 4
    for path, entry in content.packages.items():
        assert keys.is_signed(own, entry.signatures[name], manifest.statement(path, entry))
        assert not keys.is_signed(own, entry.signatures[name], manifest.statement(f"x{path}", entry))


def test_signatures_by_path_by_url_and_over_http(published, tmp_path):
    folder = published.channel.current()
    expected = {path.name: verification.sha256_of(path) for path in folder.glob("*/*.conda")}
    own = tmp_path / "config/llama-cpp/signing-key.pub"
    with ChannelServer(published.channel, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for location in (str(published.channel.path), published.channel.url, server.address, server.address + "/"):
            assert check_signatures(location) == check_signatures(location, own) == expected
        server.shutdown()
        with pytest.raises(ChannelNotFoundError):
            manifest.fetch(str(tmp_path))
    with pytest.raises(ChannelUnreachableError):
        check_signatures(server.address)


@pytest.mark.parametrize("way", ["named", "variable", "folder"])
def test_what_a_configured_key_did_not_sign_is_refused(published, stranger, tmp_path, monkeypatch, way):
    own = tmp_path / "config/llama-cpp/signing-key.pub"
    location = str(published.channel.path)
    if way == "variable":
        monkeypatch.setenv("LLAMA_CPP_CHANNEL_KEY", str(stranger))
    elif way == "folder":
        trust(stranger, tmp_path, "stranger")
    named = stranger if way == "named" else None
    with pytest.raises(UnsignedPackageError, match="not signed by the configured key"):
        check_signatures(location, named)
    assert len(problems(published, named)) == 4
    with pytest.raises(UnsignedPackageError, match="no signatures"):
        check_signatures(str(tmp_path), named)
    # what is named for one command counts instead of what is configured
    assert len(check_signatures(location, own)) == 4 and not problems(published, own)


def test_one_of_several_trusted_keys_is_enough(published, stranger, tmp_path):
    for name, key in {"stranger": stranger, "own": tmp_path / "config/llama-cpp/signing-key.pub"}.items():
        trust(key, tmp_path, name)
    assert len(check_signatures(str(published.channel.path))) == 4 and not problems(published)


def trust(key: Path, folder: Path, name: str) -> None:
    """Configure a key."""
    trusted = folder / "config/llama-cpp/trusted-keys"
    trusted.mkdir(exist_ok=True)
    shutil.copy(key, trusted / f"{name}.pub")


def test_without_a_configured_key_it_says_so(published, tmp_path, monkeypatch, capsys):
    location = str(published.channel.path)
    assert len(check_signatures(location)) == 4 and "no key is configured" not in capsys.readouterr().err
    signer = manifest.read(published.channel.current()).signer
    move_to_another_machine(monkeypatch, tmp_path)
    assert len(check_signatures(location)) == 4
    said = capsys.readouterr().err
    assert "no key is configured" in said and signer in said
    assert check_signatures(str(tmp_path)) == {}
    first = next(iter(verify(published.channel)))
    assert any("no key is configured" in fact for fact in first.facts)


def test_an_altered_manifest_is_refused(published, tmp_path, monkeypatch):
    path = published.channel.current() / manifest.MANIFEST
    original = json.loads(path.read_text())
    move_to_another_machine(monkeypatch, tmp_path)

    def changed(change) -> None:
        document = json.loads(json.dumps(original))
        change(document)
        rewrite(path, json.dumps(document).encode())

    for change in (
        lambda document: document["signed"]["packages"].popitem(),
        lambda document: document["signed"]["also"].append("evil"),
        lambda document: document.update(signature=original["signature"][::-1]),
        lambda document: document["signed"]["keys"].update({document["signer"]: "AAAA"}),
        lambda document: document.pop("signed"),
        lambda document: document["signed"]["files"].update({"../../out": "0"}),
    ):
        changed(change)
        with pytest.raises(ChannelDamagedError):
            check_signatures(str(published.channel.path))
        with pytest.raises(ChannelDamagedError):
            list(verify(published.channel))
    rewrite(path, b"{")
    with pytest.raises(ChannelDamagedError):
        published.publish(write_package(tmp_path, "more"))


def test_a_list_signed_anew_does_not_vouch_for_its_packages(published, stranger, tmp_path, monkeypatch):
    """Somebody swaps a package and signs the list with another key: no package carries the right signature then."""
    own = tmp_path / "config/llama-cpp/signing-key.pub"
    folder = published.channel.current()
    content = manifest.read(folder)
    path = next(iter(content.packages))
    entries = {**content.packages, path: manifest.ManifestEntry("0" * 64, 1, 1, None, content.packages[path].signatures)}
    monkeypatch.setenv("XDG_CONFIG_HOME", str(stranger.parent.parent))
    forged = manifest.Manifest(1, entries, content.files, (), content.keys)
    rewrite(folder / manifest.MANIFEST, manifest.dump(forged, keys.signing_key()).encode())
    with pytest.raises(UnsignedPackageError, match=path):
        check_signatures(str(published.channel.path), own)
    move_to_another_machine(monkeypatch, tmp_path)
    with pytest.raises(ChannelDamagedError, match="does not fit"):
        check_signatures(str(published.channel.path))


def test_a_list_of_many_keys_takes_no_longer_than_its_text_is_long():
    """Whoever serves a channel chooses how many keys its list names: each is read once, not once for every package."""
    owner = Ed25519PrivateKey.generate()
    public = [Ed25519PrivateKey.generate().public_key() for _ in range(1000)]
    named = {keys.fingerprint(one): base64.b64encode(one.public_bytes_raw()).decode() for one in public}
    entries = {}
    for number, name in enumerate(named):
        path = f"noarch/a{number}-1-0.conda"
        entries[path] = manifest.sign_entry(path, manifest.ManifestEntry("0" * 64, 1, 1, signatures={name: "AAAA"}), owner)
    text = manifest.dump(manifest.Manifest(1, entries, keys=named), owner)
    began = time.process_time()
    assert "no key is configured" in require_signatures(manifest.parse(text, "here"), keys.Trust({}), "here")
    # 80 s when they were read anew each time
    assert time.process_time() - began < 10


def test_a_whole_channel_has_no_problems(published):
    findings = list(verify(published.channel))
    assert not any(one.problems for one in findings)
    assert {one.path for one in findings if one.path.endswith(".conda")} == set(State.of(published.channel).packages)
    assert any(COMMIT[:12] in fact for one in findings for fact in one.facts)


@pytest.mark.parametrize(
    ("victim", "damage", "complaint"),
    [
        ("linux-64/tool-1.0-0.conda", lambda path: rewrite(path, path.read_bytes()[:-100]), "bytes instead of"),
        ("linux-64/tool-1.0-0.conda", Path.unlink, "missing"),
        ("linux-64/repodata.json", lambda path: rewrite(path, path.read_bytes().replace(b'"tool"', b'"fool"')), "changed"),
        ("noarch/repodata.json.zst", lambda path: rewrite(path, b"x"), "changed"),
        ("linux-64/repodata_shards.msgpack.zst", Path.unlink, "missing"),
        ("environment.yml", lambda path: rewrite(path, b"channels: [evil]\n"), "changed"),
        ("linux-64/extra.conda", lambda path: path.write_bytes(b""), "does not list it"),
    ],
)
def test_damage_is_found(published, victim, damage, complaint):
    damage(published.channel.current() / victim)
    found = problems(published)
    assert list(found) == [victim] and complaint in " ".join(found[victim])


def test_what_is_pruned_while_it_is_verified_is_not_missing(published, tmp_path):
    findings = verify(published.channel)
    first = next(findings)
    published.publish(*release(tmp_path / "two", 1, cuda=False))
    prune(published.channel, environment=published.environment)
    assert not any(one.problems for one in [first, *findings])


def test_a_swapped_package_is_found(published, tmp_path):
    other = write_package(tmp_path / "other", "tool", files={"share/else": b"else"})
    rewrite(published.channel.current() / "linux-64/tool-1.0-0.conda", other.read_bytes())
    assert "its hash is not the one" in " ".join(problems(published)["linux-64/tool-1.0-0.conda"])


def test_an_index_that_says_something_else_is_found(published):
    index = published.channel.current() / "linux-64/repodata.json"
    content = json.loads(index.read_text())
    content["packages.conda"]["tool-1.0-0.conda"]["sha256"] = "0" * 64
    content["packages.conda"]["ghost-1.0-0.conda"] = {**content["packages.conda"]["tool-1.0-0.conda"], "name": "ghost"}
    del content["packages.conda"][f"libllama-{VERSION}-ha0_0.conda"]
    rewrite(index, json.dumps(content).encode())
    found = problems(published)
    assert "another hash" in " ".join(found["linux-64/tool-1.0-0.conda"])
    assert "the index lists it" in " ".join(found["linux-64/ghost-1.0-0.conda"])
    assert "does not list it" in " ".join(found[f"linux-64/libllama-{VERSION}-ha0_0.conda"])


@pytest.mark.parametrize(
    ("provenance", "complaint"),
    [
        (None, "no provenance.json"),
        (b"{", "no provenance.json"),
        (json.dumps({"llama_cpp_commit": COMMIT, "patches": []}).encode(), "lacks toolkit, flags, sbom"),
        (
            json.dumps({"llama_cpp_commit": "e" * 40, "patches": [], "toolkit": 0, "flags": 0, "sbom": 0}).encode(),
            "says llama.cpp eeee",
        ),
    ],
)
def test_provenance_is_required(place, tmp_path, provenance, complaint):
    files = {"lib/libllama.so": b"x"} | ({"share/llama.cpp/libllama/provenance.json": provenance} if provenance else {})
    place.publish(write_package(tmp_path, "libllama", VERSION, files=files, extra={"llama_cpp_commit": COMMIT}))
    assert complaint in " ".join(problems(place)[f"linux-64/libllama-{VERSION}-0.conda"])


def plugin(
    folder: Path, build: str, library: bytes = b"no machine code", recorded: str = "120a-real", built: str = "120a-real"
) -> Path:
    """A CUDA plugin for an engine of ``release(..., 0)``, with what it says of itself in two places."""
    provenance = {
        "llama_cpp_commit": COMMIT, "patches": [], "toolkit": {"version": "13.4.92", "architectures": built}, "flags": {},
        "sbom": "sbom.cdx.json",
    }  # fmt: skip
    files = {
        "lib/libggml-cuda.so": library,
        "share/llama.cpp/libggml-cuda/provenance.json": json.dumps(provenance).encode(),
    }
    if recorded:
        files["lib/libggml-cuda.json"] = json.dumps({"cuda": "13.4.92", "architectures": recorded.split()}).encode()
    return write_package(
        folder, "libggml-cuda", VERSION, build, depends=[f"libllama =={VERSION} ha0_0"], files=files,
        extra={"llama_cpp_commit": COMMIT},
    )  # fmt: skip


def about_plugins(place: Place) -> dict[str, Finding]:
    """What is found about each CUDA plugin, by its build string."""
    findings = [one for one in verify(place.channel) if "libggml-cuda-" in one.path]
    return {one.path.split(f"cuda-{VERSION}-")[1].removesuffix(".conda"): one for one in findings}


@pytest.fixture
def no_cuobjdump(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.toolkit
def test_architectures_inside_the_plugin(place, tmp_path):
    compiler = toolkit.assemble() / "bin/nvcc"
    (tmp_path / "kernel.cu").write_text("__global__ void twice(float * values) { values[threadIdx.x] *= 2; }\n")
    libraries = {}
    for targets in ("120a", "120", "90a 120a"):
        codes = [f"-gencode=arch=compute_{one},code=sm_{one}" for one in targets.split()]
        command = [compiler, "-shared", "-Xcompiler=-fPIC", *codes, "-o", tmp_path / targets, tmp_path / "kernel.cu"]
        subprocess.run(command, check=True, capture_output=True)
        libraries[targets] = (tmp_path / targets).read_bytes()
    assert verification.architectures(tmp_path / "90a 120a") == {"90a", "120a"}
    both, hopper = "90a-real 120a-real", "90a-real"
    place.publish(
        release(tmp_path / "release", 0)[0],
        plugin(tmp_path, "cuda134_sm120_h1_0", libraries["120a"]),
        plugin(tmp_path, "cuda134_sm90_120_h1_0", libraries["90a 120a"], both, both),
        plugin(tmp_path, "cuda134_sm90_h1_0", libraries["90a 120a"], hopper, hopper),
        # without the letter there are no FP4 instructions inside
        plugin(tmp_path, "cuda134_sm120_h2_0", libraries["120"]),
        plugin(tmp_path, "cuda134_sm120_h3_0", b"no machine code"),
        plugin(tmp_path, "h1_0", libraries["120a"]),
    )
    found = about_plugins(place)
    assert not found["cuda134_sm120_h1_0"].problems and "code for sm_120a" in found["cuda134_sm120_h1_0"].facts
    assert not found["cuda134_sm90_120_h1_0"].problems
    record = "its lib/libggml-cuda.json says"
    assert found["cuda134_sm90_h1_0"].problems == (f"it holds code for sm_90a, sm_120a, and {record} sm_90a",)
    assert found["cuda134_sm120_h2_0"].problems == (f"it holds code for sm_120, and {record} sm_120a",)
    assert "cuobjdump cannot read its libggml-cuda.so" in found["cuda134_sm120_h3_0"].problems[0]
    assert "does not name the architectures" in found["h1_0"].problems[0]


def test_a_failing_cuobjdump_is_no_proof(place, tmp_path, no_cuobjdump):
    """What it printed before it failed counts for nothing."""
    place.publish(release(tmp_path / "one", 0)[0], plugin(tmp_path, "cuda134_sm120_h1_0"))
    program = tmp_path / "cuobjdump"
    program.write_text("#!/bin/sh\necho ELF file 1: x.1.sm_120a.cubin\n")
    program.chmod(0o755)
    assert about_plugins(place)["cuda134_sm120_h1_0"] == Finding(
        f"linux-64/libggml-cuda-{VERSION}-cuda134_sm120_h1_0.conda", (), ("llama.cpp 0123456789ab, 0 patches", "code for sm_120a")
    )
    program.write_text(program.read_text() + "echo out of cheese >&2; exit 1\n")
    assert about_plugins(place)["cuda134_sm120_h1_0"].problems == ("cuobjdump cannot read its libggml-cuda.so: out of cheese",)


def test_what_a_plugin_records_is_compared_whatever_tools_are_there(place, tmp_path, no_cuobjdump):
    place.publish(
        release(tmp_path / "one", 0)[0],
        plugin(tmp_path, "cuda134_sm120_h1_0"),
        plugin(tmp_path, "cuda134_sm90_120_h1_0", recorded="90a-real 120a-real", built="90a-real 120a-real"),
        plugin(tmp_path, "cuda134_sm90_h1_0"),
        plugin(tmp_path, "cuda134_sm120_h2_0", built="120-real"),
        plugin(tmp_path, "cuda134_sm120_h3_0", recorded=""),
        plugin(tmp_path, "cuda134_sm120_h4_0", built=""),
    )
    record = "lib/libggml-cuda.json"
    assert {build: one.problems for build, one in about_plugins(place).items()} == {
        "cuda134_sm120_h1_0": (),
        "cuda134_sm90_120_h1_0": (),
        "cuda134_sm90_h1_0": (f"its {record} says sm_120a, and its name says sm_90",),
        "cuda134_sm120_h2_0": (f"its provenance.json says sm_120, and its {record} says sm_120a",),
        "cuda134_sm120_h3_0": (f"it has no {record} that lists architectures",),
        "cuda134_sm120_h4_0": (f"its provenance.json says no GPU, and its {record} says sm_120a",),
    }


def test_without_a_tool_the_last_line_says_so(place, tmp_path, no_cuobjdump, capsys):
    def last_line() -> str:
        parser = argparse.ArgumentParser()
        commands.add_commands(parser)
        options = parser.parse_args(["verify", "--channel", str(place.channel.path)])
        options.run(options)
        return capsys.readouterr().err.splitlines()[-1]

    place.publish(release(tmp_path / "one", 0)[0])
    assert last_line().endswith("files are as they were published")
    place.publish(plugin(tmp_path, "cuda134_sm120_h1_0"))
    assert "as they were published; architectures not disassembled: no cuobjdump" in last_line()


def test_export_and_import(place, stranger, tmp_path, monkeypatch, capsys):
    dependency = write_package(tmp_path, "numpy", depends=["libblas"])
    place.publish(
        *release(tmp_path / "old", 0), *release(tmp_path / "new", 1), dependency, write_package(tmp_path, "libblas"),
        write_package(tmp_path, "unrelated"),
    )  # fmt: skip
    place.environment.write_text(place.environment.read_text() + "  - numpy\n")
    done = bundle.export(place.channel, tmp_path / "all.tar", place.environment)
    assert len(done.packages) == 6 and done.size == done.path.stat().st_size
    assert not any("_0" in name or "unrelated" in name for name in done.packages if "numpy" not in name and "blas" not in name)
    builder = tmp_path / "config/llama-cpp/signing-key.pub"

    move_to_another_machine(monkeypatch, tmp_path)
    shutil.rmtree(place.channel.store)
    there = Channel.at(tmp_path / "there" / "channel")
    with pytest.raises(UnsignedPackageError):
        bundle.import_(done.path, there, stranger)
    assert not there.exists()
    published = bundle.import_(done.path, there, builder)
    assert published.generation == 1 and published.complete and len(published.added) == 6
    assert solve(there.url, "llama-cpp-python", "libggml-cuda", "numpy").keys() == {
        "llama-cpp-python", "libllama", "libggml-cuda", "numpy", "libblas",
    }  # fmt: skip
    assert f"- {there.url}\n" in (there.current() / "environment.yml").read_text()
    # the builder's signatures came along, so whoever trusts the builder needs to trust nobody else
    assert len(check_signatures(there.url, builder)) == 6
    assert not any(one.problems for one in verify(there, builder) if "libggml-cuda-" not in one.path)
    assert bundle.import_(done.path, there, builder).added == ()
    assert "no key is configured" not in capsys.readouterr().err
    bundle.import_(done.path, there)
    assert "no key is configured" in capsys.readouterr().err


def test_a_plugin_for_every_variant_is_exported(place, tmp_path):
    place.publish(*release(tmp_path / "one", 0))
    older = write_package(
        tmp_path, "libggml-cuda", VERSION, "cuda129_sm120_h1_0", depends=[f"libllama =={VERSION} ha0_0", "__cuda >=12.8"],
        extra={"llama_cpp_commit": COMMIT},
    )  # fmt: skip
    place.publish(older)
    assert len([one for one in bundle.export(place.channel, tmp_path / "all.tar").packages if "cuda" in one]) == 2


def test_a_plugin_of_an_older_build_is_exported_with_what_it_needs(place, tmp_path):
    place.publish(*release(tmp_path / "old", 0, tag="b"))
    place.publish(*release(tmp_path / "new", 0, cuda=False, tag="a"))
    hopper = write_package(
        tmp_path, "libggml-cuda", VERSION, "cuda134_sm90_h1_0", depends=[f"libllama =={VERSION} ha0_0"],
        extra={"llama_cpp_commit": COMMIT},
    )  # fmt: skip
    place.publish(hopper)
    done = bundle.export(place.channel, tmp_path / "all.tar")
    assert {Path(one).name for one in done.packages} == place.held()


def test_an_export_is_of_one_generation_whatever_is_pruned_meanwhile(place, tmp_path, monkeypatch):
    for tag in "ab":
        place.publish(*release(tmp_path / tag, 0, tag=tag))
    collect, held = bundle._collect, place.held()

    def prune_then_collect(*arguments: object) -> Path:
        prune(place.channel, environment=place.environment)
        place.publish(*release(tmp_path / "c", 0, tag="c"))
        prune(place.channel, environment=place.environment)
        return collect(*arguments)

    monkeypatch.setattr(bundle, "_collect", prune_then_collect)
    done = bundle.export(place.channel, tmp_path / "all.tar")
    names = {Path(one).name for one in done.packages}
    assert names == {path.name for path in release(tmp_path / "again", 0, tag="b")} <= held and not names & place.held()
    assert len(bundle.import_(done.path, Channel.at(tmp_path / "there")).added) == 4


def test_a_damaged_export_is_refused(published, tmp_path):
    done = bundle.export(published.channel, tmp_path / "all.tar")
    content = done.path.read_bytes()
    there = Channel.at(tmp_path / "there")
    damaged = tmp_path / "damaged.tar"
    # a tar file ends in at least a kilobyte of zeros, which may be cut off and nothing be missing
    for size in (0, 100, *range(600, len(content) - 12_000, len(content) // 12)):
        damaged.write_bytes(content[:size])
        with pytest.raises((BundleError, ChannelDamagedError)):
            bundle.import_(damaged, there)
    for position in range(2000, len(content) - 12_000, len(content) // 12):
        damaged.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises((BundleError, ChannelDamagedError)):
            bundle.import_(damaged, there)
    with pytest.raises(BundleError):
        bundle.import_(tmp_path / "nowhere.tar", there)
    assert not there.exists() and not there.store.exists()
    bundle.import_(done.path, there)


def test_an_export_that_would_write_elsewhere_is_refused(published, tmp_path):
    done = bundle.export(published.channel, tmp_path / "all.tar")
    evil = tmp_path / "evil.tar"
    for name, kind in (("../../outside", tarfile.REGTYPE), ("linux-64/link.conda", tarfile.SYMTYPE)):
        with tarfile.open(done.path) as source, tarfile.open(evil, "w") as target:
            for member in source:
                target.addfile(member, source.extractfile(member))
            extra = tarfile.TarInfo(name)
            extra.type, extra.linkname = kind, "/etc/passwd"
            target.addfile(extra)
        with pytest.raises(BundleError):
            bundle.import_(evil, Channel.at(tmp_path / "there"))
    assert not (tmp_path / "outside").exists()


def test_import_keeps_what_is_there(published, tmp_path):
    done = bundle.export(published.channel, tmp_path / "all.tar")
    there = Place(tmp_path, Channel.at(tmp_path / "there"), published.environment)
    mine = write_package(tmp_path / "mine", "libllama", VERSION, "ha0_0", files={}, extra={"llama_cpp_commit": COMMIT})
    there.publish(mine)
    with pytest.raises(PackageExistsError):
        bundle.import_(done.path, there.channel)
    assert there.held() == {mine.name}


def test_export_says_what_is_missing(published, tmp_path):
    published.environment.write_text(published.environment.read_text() + "  - nowhere-to-be-found\n")
    with pytest.raises(EnvironmentUnsolvableError, match="nowhere-to-be-found"):
        bundle.export(published.channel, tmp_path / "all.tar", published.environment)
    with pytest.raises(ChannelNotWritableError):
        bundle.export(published.channel, Path("/sys/all.tar"))
    assert not list(tmp_path.glob("*.tar*"))


def test_an_export_takes_no_special_file_s_place(published, tmp_path):
    """Root could put a file in the place of /dev/null."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="named pipe"):
        bundle.export(published.channel, tmp_path / "fifo")
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


@pytest.mark.parametrize("home", ["", "relative"])
def test_a_home_that_is_none_is_said(home, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    for folder in (keys.config_dir, keys.state_dir):
        with pytest.raises(HomeNotFoundError):
            folder()


def test_a_cuobjdump_that_cannot_be_run_is_no_fault_of_the_package(place, tmp_path, no_cuobjdump, monkeypatch):
    toolkit_folder = tmp_path / "toolkit"
    (toolkit_folder / "bin").mkdir(parents=True)
    monkeypatch.setattr(toolkit, "assembled_path", lambda: toolkit_folder)
    # where the toolkit has none, the one on PATH counts, and there is none either
    assert verification.architectures(tmp_path / "library") is None
    program = toolkit_folder / "bin/cuobjdump"
    program.write_bytes(b"\0")
    program.chmod(0o755)
    with pytest.raises(ToolkitError, match=r"cuobjdump cannot be run: Exec format error"):
        verification.architectures(tmp_path / "library")
    program.write_text("#!/bin/sh\nwhile :; do :; done\n")
    monkeypatch.setattr(verification, "_CUOBJDUMP_SECONDS", 0.2)
    with pytest.raises(ToolkitError, match="did not end"):
        verification.architectures(tmp_path / "library")

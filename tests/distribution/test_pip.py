"""Fetching through pip: with whatever a build engine or a person has told pip, and when it cannot be done, why."""

from __future__ import annotations

import base64
import contextlib
import datetime
import functools
import http.server
import ipaddress
import json
import os
import re
import resource
import shlex
import ssl
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

from distribution import pip
from distribution.errors import DownloadError
from distribution.files import sha256_of
from engine_carrier import pack

# What py-rattler-build 0.73 and conda-build export to pip; PIP_CACHE_DIR is a folder of the build.
ENGINE = {
    "PIP_CACHE_DIR": "/nowhere/pip_cache",
    "PIP_IGNORE_INSTALLED": "True",
    "PIP_NO_BUILD_ISOLATION": "False",
    "PIP_NO_DEPENDENCIES": "True",
    "PIP_NO_INDEX": "True",
}
SDIST = "probe_carrier-1.0.tar.gz"
PYPROJECT = b'[build-system]\nrequires = ["probe-backend"]\nbuild-backend = "probe_backend.build"\n'
PKG_INFO = "Metadata-Version: 2.1\nName: probe-carrier\nVersion: 1.0\n"
# needs a package that only its own requirements bring, as scikit-build-core does
BACKEND = """\
import pathlib
import probe_helper
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    print("the backend ran")
    path = pathlib.Path(folder, "probe_carrier-1.0.dist-info")
    path.mkdir()
    (path / "METADATA").write_text(pathlib.Path("PKG-INFO").read_text())
    return path.name
def build_wheel(*args): raise NotImplementedError
"""


def wheel(folder: Path, name: str, files: dict[str, str], requires: str = "") -> None:
    info = f"{name}-1.0.dist-info"
    members = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + requires,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*members, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in {**members, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks in, with a source distribution and what that is built with; nothing of the user's pip counts."""
    folder = tmp_path / "index"
    folder.mkdir()
    names = ("pyproject.toml", "PKG-INFO")
    pack(folder / SDIST, {f"probe_carrier-1.0/{name}": data for name, data in zip(names, (PYPROJECT, PKG_INFO.encode()))})
    backend = {"probe_backend/__init__.py": "", "probe_backend/build.py": BACKEND}
    wheel(folder, "probe_backend", backend, "Requires-Dist: probe-helper\n")
    wheel(folder, "probe_helper", {"probe_helper.py": ""})
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder


def carrier(index: Path) -> pip.IndexFile:
    return pip.IndexFile("probe-carrier", "1.0", SDIST, sha256_of(index / SDIST))


def fetch(index: Path, cache: Path) -> Path:
    found = pip.fetch(carrier(index), cache)
    assert found == cache / "downloads" / SDIST and list(found.parent.iterdir()) == [found]
    return found


def in_pips_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pip, "_without_building", lambda folder, environment: ([], dict(environment)))


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


# what a build engine sets ---------------------------------------------------------------------------------------------


def test_nothing_of_a_source_distribution_is_built(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    set_all(monkeypatch, ENGINE)
    for file in index.glob("*.whl"):
        file.unlink()
    fetch(index, tmp_path / "cache")
    assert "trying once more" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "variable",
    [
        ("PYTHONWARNINGS", "error"), ("PYTHONINSPECT", "1"), ("PYTHONVERBOSE", "1"), ("PYTHONOPTIMIZE", "2"),
        ("PYTHONDEVMODE", "1"), ("PYTHONSAFEPATH", "1"), ("PYTHONCOERCECLOCALE", "0"), ("PYTHONIOENCODING", "utf-16"),
        # compiler packages set it, for an interpreter that is not this one
        ("_PYTHON_SYSCONFIGDATA_NAME", "_sysconfigdata_x86_64_conda_cos6_linux_gnu"),
    ],
)  # fmt: skip
def test_what_changes_a_python_does_not_change_pip(index: Path, tmp_path: Path, monkeypatch, capfd, variable) -> None:
    monkeypatch.setenv(*variable)
    fetch(index, tmp_path / "cache")
    assert "trying once more" not in capfd.readouterr().err


def test_pips_own_way_works_inside_a_build_too(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip starts itself for what the archive is built with, and that pip reads the same variables."""
    set_all(monkeypatch, ENGINE)
    in_pips_own_way(monkeypatch)
    fetch(index, tmp_path / "cache")


def test_a_pip_that_knows_no_stand_in_is_asked_again_in_its_own_way(index: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(pip, "BACKEND", "")
    fetch(index, tmp_path / "cache")
    assert "trying once more" in capfd.readouterr().err


def test_an_old_source_distribution_needs_no_setuptools(index: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    """Without pyproject.toml pip's backend is `setuptools.build_meta:__legacy__`, which would run setup.py."""
    monkeypatch.setenv("PIP_USE_PEP517", "0")
    members = {"PKG-INFO": PKG_INFO.encode(), "setup.py": b"raise SystemExit('it ran')\n", "pyproject.toml": b""}
    pack(index / SDIST, {f"probe_carrier-1.0/{name}": data for name, data in members.items()})
    fetch(index, tmp_path / "cache")
    assert "trying once more" not in capfd.readouterr().err


BUILD_RECIPE = """\
schema_version: 1
package: {{name: probe, version: "1.0"}}
build:
  script:
    env: {env}
    content:
      - {print}
      - {go}
      - {run}
      - mkdir -p $PREFIX/share && echo built > $PREFIX/share/probe
about: {{license: MIT}}
"""
SCRIPT = """\
import json, sys
from distribution import files, pip
pip.fetch(pip.IndexFile(*json.loads(sys.argv[1])), files.cache_dir())
"""


def test_inside_a_real_build(index: Path, tmp_path: Path) -> None:
    engine = pytest.importorskip("rattler_build", reason="pip install llama_cpp_python[conda]")
    for file in index.glob("*.whl"):
        file.unlink()
    file, printed, cache = carrier(index), tmp_path / "printed", tmp_path / "cache"
    script = tmp_path / "script.py"
    told = json.dumps([*vars(file).values()])
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nsys.argv[1:] = [{told!r}]\n" + SCRIPT)
    recipe = tmp_path / "recipe" / "recipe.yaml"
    recipe.parent.mkdir()
    commands = {"go": ("cd", ROOT), "run": (sys.executable, script)}
    lines = {name: json.dumps(shlex.join(map(str, command))) for name, command in commands.items()}
    lines["print"] = json.dumps(f"env > {shlex.quote(str(printed))}")
    lines["env"] = json.dumps({"PIP_FIND_LINKS": str(index), "LLAMA_CPP_CACHE": str(cache)})
    recipe.write_text(BUILD_RECIPE.format(**lines))
    [one] = engine.Stage0Recipe.from_file(recipe).render(engine.VariantConfig())
    one.run_build(output_dir=tmp_path / "output", channels=[])
    assert sha256_of(cache / "downloads" / SDIST) == file.sha256

    variables = dict(line.split("=", 1) for line in printed.read_text().splitlines() if line.startswith("PIP_"))
    variables.pop("PIP_FIND_LINKS")
    assert variables.keys() <= ENGINE.keys(), "the engine sets what ENGINE above lacks"
    assert all(value == ENGINE[name] for name, value in variables.items() if name != "PIP_CACHE_DIR")


# what a person has set ------------------------------------------------------------------------------------------------


@functools.cache
def hostile_settings() -> dict[str, str]:
    """Every option of pip that a setting could be for and that is not kept, each with a value that would do harm."""
    help_text = "".join(
        subprocess.run([sys.executable, "-m", "pip", command, "--help"], capture_output=True, text=True, check=True).stdout
        for command in ("download", "install", "wheel")
    )
    found = dict(re.findall(r"^ +(?:-\w, )?--([a-z][\w-]+)(?:[ =](<[\w:,. ]+>))?", help_text, re.MULTILINE))
    chosen = {
        "log": os.devnull, "quiet": "3", "verbose": "3", "exists-action": "i", "use-feature": "fast-deps",
        "use-deprecated": "legacy-resolver", "python-version": "2.7", "platform": "win_amd64", "abi": "cp27m",
        "implementation": "jy",
        "only-binary": ":all:", "no-binary": ":all:", "root-user-action": "ignore", "progress-bar": "nonsense",
    }  # fmt: skip
    left_out = {"help", "version", "python", *pip.KEPT}  # pip itself reads the first two from nowhere, and runs in another Python
    settings = {name: "/nowhere/at/all" if value else "1" for name, value in found.items() if name not in left_out}
    return {**settings, **{name: value for name, value in chosen.items() if name in settings}}


def as_variables(settings: dict[str, str]) -> dict[str, str]:
    return {f"PIP_{name.upper().replace('-', '_')}": value for name, value in settings.items()}


def as_file(settings: dict[str, str], place: Path, index: Path) -> Path:
    lines = [f"{name} = {value}" for name, value in settings.items()]
    sections = (f"[{section}]\n" + "\n".join(lines) + "\n" for section in ("download", "install", "wheel"))
    # pip itself stops at values it does not know, wherever they are for all commands
    known = [line for line in lines if "nonsense" not in line]
    place.write_text("[global]\n" + "\n".join([*known, f"find-links = {index}", "no-index = true\n"]) + "".join(sections))
    return place


def test_there_are_options_to_try() -> None:
    names = hostile_settings()
    assert len(names) > 40
    assert {"no-deps", "require-hashes", "constraint", "target", "user", "only-binary", "python-version", "quiet"} <= names.keys()


@pytest.mark.parametrize("how", ["variables", "file"])
@pytest.mark.parametrize("way", ["without building", "pip's own"])
def test_all_that_could_change_what_is_fetched_at_once(index: Path, tmp_path: Path, monkeypatch, how: str, way: str) -> None:
    if way == "pip's own":
        in_pips_own_way(monkeypatch)
    _fetch_with(hostile_settings(), how, index, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.generator
@pytest.mark.parametrize("how", ["variables", "file"])
def test_each_that_could_change_what_is_fetched(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "variables":
        in_pips_own_way(monkeypatch)
    for name, value in hostile_settings().items():
        with monkeypatch.context() as inner:
            (tmp_path / name).mkdir()
            print(name)
            _fetch_with({name: value}, how, index, tmp_path / name, inner)


def _fetch_with(settings: dict[str, str], how: str, index: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "variables":
        set_all(monkeypatch, as_variables(settings))
    else:
        monkeypatch.setenv("PIP_CONFIG_FILE", str(as_file(settings, folder / "pip.conf", index)))
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.delenv("PIP_NO_INDEX")
    fetch(index, folder / "cache")


@pytest.mark.parametrize(
    ("variables", "file", "kept"),
    [
        ({"PIP_INDEX_URL": "a"}, "", {"INDEX_URL": "a"}),
        ({}, "[global]\nindex-url = a\n", {"INDEX_URL": "a"}),
        ({}, "[global]\nindex-url = a\n[download]\nindex-url = b\n[install]\nindex-url = c\n", {"INDEX_URL": "b"}),
        ({"PIP_INDEX_URL": "d"}, "[global]\nindex-url = a\n[download]\nindex-url = b\n", {"INDEX_URL": "d"}),
        ({"PIP_INDEX_URL": ""}, "[global]\nindex-url = a\n", {"INDEX_URL": "a"}),
        ({}, "[global]\nuser = 1\nquiet = 3\nextra-index-url =\n    https://a\n    b\n", {"EXTRA_INDEX_URL": "https://a b"}),
        ({"PIP_TIMEOUT": "3", "PIP_RETRIES": "0"}, "", {"TIMEOUT": "3", "RETRIES": "0"}),
        ({"PIP_USE_FEATURE": "truststore fast-deps"}, "", {"USE_FEATURE": "truststore"}),
        ({"PIP_USE_FEATURE": "fast-deps"}, "[global]\nuse-deprecated = legacy-resolver\n", {}),
        ({"PIP_CERT": "own.pem"}, "", {"CERT": "HERE/own.pem"}),
        ({"PIP_FIND_LINKS": "wheels https://c"}, "", {"FIND_LINKS": "HERE/wheels https://c"}),
        ({"PIP_FIND_LINKS": "nowhere"}, "[global]\ntrusted-host = it's\n", {"FIND_LINKS": "nowhere", "TRUSTED_HOST": "it's"}),
    ],
)  # fmt: skip
def test_where_files_come_from_is_kept(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], file: str, kept: dict[str, str]
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.pem").write_text("")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "pip.conf").write_text(file)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    set_all(monkeypatch, variables)
    _, environment = pip.pip_command()
    ours = {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    expected = {f"PIP_{name}": value.replace("HERE", str(tmp_path)) for name, value in {"RETRIES": pip.RETRIES, **kept}.items()}
    # the machine's own configuration counts beside the file, as it does for pip
    without = {**os.environ, "PIP_CONFIG_FILE": str(tmp_path / "nowhere")}
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], env=without, capture_output=True, text=True).stdout
    others = as_variables(dict.fromkeys(re.findall(r"^global\.([\w-]+)=", listed, re.MULTILINE), ""))
    found = {name: value for name, value in environment.items() if name.startswith("PIP_")}
    found = {name: value for name, value in found.items() if name in expected or name not in others}
    assert found == {**ours, **expected}


# when it cannot be done -----------------------------------------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    status = 0

    def do_GET(self) -> None:
        if self.status:
            self.send_error(self.status)
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def served(folder: Path, status: int = 0, context: ssl.SSLContext | None = None) -> Iterator[str]:
    handler = functools.partial(type("Failing", (Handler,), {"status": status}), directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}/"
        server.shutdown()


def simple_index(folder: Path, index: Path) -> Path:
    page = folder / "simple" / "probe-carrier"
    page.mkdir(parents=True)
    (page / SDIST).write_bytes((index / SDIST).read_bytes())
    (page / "index.html").write_text(f'<a href="{SDIST}#sha256={sha256_of(index / SDIST)}">{SDIST}</a>')
    return folder / "simple"


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed, with its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    loopback = ipaddress.ip_address("127.0.0.1")
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(loopback), x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "own.pem").write_bytes(made.public_bytes(encoding) + private)
    return folder / "own.pem"


def failure(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **variables: str) -> DownloadError:
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.delenv("PIP_NO_INDEX")
    # pip's own configuration of this machine could name other places
    other = variables.get("PIP_INDEX_URL", "http://127.0.0.1:9/")
    set_all(monkeypatch, {"PIP_RETRIES": "0", "PIP_EXTRA_INDEX_URL": other, **variables})
    with pytest.raises(DownloadError) as caught:
        fetch(index, tmp_path / "cache")
    assert caught.value.remedy.endswith(f"or put the file at {tmp_path}/cache/downloads/{SDIST} by hand")
    return caught.value


def test_nobody_listens(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = failure(index, tmp_path, monkeypatch, PIP_INDEX_URL="http://127.0.0.1:9/")
    assert error.remedy.startswith("check the network"), error
    assert "Connection refused" in error.message, "pip says it in its log alone"


def test_pip_speaks_english(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is compared with words; it takes those for errors of the system from the user's language."""
    languages = {"LANG": "de_DE.UTF-8", "LANGUAGE": "de", "LC_ALL": "de_DE.UTF-8", "LC_MESSAGES": "de_DE.UTF-8"}
    set_all(monkeypatch, languages)
    error = failure(index, tmp_path, monkeypatch, PIP_INDEX_URL="http://127.0.0.1:9/")
    assert "Connection refused" in error.message
    _, environment = pip.pip_command()
    # also where this machine has no German
    assert environment["LC_ALL"] == "C.UTF-8" and "LANGUAGE" not in environment


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "give pip the index's password"), (403, "give pip the index's password"), (503, "ask whoever runs the index"),
        (404, "name an index that has it"),
    ],
)  # fmt: skip
def test_the_index_refuses(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, remedy: str) -> None:
    with served(tmp_path, status) as address:
        error = failure(index, tmp_path, monkeypatch, PIP_INDEX_URL=address)
    assert error.remedy.startswith(remedy), error


def test_the_index_has_another_release(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = simple_index(tmp_path / "site", index) / "probe-carrier" / "index.html"
    page.write_text(page.read_text().replace("carrier-1.0", "carrier-1.1"))
    with served(tmp_path / "site") as address:
        error = failure(index, tmp_path, monkeypatch, PIP_INDEX_URL=f"{address}simple/")
    assert error.remedy.startswith("name an index that has it") and "1.1" in error.message


def test_no_index_is_to_be_asked(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.conf").write_text("[global]\nno-index = yes\n")
    for number, variables in enumerate(({"PIP_NO_INDEX": "True"}, {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")})):
        with monkeypatch.context() as inner:
            error = failure(index, tmp_path, inner, PIP_FIND_LINKS=str(tmp_path / "site"), **variables)
        assert error.remedy.startswith("PIP_NO_INDEX is set, or no-index in pip's configuration"), number


def test_a_certificate_that_is_not_known(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simple_index(tmp_path / "site", index)
    own = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    with served(tmp_path / "site", context=context) as address:
        with monkeypatch.context() as inner:
            error = failure(index, tmp_path, inner, PIP_INDEX_URL=f"{address}simple/")
        assert error.remedy.startswith("name the authority that your network trusts: PIP_CERT"), error
        # and what is said helps; pip for Python 3.13 asks the system's authorities first, and those want a server's name
        address = address.replace("127.0.0.1", "localhost")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.delenv("PIP_NO_INDEX")
        set_all(monkeypatch, {"PIP_INDEX_URL": f"{address}simple/", "PIP_CERT": str(own), "PIP_RETRIES": "0"})
        fetch(index, tmp_path / "cache")


def test_a_folder_without_room(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk, pip cannot write what it gets; here files may have a few bytes only."""
    page = simple_index(tmp_path / "site", index)
    (page / "probe-carrier" / SDIST).write_bytes(os.urandom(1 << 20))
    link = page / "probe-carrier" / "index.html"
    link.write_text(f'<a href="{SDIST}">{SDIST}</a>')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with served(page.parent) as address:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
        try:
            error = failure(index, tmp_path, monkeypatch, PIP_INDEX_URL=f"{address}simple/", PIP_NO_CACHE_DIR="1")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.remedy.startswith(f"free some space in {tmp_path}/cache/downloads"), error


def test_a_proxy_that_is_not_there(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = failure(index, tmp_path, monkeypatch, PIP_INDEX_URL="https://192.0.2.1/", PIP_PROXY="http://127.0.0.1:9")
    assert error.remedy.startswith("correct the proxy"), error


def test_a_backend_that_fails_is_not_blamed_on_the_network(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_pips_own_way(monkeypatch)
    with zipfile.ZipFile(index / "probe_helper-1.0-py3-none-any.whl", "w"):
        pass
    with pytest.raises(DownloadError) as caught:
        fetch(index, tmp_path / "cache")
    assert "network" not in caught.value.remedy


def test_a_configuration_that_pip_cannot_read(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.conf").write_text("[global\nno-index = true\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    with pytest.raises(DownloadError, match="pip cannot read its configuration") as caught:
        fetch(index, tmp_path / "cache")
    assert str(tmp_path / "pip.conf") in caught.value.message


def test_an_index_with_a_password(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The password is used, and stands in no message."""
    page = simple_index(tmp_path / "site", index)
    expected = "Basic " + base64.b64encode(b"user:secret").decode()

    class Asking(Handler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") != expected:
                self.send_response(401)
                self.send_header("WWW-Authenticate", "Basic realm=index")
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                super().do_GET()

    monkeypatch.setattr(sys.modules[__name__], "Handler", Asking)
    with served(page.parent) as address:
        named = address.replace("://", "://user:{}@")
        with monkeypatch.context() as inner:
            error = failure(index, tmp_path, inner, PIP_INDEX_URL=named.format("wrong-one") + "simple/")
        assert error.remedy.startswith("give pip the index's password") and "wrong-one" not in f"{error.message}{error.remedy}"
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.delenv("PIP_NO_INDEX")
        set_all(monkeypatch, {"PIP_INDEX_URL": named.format("secret") + "simple/", "PIP_RETRIES": "0"})
        fetch(index, tmp_path / "cache")

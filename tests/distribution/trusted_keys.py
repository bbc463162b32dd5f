"""The owner of a channel's key, another machine that trusts it, and somebody in the middle."""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conda_packages import Place, place, write_package  # noqa: F401

from distribution import environment
from distribution.channel import keys
from distribution.channel.generations import Channel
from distribution.channel.server import ChannelServer

TEMPLATE = """\
name: dev
channels:
  - ${LLAMA_CPP_CHANNEL}
dependencies:
  - tool
"""


@pytest.fixture
def owner(place, tmp_path, monkeypatch) -> Place:
    """Who holds the key: ``tool`` 1 and 2 are published, and 2 needs ``helper``."""
    for name, folder in {
        "HOME": "home", "XDG_STATE_HOME": "state", "LLAMA_CPP_CACHE": "cache", "RATTLER_CACHE_DIR": "repodata",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.chdir(tmp_path)
    place.environment.write_text(TEMPLATE)
    place.publish(
        write_package(tmp_path / "built", "tool", "1.0", files={"bin/tool": b"one"}),
        write_package(tmp_path / "built", "tool", "2.0", depends=["helper"], files={"bin/tool": b"two"}),
        write_package(tmp_path / "built", "helper", files={"bin/helper": b"helper"}),
    )
    return place


@pytest.fixture
def key(owner, tmp_path) -> Path:
    """The owner's public key, as another machine has it."""
    return Path(shutil.copy(tmp_path / "config/llama-cpp/signing-key.pub", tmp_path / "owner.pub"))


@pytest.fixture
def elsewhere(key, tmp_path, monkeypatch) -> Path:
    """From here on this is another machine, with a key of its own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    keys.signing_key()
    return tmp_path / "elsewhere/llama-cpp"


def create(*arguments: object) -> dict[str, bytes]:
    """Make the environment ``env``; the programs in it."""
    parser = argparse.ArgumentParser()
    environment.add_commands(parser)
    options = parser.parse_args(["create", "-p", "env", "--force", *(str(one) for one in arguments)])
    options.run(options)
    return {path.name: path.read_bytes() for path in Path("env/bin").iterdir()}


def rewrite(path: Path, content: bytes) -> None:
    """Change a file of a generation without touching the other names it has."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


BOTH = {"tool": b"two", "helper": b"helper"}


@contextlib.contextmanager
def server(channel: Channel, change: Callable[[str, bytes], bytes] = lambda path, body: body) -> Iterator[str]:
    """Somebody in the middle: passes on what the channel's server says, changed."""
    with ChannelServer(channel, port=0) as real:
        threading.Thread(target=real.serve_forever, daemon=True).start()

        class Middle(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                import http.client

                connection = http.client.HTTPConnection(*real.server_address[:2])
                connection.request("GET", self.path, headers={"Host": self.headers["Host"]})
                answer = connection.getresponse()
                body = answer.read()
                connection.close()
                body = change(self.path, body) if answer.status == 200 else body
                self.send_response(answer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Middle) as middle:
            threading.Thread(target=middle.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{middle.server_address[1]}"
            middle.shutdown()
        real.shutdown()


def change_depends(index: bytes) -> bytes:
    document = json.loads(index)
    document["packages.conda"]["tool-2.0-0.conda"]["depends"] = []
    return json.dumps(document).encode()


def more(folder: Path) -> Path:
    return write_package(folder / "more", "more")

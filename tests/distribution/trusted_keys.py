"""The owner of a channel's key, another machine that trusts it, and somebody in the middle."""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from conda_packages import Place, write_package
from distribution import environment
from distribution.channel.server import ChannelServer
from distribution.channel.store import Channel

TEMPLATE = """\
name: dev
channels:
  - ${LLAMA_CPP_CHANNEL}
dependencies:
  - tool
"""


def publish_tools(place: Place, folder: Path) -> None:
    """``tool`` 1 and 2, of which 2 needs ``helper``."""
    place.environment.write_text(TEMPLATE)
    place.publish(
        write_package(folder / "built", "tool", "1.0", files={"bin/tool": b"one"}),
        write_package(folder / "built", "tool", "2.0", depends=["helper"], files={"bin/tool": b"two"}),
        write_package(folder / "built", "helper", files={"bin/helper": b"helper"}),
    )


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

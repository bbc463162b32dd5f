"""Layers on an RPC server, a real one on loopback, and what happens when there is none; split modes."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from llama_cpp.errors import InvalidArgumentError, RemoteDeviceError


@pytest.fixture(scope="module")
def libraries(engine_tool, lib_dir, tmp_path_factory) -> Path:
    """The libraries with the RPC plugin among them, as the conda packages have it."""
    folder = tmp_path_factory.mktemp("rpc") / "lib"
    folder.mkdir()
    server = engine_tool("ggml-rpc-server")
    engine_tool("ggml-rpc")
    for file in lib_dir.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "libggml-rpc.so").symlink_to(server.parent / "libggml-rpc.so")
    (folder / "server").symlink_to(server)
    return folder


@contextmanager
def serving(libraries):
    """A server that computes on a processor; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [os.path.realpath(libraries / "server"), "--host", "127.0.0.1", "--port", str(port), "-t", "1", "-d", "CPU"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        assert process.poll() is None
        yield port
    finally:
        process.kill()
        process.wait()


RUN = """
import sys
from llama_cpp import Llama
from llama_cpp.errors import LlamaCppError
model, servers = sys.argv[1], sys.argv[2] or None
def answer(llm):
    return llm.create_completion("The capital of France is", max_tokens=8, temperature=0)["choices"][0]["text"]
for _ in range(2):  # a closed model gives the server back
    with Llama(model, n_ctx=256, n_threads=1, rpc_servers=servers) as llm:
        if servers:
            try:
                Llama(model, n_ctx=256, n_threads=1, rpc_servers=[servers])
            except LlamaCppError as error:
                print(error, file=sys.stderr)
        print(answer(llm))
"""


def test_layers_on_a_server_compute_the_same(libraries, smollm2, run_python):
    alone = run_python(RUN, str(smollm2), "", LLAMA_CPP_LIB_PATH=str(libraries))
    assert alone.returncode == 0, alone.stderr
    with serving(libraries) as port:
        remote = run_python(RUN, str(smollm2), f"127.0.0.1:{port}", LLAMA_CPP_LIB_PATH=str(libraries))
    assert remote.returncode == 0, remote.stderr
    assert remote.stdout == alone.stdout and "Paris" in remote.stdout
    assert remote.stderr.count("has parts of another model") == 2
    assert f"what this model computes on 127.0.0.1:{port} goes there unencrypted" in remote.stderr


ATTEMPT = """
import sys
from llama_cpp import Llama
try:
    Llama(sys.argv[1], n_ctx=256, rpc_servers=sys.argv[2])
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_server_that_is_not_there_is_an_error(libraries, smollm2, run_python, tmp_path):
    def attempt(servers, **env):
        done = run_python(ATTEMPT, str(smollm2), servers, LLAMA_CPP_LIB_PATH=str(libraries), **env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert attempt("127.0.0.1:1").startswith("RemoteDeviceError The RPC server 127.0.0.1:1 cannot be reached")
    assert "is not host:port" in attempt("127.0.0.1") and "is not host:port" in attempt("127.0.0.1:50052,:1")
    assert "public address" in attempt("8.8.8.8:50052")
    with socket.create_server(("127.0.0.1", 0)) as other:  # something else

        def speak():
            connection, _ = other.accept()
            connection.recv(64)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b" " * 100)

        threading.Thread(target=speak, daemon=True).start()
        assert "is no RPC server of protocol" in attempt(f"127.0.0.1:{other.getsockname()[1]}")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "does not answer" in attempt(f"127.0.0.1:{silent.getsockname()[1]}")


def test_without_the_plugin_it_is_named(lib_dir, smollm2, run_python, libraries):
    with serving(libraries) as port:
        done = run_python(ATTEMPT, str(smollm2), f"127.0.0.1:{port}", LLAMA_CPP_LIB_PATH=str(lib_dir))
    assert done.stdout.startswith("MissingSymbolError") and "libggml-rpc" in done.stdout, done.stderr


def test_what_is_no_text_is_refused(smollm2):
    from llama_cpp import Llama

    with pytest.raises(InvalidArgumentError, match="rpc_servers"):
        Llama(smollm2, rpc_servers=[50052])
    assert issubclass(RemoteDeviceError, ConnectionError)


def test_rows_are_refused_where_a_backend_cannot_split_them(smollm2, monkeypatch):
    import llama_cpp
    from llama_cpp import Llama
    from llama_cpp.capi import ggml_backend
    from llama_cpp.models import rpc as devices

    with Llama(smollm2, vocab_only=True, split_mode=llama_cpp.LLAMA_SPLIT_MODE_ROW):
        pass  # no GPU, nothing to split
    # of the backends here none can; CUDA's answers the same
    monkeypatch.setattr(devices, "_gpus", lambda: [ggml_backend.ggml_backend_dev_get(0)])
    with pytest.raises(InvalidArgumentError, match=r"LLAMA_SPLIT_MODE_ROW.*LLAMA_SPLIT_MODE_LAYER"):
        Llama(smollm2, vocab_only=True, split_mode=llama_cpp.LLAMA_SPLIT_MODE_ROW)

"""What it costs to spread a model over several GPUs, or over an RPC server on loopback.

    python benchmarks/devices.py MODEL.gguf [--server rpc-server]

Each way runs the same requests; the first one, a single GPU, is what the others are compared with.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import time
from typing import Any

import numpy as np

from engine import many, one_stream, seen_logits
from llama_cpp import LLAMA_SPLIT_MODE_LAYER, LLAMA_SPLIT_MODE_NONE, LLAMA_SPLIT_MODE_TENSOR, Llama

PORT = 50052


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--server", help="llama.cpp's rpc-server, for the rows with RPC")
    parser.add_argument("--device", default="CUDA1", help="what the server computes on")
    o = parser.parse_args()
    ways: dict[str, dict[str, Any]] = {
        "one GPU": {"split_mode": LLAMA_SPLIT_MODE_NONE},
        "another one": {"split_mode": LLAMA_SPLIT_MODE_NONE, "main_gpu": 1},
        "layers over both": {"split_mode": LLAMA_SPLIT_MODE_LAYER},
        "layers, a quarter and the rest": {"tensor_split": [1, 3]},
        "tensors over both": {"split_mode": LLAMA_SPLIT_MODE_TENSOR},
    }
    server = None
    if o.server:
        server = subprocess.Popen([o.server, "--host", "127.0.0.1", "--port", str(PORT), "-d", o.device])
        while server.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", PORT)).close()
                break
            except OSError:
                time.sleep(0.1)
        remote = {"rpc_servers": f"127.0.0.1:{PORT}"}
        ways |= {
            "half through RPC": {**remote, "tensor_split": [1, 1, 0]},
            "all through RPC": {**remote, "tensor_split": [1, 0, 0]},
        }
    first: np.ndarray | None = None
    try:
        for name, arguments in ways.items():
            with Llama(o.model, n_ctx=320, n_parallel=32, flash_attn=True, **arguments) as llm:
                logits = seen_logits(llm, list(range(1000, 1100)))
                first = logits if first is None else first
                alone = max(one_stream(llm, 128, temperature=0) for _ in range(2))
                many(llm, 32, 128, 16)
                together = max(many(llm, 32, 128, 64)[0] for _ in range(2))
            differ = float(np.abs(logits - first).max())
            print(f"{name:32} {alone:8.1f} tok/s alone {together:8.0f} of 32 requests; logits differ by {differ:.4f}", flush=True)
    finally:
        if server is not None:
            server.kill()


if __name__ == "__main__":
    main()

"""The first conversation: what ``make demo`` ends with."""

from __future__ import annotations

import subprocess
import sys

_PROMPT = "Explain in two sentences why the sky is blue."


def main() -> int:
    """Answers one prompt with the sample model and says how to go on."""
    command = [sys.executable, "-c", "from llama_cpp.cli import main; main()"]
    print(f"\n> {_PROMPT}", flush=True)
    done = subprocess.run([*command, "chat", "--prompt", _PROMPT, "--max-tokens", "120"], stdin=subprocess.DEVNULL)
    if done.returncode == 0:
        print("\nNext: .venv/bin/llama-cpp chat          (or --model your.gguf; --help lists the options)")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())

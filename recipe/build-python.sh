#!/usr/bin/env bash
# The Python package: no library inside, it finds the environment's.
set -euo pipefail
cd "$SRC_DIR"
python -m pip install . --no-deps --no-build-isolation --no-index --no-compile -vv --config-settings=wheel.cmake=false
python -m distribution provenance --package llama-cpp-python --output "$PREFIX/share/llama.cpp/llama-cpp-python"

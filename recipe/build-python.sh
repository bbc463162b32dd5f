#!/usr/bin/env bash
# The Python package: no library inside, it finds the environment's.
set -euo pipefail
cd "$SRC_DIR"
python -m pip install . --no-deps --no-build-isolation --no-index --no-compile -vv --config-settings=wheel.cmake=false
# pip notes the folder it installed from, which is nowhere else
cd "$PREFIX"/lib/python*/site-packages/llama_cpp_python-*.dist-info
rm direct_url.json
sed -i '/\.dist-info\/direct_url\.json,/d' RECORD
cd "$SRC_DIR"
python -m distribution provenance --package llama-cpp-python --output "$PREFIX/share/llama.cpp/llama-cpp-python"

#!/usr/bin/env bash
# The Python package: no library inside, it finds the environment's.
set -euo pipefail
source "$RECIPE_DIR/same-name.sh"
cd "$SRC_DIR"
note_sources "$(python -m distribution.packaging.inputs python)"
# all that pip needs to be told is said here
for name in "${!PIP_@}"; do
  unset "$name"
done
PIP_CONFIG_FILE=/dev/null \
  python -m pip install . --no-deps --no-build-isolation --no-index --no-compile -vv --config-settings=wheel.cmake=false
# pip notes the folder it installed from, which is nowhere else
cd "$PREFIX"/lib/python*/site-packages/llama_cpp_python-*.dist-info
rm direct_url.json
sed -i '/\.dist-info\/direct_url\.json,/d' RECORD
cd "$SRC_DIR"
python -m distribution provenance --package llama-cpp-python --output "$PREFIX/share/llama.cpp/llama-cpp-python"

#!/usr/bin/env bash
# The engine, its CPU plugins and its tools: no CUDA, so that these packages are the same for every GPU.
set -euo pipefail
source "$RECIPE_DIR/build-common.sh"

configure -DGGML_CUDA=OFF -DLLAMA_CPP_TOOLS=ON
cmake --build $tree --parallel "$jobs" --target llama_cpp_libraries llama_cpp_tools
cmake --install $tree --component llama_cpp --strip
cmake --install $tree --component llama_cpp_tools --strip
# people know it by its old name
ln -s ggml-rpc-server "$PREFIX/bin/rpc-server"

for step in activate deactivate; do
  install -D -m 644 "$RECIPE_DIR/activate/$step.sh" "$PREFIX/etc/conda/$step.d/libllama.sh"
done
provenance libllama
provenance llama.cpp
mkdir -p licenses
cp "$PREFIX"/share/llama.cpp/licenses/* licenses/

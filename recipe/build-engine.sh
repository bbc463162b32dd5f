#!/usr/bin/env bash
# The engine, its CPU plugins and its tools: no CUDA, so that these packages are the same for every GPU.
set -euo pipefail
source "$RECIPE_DIR/build-common.sh"

compile() {
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
}

# Whoever builds one package after the other comes here once for each: build engines know a staging by its prefix, too, which
# is named after the package. What was installed the first time serves the second, since no file in it holds the prefix.
staged="${LLAMA_CPP_STAGED:-}"
if [ -n "$staged" ] && [ -e "$staged/complete" ]; then
  echo "compiled before: taken from $staged"
  cp -a "$staged/prefix/." "$PREFIX/"
else
  compile
  if [ -n "$staged" ]; then
    mkdir -p "$staged/prefix"
    cp -a "$PREFIX"/{bin,etc,lib,share} "$staged/prefix/"
    touch "$staged/complete"
  fi
fi
mkdir -p licenses
cp "$PREFIX"/share/llama.cpp/licenses/* licenses/

#!/usr/bin/env bash
# The engine, its CPU plugins and its tools: no CUDA, so that these packages are the same for every GPU.
set -euo pipefail
source "$RECIPE_DIR/build-common.sh"
source "$RECIPE_DIR/same-name.sh"
python -m distribution.packaging.inputs engine > sources-digest
# shellcheck disable=SC2086  # several patterns
refuse_other_sources "$(cat sources-digest)" ${LLAMA_CPP_PACKAGES:-}

compile() {
  fetch_engine
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
staged() {
  HOME="$home" python -m distribution.packaging.staged "$@" --builder "$builder" --sources "$(cat sources-digest)"
}
status=0
staged take || status=$?
if [ $status -eq 3 ]; then  # there is nothing
  compile
  staged keep
elif [ $status -ne 0 ]; then
  exit $status
fi
mkdir -p licenses
cp "$PREFIX"/share/llama.cpp/licenses/* licenses/
forget_sources

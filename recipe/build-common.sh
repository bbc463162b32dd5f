# Sourced by the scripts that compile. SRC_DIR holds this repository's files, PREFIX is where things are installed.

# Build engines forbid pip the network. Here it only fetches the pinned engine (native/cmake/source.cmake), whose hash is
# checked, unless that lies in the cache already.
unset PIP_NO_INDEX
for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_CONFIG_FILE CCACHE CCACHE_DIR CCACHE_DISABLE LLAMA_CPP_CACHE LLAMA_CPP_STAGED; do
  # the recipe passes what it finds, and an empty value is not the same as none
  [ -n "${!name:-}" ] || unset "$name"
done
export PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1
jobs="${CPU_COUNT:-$(nproc)}"
cd "$SRC_DIR"

# As deep as the build tree of a wheel: ccache then finds the same relative paths, and its results serve both.
tree=build/conda

configure() {
  # shellcheck disable=SC2086  # the compiler packages pass several arguments in CMAKE_ARGS
  cmake -S . -B $tree -G Ninja ${CMAKE_ARGS:-} \
    -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_INSTALL_PREFIX="$PREFIX" \
    -DLLAMA_CPP_LIB_DESTINATION=lib \
    -DLLAMA_CPP_LICENSE_DESTINATION=share/llama.cpp/licenses \
    ${CCACHE:+"-DCCACHE_PROGRAM=$CCACHE"} \
    "$@"
}

# What a package was made from, for people and for programs.
provenance() {
  python -m distribution provenance --package "$1" --build-tree $tree --output "$PREFIX/share/llama.cpp/$1"
}

# Sourced by the scripts that compile. SRC_DIR holds this repository's files, PREFIX is where things are installed.

for name in CCACHE CCACHE_DIR CCACHE_DISABLE LLAMA_CPP_CACHE LLAMA_CPP_SOURCE_DIR LLAMA_CPP_STAGED \
  XDG_CACHE_HOME XDG_CONFIG_HOME PIP_CONFIG_FILE PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_INDEX_URL; do
  # the recipe passes what it finds, and an empty value is not the same as none
  [ -n "${!name:-}" ] || unset "$name"
done
export PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1
jobs="${CPU_COUNT:-$(nproc)}"
builder=$PPID  # the build engine, which starts a script for each package
cd "$SRC_DIR"

# Build engines make the work folder a script's home. Caches and settings are those of whoever builds, and a relative path of
# theirs starts where they are.
home="${LLAMA_CPP_HOME:-$HOME}"
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$home/.cache}" XDG_CONFIG_HOME="${XDG_CONFIG_HOME:-$home/.config}"
for name in CCACHE_DIR LLAMA_CPP_CACHE LLAMA_CPP_SOURCE_DIR LLAMA_CPP_STAGED PIP_CERT PIP_CLIENT_CERT PIP_CONFIG_FILE; do
  case "${!name:-/}" in
    /*) ;;
    "~"*) export "$name=$home${!name#"~"}" ;;
    *) export "$name=${LLAMA_CPP_PWD:-$SRC_DIR}/${!name}" ;;
  esac
done
if [ -z "${CCACHE_DIR:-}" ] && [ -d "$home/.ccache" ]; then
  export CCACHE_DIR="$home/.ccache"
fi
export CCACHE_DIR="${CCACHE_DIR:-$XDG_CACHE_HOME/ccache}"
if ! mkdir -p "$CCACHE_DIR" 2> /dev/null || [ ! -w "$CCACHE_DIR" ]; then
  echo "$CCACHE_DIR cannot be written to: compiling without ccache"
  export CCACHE_DISABLE=1
fi

# As deep as the build tree of a wheel: ccache then finds the same relative paths, and its results serve both.
tree=build/conda

as_builder() {
  HOME="$home" python -m distribution "$@"
}

# The pinned engine, patched, in vendor/llama.cpp/source: what the checkout holds already, else from a checkout of llama.cpp that
# has the commit, else from the package index.
fetch_engine() {
  local origin="$RECIPE_DIR/../vendor/llama.cpp" checkout="${LLAMA_CPP_SOURCE_DIR:-}" part status
  unset LLAMA_CPP_SOURCE_DIR
  # git ignores it, and the build engine copies what git does not ignore
  if [ ! -e vendor/llama.cpp/source ] && [ -d "$origin/source" ]; then
    status="$(python -m distribution vendor --folder "$origin" status --json || true)"
    if [[ "$status" == *'"current": true'* ]]; then
      for part in source .source-state; do
        [ ! -e "$origin/$part" ] || cp -a --reflink=auto "$origin/$part" vendor/llama.cpp/
      done
    else
      echo "$origin/source is not the pinned llama.cpp with its patches: it is not used"
    fi
  fi
  if [ -n "$checkout" ]; then
    echo "packages are made of the pinned llama.cpp: of $checkout that commit is taken, and nothing else that is there"
    as_builder vendor --from-git "$checkout"
  else
    as_builder vendor
  fi
}

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

# The build engine keeps a copy of the work folder (build_cache), from which only licences are taken afterwards.
forget_sources() {
  rm -rf $tree vendor/llama.cpp/source vendor/llama.cpp/.source-*
}

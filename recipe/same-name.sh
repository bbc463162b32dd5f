# Sourced: keeps a package that was made from other sources from being overwritten by one of the same name. `python -m
# distribution build` names packages after their sources (LLAMA_CPP_INPUTS); otherwise the name says the version, the build
# number and the compilers. What each package was made from is noted beside the packages.
output="$(dirname "$(dirname "$BUILD_DIR")")"
notes="$output/.llama-cpp-sources"

refuse_other_sources() {  # the sources' digest, and patterns of packages' names
  local digest="$1" note name
  shift
  [ -z "${LLAMA_CPP_INPUTS:-}" ] || return 0
  for name in "$@"; do
    for note in "$notes"/$name; do  # a pattern
      name="$(basename "$note")"
      if [ -e "$note" ] && [ "$(cat "$note")" != "$digest" ] && compgen -G "$output/*/$name.*" > /dev/null; then
        echo "error: $name in $output was made from other sources, and would be overwritten" >&2
        echo "  remedy: raise build_number in recipe/recipe.yaml, or move that file away;" \
          "\`python -m distribution build\` names packages after their sources" >&2
        exit 1
      fi
    done
  done
}

note_sources() {  # the sources' digest
  local name="$PKG_NAME-$PKG_VERSION-$PKG_BUILD_STRING"
  refuse_other_sources "$1" "$name"
  [ -z "${LLAMA_CPP_INPUTS:-}" ] || return 0
  if compgen -G "$output/*/$name.*" > /dev/null; then
    echo "$name is in $output, of the same sources, and is made anew"
  fi
  mkdir -p "$notes"
  echo "$1" > "$notes/$name"
}

#!/usr/bin/env bash
# A package of what was compiled before.
set -euo pipefail
source "$RECIPE_DIR/same-name.sh"
note_sources "$(cat "$SRC_DIR/sources-digest")"

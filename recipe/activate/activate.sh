# The libraries of this environment come first, also when the shell points at others. Deactivation restores that: under a name
# for each level, because `conda activate --stack` puts one environment on top of another. conda runs this again, and nothing
# before it, when the one on top is deactivated: what was found the first time is kept then.
case "${CONDA_SHLVL:-0}" in
  *[!0-9]*) _llama_cpp_level=0 ;;
  *) _llama_cpp_level="${CONDA_SHLVL:-0}" ;;
esac
eval "_llama_cpp_kept=\"\${_LLAMA_CPP_LIB_PATH_BEFORE_$_llama_cpp_level-}\""
if [ -z "$_llama_cpp_kept" ] || [ "${LLAMA_CPP_LIB_PATH-}" != "$CONDA_PREFIX/lib" ]; then
  # "set:" and the value, which may be empty, or "unset"
  if [ -n "${LLAMA_CPP_LIB_PATH+set}" ]; then
    eval "export _LLAMA_CPP_LIB_PATH_BEFORE_$_llama_cpp_level=\"set:\$LLAMA_CPP_LIB_PATH\""
  else
    eval "export _LLAMA_CPP_LIB_PATH_BEFORE_$_llama_cpp_level=unset"
  fi
  export LLAMA_CPP_LIB_PATH="$CONDA_PREFIX/lib"
fi
unset _llama_cpp_level _llama_cpp_kept

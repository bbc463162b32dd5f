# Without a value from before this was never activated: conda runs both scripts after it has installed them.
case "${CONDA_SHLVL:-0}" in
  *[!0-9]*) _llama_cpp_level=0 ;;
  *) _llama_cpp_level="${CONDA_SHLVL:-0}" ;;
esac
eval "_llama_cpp_kept=\"\${_LLAMA_CPP_LIB_PATH_BEFORE_$_llama_cpp_level-}\""
case "$_llama_cpp_kept" in
  set:*) export LLAMA_CPP_LIB_PATH="${_llama_cpp_kept#set:}" ;;
  unset) unset LLAMA_CPP_LIB_PATH ;;
esac
unset "_LLAMA_CPP_LIB_PATH_BEFORE_$_llama_cpp_level" _llama_cpp_level _llama_cpp_kept

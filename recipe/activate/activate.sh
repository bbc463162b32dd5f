# The libraries of this environment come first, also when the shell points at others. Deactivation restores that.
if [ -n "${LLAMA_CPP_LIB_PATH+set}" ]; then
  export _LLAMA_CPP_LIB_PATH_BEFORE="$LLAMA_CPP_LIB_PATH"
fi
export LLAMA_CPP_LIB_PATH="$CONDA_PREFIX/lib"

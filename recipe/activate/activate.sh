# The libraries of this environment come first, also when the shell points at others. Deactivation restores that: under a name
# for each level, because `conda activate --stack` puts one environment on top of another.
if [ -n "${LLAMA_CPP_LIB_PATH+set}" ]; then
  eval "export _LLAMA_CPP_LIB_PATH_BEFORE_${CONDA_SHLVL:-0}=\"\$LLAMA_CPP_LIB_PATH\""
else
  unset "_LLAMA_CPP_LIB_PATH_BEFORE_${CONDA_SHLVL:-0}"
fi
export LLAMA_CPP_LIB_PATH="$CONDA_PREFIX/lib"

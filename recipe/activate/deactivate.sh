if eval "[ -n \"\${_LLAMA_CPP_LIB_PATH_BEFORE_${CONDA_SHLVL:-0}+set}\" ]"; then
  eval "export LLAMA_CPP_LIB_PATH=\"\$_LLAMA_CPP_LIB_PATH_BEFORE_${CONDA_SHLVL:-0}\""
  unset "_LLAMA_CPP_LIB_PATH_BEFORE_${CONDA_SHLVL:-0}"
else
  unset LLAMA_CPP_LIB_PATH
fi

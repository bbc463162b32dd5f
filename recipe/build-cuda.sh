#!/usr/bin/env bash
# The CUDA plugin alone. ggml-base is compiled along, because the plugin is linked to it; the one that runs is libllama's.
set -euo pipefail
source "$RECIPE_DIR/build-common.sh"
source "$RECIPE_DIR/same-name.sh"
python -m distribution.packaging.inputs engine cuda > sources-digest
refuse_other_sources "$(cat sources-digest)" "${LLAMA_CPP_PACKAGES:-}"
fetch_engine

# Not set by every compiler package: where nvcc is, and where the libraries it links are.
export CUDACXX="${CUDACXX:-$BUILD_PREFIX/bin/nvcc}"
toolkit="$BUILD_PREFIX;$BUILD_PREFIX/targets/x86_64-linux;$PREFIX;$PREFIX/targets/x86_64-linux"
unset CUDAARCHS CMAKE_CUDA_ARCHITECTURES  # the variant decides

configure -DGGML_CUDA=ON \
  "-DCMAKE_CUDA_ARCHITECTURES=${LLAMA_CPP_CUDA_ARCHITECTURES// /;}" \
  "-DCUDAToolkit_ROOT=$toolkit" \
  "-DGGML_CUDA_FA_QUANTS=$LLAMA_CPP_CUDA_FA_QUANTS"
cmake --build $tree --parallel "$jobs" --target ggml-cuda
cmake --install $tree --component llama_cpp_cuda --strip
provenance libggml-cuda

mkdir -p licenses
cp "$RECIPE_DIR/NVIDIA.txt" licenses/
cp vendor/llama.cpp/source/LICENSE licenses/llama.cpp.txt
python "$RECIPE_DIR/nvidia_licences.py" licenses "$BUILD_PREFIX" "$PREFIX"
forget_sources

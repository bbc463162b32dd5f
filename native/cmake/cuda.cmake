# Decides whether this is a CUDA build and says why. CMake itself reads neither of the variables people set
# (CMAKE_CUDA_ARCHITECTURES in the environment; GGML_CUDA is llama.cpp's), so asking for an architecture
# used to give a CPU build without a word.

# What an earlier run in this build tree found out by itself is no wish: pip asks anew each time (CMakeInit.txt sets
# SKBUILD_STATE), and so does whoever sets the variable. A regeneration by ninja knows neither, and keeps the choice.
if(DEFINED LLAMA_CPP_FOUND_ARCHITECTURES)
  if(DEFINED CACHE{SKBUILD_STATE} OR NOT "$ENV{CMAKE_CUDA_ARCHITECTURES}$ENV{CUDAARCHS}" STREQUAL "")
    if("${CMAKE_CUDA_ARCHITECTURES}" STREQUAL "${LLAMA_CPP_FOUND_ARCHITECTURES}")
      unset(CMAKE_CUDA_ARCHITECTURES CACHE)
      unset(CMAKE_CUDA_ARCHITECTURES)
    endif()
    unset(LLAMA_CPP_FOUND_ARCHITECTURES CACHE)
  endif()
endif()
unset(SKBUILD_STATE CACHE)

set(cuda_reason "")
set(cuda_architectures "${CMAKE_CUDA_ARCHITECTURES}")
set(cuda_found OFF)  # by the environment or the GPU, not by -D
foreach(variable CMAKE_CUDA_ARCHITECTURES CUDAARCHS)
  if(NOT cuda_architectures AND NOT "$ENV{${variable}}" STREQUAL "")
    set(cuda_architectures "$ENV{${variable}}")
    set(cuda_reason "the environment sets ${variable}=$ENV{${variable}}")
    set(cuda_found ON)
  endif()
endforeach()
if(CMAKE_CUDA_ARCHITECTURES)
  set(cuda_reason "CMAKE_CUDA_ARCHITECTURES=${CMAKE_CUDA_ARCHITECTURES} was given")
endif()
if(DEFINED LLAMA_CPP_FOUND_ARCHITECTURES)
  set(cuda_reason "as before")
  set(cuda_found ON)
endif()
string(REPLACE "," ";" cuda_architectures "${cuda_architectures}")
string(REPLACE " " ";" cuda_architectures "${cuda_architectures}")

# A compiler named by hand, then a toolkit named by hand, then the one assembled from wheels, then PATH.
set(nvcc "")
if(CMAKE_CUDA_COMPILER)
  set(nvcc "${CMAKE_CUDA_COMPILER}")
elseif(NOT "$ENV{CUDACXX}" STREQUAL "")
  set(nvcc "$ENV{CUDACXX}")
else()
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -E env --unset=PYTHONSAFEPATH "${Python3_EXECUTABLE}" -m distribution toolkit --assembled-path
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
    OUTPUT_VARIABLE assembled_toolkit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_program(nvcc_program nvcc NO_CACHE NO_DEFAULT_PATH
    PATHS "$ENV{CUDA_PATH}" "$ENV{CUDA_HOME}" "${assembled_toolkit}" PATH_SUFFIXES bin)
  find_program(nvcc_program nvcc NO_CACHE PATHS /usr/local/cuda/bin)
  if(nvcc_program)
    set(nvcc "${nvcc_program}")
  endif()
endif()

# What the driver says is plugged in; empty without a driver or a GPU.
find_program(nvidia_smi nvidia-smi NO_CACHE)
set(gpu_capabilities "")
if(nvidia_smi)
  execute_process(COMMAND "${nvidia_smi}" --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE gpu_capabilities OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(failed)
    set(gpu_capabilities "")
  endif()
endif()

if(DEFINED GGML_CUDA)
  set(cuda_reason "GGML_CUDA=${GGML_CUDA} was given")
elseif(cuda_architectures)
  set(GGML_CUDA ON)
elseif(nvcc AND gpu_capabilities)
  set(GGML_CUDA ON)
  set(cuda_reason "nvcc and a GPU are present")
else()
  set(GGML_CUDA OFF)
  if(NOT gpu_capabilities)
    set(cuda_reason "no NVIDIA GPU was found; CMAKE_CUDA_ARCHITECTURES=120 builds for one this machine lacks")
  else()
    set(cuda_reason "a GPU is present but no nvcc; `python -m distribution toolkit` assembles CUDA without root")
  endif()
endif()

if(NOT GGML_CUDA)
  message(STATUS "llama_cpp: CPU build: ${cuda_reason}")
  return()
endif()

# In the build of a package the variant says which compiler there is, and nothing else counts.
if("$ENV{CONDA_BUILD}" STREQUAL "1")
  set(cuda_key "`cuda_compiler_version` in the variant file (recipe/variants.yaml)")
  set(cuda_install "Name a CUDA compiler there is: ${cuda_key}.")
  set(cuda_change "set ${cuda_key}, to 13.4 for example.")
else()
  string(CONCAT cuda_install "Install a CUDA toolkit and set CUDA_PATH, or let `python -m distribution toolkit` "
    "assemble CUDA 13.4 from wheels.")
  set(cuda_change "for example `python -m distribution toolkit` (13.4).")
endif()

if(NOT nvcc)
  message(FATAL_ERROR "A CUDA build was asked for (${cuda_reason}) and there is no nvcc. ${cuda_install}")
endif()

# CMake's own words for sets of architectures become numbers, which the manifest beside the plugin can state.
if(NOT cuda_architectures OR cuda_architectures STREQUAL "native")
  if(NOT gpu_capabilities)
    message(FATAL_ERROR "A CUDA build for this machine's GPU, and no GPU to ask: say which one it is for, "
      "for example CMAKE_CUDA_ARCHITECTURES=120 (RTX 5090).")
  endif()
  string(REPLACE "\n" ";" cuda_architectures "${gpu_capabilities}")
  string(REPLACE "." "" cuda_architectures "${cuda_architectures}")
  list(REMOVE_DUPLICATES cuda_architectures)
  list(TRANSFORM cuda_architectures APPEND "-real")
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(cuda_found ON)
  endif()
elseif(cuda_architectures MATCHES "^all(-major)?$")
  execute_process(COMMAND "${nvcc}" --list-gpu-code OUTPUT_VARIABLE gpu_codes RESULT_VARIABLE failed)
  string(REGEX MATCHALL "sm_[0-9]+" gpu_codes "${gpu_codes}")
  if(failed OR NOT gpu_codes)
    message(FATAL_ERROR "${nvcc} does not say which architectures it knows (--list-gpu-code); name them one by one.")
  endif()
  if(cuda_architectures STREQUAL "all-major")
    list(FILTER gpu_codes INCLUDE REGEX "0$")
  endif()
  list(TRANSFORM gpu_codes REPLACE "sm_(.*)" "\\1-real" OUTPUT_VARIABLE cuda_architectures)
endif()

# Blackwell's FP4 tensor-core instructions exist only in the architecture-specific target (120a), which has no
# forward-compatible PTX: one GPU family, machine code only.
set(normalized "")
foreach(architecture IN LISTS cuda_architectures)
  string(REGEX REPLACE "^(12[0-9])(a|f)?(-real|-virtual)?$" "\\1a-real" architecture "${architecture}")
  list(APPEND normalized "${architecture}")
endforeach()
set(CMAKE_CUDA_ARCHITECTURES "${normalized}" CACHE STRING "" FORCE)
if(cuda_found)
  set(LLAMA_CPP_FOUND_ARCHITECTURES "${normalized}" CACHE INTERNAL "CMAKE_CUDA_ARCHITECTURES as this file set it")
endif()
set(GGML_CUDA ON)

set(CMAKE_CUDA_COMPILER "${nvcc}" CACHE FILEPATH "" FORCE)
get_filename_component(cuda_bin "${nvcc}" REALPATH)
get_filename_component(cuda_bin "${cuda_bin}" DIRECTORY)
get_filename_component(cuda_root "${cuda_bin}" DIRECTORY)
if(NOT CUDAToolkit_ROOT AND EXISTS "${cuda_root}/include/cuda_runtime.h")
  set(CUDAToolkit_ROOT "${cuda_root}" CACHE PATH "")
endif()

execute_process(COMMAND "${nvcc}" --version OUTPUT_VARIABLE nvcc_version RESULT_VARIABLE failed)
string(REGEX MATCH "V([0-9]+\\.[0-9]+\\.[0-9]+)" matched "${nvcc_version}")
set(nvcc_version "${CMAKE_MATCH_1}")
if(failed OR NOT nvcc_version)
  message(FATAL_ERROR "${nvcc} does not run; set CUDACXX or CUDA_PATH to a working CUDA toolkit.")
endif()
if(nvcc_version VERSION_GREATER_EQUAL 13.2.0 AND nvcc_version VERSION_LESS 13.2.86)
  message(FATAL_ERROR "nvcc ${nvcc_version} miscompiles the IQ1_S, IQ2_S and IQ3_S kernels for sm_120 "
    "(llama.cpp issues 28581 and 28784): models answer garbage. Use 13.2.86 or later: ${cuda_change}")
endif()
if(normalized MATCHES "12[0-9]a" AND nvcc_version VERSION_LESS 12.8)
  message(FATAL_ERROR "nvcc ${nvcc_version} does not know compute capability 12.0; CUDA 12.8 or later does: ${cuda_change}")
endif()
set(LLAMA_CPP_CUDA_VERSION "${nvcc_version}")
message(STATUS "llama_cpp: CUDA ${nvcc_version} build for ${normalized}: ${cuda_reason}")

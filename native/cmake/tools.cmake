# The programs of the conda package llama.cpp. Most are an executable of a few lines over a library of their own.

set(PROGRAMS llama-server llama-cli llama-bench llama-batched-bench llama-quantize llama-gguf-split llama-perplexity
  ggml-rpc-server)
set(program_libraries "")
foreach(program IN LISTS PROGRAMS)
  if(TARGET ${program}-impl)
    list(APPEND program_libraries ${program}-impl)
  endif()
endforeach()

if(VISIBLE)
  set_target_properties(${program_libraries} PROPERTIES ${VISIBLE})
endif()

add_custom_target(llama_cpp_tools DEPENDS ${PROGRAMS} ggml-rpc)
set_target_properties(${PROGRAMS} PROPERTIES INSTALL_RPATH "$ORIGIN/../${LLAMA_CPP_LIB_DESTINATION}")
install(TARGETS ${PROGRAMS} RUNTIME DESTINATION bin COMPONENT llama_cpp_tools)
install(TARGETS ${program_libraries} ggml-rpc
  LIBRARY DESTINATION "${LLAMA_CPP_LIB_DESTINATION}" COMPONENT llama_cpp_tools)

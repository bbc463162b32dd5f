# Installs the licence of llama.cpp and of everything it vendors that ends up in the libraries.

set(LLAMA_CPP_LICENSE_DESTINATION "llama_cpp/licenses" CACHE STRING "Where the licences are installed")

function(install_license name file)
  install(FILES "${file}" RENAME "${name}.txt" DESTINATION "${LLAMA_CPP_LICENSE_DESTINATION}" COMPONENT llama_cpp)
endfunction()

# For single-file libraries, whose licence is a comment at the beginning or the end of the file.
function(extract_license name file first_words)
  file(READ "${LLAMA_CPP_SOURCE}/${file}" text)
  string(FIND "${text}" "${first_words}" start REVERSE)
  if(start LESS 0)
    message(FATAL_ERROR "${file} no longer holds its licence where native/cmake/licenses.cmake looks for it.")
  endif()
  string(SUBSTRING "${text}" ${start} 4096 text)
  string(FIND "${text}" "*/" end)
  if(end LESS 0)
    string(FIND "${text}" "\n\n#" end)
  endif()
  string(SUBSTRING "${text}" 0 ${end} text)
  file(WRITE "${CMAKE_BINARY_DIR}/licenses/${name}.txt" "${text}")
  install_license(${name} "${CMAKE_BINARY_DIR}/licenses/${name}.txt")
endfunction()

install_license(llama.cpp     "${LLAMA_CPP_SOURCE}/LICENSE")
install_license(nlohmann-json "${LLAMA_CPP_SOURCE}/licenses/LICENSE-jsonhpp")
install_license(cpp-httplib   "${LLAMA_CPP_SOURCE}/vendor/cpp-httplib/LICENSE")
# all of vendor/hash is linked to libmtmd; the linker takes what is called
install_license(sha256        "${LLAMA_CPP_SOURCE}/vendor/hash/sha256/LICENSE")
install_license(xxhash        "${LLAMA_CPP_SOURCE}/vendor/hash/xxhash/LICENSE")
install_license(rotate-bits   "${LLAMA_CPP_SOURCE}/vendor/hash/rotate-bits/LICENSE.md")
extract_license(sha1          vendor/hash/sha1/sha1.h "SHA-1 in C")
extract_license(base64        common/base64.hpp "This is free and unencumbered software")
extract_license(miniaudio     vendor/miniaudio/miniaudio.h "This software is available as a choice")
extract_license(stb           vendor/stb/stb_image.h "This software is available under 2 licenses")
extract_license(subprocess    vendor/sheredom/subprocess.h "This is free and unencumbered software")
extract_license(llamafile     ggml/src/ggml-cpu/llamafile/sgemm.cpp "// Copyright 2024 Mozilla Foundation")

# Finds the llama.cpp source to build and the commit it is, fetching the pinned one when nothing is there.

if(NOT LLAMA_CPP_SOURCE_DIR AND DEFINED ENV{LLAMA_CPP_SOURCE_DIR})
  set(LLAMA_CPP_SOURCE_DIR "$ENV{LLAMA_CPP_SOURCE_DIR}")
endif()

file(STRINGS "${PROJECT_SOURCE_DIR}/vendor/llama.cpp/pin.toml" pin_lines REGEX "^commit *=")
string(REGEX MATCH "[0-9a-f]+\"" LLAMA_CPP_COMMIT "${pin_lines}")
string(REPLACE "\"" "" LLAMA_CPP_COMMIT "${LLAMA_CPP_COMMIT}")

if(LLAMA_CPP_SOURCE_DIR)
  get_filename_component(LLAMA_CPP_SOURCE "${LLAMA_CPP_SOURCE_DIR}" ABSOLUTE)
  # a checkout says itself what it is; one without git is taken for what is pinned
  find_program(GIT_PROGRAM git)
  if(GIT_PROGRAM AND EXISTS "${LLAMA_CPP_SOURCE}/.git")
    execute_process(COMMAND "${GIT_PROGRAM}" -C "${LLAMA_CPP_SOURCE}" rev-parse HEAD
      OUTPUT_VARIABLE checkout_commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
    if(NOT failed)
      set(LLAMA_CPP_COMMIT "${checkout_commit}")
    endif()
  endif()
else()
  set(LLAMA_CPP_SOURCE "${PROJECT_SOURCE_DIR}/vendor/llama.cpp/source")
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -E env --unset=PYTHONSAFEPATH "${Python3_EXECUTABLE}" -m distribution vendor
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}" RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "The pinned llama.cpp source is not there; the message above says what to do.")
  endif()
endif()

refuse_unusable_name("${LLAMA_CPP_SOURCE}")
if(NOT EXISTS "${LLAMA_CPP_SOURCE}/include/llama.h")
  message(FATAL_ERROR "${LLAMA_CPP_SOURCE} is not a llama.cpp source tree (no include/llama.h).")
endif()
message(STATUS "llama_cpp: engine ${LLAMA_CPP_COMMIT} from ${LLAMA_CPP_SOURCE}")

# ninja would configure again and again, a hundred times, and then say nothing of the file. The time is that of a file written
# now: string(TIMESTAMP) says SOURCE_DATE_EPOCH where a build engine sets that, and what is fetched in the build is newer.
file(TOUCH "${CMAKE_BINARY_DIR}/now")
file(TIMESTAMP "${CMAKE_BINARY_DIR}/now" now "%s" UTC)
file(GLOB read_first "${PROJECT_SOURCE_DIR}/CMakeLists.txt" "${PROJECT_SOURCE_DIR}/native/CMakeLists.txt"
  "${PROJECT_SOURCE_DIR}/native/cmake/*.cmake" "${LLAMA_CPP_SOURCE}/CMakeLists.txt" "${LLAMA_CPP_SOURCE}/*/CMakeLists.txt")
foreach(file IN LISTS read_first)
  file(TIMESTAMP "${file}" written "%s" UTC)
  if(written GREATER now)
    message(FATAL_ERROR "${file} is newer than this machine's clock. Set the clock, or run: touch '${file}'")
  endif()
endforeach()

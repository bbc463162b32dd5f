# Which folders a build can lie in, and how they are written into compiler flags. Included before project(), whose own tests
# of the compiler fail in a folder that CMake cannot handle, and do not say why.

function(refuse_unusable_name folder)
  # file(GLOB) takes some of them for patterns, a rule's name may not hold others, and the rest is quoted wrongly somewhere.
  # distribution/install.py has the same list.
  set(characters "\"#$;|<>*?`\n\\")
  if(CMAKE_GENERATOR MATCHES "Makefiles")
    string(APPEND characters ":\t")
  endif()
  if("${folder}" MATCHES "[][${characters}]")
    message(FATAL_ERROR "The folder ${folder} cannot be built in: CMake cannot handle the character ${CMAKE_MATCH_0} in "
      "its name. Rename or move it; spaces and letters of any alphabet are fine.")
  endif()
endfunction()

# A flag as CMAKE_<LANG>_FLAGS holds it: a word of the shell's. As it is where it needs no quotes: these flags are part of what
# ninja remembers of an object.
function(quote_flag flag result)
  if(flag MATCHES "[^A-Za-z0-9/=._+@%:-]")
    string(REPLACE "'" "'\\''" flag "${flag}")
    set(flag "'${flag}'")
  endif()
  set(${result} "${flag}" PARENT_SCOPE)
endfunction()

# The same for a flag that nvcc hands on: it splits at commas, and calls a shell of its own.
function(quote_flag_for_nvcc flag result)
  if(flag MATCHES "[^A-Za-z0-9/=._+@%:-]")
    set(flag "\"${flag}\"")
  endif()
  quote_flag("-Xcompiler=${flag}" flag)
  set(${result} "${flag}" PARENT_SCOPE)
endfunction()

# Read by CMake at the end of every project() of llama.cpp's build (CMAKE_PROJECT_INCLUDE, set in
# .cargo/config.toml): ggml's C files see wait.h first. Its C++ files never wait for each other.
if(CMAKE_C_COMPILER_ID MATCHES "GNU|Clang" AND CMAKE_SYSTEM_NAME STREQUAL "Linux"
   AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  add_compile_options("$<$<COMPILE_LANGUAGE:C>:SHELL:-include \"${CMAKE_CURRENT_LIST_DIR}/wait.h\">")
endif()

# Build settings every target of ours shares: language level, warnings as errors, sanitizers.
add_library(fovea_settings INTERFACE)
target_compile_features(fovea_settings INTERFACE cxx_std_20)
target_compile_options(fovea_settings INTERFACE
  -Wall -Wextra -Wpedantic -Wno-missing-field-initializers -Wshadow -Wnon-virtual-dtor -Wcast-align -Woverloaded-virtual -Werror
  -fvisibility=hidden -fno-math-errno -ffp-contract=off)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # False positives of GCC 12 on inlined standard containers at -O2.
  target_compile_options(fovea_settings INTERFACE -Wno-array-bounds -Wno-stringop-overflow -Wno-maybe-uninitialized -Wno-restrict)
endif()
if(FOVEA_SANITIZE)
  target_compile_options(fovea_settings INTERFACE -fsanitize=${FOVEA_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(fovea_settings INTERFACE -fsanitize=${FOVEA_SANITIZE})
endif()

// SPDX-License-Identifier: Apache-2.0
#include "fovea/io/npy.h"

#include "fovea/core/error.h"
#include "touch.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    fovea::touch(fovea::io::parse_npy(std::as_bytes(std::span(data, size)), nullptr, "fuzz"));
  } catch (const fovea::Error&) {
  }
  return 0;
}

// SPDX-License-Identifier: Apache-2.0
#include "fovea/io/safetensors.h"

#include "fovea/core/error.h"
#include "touch.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto file = fovea::io::parse_safetensors(std::as_bytes(std::span(data, size)), nullptr, "fuzz");
    for (const auto& [name, tensor] : file.tensors) fovea::touch(tensor);
  } catch (const fovea::Error&) {
  }
  return 0;
}

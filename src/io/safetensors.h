// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>

#include "fovea/core/operator.h"

namespace fovea::io {

/// The contents of a safetensors file. Tensors are views of the memory-mapped file and keep it mapped.
struct SafetensorsFile {
  Tensors tensors;
  std::map<std::string, std::string> metadata;
};

/// Types F32, F16, BF16, I8, U8, BOOL (as u8), I32, I64. Every offset, size and count of the header is
/// checked before use; a truncated, overlapping, oversized or lying file gives one Error that names the file
/// and the tensor.
SafetensorsFile read_safetensors(const std::string& path);
/// The same over bytes in memory, for fuzzing: `bytes` must outlive the tensors.
SafetensorsFile parse_safetensors(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                                  const std::string& name);

/// Writes to a temporary file beside `path`, then renames it; a failure leaves nothing behind.
void write_safetensors(const std::string& path, const Tensors& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace fovea::io

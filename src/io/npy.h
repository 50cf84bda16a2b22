// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>
#include <string>

#include "fovea/core/tensor.h"

namespace fovea::io {

/// NumPy .npy, versions 1 to 3, C order, little endian: f2 f4 i1 u1 b1 i4 i8. Memory-mapped.
Tensor read_npy(const std::string& path);
Tensor parse_npy(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                 const std::string& name);
void write_npy(const std::string& path, const Tensor& tensor);

}  // namespace fovea::io

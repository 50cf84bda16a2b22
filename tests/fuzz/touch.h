// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "fovea/core/tensor.h"

namespace fovea {

/// Reads every byte of a contiguous tensor, so that a view beyond its storage is seen by the sanitizer.
inline void touch(const Tensor& tensor) {
  static volatile uint8_t sink;
  for (int64_t i = 0; i < tensor.bytes(); ++i) sink = static_cast<const uint8_t*>(tensor.raw())[i];
}

}  // namespace fovea

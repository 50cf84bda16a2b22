// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "fovea/core/tensor.h"

namespace fovea {

/// Reads every byte of a contiguous tensor, so that a view beyond its storage is seen by the sanitizer.
inline void touch(const Tensor& tensor) {
  const auto* bytes = static_cast<const volatile uint8_t*>(tensor.raw());
  for (int64_t i = 0; i < tensor.bytes(); ++i) static_cast<void>(bytes[i]);
}

}  // namespace fovea

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/core/tensor.h"

namespace fovea::kernels::cpu {

/// The tensor itself when its rows (last axis) are contiguous, else a copy.
inline Tensor with_dense_rows(const Tensor& x) {
  return x.dim(-1) <= 1 || x.stride(-1) == 1 ? x : x.contiguous();
}

}  // namespace fovea::kernels::cpu

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/core/tensor.h"

namespace fovea::kernels {

/// y = H_n x / sqrt(n) on every run of n consecutive channels of the last axis (f32, n a power of two that
/// divides it), H_n the Sylvester-ordered Walsh-Hadamard matrix; in place. Its own inverse.
void hadamard_rows(const Tensor& x, int64_t n);

}  // namespace fovea::kernels

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/core/tensor.h"

namespace fovea::kernels {

/// y = x * sigmoid(beta x) * gate (gate may be undefined: 1), contiguous f32 of one shape; y may be x.
void silu_multiply(const Tensor& x, const Tensor& gate, const Tensor& y, float beta = 1.0f);
/// y += x, contiguous f32 of one shape.
void add_in_place(const Tensor& y, const Tensor& x);

}  // namespace fovea::kernels

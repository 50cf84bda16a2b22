// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/core/tensor.h"

/// Elementwise combinations of f32 tensors, and products of their rows.
namespace fovea::kernels {

/// weight_h a + (1 - weight_h) b: a, b [B,Hq,T,D], weight f32 [H] with Hq a multiple of H; head h has weight
/// h / (Hq/H).
Tensor blend_heads(const Tensor& a, const Tensor& b, const Tensor& weight);

/// x[..., c] * weight[c]: x [...,N], weight [N].
Tensor scale_channels(const Tensor& x, const Tensor& weight);

/// a - b.
Tensor difference(const Tensor& a, const Tensor& b);

/// Sums of x y over the last axis: [...,N] -> [...].
Tensor row_dots(const Tensor& x, const Tensor& y);

}  // namespace fovea::kernels

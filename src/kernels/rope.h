// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/core/tensor.h"

namespace fovea::kernels {

/// Cosines and sines [T,R/2] of the angles position * frequency, times `magnitude`, for T positions (i64 or
/// i32 [T]) and per-pair frequencies [R/2] f32.
struct RopeTable {
  Tensor cos, sin;
};
RopeTable rope_table(const Tensor& positions, const Tensor& frequencies, float magnitude = 1.0f);

/// theta^(-2m/rotated), m = 0 .. rotated/2-1.
Tensor rope_frequencies(int64_t rotated, double theta);

/// Rotates the pairs (m, m + R/2) of the first R channels of x [B,H,T,D] (f32), in place: half-split layout.
void apply_rope(const Tensor& x, const RopeTable& table);

}  // namespace fovea::kernels

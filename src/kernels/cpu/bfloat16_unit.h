// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace fovea::kernels::cpu {

/// What multiplies bf16 with f32 sums under the SIMD target in use (see target.h).
enum class BFloat16Unit {
  none,   ///< f32 arithmetic
  dots,   ///< AVX512-BF16: dots of pairs
  tiles,  ///< AMX: products of 16 x 32 tiles, and the dots
};
BFloat16Unit bfloat16_unit();

}  // namespace fovea::kernels::cpu

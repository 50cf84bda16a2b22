// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/kernels/attention.h"
#include "fovea/kernels/quantize.h"

namespace fovea::kernels {

/// Rows of q, of k and of v for each scale of their codes.
struct Fp8Layout {
  int64_t block_q = 128;
  int64_t block_k = 128;
  int64_t key_tile = 128;  ///< keys folded in at once; a tile ends at a scale's block too, and at 512 keys
};

/// Softmax attention over e4m3 codes: q [B,Hq,Tq,D], k [B,Hkv,Tk,D], v [B,Hkv,Tk,Dv] -> o, lse in f32. Scores
/// are products of decoded values times the scales of their blocks, softmax is in f32; the weights of a tile,
/// 2^8 exp(s - m) with m the row's maximum so far, are rounded to e4m3 before they meet v. The denominator
/// sums the unrounded weights. Of `params` scale and visible are used; a window on the left is refused.
AttentionResult fp8_forward(const Fp8Blocks& q, const Fp8Blocks& k, const Fp8Blocks& v,
                            const Fp8Layout& layout, const AttentionParams& params = {});

}  // namespace fovea::kernels

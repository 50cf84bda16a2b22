// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/core/options.h"
#include "fovea/core/tensor.h"
#include "fovea/kernels/attention.h"

/// FlashAttention-3 (Shah et al. 2024, arXiv 2407.08608), its 8-bit part: attention whose operands are e4m3
/// codes with one scale per block of rows, after a random rotation that spreads outliers over the channels.
namespace fovea::dense {

struct Fp8AttentionOptions {
  bool causal = false;
  double scale = 0;
  int64_t block_q = 128;
  int64_t block_k = 128;
  bool hadamard = true;
  int64_t seed = 0;
  bool per_tensor = false;

  static constexpr auto fields() {
    using O = Fp8AttentionOptions;
    return options::list(
        options::field(&O::causal, "causal", "query i sees keys j <= i + Tk - Tq"),
        options::field(&O::scale, "scale", "0 means 1/sqrt(D)", options::at_least(0)),
        options::field(&O::block_q, "block_q", "rows per scale of q", options::at_least(1)),
        options::field(&O::block_k, "block_k", "rows per scale of k and v", options::at_least(1)),
        options::field(&O::hadamard, "hadamard", "rotate q and k first"),
        options::field(&O::seed, "seed", "draws signs when absent"),
        options::field(&O::per_tensor, "per_tensor", "one scale per (batch, head) instead"));
  }
};

/// H_D diag(signs) x / sqrt(D) on the last axis of x [...,D] f32; signs f32 [D] of +1 and -1, D a power of
/// two.
Tensor hadamard_rotate(const Tensor& x, const Tensor& signs);

/// f32 [dim] of +1 and -1.
Tensor draw_signs(int64_t dim, uint64_t seed);

/// q [B,Hq,Tq,D], k [B,Hkv,Tk,D], v [B,Hkv,Tk,Dv], signs [D] (may be undefined: drawn from seed), all f32.
/// With `hadamard`, D must be a power of two.
kernels::AttentionResult fp8_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& signs,
                                       const Fp8AttentionOptions& options = {});

}  // namespace fovea::dense

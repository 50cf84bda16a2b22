// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/core/options.h"
#include "fovea/core/tensor.h"
#include "fovea/kernels/attention.h"

namespace fovea::dense {

/// FlashAttention-3: Fast and Accurate Attention with Asynchrony and Low-precision. Shah et al. 2024, arXiv
/// 2407.08608: exact attention in tiles, with online softmax and without a T x T tensor.
struct FlashAttentionOptions {
  bool causal = false;
  double scale = 0;
  int64_t window_left = -1;
  int64_t window_right = -1;
  double softcap = 0;
  int64_t num_splits = 1;

  static constexpr auto fields() {
    using O = FlashAttentionOptions;
    return options::list(
        options::field(&O::causal, "causal", "query i sees keys j <= i + Tk - Tq"),
        options::field(&O::scale, "scale", "factor of q.k, 0 means 1/sqrt(D)", options::at_least(0)),
        options::field(&O::window_left, "window_left", "keys to the left of the diagonal, -1 = all",
                       options::at_least(-1)),
        options::field(&O::window_right, "window_right",
                       "keys to the right of the diagonal, -1 = all; causal forces 0", options::at_least(-1)),
        options::field(&O::softcap, "softcap", "scores become softcap tanh(score / softcap), 0 = off",
                       options::at_least(0)),
        options::field(&O::num_splits, "num_splits",
                       "key splits, 0 = the library's choice; a hint that never changes the result",
                       options::at_least(0)));
  }
};

/// q [B,Hq,Tq,D], k [B,Hkv,Tk,D], v [B,Hkv,Tk,Dv] of f32, f16 or bf16. sink [Hq] f32 adds exp(sink) to the
/// softmax denominator, k_len [B] i32 is the number of keys of each batch row (0..Tk); both may be undefined.
kernels::AttentionResult flash_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                         const FlashAttentionOptions& options = {}, const Tensor& sink = {},
                                         const Tensor& k_len = {});

/// Gradients for d_o [B,Hq,Tq,Dv]; o and lse are recomputed. dsink is defined when sink is.
kernels::AttentionGradients flash_attention_backward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                     const Tensor& d_o,
                                                     const FlashAttentionOptions& options = {},
                                                     const Tensor& sink = {}, const Tensor& k_len = {});

/// Ragged batch: q [Nq,Hq,D], k [Nk,Hkv,D], v [Nk,Hkv,Dv]; sequence s owns rows cu_q[s]..cu_q[s+1] and keys
/// cu_k[s]..cu_k[s+1] (i32 [n+1], ascending from 0 to Nq and Nk). o [Nq,Hq,Dv], lse [Hq,Nq].
kernels::AttentionResult flash_attention_varlen(const Tensor& q, const Tensor& k, const Tensor& v,
                                                const Tensor& cu_q, const Tensor& cu_k,
                                                const FlashAttentionOptions& options = {},
                                                const Tensor& sink = {});

}  // namespace fovea::dense

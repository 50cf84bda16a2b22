// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/core/options.h"
#include "fovea/core/tensor.h"
#include "fovea/kernels/attention.h"

namespace fovea::dense {

/// Self-attention Does Not Need O(n^2) Memory. Rabe, Staats 2021, arXiv 2112.05682: exact attention by chunks
/// of queries and keys, whose partial results merge.
struct MemoryEfficientAttentionOptions {
  int64_t query_chunk = 1024;
  int64_t key_chunk = 4096;
  bool causal = false;
  double scale = 0;

  static constexpr auto fields() {
    using O = MemoryEfficientAttentionOptions;
    return options::list(
        options::field(&O::query_chunk, "query_chunk",
                       "queries per outer step; larger than the cache holds is cut smaller",
                       options::at_least(1)),
        options::field(&O::key_chunk, "key_chunk",
                       "keys per inner step; larger than the cache holds is cut smaller",
                       options::at_least(1)),
        options::field(&O::causal, "causal", "query i sees keys j <= i + Tk - Tq"),
        options::field(&O::scale, "scale", "factor of q.k, 0 means 1/sqrt(D)", options::at_least(0)));
  }
};

struct ChunkSummaryOptions {
  double scale = 0;

  static constexpr auto fields() {
    return options::list(options::field(&ChunkSummaryOptions::scale, "scale",
                                        "factor of q.k, 0 means 1/sqrt(D)", options::at_least(0)));
  }
};

/// q [B,Hq,Tq,D], k [B,Hkv,Tk,D], v [B,Hkv,Tk,Dv]; bias [1|B,1|Hq,Tq,Tk] f32 is added to the scores, mask
/// (same shape, u8) hides where it is 0; both may be undefined. Scratch is one tile per thread.
kernels::AttentionResult memory_efficient_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                                    const MemoryEfficientAttentionOptions& options = {},
                                                    const Tensor& bias = {}, const Tensor& mask = {});

/// Gradients for d_o [B,Hq,Tq,Dv]; only o and lse are kept between the passes. dbias has the shape of bias.
kernels::AttentionGradients memory_efficient_attention_backward(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& d_o,
    const MemoryEfficientAttentionOptions& options = {}, const Tensor& bias = {}, const Tensor& mask = {});

/// The triple of one key chunk: the largest score m, s = sum exp(score - m), a = sum exp(score - m) v.
kernels::AttentionSummary attention_chunk_summary(const Tensor& q, const Tensor& k, const Tensor& v,
                                                  const ChunkSummaryOptions& options = {});

/// Merges N parts o [N,B,Hq,Tq,Dv], lse [N,B,Hq,Tq], N >= 1, over disjoint sets of keys.
kernels::AttentionResult attention_merge(const Tensor& o, const Tensor& lse);

}  // namespace fovea::dense

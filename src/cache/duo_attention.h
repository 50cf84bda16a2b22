// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/core/options.h"
#include "fovea/core/tensor.h"
#include "fovea/kernels/attention.h"

/// DuoAttention: a few retrieval heads see the whole context, the others the first tokens and a recent
/// window. Xiao et al. 2024, arXiv 2410.10819.
namespace fovea::cache {

/// What a streaming head sees.
struct StreamingOptions {
  int64_t sink = 64;
  int64_t recent = 256;

  static constexpr auto fields() {
    return options::list(
        options::field(&StreamingOptions::sink, "sink", "first tokens kept by streaming heads",
                       options::at_least(0)),
        options::field(&StreamingOptions::recent, "recent", "window of streaming heads, own token included",
                       options::at_least(1)));
  }

  /// Key j is seen from position a when j <= a and (j < sink or a - j < recent).
  kernels::Visibility visibility() const {
    return {.window_left = recent - 1, .window_right = 0, .prefix = sink};
  }
};

struct DuoAttentionOptions : StreamingOptions {
  int64_t chunk_size = 0;

  static constexpr auto fields() {
    return std::tuple_cat(
        StreamingOptions::fields(),
        options::list(options::field(&DuoAttentionOptions::chunk_size, "chunk_size",
                                     "0 = exact mask, else rows see the recent tokens before "
                                     "their chunk and the chunk up to themselves",
                                     options::at_least(0))));
  }
};

/// q [B,Hq,Tq,D], k [B,Hkv,Tk,D], v [B,Hkv,Tk,Dv]; retrieval u8 [Hkv]: 1 = causal attention over all keys, 0
/// = the streaming mask.
kernels::AttentionResult duo_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                       const Tensor& retrieval, const DuoAttentionOptions& options = {});

/// alpha_g o_full + (1 - alpha_g) o_stream, alpha f32 [Hkv] -> o [B,Hq,Tq,Dv].
Tensor duo_mix(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha,
               const StreamingOptions& options = {});

/// Gradient of the gates: d alpha_g = sum of d_o (o_full - o_stream) over batch, heads of g, rows and
/// channels -> f32 [Hkv].
Tensor duo_mix_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& d_o,
                        const StreamingOptions& options = {});

/// Mean over the labelled tokens of the summed squared distance of hidden states, over E, plus reg_weight
/// mean |alpha|: h_full, h_mix [B,T,E], labels u8 [B,T], alpha [L,Hkv]. Without a labelled token the first
/// term is 0.
double duo_loss(const Tensor& h_full, const Tensor& h_mix, const Tensor& labels, const Tensor& alpha,
                double reg_weight);

struct DuoHeadsOptions {
  double sparsity = 0.5;
  double threshold = 0.5;

  static constexpr auto fields() {
    return options::list(
        options::field(&DuoHeadsOptions::sparsity, "sparsity",
                       "fraction of streaming heads over all layers; negative: use the threshold",
                       options::Range{.high = 1}),
        options::field(&DuoHeadsOptions::threshold, "threshold",
                       "heads with alpha >= threshold are retrieval heads"));
  }
};

/// Which heads are retrieval heads: alpha f32 [L,Hkv] -> u8 [L,Hkv]. The floor(sparsity L Hkv) smallest gates
/// stream; equal gates: the lower flat index first.
Tensor duo_heads(const Tensor& alpha, const DuoHeadsOptions& options = {});

}  // namespace fovea::cache

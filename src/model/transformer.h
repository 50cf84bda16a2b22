// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "fovea/cache/kv_cache.h"
#include "fovea/core/tensor.h"
#include "fovea/kernels/attention.h"
#include "fovea/model/config.h"
#include "fovea/model/weights.h"

namespace fovea::model {

/// The layers of a decoder around an attention that the caller supplies, with the buffers they work in. Not
/// thread-safe; the kernels inside are parallel. Refers to `weights` and `config`, which must outlive it.
class Transformer {
 public:
  /// Attention of one layer: q [1,Hq,T,D] after rope and the keys and values of the same tokens; the result's
  /// o is [1,Hq,T,D].
  using Attend =
      std::function<kernels::AttentionResult(int64_t layer, const Tensor& q, const cache::KvBlock& block)>;

  Transformer(const Weights& weights, const ModelConfig& config, Rope rope);

  const Rope& rope() const { return rope_; }

  /// The last layer's output [T,E], before the final norm, of T tokens that stand at `position` and after.
  /// The result is a buffer that the next call overwrites. Throws Error for a token outside the vocabulary.
  Tensor run(std::span<const int32_t> tokens, int64_t position, const Attend& attend);

  /// Logits [T,V] of rows of what `run` returned; as large as it sounds, so ask for few rows at a time.
  void logits(const Tensor& hidden, const Tensor& out) const;

 private:
  void reserve(int64_t rows);
  void embed(std::span<const int32_t> tokens, const Tensor& x) const;
  /// Fills the buffers of q, k and v from x and returns the block of keys and values; q is [1,Hq,T,D].
  cache::KvBlock project(const LayerWeights& layer, const Tensor& x, const kernels::RopeTable& table,
                         Tensor& q);
  void finish_attention(const LayerWeights& layer, const Tensor& o, const Tensor& x);
  void feed_forward(const LayerWeights& layer, const Tensor& x);

  const Weights& weights_;
  const ModelConfig& config_;
  Rope rope_;
  int64_t capacity_ = 0;
  Tensor x_;                     // [C,E]
  Tensor qkv_;                   // [C,(Hq+2Hkv)D]
  Tensor k_unrotated_;           // [Hkv,C,D]
  Tensor attended_, update_;     // [R,Hq D], [R,E]: R rows at a time
  Tensor gate_up_, activation_;  // [R,2F], [R,F]
};

}  // namespace fovea::model

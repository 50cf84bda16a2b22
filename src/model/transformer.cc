// SPDX-License-Identifier: Apache-2.0
// One layer, for rows x of the residual stream:
//
//   q, k, v = rope(norm_q(W_q n)), rope(norm_k(W_k n)), W_v n      n = rms_norm(x)
//   x      += W_o attention(q, k, v)
//   x      += W_down (silu(W_gate m) * W_up m)                     m = rms_norm(x)
//
// norm_q and norm_k are per head and only in some families. Everything but the attention works on kRows rows
// at a time, so that activations stay in the processor's cache and buffers stay small for long chunks.
#include "fovea/model/transformer.h"

#include <algorithm>
#include <cstring>

#include "fovea/core/error.h"
#include "fovea/core/thread_pool.h"
#include "fovea/kernels/elementwise.h"
#include "fovea/kernels/rope.h"
#include "fovea/kernels/rows.h"

namespace fovea::model {
namespace {

constexpr int64_t kRows = 512;
constexpr int64_t kRowsPerTask = 16;

template <typename Body>
void for_row_blocks(int64_t rows, const Body& body) {
  for (int64_t begin = 0; begin < rows; begin += kRows) body(begin, std::min(begin + kRows, rows));
}

/// Heads [H,T,D] of columns begin .. begin + H D of rows [T,N].
Tensor heads_view(const Tensor& rows, int64_t begin, int64_t heads, int64_t dim) {
  const Tensor columns = rows.slice(1, begin, begin + heads * dim);
  return Tensor::wrap(columns.raw(), {heads, rows.dim(0), dim}, {dim, rows.stride(0), 1}, DType::f32);
}

/// to[h,t,:] = from[h,t,:]
void copy_heads(const Tensor& from, const Tensor& to) {
  const int64_t heads = from.dim(0), rows = from.dim(1), dim = from.dim(2);
  parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    for (int64_t t = task * kRowsPerTask; t < std::min((task + 1) * kRowsPerTask, rows); ++t)
      for (int64_t h = 0; h < heads; ++h)
        std::memcpy(to.data<float>() + h * to.stride(0) + t * to.stride(1),
                    from.data<float>() + h * from.stride(0) + t * from.stride(1),
                    static_cast<size_t>(dim) * sizeof(float));
  });
}

}  // namespace

Transformer::Transformer(const Weights& weights, const ModelConfig& config, Rope rope)
    : weights_(weights), config_(config), rope_(std::move(rope)) {}

void Transformer::reserve(int64_t rows) {
  if (rows <= capacity_) return;
  const int64_t block = std::min(rows, kRows);
  const ModelConfig& c = config_;
  x_ = Tensor::empty({rows, c.embedding});
  qkv_ = Tensor::empty({rows, (c.heads_q + 2 * c.heads_kv) * c.dim});
  k_unrotated_ = Tensor::empty({c.heads_kv, rows, c.dim});
  attended_ = Tensor::empty({block, c.heads_q * c.dim});
  update_ = Tensor::empty({block, c.embedding});
  gate_up_ = Tensor::empty({block, 2 * c.feed_forward});
  activation_ = Tensor::empty({block, c.feed_forward});
  capacity_ = rows;
}

void Transformer::embed(std::span<const int32_t> tokens, const Tensor& x) const {
  for (size_t t = 0; t < tokens.size(); ++t) {
    require(tokens[t] >= 0 && tokens[t] < config_.vocabulary, "token ", tokens[t],
            " is outside the vocabulary of ", config_.vocabulary);
    weights_.embedding->row(tokens[t], x.data<float>() + static_cast<int64_t>(t) * x.stride(0));
  }
}

cache::KvBlock Transformer::project(const LayerWeights& layer, const Tensor& x,
                                    const kernels::RopeTable& table, Tensor& q) {
  const int64_t rows = x.dim(0), heads_q = config_.heads_q, heads_kv = config_.heads_kv, dim = config_.dim;
  const auto epsilon = static_cast<float>(config_.rms_epsilon);
  const Tensor qkv = qkv_.slice(0, 0, rows);
  for_row_blocks(rows, [&](int64_t begin, int64_t end) {
    layer.qkv.apply(kernels::rms_norm(x.slice(0, begin, end), layer.attention_norm, epsilon),
                    qkv.slice(0, begin, end));
  });
  Tensor queries = heads_view(qkv, 0, heads_q, dim);
  Tensor keys = heads_view(qkv, heads_q * dim, heads_kv, dim);
  if (config_.has_head_norms()) {
    queries = kernels::rms_norm(queries, layer.q_norm, epsilon);
    keys = kernels::rms_norm(keys, layer.k_norm, epsilon);
  }
  cache::KvBlock block;
  block.k_unrotated = k_unrotated_.slice(1, 0, rows);
  copy_heads(keys, block.k_unrotated);
  q = queries.unsqueeze(0);
  kernels::apply_rope(q, table);
  kernels::apply_rope(keys.unsqueeze(0), table);
  block.k = keys;
  block.v = heads_view(qkv, (heads_q + heads_kv) * dim, heads_kv, dim);
  block.hidden = x;
  return block;
}

void Transformer::finish_attention(const LayerWeights& layer, const Tensor& o, const Tensor& x) {
  const Tensor heads = o.select(0, 0);  // [Hq,T,D]
  for_row_blocks(x.dim(0), [&](int64_t begin, int64_t end) {
    const Tensor attended = attended_.slice(0, 0, end - begin);
    copy_heads(heads.slice(1, begin, end), heads_view(attended, 0, config_.heads_q, config_.dim));
    const Tensor update = update_.slice(0, 0, end - begin);
    layer.attention_output.apply(attended, update);
    kernels::add_in_place(x.slice(0, begin, end), update);
  });
}

void Transformer::feed_forward(const LayerWeights& layer, const Tensor& x) {
  const int64_t width = config_.feed_forward;
  for_row_blocks(x.dim(0), [&](int64_t begin, int64_t end) {
    const int64_t rows = end - begin;
    const Tensor block = x.slice(0, begin, end);
    const Tensor gate_up = gate_up_.slice(0, 0, rows), activation = activation_.slice(0, 0, rows);
    layer.gate_up.apply(
        kernels::rms_norm(block, layer.feed_forward_norm, static_cast<float>(config_.rms_epsilon)), gate_up);
    parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
      for (int64_t row = task * kRowsPerTask; row < std::min((task + 1) * kRowsPerTask, rows); ++row) {
        const Tensor both = gate_up.select(0, row);
        kernels::silu_multiply(both.slice(0, 0, width), both.slice(0, width, 2 * width),
                               activation.select(0, row));
      }
    });
    const Tensor update = update_.slice(0, 0, rows);
    layer.down.apply(activation, update);
    kernels::add_in_place(block, update);
  });
}

Tensor Transformer::run(std::span<const int32_t> tokens, int64_t position, const Attend& attend) {
  const int64_t rows = static_cast<int64_t>(tokens.size());
  reserve(rows);
  const Tensor x = x_.slice(0, 0, rows);
  embed(tokens, x);
  Tensor positions = Tensor::empty({rows}, DType::i64);
  for (int64_t t = 0; t < rows; ++t) positions.at<int64_t>(t) = position + t;
  const kernels::RopeTable table = kernels::rope_table(positions, rope_.frequencies, rope_.magnitude);
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
    Tensor q;
    cache::KvBlock block = project(weights, x, table, q);
    block.position = position;
    finish_attention(weights, attend(layer, q, block).o, x);
    feed_forward(weights, x);
  }
  return x;
}

void Transformer::logits(const Tensor& hidden, const Tensor& out) const {
  weights_.head->apply(
      kernels::rms_norm(hidden, weights_.final_norm, static_cast<float>(config_.rms_epsilon)), out);
}

}  // namespace fovea::model

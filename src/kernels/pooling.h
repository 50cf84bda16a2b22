// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/core/tensor.h"

/// Summaries of blocks of keys or queries, and the scores computed from them. Inputs are f32, f16 or bf16,
/// results f32.
namespace fovea::kernels {

/// Means over blocks of `block` tokens (the last block over its real tokens): x [B,H,T,D] ->
/// [B,H,ceil(T/block),D].
Tensor block_means(const Tensor& x, int64_t block);

/// Per-channel minimum and maximum over pages of `page_size` tokens: k [B,Hkv,T,D] -> two of [B,Hkv,P,D].
struct Bounds {
  Tensor low, high;
};
Bounds page_bounds(const Tensor& k, int64_t page_size);

/// Upper bounds of q.k over the keys of a page: sum_d max(q_d low_d, q_d high_d). q [B,Hq,Tq,D], bounds
/// [B,Hkv,P,D], both of one float type -> [B,Hq,Tq,P].
Tensor bound_scores(const Tensor& q, const Bounds& bounds);

/// scale * q_i . k_j for all pairs: q [B,Hq,M,D], k [B,Hkv,N,D] -> [B,Hq,M,N]. For blocks or short strips;
/// the result is materialised.
Tensor pair_scores(const Tensor& q, const Tensor& k, float scale);

/// Sums of the causal attention probabilities of the last `rows` queries, per key column and per diagonal
/// distance d = p - j: q [B,Hq,Tq,D], k [B,Hkv,Tk,D] -> columns, diagonals [B,Hq,Tk]. Accumulated in f32.
/// scale 1/sqrt(D).
struct StripSums {
  Tensor columns, diagonals;
};
StripSums strip_sums(const Tensor& q, const Tensor& k, int64_t rows);

}  // namespace fovea::kernels

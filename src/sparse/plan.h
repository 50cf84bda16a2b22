// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "fovea/core/tensor.h"
#include "fovea/kernels/attention.h"
#include "fovea/kernels/key_plan.h"

namespace fovea::sparse {

using kernels::KeyPlan;

/// Plans from the tensors that planners produce. All results are sorted and pass kernels::check.

/// blocks u8 [B,H,nQ,nK]: 1 where the key block may be read.
KeyPlan plan_from_blocks(const Tensor& blocks, int64_t block_q, int64_t block_k, int64_t queries,
                         int64_t keys);
/// columns i32 [B,H,nQ,R], ascending, -1 where unused.
KeyPlan plan_from_stripes(const Tensor& columns, int64_t block_q, int64_t queries, int64_t keys);
/// tokens i32 [B,H,Tq,R], ascending, -1 where unused: every query row has its own keys.
KeyPlan plan_from_tokens(const Tensor& tokens, int64_t keys);

/// The plan as a mask u8 [B,H,Tq,Tk], intersected with j <= i + Tk - Tq when `causal`. For tests, pictures
/// and the operators whose output is the mask.
Tensor plan_mask(const KeyPlan& plan, bool causal = true);

/// Visible pairs of the plan over causal pairs, per (batch, head) of the plan: [batches*heads]. Counted from
/// the lists.
std::vector<double> plan_density(const KeyPlan& plan);

/// Share of the exact causal attention probability that falls on the plan's keys: mean over rows, per query
/// head, f32 [B,Hq]. Streams over key blocks; nothing of size Tq x Tk is stored.
Tensor plan_recall(const Tensor& q, const Tensor& k, const KeyPlan& plan);

/// Share of each cell's keys that the plan reads, for one (batch, head), as `size` x `size` values in row
/// order: cell row y stands for the query row in its middle, and keys that the causal rule hides count as not
/// read.
std::vector<float> plan_coverage(const KeyPlan& plan, int64_t batch, int64_t head, int64_t size);

/// A text picture of one (batch, head): `size` x `size` characters from ' ' (nothing) to '#' (everything).
std::string plan_picture(const KeyPlan& plan, int64_t batch, int64_t head, int64_t size = 32);

}  // namespace fovea::sparse

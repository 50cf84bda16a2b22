// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "fovea/kernels/key_plan.h"

/// Seeded plans under the causal mask that benchmarks run: T rows and keys, one list for all heads, about
/// `density` of the visible pairs. Every row sees its own key.
namespace fovea::cli {

/// Random key blocks and the diagonal one for each block of `block` rows.
kernels::KeyPlan random_block_plan(int64_t length, int64_t block, double density, uint64_t seed);
/// Random single keys for each block of `block` rows, and the diagonal block.
kernels::KeyPlan random_stripe_plan(int64_t length, int64_t block, double density, uint64_t seed);
/// A list for every row. Each row replaces the share `renewed` of the keys of the row before by others: near
/// 0 for rows that agree as those of real selections do, 1 for rows that have nothing in common.
kernels::KeyPlan random_token_plan(int64_t length, double density, double renewed, uint64_t seed);

/// Pairs (row, key) that a plan of one list per block keeps under the causal mask, over all visible ones.
double causal_density(const kernels::KeyPlan& plan);

}  // namespace fovea::cli

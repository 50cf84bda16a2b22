// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <set>
#include <vector>

#include "fovea/core/rng.h"
#include "fovea/kernels/key_plan.h"
#include "tests/support/attention_problem.h"

/// Random key plans and the problems they restrict.
namespace fovea::reference {

struct PlanShape {
  int64_t block_q, batches, heads;
  double range_share, column_share;  // of the keys
};

/// Random disjoint ranges with random single keys between them.
inline kernels::KeyPlan random_plan(const Sizes& s, const PlanShape& shape, uint64_t seed) {
  kernels::KeyPlan plan{.block_q = shape.block_q, .batches = shape.batches, .heads = shape.heads};
  plan.queries = s.queries, plan.keys = s.keys;
  plan.range_offsets = {0}, plan.column_offsets = {0};
  Rng rng(seed);
  for (int64_t list = 0; list < plan.lists(); ++list) {
    for (int64_t j = 0; j < s.keys;) {
      const double x = rng.next_uniform();
      if (x < shape.range_share / 8) {
        const int64_t end = std::min(s.keys, j + 1 + rng.next_below(16));
        plan.ranges.push_back({static_cast<int32_t>(j), static_cast<int32_t>(end)});
        j = end;
      } else {
        if (x > 1 - shape.column_share) plan.columns.push_back(static_cast<int32_t>(j));
        ++j;
      }
    }
    plan.range_offsets.push_back(static_cast<int64_t>(plan.ranges.size()));
    plan.column_offsets.push_back(static_cast<int64_t>(plan.columns.size()));
  }
  return plan;
}

/// Every row its own keys, ascending from 0 to the row's position: each row drops about the share `renewed`
/// of the keys of the row before for others, as real selections do.
inline kernels::KeyPlan drifting_tokens(const Sizes& s, int64_t heads, int64_t keys_of_row, double renewed,
                                        uint64_t seed) {
  kernels::KeyPlan plan{.block_q = 1, .heads = heads};
  plan.queries = s.queries, plan.keys = s.keys;
  plan.range_offsets = {0}, plan.column_offsets = {0};
  Rng rng(seed);
  for (int64_t head = 0; head < heads; ++head) {
    std::set<int32_t> held;
    for (int64_t i = 0; i < s.queries; ++i) {
      const int64_t visible = i + 1 + s.keys - s.queries;
      std::erase_if(held, [&](int32_t) { return rng.next_uniform() < renewed; });
      while (static_cast<int64_t>(held.size()) < std::min(keys_of_row, visible))
        held.insert(static_cast<int32_t>(rng.next_below(visible)));
      plan.columns.insert(plan.columns.end(), held.begin(), held.end());
      plan.range_offsets.push_back(0);
      plan.column_offsets.push_back(static_cast<int64_t>(plan.columns.size()));
    }
  }
  return plan;
}

inline bool has(const kernels::KeyPlan& plan, int64_t b, int64_t h, int64_t heads_q, int64_t i, int64_t j) {
  const int64_t head = h * plan.heads / heads_q;
  const auto list = static_cast<size_t>(
      ((plan.batches == 1 ? 0 : b) * plan.heads + head) * plan.query_blocks() + i / plan.block_q);
  for (auto r = plan.range_offsets[list]; r < plan.range_offsets[list + 1]; ++r)
    if (j >= plan.ranges[static_cast<size_t>(r)].begin && j < plan.ranges[static_cast<size_t>(r)].end)
      return true;
  return std::binary_search(plan.columns.begin() + plan.column_offsets[list],
                            plan.columns.begin() + plan.column_offsets[list + 1], static_cast<int32_t>(j));
}

/// The problem that `plan` restricts; refers to `plan`.
inline Problem problem_of(const Inputs& in, const kernels::KeyPlan& plan,
                          const kernels::AttentionParams& params) {
  Problem problem = problem_of(in, params);
  problem.visible = [seen = problem.visible, &plan, heads = in.q.dim(1)](int64_t b, int64_t h, int64_t i,
                                                                         int64_t j) {
    return has(plan, b, h, heads, i, j) && seen(b, h, i, j);
  };
  return problem;
}

}  // namespace fovea::reference

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <vector>

#include "kernels/cpu/forward.h"
#include "kernels/cpu/key_source.h"

namespace fovea::kernels::cpu {

/// Tile sizes: a tile of queries, keys, values, scores and outputs stays within a core's second-level cache.
struct Tiling {
  int64_t rows, keys;
};

/// The same for any number of threads.
Tiling tiling_of(std::span<const ForwardProblem> problems);

/// One row tile of one problem; with a plan, its rows span `lists` consecutive lists.
struct ForwardTask {
  const ForwardProblem* problem;
  RowTile rows;
  int64_t heads_kv = 1;  ///< the same rows of the heads of so many kv heads from rows.head on
  bool alike = false;    ///< neighbouring lists have many keys in common
  int64_t first_list = 0, lists = 0;
};

/// Row tiles with the most keys come first where the mask is causal.
std::vector<ForwardTask> forward_tasks(std::span<const ForwardProblem> problems, const Tiling& tiling);

/// Rows that share one reading of a key in place; with more, packed keys are faster.
inline constexpr int64_t kFewRows = 4;

/// How many of the task's lists must have a key for it to be cheaper to pack it for all rows, with a mask of
/// those that have it, than to meet it in each list; 0 where that never is.
int64_t share_that_pays(const ForwardTask& task);

}  // namespace fovea::kernels::cpu

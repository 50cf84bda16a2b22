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
  int64_t first_list = 0, lists = 0;
};

/// Row tiles with the most keys come first where the mask is causal.
std::vector<ForwardTask> forward_tasks(std::span<const ForwardProblem> problems, const Tiling& tiling);

/// Is one pass over the union of the task's lists, with a membership mask, cheaper than a pass for each list?
bool union_pays(const ForwardTask& task);

}  // namespace fovea::kernels::cpu

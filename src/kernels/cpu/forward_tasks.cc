// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/forward_tasks.h"

#include <algorithm>

namespace fovea::kernels::cpu {
namespace {

constexpr int64_t kMinTasks = 16;   // so that two to eight threads end at about the same time
constexpr int64_t kMinRows = 48;    // below this, packing keys costs more than a tenth
constexpr int64_t kUnionRows = 64;  // rows of several short lists that are worth one pass

// Query heads of one kv head share a packed key tile unless their keys differ.
int64_t heads_in_tile(const ForwardProblem& p, int64_t rows) {
  const AttentionArgs& a = p.args;
  const bool own_keys = (a.bias_k && a.bias_k.head != 0) || (p.plan && p.plan->heads > a.heads_kv);
  return own_keys ? 1 : std::min(a.group(), rows);
}

// Do neighbouring lists have about a third of their single keys in common? Looks at a few of them.
bool neighbours_alike(const KeyPlan& plan) {
  constexpr int64_t kSamples = 32;
  int64_t keys = 0, common = 0;
  const auto columns = [&](int64_t list) {
    const auto i = static_cast<size_t>(list);
    return std::pair(plan.columns.data() + plan.column_offsets[i],
                     plan.columns.data() + plan.column_offsets[i + 1]);
  };
  for (int64_t sample = 0; sample < kSamples && plan.lists() > 1; ++sample) {
    const int64_t list = sample * (plan.lists() - 1) / kSamples;
    auto [one, one_end] = columns(list);
    auto [two, two_end] = columns(list + 1);
    keys += one_end - one;
    while (one < one_end && two < two_end) {
      const bool same = *one == *two, first = *one < *two;
      common += same;
      one += same || first;
      two += !first;
    }
  }
  return 3 * common >= keys;
}

void add_tasks(const ForwardProblem& p, int64_t b, int64_t head, int64_t heads, int64_t rows,
               int64_t heads_kv, bool alike, std::vector<ForwardTask>& tasks) {
  const AttentionArgs& a = p.args;
  int64_t step = std::max<int64_t>(1, rows / heads);
  int64_t block = a.queries;  // no tile straddles two of these
  if (p.plan) {
    const int64_t block_q = p.plan->block_q;
    block = block_q *
            std::clamp<int64_t>(std::min(kUnionRows, rows) / (block_q * heads), 1, ListSplit::kMostLists);
  }
  step = std::min(step, block);
  const size_t first = tasks.size();
  for (int64_t begin = 0; begin < a.queries; begin += block) {
    const int64_t end = std::min(begin + block, a.queries);
    for (int64_t i = begin; i < end; i += step) {
      ForwardTask task{&p, {b, head, heads, i, std::min(step, end - i)}, heads_kv, alike};
      if (p.plan) {
        const int64_t block_q = p.plan->block_q;
        task.first_list = list_of(*p.plan, a, b, head, i / block_q);
        task.lists = (i + task.rows.queries - 1) / block_q - i / block_q + 1;
      }
      tasks.push_back(task);
    }
  }
  std::reverse(tasks.begin() + static_cast<std::ptrdiff_t>(first), tasks.end());
}

// Cost of a key in cycles for D = 64 or so: packed once and multiplied with each row of a tile, or read in
// place for up to kFewRows rows.
constexpr int64_t kPackKey = 40, kPackedRow = 11, kReadKey = 22, kReadRow = 8;

constexpr int64_t kShortKeys = 128;  // their scores for 24 rows fit the first cache
constexpr int64_t kShortRows = 8;    // fewer rows are read by single dot products

}  // namespace

bool is_short(const ForwardProblem& p) {
  return !p.plan && p.args.scores != ScoreArithmetic::int8 && p.args.keys <= kShortKeys &&
         p.args.queries * p.args.group() >= kShortRows;
}

Tiling tiling_of(std::span<const ForwardProblem> problems) {
  int64_t width = 0, total_rows = 0, query_tile = 0, key_tile = 0, longest = 1;
  for (const auto& p : problems) {
    const AttentionArgs& a = p.args;
    width = std::max(width, a.dim + a.rank + a.dim_v);
    total_rows += a.batch * a.heads_q * a.queries;
    longest = std::max(longest, a.keys);
    query_tile = a.query_tile, key_tile = a.key_tile;
  }
  Tiling tiling{192, 256};
  if (width <= 128) tiling.rows = 384;
  if (width > 256) tiling.rows = 96;
  if (width > 512) tiling = {48, 128};
  tiling.rows =
      std::clamp((total_rows / kMinTasks + 23) / 24 * 24, std::min(kMinRows, tiling.rows), tiling.rows);
  if (query_tile > 0) tiling.rows = std::clamp<int64_t>(query_tile, 8, tiling.rows);
  if (key_tile > 0) tiling.keys = std::clamp<int64_t>((key_tile + 31) / 32 * 32, 32, tiling.keys);
  tiling.keys = std::min(tiling.keys, (longest + 15) / 16 * 16);
  return tiling;
}

std::vector<ForwardTask> forward_tasks(std::span<const ForwardProblem> problems, const Tiling& tiling) {
  std::vector<ForwardTask> tasks;
  for (const auto& p : problems) {
    const AttentionArgs& a = p.args;
    const int64_t group = a.group(), step = heads_in_tile(p, tiling.rows);
    // Short lists that all kv heads read are prepared once, where preparing pays; if not, each kv head's keys
    // in turn stay in the caches longer.
    const bool alike = p.plan && neighbours_alike(*p.plan);
    const bool together =
        alike && p.plan->heads == 1 && step == group && p.plan->block_q * step <= kUnionRows / 2;
    const int64_t heads_kv = together ? a.heads_kv : 1;
    for (int64_t b = 0; b < a.batch; ++b)
      for (int64_t kv = 0; kv < a.heads_kv && group > 0; kv += heads_kv)
        for (int64_t h = 0; h < group; h += step)
          add_tasks(p, b, kv * group + h, std::min(step, group - h), tiling.rows, heads_kv, alike, tasks);
  }
  return tasks;
}

int64_t share_that_pays(const ForwardTask& task) {
  if (!task.alike) return 0;
  // Cycles for each key: a packed key costs the same for all rows, a key of a few rows is read in place.
  const int64_t rows = task.rows.rows(), rows_of_list = std::max<int64_t>(1, rows / task.lists);
  const int64_t together = kPackKey + kPackedRow * rows;
  const int64_t alone =
      rows_of_list > kFewRows ? kPackKey + kPackedRow * rows_of_list : kReadKey + kReadRow * rows_of_list;
  const int64_t share = (together + alone - 1) / alone;
  return share > task.lists ? 0 : share;
}

}  // namespace fovea::kernels::cpu

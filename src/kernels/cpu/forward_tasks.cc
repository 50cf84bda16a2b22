// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/forward_tasks.h"

#include <algorithm>
#include <bit>

namespace fovea::kernels::cpu {
namespace {

constexpr int64_t kMinTasks = 16;   // so that two to eight threads end at about the same time
constexpr int64_t kMinRows = 48;    // below this, packing keys costs more than a tenth
constexpr int64_t kUnionRows = 32;  // rows of several short lists that are worth one pass

// Query heads of one kv head share a packed key tile unless their keys differ.
int64_t heads_in_tile(const ForwardProblem& p, int64_t rows) {
  const AttentionArgs& a = p.args;
  const bool own_keys = (a.bias_k && a.bias_k.head != 0) || (p.plan && p.plan->heads > a.heads_kv);
  return own_keys ? 1 : std::min(a.group(), rows);
}

void add_tasks(const ForwardProblem& p, int64_t b, int64_t head, int64_t heads, int64_t rows,
               std::vector<ForwardTask>& tasks) {
  const AttentionArgs& a = p.args;
  int64_t step = std::max<int64_t>(1, rows / heads);
  int64_t block = a.queries;  // no tile straddles two of these
  if (p.plan) {
    const int64_t block_q = p.plan->block_q;
    block = block_q * std::max<int64_t>(1, std::min(kUnionRows, rows) / (block_q * heads));
  }
  step = std::min(step, block);
  const size_t first = tasks.size();
  for (int64_t begin = 0; begin < a.queries; begin += block) {
    const int64_t end = std::min(begin + block, a.queries);
    for (int64_t i = begin; i < end; i += step) {
      ForwardTask task{&p, {b, head, heads, i, std::min(step, end - i)}};
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

int64_t list_size(const KeyPlan& plan, int64_t list) {
  const auto i = static_cast<size_t>(list);
  int64_t size = plan.column_offsets[i + 1] - plan.column_offsets[i];
  for (int64_t r = plan.range_offsets[i]; r < plan.range_offsets[i + 1]; ++r)
    size += plan.ranges[static_cast<size_t>(r)].end - plan.ranges[static_cast<size_t>(r)].begin;
  return size;
}

constexpr int64_t kShortKeys = 128;  // their scores for 24 rows fit the first cache
constexpr int64_t kShortRows = 8;    // fewer rows are read by single dot products

}  // namespace

bool is_short(const ForwardProblem& p) {
  return !p.plan && p.args.keys <= kShortKeys && p.args.queries * p.args.group() >= kShortRows;
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
  if (width > 256) tiling.rows = 96;
  if (width > 512) tiling = {48, 128};
  tiling.rows =
      std::clamp((total_rows / kMinTasks + 23) / 24 * 24, std::min(kMinRows, tiling.rows), tiling.rows);
  if (query_tile > 0) tiling.rows = std::clamp<int64_t>(query_tile, 8, tiling.rows);
  if (key_tile > 0) tiling.keys = std::clamp<int64_t>(key_tile, 16, tiling.keys);
  tiling.keys = std::min(tiling.keys, (longest + 15) / 16 * 16);
  return tiling;
}

std::vector<ForwardTask> forward_tasks(std::span<const ForwardProblem> problems, const Tiling& tiling) {
  std::vector<ForwardTask> tasks;
  for (const auto& p : problems) {
    const AttentionArgs& a = p.args;
    const int64_t group = a.group();
    for (int64_t b = 0; b < a.batch; ++b)
      for (int64_t kv = 0; kv < a.heads_kv && group > 0; ++kv) {
        const int64_t step = heads_in_tile(p, tiling.rows);
        for (int64_t h = 0; h < group; h += step)
          add_tasks(p, b, kv * group + h, std::min(step, group - h), tiling.rows, tasks);
      }
  }
  return tasks;
}

bool union_pays(const ForwardTask& task) {
  const KeyPlan& plan = *task.problem->plan;
  std::vector<uint64_t> seen(static_cast<size_t>(plan.keys / 64 + 1));
  auto mark = [&](int64_t key) { seen[static_cast<size_t>(key / 64)] |= uint64_t{1} << (key % 64); };
  int64_t total = 0;
  for (int64_t list = task.first_list; list < task.first_list + task.lists; ++list) {
    const auto i = static_cast<size_t>(list);
    for (int64_t r = plan.range_offsets[i]; r < plan.range_offsets[i + 1]; ++r)
      for (int32_t key = plan.ranges[static_cast<size_t>(r)].begin;
           key < plan.ranges[static_cast<size_t>(r)].end; ++key)
        mark(key);
    for (int64_t c = plan.column_offsets[i]; c < plan.column_offsets[i + 1]; ++c)
      mark(plan.columns[static_cast<size_t>(c)]);
    total += list_size(plan, list);
  }
  int64_t together = 0;
  for (uint64_t word : seen) together += std::popcount(word);
  // Work in multiply-adds of one vector per key and D/16: a packed key costs about 10 and its membership 1
  // per list, each row 2; a row on its own costs about 5 since nothing it loads is reused.
  const int64_t rows = task.rows.rows(), rows_of_list = std::max<int64_t>(1, rows / task.lists);
  return together * (10 + task.lists + 2 * rows) < total * std::min(5 * rows_of_list, 10 + 2 * rows_of_list);
}

}  // namespace fovea::kernels::cpu

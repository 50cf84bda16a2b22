// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "fovea/core/memory.h"
#include "fovea/core/thread_pool.h"
#include "kernels/cpu/forward_tasks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/flash_forward.cc"
#include "hwy/foreach_target.h"
#include "kernels/cpu/few_rows-inl.h"
#include "kernels/cpu/pack-inl.h"
#include "kernels/cpu/results-inl.h"
#include "kernels/cpu/scores-inl.h"
#include "kernels/cpu/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

using cpu::ForwardProblem;
using cpu::ForwardTask;
using cpu::KeySource;
using cpu::kFewRows;
using cpu::ListSplit;
using cpu::Tiling;

// Rows that go through scores, softmax and values together, so that their scores stay in the first cache.
constexpr int64_t kChunkRows = 48;
// On a tile cut by a visibility edge, fewer: each chunk works on the columns that its rows see.
constexpr int64_t kEdgeRows = 24;

/// Column limits of one row in a key tile: it sees [0, prefix) and [begin, end).
using Columns = VisibleKeys;

/// Attention of one row tile over the key tiles of a source, with buffers that the next row tile reuses.
class ForwardTile {
 public:
  void run(const ForwardProblem& problem, const RowTile& rows, KeySource& source, const Tiling& tiling) {
    begin(problem, rows, tiling);
    KeyTile tile;
    while (source.next(tile)) step(tile, 0, rows.rows());
    finish_rows(problem, rows, running_.data(), o_.data(), width_);
  }

  /// The rows of several lists: first the keys that many of them share, then the rest of each list.
  void run(const ForwardProblem& problem, const RowTile& rows, const ListSplit& split, int64_t lists,
           const Tiling& tiling);

  memory::Buffer<int32_t> keys;  // for a KeySource
  ListSplit split;

 private:
  void begin(const ForwardProblem& problem, const RowTile& rows, const Tiling& tiling);
  void step(const KeyTile& tile, int64_t first, int64_t count);
  void step_few(const KeyTile& tile, int64_t first, int64_t count, bool limited);

  bool limit_columns(const KeyTile& tile, int64_t first, int64_t count);
  bool mask_shows(const KeyTile& tile, int64_t first, int64_t count) const;
  void score_chunk(int64_t row, int64_t rows, int64_t low, int64_t high);
  void weigh_chunk(const KeyTile& tile, int64_t row, int64_t rows, int64_t low, int64_t high);
  void add_values(const ValueRows& v, bool finite, int64_t row, int64_t rows, int64_t low, int64_t high);
  const Columns& columns_of(int64_t row) const { return columns_[row / rows_.heads]; }
  int64_t list_of(int64_t row) const {
    return rows_.query_of(row) / problem_->plan->block_q - rows_.query / problem_->plan->block_q;
  }

  const ForwardProblem* problem_ = nullptr;
  const AttentionArgs* a_ = nullptr;
  RowTile rows_;
  int64_t depth_ = 0, width_ = 0, stride_ = 0;
  float unit_ = 1;  // of the scores before softcap
  memory::Buffer<float> q_, k_, v_, scores_, o_, stage_;
  GatheredRow gathered_;
  memory::Buffer<RunningRow> running_;
  memory::Buffer<Columns> columns_;
};

void ForwardTile::begin(const ForwardProblem& problem, const RowTile& rows, const Tiling& tiling) {
  problem_ = &problem, a_ = &problem.args, rows_ = rows;
  const int64_t n = rows.rows();
  depth_ = packed_depth(*a_), width_ = round_up(a_->dim_v, kLanes);
  stride_ = round_up(tiling.keys, kLanes) + std::max<int64_t>(kLanes, 4);
  unit_ = score_unit(*a_);
  q_.reserve(n * depth_);
  k_.reserve(round_up(tiling.keys, kPanel) * depth_);
  v_.reserve(tiling.keys * width_);
  scores_.reserve(std::min(n, kChunkRows) * stride_);
  o_.reserve(n * width_);
  stage_.reserve(std::max<int64_t>(kLanes + 1, 4) * depth_);
  gathered_.reserve(tiling.keys);
  running_.reserve(n);
  columns_.reserve(rows.queries);
  pack_queries(*a_, rows, unit_, q_.data());
  std::fill(o_.data(), o_.data() + n * width_, 0.0f);
  std::fill(running_.data(), running_.data() + n, RunningRow());
}

// Limits of every query of the rows; false when all of them see all keys of the tile.
bool ForwardTile::limit_columns(const KeyTile& tile, int64_t first, int64_t count) {
  const int64_t begin = first / rows_.heads, end = (first + count - 1) / rows_.heads + 1;
  RowTile rows = rows_;
  rows.query += begin, rows.queries = end - begin;
  if (cpu::all_seen(*a_, rows, tile)) {
    std::fill(columns_.data() + begin, columns_.data() + end, Columns{0, 0, tile.count});
    return false;
  }
  bool limited = false;
  for (int64_t i = begin; i < end; ++i) {
    columns_[i] = cpu::columns_seen(tile, a_->visible_keys(rows_.batch, rows_.query + i));
    limited |= columns_[i].prefix < tile.count && (columns_[i].begin > 0 || columns_[i].end < tile.count);
  }
  return limited;
}

bool ForwardTile::mask_shows(const KeyTile& tile, int64_t first, int64_t count) const {
  for (int64_t r = first; r < first + count; ++r) {
    const uint8_t* mask = a_->mask.at<uint8_t>(rows_.batch, rows_.head_of(r), rows_.query_of(r));
    const Columns& sees = columns_of(r);
    for (int64_t c = sees.first(); c < sees.last(); ++c)
      if (mask[tile.key(c)]) return true;
  }
  return false;
}

void ForwardTile::run(const ForwardProblem& problem, const RowTile& rows, const ListSplit& lists_split,
                      int64_t lists, const Tiling& tiling) {
  begin(problem, rows, tiling);
  const auto each_tile = [&](const cpu::Keys& keys_of, const auto& body) {
    for (int64_t c = 0; c < keys_of.count; c += tiling.keys)
      body(c, cpu::tile_of({keys_of.keys + c, std::min(tiling.keys, keys_of.count - c)}));
  };
  each_tile(lists_split.shared(), [&](int64_t c, KeyTile tile) {
    tile.members = lists_split.members() + c;
    step(tile, 0, rows.rows());
  });
  const int64_t block_q = problem.plan->block_q;
  for (int64_t list = 0; list < lists; ++list) {
    const int64_t begin_q = std::max(rows.query, (rows.query / block_q + list) * block_q);
    const int64_t end_q = std::min(rows.query + rows.queries, (rows.query / block_q + list + 1) * block_q);
    if (list + 1 < lists) prefetch_keys(*a_, rows.batch, rows.head, lists_split.rest(list + 1));
    each_tile(lists_split.rest(list), [&](int64_t, const KeyTile& tile) {
      step(tile, (begin_q - rows.query) * rows.heads, (end_q - begin_q) * rows.heads);
    });
  }
  finish_rows(problem, rows, running_.data(), o_.data(), width_);
}

// Keys and values are read where they stand.
void ForwardTile::step_few(const KeyTile& tile, int64_t first, int64_t count, bool limited) {
  int64_t low = tile.count, high = 0;
  for (int64_t r = first; r < first + count; ++r) {
    const Columns& sees = columns_of(r);
    if (sees.empty()) continue;
    low = std::min(low, sees.first()), high = std::max(high, sees.last());
  }
  if (low >= high) return;
  score_rows(*a_, rows_.batch, rows_.head, tile, q_.data() + first * depth_, count, stage_.data(),
             scores_.data(), stride_);
  weigh_chunk(tile, first, count, 0, tile.count);
  const bool hides = limited || a_->mask || a_->bias || tile.members;
  add_value_rows(*a_, rows_.batch, rows_.head, tile, scores_.data(), stride_, count, hides, stage_.data(),
                 o_.data() + first * width_, width_);
}

// The rows [first, first + count) of the row tile meet a tile of keys.
void ForwardTile::step(const KeyTile& tile, int64_t first, int64_t count) {
  const bool limited = limit_columns(tile, first, count);
  if (a_->mask && !mask_shows(tile, first, count)) return;
  if (count <= kFewRows) return step_few(tile, first, count, limited);
  pack_keys(*a_, rows_.batch, rows_.head, tile, stage_.data(), k_.data());
  const ValueRows v = pack_values(*a_, rows_.batch, rows_.head, tile, v_.data());
  // A weight of 0 hides a value from a row only when the value is finite.
  const bool hides = limited || a_->mask || a_->bias || tile.members;
  const bool finite = !hides || all_finite(v, tile.count, width_);
  const int64_t chunk = limited ? kEdgeRows : kChunkRows;
  for (int64_t row = first; row < first + count; row += chunk) {
    const int64_t rows = std::min(chunk, first + count - row);
    int64_t low = tile.count, high = 0;
    for (int64_t r = row; r < row + rows; ++r) {
      const Columns& sees = columns_of(r);
      if (sees.empty()) continue;
      low = std::min(low, sees.first());
      high = std::max(high, sees.last());
    }
    if (low >= high) continue;
    score_chunk(row, rows, low, high);
    weigh_chunk(tile, row, rows, low, high);
    add_values(v, finite, row, rows, low, high);
  }
}

void ForwardTile::score_chunk(int64_t row, int64_t rows, int64_t low, int64_t high) {
  const float* q = q_.data() + row * depth_;
  float* scores = scores_.data();
  const int64_t skip = low / kPanel * kPanel;
  multiply_panels({q, depth_, 1, k_.data() + skip * depth_, kPanel, scores + skip, stride_, rows,
                   a_->dim + a_->rank, false},
                  kPanel * depth_, round_up(high, kLanes) - skip);
}

void ForwardTile::weigh_chunk(const KeyTile& tile, int64_t row, int64_t rows, int64_t low, int64_t high) {
  for (int64_t r = row; r < row + rows; ++r) {
    float* scores = scores_.data() + (r - row) * stride_;
    const Columns& sees = columns_of(r);
    if (sees.empty()) {
      std::fill(scores + low, scores + high, 0.0f);
      continue;
    }
    const int64_t first = sees.first(), last = sees.last();
    adjust_scores(*a_, rows_, r, tile, tile.members ? list_of(r) : 0, unit_, gathered_, scores, first, last);
    if (sees.begin < sees.end && sees.prefix < sees.begin && sees.prefix > 0)
      std::fill(scores + sees.prefix, scores + sees.begin, kMinusInfinity);
    const float factor = fold(running_[r], scores + first, last - first);
    if (factor != 1.0f) scale_row(o_.data() + r * width_, factor, width_);
    std::fill(scores + low, scores + first, 0.0f);
    if (last < high) std::fill(scores + last, scores + high, 0.0f);
  }
}

void ForwardTile::add_values(const ValueRows& v, bool finite, int64_t row, int64_t rows, int64_t low,
                             int64_t high) {
  weigh_values({scores_.data() + low, stride_, 1, v.data + low * v.stride, v.stride, o_.data() + row * width_,
                width_, rows, high - low, true},
               finite, width_);
}

void run_task(const ForwardTask& task, const Tiling& tiling, ForwardTile& tile) {
  const ForwardProblem& p = *task.problem;
  if (!p.plan) {
    KeySource source(p.args, task.rows, tiling.keys);
    return tile.run(p, task.rows, source, tiling);
  }
  RowTile rows = task.rows;
  if (task.lists > 1)
    tile.split.split(*p.plan, task.first_list, task.lists, cpu::hull_of(p.args, rows),
                     cpu::share_that_pays(task));
  for (int64_t kv = 0; kv < task.heads_kv; ++kv, rows.head += p.args.group()) {
    if (task.lists > 1) {
      tile.run(p, rows, tile.split, task.lists, tiling);
      continue;
    }
    KeySource source(p.args, rows, tiling.keys, *p.plan, task.first_list, tile.keys);
    tile.run(p, rows, source, tiling);
  }
}

void run_forward_tasks(std::span<const ForwardProblem> problems) {
  const Tiling tiling = cpu::tiling_of(problems);
  const std::vector<ForwardTask> tasks = cpu::forward_tasks(problems, tiling);
  std::vector<ForwardTile> tiles(static_cast<size_t>(threads()));
  parallel_for(static_cast<int64_t>(tasks.size()), [&](int64_t task, int worker) {
    run_task(tasks[static_cast<size_t>(task)], tiling, tiles[static_cast<size_t>(worker)]);
  });
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
HWY_EXPORT(run_forward_tasks);

void cpu::run_forward(std::span<const ForwardProblem> problems) {
  std::vector<ForwardProblem> kinds[2];
  for (const ForwardProblem& p : problems) kinds[is_short(p)].push_back(p);
  if (!kinds[true].empty()) run_short_forward(kinds[true]);
  if (!kinds[false].empty()) HWY_DYNAMIC_DISPATCH(run_forward_tasks)(kinds[false]);
}

}  // namespace fovea::kernels
#endif

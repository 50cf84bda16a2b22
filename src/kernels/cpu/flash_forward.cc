// SPDX-License-Identifier: Apache-2.0
#include <tuple>
#include <vector>

#include "fovea/core/memory.h"
#include "fovea/core/thread_pool.h"
#include "kernels/cpu/bfloat16_unit.h"
#include "kernels/cpu/dot_instructions.h"
#include "kernels/cpu/forward_tasks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/flash_forward.cc"
#include "hwy/foreach_target.h"
#include "kernels/cpu/arithmetic-inl.h"
#include "kernels/cpu/int8_scores-inl.h"
#include "kernels/cpu/results-inl.h"
#include "kernels/cpu/scores-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

using cpu::ForwardProblem;
using cpu::ForwardTask;
using cpu::KeySource;
using cpu::kFewRows;
using cpu::ListSplit;
using cpu::Tiling;

// Up to this many rows of bf16 are faster widened in place than packed for native arithmetic.
[[maybe_unused]] constexpr int64_t kFewWidened = 2;
// Are keys read in place? Where a problem has more than a few rows, its smaller row tiles pack keys too, so
// that a row's bits do not depend on how rows are tiled.
bool reads_few_rows(const ForwardProblem& problem, const RowTile& rows, int64_t few) {
  return rows.heads * (problem.plan ? problem.plan->block_q : problem.args.queries) <= few;
}

/// Column limits of one row in a key tile: it sees [0, prefix) and [begin, end).
using Columns = VisibleKeys;

/// Attention of one row tile over the key tiles of a source, with buffers that the next row tile reuses.
template <class Scores, class Values>
class ForwardTile {
 public:
  void run(const ForwardProblem& problem, const RowTile& rows, KeySource& source, const Tiling& tiling) {
    [[maybe_unused]] typename Values::Session session;
    begin(problem, rows, tiling);
    KeyTile tile;
    while (source.next(tile)) step(tile, 0, rows.rows());
    finish_rows(problem, rows, running_.data(), Values::weight_sum, o_.data(), width_);
  }

  /// The rows of several lists: first the keys that many of them share, then the rest of each list.
  void run(const ForwardProblem& problem, const RowTile& rows, const ListSplit& split, int64_t lists,
           const Tiling& tiling);

 private:
  void begin(const ForwardProblem& problem, const RowTile& rows, const Tiling& tiling);
  void step(const KeyTile& tile, int64_t first, int64_t count);

  bool limit_columns(const KeyTile& tile, int64_t first, int64_t count);
  bool mask_shows(const KeyTile& tile, int64_t first, int64_t count) const;
  Chunk chunk_of(int64_t row, int64_t rows) const;
  void weigh(const KeyTile& tile, const Chunk& chunk);
  int64_t list_of(int64_t row) const {
    return rows_.query_of(row) / problem_->plan->block_q - rows_.query / problem_->plan->block_q;
  }

  const ForwardProblem* problem_ = nullptr;
  const AttentionArgs* a_ = nullptr;
  RowTile rows_;
  int64_t width_ = 0, stride_ = 0;
  float unit_ = 1;  // of the scores before softcap
  Scores scores_;
  Values values_;
  memory::Buffer<float> chunk_, o_;
  GatheredRow gathered_;
  memory::Buffer<RunningRow> running_;
  memory::Buffer<Columns> columns_;
  bool few_ = false;           // rows that read keys in place
  bool scales_first_ = false;  // something is added to the scaled product
  bool adjusts_ = false;       // or it is masked
};

template <class Scores, class Values>
void ForwardTile<Scores, Values>::begin(const ForwardProblem& problem, const RowTile& rows,
                                        const Tiling& tiling) {
  problem_ = &problem, a_ = &problem.args, rows_ = rows;
  const int64_t n = rows.rows();
  width_ = round_up(a_->dim_v, kLanes);
  stride_ = round_up(tiling.keys, kLanes) + std::max<int64_t>(kLanes, 4);
  unit_ = score_unit(*a_);
  scores_.begin(*a_, rows, unit_, tiling.keys);
  values_.begin(*a_, rows, tiling.keys);
  chunk_.reserve(std::min(round_up(n, Values::kRowStep), Values::kChunkRows) * stride_);
  o_.reserve(n * width_);
  gathered_.reserve(tiling.keys);
  running_.reserve(n);
  columns_.reserve(n);
  few_ = Values::kInPlace && reads_few_rows(problem, rows, kFewRows);
  scales_first_ = a_->bias || a_->slopes || a_->softcap > 0;
  adjusts_ = scales_first_ || a_->mask;
  std::fill(o_.data(), o_.data() + n * width_, 0.0f);
  std::fill(running_.data(), running_.data() + n, RunningRow());
}

// Limits of each of the rows; false when all of them see all keys of the tile.
template <class Scores, class Values>
bool ForwardTile<Scores, Values>::limit_columns(const KeyTile& tile, int64_t first, int64_t count) {
  const int64_t begin = first / rows_.heads, end = (first + count - 1) / rows_.heads + 1;
  RowTile rows = rows_;
  rows.query += begin, rows.queries = end - begin;
  if (cpu::all_seen(*a_, rows, tile)) {
    std::fill_n(columns_.data() + first, count, Columns{0, 0, tile.count});
    return false;
  }
  bool limited = false;
  for (int64_t i = begin; i < end; ++i) {
    const Columns sees = cpu::columns_seen(tile, a_->visible_keys(rows_.batch, rows_.query + i));
    limited |= sees.prefix < tile.count && (sees.begin > 0 || sees.end < tile.count);
    std::fill_n(columns_.data() + i * rows_.heads, rows_.heads, sees);
  }
  return limited;
}

template <class Scores, class Values>
bool ForwardTile<Scores, Values>::mask_shows(const KeyTile& tile, int64_t first, int64_t count) const {
  for (int64_t r = first; r < first + count; ++r) {
    const uint8_t* mask = a_->mask.at<uint8_t>(rows_.batch, rows_.head_of(r), rows_.query_of(r));
    const Columns& sees = columns_[r];
    for (int64_t c = sees.first(); c < sees.last(); ++c)
      if (mask[tile.key(c)]) return true;
  }
  return false;
}

template <class Scores, class Values>
void ForwardTile<Scores, Values>::run(const ForwardProblem& problem, const RowTile& rows,
                                      const ListSplit& split, int64_t lists, const Tiling& tiling) {
  [[maybe_unused]] typename Values::Session session;
  begin(problem, rows, tiling);
  const auto each_tile = [&](const cpu::Keys& keys_of, const auto& body) {
    for (int64_t c = 0; c < keys_of.count; c += tiling.keys)
      body(c, cpu::tile_of({keys_of.keys + c, std::min(tiling.keys, keys_of.count - c)}));
  };
  each_tile(split.shared(), [&](int64_t c, KeyTile tile) {
    tile.members = split.members() + c;
    step(tile, 0, rows.rows());
  });
  const int64_t block_q = problem.plan->block_q;
  for (int64_t list = 0; list < lists; ++list) {
    const int64_t begin_q = std::max(rows.query, (rows.query / block_q + list) * block_q);
    const int64_t end_q = std::min(rows.query + rows.queries, (rows.query / block_q + list + 1) * block_q);
    if (list + 1 < lists) prefetch_keys(*a_, rows.batch, rows.head, split.rest(list + 1));
    each_tile(split.rest(list), [&](int64_t, const KeyTile& tile) {
      step(tile, (begin_q - rows.query) * rows.heads, (end_q - begin_q) * rows.heads);
    });
  }
  finish_rows(problem, rows, running_.data(), Values::weight_sum, o_.data(), width_);
}

// Rows and the columns that any of them sees.
template <class Scores, class Values>
Chunk ForwardTile<Scores, Values>::chunk_of(int64_t row, int64_t rows) const {
  Chunk chunk{row, rows, std::numeric_limits<int64_t>::max(), 0, chunk_.data(), stride_};
  for (int64_t r = row; r < row + rows; ++r) {
    const Columns& sees = columns_[r];
    if (sees.empty()) continue;
    chunk.low = std::min(chunk.low, sees.first());
    chunk.high = std::max(chunk.high, sees.last());
  }
  return chunk;
}

// The rows [first, first + count) of the row tile meet a tile of keys.
template <class Scores, class Values>
void ForwardTile<Scores, Values>::step(const KeyTile& tile, int64_t first, int64_t count) {
  const bool limited = limit_columns(tile, first, count);
  if (a_->mask && !mask_shows(tile, first, count)) return;
  const bool in_place = few_ && count <= kFewRows;
  scores_.load(tile, in_place);
  values_.load(tile, in_place);
  // A weight of 0 hides a value from a row only when the value is finite.
  const bool hides = limited || a_->mask || a_->bias || tile.members;
  const bool finite = !hides || values_.finite();
  const int64_t most = limited ? Values::kEdgeRows : Values::kChunkRows;
  for (int64_t row = first; row < first + count; row += most) {
    Chunk chunk = chunk_of(row, std::min(most, first + count - row));
    if (chunk.low >= chunk.high) continue;
    if (in_place) chunk.low = 0, chunk.high = tile.count;
    scores_.multiply(chunk);
    weigh(tile, chunk);
    if (finite)
      values_.add(chunk, o_.data());
    else
      values_.add_seen(chunk, o_.data());
  }
}

template <class Scores, class Values>
void ForwardTile<Scores, Values>::weigh(const KeyTile& tile, const Chunk& chunk) {
  const bool adjusts = adjusts_ || tile.members;
  float factor = scores_.factor();
  if (factor != 1.0f && scales_first_) {
    for (int64_t r = chunk.row; r < chunk.row + chunk.rows; ++r)
      scale_row(chunk.scores_of(r) + chunk.low, factor, chunk.high - chunk.low);
    factor = 1.0f;
  }
  float rescale[Values::kRowGroup];
  for (int64_t begin = chunk.row; begin < chunk.row + chunk.rows; begin += Values::kRowGroup) {
    const int64_t count = std::min(Values::kRowGroup, chunk.row + chunk.rows - begin);
    for (int64_t r = begin; r < begin + count; ++r) {
      float* scores = chunk.scores_of(r);
      const Columns& sees = columns_[r];
      if (adjusts && !sees.empty())
        adjust_scores(*a_, rows_, r, tile, tile.members ? list_of(r) : 0, unit_, gathered_, scores,
                      sees.first(), sees.last());
      if (sees.begin < sees.end && sees.prefix < sees.begin && sees.prefix > 0)
        std::fill(scores + sees.prefix, scores + sees.begin, kMinusInfinity);
    }
    Values::fold(running_.data() + begin, chunk, begin, count, columns_.data() + begin, factor, rescale);
    for (int64_t r = 0; r < count; ++r)
      if (rescale[r] != 1.0f) scale_row(o_.data() + (begin + r) * width_, rescale[r], width_);
  }
}

/// The row tiles of one worker, one for each arithmetic that it meets.
class ForwardWorker {
 public:
  ForwardWorker() = default;
  ForwardWorker(cpu::BFloat16Unit unit, const Tiling& tiling) : unit_(unit), tiling_(tiling) {}

  void run(const ForwardTask& task);

 private:
  template <class Body>
  void with_tile(const ForwardProblem& problem, const RowTile& rows, const Body& body);
  template <class Scores, class Values>
  ForwardTile<Scores, Values>& tile() {
    return std::get<ForwardTile<Scores, Values>>(tiles_);
  }

  [[maybe_unused]] cpu::BFloat16Unit unit_ = cpu::BFloat16Unit::none;
  Tiling tiling_;
  memory::Buffer<int32_t> keys_;  // for a KeySource
  ListSplit split_;
#if FOVEA_PAIR_PRODUCTS
  using DotValues = PairValues<PairDots>;
  using TileValues = PairValues<PairTiles>;
  std::tuple<ForwardTile<FloatScores, FloatValues>, ForwardTile<Int8Scores<float>, FloatValues>,
             ForwardTile<Int8Scores<Quad>, FloatValues>, ForwardTile<PairScores<PairDots>, DotValues>,
             ForwardTile<Int8Scores<Quad>, DotValues>, ForwardTile<PairScores<PairTiles>, TileValues>,
             ForwardTile<Int8Scores<Quad>, TileValues>>
      tiles_;
#else
  std::tuple<ForwardTile<FloatScores, FloatValues>, ForwardTile<Int8Scores<float>, FloatValues>> tiles_;
#endif
};

// Calls body with the row tile of the arithmetic that the problem asks for.
template <class Body>
void ForwardWorker::with_tile(const ForwardProblem& problem, [[maybe_unused]] const RowTile& rows,
                              const Body& body) {
  const ScoreArithmetic scores = problem.args.scores;
  const bool int8 = scores == ScoreArithmetic::int8;
#if FOVEA_PAIR_PRODUCTS
  const bool quads = int8 && has_int8_dot();
  const bool pairs = problem.args.q.dtype == DType::bf16 && scores != ScoreArithmetic::f32 &&
                     !reads_few_rows(problem, rows, kFewWidened) && (quads || !int8);
  if (pairs && unit_ == cpu::BFloat16Unit::tiles)
    return quads ? body(tile<Int8Scores<Quad>, TileValues>())
                 : body(tile<PairScores<PairTiles>, TileValues>());
  if (pairs && unit_ == cpu::BFloat16Unit::dots)
    return quads ? body(tile<Int8Scores<Quad>, DotValues>()) : body(tile<PairScores<PairDots>, DotValues>());
  if (quads) return body(tile<Int8Scores<Quad>, FloatValues>());
#endif
  if (int8) return body(tile<Int8Scores<float>, FloatValues>());
  body(tile<FloatScores, FloatValues>());
}

void ForwardWorker::run(const ForwardTask& task) {
  const ForwardProblem& p = *task.problem;
  RowTile rows = task.rows;
  with_tile(p, rows, [&](auto& tile) {
    if (!p.plan) {
      KeySource source(p.args, rows, tiling_.keys);
      return tile.run(p, rows, source, tiling_);
    }
    if (task.lists > 1)
      split_.split(*p.plan, task.first_list, task.lists, cpu::hull_of(p.args, rows),
                   cpu::share_that_pays(task));
    for (int64_t kv = 0; kv < task.heads_kv; ++kv, rows.head += p.args.group()) {
      if (task.lists > 1) {
        tile.run(p, rows, split_, task.lists, tiling_);
        continue;
      }
      KeySource source(p.args, rows, tiling_.keys, *p.plan, task.first_list, keys_);
      tile.run(p, rows, source, tiling_);
    }
  });
}

void run_forward_tasks(std::span<const ForwardProblem> problems) {
  const Tiling tiling = cpu::tiling_of(problems);
  const std::vector<ForwardTask> tasks = cpu::forward_tasks(problems, tiling);
  const cpu::BFloat16Unit unit = cpu::bfloat16_unit();
  std::vector<ForwardWorker> workers(static_cast<size_t>(threads()), ForwardWorker(unit, tiling));
  parallel_for(static_cast<int64_t>(tasks.size()), [&](int64_t task, int worker) {
    workers[static_cast<size_t>(worker)].run(tasks[static_cast<size_t>(task)]);
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

// SPDX-License-Identifier: Apache-2.0
#include <cmath>
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
#include "kernels/cpu/scores-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

using cpu::ForwardProblem;
using cpu::ForwardTask;
using cpu::KeySource;
using cpu::Tiling;

// Up to this many rows, reading keys row by row is cheaper than packing them. Where a problem has more, so do
// its smaller row tiles, so that a row's bits do not depend on how rows are tiled.
constexpr int64_t kFewRows = 3;
bool reads_few_rows(const ForwardProblem& problem, const RowTile& rows) {
  return rows.heads * (problem.plan ? problem.plan->block_q : problem.args.queries) <= kFewRows;
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
    while (source.next(tile)) step(tile);
    finish();
  }

 private:
  void begin(const ForwardProblem& problem, const RowTile& rows, const Tiling& tiling);
  void step(const KeyTile& tile);
  void finish();

  bool limit_columns(const KeyTile& tile);
  bool mask_shows(const KeyTile& tile) const;
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
  int64_t open_columns_ = -1;  // all rows see this many columns of the last tile, or -1
  bool scales_first_ = false;  // something is added to the scaled product
  bool adjusts_ = false;       // or it is masked
};

template <class Scores, class Values>
void ForwardTile<Scores, Values>::begin(const ForwardProblem& problem, const RowTile& rows,
                                        const Tiling& tiling) {
  problem_ = &problem, a_ = &problem.args, rows_ = rows;
  const int64_t n = rows.rows(), room = round_up(n, Values::kRowStep);
  width_ = round_up(a_->dim_v, kLanes);
  stride_ = round_up(tiling.keys, kLanes) + std::max<int64_t>(kLanes, 4);
  unit_ = score_unit(*a_);
  scores_.begin(*a_, rows, unit_, tiling.keys, reads_few_rows(problem, rows));
  values_.begin(*a_, rows, tiling.keys);
  chunk_.reserve(std::min(room, Values::kChunkRows) * stride_);
  o_.reserve(room * width_);
  gathered_.reserve(tiling.keys);
  running_.reserve(n);
  columns_.reserve(n);
  open_columns_ = -1;
  scales_first_ = a_->bias || a_->slopes || a_->softcap > 0;
  adjusts_ = scales_first_ || a_->mask;
  std::fill(o_.data(), o_.data() + n * width_, 0.0f);
  std::fill(running_.data(), running_.data() + n, RunningRow());
}

// Limits of every row; false when all rows see all keys of the tile.
template <class Scores, class Values>
bool ForwardTile<Scores, Values>::limit_columns(const KeyTile& tile) {
  const auto seen = [&](int64_t i) {
    return cpu::columns_seen(tile, a_->visible_keys(rows_.batch, rows_.query + i));
  };
  const auto all = [&](const Columns& sees) {
    return sees.prefix >= tile.count || (sees.begin == 0 && sees.end == tile.count);
  };
  // Both edges ascend with the query.
  if (all(seen(0)) && all(seen(rows_.queries - 1))) {
    if (open_columns_ != tile.count)
      std::fill(columns_.data(), columns_.data() + rows_.rows(), Columns{0, 0, tile.count});
    open_columns_ = tile.count;
    return false;
  }
  open_columns_ = -1;
  bool limited = false;
  for (int64_t i = 0; i < rows_.queries; ++i) {
    const Columns sees = seen(i);
    limited |= !all(sees);
    std::fill_n(columns_.data() + i * rows_.heads, rows_.heads, sees);
  }
  return limited;
}

template <class Scores, class Values>
bool ForwardTile<Scores, Values>::mask_shows(const KeyTile& tile) const {
  for (int64_t r = 0; r < rows_.rows(); ++r) {
    const uint8_t* mask = a_->mask.at<uint8_t>(rows_.batch, rows_.head_of(r), rows_.query_of(r));
    const Columns& sees = columns_[r];
    for (int64_t c = sees.first(); c < sees.last(); ++c)
      if (mask[tile.key(c)]) return true;
  }
  return false;
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

template <class Scores, class Values>
void ForwardTile<Scores, Values>::step(const KeyTile& tile) {
  const bool limited = limit_columns(tile);
  if (a_->mask && !mask_shows(tile)) return;
  scores_.load(tile);
  values_.load(tile);
  // A weight of 0 hides a value from a row only when the value is finite.
  const bool hides = limited || a_->mask || a_->bias || tile.members;
  const bool finite = !hides || values_.finite();
  const int64_t most = limited ? Values::kEdgeRows : Values::kChunkRows;
  for (int64_t row = 0; row < rows_.rows(); row += most) {
    const Chunk chunk = chunk_of(row, std::min(most, rows_.rows() - row));
    if (chunk.low >= chunk.high) continue;
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

template <class Scores, class Values>
void ForwardTile<Scores, Values>::finish() {
  const ForwardProblem& p = *problem_;
  const double infinity = std::numeric_limits<double>::infinity();
  for (int64_t r = 0; r < rows_.rows(); ++r) {
    const int64_t h = rows_.head_of(r), i = rows_.query_of(r);
    const int64_t at = rows_.batch * p.lse_batch + h * p.lse_head + i;
    double maximum = running_[r].maximum, sum = running_[r].sum, weights = Values::weight_sum(running_[r]);
    double factor = 1;
    if (p.sum) {
      p.lse[at] = static_cast<float>(maximum * std::log(2.0));
      p.sum[at] = Values::weight_sum(running_[r]);
    } else {
      if (a_->sink) {
        const double sink = static_cast<double>(a_->sink[h]) / std::log(2.0), top = std::max(maximum, sink);
        const double sink_weight = sink == -infinity ? 0 : std::exp2(sink - top);
        factor = maximum == -infinity ? 0 : std::exp2(maximum - top);
        sum = sum * factor + sink_weight;
        weights = weights * factor + sink_weight;
        maximum = top;
      }
      p.lse[at] = static_cast<float>(sum == 0 ? -infinity : (maximum + std::log2(sum)) * std::log(2.0));
      factor = weights == 0 ? 0 : factor / weights;
    }
    store_row(o_.data() + r * width_, a_->dim_v, static_cast<float>(factor), p.o.at(rows_.batch, h, i),
              p.o.dtype);
  }
}

/// The row tiles of one worker, one for each arithmetic that it meets.
class ForwardWorker {
 public:
  ForwardWorker() = default;
  ForwardWorker(cpu::BFloat16Unit unit, const Tiling& tiling) : unit_(unit), tiling_(tiling) {}

  void run(const ForwardTask& task);

 private:
  void run(const ForwardProblem& problem, const RowTile& rows, KeySource source);
  template <class Scores, class Values>
  void run_with(const ForwardProblem& problem, const RowTile& rows, KeySource& source) {
    std::get<ForwardTile<Scores, Values>>(tiles_).run(problem, rows, source, tiling_);
  }

  [[maybe_unused]] cpu::BFloat16Unit unit_ = cpu::BFloat16Unit::none;
  Tiling tiling_;
  KeySource::Buffers source_buffers_;
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

void ForwardWorker::run(const ForwardProblem& problem, const RowTile& rows, KeySource source) {
  const ScoreArithmetic scores = problem.args.scores;
  const bool int8 = scores == ScoreArithmetic::int8;
#if FOVEA_PAIR_PRODUCTS
  const bool quads = int8 && has_int8_dot();
  const bool pairs = problem.args.q.dtype == DType::bf16 && scores != ScoreArithmetic::f32 &&
                     !reads_few_rows(problem, rows) && (quads || !int8);
  if (pairs && unit_ == cpu::BFloat16Unit::tiles)
    return quads ? run_with<Int8Scores<Quad>, TileValues>(problem, rows, source)
                 : run_with<PairScores<PairTiles>, TileValues>(problem, rows, source);
  if (pairs && unit_ == cpu::BFloat16Unit::dots)
    return quads ? run_with<Int8Scores<Quad>, DotValues>(problem, rows, source)
                 : run_with<PairScores<PairDots>, DotValues>(problem, rows, source);
  if (quads) return run_with<Int8Scores<Quad>, FloatValues>(problem, rows, source);
#endif
  if (int8) return run_with<Int8Scores<float>, FloatValues>(problem, rows, source);
  run_with<FloatScores, FloatValues>(problem, rows, source);
}

void ForwardWorker::run(const ForwardTask& task) {
  const ForwardProblem& p = *task.problem;
  if (!p.plan) return run(p, task.rows, KeySource(p.args, task.rows, tiling_.keys));
  if (task.lists == 1 || cpu::union_pays(task))
    return run(
        p, task.rows,
        KeySource(p.args, task.rows, tiling_.keys, *p.plan, task.first_list, task.lists, source_buffers_));
  // Lists with little in common: one after another.
  const int64_t end = task.rows.query + task.rows.queries;
  for (int64_t list = 0; list < task.lists; ++list) {
    RowTile rows = task.rows;
    rows.query = std::max(rows.query, (task.rows.query / p.plan->block_q + list) * p.plan->block_q);
    rows.queries = std::min(end, (rows.query / p.plan->block_q + 1) * p.plan->block_q) - rows.query;
    run(p, rows, KeySource(p.args, rows, tiling_.keys, *p.plan, task.first_list + list, 1, source_buffers_));
  }
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
  HWY_DYNAMIC_DISPATCH(run_forward_tasks)(problems);
}

}  // namespace fovea::kernels
#endif

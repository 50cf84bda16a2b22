// SPDX-License-Identifier: Apache-2.0
// Attention over so few keys that all scores of a few rows stay in the first cache, for thousands of small
// windows: one pass, no running softmax.
#include <algorithm>
#include <span>
#include <vector>

#include "fovea/core/memory.h"
#include "fovea/core/thread_pool.h"
#include "kernels/cpu/forward_tasks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/short_forward.cc"
#include "hwy/foreach_target.h"
#include "kernels/cpu/pack-inl.h"
#include "kernels/cpu/results-inl.h"
#include "kernels/cpu/scores-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

using cpu::ForwardProblem;
using cpu::ForwardTask;

// Rows that go through scores, softmax and values together.
constexpr int64_t kChunkRows = 24;
// So many keys beyond whole vectors are dot products of their own: a vector for one key costs as much as for
// sixteen.
constexpr int64_t kFewColumns = 2;
// Tasks that a worker takes at once, so that it can ask for the rows of the next while it works on one.
constexpr int64_t kTasksTogether = 16;

class ShortTile {
 public:
  void run(const ForwardProblem& problem, const RowTile& rows);

 private:
  // Those that some row of a chunk sees: whole vectors [low, high), and single keys from whole_ to end.
  struct Columns {
    int64_t low, high, end;
  };
  void reserve(const RowTile& rows);
  Columns columns_of(int64_t row, int64_t rows) const;
  void score_chunk(const Columns& columns, int64_t row, int64_t rows);
  void weigh_chunk(const Columns& columns, int64_t row, int64_t rows);
  void limit_row(int64_t row, float* scores);
  void exponentiate_rows(const Columns& columns, int64_t row, int64_t first, int64_t rows);
  void weigh_few(const Columns& columns, int64_t row, int64_t rows);

  const ForwardProblem* problem_ = nullptr;
  const AttentionArgs* a_ = nullptr;
  RowTile rows_;
  KeyTile tile_;
  int64_t depth_ = 0, width_ = 0, stride_ = 0;
  int64_t whole_ = 0, few_ = 0;  // keys in whole vectors (the last may be ragged), and those beyond
  float unit_ = 1;
  bool limited_ = false;
  const float* few_keys_[kFewColumns] = {};
  memory::Buffer<float> q_, k_, v_, scores_, o_, stage_;
  GatheredRow gathered_;  // never used: the keys are not gathered
  memory::Buffer<RunningRow> running_;
};

void ShortTile::reserve(const RowTile& rows) {
  const int64_t n = rows.rows();
  depth_ = packed_depth(*a_), width_ = round_up(a_->dim_v, kLanes);
  stride_ = round_up(tile_.count, kLanes) + kLanes;
  q_.reserve(n * depth_);
  k_.reserve(round_up(tile_.count, kPanel) * depth_);
  v_.reserve(tile_.count * width_);
  scores_.reserve(kChunkRows * stride_);
  o_.reserve(n * width_);
  stage_.reserve((kLanes + 1 + kFewColumns) * depth_);
  running_.reserve(n);
}

void ShortTile::run(const ForwardProblem& problem, const RowTile& rows) {
  problem_ = &problem, a_ = &problem.args, rows_ = rows, unit_ = score_unit(*a_);
  // All keys, whatever rows the tile has, so that a row's sums have one order.
  tile_ = {.count = a_->length(rows.batch)};
  reserve(rows);
  few_ = tile_.count > kLanes && tile_.count % kLanes <= kFewColumns ? tile_.count % kLanes : 0;
  whole_ = tile_.count - few_;
  limited_ = !cpu::all_seen(*a_, rows, tile_);
  pack_queries(*a_, rows, unit_, q_.data());
  KeyTile whole = tile_;
  whole.count = whole_;
  pack_keys(*a_, rows.batch, rows.head, whole, stage_.data(), k_.data());
  for (int64_t c = 0; c < few_; ++c)
    few_keys_[c] = key_row(*a_, rows.batch, rows.head, rows.head / a_->group(), tile_.key(whole_ + c),
                           stage_.data() + (kLanes + 1 + c) * depth_);
  const ValueRows v = pack_values(*a_, rows.batch, rows.head, tile_, v_.data());
  const bool finite = !(limited_ || a_->mask || a_->bias) || all_finite(v, tile_.count, width_);
  for (int64_t row = 0; row < rows.rows(); row += kChunkRows) {
    const int64_t count = std::min(kChunkRows, rows.rows() - row);
    const Columns columns = columns_of(row, count);
    score_chunk(columns, row, count);
    weigh_chunk(columns, row, count);
    weigh_values({scores_.data() + columns.low, stride_, 1, v.data + columns.low * v.stride, v.stride,
                  o_.data() + row * width_, width_, count, columns.end - columns.low, false},
                 finite, width_);
  }
  const auto sum = [](const RunningRow& row) { return row.sum; };
  finish_rows(problem, rows, running_.data(), sum, o_.data(), width_);
}

ShortTile::Columns ShortTile::columns_of(int64_t row, int64_t rows) const {
  const int64_t whole = round_up(whole_, kLanes);
  if (!limited_) return {0, whole, tile_.count};
  RowTile chunk = rows_;
  chunk.query = rows_.query_of(row);
  chunk.queries = rows_.query_of(row + rows - 1) + 1 - chunk.query;
  const cpu::Hull hull = cpu::hull_of(*a_, chunk);
  const int64_t high = std::min(whole, round_up(hull.end, kLanes));
  const int64_t low = hull.prefix > 0 ? 0 : std::min(high, hull.begin / kPanel * kPanel);
  return {low, high, hull.end > whole_ ? tile_.count : std::min(high, tile_.count)};
}

void ShortTile::score_chunk(const Columns& columns, int64_t row, int64_t rows) {
  const Floats d;
  const float* q = q_.data() + row * depth_;
  multiply_panels({q, depth_, 1, k_.data() + columns.low * depth_, kPanel, scores_.data() + columns.low,
                   stride_, rows, a_->dim + a_->rank, false},
                  kPanel * depth_, columns.high - columns.low);
  for (int64_t c = 0; whole_ + c < columns.end; ++c)
    for (int64_t r = 0; r < rows; r += 4) {
      FloatVector sum[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
      const int64_t count = std::min<int64_t>(4, rows - r);
      for (int64_t x = 0; x < depth_; x += kLanes) {
        const auto key = hn::LoadU(d, few_keys_[c] + x);
        for (int64_t i = 0; i < 4; ++i)
          sum[i] = hn::MulAdd(hn::LoadU(d, q + (r + std::min(i, count - 1)) * depth_ + x), key, sum[i]);
      }
      float sums[4];
      sum_four(sum, sums);
      for (int64_t i = 0; i < count; ++i) scores_[(r + i) * stride_ + whole_ + c] = sums[i];
    }
}

// Bias and the like, and -inf where the row sees nothing.
void ShortTile::limit_row(int64_t row, float* scores) {
  VisibleKeys sees{0, 0, tile_.count};
  if (limited_) sees = cpu::columns_seen(tile_, a_->visible_keys(rows_.batch, rows_.query_of(row)));
  const int64_t low = sees.first(), high = sees.last();
  if (!sees.empty()) adjust_scores(*a_, rows_, row, tile_, 0, unit_, gathered_, scores, low, high);
  if (!limited_) return;
  std::fill(scores, scores + low, kMinusInfinity);
  if (sees.begin < sees.end) std::fill(scores + sees.prefix, scores + sees.begin, kMinusInfinity);
  std::fill(scores + std::max(low, high), scores + tile_.count, kMinusInfinity);
}

void ShortTile::weigh_chunk(const Columns& columns, int64_t row, int64_t rows) {
  const Floats d;
  const auto nothing = hn::Set(d, kMinusInfinity);
  const bool adjusted = limited_ || a_->bias || a_->mask || a_->slopes || a_->softcap > 0;
  for (int64_t r = 0; r < rows; ++r) {
    float* scores = scores_.data() + r * stride_;
    if (adjusted) limit_row(row + r, scores);
    if (const int64_t ragged = whole_ % kLanes; ragged > 0 && columns.high > whole_) {
      float* last = scores + whole_ - ragged;
      hn::StoreU(hn::IfThenElse(hn::FirstN(d, static_cast<size_t>(ragged)), hn::LoadU(d, last), nothing), d,
                 last);
    }
  }
  for (int64_t r = 0; r < rows; r += 4) exponentiate_rows(columns, row, r, std::min<int64_t>(4, rows - r));
  if (columns.end > whole_) weigh_few(columns, row, rows);
}

// Four rows at a time, so that their maxima and sums share the steps across lanes.
void ShortTile::exponentiate_rows(const Columns& columns, int64_t row, int64_t first, int64_t rows) {
  const Floats d;
  float* scores[4];
  FloatVector across[4];
  float maxima[4], sums[4];
  for (int64_t r = 0; r < 4; ++r) {
    scores[r] = scores_.data() + (first + std::min(r, rows - 1)) * stride_;
    across[r] = hn::Set(d, kMinusInfinity);
    for (int64_t c = columns.low; c < columns.high; c += kLanes)
      across[r] = hn::Max(hn::LoadU(d, scores[r] + c), across[r]);
  }
  maximum_four(across, maxima);
  for (int64_t r = 0; r < rows; ++r) {
    float maximum = maxima[r];
    for (int64_t c = whole_; c < columns.end; ++c) maximum = std::max(maximum, scores[r][c]);
    running_[row + first + r].maximum = maximum;
    if (!(maximum > kMinusInfinity)) maximum = 0;  // any number: -inf become weights of 0, NaN stay
    const auto m = hn::Set(d, maximum);
    across[r] = hn::Zero(d);
    for (int64_t c = columns.low; c < columns.high; c += kLanes) {
      const auto p = exp2_of(d, hn::Sub(hn::LoadU(d, scores[r] + c), m));
      hn::StoreU(p, d, scores[r] + c);
      across[r] = hn::Add(across[r], p);
    }
    for (int64_t c = whole_; c < columns.end; ++c) scores[r][c] -= maximum;
  }
  sum_four(across, sums);
  for (int64_t r = 0; r < rows; ++r) running_[row + first + r].sum = sums[r];
}

// The exponentials of the few last columns, in vectors of rows.
void ShortTile::weigh_few(const Columns& columns, int64_t row, int64_t rows) {
  const Floats d;
  HWY_ALIGN float weights[kLanes] = {};
  for (int64_t c = whole_; c < columns.end; ++c)
    for (int64_t first = 0; first < rows; first += kLanes) {
      const int64_t count = std::min(kLanes, rows - first);
      for (int64_t r = 0; r < count; ++r) weights[r] = scores_[(first + r) * stride_ + c];
      hn::Store(exp2_of(d, hn::Load(d, weights)), d, weights);
      for (int64_t r = 0; r < count; ++r) {
        scores_[(first + r) * stride_ + c] = weights[r];
        running_[row + first + r].sum += weights[r];
      }
    }
}

// Asks for what the next task touches. (Inlined: a function that only prefetches is optimised away.)
HWY_INLINE void prefetch(const View& x, int64_t b, int64_t h, int64_t first, int64_t count, int64_t width) {
  constexpr int64_t kLine = 64;
  const char* row = x.at(b, h, first);
  const int64_t step = x.row * size_of(x.dtype);
  int64_t bytes = width * size_of(x.dtype);
  if (step == bytes) bytes *= count, count = 1;
  for (; count > 0; --count, row += step)
    for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(row + at, 0, 2);
}

HWY_INLINE void prefetch(const ForwardTask& task) {
  const AttentionArgs& a = task.problem->args;
  const RowTile& rows = task.rows;
  for (int64_t h = rows.head; h < rows.head + rows.heads; ++h) {
    prefetch(a.q, rows.batch, h, rows.query, rows.queries, a.dim);
    prefetch(task.problem->o, rows.batch, h, rows.query, rows.queries, a.dim_v);
  }
  prefetch(a.k, rows.batch, rows.head / a.group(), 0, a.keys, a.dim);
  prefetch(a.v, rows.batch, rows.head / a.group(), 0, a.keys, a.dim_v);
}

void run_short_tasks(std::span<const ForwardProblem> problems) {
  const std::vector<ForwardTask> tasks = cpu::forward_tasks(problems, cpu::tiling_of(problems));
  const auto count = static_cast<int64_t>(tasks.size());
  const int64_t together = std::clamp<int64_t>(count / 64, 1, kTasksTogether);
  std::vector<ShortTile> tiles(static_cast<size_t>(threads()));
  parallel_for((count + together - 1) / together, [&](int64_t part, int worker) {
    const int64_t end = std::min(count, (part + 1) * together);
    for (int64_t t = part * together; t < end; ++t) {
      if (t + 1 < end) prefetch(tasks[static_cast<size_t>(t + 1)]);
      const ForwardTask& task = tasks[static_cast<size_t>(t)];
      tiles[static_cast<size_t>(worker)].run(*task.problem, task.rows);
    }
  });
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
HWY_EXPORT(run_short_tasks);

void cpu::run_short_forward(std::span<const ForwardProblem> problems) {
  HWY_DYNAMIC_DISPATCH(run_short_tasks)(problems);
}

}  // namespace fovea::kernels
#endif

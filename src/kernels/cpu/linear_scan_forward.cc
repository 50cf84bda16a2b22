// SPDX-License-Identifier: Apache-2.0
// The linear scan in chunks of C tokens. Inside a chunk tokens meet in a C x C matrix, the past comes through
// the state:
//   O = tril(Q K^T . w) U + Q~ S
// with U, w and the step of S as in linear_scan_chunk-inl.h. Multiply-adds for each token and head: D Dv to
// read the state, D Dv to write it, C/2 (D + Dv) inside the chunk; the delta rule adds D Dv + C/2 (D + Dv). A
// task owns some columns of one head's state and values, whose sums do not depend on the other columns.
#include <vector>

#include "fovea/core/thread_pool.h"
#include "kernels/cpu/linear_scan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_scan_forward.cc"
#include "hwy/foreach_target.h"
#include "kernels/cpu/linear_scan_chunk-inl.h"

#ifndef FOVEA_KERNELS_CPU_LINEAR_SCAN_FORWARD_ONCE
#define FOVEA_KERNELS_CPU_LINEAR_SCAN_FORWARD_ONCE
namespace fovea::kernels {
namespace {

constexpr int64_t kChunk = 64;
constexpr int64_t kReadRows = 64;
// Columns of a state that are worth a task of their own; floats of a state that stay in the second-level
// cache.
constexpr int64_t kFewestColumns = 32;
constexpr int64_t kColumnGrain = 16;
constexpr int64_t kStateFloats = 1 << 16;

int64_t columns_of_task(const LinearScanArgs& a, int64_t chunk) {
  const int64_t heads = a.batch * a.heads_kv, workers = threads();
  const int64_t most = std::max<int64_t>(1, a.dim_v / kFewestColumns);
  const int64_t fewest = std::clamp<int64_t>((a.dim * a.dim_v + kStateFloats - 1) / kStateFloats, 1, most);
  // Each task makes the matrix of its chunks again.
  const auto cost = [&](int64_t tasks) {
    const double rounds = static_cast<double>((heads * tasks + workers - 1) / workers);
    const double columns = static_cast<double>(a.dim_v) / static_cast<double>(tasks);
    const double pairs = static_cast<double>(a.dim * chunk * (a.delta ? 2 : 1)) / 2;
    return rounds * (pairs + columns * static_cast<double>(2 * a.dim + chunk / 2));
  };
  int64_t best = fewest;
  for (int64_t tasks = fewest + 1; tasks <= std::min<int64_t>(most, fewest * workers); ++tasks)
    if (cost(tasks) < cost(best)) best = tasks;
  const int64_t columns = (a.dim_v + best - 1) / best;
  return std::max<int64_t>(1, (columns + kColumnGrain - 1) / kColumnGrain * kColumnGrain);
}

}  // namespace
}  // namespace fovea::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

using cpu::LinearScanProblem;

class ScanTask {
 public:
  void reserve(const LinearScanProblem& problem, int64_t chunk, int64_t columns) {
    problem_ = &problem, a_ = &problem.args, columns_ = columns;
    width_v_ = round_up(columns, kLanes);
    chunk_.reserve(*a_, chunk, width_v_);
    state_.reserve(std::max<int64_t>(a_->dim, 1) * width_v_);
    queries_.reserve(chunk * chunk_.keys().width());
    scores_.reserve(chunk * chunk);
    outputs_.reserve(chunk * width_v_);
  }

  void run(int64_t b, int64_t kv, int64_t column) {
    const int64_t columns = std::min(columns_, a_->dim_v - column), chunk = chunk_.keys().chunk();
    float* state = state_.data();
    if (a_->state)
      for (int64_t c = 0; c < a_->dim; ++c)
        load_row(a_->state.at<float>(b, kv, c) + column, columns, 1.0f, state + c * width_v_, width_v_);
    else
      std::fill_n(state, a_->dim * width_v_, 0.0f);
    for (int64_t first = 0; first < a_->length; first += chunk) {
      const int64_t count = std::min(chunk, a_->length - first);
      chunk_.load(b, kv, first, count, column, columns);
      chunk_.write(state);
      for (int64_t h = kv * a_->group(); h < (kv + 1) * a_->group(); ++h)
        read(b, h, first, count, column, columns);
      ScanKeys& keys = chunk_.keys();
      keys.decay_to_end(keys.keys());
      chunk_.advance(keys.keys(), state);
    }
    for (int64_t c = 0; c < a_->dim; ++c)
      store_row(state + c * width_v_, columns, 1.0f, problem_->state_out.at<float>(b, kv, c) + column);
  }

 private:
  void read(int64_t b, int64_t h, int64_t first, int64_t count, int64_t column, int64_t columns) {
    ScanKeys& keys = chunk_.keys();
    const int64_t width = keys.width(), chunk = keys.chunk(), rows = keys.rows();
    float *q = queries_.data(), *p = scores_.data(), *o = outputs_.data();
    load_tokens(a_->q, b, h, first, count, 0, a_->dim, a_->scale, q, width);
    keys.score(q, false, p);
    for (int64_t r = 0; r < rows; r += kScanBlock) {
      const int64_t next = first + chunk + r;
      prefetch_tokens(a_->q, b, h, next, kScanBlock, a_->length, 0, a_->dim);
      if (h % a_->group() == 0) {
        prefetch_tokens(a_->k, b, h / a_->group(), next, kScanBlock, a_->length, 0, a_->dim);
        prefetch_tokens(a_->v, b, h / a_->group(), next, kScanBlock, a_->length, column, columns);
      }
      multiply({p + r * chunk, chunk, 1, chunk_.writes(), width_v_, o + r * width_v_, width_v_, kScanBlock,
                r + kScanBlock, false},
               width_v_);
    }
    keys.decay_from_start(q);
    multiply({q, width, 1, state_.data(), width_v_, o, width_v_, rows, a_->dim, true}, width_v_);
    const View& to = problem_->o;
    for (int64_t t = 0; t < count; ++t)
      store_row(o + t * width_v_, columns, 1.0f, to.at(b, h, first + t) + column * size_of(to.dtype),
                to.dtype);
  }

  const LinearScanProblem* problem_ = nullptr;
  const LinearScanArgs* a_ = nullptr;
  int64_t columns_ = 0, width_v_ = 0;
  ScanChunk chunk_;
  memory::Buffer<float> state_, queries_, scores_, outputs_;
};

void scan(const LinearScanProblem& problem) {
  const LinearScanArgs& a = problem.args;
  const int64_t chunk = a.chunk > 0 ? a.chunk : kChunk;
  const int64_t columns = columns_of_task(a, chunk), parts = (a.dim_v + columns - 1) / columns;
  std::vector<ScanTask> tasks(static_cast<size_t>(threads()));
  for (ScanTask& task : tasks) task.reserve(problem, chunk, columns);
  parallel_for(a.batch * a.heads_kv * parts, [&](int64_t task, int worker) {
    const int64_t unit = task / parts;
    tasks[static_cast<size_t>(worker)].run(unit / a.heads_kv, unit % a.heads_kv, task % parts * columns);
  });
}

void read_state(const LinearScanProblem& problem) {
  struct Scratch {
    memory::Buffer<float> queries, state, outputs;
  };
  const LinearScanArgs& a = problem.args;
  const int64_t width = scan_width(a.dim), width_v = round_up(a.dim_v, kLanes);
  const int64_t tiles = (a.length + kReadRows - 1) / kReadRows;
  std::vector<Scratch> scratch(static_cast<size_t>(threads()));
  for (Scratch& s : scratch) {
    s.queries.reserve(kReadRows * width);
    s.outputs.reserve(kReadRows * width_v);
    s.state.reserve(std::max<int64_t>(1, a.dim * width_v));
  }
  // Runs of tiles of one head share its packed state.
  constexpr int64_t kRun = 16;
  const int64_t runs = (tiles + kRun - 1) / kRun;
  parallel_for(a.batch * a.heads_q * runs, [&](int64_t task, int worker) {
    const Scratch& s = scratch[static_cast<size_t>(worker)];
    const int64_t b = task / runs / a.heads_q, h = task / runs % a.heads_q, kv = h / a.group();
    for (int64_t c = 0; c < a.dim; ++c)
      load_row(a.state.at<float>(b, kv, c), a.dim_v, 1.0f, s.state.data() + c * width_v, width_v);
    const int64_t end = std::min(a.length, (task % runs + 1) * kRun * kReadRows);
    for (int64_t first = task % runs * kRun * kReadRows; first < end; first += kReadRows) {
      const int64_t count = std::min(kReadRows, end - first);
      load_tokens(a.q, b, h, first, count, 0, a.dim, a.scale, s.queries.data(), width);
      multiply({s.queries.data(), width, 1, s.state.data(), width_v, s.outputs.data(), width_v, count, a.dim,
                false},
               width_v);
      for (int64_t t = 0; t < count; ++t)
        store_row(s.outputs.data() + t * width_v, a.dim_v, 1.0f, problem.o.at(b, h, first + t),
                  problem.o.dtype);
    }
  });
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
HWY_EXPORT(scan);
HWY_EXPORT(read_state);

void cpu::run_linear_scan(const LinearScanProblem& problem) { HWY_DYNAMIC_DISPATCH(scan)(problem); }
void cpu::run_linear_scan_read(const LinearScanProblem& problem) {
  HWY_DYNAMIC_DISPATCH(read_state)(problem);
}

}  // namespace fovea::kernels
#endif

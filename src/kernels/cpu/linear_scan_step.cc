// SPDX-License-Identifier: Apache-2.0
// One token of the linear scan: every state is read and written once, in blocks of columns that stay in
// registers and cache between the passes of the delta rule and of the query heads:
//   e = v - delta k Diag(a) S      S <- Diag(a) S + k^T (beta e)      o = scale q S
#include <vector>

#include "kernels/cpu/linear_scan.h"
#include "kernels/cpu/parallel_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_scan_step.cc"
#include "hwy/foreach_target.h"
#include "kernels/cpu/linear_scan_keys-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

using cpu::LinearScanProblem;

// Vectors of state columns at a time.
constexpr int kStepVectors = 4;
constexpr int64_t kStepColumns = kStepVectors * kLanes;

class StepTask {
 public:
  void reserve(const LinearScanProblem& problem) {
    problem_ = &problem, a_ = &problem.args;
    key_.reserve(scan_width(a_->dim));
    query_.reserve(scan_width(a_->dim));
    decay_.reserve(scan_width(a_->dim));
  }

  void run(int64_t b, int64_t kv, int64_t column) {
    if (b != batch_ || kv != head_) load(b, kv);
    batch_ = b, head_ = kv;
    for (const int64_t end = std::min(a_->dim_v, column + kStepColumns); column < end;) {
      if (column + kStepColumns <= end)
        columns<kStepVectors>(b, kv, column, kStepColumns), column += kStepColumns;
      else
        columns<1>(b, kv, column, std::min(kLanes, end - column)), column += kLanes;
    }
  }

 private:
  void load(int64_t b, int64_t kv) {
    load_row(a_->k.at(b, kv, 0), a_->k.dtype, a_->dim, 1.0f, key_.data(), a_->dim);
    const int64_t width = scan_width(a_->dim);
    if (a_->decay == Decay::channel)
      load_row(a_->log_decay.at<float>(b, kv, 0), a_->dim, 1.0f, decay_.data(), width);
    else
      std::fill_n(decay_.data(), width, a_->decay == Decay::none ? 0.0f : *a_->log_decay.at<float>(b, kv, 0));
    exp_row(decay_.data(), width);
  }

  // The first `count` columns from `column` on; whole vectors where count is their size.
  template <int kVectors>
  void columns(int64_t b, int64_t kv, int64_t column, int64_t count) {
    const Floats d;
    const bool whole = count == kVectors * kLanes;
    const auto load = [&](const float* from, int v) HWY_ATTR {
      if (whole) return hn::LoadU(d, from + v * kLanes);
      HWY_ALIGN float part[kLanes] = {};
      std::memcpy(part, from, static_cast<size_t>(count) * sizeof(float));
      return hn::Load(d, part);
    };
    const auto store = [&](FloatVector x, float* to, int v) HWY_ATTR {
      if (whole) return hn::StoreU(x, d, to + v * kLanes);
      HWY_ALIGN float part[kLanes];
      hn::Store(x, d, part);
      std::memcpy(to, part, static_cast<size_t>(count) * sizeof(float));
    };
    const float *key = key_.data(), *decay = decay_.data();
    HWY_ALIGN float values[kVectors * kLanes];
    load_row(a_->v.at(b, kv, 0) + column * size_of(a_->v.dtype), a_->v.dtype, count, 1.0f, values,
             kVectors * kLanes);
    FloatVector write[kVectors];
    for (int v = 0; v < kVectors; ++v) write[v] = hn::Load(d, values + v * kLanes);
    if (a_->delta) {
      for (int64_t c = 0; c < a_->dim; ++c) {
        const auto factor = hn::Set(d, key[c] * decay[c]);
        const float* from = a_->state.at<float>(b, kv, c) + column;
        for (int v = 0; v < kVectors; ++v) write[v] = hn::NegMulAdd(factor, load(from, v), write[v]);
      }
    }
    if (a_->beta) {
      const auto beta = hn::Set(d, *a_->beta.at<float>(b, kv, 0));
      for (int v = 0; v < kVectors; ++v) write[v] = hn::Mul(beta, write[v]);
    }
    const int64_t group = a_->group();
    for (int64_t h = kv * group; h == kv * group || h < (kv + 1) * group; ++h) {
      FloatVector sum[kVectors];
      for (int v = 0; v < kVectors; ++v) sum[v] = hn::Zero(d);
      const bool first = h == kv * group, reads = group > 0;
      float* query = query_.data();
      if (reads) load_row(a_->q.at(b, h, 0), a_->q.dtype, a_->dim, a_->scale, query, a_->dim);
      for (int64_t c = 0; c < a_->dim; ++c) {
        float* to = problem_->state_out.at<float>(b, kv, c) + column;
        const float* from = first ? a_->state.at<float>(b, kv, c) + column : to;
        const auto q = hn::Set(d, reads ? query[c] : 0.0f), k = hn::Set(d, key[c]), a = hn::Set(d, decay[c]);
        for (int v = 0; v < kVectors; ++v) {
          auto s = load(from, v);
          if (first) {
            s = hn::MulAdd(k, write[v], hn::Mul(a, s));
            store(s, to, v);
          }
          sum[v] = hn::MulAdd(q, s, sum[v]);
        }
      }
      if (!reads) return;
      for (int v = 0; v < kVectors; ++v) hn::Store(sum[v], d, values + v * kLanes);
      store_row(values, count, 1.0f, problem_->o.at(b, h, 0) + column * size_of(problem_->o.dtype),
                problem_->o.dtype);
    }
  }

  const LinearScanProblem* problem_ = nullptr;
  const LinearScanArgs* a_ = nullptr;
  int64_t batch_ = -1, head_ = -1;
  memory::Buffer<float> key_, query_, decay_;
};

void step(const LinearScanProblem& problem) {
  const LinearScanArgs& a = problem.args;
  const int64_t parts = (a.dim_v + kStepColumns - 1) / kStepColumns;
  std::vector<StepTask> tasks(static_cast<size_t>(threads()));
  for (StepTask& task : tasks) task.reserve(problem);
  cpu::parallel_rows(a.batch * a.heads_kv * parts, a.dim * kStepColumns,
                     [&](int64_t begin, int64_t end, int worker) {
                       for (int64_t row = begin; row < end; ++row) {
                         const int64_t unit = row / parts;
                         tasks[static_cast<size_t>(worker)].run(unit / a.heads_kv, unit % a.heads_kv,
                                                                row % parts * kStepColumns);
                       }
                     });
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
HWY_EXPORT(step);

void cpu::run_linear_scan_step(const LinearScanProblem& problem) { HWY_DYNAMIC_DISPATCH(step)(problem); }

}  // namespace fovea::kernels
#endif

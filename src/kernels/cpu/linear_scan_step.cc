// SPDX-License-Identifier: Apache-2.0
// One token of the linear scan:
//   e = v - delta k Diag(a) S      S <- Diag(a) S + k^T (beta e)      o = scale q S
// It is bound by memory, and every state is read and written once: in whole rows where they are not longer
// than the sums that fit the registers, since stores between the loads of a long stream would hold it up.
// What the delta rule and further query heads read again is then in cache.
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

// Vectors of state columns at a time: half of the registers.
constexpr int kStepVectors = 4 * kBlockVectors;
constexpr int64_t kStepColumns = kStepVectors * kLanes;

// A vector at `from`, of which `count` lanes are there.
HWY_INLINE FloatVector load_some(const float* from, int64_t count) {
  const Floats d;
  if (count >= kLanes) return hn::LoadU(d, from);
  HWY_ALIGN float lanes[kLanes] = {};
  std::memcpy(lanes, from, static_cast<size_t>(count) * sizeof(float));
  return hn::Load(d, lanes);
}
HWY_INLINE void store_some(FloatVector x, float* to, int64_t count) {
  const Floats d;
  if (count >= kLanes) return hn::StoreU(x, d, to);
  HWY_ALIGN float lanes[kLanes];
  hn::Store(x, d, lanes);
  std::memcpy(to, lanes, static_cast<size_t>(count) * sizeof(float));
}

class StepTask {
 public:
  bool ready() const { return problem_ != nullptr; }
  void reserve(const LinearScanProblem& problem) {
    problem_ = &problem, a_ = &problem.args;
    for (auto* row : {&key_, &query_, &decay_, &reader_}) row->reserve(scan_width(a_->dim));
    values_.reserve(kStepColumns);
  }

  void run(int64_t b, int64_t kv, int64_t column) {
    if (b != batch_ || kv != head_) load(b, kv);
    for_columns<kStepVectors>(column, std::min(a_->dim_v, column + kStepColumns));
  }

 private:
  void load(int64_t b, int64_t kv) {
    batch_ = b, head_ = kv;
    const int64_t width = scan_width(a_->dim);
    load_row(a_->k.at(b, kv, 0), a_->k.dtype, a_->dim, 1.0f, key_.data(), width);
    if (a_->decay == Decay::channel)
      load_row(a_->log_decay.at<float>(b, kv, 0), a_->dim, 1.0f, decay_.data(), width);
    else
      std::fill_n(decay_.data(), width, a_->decay == Decay::none ? 0.0f : *a_->log_decay.at<float>(b, kv, 0));
    exp_row(decay_.data(), width);
    std::copy(key_.data(), key_.data() + width, reader_.data());
    multiply_row(reader_.data(), decay_.data(), width);
  }

  template <int kVectors>
  void for_columns(int64_t column, int64_t end) {
    for (; column + kVectors * kLanes <= end; column += kVectors * kLanes) columns<kVectors>(column, kLanes);
    if (column == end) return;
    if constexpr (kVectors > 1)
      for_columns<kVectors / 2>(column, end);
    else
      columns<1>(column, end - column);
  }

  // kVectors vectors of columns; `lanes` of each are there.
  template <int kVectors>
  void columns(int64_t column, int64_t lanes) {
    const Floats d;
    const View &v = a_->v, &o = problem_->o;
    const int64_t count = (kVectors - 1) * kLanes + lanes, group = a_->group();
    load_row(v.at(batch_, head_, 0) + column * size_of(v.dtype), v.dtype, count, 1.0f, values_.data(),
             kVectors * kLanes);
    if (a_->delta) subtract<kVectors>(column, lanes);
    if (a_->beta) multiply_row(values_.data(), *a_->beta.at<float>(batch_, head_, 0), kVectors * kLanes);
    HWY_ALIGN float outputs[kVectors * kLanes];
    for (int64_t g = 0; g < group; ++g) {
      const int64_t h = head_ * group + g;
      load_row(a_->q.at(batch_, h, 0), a_->q.dtype, a_->dim, a_->scale, query_.data(), scan_width(a_->dim));
      FloatVector sums[kVectors];
      for (int i = 0; i < kVectors; ++i) sums[i] = hn::Zero(d);
      if (g == 0)
        advance<kVectors>(column, lanes, sums);
      else
        read<kVectors>(column, lanes, sums);
      for (int i = 0; i < kVectors; ++i) hn::Store(sums[i], d, outputs + i * kLanes);
      store_row(outputs, count, 1.0f, o.at(batch_, h, 0) + column * size_of(o.dtype), o.dtype);
    }
  }

  // values -= k Diag(a) S
  template <int kVectors>
  void subtract(int64_t column, int64_t lanes) {
    const Floats d;
    FloatVector sums[kVectors];
    for (int i = 0; i < kVectors; ++i) sums[i] = hn::LoadU(d, values_.data() + i * kLanes);
    for (int64_t c = 0; c < a_->dim; ++c) {
      const float* from = a_->state.at<float>(batch_, head_, c) + column;
      const auto reader = hn::Set(d, reader_[c]);
      for (int i = 0; i < kVectors; ++i)
        sums[i] = hn::NegMulAdd(reader, load_some(from + i * kLanes, lanes), sums[i]);
    }
    for (int i = 0; i < kVectors; ++i) hn::StoreU(sums[i], d, values_.data() + i * kLanes);
  }

  // S <- Diag(a) S + k^T values, and the new state's sums for the query.
  template <int kVectors>
  void advance(int64_t column, int64_t lanes, FloatVector* HWY_RESTRICT to_sums) {
    const Floats d;
    FloatVector sums[kVectors];
    for (int i = 0; i < kVectors; ++i) sums[i] = hn::Zero(d);
    const float* values = values_.data();
    for (int64_t c = 0; c < a_->dim; ++c) {
      const float* from = a_->state.at<float>(batch_, head_, c) + column;
      float* to = problem_->state_out.at<float>(batch_, head_, c) + column;
      const auto key = hn::Set(d, key_[c]), decay = hn::Set(d, decay_[c]), query = hn::Set(d, query_[c]);
      for (int i = 0; i < kVectors; ++i) {
        const auto s = hn::MulAdd(key, hn::LoadU(d, values + i * kLanes),
                                  hn::Mul(decay, load_some(from + i * kLanes, lanes)));
        store_some(s, to + i * kLanes, lanes);
        sums[i] = hn::MulAdd(query, s, sums[i]);
      }
    }
    for (int i = 0; i < kVectors; ++i) to_sums[i] = sums[i];
  }

  template <int kVectors>
  void read(int64_t column, int64_t lanes, FloatVector* HWY_RESTRICT to_sums) {
    const Floats d;
    FloatVector sums[kVectors];
    for (int i = 0; i < kVectors; ++i) sums[i] = hn::Zero(d);
    for (int64_t c = 0; c < a_->dim; ++c) {
      const float* from = problem_->state_out.at<float>(batch_, head_, c) + column;
      const auto query = hn::Set(d, query_[c]);
      for (int i = 0; i < kVectors; ++i)
        sums[i] = hn::MulAdd(query, load_some(from + i * kLanes, lanes), sums[i]);
    }
    for (int i = 0; i < kVectors; ++i) to_sums[i] = sums[i];
  }

  const LinearScanProblem* problem_ = nullptr;
  const LinearScanArgs* a_ = nullptr;
  int64_t batch_ = -1, head_ = -1;
  memory::Buffer<float> key_, query_, decay_, reader_, values_;
};

void step(const LinearScanProblem& problem) {
  const LinearScanArgs& a = problem.args;
  const int64_t parts = (a.dim_v + kStepColumns - 1) / kStepColumns;
  std::vector<StepTask> tasks(static_cast<size_t>(threads()));
  cpu::parallel_rows(a.batch * a.heads_kv * parts, a.dim * std::min(a.dim_v, kStepColumns),
                     [&](int64_t begin, int64_t end, int worker) {
                       StepTask& task = tasks[static_cast<size_t>(worker)];
                       if (!task.ready()) task.reserve(problem);
                       for (int64_t row = begin; row < end; ++row) {
                         const int64_t unit = row / parts;
                         task.run(unit / a.heads_kv, unit % a.heads_kv, row % parts * kStepColumns);
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

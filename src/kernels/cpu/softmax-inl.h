// SPDX-License-Identifier: Apache-2.0
// Row passes of online softmax over a tile of scores. Included once per SIMD target.
#include <cstdint>
#include <limits>

#include "kernels/cpu/key_source.h"
#include "kernels/cpu/tile-inl.h"

#if defined(FOVEA_KERNELS_CPU_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_SOFTMAX_INL_H_
#undef FOVEA_KERNELS_CPU_SOFTMAX_INL_H_
#else
#define FOVEA_KERNELS_CPU_SOFTMAX_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {

inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Every pass below works on whole vectors: scores[count .. round_up(count, kLanes)) must be writable, and
// what it holds afterwards is unspecified except after `exponentiate`.

/// scores += factor * bias
HWY_INLINE void add_scaled(float* scores, const float* bias, float factor, int64_t count) {
  const Floats d;
  const auto f = hn::Set(d, factor);
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes)
    hn::StoreU(hn::MulAdd(f, hn::LoadU(d, bias + c), hn::LoadU(d, scores + c)), d, scores + c);
  for (; c < count; ++c) scores[c] += factor * bias[c];
}

/// scores -= slope * |position - key|, the keys being first, first + 1, ...
HWY_INLINE void add_distance(float* scores, float slope, int64_t position, int64_t first, int64_t count) {
  const Floats d;
  const auto minus_slope = hn::Set(d, -slope);
  for (int64_t c = 0; c < count; c += kLanes) {
    const auto distance = hn::Abs(hn::Iota(d, static_cast<float>(first + c - position)));
    hn::StoreU(hn::MulAdd(minus_slope, distance, hn::LoadU(d, scores + c)), d, scores + c);
  }
}

/// scores = factor * cap * tanh(scores / cap)
HWY_INLINE void cap_scores(float* scores, float cap, float factor, int64_t count) {
  const Floats d;
  const auto inverse = hn::Set(d, 1.0f / cap), outer = hn::Set(d, cap * factor);
  for (int64_t c = 0; c < count; c += kLanes)
    hn::StoreU(hn::Mul(outer, tanh_of(d, hn::Mul(hn::LoadU(d, scores + c), inverse))), d, scores + c);
}

/// scores = -inf where mask is 0
HWY_INLINE void hide_masked(float* scores, const uint8_t* mask, int64_t count) {
  for (int64_t c = 0; c < count; ++c) scores[c] = mask[c] ? scores[c] : kMinusInfinity;
}

/// Largest scores, lane by lane; NaN are passed over.
HWY_INLINE FloatVector lane_maxima(const float* scores, int64_t count) {
  const Floats d;
  auto m0 = hn::Set(d, kMinusInfinity), m1 = m0;
  int64_t c = 0;
  for (; c + 2 * kLanes <= count; c += 2 * kLanes) {
    m0 = hn::Max(hn::LoadU(d, scores + c), m0);
    m1 = hn::Max(hn::LoadU(d, scores + c + kLanes), m1);
  }
  if (c + kLanes <= count) m0 = hn::Max(hn::LoadU(d, scores + c), m0), c += kLanes;
  if (c < count) {
    const auto inside = hn::FirstN(d, static_cast<size_t>(count - c));
    m1 = hn::Max(hn::IfThenElse(inside, hn::LoadU(d, scores + c), hn::Set(d, kMinusInfinity)), m1);
  }
  return hn::Max(m0, m1);
}

HWY_INLINE bool any_nan(const float* scores, int64_t count) {
  bool nan = false;
  for (int64_t c = 0; c < count; ++c) nan |= scores[c] != scores[c];
  return nan;
}

/// scores = 2^(factor * scores - maximum), and 0 up to the next multiple of kLanes; returns their sum.
HWY_INLINE float exponentiate(float* scores, float factor, float maximum, int64_t count) {
  const Floats d;
  const auto f = hn::Set(d, factor), m = hn::Set(d, maximum);
  auto sum0 = hn::Zero(d), sum1 = sum0;
  int64_t c = 0;
  for (; c + 2 * kLanes <= count; c += 2 * kLanes) {
    const auto p0 = exp2_of(d, hn::MulSub(f, hn::LoadU(d, scores + c), m));
    const auto p1 = exp2_of(d, hn::MulSub(f, hn::LoadU(d, scores + c + kLanes), m));
    hn::StoreU(p0, d, scores + c);
    hn::StoreU(p1, d, scores + c + kLanes);
    sum0 = hn::Add(sum0, p0);
    sum1 = hn::Add(sum1, p1);
  }
  for (; c < count; c += kLanes) {
    const auto inside = hn::FirstN(d, static_cast<size_t>(std::min(kLanes, count - c)));
    const auto p = hn::IfThenElseZero(inside, exp2_of(d, hn::MulSub(f, hn::LoadU(d, scores + c), m)));
    hn::StoreU(p, d, scores + c);
    sum0 = hn::Add(sum0, p);
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
}

/// row *= factor
HWY_INLINE void scale_row(float* row, float factor, int64_t count) {
  const Floats d;
  const auto f = hn::Set(d, factor);
  for (int64_t c = 0; c < count; c += kLanes) hn::StoreU(hn::Mul(f, hn::LoadU(d, row + c)), d, row + c);
}

/// Running softmax of one row in base 2: l = sum 2^(s - m).
struct RunningRow {
  float maximum = kMinusInfinity;
  float sum = 0;
  float rounded_sum = 0;  // of the weights as the values meet them, where those are rounded
};

/// Turns factor * (the scores of further keys), factor > 0, into weights relative to the row's new maximum
/// and folds them into the row. Returns the factor that brings what was accumulated before to the new
/// maximum.
HWY_INLINE float fold(RunningRow& row, float* scores, int64_t count, float factor = 1.0f) {
  float seen = factor * hn::GetLane(hn::MaxOfLanes(Floats(), lane_maxima(scores, count)));
  if (!(seen > kMinusInfinity)) {
    if (!any_nan(scores, count)) {
      std::fill(scores, scores + round_up(count, kLanes), 0.0f);
      return 1.0f;
    }
    seen = 0.0f;  // any number: the NaN carry on through the weights
  }
  float rescale = 1.0f;
  if (seen > row.maximum) {
    rescale = row.maximum == kMinusInfinity ? 0.0f : std::exp2(row.maximum - seen);
    row.maximum = seen;
  }
  row.sum = row.sum * rescale + exponentiate(scores, factor, row.maximum, count);
  return rescale;
}

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif

// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/rows.h"

#include <cmath>
#include <limits>

#include "kernels/cpu/parallel_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rows.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = HWY_FULL(float);

// Applies `vector` to whole vectors and `one` to the elements left over.
template <class VectorBody, class ScalarBody>
HWY_INLINE void over_row(int64_t length, const VectorBody& vector, const ScalarBody& one) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(Floats()));
  int64_t i = 0;
  for (; i + lanes <= length; i += lanes) vector(i);
  for (; i < length; ++i) one(i);
}

// exp(x - max) / sum exp(x - max)
void softmax_row(const float* x, int64_t length, float* y) {
  const Floats d;
  const hn::CappedTag<float, 1> d1;
  constexpr float kNothing = -std::numeric_limits<float>::infinity();
  auto largest = hn::Set(d, kNothing);
  float maximum = kNothing;
  over_row(
      length, [&](int64_t i) HWY_ATTR { largest = hn::Max(largest, hn::LoadU(d, x + i)); },
      [&](int64_t i) HWY_ATTR { maximum = HWY_MAX(maximum, x[i]); });
  maximum = HWY_MAX(maximum, hn::GetLane(hn::MaxOfLanes(d, largest)));
  if (maximum == kNothing) {
    // NaN does not take part in the maximum above, but a row that has one is NaN.
    for (int64_t i = 0; i < length; ++i) y[i] = std::isnan(x[i]) ? x[i] : 0.0f;
    return;
  }
  const auto shift = hn::Set(d, maximum);
  auto sums = hn::Zero(d);
  float sum = 0;
  over_row(
      length,
      [&](int64_t i) HWY_ATTR {
        const auto e = exp_of(d, hn::Sub(hn::LoadU(d, x + i), shift));
        sums = hn::Add(sums, e);
        hn::StoreU(e, d, y + i);
      },
      [&](int64_t i) HWY_ATTR {
        y[i] = hn::GetLane(exp_of(d1, hn::Set(d1, x[i] - maximum)));
        sum += y[i];
      });
  sum += hn::GetLane(hn::SumOfLanes(d, sums));
  const float inverse = 1.0f / sum;
  over_row(
      length,
      [&](int64_t i) HWY_ATTR { hn::StoreU(hn::Mul(hn::LoadU(d, y + i), hn::Set(d, inverse)), d, y + i); },
      [&](int64_t i) HWY_ATTR { y[i] *= inverse; });
}

// sum (x - shift)^power, power 1 or 2, in two chains.
template <int kPower>
float power_sum(const float* x, int64_t length, float shift) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto center = hn::Set(d, shift);
  auto even = hn::Zero(d), odd = hn::Zero(d);
  const auto add = [&](auto& sums, int64_t at) HWY_ATTR {
    const auto v = hn::Sub(hn::LoadU(d, x + at), center);
    sums = kPower == 1 ? hn::Add(sums, v) : hn::MulAdd(v, v, sums);
  };
  int64_t i = 0;
  for (; i + 2 * lanes <= length; i += 2 * lanes) {
    add(even, i);
    add(odd, i + lanes);
  }
  float rest = 0;
  for (; i < length; ++i) rest += kPower == 1 ? x[i] - shift : (x[i] - shift) * (x[i] - shift);
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd))) + rest;
}

// (x - shift) * factor * weight + bias; bias may be null.
void normalize_row(const float* x, int64_t length, float shift, float factor, const float* weight,
                   const float* bias, float* y) {
  const Floats d;
  const auto center = hn::Set(d, shift), scale = hn::Set(d, factor);
  over_row(
      length,
      [&](int64_t i) HWY_ATTR {
        const auto v = hn::Mul(hn::Sub(hn::LoadU(d, x + i), center), scale);
        const auto w = hn::LoadU(d, weight + i);
        hn::StoreU(bias ? hn::MulAdd(v, w, hn::LoadU(d, bias + i)) : hn::Mul(v, w), d, y + i);
      },
      [&](int64_t i) HWY_ATTR {
        const float v = (x[i] - shift) * factor * weight[i];
        y[i] = bias ? v + bias[i] : v;
      });
}

void rms_norm_row(const float* x, int64_t length, const float* weight, float epsilon, float* y) {
  const float mean_square = power_sum<2>(x, length, 0.0f) / static_cast<float>(length);
  normalize_row(x, length, 0.0f, 1.0f / std::sqrt(mean_square + epsilon), weight, nullptr, y);
}

void layer_norm_row(const float* x, int64_t length, const float* weight, const float* bias, float epsilon,
                    float* y) {
  const float mean = power_sum<1>(x, length, 0.0f) / static_cast<float>(length);
  const float variance = power_sum<2>(x, length, mean) / static_cast<float>(length);
  normalize_row(x, length, mean, 1.0f / std::sqrt(variance + epsilon), weight, bias, y);
}

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
namespace {

HWY_EXPORT(softmax_row);
HWY_EXPORT(rms_norm_row);
HWY_EXPORT(layer_norm_row);

const float* channel_weight(const Tensor& weight, const Tensor& x, const char* name) {
  require(weight.rank() == 1 && weight.dtype() == DType::f32 && weight.dim(0) == x.dim(-1) &&
              weight.is_contiguous(),
          "norm: ", name, " is ", weight.describe(), ", expected f32[", x.dim(-1), "]");
  return weight.data<float>();
}

template <typename RowFunction>
Tensor map_rows(const Tensor& x, const RowFunction& function) {
  const cpu::RowsView rows(x);
  const Tensor y = Tensor::empty(x.shape());
  float* const out = y.data<float>();
  const int64_t length = rows.length();
  cpu::parallel_rows(rows.count(), length, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) function(rows[row], length, out + row * length);
  });
  return y;
}

}  // namespace

Tensor softmax_rows(const Tensor& x) {
  return map_rows(x, [](const float* row, int64_t length, float* y) {
    HWY_DYNAMIC_DISPATCH(softmax_row)(row, length, y);
  });
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, float epsilon) {
  const float* w = channel_weight(weight, x, "weight");
  return map_rows(x, [&](const float* row, int64_t length, float* y) {
    HWY_DYNAMIC_DISPATCH(rms_norm_row)(row, length, w, epsilon, y);
  });
}

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float epsilon) {
  const float* w = channel_weight(weight, x, "weight");
  const float* b = channel_weight(bias, x, "bias");
  return map_rows(x, [&](const float* row, int64_t length, float* y) {
    HWY_DYNAMIC_DISPATCH(layer_norm_row)(row, length, w, b, epsilon, y);
  });
}

}  // namespace fovea::kernels
#endif  // HWY_ONCE

// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/rope.h"

#include <cmath>

#include "kernels/cpu/parallel_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// a' = a cos - b sin,  b' = b cos + a sin  for the pairs (a[m], b[m])
void rotate_row(float* a, float* b, const float* cosines, const float* sines, int64_t pairs) {
  const HWY_FULL(float) d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t m = 0;
  for (; m + lanes <= pairs; m += lanes) {
    const auto x = hn::LoadU(d, a + m), y = hn::LoadU(d, b + m);
    const auto c = hn::LoadU(d, cosines + m), s = hn::LoadU(d, sines + m);
    hn::StoreU(hn::NegMulAdd(y, s, hn::Mul(x, c)), d, a + m);
    hn::StoreU(hn::MulAdd(x, s, hn::Mul(y, c)), d, b + m);
  }
  for (; m < pairs; ++m) {
    const float x = a[m], y = b[m];
    a[m] = x * cosines[m] - y * sines[m];
    b[m] = y * cosines[m] + x * sines[m];
  }
}

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
namespace {
HWY_EXPORT(rotate_row);
}  // namespace

Tensor rope_frequencies(int64_t rotated, double theta) {
  require(rotated >= 0 && rotated % 2 == 0, "rope: ", rotated, " rotated channels, expected an even number");
  require(theta > 0, "rope: theta = ", theta, ", expected a positive base");
  const Tensor frequencies = Tensor::empty({rotated / 2});
  for (int64_t m = 0; m < rotated / 2; ++m)
    frequencies.data<float>()[m] =
        static_cast<float>(std::pow(theta, -2.0 * static_cast<double>(m) / static_cast<double>(rotated)));
  return frequencies;
}

RopeTable rope_table(const Tensor& positions, const Tensor& frequencies, float magnitude) {
  require(positions.rank() == 1 && (positions.dtype() == DType::i64 || positions.dtype() == DType::i32),
          "rope: positions are ", positions, ", expected i64[T] or i32[T]");
  require(frequencies.rank() == 1 && frequencies.dtype() == DType::f32, "rope: frequencies are ", frequencies,
          ", expected f32[R/2]");
  const int64_t tokens = positions.dim(0), pairs = frequencies.dim(0);
  const RopeTable table{Tensor::empty({tokens, pairs}), Tensor::empty({tokens, pairs})};
  float* const cosines = table.cos.data<float>();
  float* const sines = table.sin.data<float>();
  // A sine costs about as much as sixteen multiplications.
  cpu::parallel_rows(tokens, 16 * pairs, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const double position = positions.dtype() == DType::i64 ? static_cast<double>(positions.at<int64_t>(t))
                                                              : positions.at<int32_t>(t);
      for (int64_t m = 0; m < pairs; ++m) {
        const double angle = position * static_cast<double>(frequencies.at<float>(m));
        cosines[t * pairs + m] = static_cast<float>(std::cos(angle) * static_cast<double>(magnitude));
        sines[t * pairs + m] = static_cast<float>(std::sin(angle) * static_cast<double>(magnitude));
      }
    }
  });
  return table;
}

void apply_rope(const Tensor& x, const RopeTable& table) {
  require(x.rank() == 4 && x.dtype() == DType::f32 && (x.dim(3) <= 1 || x.stride(3) == 1), "rope: x is ", x,
          ", expected f32[B,H,T,D] with a contiguous last axis");
  const int64_t heads = x.dim(1), tokens = x.dim(2), pairs = table.cos.dim(-1);
  const Shape expected{tokens, pairs};
  require(table.cos.shape() == expected && table.sin.shape() == expected && table.cos.is_contiguous() &&
              table.sin.is_contiguous() && 2 * pairs <= x.dim(3),
          "rope: a table of ", table.cos, " for x ", x);
  float* const data = x.data<float>();
  const float* cosines = table.cos.data<float>();
  const float* sines = table.sin.data<float>();
  cpu::parallel_rows(x.dim(0) * heads * tokens, 2 * pairs, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t t = row % tokens, h = row / tokens % heads, b = row / tokens / heads;
      float* at = data + b * x.stride(0) + h * x.stride(1) + t * x.stride(2);
      HWY_DYNAMIC_DISPATCH(rotate_row)(at, at + pairs, cosines + t * pairs, sines + t * pairs, pairs);
    }
  });
}

}  // namespace fovea::kernels
#endif  // HWY_ONCE

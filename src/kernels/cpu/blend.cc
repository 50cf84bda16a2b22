// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/blend.h"

#include "kernels/cpu/parallel_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/blend.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

/// y = wa a + wb b
void combine_row(const float* a, float wa, const float* b, float wb, int64_t n, float* y) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto va = hn::Set(d, wa), vb = hn::Set(d, wb);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    hn::StoreU(hn::MulAdd(va, hn::LoadU(d, a + i), hn::Mul(vb, hn::LoadU(d, b + i))), d, y + i);
  for (; i < n; ++i) y[i] = wa * a[i] + wb * b[i];
}

void multiply_row(const float* x, const float* weight, int64_t n, float* y) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    hn::StoreU(hn::Mul(hn::LoadU(d, x + i), hn::LoadU(d, weight + i)), d, y + i);
  for (; i < n; ++i) y[i] = x[i] * weight[i];
}

float dot_row(const float* x, const float* y, int64_t n) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto even = hn::Zero(d), odd = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    even = hn::MulAdd(hn::LoadU(d, x + i), hn::LoadU(d, y + i), even);
    odd = hn::MulAdd(hn::LoadU(d, x + i + lanes), hn::LoadU(d, y + i + lanes), odd);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
  for (; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
namespace {

HWY_EXPORT(combine_row);
HWY_EXPORT(multiply_row);
HWY_EXPORT(dot_row);

void check_pair(const Tensor& a, const Tensor& b, const char* kernel) {
  require(a.shape() == b.shape(), kernel, ": ", a.describe(), " and ", b.describe(), " differ in shape");
}

}  // namespace

Tensor blend_heads(const Tensor& a, const Tensor& b, const Tensor& weight) {
  check_pair(a, b, "blend_heads");
  require(a.rank() == 4 && weight.rank() == 1 && weight.dtype() == DType::f32 && weight.dim(0) > 0 &&
              a.dim(1) % weight.dim(0) == 0,
          "blend_heads: weight ", weight.describe(), " does not fit the heads of ", a.describe());
  const cpu::RowsView rows_a(a), rows_b(b);
  const int64_t n = rows_a.length(), heads = a.dim(1), group = heads / weight.dim(0), length = a.dim(2);
  const Tensor y = Tensor::empty(a.shape());
  cpu::parallel_rows(rows_a.count(), n, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float w = weight.at<float>(r / length % heads / group);
      HWY_DYNAMIC_DISPATCH(combine_row)(rows_a[r], w, rows_b[r], 1.0f - w, n, y.data<float>() + r * n);
    }
  });
  return y;
}

Tensor scale_channels(const Tensor& x, const Tensor& weight) {
  const cpu::RowsView rows(x);
  const int64_t n = rows.length();
  require(weight.rank() == 1 && weight.dtype() == DType::f32 && weight.dim(0) == n, "scale_channels: weight ",
          weight.describe(), " does not fit the channels of ", x.describe());
  const Tensor factors = weight.contiguous(), y = Tensor::empty(x.shape());
  cpu::parallel_rows(rows.count(), n, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r)
      HWY_DYNAMIC_DISPATCH(multiply_row)(rows[r], factors.data<float>(), n, y.data<float>() + r * n);
  });
  return y;
}

Tensor difference(const Tensor& a, const Tensor& b) {
  check_pair(a, b, "difference");
  const cpu::RowsView rows_a(a), rows_b(b);
  const int64_t n = rows_a.length();
  const Tensor y = Tensor::empty(a.shape());
  cpu::parallel_rows(rows_a.count(), n, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r)
      HWY_DYNAMIC_DISPATCH(combine_row)(rows_a[r], 1.0f, rows_b[r], -1.0f, n, y.data<float>() + r * n);
  });
  return y;
}

Tensor row_dots(const Tensor& x, const Tensor& y) {
  check_pair(x, y, "row_dots");
  const cpu::RowsView rows_x(x), rows_y(y);
  Shape shape = x.shape();
  shape.erase(shape.rank() - 1);
  const Tensor sums = Tensor::empty(shape);
  cpu::parallel_rows(rows_x.count(), rows_x.length(), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r)
      sums.data<float>()[r] = HWY_DYNAMIC_DISPATCH(dot_row)(rows_x[r], rows_y[r], rows_x.length());
  });
  return sums;
}

}  // namespace fovea::kernels
#endif  // HWY_ONCE

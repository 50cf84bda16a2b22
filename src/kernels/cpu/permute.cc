// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/permute.h"

#include <algorithm>

#include "kernels/cpu/parallel_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/permute.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

void gather_row(const float* x, const int32_t* order, int64_t n, float* y) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t c = 0;
  for (; c + lanes <= n; c += lanes) hn::StoreU(hn::GatherIndex(d, x, hn::LoadU(di, order + c)), d, y + c);
  for (; c < n; ++c) y[c] = x[order[c]];
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
namespace {

HWY_EXPORT(gather_row);

Tensor checked_order(const Tensor& order, int64_t channels) {
  require(order.rank() == 1 && order.dtype() == DType::i32 && order.dim(0) == channels, "an order of ",
          channels, " channels must be i32[", channels, "], got ", order.describe());
  const Tensor dense = order.contiguous();
  const auto* entry = dense.data<int32_t>();
  for (int64_t c = 0; c < channels; ++c)
    require(entry[c] >= 0 && entry[c] < channels, "an order of channels has ", entry[c], " at ", c,
            ", expected 0..", channels - 1);
  return dense;
}

}  // namespace

Tensor gather_channels(const Tensor& x, const Tensor& order) {
  const Tensor y = Tensor::empty(x.shape());
  gather_channels(x, order, y);
  return y;
}

void gather_channels(const Tensor& x, const Tensor& order, const Tensor& y) {
  require(y.shape() == x.shape() && y.dtype() == DType::f32 && y.is_contiguous(), "gather_channels: y is ",
          y.describe(), ", expected contiguous f32", x.shape());
  const cpu::RowsView rows(x);
  const Tensor dense = checked_order(order, rows.length());
  cpu::parallel_rows(rows.count(), rows.length(), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) HWY_DYNAMIC_DISPATCH(gather_row)
    (rows[r], dense.data<int32_t>(), rows.length(), y.data<float>() + r * rows.length());
  });
}

Tensor inverse_permutation(const Tensor& order) {
  const int64_t channels = order.rank() == 1 ? order.dim(0) : -1;
  const Tensor dense = checked_order(order, channels), inverse = Tensor::empty({channels}, DType::i32);
  auto* at = inverse.data<int32_t>();
  std::fill(at, at + channels, -1);
  for (int64_t c = 0; c < channels; ++c) {
    int32_t& slot = at[dense.data<int32_t>()[c]];
    require(slot < 0, "an order of channels has ", dense.data<int32_t>()[c], " twice: not a permutation");
    slot = static_cast<int32_t>(c);
  }
  return inverse;
}

}  // namespace fovea::kernels
#endif  // HWY_ONCE

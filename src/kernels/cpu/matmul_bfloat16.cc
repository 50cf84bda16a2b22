// SPDX-License-Identifier: Apache-2.0
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_bfloat16.cc"
#include <cstring>

#include "fovea/core/dtype.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/bfloat16_unit.h"
#include "kernels/cpu/matmul_panels.h"
#include "kernels/cpu/matmul_vnni-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using BFloat16Lanes = HWY_CAPPED(float, 16);

// One vector of the panel's lanes for one row of x: a bf16 is the upper half of an f32.
void bfloat16_vector(const uint16_t* panel, int64_t pairs, const uint16_t* x, float* out) {
  const BFloat16Lanes d;
  const hn::Rebind<uint32_t, BFloat16Lanes> du;
  const hn::Repartition<uint16_t, BFloat16Lanes> du16;
  const auto upper = hn::Set(du, 0xFFFF0000u);
  auto sum = hn::Zero(d);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const auto w = hn::BitCast(du, hn::LoadU(du16, panel + pair * 2 * kPanelRows));
    const auto x0 = hn::BitCast(d, hn::Set(du, uint32_t{x[2 * pair]} << 16));
    const auto x1 = hn::BitCast(d, hn::Set(du, uint32_t{x[2 * pair + 1]} << 16));
    sum = hn::MulAdd(x0, hn::BitCast(d, hn::ShiftLeft<16>(w)), sum);
    sum = hn::MulAdd(x1, hn::BitCast(d, hn::And(w, upper)), sum);
  }
  hn::StoreU(sum, d, out);
}

void multiply_bfloat16_impl(const BFloat16Panels& panels, int64_t panel_begin, int64_t panel_end,
                            const uint16_t* x, int64_t x_rows, const Output& y) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(BFloat16Lanes()));
  const int64_t pairs = (panels.columns + 1) / 2;
  for (int64_t p = panel_begin; p < panel_end; ++p) {
    const uint16_t* panel = panels.data + p * pairs * 2 * kPanelRows;
    float* out = y.data + p * kPanelRows;
    const int64_t columns = HWY_MIN(kPanelRows, y.columns - p * kPanelRows);
    if (has_native_bfloat16()) {
      bfloat16_dot_panel(panel, pairs, x, x_rows, out, y.stride, columns);
      continue;
    }
    HWY_ALIGN float sums[kPanelRows];
    for (int64_t row = 0; row < x_rows; ++row) {
      for (int64_t lane = 0; lane < columns; lane += lanes)
        bfloat16_vector(panel + 2 * lane, pairs, x + row * 2 * pairs, sums + lane);
      std::memcpy(out + row * y.stride, sums, static_cast<size_t>(columns) * sizeof(float));
    }
  }
}

// Round to nearest even by adding half of the last kept bit, less one unless that bit is set; NaN stays NaN.
void round_to_bfloat16_impl(const float* x, int64_t count, uint16_t* out) {
  const HWY_FULL(float) d;
  const hn::Rebind<uint32_t, decltype(d)> du;
  const hn::Rebind<uint16_t, decltype(d)> d16;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto v = hn::LoadU(d, x + i);
    const auto bits = hn::BitCast(du, v);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
    const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFF))));
    const auto quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(du, 0x40));
    const auto is_nan = hn::MaskFromVec(hn::BitCast(du, hn::VecFromMask(d, hn::IsNaN(v))));
    hn::StoreU(hn::DemoteTo(d16, hn::BitCast(hn::Rebind<int32_t, decltype(d)>(),
                                             hn::IfThenElse(is_nan, quiet, rounded))),
               d16, out + i);
  }
  for (; i < count; ++i) out[i] = to_bfloat16(x[i]).bits;
}

}  // namespace fovea::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels::cpu {

HWY_EXPORT(multiply_bfloat16_impl);
HWY_EXPORT(round_to_bfloat16_impl);

bool has_native_bfloat16() { return bfloat16_unit() != BFloat16Unit::none; }

void multiply_bfloat16(const BFloat16Panels& panels, int64_t panel_begin, int64_t panel_end,
                       const uint16_t* x, int64_t x_rows, const Output& y) {
  HWY_DYNAMIC_DISPATCH(multiply_bfloat16_impl)(panels, panel_begin, panel_end, x, x_rows, y);
}

void round_to_bfloat16(const float* x, int64_t count, uint16_t* out) {
  HWY_DYNAMIC_DISPATCH(round_to_bfloat16_impl)(x, count, out);
}

}  // namespace fovea::kernels::cpu
#endif  // HWY_ONCE

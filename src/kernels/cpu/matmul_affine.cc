// SPDX-License-Identifier: Apache-2.0
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_affine.cc"
#include <cmath>
#include <cstring>
#include <limits>

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/matmul_pairs-inl.h"
#include "kernels/cpu/matmul_panels.h"
#include "kernels/cpu/matmul_vnni-inl.h"

// With w = scale code + offset and x ~ s c per group g:
//
//   y = sum_g scale s (sum_k code c) + offset (s sum_k c)
//
// The inner sums are exact in integers, so every form below makes the same dots; the outer sum runs over the
// groups in order.

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline hn::Vec<Float16Lanes> load_scales(Float16Lanes d, const uint8_t* at, int64_t lane, bool half) {
  if (!half) return hn::LoadU(d, reinterpret_cast<const float*>(at) + lane);
  const hn::Rebind<hwy::float16_t, Float16Lanes> dh;
  return hn::PromoteTo(d, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(at) + lane));
}

// One vector of the panel's lanes, from `lane` on, for kRows rows of x from `row` on.
template <int kBits, int kRows>
void affine_tile(const AffinePanels& panels, const uint8_t* panel, int64_t lane, const QuantizedRows& x,
                 int64_t row, float* y, int64_t y_stride) {
  const Float16Lanes d;
  const int64_t groups = panels.groups(), group = panels.group;
  const int64_t scale_bytes = kPanelRows * (panels.half_scales ? 2 : 4);
  const int8_t* codes = x.codes + row * x.columns;
  const float* scale_x = x.scale + row * groups;
  const float* sum_x = x.sum + row * groups;
  hn::Vec<Float16Lanes> sums[kRows];
  for (int r = 0; r < kRows; ++r) sums[r] = hn::Zero(d);
  for (int64_t g = 0; g < groups; ++g) {
    const uint8_t* at = panel + g * panels.group_bytes();
    IntVector dots[kRows];
    group_dots<kBits, kRows>(at + lane * 4, group, codes + g * group, x.columns, dots);
    at += panels.code_bytes();
    const auto scale = load_scales(d, at, lane, panels.half_scales);
    const auto offset = load_scales(d, at + scale_bytes, lane, panels.half_scales);
    for (int r = 0; r < kRows; ++r) {
      const auto both_scales = hn::Mul(scale, hn::Set(d, scale_x[r * groups + g]));
      sums[r] = hn::MulAdd(hn::ConvertTo(d, dots[r]), both_scales, sums[r]);
      sums[r] = hn::MulAdd(offset, hn::Set(d, sum_x[r * groups + g]), sums[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) hn::StoreU(sums[r], d, y + r * y_stride);
}

template <int kBits>
void affine_panel(const AffinePanels& panels, const uint8_t* panel, const QuantizedRows& x, int64_t x_rows,
                  float* y, int64_t y_stride, int64_t columns) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(Float16Lanes()));
  const auto tile = [&]<int kRows>(int64_t row) {
    for (int64_t lane = 0; lane < columns; lane += lanes) {
      float* out = y + row * y_stride + lane;
      if (lane + lanes <= columns) {
        affine_tile<kBits, kRows>(panels, panel, lane, x, row, out, y_stride);
        continue;
      }
      HWY_ALIGN float tail[4 * kPanelRows];
      affine_tile<kBits, kRows>(panels, panel, lane, x, row, tail, kPanelRows);
      for (int64_t r = 0; r < kRows; ++r)
        std::memcpy(out + r * y_stride, tail + r * kPanelRows,
                    static_cast<size_t>(columns - lane) * sizeof(float));
    }
  };
  int64_t row = 0;
  for (; row + 4 <= x_rows; row += 4) tile.template operator()<4>(row);
  for (; row < x_rows; ++row) tile.template operator()<1>(row);
}

void multiply_affine_impl(const AffinePanels& panels, int64_t panel_begin, int64_t panel_end,
                          const QuantizedRows& x, int64_t x_rows, const Output& y) {
  if (has_byte_dots()) return byte_dot_panels(panels, panel_begin, panel_end, x, x_rows, y);
  for (int64_t p = panel_begin; p < panel_end; ++p) {
    const uint8_t* panel = panels.data + p * panels.panel_bytes();
    float* out = y.data + p * kPanelRows;
    const int64_t columns = HWY_MIN(kPanelRows, y.columns - p * kPanelRows);
    if (panels.bits == 4)
      affine_panel<4>(panels, panel, x, x_rows, out, y.stride, columns);
    else
      affine_panel<8>(panels, panel, x, x_rows, out, y.stride, columns);
  }
}

// scale = bound / 127 and its inverse for one vector of groups. A bound that is not finite (as bits, NaN is
// above infinity) makes the scale NaN; one whose inverse would overflow counts as zero.
template <class D>
void scales_of_bounds(D d, float* bound_then_scale, float* inverse) {
  const auto bound = hn::LoadU(d, bound_then_scale), full = hn::Set(d, 127.0f);
  const auto usable = hn::Ge(bound, hn::Set(d, 127.0f * std::numeric_limits<float>::min()));
  const auto scale = hn::IfThenElseZero(usable, hn::Div(bound, full));
  const auto infinity = hn::Set(d, std::numeric_limits<float>::infinity());
  const auto invalid = hn::Or(hn::IsNaN(bound), hn::Eq(bound, infinity));
  hn::StoreU(hn::IfThenElseZero(usable, hn::Div(full, bound)), d, inverse);
  hn::StoreU(hn::IfThenElse(invalid, hn::NaN(d), scale), d, bound_then_scale);
}

void quantize_row_impl(const float* x, int64_t row, const QuantizedRows& out) {
  // Vectors no longer than the smallest group.
  const Float16Lanes d;
  const IntLanes di;
  const hn::Rebind<int8_t, Float16Lanes> d8;
  const HWY_CAPPED(float, 1) d1;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t groups = out.groups(), group = out.group;
  int8_t* codes = out.codes + row * out.columns;
  float* scale = out.scale + row * groups;
  float* sum = out.sum + row * groups;
  for (int64_t g = 0; g < groups; ++g) {
    auto largest = hn::Zero(di);
    for (int64_t k = 0; k < group; k += lanes)
      largest = hn::Max(largest, hn::BitCast(di, hn::Abs(hn::LoadU(d, x + g * group + k))));
    scale[g] = hn::GetLane(hn::BitCast(d, hn::MaxOfLanes(di, largest)));
  }
  float* inverse = sum;
  int64_t g = 0;
  for (; g + lanes <= groups; g += lanes) scales_of_bounds(d, scale + g, inverse + g);
  for (; g < groups; ++g) scales_of_bounds(d1, scale + g, inverse + g);
  for (g = 0; g < groups; ++g, x += group, codes += group) {
    const auto factor = hn::Set(d, inverse[g]);
    auto total = hn::Zero(di);
    for (int64_t k = 0; k < group; k += lanes) {
      const auto code = hn::NearestInt(hn::Mul(hn::LoadU(d, x + k), factor));
      total = hn::Add(total, code);
      hn::StoreU(hn::DemoteTo(d8, code), d8, codes + k);
    }
    sum[g] = scale[g] * static_cast<float>(hn::GetLane(hn::SumOfLanes(di, total)));
  }
}

}  // namespace fovea::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels::cpu {

HWY_EXPORT(multiply_affine_impl);
HWY_EXPORT(quantize_row_impl);

void multiply_affine(const AffinePanels& panels, int64_t panel_begin, int64_t panel_end,
                     const QuantizedRows& x, int64_t x_rows, const Output& y) {
  HWY_DYNAMIC_DISPATCH(multiply_affine_impl)(panels, panel_begin, panel_end, x, x_rows, y);
}

void quantize_row(const float* x, int64_t row, const QuantizedRows& out) {
  HWY_DYNAMIC_DISPATCH(quantize_row_impl)(x, row, out);
}

}  // namespace fovea::kernels::cpu
#endif  // HWY_ONCE

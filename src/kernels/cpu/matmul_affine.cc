// SPDX-License-Identifier: Apache-2.0
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_affine.cc"
#include <cmath>
#include <cstring>
#include <limits>

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
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

using Float16Lanes = HWY_CAPPED(float, 16);
using IntLanes = hn::Rebind<int32_t, Float16Lanes>;
using IntVector = hn::Vec<IntLanes>;

// Adds the four products of each 32-bit lane's bytes: codes (unsigned) times x (signed, the same four
// everywhere).
inline IntVector add_quad(IntLanes d, IntVector sum, IntVector codes, int32_t quad) {
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR
  // Pairs of 16-bit products: bytes 0 and 2, then bytes 1 and 3.
  const hn::Repartition<int16_t, IntLanes> d16;
  const hn::Repartition<uint16_t, IntLanes> u16;
  const auto x = hn::BitCast(d16, hn::Set(d, quad));
  const auto even = hn::BitCast(d16, hn::And(codes, hn::Set(d, 0x00FF00FF)));
  const auto odd = hn::BitCast(d16, hn::ShiftRight<8>(hn::BitCast(u16, codes)));
  auto unused = hn::Zero(d);
  sum = hn::ReorderWidenMulAccumulate(d, even, hn::ShiftRight<8>(hn::ShiftLeft<8>(x)), sum, unused);
  return hn::ReorderWidenMulAccumulate(d, odd, hn::ShiftRight<8>(x), sum, unused);
#else
  const auto low = hn::Set(d, 0xFF);
  const auto byte = [quad](int shift) { return static_cast<int32_t>(static_cast<int8_t>(quad >> shift)); };
  sum = hn::Add(sum, hn::Mul(hn::And(codes, low), hn::Set(d, byte(0))));
  sum = hn::Add(sum, hn::Mul(hn::And(hn::ShiftRight<8>(codes), low), hn::Set(d, byte(8))));
  sum = hn::Add(sum, hn::Mul(hn::And(hn::ShiftRight<16>(codes), low), hn::Set(d, byte(16))));
  return hn::Add(sum, hn::Mul(hn::And(hn::ShiftRight<24>(codes), low), hn::Set(d, byte(24))));
#endif
}

inline hn::Vec<Float16Lanes> load_scales(Float16Lanes d, const uint8_t* at, int64_t lane, bool half) {
  if (!half) return hn::LoadU(d, reinterpret_cast<const float*>(at) + lane);
  const hn::Rebind<hwy::float16_t, Float16Lanes> dh;
  return hn::PromoteTo(d, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(at) + lane));
}

inline int32_t load_quad(const int8_t* at) {
  int32_t quad;
  std::memcpy(&quad, at, sizeof(quad));
  return quad;
}

// One vector of the panel's lanes, from `lane` on, for kRows (1 or 4) rows of x from `row` on.
template <int kBits, int kRows>
void affine_tile(const AffinePanels& panels, const uint8_t* panel, int64_t lane, const QuantizedRows& x,
                 int64_t row, float* y, int64_t y_stride) {
  const Float16Lanes d;
  const IntLanes di;
  const hn::Repartition<uint8_t, IntLanes> d8;
  const int64_t groups = panels.groups(), group = panels.group, columns = x.columns;
  const int64_t scale_bytes = kPanelRows * (panels.half_scales ? 2 : 4);
  const int8_t* codes = x.codes + row * columns;
  const float* scale_x = x.scale + row * groups;
  const float* sum_x = x.sum + row * groups;
  auto a0 = hn::Zero(d), a1 = hn::Zero(d), a2 = hn::Zero(d), a3 = hn::Zero(d);
  for (int64_t g = 0; g < groups; ++g) {
    auto s0 = hn::Zero(di), s1 = hn::Zero(di), s2 = hn::Zero(di), s3 = hn::Zero(di);
    const int8_t* c = codes + g * group;
    const auto quads = [&](IntVector w, int64_t k) HWY_ATTR {
      s0 = add_quad(di, s0, w, load_quad(c + k));
      if constexpr (kRows > 1) {
        s1 = add_quad(di, s1, w, load_quad(c + columns + k));
        s2 = add_quad(di, s2, w, load_quad(c + 2 * columns + k));
        s3 = add_quad(di, s3, w, load_quad(c + 3 * columns + k));
      }
    };
    const uint8_t* at = panel + g * panels.group_bytes();
    if constexpr (kBits == 4) {
      for (int64_t k = 0; k < group; k += 8) {
        const auto both = hn::BitCast(di, hn::LoadU(d8, at + k / 8 * 64 + lane * 4));
        const auto half = hn::Set(di, 0x0F0F0F0F);
        quads(hn::And(both, half), k);
        quads(hn::And(hn::ShiftRight<4>(both), half), k + 4);
      }
    } else {
      for (int64_t k = 0; k < group; k += 4)
        quads(hn::BitCast(di, hn::LoadU(d8, at + k / 4 * 64 + lane * 4)), k);
    }
    at += panels.code_bytes();
    const auto scale = load_scales(d, at, lane, panels.half_scales);
    const auto offset = load_scales(d, at + scale_bytes, lane, panels.half_scales);
    const auto add = [&](auto& a, auto s, int64_t r) HWY_ATTR {
      a = hn::MulAdd(hn::ConvertTo(d, s), hn::Mul(scale, hn::Set(d, scale_x[r * groups + g])), a);
      a = hn::MulAdd(offset, hn::Set(d, sum_x[r * groups + g]), a);
    };
    add(a0, s0, 0);
    if constexpr (kRows > 1) {
      add(a1, s1, 1);
      add(a2, s2, 2);
      add(a3, s3, 3);
    }
  }
  hn::StoreU(a0, d, y);
  if constexpr (kRows > 1) {
    hn::StoreU(a1, d, y + y_stride);
    hn::StoreU(a2, d, y + 2 * y_stride);
    hn::StoreU(a3, d, y + 3 * y_stride);
  }
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

// SPDX-License-Identifier: Apache-2.0
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_float.cc"
#include <algorithm>
#include <cstring>

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/matmul_panels.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Lanes16 = HWY_CAPPED(float, 16);

template <class V>
void put(Lanes16 d, V v, float* y, int64_t count, bool accumulate) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  if (count >= lanes) {
    hn::StoreU(accumulate ? hn::Add(v, hn::LoadU(d, y)) : v, d, y);
    return;
  }
  HWY_ALIGN float tail[16];
  hn::Store(v, d, tail);
  for (int64_t i = 0; i < count; ++i) y[i] = accumulate ? y[i] + tail[i] : tail[i];
}

// kRows rows of x times two vectors of weight rows; every element is one chain of multiply-adds over k. The
// accumulators have names because scalable vectors cannot be stored in arrays.
template <int kRows>
void float_tile(const float* w0, const float* w1, int64_t columns, const float* x, int64_t x_stride, float* y,
                int64_t count0, int64_t count1, int64_t column1, const Output& out) {
  const Lanes16 d;
  const float* x1 = kRows > 1 ? x + x_stride : x;
  const float* x2 = kRows > 2 ? x + 2 * x_stride : x;
  const float* x3 = kRows > 3 ? x + 3 * x_stride : x;
  auto a00 = hn::Zero(d), a01 = hn::Zero(d), a10 = hn::Zero(d), a11 = hn::Zero(d);
  auto a20 = hn::Zero(d), a21 = hn::Zero(d), a30 = hn::Zero(d), a31 = hn::Zero(d);
  for (int64_t k = 0; k < columns; ++k) {
    const auto u0 = hn::LoadU(d, w0 + k * kPanelRows), u1 = hn::LoadU(d, w1 + k * kPanelRows);
    const auto b0 = hn::Set(d, x[k]);
    a00 = hn::MulAdd(b0, u0, a00);
    a01 = hn::MulAdd(b0, u1, a01);
    if constexpr (kRows > 1) {
      const auto b1 = hn::Set(d, x1[k]);
      a10 = hn::MulAdd(b1, u0, a10);
      a11 = hn::MulAdd(b1, u1, a11);
    }
    if constexpr (kRows > 2) {
      const auto b2 = hn::Set(d, x2[k]);
      a20 = hn::MulAdd(b2, u0, a20);
      a21 = hn::MulAdd(b2, u1, a21);
    }
    if constexpr (kRows > 3) {
      const auto b3 = hn::Set(d, x3[k]);
      a30 = hn::MulAdd(b3, u0, a30);
      a31 = hn::MulAdd(b3, u1, a31);
    }
  }
  const auto store = [&](int64_t row, auto v0, auto v1) HWY_ATTR {
    put(d, v0, y + row * out.stride, count0, out.accumulate);
    put(d, v1, y + row * out.stride + column1, count1, out.accumulate);
  };
  store(0, a00, a01);
  if constexpr (kRows > 1) store(1, a10, a11);
  if constexpr (kRows > 2) store(2, a20, a21);
  if constexpr (kRows > 3) store(3, a30, a31);
}

void multiply_float_impl(const FloatPanels& panels, int64_t panel_begin, int64_t panel_end, const float* x,
                         int64_t x_stride, int64_t x_rows, const Output& y) {
  const Lanes16 d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t per_panel = kPanelRows / lanes, vectors = (panel_end - panel_begin) * per_panel;
  const auto weights = [&](int64_t vector) {
    return panels.data + (panel_begin + vector / per_panel) * kPanelRows * panels.columns +
           vector % per_panel * lanes;
  };
  for (int64_t vector = 0; vector < vectors; vector += 2) {
    const int64_t column = panel_begin * kPanelRows + vector * lanes;
    if (column >= y.columns) break;
    const bool pair = vector + 1 < vectors;
    const float* w0 = weights(vector);
    const float* w1 = pair ? weights(vector + 1) : w0;
    const int64_t count0 = y.columns - column, count1 = pair ? count0 - lanes : 0;
    float* out = y.data + column;
    int64_t row = 0;
    for (; row + 4 <= x_rows; row += 4)
      float_tile<4>(w0, w1, panels.columns, x + row * x_stride, x_stride, out + row * y.stride, count0,
                    count1, lanes, y);
    const auto rest = [&]<int kRows>() {
      float_tile<kRows>(w0, w1, panels.columns, x + row * x_stride, x_stride, out + row * y.stride, count0,
                        count1, lanes, y);
    };
    if (x_rows - row == 1) rest.template operator()<1>();
    if (x_rows - row == 2) rest.template operator()<2>();
    if (x_rows - row == 3) rest.template operator()<3>();
  }
}

#if HWY_TARGET == HWY_SCALAR

constexpr int64_t kBlock = 1;
inline void transpose_block(const float* w, int64_t, float* out) { *out = *w; }

#else

constexpr int64_t kBlock = 4;

// Four rows by four columns of w become four rows of a panel.
inline void transpose_block(const float* w, int64_t row_stride, float* out) {
  const hn::FixedTag<float, 4> d;
  const hn::RepartitionToWide<decltype(d)> wide;
  const auto r0 = hn::LoadU(d, w), r1 = hn::LoadU(d, w + row_stride);
  const auto r2 = hn::LoadU(d, w + 2 * row_stride), r3 = hn::LoadU(d, w + 3 * row_stride);
  const auto low01 = hn::BitCast(wide, hn::InterleaveLower(d, r0, r1));
  const auto low23 = hn::BitCast(wide, hn::InterleaveLower(d, r2, r3));
  const auto high01 = hn::BitCast(wide, hn::InterleaveUpper(d, r0, r1));
  const auto high23 = hn::BitCast(wide, hn::InterleaveUpper(d, r2, r3));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(wide, low01, low23)), d, out);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(wide, low01, low23)), d, out + kPanelRows);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(wide, high01, high23)), d, out + 2 * kPanelRows);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(wide, high01, high23)), d, out + 3 * kPanelRows);
}

#endif

void pack_float_panel_impl(const float* w, int64_t row_stride, int64_t column_stride, int64_t rows,
                           int64_t columns, float* out) {
  const bool whole = rows == kPanelRows;
  if (whole && row_stride == 1) {
    for (int64_t k = 0; k < columns; ++k)
      std::memcpy(out + k * kPanelRows, w + k * column_stride, kPanelRows * sizeof(float));
    return;
  }
  int64_t k = 0;
  if (whole && column_stride == 1)
    for (; k + kBlock <= columns; k += kBlock)
      for (int64_t lane = 0; lane < kPanelRows; lane += kBlock)
        transpose_block(w + lane * row_stride + k, row_stride, out + k * kPanelRows + lane);
  for (; k < columns; ++k)
    for (int64_t lane = 0; lane < kPanelRows; ++lane)
      out[k * kPanelRows + lane] = lane < rows ? w[lane * row_stride + k * column_stride] : 0.0f;
}

}  // namespace fovea::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels::cpu {

HWY_EXPORT(multiply_float_impl);
HWY_EXPORT(pack_float_panel_impl);

void multiply_float(const FloatPanels& panels, int64_t panel_begin, int64_t panel_end, const float* x,
                    int64_t x_stride, int64_t x_rows, const Output& y) {
  HWY_DYNAMIC_DISPATCH(multiply_float_impl)(panels, panel_begin, panel_end, x, x_stride, x_rows, y);
}

void pack_float_panel(const float* w, int64_t row_stride, int64_t column_stride, int64_t rows,
                      int64_t columns, int64_t panel, float* out) {
  const int64_t first = panel * kPanelRows;
  HWY_DYNAMIC_DISPATCH(pack_float_panel_impl)
  (w + first * row_stride, row_stride, column_stride, std::min(kPanelRows, rows - first), columns, out);
}

}  // namespace fovea::kernels::cpu
#endif  // HWY_ONCE

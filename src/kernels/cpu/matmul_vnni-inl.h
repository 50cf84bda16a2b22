// SPDX-License-Identifier: Apache-2.0
// Products of bytes and of bf16 pairs by the AVX-512 instructions that Highway does not name. Where they do
// not exist, `has_byte_dots` and `has_bfloat16_dots` are false and callers take their portable form.
#if defined(FOVEA_MATMUL_VNNI_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_MATMUL_VNNI_INL_H_
#undef FOVEA_MATMUL_VNNI_INL_H_
#else
#define FOVEA_MATMUL_VNNI_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "kernels/cpu/matmul_panels.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::cpu::HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX3

#define FOVEA_BYTE_DOTS __attribute__((target(HWY_TARGET_STR ",avx512vnni")))

inline bool has_byte_dots() {
  static const bool supported = __builtin_cpu_supports("avx512vnni") != 0;
  return supported;
}

// One panel, kRows rows of x. The unpacked codes of a group stay in registers while all rows use them.
template <int kBits, int kQuads, bool kHalf, int kRows>
FOVEA_BYTE_DOTS void byte_dot_tile(const uint8_t* panel, int64_t groups, const int8_t* codes, int64_t columns,
                                   const float* scale_x, const float* sum_x, float* y, int64_t y_stride,
                                   __mmask16 lanes) {
  constexpr int64_t kCodeBytes = kPanelRows * kQuads * kBits / 2;
  constexpr int64_t kGroupBytes = kCodeBytes + kPanelRows * (kHalf ? 4 : 8);
  const __m512i half_byte = _mm512_set1_epi8(0x0F);
  __m512 sums[kRows];
  for (int r = 0; r < kRows; ++r) sums[r] = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; ++g, panel += kGroupBytes, codes += 4 * kQuads) {
    __m512i w[kQuads];
    if constexpr (kBits == 4) {
#pragma GCC unroll 4
      for (int i = 0; i < kQuads / 2; ++i) {
        const __m512i both = _mm512_loadu_si512(panel + 64 * i);
        w[2 * i] = _mm512_and_si512(both, half_byte);
        w[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), half_byte);
      }
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < kQuads; ++i) w[i] = _mm512_loadu_si512(panel + 64 * i);
    }
    const uint8_t* at = panel + kCodeBytes;
    __m512 scale, offset;
    if constexpr (kHalf) {
      scale = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
      offset = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32)));
    } else {
      scale = _mm512_loadu_ps(at);
      offset = _mm512_loadu_ps(at + 64);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      __m512i dot = _mm512_setzero_si512();
#pragma GCC unroll 8
      for (int i = 0; i < kQuads; ++i) {
        int32_t quad;
        std::memcpy(&quad, codes + r * columns + 4 * i, sizeof(quad));
        dot = _mm512_dpbusd_epi32(dot, w[i], _mm512_set1_epi32(quad));
      }
      sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot),
                                _mm512_mul_ps(scale, _mm512_set1_ps(scale_x[r * groups + g])), sums[r]);
      sums[r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(sum_x[r * groups + g]), sums[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) _mm512_mask_storeu_ps(y + r * y_stride, lanes, sums[r]);
}

template <int kBits, int kQuads, bool kHalf>
FOVEA_BYTE_DOTS void byte_dot_rows(const AffinePanels& panels, const uint8_t* panel, const QuantizedRows& x,
                                   int64_t x_rows, float* y, int64_t y_stride, __mmask16 lanes) {
  constexpr int kTile = 8;
  const int64_t groups = panels.groups();
  int64_t row = 0;
  for (; row + kTile <= x_rows; row += kTile)
    byte_dot_tile<kBits, kQuads, kHalf, kTile>(panel, groups, x.codes + row * x.columns, x.columns,
                                               x.scale + row * groups, x.sum + row * groups,
                                               y + row * y_stride, y_stride, lanes);
  for (; row < x_rows; ++row)
    byte_dot_tile<kBits, kQuads, kHalf, 1>(panel, groups, x.codes + row * x.columns, x.columns,
                                           x.scale + row * groups, x.sum + row * groups, y + row * y_stride,
                                           y_stride, lanes);
}

template <int kBits, int kQuads>
void byte_dot_scales(const AffinePanels& panels, const uint8_t* panel, const QuantizedRows& x, int64_t x_rows,
                     float* y, int64_t y_stride, __mmask16 lanes) {
  if (panels.half_scales)
    byte_dot_rows<kBits, kQuads, true>(panels, panel, x, x_rows, y, y_stride, lanes);
  else
    byte_dot_rows<kBits, kQuads, false>(panels, panel, x, x_rows, y, y_stride, lanes);
}

/// One panel of y = x W^T, `columns` of its 16 rows stored.
inline void byte_dot_panel(const AffinePanels& panels, const uint8_t* panel, const QuantizedRows& x,
                           int64_t x_rows, float* y, int64_t y_stride, int64_t columns) {
  const auto lanes = static_cast<__mmask16>((1u << columns) - 1);
  const bool wide = panels.group == 32;
  if (panels.bits == 4)
    wide ? byte_dot_scales<4, 8>(panels, panel, x, x_rows, y, y_stride, lanes)
         : byte_dot_scales<4, 4>(panels, panel, x, x_rows, y, y_stride, lanes);
  else
    wide ? byte_dot_scales<8, 8>(panels, panel, x, x_rows, y, y_stride, lanes)
         : byte_dot_scales<8, 4>(panels, panel, x, x_rows, y, y_stride, lanes);
}

#define FOVEA_BFLOAT16_DOTS __attribute__((target(HWY_TARGET_STR ",avx512bf16")))

inline bool has_bfloat16_dots() {
  static const bool supported = __builtin_cpu_supports("avx512bf16") != 0;
  return supported;
}

template <int kRows>
FOVEA_BFLOAT16_DOTS void bfloat16_dot_tile(const uint16_t* panel, int64_t pairs, const uint16_t* x, float* y,
                                           int64_t y_stride, __mmask16 lanes) {
  __m512 sums[kRows];
  for (int r = 0; r < kRows; ++r) sums[r] = _mm512_setzero_ps();
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const auto w = (__m512bh)_mm512_loadu_si512(panel + pair * 2 * kPanelRows);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      int32_t both;
      std::memcpy(&both, x + 2 * (r * pairs + pair), sizeof(both));
      sums[r] = _mm512_dpbf16_ps(sums[r], w, (__m512bh)_mm512_set1_epi32(both));
    }
  }
  for (int r = 0; r < kRows; ++r) _mm512_mask_storeu_ps(y + r * y_stride, lanes, sums[r]);
}

/// One panel of y = x W^T, `columns` of its 16 rows stored; x [x_rows, 2 pairs].
FOVEA_BFLOAT16_DOTS inline void bfloat16_dot_panel(const uint16_t* panel, int64_t pairs, const uint16_t* x,
                                                   int64_t x_rows, float* y, int64_t y_stride,
                                                   int64_t columns) {
  constexpr int kTile = 12;
  const auto lanes = static_cast<__mmask16>((1u << columns) - 1);
  int64_t row = 0;
  for (; row + kTile <= x_rows; row += kTile)
    bfloat16_dot_tile<kTile>(panel, pairs, x + row * 2 * pairs, y + row * y_stride, y_stride, lanes);
  for (; row + 4 <= x_rows; row += 4)
    bfloat16_dot_tile<4>(panel, pairs, x + row * 2 * pairs, y + row * y_stride, y_stride, lanes);
  for (; row < x_rows; ++row)
    bfloat16_dot_tile<1>(panel, pairs, x + row * 2 * pairs, y + row * y_stride, y_stride, lanes);
}

#else

inline bool has_bfloat16_dots() { return false; }
inline void bfloat16_dot_panel(const uint16_t*, int64_t, const uint16_t*, int64_t, float*, int64_t, int64_t) {
}
inline bool has_byte_dots() { return false; }
inline void byte_dot_panel(const AffinePanels&, const uint8_t*, const QuantizedRows&, int64_t, float*,
                           int64_t, int64_t) {}

#endif  // HWY_TARGET == HWY_AVX3

}  // namespace fovea::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard

// SPDX-License-Identifier: Apache-2.0
// Products of bytes and of bf16 pairs by the AVX-512 instructions that Highway does not name. Where they do
// not exist, `has_byte_dots` (of bf16: `bfloat16_unit`) says so and callers take their portable form.
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

// kPanels panels (neighbours in memory) by kRows rows of x. The rows take turns within each quad of columns,
// so that every chain of dots has kPanels * kRows - 1 independent instructions between its links.
template <int kBits, int kQuads, bool kHalf, int kPanels, int kRows>
FOVEA_BYTE_DOTS void byte_dot_tile(const uint8_t* panel, int64_t groups, const int8_t* codes, int64_t columns,
                                   const float* scale_x, const float* sum_x, float* y, int64_t y_stride,
                                   __mmask16 last_lanes) {
  constexpr int64_t kCodeBytes = kPanelRows * kQuads * kBits / 2;
  constexpr int64_t kGroupBytes = kCodeBytes + kPanelRows * (kHalf ? 4 : 8);
  constexpr int64_t kVectors = kCodeBytes / 64, kQuadsPerVector = kQuads / kVectors;
  const int64_t panel_bytes = groups * kGroupBytes;
  const __m512i half_byte = _mm512_set1_epi8(0x0F);
  __m512 sums[kRows][kPanels];
  for (auto& row : sums)
    for (auto& sum : row) sum = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; ++g, panel += kGroupBytes, codes += 4 * kQuads) {
    __m512i dots[kRows][kPanels];
    for (auto& row : dots)
      for (auto& dot : row) dot = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v) {
      __m512i w[kPanels][kQuadsPerVector];
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) {
        const __m512i bytes = _mm512_loadu_si512(panel + p * panel_bytes + 64 * v);
        if constexpr (kBits == 4) {
          w[p][0] = _mm512_and_si512(bytes, half_byte);
          w[p][1] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), half_byte);
        } else {
          w[p][0] = bytes;
        }
      }
#pragma GCC unroll 2
      for (int64_t q = 0; q < kQuadsPerVector; ++q)
#pragma GCC unroll 8
        for (int64_t r = 0; r < kRows; ++r) {
          int32_t four;
          std::memcpy(&four, codes + r * columns + 4 * (v * kQuadsPerVector + q), sizeof(four));
          const __m512i x = _mm512_set1_epi32(four);
#pragma GCC unroll 2
          for (int p = 0; p < kPanels; ++p) dots[r][p] = _mm512_dpbusd_epi32(dots[r][p], w[p][q], x);
        }
    }
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      const uint8_t* at = panel + p * panel_bytes + kCodeBytes;
      __m512 scale, offset;
      if constexpr (kHalf) {
        scale = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
        offset = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32)));
      } else {
        scale = _mm512_loadu_ps(at);
        offset = _mm512_loadu_ps(at + 64);
      }
#pragma GCC unroll 8
      for (int64_t r = 0; r < kRows; ++r) {
        const __m512 both_scales = _mm512_mul_ps(scale, _mm512_set1_ps(scale_x[r * groups + g]));
        __m512& sum = sums[r][p];
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[r][p]), both_scales, sum);
        sum = _mm512_fmadd_ps(offset, _mm512_set1_ps(sum_x[r * groups + g]), sum);
      }
    }
  }
  for (int64_t r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p)
      _mm512_mask_storeu_ps(y + r * y_stride + p * kPanelRows, p + 1 == kPanels ? last_lanes : 0xFFFF,
                            sums[r][p]);
}

template <int kBits, int kQuads, bool kHalf, int kPanels>
FOVEA_BYTE_DOTS void byte_dot_rows(const AffinePanels& panels, const uint8_t* panel, const QuantizedRows& x,
                                   int64_t x_rows, float* y, int64_t y_stride, __mmask16 last_lanes) {
  constexpr int kTile = 4;
  const int64_t groups = panels.groups();
  int64_t row = 0;
  for (; row + kTile <= x_rows; row += kTile)
    byte_dot_tile<kBits, kQuads, kHalf, kPanels, kTile>(panel, groups, x.codes + row * x.columns, x.columns,
                                                        x.scale + row * groups, x.sum + row * groups,
                                                        y + row * y_stride, y_stride, last_lanes);
  for (; row < x_rows; ++row)
    byte_dot_tile<kBits, kQuads, kHalf, kPanels, 1>(panel, groups, x.codes + row * x.columns, x.columns,
                                                    x.scale + row * groups, x.sum + row * groups,
                                                    y + row * y_stride, y_stride, last_lanes);
}

template <int kBits, int kQuads, int kPanels>
void byte_dot_scales(const AffinePanels& panels, const uint8_t* panel, const QuantizedRows& x, int64_t x_rows,
                     float* y, int64_t y_stride, __mmask16 last_lanes) {
  if (panels.half_scales)
    byte_dot_rows<kBits, kQuads, true, kPanels>(panels, panel, x, x_rows, y, y_stride, last_lanes);
  else
    byte_dot_rows<kBits, kQuads, false, kPanels>(panels, panel, x, x_rows, y, y_stride, last_lanes);
}

template <int kPanels>
void byte_dot_format(const AffinePanels& panels, const uint8_t* panel, const QuantizedRows& x, int64_t x_rows,
                     float* y, int64_t y_stride, __mmask16 last_lanes) {
  const bool wide = panels.group == 32;
  if (panels.bits == 4)
    wide ? byte_dot_scales<4, 8, kPanels>(panels, panel, x, x_rows, y, y_stride, last_lanes)
         : byte_dot_scales<4, 4, kPanels>(panels, panel, x, x_rows, y, y_stride, last_lanes);
  else
    wide ? byte_dot_scales<8, 8, kPanels>(panels, panel, x, x_rows, y, y_stride, last_lanes)
         : byte_dot_scales<8, 4, kPanels>(panels, panel, x, x_rows, y, y_stride, last_lanes);
}

/// Panels [panel_begin, panel_end) of y = x W^T.
inline void byte_dot_panels(const AffinePanels& panels, int64_t panel_begin, int64_t panel_end,
                            const QuantizedRows& x, int64_t x_rows, const Output& y) {
  // A single row of x reads one stream of memory; more rows share what they load from two panels.
  const int64_t step = x_rows == 1 ? 1 : 2;
  for (int64_t p = panel_begin; p < panel_end; p += step) {
    const uint8_t* panel = panels.data + p * panels.panel_bytes();
    const int64_t count = HWY_MIN(step, panel_end - p);
    const int64_t last = HWY_MIN(kPanelRows, y.columns - (p + count - 1) * kPanelRows);
    const auto lanes = static_cast<__mmask16>((1u << last) - 1);
    float* out = y.data + p * kPanelRows;
    count == 2 ? byte_dot_format<2>(panels, panel, x, x_rows, out, y.stride, lanes)
               : byte_dot_format<1>(panels, panel, x, x_rows, out, y.stride, lanes);
  }
}

#define FOVEA_BFLOAT16_DOTS __attribute__((target(HWY_TARGET_STR ",avx512bf16")))

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

inline void bfloat16_dot_panel(const uint16_t*, int64_t, const uint16_t*, int64_t, float*, int64_t, int64_t) {
}
inline bool has_byte_dots() { return false; }
inline void byte_dot_panels(const AffinePanels&, int64_t, int64_t, const QuantizedRows&, int64_t,
                            const Output&) {}

#endif  // HWY_TARGET == HWY_AVX3

}  // namespace fovea::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard

// SPDX-License-Identifier: Apache-2.0
// Scores and weighted sums of key and value rows wherever they lie, for a few query rows. Included once per
// SIMD target.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/decode_plan.h"
#include "kernels/cpu/matmul_vnni-inl.h"
#include "kernels/cpu/tile-inl.h"

#if defined(FOVEA_KERNELS_CPU_DECODE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_DECODE_ROWS_INL_H_
#undef FOVEA_KERNELS_CPU_DECODE_ROWS_INL_H_
#else
#define FOVEA_KERNELS_CPU_DECODE_ROWS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

using cpu::kChunk;

// Rows of queries that share each loaded key, and vectors of a value row whose sums are held: at most as many
// as the registers allow. Sums of 16 vectors cover the latency of their additions.
#if HWY_TARGET <= HWY_AVX3
constexpr int kRows = 4;
#else
constexpr int kRows = 2;
#endif
constexpr int kColumns = 4;
// Value rows that several passes read stay in the first-level cache.
constexpr int64_t kNearBytes = 8 << 10;

// Keys and values are read line after line, in the order they lie in memory: the processor's own prefetching
// then hides the memory's latency completely, and any other order (several rows abreast, halves of rows) or
// prefetch instructions cost up to half of the bandwidth.

// scores[r][j] = q[r] . k[j] for R rows; `count` is rounded up to 4 keys, whose pointers must be valid.
template <int R, class T>
void score_rows(const void* const* k, int64_t count, const float* q, int64_t width, float* scores) {
  const Floats d;
  for (int64_t j = 0; j < count; j += 4) {
    FloatVector sum[R][4];
    for (int i = 0; i < 4; ++i) {
      const T* HWY_RESTRICT key = static_cast<const T*>(k[j + i]);
      for (int r = 0; r < R; ++r) sum[r][i] = hn::Zero(d);
      for (int64_t c = 0; c < width; c += kLanes) {
        const auto x = load_floats(key + c);
        for (int r = 0; r < R; ++r) sum[r][i] = hn::MulAdd(hn::LoadU(d, q + r * width + c), x, sum[r][i]);
      }
    }
    for (int r = 0; r < R; ++r) sum_four(sum[r], scores + r * kChunk + j);
  }
}

#if HWY_TARGET == HWY_AVX3
// The same by dots of bf16 pairs, whose products are exact. `width` is a multiple of 32.
template <int R>
FOVEA_BFLOAT16_DOTS void dot_rows(const void* const* k, int64_t count, const BFloat16* q, int64_t width,
                                  float* scores) {
  for (int64_t j = 0; j < count; j += 4) {
    __m512 sum[R][4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const auto* key = static_cast<const BFloat16*>(k[j + i]);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[r][i] = _mm512_setzero_ps();
      for (int64_t c = 0; c < width; c += 32) {
        const auto x = (__m512bh)_mm512_loadu_si512(key + c);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
          sum[r][i] = _mm512_dpbf16_ps(sum[r][i], (__m512bh)_mm512_loadu_si512(q + r * width + c), x);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const FloatVector four[4] = {FloatVector{sum[r][0]}, FloatVector{sum[r][1]}, FloatVector{sum[r][2]},
                                   FloatVector{sum[r][3]}};
      sum_four(four, scores + r * kChunk + j);
    }
  }
}
#endif

// values[r] += sum_j weights[r][j] v[j] for R rows and C vectors of columns.
template <int R, int C, class T>
HWY_INLINE void add_columns(const void* const* v, int64_t count, const float* weights, int64_t column,
                            int64_t width, float* values) {
  const Floats d;
  FloatVector sum[R][C];
  // The first pass over the columns asks for the rest of each row, so that lines arrive in order.
  const int64_t rest = column == 0 ? width * static_cast<int64_t>(sizeof(T)) : 0;
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sum[r][c] = hn::LoadU(d, values + r * width + column + c * kLanes);
  for (int64_t j = 0; j < count; ++j) {
    const T* HWY_RESTRICT row = static_cast<const T*>(v[j]) + column;
    for (int64_t at = C * kLanes * static_cast<int64_t>(sizeof(T)); at < rest; at += 64)
      __builtin_prefetch(static_cast<const char*>(v[j]) + at, 0, 3);
    FloatVector x[C];
    for (int c = 0; c < C; ++c) x[c] = load_floats(row + c * kLanes);
    for (int r = 0; r < R; ++r) {
      const auto p = hn::Set(d, weights[r * kChunk + j]);
      for (int c = 0; c < C; ++c) sum[r][c] = hn::MulAdd(p, x[c], sum[r][c]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) hn::StoreU(sum[r][c], d, values + r * width + column + c * kLanes);
}

template <int R, class T>
void add_values(const void* const* v, int64_t count, const float* weights, int64_t width, float* values) {
  int64_t column = 0;
  for (; column + kColumns * kLanes <= width; column += kColumns * kLanes)
    add_columns<R, kColumns, T>(v, count, weights, column, width, values);
  for (; column < width; column += kLanes) add_columns<R, 1, T>(v, count, weights, column, width, values);
}

#if HWY_TARGET == HWY_AVX3
// weights[0..count) = row rounded to bf16, and zeros up to the next multiple of 32.
FOVEA_BFLOAT16_DOTS inline void round_weights(const float* row, int64_t count, BFloat16* weights) {
  for (int64_t j = 0; j < count; j += 32) {
    const uint32_t inside = j + 32 <= count ? ~0u : (1u << (count - j)) - 1;
    const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(inside), row + j);
    const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(inside >> 16), row + j + 16);
    const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
    _mm512_storeu_si512(weights + j, (__m512i)both);
  }
}

// The sums of add_columns by dots of the bf16 of two neighbouring keys. Interleaving two rows leaves every 32
// channels in another order, that of `order_channels`.
template <int R, int C>
FOVEA_BFLOAT16_DOTS void dot_columns(const void* const* v, int64_t count, const BFloat16* weights,
                                     int64_t column, int64_t width, float* values) {
  __m512 sum[R][2 * C];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < 2 * C; ++c) sum[r][c] = _mm512_loadu_ps(values + r * width + column + c * kLanes);
  for (int64_t j = 0; j < count; j += 2) {
    const BFloat16* even = static_cast<const BFloat16*>(v[j]) + column;
    // Beside a last key stand zeros: its neighbour's weight is 0, but 0 times an infinity is no number.
    const BFloat16* odd = j + 1 < count ? static_cast<const BFloat16*>(v[j + 1]) + column : nullptr;
    __m512i pair[2 * C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const __m512i a = _mm512_loadu_si512(even + 32 * c);
      const __m512i b = odd ? _mm512_loadu_si512(odd + 32 * c) : _mm512_setzero_si512();
      pair[2 * c] = _mm512_unpacklo_epi16(a, b);
      pair[2 * c + 1] = _mm512_unpackhi_epi16(a, b);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      int32_t both;
      std::memcpy(&both, weights + r * kChunk + j, sizeof(both));
      const auto weight = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 8
      for (int c = 0; c < 2 * C; ++c) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], (__m512bh)pair[c], weight);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < 2 * C; ++c) _mm512_storeu_ps(values + r * width + column + c * kLanes, sum[r][c]);
}

// `width` is a multiple of 32. As many rows as leave 16 sums, whose dots cover each other's latency, and
// whole rows of up to 128 channels, so that memory is read in order.
inline constexpr int dot_rows_of(int64_t width) { return width % 128 == 0 ? 2 : 4; }

template <int R>
void dot_values(const void* const* v, int64_t count, const BFloat16* weights, int64_t width, float* values) {
  int64_t column = 0;
  if constexpr (R <= 2)
    for (; column + 128 <= width; column += 128) dot_columns<R, 4>(v, count, weights, column, width, values);
  for (; column + 64 <= width; column += 64) dot_columns<R, 2>(v, count, weights, column, width, values);
  for (; column < width; column += 32) dot_columns<R, 1>(v, count, weights, column, width, values);
}

// Brings the sums of dot_values into the order of the channels.
inline void order_channels(int64_t width, float* values) {
  for (int64_t c = 0; c < width; c += 32) {
    float mixed[32];
    std::copy_n(values + c, 32, mixed);
    for (int64_t i = 0; i < 16; ++i) {
      values[c + i / 4 * 8 + i % 4] = mixed[i];
      values[c + i / 4 * 8 + 4 + i % 4] = mixed[16 + i];
    }
  }
}
#endif

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif

// SPDX-License-Identifier: Apache-2.0
// Weighted sums of rows of codes by byte dots; see coded_rows-inl.h for the formulas and the layout. Included
// once per SIMD target.
//
// The codes of four vectors are put side by side, so that one dot sums over four keys. Their weights are
// split into a high and a low signed byte.
#include <cstdint>

#include "kernels/cpu/coded_rows-inl.h"

#if defined(FOVEA_KERNELS_CPU_CODED_VALUES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_CODED_VALUES_INL_H_
#undef FOVEA_KERNELS_CPU_CODED_VALUES_INL_H_
#else
#define FOVEA_KERNELS_CPU_CODED_VALUES_INL_H_
#endif

#if FOVEA_CODED_DOTS

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

/// What the weighted sums of a chunk need beside its codes.
struct CodedValues {
  memory::Buffer<uint8_t> quads;   // [vector, plane, step, 4, 64]: codes, four keys' side by side
  memory::Buffer<float> scales;    // [scale vector, step, scale and zero, 16]
  memory::Buffer<float> exact;     // [scale vector, step, 16]: p s
  memory::Buffer<int8_t> weights;  // [row, scale vector, step, high and low, 64]

  void reserve(const CodeShape& shape) {
    const int64_t steps = shape.vectors * cpu::kCopiedChunk / shape.keys_of_four();
    quads.reserve(steps * 8 / shape.bits * 256);
    scales.reserve(steps * 32);
    exact.reserve(steps * 16);
    weights.reserve(2 * steps * 128);
  }
};

template <int kBits, int kPlane = 0>
FOVEA_BYTE_DOTS HWY_INLINE void store_quads(const __m512i (&codes)[4], uint8_t* quads, int64_t step) {
  if constexpr (kPlane < 8 / kBits) {
    __m512i x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      x[i] = kPlane == 0 ? codes[i] : _mm512_srli_epi16(codes[i], kBits * kPlane);
      if constexpr (kBits < 8) x[i] = _mm512_and_si512(x[i], _mm512_set1_epi8((1 << kBits) - 1));
    }
    const __m512i a = _mm512_unpacklo_epi8(x[0], x[1]), b = _mm512_unpackhi_epi8(x[0], x[1]);
    const __m512i c = _mm512_unpacklo_epi8(x[2], x[3]), d = _mm512_unpackhi_epi8(x[2], x[3]);
    _mm512_storeu_si512(quads, _mm512_unpacklo_epi16(a, c));
    _mm512_storeu_si512(quads + 64, _mm512_unpackhi_epi16(a, c));
    _mm512_storeu_si512(quads + 128, _mm512_unpacklo_epi16(b, d));
    _mm512_storeu_si512(quads + 192, _mm512_unpackhi_epi16(b, d));
    store_quads<kBits, kPlane + 1>(codes, quads + step, step);
  }
}

/// Puts the codes of the four vectors of each step side by side: lane 4 b + i of quad vector m holds byte 16
/// b + 4 m + i of each. Meanwhile the keys behind the first `count` are fetched.
template <int kBits>
FOVEA_BYTE_DOTS void make_quads(const CodeShape& shape, const CodeRun& run, int64_t count,
                                const CodeShape& shape_k, const CodeRun& keys, CodedValues& to) {
  const int64_t keys_of_step = shape.keys_of_four(), steps = count / keys_of_step;
  for (int64_t step = 0; step < steps; ++step) {
    prefetch_rows(shape_k, keys, count + step * keys_of_step, keys_of_step);
    for (int64_t v = 0; v < shape.vectors; ++v) {
      __m512i x[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        x[i] = _mm512_loadu_si512(run.codes + ((4 * step + i) * shape.vectors + v) * 64);
      store_quads<kBits>(x, to.quads.data() + (v * (8 / kBits) * steps + step) * 256, steps * 256);
      if (v >= shape.scale_vectors) continue;
      const ScalesAndZeros s = load_scales(shape, run.scales + step * keys_of_step * shape.scale_bytes, v);
      _mm512_storeu_ps(to.scales.data() + (v * steps + step) * 32, s.scale);
      _mm512_storeu_ps(to.scales.data() + (v * steps + step) * 32 + 16, s.zero);
    }
  }
}

/// Makes weights [scale vector, step, high and low, 64] of one row. Returns the worth of a unit of the low
/// part; offsets[scale vector][b] = the sum of weight * zero over what is in block b.
FOVEA_BYTE_DOTS inline float make_weights(const CodeShape& shape, const float* scales, const float* p,
                                          int64_t steps, float* exact, int8_t* weights,
                                          float (&offsets)[CodeShape::kMostVectors][4]) {
  constexpr float kLargest = 127 * 256;
  const int64_t keys = shape.keys_of_four();
  const auto of_keys = static_cast<__mmask16>((1u << keys) - 1);
  const __m512i order = _mm512_load_si512(shape.key_index);
  const __m512 nothing = _mm512_setzero_ps();
  __m512 top = nothing, not_finite = nothing;
  for (int64_t step = 0; step < steps; ++step) {
    const __m512 of_step = _mm512_permutexvar_ps(order, _mm512_maskz_loadu_ps(of_keys, p + step * keys));
    for (int64_t v = 0; v < shape.scale_vectors; ++v) {
      const __m512 w = _mm512_mul_ps(of_step, _mm512_loadu_ps(scales + (v * steps + step) * 32));
      top = _mm512_max_ps(top, _mm512_abs_ps(w));
      not_finite = _mm512_fmadd_ps(w, nothing, not_finite);  // NaN from then on
      _mm512_storeu_ps(exact + (v * steps + step) * 16, w);
    }
  }
  const float largest = _mm512_reduce_max_ps(top);
  const float unit = largest / kLargest + _mm512_reduce_add_ps(not_finite);
  const __m512 inverse = _mm512_set1_ps(largest > 0x1p-100f ? kLargest / largest : 0.0f);
  const __m512i low_bytes = _mm512_set1_epi32(0x0C080400), high_bytes = _mm512_set1_epi32(0x0D090501);
  for (int64_t v = 0; v < shape.scale_vectors; ++v) {
    __m512 sum = nothing;
    for (int64_t step = 0; step < steps; ++step, scales += 32, exact += 16, weights += 128) {
      const __m512i w = _mm512_cvtps_epi32(_mm512_mul_ps(inverse, _mm512_loadu_ps(exact)));
      sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(w), _mm512_loadu_ps(scales + 16), sum);
      // w = 256 high + low, both signed. Every lane of a block gets all four of its bytes.
      const __m512i rounded = _mm512_add_epi32(w, _mm512_set1_epi32(128));
      _mm512_storeu_si512(weights, _mm512_shuffle_epi8(rounded, high_bytes));
      _mm512_storeu_si512(weights + 64, _mm512_shuffle_epi8(w, low_bytes));
    }
    alignas(64) float lanes[16];
    _mm512_store_ps(lanes, sum);
    for (int64_t b = 0; b < 4; ++b)
      offsets[v][b] = unit * (lanes[4 * b] + lanes[4 * b + 1] + lanes[4 * b + 2] + lanes[4 * b + 3]);
  }
  return unit;
}

/// x[b] = bytes' sums of block b, in order, from sums in the order of quads.
FOVEA_BYTE_DOTS HWY_INLINE void order_blocks(__m512i (&x)[4]) {
  const __m512i a = _mm512_shuffle_i32x4(x[0], x[1], 0x44), b = _mm512_shuffle_i32x4(x[0], x[1], 0xEE);
  const __m512i c = _mm512_shuffle_i32x4(x[2], x[3], 0x44), d = _mm512_shuffle_i32x4(x[2], x[3], 0xEE);
  x[0] = _mm512_shuffle_i32x4(a, c, 0x88);
  x[1] = _mm512_shuffle_i32x4(a, c, 0xDD);
  x[2] = _mm512_shuffle_i32x4(b, d, 0x88);
  x[3] = _mm512_shuffle_i32x4(b, d, 0xDD);
}

FOVEA_BYTE_DOTS HWY_INLINE void interleave_lanes(__m512i& a, __m512i& b) {
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i first = _mm512_permutex2var_epi32(a, low, b);
  b = _mm512_permutex2var_epi32(a, _mm512_add_epi32(low, _mm512_set1_epi32(8)), b);
  a = first;
}

/// Sums of kRows rows over one plane of one vector.
template <int kRows>
FOVEA_BYTE_DOTS HWY_INLINE void sum_quads(const uint8_t* quads, const int8_t* weights, int64_t row_weights,
                                          int64_t steps, __m512i (&out)[kRows][4]) {
  __m512i high[kRows][4], low[kRows][4];
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) high[r][m] = low[r][m] = _mm512_setzero_si512();
  for (int64_t step = 0; step < steps; ++step, quads += 256, weights += 128) {
    __m512i x[4];
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) x[m] = _mm512_loadu_si512(quads + 64 * m);
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) {
      const __m512i of_high = _mm512_loadu_si512(weights + r * row_weights);
      const __m512i of_low = _mm512_loadu_si512(weights + r * row_weights + 64);
#pragma GCC unroll 4
      for (int m = 0; m < 4; ++m) {
        high[r][m] = _mm512_dpbusd_epi32(high[r][m], x[m], of_high);
        low[r][m] = _mm512_dpbusd_epi32(low[r][m], x[m], of_low);
      }
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) out[r][m] = _mm512_add_epi32(_mm512_slli_epi32(high[r][m], 8), low[r][m]);
    order_blocks(out[r]);
  }
}

template <int kBits, int kRows>
FOVEA_BYTE_DOTS void add_quads(const CodeShape& shape, int64_t steps, const float* p, CodedValues& scratch,
                               float* values, int64_t width) {
  constexpr int kPlanes = 8 / kBits;
  const int64_t row_weights = shape.scale_vectors * steps * 128;
  float unit[kRows], offsets[kRows][CodeShape::kMostVectors][4];
  for (int r = 0; r < kRows; ++r)
    unit[r] = make_weights(shape, scratch.scales.data(), p + r * cpu::kChunk, steps, scratch.exact.data(),
                           scratch.weights.data() + r * row_weights, offsets[r]);
  for (int64_t v = 0; v < shape.vectors; ++v) {
    const int64_t scaled = v % shape.scale_vectors;
    __m512i sums[kPlanes][kRows][4];
#pragma GCC unroll 4
    for (int plane = 0; plane < kPlanes; ++plane)
      sum_quads<kRows>(scratch.quads.data() + (v * kPlanes + plane) * steps * 256,
                       scratch.weights.data() + scaled * steps * 128, row_weights, steps, sums[plane]);
    for (int r = 0; r < kRows; ++r)
      for (int64_t b = 0; b < shape.blocks; ++b) {
        __m512i x[kPlanes];
        float offset = 0;
        for (int plane = 0; plane < kPlanes; ++plane) x[plane] = _mm512_setzero_si512();
        for (int64_t same = b; same < 4; same += shape.blocks) {
          offset += offsets[r][scaled][same];
          for (int plane = 0; plane < kPlanes; ++plane)
            x[plane] = _mm512_add_epi32(x[plane], sums[plane][r][same]);
        }
        if constexpr (kPlanes == 2) interleave_lanes(x[0], x[1]);
        if constexpr (kPlanes == 4) {
          interleave_lanes(x[0], x[2]);
          interleave_lanes(x[1], x[3]);
          interleave_lanes(x[0], x[1]);
          interleave_lanes(x[2], x[3]);
        }
        float* to = values + r * width + (v * 4 + b) * 16 * kPlanes;
        for (int plane = 0; plane < kPlanes; ++plane, to += 16) {
          const __m512 before = _mm512_sub_ps(_mm512_loadu_ps(to), _mm512_set1_ps(offset));
          _mm512_storeu_ps(to,
                           _mm512_fmadd_ps(_mm512_set1_ps(unit[r]), _mm512_cvtepi32_ps(x[plane]), before));
        }
      }
  }
}

/// values[r] += sum_j p[r][j] v[j] for `count` keys, a multiple of 16.
template <int kBits>
void add_coded_values(const CodeShape& shape, const CodeRun& run, int64_t count, const CodeShape& shape_k,
                      const CodeRun& keys, const float* p, int64_t rows, CodedValues& scratch, float* values,
                      int64_t width) {
  const int64_t steps = count / shape.keys_of_four();
  make_quads<kBits>(shape, run, count, shape_k, keys, scratch);
  int64_t r = 0;
  for (; r + 2 <= rows; r += 2)
    add_quads<kBits, 2>(shape, steps, p + r * cpu::kChunk, scratch, values + r * width, width);
  if (r < rows) add_quads<kBits, 1>(shape, steps, p + r * cpu::kChunk, scratch, values + r * width, width);
}

/// Scores and values of one kv head's codes, a chunk at a time.
struct CodedHead {
  CodeShape k, v;
  CodedQueries queries;
  CodedValues sums;
  memory::Buffer<uint8_t> copy_k, copy_v;
  CodeRun keys, values;  // of the chunk
  int64_t count = 0;     // of them, a multiple of 16

  /// Are these codes taken as they are?
  bool set(const AffineRows& rows_k, const AffineRows& rows_v) {
    if (!cpu::HWY_NAMESPACE::has_byte_dots() || !k.set(rows_k) || !v.set(rows_v)) return false;
    sums.reserve(v);
    return true;
  }

  void set_chunk(const AffineRows& rows_k, const AffineRows& rows_v, const cpu::DecodeChunk& chunk) {
    count = round_up(chunk.count, 16);
    keys = run_of(k, rows_k, chunk, count, copy_k);
    values = run_of(v, rows_v, chunk, count, copy_v);
  }

  template <int kRows>
  void score(int64_t first, float* scores) const {
    const auto by = k.bits == 2   ? score_codes<2, kRows>
                    : k.bits == 4 ? score_codes<4, kRows>
                                  : score_codes<8, kRows>;
    by(k, keys, count, queries, first, v, values, scores);
  }

  void add_values(const float* p, int64_t rows, float* to, int64_t width) {
    const auto by = v.bits == 2   ? add_coded_values<2>
                    : v.bits == 4 ? add_coded_values<4>
                                  : add_coded_values<8>;
    by(v, values, count, k, keys, p, rows, sums, to, width);
  }
};

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // FOVEA_CODED_DOTS

#endif  // per-target include guard

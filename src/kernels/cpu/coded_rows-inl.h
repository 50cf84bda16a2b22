// SPDX-License-Identifier: Apache-2.0
// Scores of rows of codes by integer dots, for a few query rows: codes are never made floats (their weighted
// sums: coded_values-inl.h). Included once per SIMD target; only where it sets FOVEA_CODED_DOTS to 1 is there
// anything in it, and the processor must have byte dots.
//
// With a scale s and a zero z per key j and group of channels:
//   q . k_j        = sum over groups of s_jg (q_g . codes_jg - z_jg sum q_g)
//   sum_j p_j v_jc = sum_j (p_j s_jg) codes_jc - sum_j p_j s_jg z_jg
// q is rounded to 16 bits of its row's largest magnitude, and p s to 16 bits of the largest of a chunk of
// keys: outputs differ from those of the decoded rows by up to 1e-4 of the values' magnitude.
//
// Codes are taken in vectors of 64 bytes, four of them at a time. A vector holds a part of one row or a few
// neighbouring rows; each of its four blocks of 16 bytes belongs to one key and one group. What is known per
// key and group lies in vectors of 16 lanes: lane 4 b + i is for block b of vector i.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "fovea/core/memory.h"
#include "fovea/kernels/quantize.h"
#include "kernels/cpu/decode_plan.h"
#include "kernels/cpu/matmul_vnni-inl.h"
#include "kernels/cpu/tile-inl.h"

#if defined(FOVEA_KERNELS_CPU_CODED_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_CODED_ROWS_INL_H_
#undef FOVEA_KERNELS_CPU_CODED_ROWS_INL_H_
#else
#define FOVEA_KERNELS_CPU_CODED_ROWS_INL_H_
#endif

#undef FOVEA_CODED_DOTS
#if HWY_TARGET == HWY_AVX3
#define FOVEA_CODED_DOTS 1

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

/// How rows of codes fall into vectors.
struct CodeShape {
  static constexpr int64_t kMostVectors = 4;

  int bits = 0;
  int64_t channels = 0;
  int64_t vectors = 1;        // of a row that fills at least one
  int64_t scale_vectors = 1;  // of these, whose scales differ
  int64_t keys = 1;           // in a vector that is not filled by one row
  int64_t blocks = 4;         // of a key in a vector
  int64_t groups = 1;
  int64_t code_bytes = 0, scale_bytes = 0;            // of a row
  bool half = false;                                  // scales are f16
  alignas(64) int32_t scale_index[kMostVectors][16];  // in the scales and zeros of four vectors' keys
  alignas(64) int32_t key_index[16];                  // in those keys
  alignas(64) int32_t score_lane[16];                 // where the score of a key lies

  int64_t keys_of_four() const { return 4 * keys; }
  /// Scales and zeros of four vectors' keys.
  int64_t scales_of_four() const { return keys_of_four() * 2 * groups; }

  /// Can rows of this form be taken by the functions below?
  bool set(const AffineRows& rows) {
    bits = rows.bits, channels = rows.channels, half = rows.scale_type == DType::f16;
    if ((bits != 2 && bits != 4 && bits != 8) || channels * bits % 8 != 0) return false;
    groups = channels / rows.group;
    code_bytes = channels * bits / 8, scale_bytes = 2 * groups * size_of(rows.scale_type);
    if (code_bytes != 16 && code_bytes != 32 && code_bytes % 64 != 0) return false;
    vectors = std::max<int64_t>(1, code_bytes / 64), keys = std::max<int64_t>(1, 64 / code_bytes);
    blocks = 4 / keys, scale_vectors = groups == 1 ? 1 : vectors;
    if (code_bytes == 0 || vectors > kMostVectors || scales_of_four() > 32 || rows.group * bits % 128 != 0 ||
        rows.code_stride != code_bytes || rows.scale_stride != scale_bytes)
      return false;
    for (int32_t b = 0; b < 4; ++b)
      for (int32_t i = 0; i < 4; ++i) {
        const int32_t key = static_cast<int32_t>(i * keys + b / blocks);
        key_index[4 * b + i] = key;
        for (int64_t v = 0; v < vectors; ++v) {
          const int64_t channel = (v * 64 + b % blocks * 16) * 8 / bits;
          scale_index[v][4 * b + i] = static_cast<int32_t>(key * 2 * groups + channel / rows.group);
        }
      }
    for (int32_t n = 0; n < 16; ++n)
      score_lane[n] = keys == 1 ? n : keys == 2 ? n / 8 * 8 + n % 2 * 4 + n / 2 % 4 : n % 4 * 4 + n / 4;
    return true;
  }
};

/// Neighbouring rows of codes with their scales.
struct CodeRun {
  const uint8_t* codes;
  const char* scales;
};

/// The rows of a chunk where they lie, or a copy of them in `copy` where they are not neighbours or fewer
/// than `count`.
inline CodeRun run_of(const CodeShape& shape, const AffineRows& rows, const cpu::DecodeChunk& chunk,
                      int64_t count, memory::Buffer<uint8_t>& copy) {
  const auto* scales = static_cast<const char*>(rows.scales);
  const int64_t first = chunk.position[0];
  if (chunk.count == count && chunk.position[count - 1] == first + count - 1)
    return {rows.codes + first * shape.code_bytes, scales + first * shape.scale_bytes};
  copy.reserve(cpu::kCopiedChunk * (shape.code_bytes + shape.scale_bytes));
  uint8_t* codes = copy.data();
  uint8_t* copied_scales = codes + count * shape.code_bytes;
  std::memset(codes, 0, static_cast<size_t>(count * (shape.code_bytes + shape.scale_bytes)));
  for (int64_t j = 0; j < chunk.count; ++j) {
    const int64_t row = chunk.position[j];
    std::memcpy(codes + j * shape.code_bytes, rows.codes + row * shape.code_bytes,
                static_cast<size_t>(shape.code_bytes));
    std::memcpy(copied_scales + j * shape.scale_bytes, scales + row * shape.scale_bytes,
                static_cast<size_t>(shape.scale_bytes));
  }
  return {codes, reinterpret_cast<const char*>(copied_scales)};
}

/// Asks for rows [first, first + count) of a run, which are read soon: the processor's own prefetching does
/// not follow from chunk to chunk.
HWY_INLINE void prefetch_rows(const CodeShape& shape, const CodeRun& run, int64_t first, int64_t count) {
  const uint8_t* codes = run.codes + first * shape.code_bytes;
  for (int64_t at = 0; at < count * shape.code_bytes; at += 64) __builtin_prefetch(codes + at, 0, 3);
  const char* scales = run.scales + first * shape.scale_bytes;
  for (int64_t at = 0; at < count * shape.scale_bytes; at += 64) __builtin_prefetch(scales + at, 0, 3);
}

/// Query rows as integers, in the order in which codes come out of a vector: plane t of a vector is bits
/// t * bits .. of each of its 16-bit words.
struct CodedQueries {
  memory::Buffer<int16_t> planes;  // [row, vector, plane, 32]
  memory::Buffer<float> sums;      // [row, scale vector, 16]: of each block's channels
  memory::Buffer<float> factor;    // [row]: of a score

  /// q [rows,width] holds scaled queries, with whole vectors.
  FOVEA_BYTE_DOTS void set(const CodeShape& shape, const float* q, int64_t rows, int64_t width) {
    // A power of two.
    const int64_t per_word = 16 / shape.bits, row_words = std::min<int64_t>(32, shape.code_bytes / 2);
    const int64_t of_block = 128 / shape.bits;  // channels
    planes.reserve(rows * shape.vectors * per_word * 32);
    sums.reserve(rows * shape.scale_vectors * 16);
    factor.reserve(rows);
    levels_.reserve(width);
    int16_t* plane = planes.data();
    float* sum = sums.data();
    for (int64_t r = 0; r < rows; ++r, q += width, sum += shape.scale_vectors * 16) {
      factor.data()[r] = set_levels(q, width);
      for (int64_t v = 0; v < shape.vectors; ++v)
        for (int64_t t = 0; t < per_word; ++t, plane += 32)
          for (int64_t word = 0; word < 32; ++word)
            plane[word] = levels_[(v * 32 + (word & (row_words - 1))) * per_word + t];
      std::fill_n(sum, shape.scale_vectors * 16, 0.0f);
      for (int64_t v = 0; v < shape.vectors; ++v)
        for (int64_t b = 0; b < 4; ++b) {
          const int16_t* block = levels_.data() + (v * 4 + b % shape.blocks) * of_block;
          int32_t total = 0;
          for (int64_t c = 0; c < of_block; ++c) total += block[c];
          float* lanes = sum + v % shape.scale_vectors * 16 + 4 * b;
          for (int64_t i = 0; i < 4; ++i) lanes[i] += static_cast<float>(total);
        }
    }
  }

 private:
  memory::Buffer<int16_t> levels_;  // of one row

  // Returns the worth of a level.
  FOVEA_BYTE_DOTS float set_levels(const float* q, int64_t width) {
    __m512 top = _mm512_setzero_ps(), not_finite = top;
    for (int64_t c = 0; c < width; c += 16) {
      const __m512 x = _mm512_loadu_ps(q + c);
      top = _mm512_max_ps(top, _mm512_abs_ps(x));
      not_finite = _mm512_fmadd_ps(x, _mm512_setzero_ps(), not_finite);  // NaN from then on
    }
    const float largest = _mm512_reduce_max_ps(top);
    const __m512 inverse = _mm512_set1_ps(largest > 0x1p-100f ? 32767.0f / largest : 0.0f);
    for (int64_t c = 0; c < width; c += 16)
      _mm256_storeu_si256(
          reinterpret_cast<__m256i*>(levels_.data() + c),
          _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(inverse, _mm512_loadu_ps(q + c)))));
    return largest / 32767.0f + _mm512_reduce_add_ps(not_finite);
  }
};

struct ScalesAndZeros {
  __m512 scale, zero;
};

/// Those of vector v of each key, for the keys from `scales` on.
FOVEA_BYTE_DOTS HWY_INLINE ScalesAndZeros load_scales(const CodeShape& shape, const char* scales, int64_t v) {
  const auto all = static_cast<uint32_t>((uint64_t{1} << shape.scales_of_four()) - 1);
  const auto low = static_cast<__mmask16>(all), high = static_cast<__mmask16>(all >> 16);
  __m512 first, second;
  if (shape.half) {
    const __m512i both = _mm512_maskz_loadu_epi16(all, scales);
    first = _mm512_cvtph_ps(_mm512_castsi512_si256(both));
    second = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(both, 1));
  } else {
    first = _mm512_maskz_loadu_ps(low, scales);
    second = _mm512_maskz_loadu_ps(high, scales + 64);
  }
  const __m512i index = _mm512_load_si512(shape.scale_index[v]);
  const __m512i of_zero = _mm512_add_epi32(index, _mm512_set1_epi32(static_cast<int>(shape.groups)));
  return {_mm512_permutex2var_ps(first, index, second), _mm512_permutex2var_ps(first, of_zero, second)};
}

/// Lane 4 b + i: the sum of block b of vector i.
FOVEA_BYTE_DOTS HWY_INLINE __m512i sum_within_blocks(const __m512i (&x)[4]) {
  const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
  const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/// Blocks 0 + 1 and 2 + 3 of a, then those of b.
FOVEA_BYTE_DOTS HWY_INLINE __m512 sum_neighbour_blocks(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
}

template <int kBits, int kPlane>
FOVEA_BYTE_DOTS HWY_INLINE __m512i word_plane(__m512i codes) {
  constexpr int kShift = kBits * kPlane;
  const __m512i shifted = kShift == 0 ? codes : _mm512_srli_epi16(codes, kShift);
  return kShift + kBits == 16 ? shifted : _mm512_and_si512(shifted, _mm512_set1_epi16((1 << kBits) - 1));
}

template <int kBits, int kRows, int kPlane = 0>
FOVEA_BYTE_DOTS HWY_INLINE void add_planes(const uint8_t* codes, int64_t step, const int16_t* q,
                                           int64_t q_step, __m512i (&sums)[kRows][4]) {
  if constexpr (kPlane < 16 / kBits) {
    __m512i x[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) x[r] = _mm512_loadu_si512(q + r * q_step + kPlane * 32);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512i plane = word_plane<kBits, kPlane>(_mm512_loadu_si512(codes + i * step));
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sums[r][i] = _mm512_dpwssd_epi32(sums[r][i], plane, x[r]);
    }
    add_planes<kBits, kRows, kPlane + 1>(codes, step, q, q_step, sums);
  }
}

/// scores[r][j] = q[r] . k[j] for the kRows rows from `first` on and `count` keys, a multiple of 16.
/// Meanwhile the values are fetched.
template <int kBits, int kRows>
FOVEA_BYTE_DOTS void score_codes(const CodeShape& shape, const CodeRun& keys, int64_t count,
                                 const CodedQueries& queries, int64_t first, const CodeShape& shape_v,
                                 const CodeRun& values, float* scores) {
  constexpr int64_t kVectorPlanes = 16 / kBits * 32;
  const int64_t q_step = shape.vectors * kVectorPlanes, code_step = shape.vectors * 64;
  const int16_t* q = queries.planes.data() + first * q_step;
  const float* q_sums = queries.sums.data() + first * shape.scale_vectors * 16;
  const __m512i order = _mm512_load_si512(shape.score_lane);
  const int64_t steps = 4 / shape.keys;
  for (int64_t j = 0; j < count; j += 16) {
    __m512 parts[kRows][4];
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t key = j + step * shape.keys_of_four();
      if (first == 0) prefetch_rows(shape_v, values, key, shape.keys_of_four());
      for (int64_t v = 0; v < shape.scale_vectors; ++v) {
        __m512i dots[kRows][4];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) dots[r][i] = _mm512_setzero_si512();
        for (int64_t part = v; part < shape.vectors; part += shape.scale_vectors)
          add_planes<kBits, kRows>(keys.codes + key * shape.code_bytes + part * 64, code_step,
                                   q + part * kVectorPlanes, q_step, dots);
        const ScalesAndZeros of_keys = load_scales(shape, keys.scales + key * shape.scale_bytes, v);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const __m512 sum = _mm512_loadu_ps(q_sums + (r * shape.scale_vectors + v) * 16);
          const __m512 dot =
              _mm512_fnmadd_ps(of_keys.zero, sum, _mm512_cvtepi32_ps(sum_within_blocks(dots[r])));
          parts[r][step] = v == 0 ? _mm512_mul_ps(of_keys.scale, dot)
                                  : _mm512_fmadd_ps(of_keys.scale, dot, parts[r][step]);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      __m512 sum = parts[r][0];
      if (shape.keys == 1)
        sum = sum_neighbour_blocks(sum_neighbour_blocks(parts[r][0], parts[r][1]),
                                   sum_neighbour_blocks(parts[r][2], parts[r][3]));
      else if (shape.keys == 2)
        sum = sum_neighbour_blocks(parts[r][0], parts[r][1]);
      sum = _mm512_permutexvar_ps(order, sum);
      _mm512_storeu_ps(scores + r * cpu::kChunk + j,
                       _mm512_mul_ps(sum, _mm512_set1_ps(queries.factor.data()[first + r])));
    }
  }
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#else
#define FOVEA_CODED_DOTS 0
#endif  // HWY_TARGET == HWY_AVX3

#endif  // per-target include guard

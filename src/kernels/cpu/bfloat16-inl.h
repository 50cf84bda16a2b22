// SPDX-License-Identifier: Apache-2.0
// Packing, products and softmax weights of bf16 pairs, and products of byte quads, by the AVX-512
// instructions that Highway does not name. Included once per SIMD target; only where it sets
// FOVEA_PAIR_PRODUCTS to 1 is there anything in it, and the processor must have them (see bfloat16_unit.h).
//
// A pair is 32 bits: the bf16 of two neighbours along the axis that a product sums over.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/pack-inl.h"
#include "kernels/cpu/softmax-inl.h"

#if defined(FOVEA_KERNELS_CPU_BFLOAT16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_BFLOAT16_INL_H_
#undef FOVEA_KERNELS_CPU_BFLOAT16_INL_H_
#else
#define FOVEA_KERNELS_CPU_BFLOAT16_INL_H_
#endif

#undef FOVEA_BFLOAT16
#undef FOVEA_NARROW_DOTS
#undef FOVEA_PAIR_PRODUCTS
#if HWY_TARGET == HWY_AVX3
#define FOVEA_PAIR_PRODUCTS 1

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {

#define FOVEA_BFLOAT16 __attribute__((target(HWY_TARGET_STR ",avx512bf16")))
#define FOVEA_NARROW_DOTS __attribute__((target(HWY_TARGET_STR ",avx512bf16,avx512vnni")))

using Pair = uint32_t;
using PairProduct = ProductOf<Pair>;
/// Four bytes: unsigned in A, signed in B. Products of quads leave the bits of int32 in C.
enum class Quad : uint32_t {};

// Pairs and quads are stored as their parts.
template <class Element>
HWY_INLINE Element load_element(const Element* from) {
  Element element;
  std::memcpy(&element, from, sizeof(element));
  return element;
}

// ---- packing ----

/// to [rows, depth / 2]: bf16 query rows as they are, zeros beside them.
HWY_INLINE void pack_query_pairs(const AttentionArgs& a, const RowTile& tile, int64_t depth, Pair* to) {
  auto* row = reinterpret_cast<uint16_t*>(to);
  for (int64_t r = 0; r < tile.rows(); ++r, row += depth) {
    std::memcpy(row, a.q.at(tile.batch, tile.head_of(r), tile.query_of(r)),
                static_cast<size_t>(a.dim) * sizeof(uint16_t));
    std::memset(row + a.dim, 0, static_cast<size_t>(depth - a.dim) * sizeof(uint16_t));
  }
}

/// to: panels [depth / 2][kPanel] of transposed keys; columns past the last key are zero up to `columns`, a
/// multiple of kLanes. `depth` is a multiple of 8, `stage` holds (kLanes + 1) * depth / 2 floats.
HWY_INLINE void pack_key_pairs(const AttentionArgs& a, int64_t b, int64_t kv, const KeyTile& tile,
                               int64_t columns, int64_t depth, float* stage, Pair* to) {
  const int64_t pairs = depth / 2;
  float* zeros = stage + kLanes * pairs;
  std::fill(zeros, zeros + pairs, 0.0f);
  const float* rows[kLanes];
  for (int64_t c = 0; c < columns; c += kLanes) {
    for (int64_t r = 0; r < kLanes; ++r) {
      rows[r] = zeros;
      if (c + r >= tile.count) continue;
      const char* key = a.k.at(b, kv, tile.key(c + r));
      rows[r] = reinterpret_cast<const float*>(key);  // bits that transpose_rows moves unread
      if (a.dim == depth) continue;
      float* copy = stage + r * pairs;
      std::memcpy(copy, key, static_cast<size_t>(a.dim) * sizeof(uint16_t));
      std::memset(reinterpret_cast<uint16_t*>(copy) + a.dim, 0,
                  static_cast<size_t>(depth - a.dim) * sizeof(uint16_t));
      rows[r] = copy;
    }
    transpose_rows(rows, pairs, reinterpret_cast<float*>(to) + c / kPanel * pairs * kPanel + c % kPanel,
                   kPanel);
  }
}

// kLanes pairs.
HWY_INLINE void interleave_vector(const uint16_t* even, const uint16_t* odd, Pair* to) {
  const hn::RebindToUnsigned<Floats> d;
  const hn::Rebind<uint16_t, Floats> narrow;
  const auto low = hn::PromoteTo(d, hn::LoadU(narrow, even)), high = hn::PromoteTo(d, hn::LoadU(narrow, odd));
  hn::StoreU(hn::Or(low, hn::ShiftLeft<16>(high)), d, to);
}

/// to[c] = {even[c], odd[c]}, and zeros up to the next multiple of kLanes.
HWY_INLINE void interleave_rows(const uint16_t* even, const uint16_t* odd, int64_t count, Pair* to) {
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) interleave_vector(even + c, odd + c, to + c);
  if (c == count) return;
  uint16_t tails[2][kLanes] = {};
  const size_t rest = static_cast<size_t>(count - c) * sizeof(uint16_t);
  std::memcpy(tails[0], even + c, rest);
  std::memcpy(tails[1], odd + c, rest);
  interleave_vector(tails[0], tails[1], to + c);
}

/// to [keys / 2][width]: values of two neighbouring keys in a pair; keys past the last are zero up to `keys`,
/// an even number. `width` is Dv rounded up to kLanes; `to` has room for one row more.
HWY_INLINE void pack_value_pairs(const AttentionArgs& a, int64_t b, int64_t kv, const KeyTile& tile,
                                 int64_t keys, int64_t width, Pair* to) {
  Pair* zeros = to + keys / 2 * width;
  std::memset(zeros, 0, static_cast<size_t>(width) * sizeof(Pair));
  const auto row = [&](int64_t c) {
    return reinterpret_cast<const uint16_t*>(c < tile.count ? a.v.at(b, kv, tile.key(c))
                                                            : reinterpret_cast<const char*>(zeros));
  };
  for (int64_t c = 0; c < keys; c += 2, to += width) interleave_rows(row(c), row(c + 1), a.dim_v, to);
}

/// Is every bf16 of these pairs finite?
HWY_INLINE bool all_finite_pairs(const Pair* pairs, int64_t count) {
  const hn::Repartition<uint16_t, Floats> d;
  const auto exponent = hn::Set(d, 0x7F80);
  auto none = hn::FirstN(d, 0);
  for (int64_t i = 0; i < count; i += kLanes) {
    const auto bits = hn::LoadU(d, reinterpret_cast<const uint16_t*>(pairs + i));
    none = hn::Or(none, hn::Eq(hn::And(bits, exponent), exponent));
  }
  return hn::AllFalse(d, none);
}

// ---- products ----

FOVEA_NARROW_DOTS HWY_INLINE __m512 add_dots(__m512 sum, Pair a, __m512i b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)b, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)));
}
FOVEA_NARROW_DOTS HWY_INLINE __m512 add_dots(__m512 sum, Quad a, __m512i b) {
  return _mm512_castsi512_ps(
      _mm512_dpbusd_epi32(_mm512_castps_si512(sum), _mm512_set1_epi32(static_cast<int>(a)), b));
}

/// One register block: kRows x kVectors accumulators over the whole depth. Every element of C is one chain of
/// dots in ascending k, whatever the block it falls in.
template <int kRows, int kVectors, class Element>
requires(!std::is_same_v<Element, float>) FOVEA_NARROW_DOTS
    void multiply_block(const ProductOf<Element>& p, int64_t row) {
  __m512 sum[kRows][kVectors];
  const Element* a[kRows];
  float* c = p.c + row * p.c_stride;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    a[r] = p.a + (row + r) * p.a_row;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = p.accumulate ? _mm512_loadu_ps(c + r * p.c_stride + v * kLanes) : _mm512_setzero_ps();
  }
  const Element* b = p.b;
  for (int64_t k = 0; k < p.depth; ++k, b += p.b_stride) {
    __m512i row_of_b[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) row_of_b[v] = _mm512_loadu_si512(b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Element element = load_element(a[r] + k);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = add_dots(sum[r][v], element, row_of_b[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(c + r * p.c_stride + v * kLanes, sum[r][v]);
}

// ---- softmax weights ----

/// 2^x for x that are not far above 0: relative error below 3.1e-6, some 600 times finer than the rounding to
/// bf16 that follows. 2^0 is exactly 1; 0 for -inf; NaN stays NaN.
FOVEA_BFLOAT16 inline __m512 exp2_of_weight(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);  // x - floor(x), and 0 for an infinity
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.0134266838f), f, _mm512_set1_ps(0.0522424728f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.241280198f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693044841f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, x);  // p 2^floor(x)
}

/// What remains of kLanes vectors when each is reduced to one lane, in their order.
template <class Combine>
FOVEA_BFLOAT16 HWY_INLINE __m512 reduce_rows(const __m512* rows, const Combine& combine) {
  __m512 pairs[8], fours[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m512 a = rows[2 * i], b = rows[2 * i + 1];
    pairs[i] = combine(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
    fours[i] =
        combine(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const auto blocks = [&](__m512 a, __m512 b) FOVEA_BFLOAT16 {
    return combine(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
  };
  return blocks(blocks(fours[0], fours[1]), blocks(fours[2], fours[3]));
}

/// Scores of one row, and where its weights go: to where the scores begin, or before that.
struct RowScores {
  float* scores;
  uint16_t* weights;
  int64_t count;
};

struct WeightSums {
  __m512 exact, rounded;  // lane by lane
};

/// weights = 2^(factor * scores - maximum) as bf16, and 0 up to the next multiple of 2 kLanes; their sums
/// before and after rounding.
FOVEA_BFLOAT16 HWY_INLINE WeightSums exponentiate_pairs(const RowScores& row, __m512 factor, __m512 maximum) {
  const auto ones = (__m512bh)_mm512_set1_epi32(0x3F803F80);
  __m512 sum0 = _mm512_setzero_ps(), sum1 = sum0, rounded = sum0;
  const float* scores = row.scores;
  int64_t c = 0;
  for (; c + 2 * kLanes <= row.count; c += 2 * kLanes) {
    const __m512 p0 = exp2_of_weight(_mm512_fmsub_ps(factor, _mm512_loadu_ps(scores + c), maximum));
    const __m512 p1 = exp2_of_weight(_mm512_fmsub_ps(factor, _mm512_loadu_ps(scores + c + kLanes), maximum));
    const __m512bh both = _mm512_cvtne2ps_pbh(p1, p0);
    _mm512_storeu_si512(row.weights + c, (__m512i)both);
    sum0 = _mm512_add_ps(sum0, p0);
    sum1 = _mm512_add_ps(sum1, p1);
    rounded = _mm512_dpbf16_ps(rounded, both, ones);
  }
  if (c < row.count) {
    const auto inside = (uint32_t{1} << (row.count - c)) - 1;
    const auto low = static_cast<__mmask16>(inside), high = static_cast<__mmask16>(inside >> 16);
    const __m512 s0 = _mm512_maskz_loadu_ps(low, scores + c),
                 s1 = _mm512_maskz_loadu_ps(high, scores + c + kLanes);
    const __m512 p0 = _mm512_maskz_mov_ps(low, exp2_of_weight(_mm512_fmsub_ps(factor, s0, maximum)));
    const __m512 p1 = _mm512_maskz_mov_ps(high, exp2_of_weight(_mm512_fmsub_ps(factor, s1, maximum)));
    const __m512bh both = _mm512_cvtne2ps_pbh(p1, p0);
    _mm512_storeu_si512(row.weights + c, (__m512i)both);
    sum0 = _mm512_add_ps(sum0, p0);
    sum1 = _mm512_add_ps(sum1, p1);
    rounded = _mm512_dpbf16_ps(rounded, both, ones);
  }
  return {_mm512_add_ps(sum0, sum1), rounded};
}

/// Folds the scores of `count` <= kLanes rows (times factor > 0) into them as `fold` does one, and puts their
/// weights in place. Sums over lanes, maxima and rescaling are taken for all rows together.
FOVEA_BFLOAT16 inline void fold_pairs(RunningRow* running, const RowScores* rows, int64_t count, float factor,
                                      float* rescale) {
  __m512 parts[kLanes], rounded[kLanes];
  alignas(64) float seen[kLanes], before[kLanes], after[kLanes], sums[kLanes], rounded_sums[kLanes];
  for (int64_t r = 0; r < kLanes; ++r) {
    parts[r] = _mm512_set1_ps(kMinusInfinity);
    before[r] = kMinusInfinity;
    sums[r] = rounded_sums[r] = 0;
    if (r >= count) continue;
    parts[r] = lane_maxima(rows[r].scores, rows[r].count).raw;
    before[r] = running[r].maximum, sums[r] = running[r].sum, rounded_sums[r] = running[r].rounded_sum;
  }
  const auto larger = [](__m512 a, __m512 b) FOVEA_BFLOAT16 { return _mm512_max_ps(a, b); };
  const auto added = [](__m512 a, __m512 b) FOVEA_BFLOAT16 { return _mm512_add_ps(a, b); };
  const __m512 scale = _mm512_set1_ps(factor), nothing = _mm512_set1_ps(kMinusInfinity);
  __m512 now = _mm512_mul_ps(scale, reduce_rows(parts, larger));
  const auto of_rows = static_cast<__mmask16>((1u << count) - 1);
  if (_mm512_mask_cmp_ps_mask(of_rows, now, nothing, _CMP_EQ_OQ) != 0) {
    _mm512_store_ps(seen, now);
    for (int64_t r = 0; r < count; ++r)
      if (seen[r] == kMinusInfinity && any_nan(rows[r].scores, rows[r].count)) seen[r] = 0.0f;
    now = _mm512_load_ps(seen);
  }
  const __m512 old = _mm512_load_ps(before);
  const __mmask16 moved = _mm512_cmp_ps_mask(now, old, _CMP_GT_OQ);
  const __m512 top = _mm512_mask_mov_ps(old, moved, now);
  __m512 factors = _mm512_set1_ps(1.0f);
  if (moved != 0)
    factors = _mm512_mask_mov_ps(factors, moved, exp2_of(Floats(), FloatVector{_mm512_sub_ps(old, top)}).raw);
  _mm512_store_ps(after, top);
  _mm512_store_ps(seen, now);
  for (int64_t r = 0; r < kLanes; ++r) {
    parts[r] = rounded[r] = _mm512_setzero_ps();
    if (r >= count) continue;
    if (seen[r] == kMinusInfinity) {
      std::memset(rows[r].weights, 0, static_cast<size_t>(rows[r].count) * sizeof(uint16_t));
      continue;
    }
    const WeightSums of_row = exponentiate_pairs(rows[r], scale, _mm512_set1_ps(after[r]));
    parts[r] = of_row.exact;
    rounded[r] = of_row.rounded;
  }
  _mm512_store_ps(sums, _mm512_fmadd_ps(factors, _mm512_load_ps(sums), reduce_rows(parts, added)));
  _mm512_store_ps(rounded_sums,
                  _mm512_fmadd_ps(factors, _mm512_load_ps(rounded_sums), reduce_rows(rounded, added)));
  for (int64_t r = 0; r < count; ++r) running[r] = {after[r], sums[r], rounded_sums[r]};
  alignas(64) float all_factors[kLanes];
  _mm512_store_ps(all_factors, factors);
  std::copy(all_factors, all_factors + count, rescale);
}

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#else
#define FOVEA_PAIR_PRODUCTS 0
#endif  // HWY_TARGET == HWY_AVX3

#endif  // per-target include guard

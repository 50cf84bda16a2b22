// SPDX-License-Identifier: Apache-2.0
// Packing, products and softmax weights of bf16 pairs, by the AVX-512 instructions that Highway does not
// name. Included once per SIMD target; only where it sets FOVEA_PAIR_PRODUCTS to 1 is there anything in it,
// and the processor must have them (see bfloat16_unit.h).
//
// A pair is 32 bits: the bf16 of two neighbours along the axis that a product sums over.
#include <cstdint>
#include <cstring>

#include "kernels/cpu/pack-inl.h"
#include "kernels/cpu/softmax-inl.h"

#if defined(FOVEA_KERNELS_CPU_BFLOAT16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_BFLOAT16_INL_H_
#undef FOVEA_KERNELS_CPU_BFLOAT16_INL_H_
#else
#define FOVEA_KERNELS_CPU_BFLOAT16_INL_H_
#endif

#undef FOVEA_BFLOAT16
#undef FOVEA_PAIR_PRODUCTS
#if HWY_TARGET == HWY_AVX3
#define FOVEA_PAIR_PRODUCTS 1

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {

#define FOVEA_BFLOAT16 __attribute__((target(HWY_TARGET_STR ",avx512bf16")))

using Pair = uint32_t;
using PairProduct = ProductOf<Pair>;

// Pairs are stored as their halves.
HWY_INLINE Pair load_pair(const Pair* from) {
  Pair pair;
  std::memcpy(&pair, from, sizeof(pair));
  return pair;
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

/// to[c] = {even[c], odd[c]}
HWY_INLINE void interleave_rows(const uint16_t* even, const uint16_t* odd, int64_t count, Pair* to) {
  const hn::RebindToUnsigned<Floats> d;
  const hn::Rebind<uint16_t, Floats> narrow;
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    const auto low = hn::PromoteTo(d, hn::LoadU(narrow, even + c));
    const auto high = hn::PromoteTo(d, hn::LoadU(narrow, odd + c));
    hn::StoreU(hn::Or(low, hn::ShiftLeft<16>(high)), d, to + c);
  }
  if (c == count) return;
  uint16_t tails[2][kLanes] = {};
  const size_t rest = static_cast<size_t>(count - c) * sizeof(uint16_t);
  std::memcpy(tails[0], even + c, rest);
  std::memcpy(tails[1], odd + c, rest);
  interleave_rows(tails[0], tails[1], kLanes, to + c);
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

/// One register block: kRows x kVectors accumulators over the whole depth. Every element of C is one chain of
/// pair dots in ascending k, whatever the block it falls in.
template <int kRows, int kVectors>
FOVEA_BFLOAT16 void multiply_block(const PairProduct& p, int64_t row) {
  __m512 sum[kRows][kVectors];
  const Pair* a[kRows];
  float* c = p.c + row * p.c_stride;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    a[r] = p.a + (row + r) * p.a_row;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = p.accumulate ? _mm512_loadu_ps(c + r * p.c_stride + v * kLanes) : _mm512_setzero_ps();
  }
  const Pair* b = p.b;
  for (int64_t k = 0; k < p.depth; ++k, b += p.b_stride) {
    __m512i row_of_b[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) row_of_b[v] = _mm512_loadu_si512(b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512i pair = _mm512_set1_epi32(static_cast<int>(load_pair(a[r] + k)));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        sum[r][v] = _mm512_dpbf16_ps(sum[r][v], (__m512bh)row_of_b[v], (__m512bh)pair);
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

struct WeightSums {
  float exact, rounded;
};

/// weights = 2^(factor * scores - maximum) as bf16, and 0 up to the next multiple of 2 kLanes; returns their
/// sums before and after rounding. The weights may begin where the scores do: they trail behind.
FOVEA_BFLOAT16 inline WeightSums exponentiate_pairs(const float* scores, float factor, float maximum,
                                                    int64_t count, uint16_t* weights) {
  const __m512 f = _mm512_set1_ps(factor), m = _mm512_set1_ps(maximum);
  const auto ones = (__m512bh)_mm512_set1_epi32(0x3F803F80);
  __m512 sum0 = _mm512_setzero_ps(), sum1 = sum0, rounded = sum0;
  int64_t c = 0;
  for (; c + 2 * kLanes <= count; c += 2 * kLanes) {
    const __m512 p0 = exp2_of_weight(_mm512_fmsub_ps(f, _mm512_loadu_ps(scores + c), m));
    const __m512 p1 = exp2_of_weight(_mm512_fmsub_ps(f, _mm512_loadu_ps(scores + c + kLanes), m));
    const __m512bh both = _mm512_cvtne2ps_pbh(p1, p0);
    _mm512_storeu_si512(weights + c, (__m512i)both);
    sum0 = _mm512_add_ps(sum0, p0);
    sum1 = _mm512_add_ps(sum1, p1);
    rounded = _mm512_dpbf16_ps(rounded, both, ones);
  }
  if (c < count) {
    const auto inside = (uint32_t{1} << (count - c)) - 1;
    const auto low = static_cast<__mmask16>(inside), high = static_cast<__mmask16>(inside >> 16);
    const __m512 s0 = _mm512_maskz_loadu_ps(low, scores + c),
                 s1 = _mm512_maskz_loadu_ps(high, scores + c + kLanes);
    const __m512 p0 = _mm512_maskz_mov_ps(low, exp2_of_weight(_mm512_fmsub_ps(f, s0, m)));
    const __m512 p1 = _mm512_maskz_mov_ps(high, exp2_of_weight(_mm512_fmsub_ps(f, s1, m)));
    const __m512bh both = _mm512_cvtne2ps_pbh(p1, p0);
    _mm512_storeu_si512(weights + c, (__m512i)both);
    sum0 = _mm512_add_ps(sum0, p0);
    sum1 = _mm512_add_ps(sum1, p1);
    rounded = _mm512_dpbf16_ps(rounded, both, ones);
  }
  return {_mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1)), _mm512_reduce_add_ps(rounded)};
}

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#else
#define FOVEA_PAIR_PRODUCTS 0
#endif  // HWY_TARGET == HWY_AVX3

#endif  // per-target include guard

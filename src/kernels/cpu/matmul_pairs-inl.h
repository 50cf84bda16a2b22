// SPDX-License-Identifier: Apache-2.0
// Products of unsigned codes with signed bytes where no instruction adds four of them: by AVX2's instruction
// that adds pairs, which Highway does not name, and in portable form.
#if defined(FOVEA_MATMUL_PAIRS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_MATMUL_PAIRS_INL_H_
#undef FOVEA_MATMUL_PAIRS_INL_H_
#else
#define FOVEA_MATMUL_PAIRS_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "kernels/cpu/matmul_panels.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Float16Lanes = HWY_CAPPED(float, 16);
using IntLanes = hn::Rebind<int32_t, Float16Lanes>;
using IntVector = hn::Vec<IntLanes>;

inline int32_t load_quad(const int8_t* at) {
  int32_t quad;
  std::memcpy(&quad, at, sizeof(quad));
  return quad;
}

#if HWY_TARGET == HWY_AVX2
inline constexpr bool kAddsPairs = true;

// Codes of 4 bits. A 16-bit lane takes two products of a code below 16 and |x| <= 127 for each quad of
// columns: the 8 x 2 x 15 x 127 of a whole group fit. Those of 8 bits would not, and two halves of them gain
// nothing.
template <int kRows>
HWY_INLINE void half_byte_dots(const uint8_t* codes, int64_t group, const int8_t* x, int64_t x_stride,
                               IntVector* sums) {
  const __m256i half = _mm256_set1_epi8(0x0F), one = _mm256_set1_epi16(1);
  __m256i pairs[kRows];
  for (auto& pair : pairs) pair = _mm256_setzero_si256();
  const auto add = [&](__m256i w, int64_t k) HWY_ATTR {
    for (int r = 0; r < kRows; ++r)
      pairs[r] = _mm256_add_epi16(
          pairs[r], _mm256_maddubs_epi16(w, _mm256_set1_epi32(load_quad(x + r * x_stride + k))));
  };
  for (int64_t k = 0; k < group; k += 8, codes += 64) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    add(_mm256_and_si256(both, half), k);
    add(_mm256_and_si256(_mm256_srli_epi16(both, 4), half), k + 4);
  }
  for (int r = 0; r < kRows; ++r) sums[r] = IntVector{_mm256_madd_epi16(pairs[r], one)};
}

#else
inline constexpr bool kAddsPairs = false;
template <int kRows>
HWY_INLINE void half_byte_dots(const uint8_t*, int64_t, const int8_t*, int64_t, IntVector*) {}
#endif

// Adds the four products of each 32-bit lane's bytes: codes times the same four of x everywhere.
HWY_INLINE IntVector add_quad(IntLanes d, IntVector sum, IntVector codes, int32_t quad) {
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

/// sums = the sums over a group's columns of code times x, for one vector of lanes, whose first code stands
/// at `codes` in the panel's group, and kRows rows of x.
template <int kBits, int kRows>
HWY_INLINE void group_dots(const uint8_t* codes, int64_t group, const int8_t* x, int64_t x_stride,
                           IntVector* sums) {
  if constexpr (kBits == 4 && kAddsPairs) return half_byte_dots<kRows>(codes, group, x, x_stride, sums);
  const IntLanes d;
  const hn::Repartition<uint8_t, IntLanes> d8;
  for (int r = 0; r < kRows; ++r) sums[r] = hn::Zero(d);
  const auto add = [&](IntVector w, int64_t k) HWY_ATTR {
    for (int r = 0; r < kRows; ++r) sums[r] = add_quad(d, sums[r], w, load_quad(x + r * x_stride + k));
  };
  for (int64_t k = 0; k < group; k += 32 / kBits, codes += 64) {
    const auto both = hn::BitCast(d, hn::LoadU(d8, codes));
    if constexpr (kBits == 4) {
      const auto half = hn::Set(d, 0x0F0F0F0F);
      add(hn::And(both, half), k);
      add(hn::And(hn::ShiftRight<4>(both), half), k + 4);
    } else {
      add(both, k);
    }
  }
}

}  // namespace fovea::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard

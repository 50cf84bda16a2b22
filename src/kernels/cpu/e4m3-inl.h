// SPDX-License-Identifier: Apache-2.0
// float <-> e4m3 ("fn") in vectors, one code in every u32 lane. Included once per SIMD target.
#include <cstdint>
#include <limits>

#include "hwy/highway.h"

#if defined(FOVEA_KERNELS_CPU_E4M3_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_E4M3_INL_H_
#undef FOVEA_KERNELS_CPU_E4M3_INL_H_
#else
#define FOVEA_KERNELS_CPU_E4M3_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

inline constexpr float kE4m3Max = 448.0f;

/// Round to nearest even, saturating; NaN becomes 0x7F.
template <class V, class D = hn::DFromV<V>, class DU = hn::RebindToUnsigned<D>>
HWY_INLINE hn::Vec<DU> encode_e4m3(V x) {
  const D d;
  const DU du;
  const auto sign = hn::And(hn::ShiftRight<24>(hn::BitCast(du, x)), hn::Set(du, 0x80u));
  const auto magnitude = hn::Min(hn::Abs(x), hn::Set(d, kE4m3Max));
  // Normal numbers: add half an ulp of the three kept mantissa bits, ties to even, and move the exponent
  // bias from 127 to 7.
  const auto bits = hn::BitCast(du, magnitude);
  const auto odd = hn::And(hn::ShiftRight<20>(bits), hn::Set(du, 1));
  const auto rounded = hn::ShiftRight<20>(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFFFu))));
  const auto normal = hn::Sub(rounded, hn::Set(du, 120u << 3));
  // Below 2^-6 the code counts units of 2^-9; adding 2^14 makes that unit the last bit of a float.
  const auto shifted = hn::BitCast(du, hn::Add(magnitude, hn::Set(d, 16384.0f)));
  const auto subnormal = hn::Sub(shifted, hn::BitCast(du, hn::Set(d, 16384.0f)));
  const auto is_subnormal = hn::RebindMask(du, hn::Lt(magnitude, hn::Set(d, 0.015625f)));
  const auto code = hn::Or(sign, hn::IfThenElse(is_subnormal, subnormal, normal));
  return hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(x)), hn::Set(du, 0x7Fu), code);
}

template <class VU, class DU = hn::DFromV<VU>, class D = hn::RebindToFloat<DU>>
HWY_INLINE hn::Vec<D> decode_e4m3(VU code) {
  const D d;
  const DU du;
  // The bits stand in place as a float whose exponent bias is off by 120; the product repairs that, for
  // subnormal codes too.
  const auto body = hn::And(code, hn::Set(du, 0x7Fu));
  const auto magnitude = hn::Mul(hn::BitCast(d, hn::ShiftLeft<20>(body)), hn::Set(d, 0x1p120f));
  const auto sign = hn::ShiftLeft<24>(hn::And(code, hn::Set(du, 0x80u)));
  const auto value = hn::Or(magnitude, hn::BitCast(d, sign));
  return hn::IfThenElse(hn::RebindMask(d, hn::Eq(body, hn::Set(du, 0x7Fu))),
                        hn::Set(d, std::numeric_limits<float>::quiet_NaN()), value);
}

/// decode(encode(x)).
template <class V>
HWY_INLINE V round_to_e4m3(V x) {
  return decode_e4m3(encode_e4m3(x));
}

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif

// SPDX-License-Identifier: Apache-2.0
// Vectorised exponentials of f32. Included once per SIMD target (Highway's toggle guard).
#include <cstdint>

#include "hwy/highway.h"

#if defined(FOVEA_KERNELS_CPU_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_EXP_INL_H_
#undef FOVEA_KERNELS_CPU_EXP_INL_H_
#else
#define FOVEA_KERNELS_CPU_EXP_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kLn2 = 0.693147181f;

/// 2^f for |f| <= 0.5: minimax polynomial with the constant 1, so that 2^0 is exactly 1; relative error 3e-9
/// before rounding.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2_fraction(D d, V f) {
  V p = hn::MulAdd(hn::Set(d, 0.000155946778f), f, hn::Set(d, 0.00134066434f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.00961769279f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.0555031039f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.240226522f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.693147242f));
  return hn::MulAdd(p, f, hn::Set(d, 1.0f));
}

/// p * 2^n for an integral n: 0 for n <= -126, infinity for n >= 128.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V scale_by_power(D d, V p, V n) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  if constexpr (sizeof(V) == 64) return V{_mm512_scalef_ps(p.raw, n.raw)};
#endif
  const hn::RebindToSigned<D> di;
  const V scaled = hn::BitCast(d, hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(hn::ConvertTo(di, n))));
  const V tiny_gone = hn::IfThenZeroElse(hn::Le(n, hn::Set(d, -126.0f)), scaled);
  // The product with infinity keeps a NaN, whose n is no number either.
  const V infinite = hn::Mul(p, hn::BitCast(d, hn::Set(di, 0x7F800000)));
  return hn::IfThenElse(hn::Lt(n, hn::Set(d, 128.0f)), tiny_gone, infinite);
}

/// x between low and high; NaN stays NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V clamp(D d, V x, float low, float high) {
#if HWY_ARCH_X86
  // Max and Min return their second operand when one is NaN.
  return hn::Min(hn::Set(d, high), hn::Max(hn::Set(d, low), x));
#else
  // Elsewhere they return the number.
  const V above = hn::IfThenElse(hn::Lt(x, hn::Set(d, low)), hn::Set(d, low), x);
  return hn::IfThenElse(hn::Gt(above, hn::Set(d, high)), hn::Set(d, high), above);
#endif
}

/// 2^x. Error below 2 ulp for results above 2^-125, smaller ones may become 0; exactly 0 for -inf, infinity
/// for x >= 128 (some targets: 127.5), NaN stays NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2_of(D d, V x) {
  x = clamp(d, x, -160.0f, 128.0f);
  const V n = hn::Round(x);
  return scale_by_power(d, exp2_fraction(d, hn::Sub(x, n)), n);
}

/// e^x, with the same limits as exp2_of.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp_of(D d, V x) {
  x = clamp(d, x, -110.0f, 88.7228394f);
  const V n = hn::Round(hn::Mul(x, hn::Set(d, kLog2E)));
  // ln 2 in two parts, the first with so few bits that n times it is exact.
  V r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  return scale_by_power(d, exp2_fraction(d, hn::Mul(r, hn::Set(d, kLog2E))), n);
}

/// tanh x, relative error a few ulp everywhere: an odd polynomial near zero, where 1 - 2 / (e^2x + 1) would
/// cancel.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V tanh_of(D d, V x) {
  const V one = hn::Set(d, 1.0f), two = hn::Set(d, 2.0f);
  const V z = hn::Mul(x, x);
  V p = hn::MulAdd(hn::Set(d, -0.00627423963f), z, hn::Set(d, 0.0210716799f));
  p = hn::MulAdd(p, z, hn::Set(d, -0.0538523085f));
  p = hn::MulAdd(p, z, hn::Set(d, 0.13332586f));
  p = hn::MulAdd(p, z, hn::Set(d, -0.333333164f));
  const V small = hn::MulAdd(hn::Mul(p, z), x, x);
  const V large = hn::Sub(one, hn::Div(two, hn::Add(exp_of(d, hn::Mul(two, hn::Abs(x))), one)));
  return hn::IfThenElse(hn::Lt(hn::Abs(x), hn::Set(d, 0.55f)), small, hn::CopySign(large, x));
}

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif

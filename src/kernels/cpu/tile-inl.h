// SPDX-License-Identifier: Apache-2.0
// Packing and register-blocked products of small f32 tiles. Included once per SIMD target.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "fovea/core/dtype.h"
#include "hwy/highway.h"
#include "kernels/cpu/exp-inl.h"

#if defined(FOVEA_KERNELS_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_TILE_INL_H_
#undef FOVEA_KERNELS_CPU_TILE_INL_H_
#else
#define FOVEA_KERNELS_CPU_TILE_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {

using Floats = hn::ScalableTag<float>;
using FloatVector = hn::Vec<Floats>;
inline constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(Floats()));

// Shape of the register block: kBlockVectors vectors of columns, and as many rows as leave registers for one
// row of B and a broadcast.
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3) || HWY_ARCH_ARM_A64
inline constexpr int kBlockVectors = 4;
constexpr int block_rows(int vectors) { return vectors == 4 ? 6 : 8; }
#else
inline constexpr int kBlockVectors = 2;
constexpr int block_rows(int vectors) { return vectors == 2 ? 6 : 8; }
#endif

/// Columns of one packed panel.
inline constexpr int64_t kPanel = kBlockVectors * kLanes;

constexpr int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// ---- loading rows of any float type ----

HWY_INLINE FloatVector load_floats(const float* from) { return hn::LoadU(Floats(), from); }
HWY_INLINE FloatVector load_floats(const Half* from) {
  const Floats d;
#if HWY_ARCH_X86 && HWY_TARGET >= HWY_SSE4
  // Before F16C, Highway's conversions know no infinity and truncate.
  HWY_ALIGN float result[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) result[i] = to_float(from[i]);
  return hn::Load(d, result);
#else
  const hn::Rebind<hwy::float16_t, Floats> half;
  return hn::PromoteTo(d, hn::LoadU(half, reinterpret_cast<const hwy::float16_t*>(from)));
#endif
}
HWY_INLINE FloatVector load_floats(const BFloat16* from) {
  const Floats d;
  const hn::RebindToUnsigned<Floats> bits;
  const hn::Rebind<uint16_t, Floats> narrow;
  const auto raw = hn::LoadU(narrow, reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(bits, raw)));
}

/// to[0..count) = factor * from, to[count..padded) = 0. `padded` is a multiple of kLanes or equals count.
template <typename T>
HWY_INLINE void load_row(const T* HWY_RESTRICT from, int64_t count, float factor, float* HWY_RESTRICT to,
                         int64_t padded) {
  const Floats d;
  const auto f = hn::Set(d, factor);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) hn::StoreU(hn::Mul(f, load_floats(from + i)), d, to + i);
  if (i < count) {
    HWY_ALIGN T tail[kLanes] = {};
    HWY_ALIGN float result[kLanes];
    std::memcpy(tail, from + i, static_cast<size_t>(count - i) * sizeof(T));
    hn::Store(hn::Mul(f, load_floats(tail)), d, result);
    std::memcpy(to + i, result, static_cast<size_t>(std::min(kLanes, padded - i)) * sizeof(float));
    i += kLanes;
  }
  for (; i < padded; i += kLanes) hn::StoreU(hn::Zero(d), d, to + i);
}

/// The same for a type known at run time.
HWY_INLINE void load_row(const void* from, DType dtype, int64_t count, float factor, float* to,
                         int64_t padded) {
  if (dtype == DType::f32)
    load_row(static_cast<const float*>(from), count, factor, to, padded);
  else if (dtype == DType::f16)
    load_row(static_cast<const Half*>(from), count, factor, to, padded);
  else
    load_row(static_cast<const BFloat16*>(from), count, factor, to, padded);
}

// ---- storing rows of any float type, rounded to nearest even ----

HWY_INLINE void store_floats(FloatVector x, float* to) { hn::StoreU(x, Floats(), to); }
HWY_INLINE void store_floats(FloatVector x, Half* to) {
#if HWY_ARCH_X86 && HWY_TARGET >= HWY_SSE4
  HWY_ALIGN float values[kLanes];
  hn::Store(x, Floats(), values);
  for (int64_t i = 0; i < kLanes; ++i) to[i] = to_half(values[i]);
#else
  const hn::Rebind<hwy::float16_t, Floats> half;
  hn::StoreU(hn::DemoteTo(half, x), half, reinterpret_cast<hwy::float16_t*>(to));
#endif
}
HWY_INLINE void store_floats(FloatVector x, BFloat16* to) {
  const hn::RebindToUnsigned<Floats> bits;
  const hn::RebindToSigned<Floats> wide;
  const hn::Rebind<uint16_t, Floats> narrow;
  const auto raw = hn::BitCast(bits, x);
  const auto odd = hn::And(hn::ShiftRight<16>(raw), hn::Set(bits, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(raw, hn::Add(odd, hn::Set(bits, 0x7FFF))));
  const auto nan = hn::Or(hn::ShiftRight<16>(raw), hn::Set(bits, 0x40));
  const auto result = hn::IfThenElse(hn::RebindMask(bits, hn::IsNaN(x)), nan, rounded);
  hn::StoreU(hn::DemoteTo(narrow, hn::BitCast(wide, result)), narrow, reinterpret_cast<uint16_t*>(to));
}

/// to[0..count) = factor * from; `from` is readable up to the next multiple of kLanes.
template <typename T>
HWY_INLINE void store_row(const float* HWY_RESTRICT from, int64_t count, float factor, T* HWY_RESTRICT to) {
  const Floats d;
  const auto f = hn::Set(d, factor);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_floats(hn::Mul(f, hn::LoadU(d, from + i)), to + i);
  if (i < count) {
    HWY_ALIGN T tail[kLanes];
    store_floats(hn::Mul(f, hn::LoadU(d, from + i)), tail);
    std::memcpy(to + i, tail, static_cast<size_t>(count - i) * sizeof(T));
  }
}

/// The same for a type known at run time.
HWY_INLINE void store_row(const float* from, int64_t count, float factor, void* to, DType dtype) {
  if (dtype == DType::f32)
    store_row(from, count, factor, static_cast<float*>(to));
  else if (dtype == DType::f16)
    store_row(from, count, factor, static_cast<Half*>(to));
  else
    store_row(from, count, factor, static_cast<BFloat16*>(to));
}

// ---- sums of lanes ----

#if HWY_TARGET != HWY_SCALAR
/// to[0..4) = the 128-bit blocks of v, reduced by `combine`.
template <class D, class Combine>
HWY_INLINE void reduce_blocks(D d, hn::Vec<D> v, const Combine& combine, float* to) {
  if constexpr (hn::MaxLanes(D()) <= 4) {
    hn::StoreU(v, d, to);
  } else {
    const hn::Half<D> half;
    reduce_blocks(half, combine(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), combine, to);
  }
}
#endif

/// The lanes of four vectors, each reduced by `combine`, in the order given.
template <class Combine>
HWY_INLINE void reduce_four(const FloatVector (&v)[4], const Combine& combine, float* to) {
#if HWY_TARGET == HWY_SCALAR
  for (int i = 0; i < 4; ++i) to[i] = hn::GetLane(v[i]);
#else
  // Interleaved halves are combined twice; every 128-bit block then holds its share of the four results.
  const Floats d;
  const hn::RepartitionToWide<Floats> wide;
  const auto first =
      hn::BitCast(wide, combine(hn::InterleaveLower(d, v[0], v[1]), hn::InterleaveUpper(d, v[0], v[1])));
  const auto second =
      hn::BitCast(wide, combine(hn::InterleaveLower(d, v[2], v[3]), hn::InterleaveUpper(d, v[2], v[3])));
  reduce_blocks(d,
                combine(hn::BitCast(d, hn::InterleaveLower(wide, first, second)),
                        hn::BitCast(d, hn::InterleaveUpper(wide, first, second))),
                combine, to);
#endif
}

/// The sums of four vectors, in the order given.
HWY_INLINE void sum_four(const FloatVector (&v)[4], float* to) {
  reduce_four(
      v, [](auto a, auto b) HWY_ATTR { return hn::Add(a, b); }, to);
}
/// The largest lanes of four vectors without NaN.
HWY_INLINE void maximum_four(const FloatVector (&v)[4], float* to) {
  reduce_four(
      v, [](auto a, auto b) HWY_ATTR { return hn::Max(a, b); }, to);
}

// ---- packing ----

/// kLanes rows of `depth` values become `depth` vectors, one every `stride` floats: to[c * stride + r] =
/// rows[r][c]. Reads whole groups of four values: rows must be readable, and `to` writable, up to the next
/// multiple of 4.
HWY_INLINE void transpose_rows(const float* const* rows, int64_t depth, float* HWY_RESTRICT to,
                               int64_t stride) {
  const Floats d;
#if HWY_TARGET == HWY_SCALAR
  for (int64_t c = 0; c < depth; ++c) to[c * stride] = rows[0][c];
#else
  const hn::RepartitionToWide<Floats> wide;
  for (int64_t c = 0; c < depth; c += 4) {
    // Block b of vector r holds four values of row 4 b + r; a 4 x 4 transpose inside every block then leaves
    // the rows in order.
    FloatVector v[4];
    for (int r = 0; r < 4; ++r) {
      v[r] = hn::LoadDup128(d, rows[r] + c);
      if constexpr (kLanes > 4) {
        for (int64_t b = 1; b < kLanes / 4; ++b) {
          const auto first = hn::FirstN(d, static_cast<size_t>(4 * b));
          v[r] = hn::IfThenElse(first, v[r], hn::LoadDup128(d, rows[4 * b + r] + c));
        }
      }
    }
    const auto low01 = hn::BitCast(wide, hn::InterleaveLower(d, v[0], v[1]));
    const auto low23 = hn::BitCast(wide, hn::InterleaveLower(d, v[2], v[3]));
    const auto high01 = hn::BitCast(wide, hn::InterleaveUpper(d, v[0], v[1]));
    const auto high23 = hn::BitCast(wide, hn::InterleaveUpper(d, v[2], v[3]));
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(wide, low01, low23)), d, to + c * stride);
    hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(wide, low01, low23)), d, to + (c + 1) * stride);
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(wide, high01, high23)), d, to + (c + 2) * stride);
    hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(wide, high01, high23)), d, to + (c + 3) * stride);
  }
#endif
}

// ---- C (=|+=) A B ----

/// Operands of a product of tiles with f32 results: A(r, k) = a[r * a_row + k * a_depth]; B and C are
/// row-major. An element is an f32, or a few narrow numbers that one instruction multiplies and adds.
template <typename Element>
struct ProductOf {
  const Element* a;
  int64_t a_row, a_depth;
  const Element* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  int64_t rows, depth;
  bool accumulate;
};
using Product = ProductOf<float>;

template <int kVectors, size_t... I>
HWY_INLINE void multiply_step(std::index_sequence<I...>, FloatVector* HWY_RESTRICT sum,
                              const FloatVector* HWY_RESTRICT row_of_b, const float* const* a, int64_t at) {
  ((sum[I] = hn::MulAdd(hn::Set(Floats(), a[I / kVectors][at]), row_of_b[I % kVectors], sum[I])), ...);
}

/// One register block: kRows x kVectors accumulators over the whole depth. Every element of C is one chain of
/// multiply-adds in ascending k, whatever the block it falls in.
template <int kRows, int kVectors>
HWY_INLINE void multiply_block(const Product& p, int64_t row) {
  const Floats d;
  constexpr auto kAll = std::make_index_sequence<kRows * kVectors>();
  FloatVector sum[kRows * kVectors];
  const float* a[kRows];
  float* c = p.c + row * p.c_stride;
  for (int r = 0; r < kRows; ++r) a[r] = p.a + (row + r) * p.a_row;
  if (p.accumulate) {
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v)
        sum[r * kVectors + v] = hn::LoadU(d, c + r * p.c_stride + v * kLanes);
  } else {
    for (int i = 0; i < kRows * kVectors; ++i) sum[i] = hn::Zero(d);
  }
  const float* b = p.b;
  int64_t at = 0;
  for (int64_t k = 0; k < p.depth; ++k, at += p.a_depth, b += p.b_stride) {
    FloatVector row_of_b[kVectors];
    for (int v = 0; v < kVectors; ++v) row_of_b[v] = hn::LoadU(d, b + v * kLanes);
    multiply_step<kVectors>(kAll, sum, row_of_b, a, at);
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sum[r * kVectors + v], d, c + r * p.c_stride + v * kLanes);
}

template <int kVectors, class AnyProduct>
HWY_NOINLINE void multiply_panel(const AnyProduct& p) {
  constexpr int kRows = block_rows(kVectors);
  int64_t row = 0;
  for (; row + kRows <= p.rows; row += kRows) multiply_block<kRows, kVectors>(p, row);
  for (; row + 4 <= p.rows; row += 4) multiply_block<4, kVectors>(p, row);
  if (row + 2 <= p.rows) multiply_block<2, kVectors>(p, row), row += 2;
  if (row < p.rows) multiply_block<1, kVectors>(p, row);
}

/// A product with B row-major and `columns` a multiple of kLanes: panels of at most kBlockVectors vectors.
template <class AnyProduct = Product>
HWY_INLINE void multiply(AnyProduct p, int64_t columns) {
  for (; columns >= kPanel; columns -= kPanel, p.b += kPanel, p.c += kPanel) multiply_panel<kBlockVectors>(p);
  switch (columns / kLanes) {
    case 1:
      return multiply_panel<1>(p);
    case 2:
      if constexpr (kBlockVectors > 2) multiply_panel<2>(p);
      return;
    case 3:
      if constexpr (kBlockVectors > 2) multiply_panel<3>(p);
      return;
    default:
      return;
  }
}

/// A product with B in panels of kPanel columns, one after another, each [depth][kPanel]; `columns` (a
/// multiple of kLanes) may end inside the last panel.
template <class AnyProduct = Product>
HWY_INLINE void multiply_panels(AnyProduct p, int64_t panel_size, int64_t columns) {
  p.b_stride = kPanel;
  for (; columns > 0; columns -= kPanel, p.b += panel_size, p.c += kPanel)
    multiply(p, std::min(columns, kPanel));
}

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif

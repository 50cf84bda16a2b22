// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "fovea/core/memory.h"
#include "fovea/core/thread_pool.h"
#include "kernels/cpu/dense_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/quantize.cc"
#include "hwy/foreach_target.h"
#include "kernels/cpu/e4m3-inl.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

using DF = hn::ScalableTag<float>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using DB = hn::Rebind<uint8_t, DF>;

/// Runs body(i, count) over [0, n) in whole vectors, then once more for the tail.
template <typename Body>
HWY_INLINE void for_vectors(int64_t n, Body body) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(DF()));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) body(i, lanes);
  if (i < n) body(i, n - i);
}

HWY_INLINE hn::Vec<DF> load(const float* x, int64_t count) {
  const DF d;
  if (count == static_cast<int64_t>(hn::Lanes(d))) return hn::LoadU(d, x);
  HWY_ALIGN float tail[hn::MaxLanes(d)] = {};
  std::copy_n(x, count, tail);
  return hn::Load(d, tail);
}

/// Nothing behind the `count` values is touched, not even with what was there: it may be another thread's.
HWY_INLINE void store(hn::Vec<DF> v, float* x, int64_t count) {
  const DF d;
  if (count == static_cast<int64_t>(hn::Lanes(d))) return hn::StoreU(v, d, x);
  HWY_ALIGN float tail[hn::MaxLanes(d)];
  hn::Store(v, d, tail);
  std::copy_n(tail, count, x);
}

/// Low bytes of u32 lanes.
HWY_INLINE void store_bytes(hn::Vec<DU> v, uint8_t* x, int64_t count) {
  const DB d;
  const auto bytes = hn::TruncateTo(d, v);
  if (count == static_cast<int64_t>(hn::Lanes(d))) {
    hn::StoreU(bytes, d, x);
    return;
  }
  HWY_ALIGN uint8_t tail[hn::MaxLanes(d)];
  hn::Store(bytes, d, tail);
  std::copy(tail, tail + count, x);
}

HWY_INLINE hn::Vec<DU> load_bytes(const uint8_t* x, int64_t count) {
  const DB d;
  if (count == static_cast<int64_t>(hn::Lanes(d))) return hn::PromoteTo(DU(), hn::LoadU(d, x));
  HWY_ALIGN uint8_t tail[hn::MaxLanes(d)] = {};
  std::copy(x, x + count, tail);
  return hn::PromoteTo(DU(), hn::Load(d, tail));
}

/// Largest magnitude of rows x [rows,n]; NaN counts for nothing, so that it stays local to its element.
float largest_magnitude(const float* x, int64_t stride, int64_t rows, int64_t n) {
  const DF d;
  auto best = hn::Zero(d);
  for (int64_t r = 0; r < rows; ++r)
    for_vectors(n, [&](int64_t i, int64_t count) HWY_ATTR {
      const auto a = hn::Abs(load(x + r * stride + i, count));
      best = hn::IfThenElse(hn::Gt(a, best), a, best);
    });
  return hn::GetLane(hn::MaxOfLanes(d, best));
}

float quantize_e4m3_block(const float* x, int64_t stride, int64_t rows, int64_t n, uint8_t* codes) {
  const float amax = largest_magnitude(x, stride, rows, n);
  const float quotient = amax / kE4m3Max;
  const float scale = quotient > 0 ? quotient : 1.0f;
  const auto divisor = hn::Set(DF(), scale);
  for (int64_t r = 0; r < rows; ++r)
    for_vectors(n, [&](int64_t i, int64_t count) HWY_ATTR {
      store_bytes(encode_e4m3(hn::Div(load(x + r * stride + i, count), divisor)), codes + r * n + i, count);
    });
  return scale;
}

void dequantize_e4m3_run(const uint8_t* codes, int64_t n, float scale, float* x) {
  const auto factor = hn::Set(DF(), scale);
  for_vectors(n, [&](int64_t i, int64_t count) HWY_ATTR {
    store(hn::Mul(decode_e4m3(load_bytes(codes + i, count)), factor), x + i, count);
  });
}

// ---- packed integers

/// Channels that are coded or decoded through one buffer on the stack: a whole number of bytes for any width.
constexpr int64_t kChunk = 512;

/// Bit stream of n <= kChunk codes. `codes` has room for, and may be read up to, n rounded up to a vector.
void pack(const uint8_t* codes, int64_t n, int bits, uint8_t* packed) {
  if (bits == 8) {
    std::copy(codes, codes + n, packed);
    return;
  }
  int64_t i = 0;
  if (bits == 2 || bits == 4) {
    const hn::ScalableTag<uint8_t> d8;
    const auto step = static_cast<int64_t>(hn::Lanes(d8));
    for (; i + step <= n; i += step) {
      const auto v = hn::LoadU(d8, codes + i);
      if (bits == 4) {
        const hn::Repartition<uint16_t, decltype(d8)> d16;
        const auto w = hn::BitCast(d16, v);
        const hn::Rebind<uint8_t, decltype(d16)> half;
        hn::StoreU(hn::TruncateTo(half, hn::Or(w, hn::ShiftRight<4>(w))), half, packed + i / 2);
      } else {
        const hn::Repartition<uint32_t, decltype(d8)> d32;
        const auto w = hn::BitCast(d32, v);
        const auto pairs = hn::Or(w, hn::ShiftRight<6>(w));
        const hn::Rebind<uint8_t, decltype(d32)> quarter;
        hn::StoreU(hn::TruncateTo(quarter, hn::Or(pairs, hn::ShiftRight<12>(pairs))), quarter,
                   packed + i / 4);
      }
    }
  }
  // Eight codes fill `bits` whole bytes.
  for (; i < n; i += 8) {
    uint32_t word = 0;
    const int64_t count = std::min<int64_t>(8, n - i);
    for (int64_t c = 0; c < count; ++c) word |= uint32_t{codes[i + c]} << (c * bits);
    uint8_t* out = packed + i * bits / 8;
    for (int64_t byte = 0; byte < (count * bits + 7) / 8; ++byte)
      out[byte] = static_cast<uint8_t>(word >> (8 * byte));
  }
}

void unpack(const uint8_t* packed, int64_t n, int bits, uint8_t* codes) {
  if (bits == 8) {
    std::copy(packed, packed + n, codes);
    return;
  }
  int64_t i = 0;
  if (bits == 2 || bits == 4) {
    const hn::ScalableTag<uint8_t> d8;
    const auto step = static_cast<int64_t>(hn::Lanes(d8));
    for (; i + step <= n; i += step) {
      if (bits == 4) {
        const hn::Repartition<uint16_t, decltype(d8)> d16;
        const auto w = hn::PromoteTo(d16, hn::LoadU(hn::Rebind<uint8_t, decltype(d16)>(), packed + i / 2));
        const auto spread = hn::And(hn::Or(w, hn::ShiftLeft<4>(w)), hn::Set(d16, 0x0F0F));
        hn::StoreU(hn::BitCast(d8, spread), d8, codes + i);
      } else {
        const hn::Repartition<uint32_t, decltype(d8)> d32;
        const auto w = hn::PromoteTo(d32, hn::LoadU(hn::Rebind<uint8_t, decltype(d32)>(), packed + i / 4));
        const auto halves = hn::Or(w, hn::ShiftLeft<12>(w));
        const auto spread = hn::And(hn::Or(halves, hn::ShiftLeft<6>(halves)), hn::Set(d32, 0x03030303u));
        hn::StoreU(hn::BitCast(d8, spread), d8, codes + i);
      }
    }
  }
  for (; i < n; i += 8) {
    uint32_t word = 0;
    const int64_t count = std::min<int64_t>(8, n - i);
    const uint8_t* in = packed + i * bits / 8;
    for (int64_t byte = 0; byte < (count * bits + 7) / 8; ++byte) word |= uint32_t{in[byte]} << (8 * byte);
    for (int64_t c = 0; c < count; ++c)
      codes[i + c] = static_cast<uint8_t>((word >> (c * bits)) & ((1u << bits) - 1));
  }
}

/// clip * min and clip * max. Out of line, so that no compiler fuses these products with the difference that
/// follows: the rule rounds them first.
HWY_NOINLINE void clipped_range(const float* x, int64_t n, float clip, float* low, float* high) {
  const DF d;
  auto least = hn::Set(d, x[0]), most = least;
  for_vectors(n, [&](int64_t i, int64_t count) HWY_ATTR {
    auto v = load(x + i, count);
    if (count < static_cast<int64_t>(hn::Lanes(d)))
      v = hn::IfThenElse(hn::FirstN(d, static_cast<size_t>(count)), v, most);
    least = hn::Min(least, v);
    most = hn::Max(most, v);
  });
  *low = clip * hn::GetLane(hn::MinOfLanes(d, least));
  *high = clip * hn::GetLane(hn::MaxOfLanes(d, most));
}

void quantize_row(const float* x, int64_t channels, int bits, int64_t group, float clip, uint8_t* codes,
                  float* scale, float* zero) {
  const DF d;
  const DI di;
  const auto levels = static_cast<float>((1 << bits) - 1);
  HWY_ALIGN uint8_t buffer[kChunk];
  int64_t filled = 0;
  for (int64_t g = 0; g < channels / group; ++g) {
    float low, high;
    clipped_range(x + g * group, group, clip, &low, &high);
    const float step = (high - low) / levels;
    const bool constant = step == 0;
    scale[g] = constant ? high : step;
    zero[g] = constant ? -1.0f : std::nearbyint(-low / step);
    const auto divisor = hn::Set(d, step), offset = hn::Set(d, zero[g]), largest = hn::Set(d, levels);
    for (int64_t begin = g * group; begin < (g + 1) * group;) {
      const int64_t length = std::min((g + 1) * group - begin, kChunk - filled);
      uint8_t* out = buffer + filled;
      if (constant)
        std::fill(out, out + length, uint8_t{0});
      else
        for_vectors(length, [&](int64_t i, int64_t count) HWY_ATTR {
          const auto level = hn::Add(hn::Round(hn::Div(load(x + begin + i, count), divisor)), offset);
          const auto clamped = hn::Min(hn::Max(level, hn::Zero(d)), largest);
          store_bytes(hn::BitCast(DU(), hn::ConvertTo(di, clamped)), out + i, count);
        });
      begin += length;
      filled += length;
      if (filled == kChunk || begin == channels) {
        pack(buffer, filled, bits, codes);
        codes += filled * bits / 8;
        filled = 0;
      }
    }
  }
}

void dequantize_row(const uint8_t* codes, const float* scale, const float* zero, int64_t channels, int bits,
                    int64_t group, float* x) {
  const DF d;
  HWY_ALIGN uint8_t buffer[kChunk];
  for (int64_t begin = 0; begin < channels; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, channels);
    unpack(codes + begin * bits / 8, end - begin, bits, buffer);
    for (int64_t g = begin / group; g * group < end; ++g) {
      const int64_t first = std::max(g * group, begin), last = std::min((g + 1) * group, end);
      const auto factor = hn::Set(d, scale[g]), offset = hn::Set(d, zero[g]);
      for_vectors(last - first, [&](int64_t i, int64_t count) HWY_ATTR {
        const auto level = hn::ConvertTo(d, hn::BitCast(DI(), load_bytes(buffer + first - begin + i, count)));
        store(hn::Mul(factor, hn::Sub(level, offset)), x + first + i, count);
      });
    }
  }
}

// x = factor * (code - offset) for n channels.
HWY_INLINE void expand(const uint8_t* codes, int64_t n, float factor, float offset, float* x) {
  const DF d;
  const DB bytes;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto f = hn::Set(d, factor), z = hn::Set(d, offset);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto level = hn::ConvertTo(d, hn::PromoteTo(DI(), hn::LoadU(bytes, codes + i)));
    hn::StoreU(hn::Mul(f, hn::Sub(level, z)), d, x + i);
  }
  for (; i < n; ++i) x[i] = factor * (static_cast<float>(codes[i]) - offset);
}

// Rows that lie one behind another are unpacked as one run of codes, and so are their scales.
void dequantize_rows(const AffineRows& rows, int64_t count, float* x) {
  const int64_t channels = rows.channels, group = rows.group, groups = channels / group;
  const bool dense = channels * rows.bits % 8 == 0 && rows.code_stride == channels * rows.bits / 8 &&
                     rows.scale_stride == 2 * groups * size_of(rows.scale_type);
  const int64_t step = dense ? std::max<int64_t>(1, 4096 / std::max<int64_t>(channels, 1)) : 1;
  thread_local memory::Buffer<float> wide;
  thread_local memory::Buffer<uint8_t> bytes;
  wide.reserve(2 * groups * step);
  bytes.reserve(channels * step);
  for (int64_t first = 0; first < count; first += step) {
    const int64_t run = std::min(step, count - first);
    const uint8_t* codes = rows.codes + first * rows.code_stride;
    const void* at = static_cast<const char*>(rows.scales) + first * rows.scale_stride;
    const auto* scales = static_cast<const float*>(at);
    if (rows.scale_type == DType::f16) {
      load_row(static_cast<const Half*>(at), 2 * groups * run, 1.0f, wide.data(), 2 * groups * run);
      scales = wide.data();
    }
    if (rows.bits != 8) {
      unpack(codes, channels * run, rows.bits, bytes.data());
      codes = bytes.data();
    }
    for (int64_t i = 0; i < run; ++i, scales += 2 * groups)
      for (int64_t g = 0; g < groups; ++g, codes += group, x += group)
        expand(codes, group, scales[g], scales[groups + g], x);
  }
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
namespace {

HWY_EXPORT(quantize_e4m3_block);
HWY_EXPORT(dequantize_e4m3_run);
HWY_EXPORT(quantize_row);
HWY_EXPORT(dequantize_row);
HWY_EXPORT(dequantize_rows);

/// Rows given to one task.
constexpr int64_t kRowsPerTask = 16;

void check_affine(int bits, int64_t group, int64_t channels) {
  require(bits == 2 || bits == 3 || bits == 4 || bits == 8, "quantize_affine: bits = ", bits,
          " is not one of 2, 3, 4, 8");
  require(group >= 1 && channels % group == 0, "quantize_affine: group = ", group, " does not divide ",
          channels, " channels");
}

int64_t packed_bytes(int64_t channels, int bits) { return (channels * bits + 7) / 8; }

Shape with_last(Shape shape, int64_t last) {
  shape[shape.rank() - 1] = last;
  return shape;
}

int64_t rows_of(const Tensor& x) { return x.dim(-1) == 0 ? 0 : x.size() / x.dim(-1); }

}  // namespace

uint8_t to_e4m3(float x) {
  if (std::isnan(x)) return 0x7F;
  const auto sign = static_cast<uint8_t>(std::signbit(x) ? 0x80 : 0);
  const float magnitude = std::min(std::fabs(x), 448.0f);
  if (magnitude < 0x1p-6f) return sign | static_cast<uint8_t>(std::nearbyint(magnitude * 0x1p9f));
  const auto bits = std::bit_cast<uint32_t>(magnitude);
  return sign | static_cast<uint8_t>(((bits + 0x7FFFFu + ((bits >> 20) & 1)) >> 20) - (120u << 3));
}

float from_e4m3(uint8_t code) {
  const uint32_t body = code & 0x7Fu;
  if (body == 0x7F) return std::numeric_limits<float>::quiet_NaN();
  return std::copysign(std::bit_cast<float>(body << 20) * 0x1p120f, (code & 0x80) != 0 ? -1.0f : 1.0f);
}

Fp8Blocks quantize_e4m3(const Tensor& any, int64_t block) {
  require(any.rank() == 4 && any.dtype() == DType::f32, "quantize_e4m3: x is ", any.describe(),
          ", expected f32 [B,H,T,D]");
  require(block >= 1, "quantize_e4m3: block = ", block, " is below 1");
  const Tensor x = cpu::with_dense_rows(any);
  const int64_t heads = x.dim(1), length = x.dim(2), dim = x.dim(3);
  const int64_t blocks = length == 0 ? 0 : 1 + (length - 1) / block;
  const Fp8Blocks result{Tensor::empty(x.shape(), DType::u8), Tensor::empty({x.dim(0), heads, blocks})};
  const auto* data = x.data<float>();
  auto* codes = result.codes.data<uint8_t>();
  auto* scales = result.scales.data<float>();
  parallel_for(x.dim(0) * heads * blocks, [&](int64_t task, int) {
    const int64_t head = task / blocks, begin = task % blocks * block;
    const int64_t rows = std::min(block, length - begin);
    scales[task] = HWY_DYNAMIC_DISPATCH(quantize_e4m3_block)(
        data + head / heads * x.stride(0) + head % heads * x.stride(1) + begin * x.stride(2), x.stride(2),
        rows, dim, codes + (head * length + begin) * dim);
  });
  return result;
}

Tensor dequantize_e4m3(const Fp8Blocks& blocks, int64_t block) {
  const Tensor codes = blocks.codes.contiguous(), scales = blocks.scales.contiguous();
  require(codes.rank() == 4 && codes.dtype() == DType::u8, "dequantize_e4m3: codes are ", codes.describe(),
          ", expected u8 [B,H,T,D]");
  const int64_t length = codes.dim(2), dim = codes.dim(3);
  const int64_t count = length == 0 ? 0 : 1 + (length - 1) / std::max<int64_t>(block, 1);
  require(block >= 1 && scales.dtype() == DType::f32 &&
              scales.shape() == Shape{codes.dim(0), codes.dim(1), count},
          "dequantize_e4m3: scales are ", scales.describe(), ", expected one per ", block, " rows of codes ",
          codes.describe());
  const Tensor x = Tensor::empty(codes.shape());
  parallel_for(scales.size(), [&](int64_t task, int) {
    const int64_t begin = task % count * block, rows = std::min(block, length - begin);
    const int64_t offset = (task / count * length + begin) * dim;
    HWY_DYNAMIC_DISPATCH(dequantize_e4m3_run)
    (codes.data<uint8_t>() + offset, rows * dim, scales.data<float>()[task], x.data<float>() + offset);
  });
  return x;
}

AffineBlocks quantize_affine(const Tensor& any, int bits, int64_t group, float clip) {
  require(any.rank() >= 1 && any.dtype() == DType::f32, "quantize_affine: x is ", any.describe(),
          ", expected f32 [...,N]");
  const Tensor x = any.contiguous();
  const int64_t channels = x.dim(-1), rows = rows_of(x);
  check_affine(bits, group, channels);
  const int64_t bytes = packed_bytes(channels, bits), groups = channels / group;
  const AffineBlocks result{Tensor::empty(with_last(x.shape(), bytes), DType::u8),
                            Tensor::empty(with_last(x.shape(), groups)),
                            Tensor::empty(with_last(x.shape(), groups))};
  parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    for (int64_t r = task * kRowsPerTask; r < std::min(rows, (task + 1) * kRowsPerTask); ++r)
      HWY_DYNAMIC_DISPATCH(quantize_row)
    (x.data<float>() + r * channels, channels, bits, group, clip, result.codes.data<uint8_t>() + r * bytes,
     result.scale.data<float>() + r * groups, result.zero.data<float>() + r * groups);
  });
  return result;
}

Tensor dequantize_affine(const AffineBlocks& blocks, int bits, int64_t group, int64_t channels) {
  check_affine(bits, group, channels);
  const Tensor codes = blocks.codes.contiguous(), scale = blocks.scale.contiguous(),
               zero = blocks.zero.contiguous();
  const int64_t bytes = packed_bytes(channels, bits), groups = channels / group;
  require(codes.rank() >= 1 && codes.dtype() == DType::u8 && codes.dim(-1) == bytes &&
              scale.dtype() == DType::f32 && scale.shape() == with_last(codes.shape(), groups) &&
              zero.dtype() == DType::f32 && zero.shape() == scale.shape(),
          "dequantize_affine: codes ", codes.describe(), ", scale ", scale.describe(), " and zero ",
          zero.describe(), " do not hold rows of ", channels, " channels in ", bits, " bits and groups of ",
          group);
  const Tensor x = Tensor::empty(with_last(codes.shape(), channels));
  const int64_t rows = rows_of(x);
  parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    for (int64_t r = task * kRowsPerTask; r < std::min(rows, (task + 1) * kRowsPerTask); ++r)
      HWY_DYNAMIC_DISPATCH(dequantize_row)
    (codes.data<uint8_t>() + r * bytes, scale.data<float>() + r * groups, zero.data<float>() + r * groups,
     channels, bits, group, x.data<float>() + r * channels);
  });
  return x;
}

void quantize_affine_row(const float* x, int64_t channels, int bits, int64_t group, float clip,
                         uint8_t* codes, float* scale, float* zero) {
  HWY_DYNAMIC_DISPATCH(quantize_row)(x, channels, bits, group, clip, codes, scale, zero);
}

void dequantize_affine_row(const uint8_t* codes, const float* scale, const float* zero, int64_t channels,
                           int bits, int64_t group, float* x) {
  HWY_DYNAMIC_DISPATCH(dequantize_row)(codes, scale, zero, channels, bits, group, x);
}

void dequantize_affine_rows(const AffineRows& rows, int64_t count, float* x) {
  require(rows.scale_type == DType::f32 || rows.scale_type == DType::f16,
          "dequantize_affine_rows: scales are ", name_of(rows.scale_type), ", expected f32 or f16");
  HWY_DYNAMIC_DISPATCH(dequantize_rows)(rows, count, x);
}

}  // namespace fovea::kernels
#endif  // HWY_ONCE

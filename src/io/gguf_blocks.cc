// SPDX-License-Identifier: Apache-2.0
#include "fovea/io/gguf_blocks.h"

#include <algorithm>
#include <cstring>

#include "fovea/core/dtype.h"
#include "fovea/core/error.h"
#include "fovea/core/thread_pool.h"

namespace fovea::io {
namespace {

template <typename T>
T load(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

float load_half(const std::byte* bytes) { return to_float(Half{load<uint16_t>(bytes)}); }

uint8_t low(std::byte b) { return static_cast<uint8_t>(b) & 15; }
uint8_t high(std::byte b) { return static_cast<uint8_t>(b) >> 4; }
uint8_t bits_at(std::byte b, int shift, int mask) {
  return static_cast<uint8_t>((static_cast<uint8_t>(b) >> shift) & mask);
}

// 32 four-bit codes in 16 bytes: the low halves are the first 16 values, the high halves the others.
void unpack_halves(const std::byte* bytes, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = low(bytes[i]);
    codes[i + 16] = high(bytes[i]);
  }
}

// The fifth bits of 32 codes, one word.
void add_fifth_bits(const std::byte* bytes, uint8_t* codes) {
  const auto word = load<uint32_t>(bytes);
  for (int i = 0; i < 32; ++i) codes[i] = static_cast<uint8_t>(codes[i] | ((word >> i) & 1u) << 4);
}

// Eight six-bit scales and eight six-bit minima in 12 bytes. The first four of each are the low six bits of
// bytes 0-3 and 4-7; the others have their low four bits in bytes 8-11 and their high two in the top of bytes
// 0-7.
//     value = d * scale_i * code - d_min * minimum_i
void unpack_six_bit_scales(const std::byte* bytes, float d, float d_min, GgufBlock& block) {
  for (int i = 0; i < 4; ++i) {
    const int scale = bits_at(bytes[i], 0, 63), minimum = bits_at(bytes[i + 4], 0, 63);
    const int scale_high = low(bytes[i + 8]) | bits_at(bytes[i], 6, 3) << 4;
    const int minimum_high = high(bytes[i + 8]) | bits_at(bytes[i + 4], 6, 3) << 4;
    block.scale[i] = d * static_cast<float>(scale);
    block.minimum[i] = -d_min * static_cast<float>(minimum);
    block.scale[i + 4] = d * static_cast<float>(scale_high);
    block.minimum[i + 4] = -d_min * static_cast<float>(minimum_high);
  }
}

// 256 codes in four runs of 32 bytes: a run's low halves are 32 values, its high halves the next 32.
void unpack_runs(const std::byte* bytes, uint8_t* codes) {
  for (int run = 0; run < 4; ++run)
    for (int i = 0; i < 32; ++i) {
      codes[run * 64 + i] = low(bytes[run * 32 + i]);
      codes[run * 64 + 32 + i] = high(bytes[run * 32 + i]);
    }
}

// Bytes: 128 of low halves, 64 of high bit pairs, 16 signed scales, d. Each half of the block holds four runs
// of 32 values; run r has its low four bits in half r/2 of bytes 32 (r%2) .., its high two at bit 2 r.
void unpack_q6_k(const std::byte* bytes, GgufBlock& block) {
  const float d = load_half(bytes + 208);
  for (int i = 0; i < 16; ++i) {
    block.scale[i] = d * static_cast<float>(load<int8_t>(bytes + 192 + i));
    block.minimum[i] = 0;
  }
  for (int half = 0; half < 2; ++half) {
    const std::byte* lows = bytes + half * 64;
    const std::byte* highs = bytes + 128 + half * 32;
    for (int run = 0; run < 4; ++run)
      for (int i = 0; i < 32; ++i)
        block.codes[half * 128 + run * 32 + i] = static_cast<uint8_t>(
            bits_at(lows[run % 2 * 32 + i], run / 2 * 4, 15) | bits_at(highs[i], run * 2, 3) << 4);
  }
}

template <typename T>
void convert(const std::byte* bytes, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const T value = load<T>(bytes + i * static_cast<int64_t>(sizeof(T)));
    if constexpr (std::is_integral_v<T>)
      out[i] = static_cast<float>(value);
    else
      out[i] = to_float(value);
  }
}

void dequantize_blocks(GgufType type, const std::byte* bytes, int64_t count, float* out) {
  const GgufLayout& layout = layout_of(type);
  const auto bias = static_cast<float>(layout.bias);
  GgufBlock block;
  for (int64_t at = 0; at < count; at += layout.block, bytes += layout.bytes) {
    unpack_block(type, bytes, block);
    for (int64_t i = 0; i < layout.block; ++i)
      out[at + i] = block.scale[i / layout.group] * (static_cast<float>(block.codes[i]) - bias) +
                    block.minimum[i / layout.group];
  }
}

void dequantize_run(GgufType type, const std::byte* bytes, int64_t count, float* out) {
  switch (type) {
    case GgufType::f32:
      return convert<float>(bytes, count, out);
    case GgufType::f16:
      return convert<Half>(bytes, count, out);
    case GgufType::bf16:
      return convert<BFloat16>(bytes, count, out);
    case GgufType::i8:
      return convert<int8_t>(bytes, count, out);
    case GgufType::i16:
      return convert<int16_t>(bytes, count, out);
    case GgufType::i32:
      return convert<int32_t>(bytes, count, out);
    case GgufType::i64:
      return convert<int64_t>(bytes, count, out);
    default:
      return dequantize_blocks(type, bytes, count, out);
  }
}

}  // namespace

const GgufLayout& layout_of(GgufType type) {
  static constexpr GgufLayout kLayouts[] = {
      {"F32", 1, 4},
      {"F16", 1, 2},
      {"BF16", 1, 2},
      {"Q4_0", 32, 18, 32, 4, 8},
      {"Q4_1", 32, 20, 32, 4, 0},
      {"Q5_0", 32, 22, 32, 8, 16},
      {"Q5_1", 32, 24, 32, 8, 0},
      {"Q8_0", 32, 34, 32, 8, 128},
      {"Q4_K", 256, 144, 32, 4, 0},
      {"Q5_K", 256, 176, 32, 8, 0},
      {"Q6_K", 256, 210, 16, 8, 32},
      {"I8", 1, 1},
      {"I16", 1, 2},
      {"I32", 1, 4},
      {"I64", 1, 8},
  };
  return kLayouts[static_cast<size_t>(type)];
}

void unpack_block(GgufType type, const std::byte* bytes, GgufBlock& block) {
  block.minimum[0] = 0;
  switch (type) {
    case GgufType::q4_0:  // d, halves
      block.scale[0] = load_half(bytes);
      return unpack_halves(bytes + 2, block.codes);
    case GgufType::q4_1:  // d, minimum, halves
      block.scale[0] = load_half(bytes);
      block.minimum[0] = load_half(bytes + 2);
      return unpack_halves(bytes + 4, block.codes);
    case GgufType::q5_0:  // d, fifth bits, halves
      block.scale[0] = load_half(bytes);
      unpack_halves(bytes + 6, block.codes);
      return add_fifth_bits(bytes + 2, block.codes);
    case GgufType::q5_1:  // d, minimum, fifth bits, halves
      block.scale[0] = load_half(bytes);
      block.minimum[0] = load_half(bytes + 2);
      unpack_halves(bytes + 8, block.codes);
      return add_fifth_bits(bytes + 4, block.codes);
    case GgufType::q8_0:  // d, signed bytes
      block.scale[0] = load_half(bytes);
      for (int i = 0; i < 32; ++i) block.codes[i] = static_cast<uint8_t>(load<int8_t>(bytes + 2 + i) + 128);
      return;
    case GgufType::q4_k:  // d, d_min, scales, runs
      unpack_six_bit_scales(bytes + 4, load_half(bytes), load_half(bytes + 2), block);
      return unpack_runs(bytes + 16, block.codes);
    case GgufType::q5_k:  // d, d_min, scales, fifth bits (bit r of byte i: value 32 r + i), runs
      unpack_six_bit_scales(bytes + 4, load_half(bytes), load_half(bytes + 2), block);
      unpack_runs(bytes + 48, block.codes);
      for (int i = 0; i < 256; ++i)
        block.codes[i] = static_cast<uint8_t>(block.codes[i] | bits_at(bytes[16 + i % 32], i / 32, 1) << 4);
      return;
    case GgufType::q6_k:
      return unpack_q6_k(bytes, block);
    default:
      FOVEA_ASSERT(!"a quantised type");
  }
}

void dequantize_gguf(GgufType type, const std::byte* bytes, int64_t count, float* out) {
  const GgufLayout& layout = layout_of(type);
  require(count >= 0 && count % layout.block == 0, "dequantize_gguf: ", count,
          " values are not whole blocks of ", layout.name, " (", layout.block, " values)");
  constexpr int64_t kRun = 1 << 14;
  if (count <= kRun) return dequantize_run(type, bytes, count, out);
  parallel_for((count + kRun - 1) / kRun, [&](int64_t task, int) {
    const int64_t first = task * kRun;
    dequantize_run(type, bytes + first / layout.block * layout.bytes, std::min(kRun, count - first),
                   out + first);
  });
}

}  // namespace fovea::io

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "fovea/io/gguf.h"

/// The block formats of GGUF. Every quantised one is read as the same three things: unsigned codes, and per
/// group of them a scale and a minimum, so that
///
///     value = scale * (code - bias) + minimum
namespace fovea::io {

/// Layout of one type. Plain types are blocks of one value; their `bits` is 0.
struct GgufLayout {
  std::string_view name;
  int64_t block = 1;  ///< values per block
  int64_t bytes = 0;  ///< bytes per block
  int64_t group = 0;  ///< values that share a scale
  int bits = 0;       ///< bits an AffineWeight gives to a code: 4 or 8
  int bias = 0;
};

const GgufLayout& layout_of(GgufType type);

inline constexpr int kLargestBlock = 256;

struct GgufBlock {
  uint8_t codes[kLargestBlock];
  float scale[kLargestBlock / 16];
  float minimum[kLargestBlock / 16];
};

/// Unpacks one block of a quantised type; `bytes` may be unaligned.
void unpack_block(GgufType type, const std::byte* bytes, GgufBlock& block);

}  // namespace fovea::io

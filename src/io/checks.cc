// SPDX-License-Identifier: Apache-2.0
#include "fovea/io/checks.h"

#include <algorithm>

namespace fovea::io {

std::string quote(std::string_view name) {
  constexpr size_t kLongest = 120;
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string text = "'";
  for (const char c : name.substr(0, kLongest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f)
      text += c;
    else
      text += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
  }
  return text + (name.size() > kLongest ? "...'" : "'");
}

std::optional<int64_t> byte_count(const Shape& shape, int64_t block_bytes, int64_t block) {
  // Strides multiply the other sizes of an empty tensor too, so these must not overflow either.
  int64_t count = 1;
  for (const int64_t size : shape)
    if (size < 0 || __builtin_mul_overflow(count, std::max<int64_t>(size, 1), &count)) return std::nullopt;
  int64_t bytes = 0;
  if (__builtin_mul_overflow(count / block, block_bytes, &bytes)) return std::nullopt;
  return std::find(shape.begin(), shape.end(), 0) == shape.end() ? bytes : 0;
}

}  // namespace fovea::io

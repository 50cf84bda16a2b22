// SPDX-License-Identifier: Apache-2.0
#include "fovea/io/quote.h"

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

}  // namespace fovea::io

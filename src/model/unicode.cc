// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/unicode.h"

#include <algorithm>
#include <array>

namespace fovea::model {
namespace {

uint8_t byte_at(std::string_view text, size_t at) { return static_cast<uint8_t>(text[at]); }

bool continues(std::string_view text, size_t at) {
  return at < text.size() && (byte_at(text, at) & 0xc0) == 0x80;
}

void append_utf8(uint32_t point, std::string& out) {
  const auto tail = [&](int shift) { return static_cast<char>(0x80 | (point >> shift & 63)); };
  if (point < 0x80)
    out += static_cast<char>(point);
  else if (point < 0x800)
    out += {static_cast<char>(0xc0 | point >> 6), tail(0)};
  else if (point < 0x10000)
    out += {static_cast<char>(0xe0 | point >> 12), tail(6), tail(0)};
  else
    out += {static_cast<char>(0xf0 | point >> 18), tail(12), tail(6), tail(0)};
}

constexpr uint32_t kReplacement = 0xfffd;
constexpr uint8_t kBeyondLead = 0xf8;  // from here on no byte starts a character

// The code point at `at`, and its length there; a stray byte is a replacement of length 1.
uint32_t take_point(std::string_view text, size_t at, size_t& length) {
  const uint8_t first = byte_at(text, at);
  length = utf8_length(text[at]);
  if (first < 0x80) return first;
  bool valid = length > 1 && first < kBeyondLead;
  uint32_t point = first & (0x7fu >> length);
  for (size_t i = 1; valid && i < length; ++i) {
    valid = continues(text, at + i);
    if (valid) point = point << 6 | (byte_at(text, at + i) & 63u);
  }
  if (valid && point <= 0x10ffff) return point;
  length = 1;
  return kReplacement;
}

struct Spelling {
  std::array<std::string, 256> of_byte;
  std::array<int, 0x144> byte_of{};  // by code point; -1 where the character spells none

  Spelling() {
    byte_of.fill(-1);
    uint32_t next = 0x100;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
      const uint32_t point = printable ? byte : next++;
      append_utf8(point, of_byte[byte]);
      byte_of[point] = static_cast<int>(byte);
    }
  }
};

const Spelling& spelling() {
  static const Spelling table;
  return table;
}

}  // namespace

size_t utf8_length(char first) {
  const auto byte = static_cast<uint8_t>(first);
  return byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
}

std::string repair_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0, length = 0; at < text.size(); at += length)
    append_utf8(take_point(text, at, length), out);
  return out;
}

size_t complete_utf8(std::string_view text) {
  for (size_t back = 1; back <= std::min<size_t>(3, text.size()); ++back) {
    const size_t at = text.size() - back;
    if (continues(text, at)) continue;
    return utf8_length(text[at]) > back && byte_at(text, at) < kBeyondLead ? at : text.size();
  }
  return text.size();
}

const std::string& byte_spelling(uint8_t byte) { return spelling().of_byte[byte]; }

std::string bytes_of_spelling(std::string_view token) {
  const auto& byte_of = spelling().byte_of;
  std::string out;
  for (size_t at = 0, length = 0; at < token.size(); at += length) {
    const uint32_t point = take_point(token, at, length);
    if (point < byte_of.size() && byte_of[point] >= 0)
      out += static_cast<char>(byte_of[point]);
    else
      out += token.substr(at, length);
  }
  return out;
}

}  // namespace fovea::model

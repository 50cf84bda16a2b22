// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace fovea::model {

/// Bytes of a UTF-8 character by the top half of its first byte, 1 where that byte continues one.
size_t utf8_length(char first);

/// Text as tokenizers of the llama.cpp family see it: each byte that belongs to no character becomes U+FFFD,
/// over-long forms become the character they stand for, surrogates stay. Valid UTF-8 is unchanged.
std::string repair_utf8(std::string_view text);

/// Length of the longest prefix that does not end within a character.
size_t complete_utf8(std::string_view text);

/// Byte-level vocabularies spell every byte as one printable character: printable Latin-1 as itself, the
/// other 68 bytes as U+0100 upwards.
const std::string& byte_spelling(uint8_t byte);
/// The bytes that a token so spelt stands for; characters that spell no byte are kept.
std::string bytes_of_spelling(std::string_view token);

}  // namespace fovea::model

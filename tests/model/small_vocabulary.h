// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "fovea/model/tokenizer.h"
#include "fovea/model/unicode.h"
#include "io/gguf_builder.h"

/// Vocabularies small enough to work out by hand.
namespace fovea::model {

/// Byte-level: ids 0-255 are the bytes, except that byte 4 has no token (id 4 is unused); then the results of
/// the merges below in their order; then "<|im_start|>", "<|im_end|>" (control, begin and end) and "<tool>"
/// (user defined).
inline const std::vector<std::string> kSmallMerges = {
    "h e", "l l", "he ll", "hell o", "\u0120 hello", "\u0120 \u0120", "1 2", "a a", "aa aa", "a b"};

inline Tokenizer small_byte_level(const std::string& pre = "gpt-2",
                                  const std::vector<std::string>& merges = kSmallMerges) {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(byte_spelling(static_cast<uint8_t>(byte)));
  tokens[4] = "no byte";
  for (const std::string& merge : merges) {
    const size_t space = merge.find(' ', 1);
    tokens.push_back(merge.substr(0, space) + merge.substr(space + 1));
  }
  std::vector<int32_t> kinds(tokens.size(), 1);
  kinds[4] = 5;
  const auto begin = static_cast<uint32_t>(tokens.size());
  tokens.insert(tokens.end(), {"<|im_start|>", "<|im_end|>", "<tool>"});
  kinds.insert(kinds.end(), {3, 3, 4});
  io::GgufBuilder builder;
  builder.head(0, 7)
      .entry("tokenizer.ggml.model", "gpt2")
      .entry("tokenizer.ggml.pre", pre)
      .entry("tokenizer.ggml.tokens", tokens)
      .entry("tokenizer.ggml.merges", merges)
      .entry("tokenizer.ggml.token_type", 5, kinds)
      .entry("tokenizer.ggml.bos_token_id", begin)
      .entry("tokenizer.ggml.eos_token_id", begin + 1);
  return Tokenizer::from_gguf(builder.parse());
}

/// SentencePiece: "<unk>", "<s>", "</s>", the 256 bytes (ids 3-258), then these, with their place as the
/// score.
inline const std::vector<std::string> kSmallPieces = {
    "\u2581", "h", "e", "l", "o", "he", "ll", "\u2581he", "llo", "\u2581hello", "\u00e9"};

inline Tokenizer small_sentencepiece() {
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<int32_t> kinds = {2, 3, 3};
  for (int byte = 0; byte < 256; ++byte) {
    constexpr std::string_view kHex = "0123456789ABCDEF";
    const auto index = static_cast<size_t>(byte);
    tokens.push_back({'<', '0', 'x', kHex[index / 16], kHex[index % 16], '>'});
    kinds.push_back(6);
  }
  tokens.insert(tokens.end(), kSmallPieces.begin(), kSmallPieces.end());
  kinds.resize(tokens.size(), 1);
  std::vector<float> scores;
  for (size_t i = 0; i < tokens.size(); ++i) scores.push_back(-static_cast<float>(i));
  io::GgufBuilder builder;
  builder.head(0, 4)
      .entry("tokenizer.ggml.model", "llama")
      .entry("tokenizer.ggml.tokens", tokens)
      .entry("tokenizer.ggml.token_type", 5, kinds)
      .entry("tokenizer.ggml.scores", 6, scores);
  return Tokenizer::from_gguf(builder.parse());
}

}  // namespace fovea::model

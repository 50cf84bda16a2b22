// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "fovea/model/bpe.h"
#include "fovea/model/pretokenizer.h"
#include "fovea/model/tokenizer.h"

namespace fovea::model {

/// What a token is for, with GGUF's numbers (tokenizer.ggml.token_type).
enum class TokenKind : int8_t {
  normal = 1,
  unknown = 2,
  control = 3,
  user_defined = 4,
  unused = 5,
  byte = 6
};

/// U+2581, which stands for a space in SentencePiece.
inline constexpr std::string_view kSpaceMark = "\xe2\x96\x81";

/// Everything a tokenizer knows, whichever file it came from.
struct Tokenizer::State {
  enum class Scheme { byte_level, sentencepiece };

  Scheme scheme = Scheme::byte_level;
  std::vector<std::string> tokens;
  std::vector<TokenKind> kinds;
  std::vector<float> scores;         // SentencePiece without merge rules
  MergeTable merges;                 // ids at and above tokens.size() are parts that are no tokens
  std::vector<std::string> parts;    // the texts of those
  std::array<int32_t, 256> bytes{};  // the token (or part) of a single byte
  Pretokenizer pretokenizer;         // byte-level only
  int32_t bos = -1, eos = -1, unknown = -1;
  bool add_bos = false, add_eos = false;
  bool space_before_text = false;   // "\u2581" or " " before text
  bool space_after_special = true;  // ... also where text follows a special token
  bool whole_words_first = false;   // a word that is a token needs no merge rules
  std::vector<int32_t> ends;        // tokens that end generation, sorted

  std::vector<int32_t> specials;  // all that are found in text before anything else, longest first
  std::vector<bool> strip_left, strip_right;  // per token: swallows white space beside it; empty: none does

  /// The token of this text, or nullptr.
  const int32_t* find(std::string_view text) const {
    const auto it = ids_.find(text);
    return it == ids_.end() || is_part(it->second) ? nullptr : &it->second;
  }
  bool is_part(int32_t id) const { return id >= static_cast<int32_t>(tokens.size()); }
  /// The id of a merge part, a fresh one where no token has this text.
  int32_t part(const std::string& text);
  bool is_control(int32_t id) const {
    const TokenKind kind = kinds[static_cast<size_t>(id)];
    return kind == TokenKind::control || kind == TokenKind::unknown;
  }

  /// The merge rule of rank `rank`, by the texts of its sides.
  void add_merge(const std::string& left, const std::string& right, size_t rank);
  /// To be called when `tokens` and `kinds` are complete, before any of the above.
  void index_tokens();
  /// To be called last: finds the byte tokens, the ends of generation and the order of the special tokens,
  /// and throws Error for ids or kinds that contradict the vocabulary.
  void finish();

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> ids_;
};

}  // namespace fovea::model

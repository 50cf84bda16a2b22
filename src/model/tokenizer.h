// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fovea/io/gguf.h"

namespace fovea::model {

/// Text to token ids and back: byte-level BPE (GPT-2, Llama 3, Qwen 2, SmolLM, ...) and the scored BPE of
/// SentencePiece (Llama 2, Mistral). Immutable and cheap to copy; all functions may be called from several
/// threads at once.
class Tokenizer {
 public:
  /// From the tokenizer.ggml.* metadata of a GGUF file. Throws Error for a tokenizer model or pre-tokenizer
  /// that Fovea does not have.
  static Tokenizer from_gguf(const io::GgufFile& file);
  /// From a Hugging Face tokenizer.json; `config`, when given, is the tokenizer_config.json that names the
  /// begin and end tokens.
  static Tokenizer from_json(const std::string& path, const std::string& config = "");

  /// Ids of `text`, any bytes. `add_special` adds the begin (and end) token where the model asks for it;
  /// `parse_special` lets control tokens written in the text ("<|im_end|>") become their ids: leave it off
  /// for text that users typed.
  std::vector<int32_t> encode(std::string_view text, bool add_special, bool parse_special) const;
  /// The bytes of `ids`, which may end within a UTF-8 character. `skip_special` leaves control tokens out.
  /// Throws Error for an id outside the vocabulary.
  std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;
  /// The bytes of one token within a text: decode() of the same id drops the space that SentencePiece puts
  /// before a text.
  std::string piece(int32_t id) const;

  /// -1 when the model has no such token.
  int32_t bos() const;
  int32_t eos() const;
  /// Tokens after which generation ends: eos, and the end of a turn where the vocabulary has one.
  bool ends_generation(int32_t id) const;
  bool is_special(int32_t id) const;
  /// The id of a token by its text in the vocabulary ("<|im_start|>").
  std::optional<int32_t> token_id(std::string_view text) const;
  /// A token's text as the vocabulary spells it; decode() gives its bytes.
  std::string_view token_text(int32_t id) const;
  int64_t vocabulary_size() const;

  struct State;

 private:
  explicit Tokenizer(std::shared_ptr<const State> state);
  std::shared_ptr<const State> state_;
};

/// Decodes ids one at a time and holds back the bytes of an incomplete UTF-8 character until the rest
/// arrives.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, bool skip_special = true)
      : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {}

  /// The text that `id` completes; often empty in the middle of an emoji.
  std::string push(int32_t id);
  /// What was still held back, as it is.
  std::string finish();

 private:
  Tokenizer tokenizer_;
  std::string held_;
  bool skip_special_;
};

}  // namespace fovea::model

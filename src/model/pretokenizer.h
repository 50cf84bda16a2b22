// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace fovea::model {

/// Cuts text into the words that byte-level BPE never merges across, with one regular expression after
/// another: each cuts every piece that the one before left. Throws Error when an expression does not compile,
/// or takes more steps on a text than any sensible one does.
class Pretokenizer {
 public:
  /// What becomes of a piece: its matches and the gaps between them each become pieces, or one kind is
  /// dropped.
  struct Stage {
    std::string expression;
    bool keep_matches = true;
    bool keep_gaps = true;
  };

  Pretokenizer() = default;
  explicit Pretokenizer(const std::vector<Stage>& stages);
  /// By the name GGUF files give (tokenizer.ggml.pre). Throws Error(unsupported) for one that Fovea lacks.
  static Pretokenizer named(std::string_view name);

  /// Views of `text`, which must have passed repair_utf8, in order; none is empty.
  std::vector<std::string_view> split(std::string_view text) const;

 private:
  struct Compiled;
  std::vector<std::shared_ptr<const Compiled>> stages_;
};

/// The expression of GPT-2, which tokenizer.json files imply without writing it.
extern const char* const kGpt2Expression;

}  // namespace fovea::model

// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/tokenizer.h"

#include <algorithm>
#include <utility>

#include "fovea/core/error.h"
#include "fovea/model/tokenizer_state.h"
#include "fovea/model/unicode.h"

namespace fovea::model {
namespace {

constexpr std::string_view kWhiteSpace = " \t\n\r\v\f";

// A stretch of text, or a special token found in it.
struct Fragment {
  std::string_view text;
  int32_t special = -1;
};

using State = Tokenizer::State;

// Cuts `special` out of every fragment of text that contains it.
std::vector<Fragment> cut_out(const State& state, const std::vector<Fragment>& fragments, int32_t special) {
  const auto index = static_cast<size_t>(special);
  const std::string& name = state.tokens[index];
  const bool strip_left = !state.strip_left.empty() && state.strip_left[index];
  const bool strip_right = !state.strip_right.empty() && state.strip_right[index];
  std::vector<Fragment> out;
  for (const Fragment& fragment : fragments) {
    std::string_view rest = fragment.text;
    for (size_t at; fragment.special < 0 && (at = rest.find(name)) != std::string_view::npos;) {
      std::string_view before = rest.substr(0, at);
      rest.remove_prefix(at + name.size());
      if (strip_left) before = before.substr(0, before.find_last_not_of(kWhiteSpace) + 1);
      if (strip_right) rest.remove_prefix(std::min(rest.find_first_not_of(kWhiteSpace), rest.size()));
      if (!before.empty()) out.push_back({before, -1});
      out.push_back({{}, special});
    }
    if (fragment.special >= 0 || !rest.empty()) out.push_back({rest, fragment.special});
  }
  return out;
}

// Longer names are cut out of the whole text before shorter ones are looked for.
std::vector<Fragment> fragments_of(const State& state, std::string_view text, bool parse_special) {
  std::vector<Fragment> fragments;
  if (!text.empty()) fragments.push_back({text, -1});
  for (const int32_t special : state.specials) {
    if (!parse_special && state.is_control(special)) continue;
    const std::string& name = state.tokens[static_cast<size_t>(special)];
    if (text.find(name) != std::string_view::npos) fragments = cut_out(state, fragments, special);
  }
  return fragments;
}

class Encoder {
 public:
  explicit Encoder(const State& state, std::vector<int32_t>& ids) : state_(state), ids_(ids) {}

  void byte_level(std::string_view fragment) {
    std::string text = repair_utf8(fragment);
    if (state_.space_before_text && !text.starts_with(' ')) text.insert(text.begin(), ' ');
    for (const std::string_view word : state_.pretokenizer.split(text)) {
      if (state_.whole_words_first && emit_whole(word)) continue;
      merger_.clear();
      for (size_t i = 0; i < word.size(); ++i)
        merger_.push(state_.bytes[static_cast<uint8_t>(word[i])], static_cast<uint32_t>(i), 1);
      merger_.run([&](const Symbol& a, const Symbol& b) { return state_.merges.find(a.id, b.id); });
      merger_.visit([&](const Symbol& symbol) { emit_part(symbol.id); });
    }
  }

  void sentencepiece(std::string_view fragment, bool space) {
    std::string text(space ? kSpaceMark : std::string_view());
    for (const char c : fragment)
      if (c == ' ')
        text += kSpaceMark;
      else
        text += c;
    merger_.clear();
    for (size_t i = 0, length; i < text.size(); i += length) {
      length = std::min(utf8_length(text[i]), text.size() - i);
      const int32_t* id = state_.find(std::string_view(text).substr(i, length));
      merger_.push(id != nullptr ? *id : -1, static_cast<uint32_t>(i), static_cast<uint32_t>(length));
    }
    if (state_.merges.empty())
      merger_.run([&](const Symbol& a, const Symbol& b) -> std::optional<Merge> {
        const int32_t* id = state_.find(std::string_view(text).substr(a.begin, a.length + b.length));
        if (id == nullptr) return std::nullopt;
        return Merge{-double{state_.scores[static_cast<size_t>(*id)]}, *id};
      });
    else
      merger_.run([&](const Symbol& a, const Symbol& b) { return state_.merges.find(a.id, b.id); });
    merger_.visit([&](const Symbol& symbol) {
      if (symbol.id >= 0 && !state_.is_part(symbol.id))
        ids_.push_back(symbol.id);
      else
        for (uint32_t i = 0; i < symbol.length; ++i) emit_byte(text[symbol.begin + i]);
    });
  }

 private:
  bool emit_whole(std::string_view word) {
    std::string spelt;
    for (const char c : word) spelt += byte_spelling(static_cast<uint8_t>(c));
    const int32_t* id = state_.find(spelt);
    if (id != nullptr) ids_.push_back(*id);
    return id != nullptr;
  }

  // A part that is no token falls apart into those of its characters that are; a vocabulary that lacks a byte
  // drops it, as llama.cpp does.
  void emit_part(int32_t id) {
    if (!state_.is_part(id)) return ids_.push_back(id);
    for (const char c : state_.parts[static_cast<size_t>(id) - state_.tokens.size()])
      if (const int32_t* single = state_.find({&c, 1})) ids_.push_back(*single);
  }

  void emit_byte(char c) {
    const int32_t id = state_.bytes[static_cast<uint8_t>(c)];
    if (id >= 0)
      ids_.push_back(id);
    else if (state_.unknown >= 0)
      ids_.push_back(state_.unknown);
  }

  const State& state_;
  std::vector<int32_t>& ids_;
  Merger merger_;
};

// Bytes of one token.
std::string piece_of(const State& state, int32_t id) {
  const std::string& text = state.tokens[static_cast<size_t>(id)];
  switch (state.kinds[static_cast<size_t>(id)]) {
    case TokenKind::normal:
      if (state.scheme == State::Scheme::byte_level) return bytes_of_spelling(text);
      break;
    case TokenKind::byte:  // "<0x0A>"
      return {static_cast<char>(std::stoi(text.substr(3, 2), nullptr, 16))};
    case TokenKind::unused:
      return {};
    default:
      return text;
  }
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const bool mark = std::string_view(text).substr(i).starts_with(kSpaceMark);
    out += mark ? ' ' : text[i];
    i += mark ? kSpaceMark.size() : 1;
  }
  return out;
}

void check_id(const State& state, int32_t id) {
  require(id >= 0 && !state.is_part(id), "token ", id, " is outside the vocabulary of ", state.tokens.size(),
          " tokens");
}

}  // namespace

Tokenizer::Tokenizer(std::shared_ptr<const State> state) : state_(std::move(state)) {}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special, bool parse_special) const {
  require(text.size() < size_t{1} << 30, "a text of ", text.size(), " bytes is too long to encode at once");
  std::vector<int32_t> ids;
  if (add_special && state_->add_bos) ids.push_back(state_->bos);
  Encoder encoder(*state_, ids);
  bool first = true, after_special = true;
  for (const Fragment& fragment : fragments_of(*state_, text, parse_special)) {
    if (fragment.special >= 0)
      ids.push_back(fragment.special);
    else if (state_->scheme == State::Scheme::byte_level)
      encoder.byte_level(fragment.text);
    else
      encoder.sentencepiece(fragment.text, state_->space_before_text && after_special &&
                                               (first || state_->space_after_special));
    after_special = fragment.special >= 0;
    first = false;
  }
  if (add_special && state_->add_eos) ids.push_back(state_->eos);
  return ids;
}

std::string Tokenizer::piece(int32_t id) const {
  check_id(*state_, id);
  return piece_of(*state_, id);
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string text;
  bool strip = state_->space_before_text;
  for (const int32_t id : ids) {
    check_id(*state_, id);
    const bool special = state_->is_control(id);
    if (special && skip_special) continue;
    const std::string bytes = piece_of(*state_, id);
    text += std::string_view(bytes).substr(strip && !special && bytes.starts_with(' ') ? 1 : 0);
    strip = strip && special;
  }
  return text;
}

int32_t Tokenizer::bos() const { return state_->bos; }
int32_t Tokenizer::eos() const { return state_->eos; }
int64_t Tokenizer::vocabulary_size() const { return static_cast<int64_t>(state_->tokens.size()); }

bool Tokenizer::ends_generation(int32_t id) const {
  return std::binary_search(state_->ends.begin(), state_->ends.end(), id);
}

bool Tokenizer::is_special(int32_t id) const {
  check_id(*state_, id);
  return state_->is_control(id);
}

std::optional<int32_t> Tokenizer::token_id(std::string_view text) const {
  const int32_t* id = state_->find(text);
  return id == nullptr ? std::nullopt : std::optional(*id);
}

std::string_view Tokenizer::token_text(int32_t id) const {
  check_id(*state_, id);
  return state_->tokens[static_cast<size_t>(id)];
}

std::string StreamDecoder::push(int32_t id) {
  if (!skip_special_ || !tokenizer_.is_special(id)) held_ += tokenizer_.piece(id);
  const size_t ready = complete_utf8(held_);
  std::string out = held_.substr(0, ready);
  held_.erase(0, ready);
  return out;
}

std::string StreamDecoder::finish() { return std::exchange(held_, {}); }

}  // namespace fovea::model

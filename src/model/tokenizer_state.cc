// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/tokenizer_state.h"

#include <algorithm>
#include <numeric>

#include "fovea/core/error.h"
#include "fovea/model/unicode.h"

namespace fovea::model {
namespace {

// Names by which published vocabularies call the end of a turn or of the text.
constexpr std::string_view kEnds[] = {"<|eot_id|>",    "<|im_end|>",    "<|end|>",
                                      "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
                                      "<|eom_id|>",    "<EOT>",         "</s>"};

std::string byte_token(int byte) {
  constexpr std::string_view kHex = "0123456789ABCDEF";
  return {'<', '0', 'x', kHex[static_cast<size_t>(byte >> 4)], kHex[static_cast<size_t>(byte & 15)], '>'};
}

}  // namespace

int32_t Tokenizer::State::part(const std::string& text) {
  const auto [it, fresh] = ids_.emplace(text, static_cast<int32_t>(tokens.size() + parts.size()));
  if (fresh) parts.push_back(text);
  return it->second;
}

void Tokenizer::State::add_merge(const std::string& left, const std::string& right, size_t rank) {
  merges.add(part(left), part(right), {static_cast<double>(rank), part(left + right)});
}

void Tokenizer::State::index_tokens() {
  require(!tokens.empty(), "the tokenizer's vocabulary is empty");
  require(tokens.size() < size_t{1} << 28, "the tokenizer's vocabulary of ", tokens.size(),
          " tokens is too large");
  require(kinds.size() == tokens.size(), "the tokenizer has ", tokens.size(), " tokens but ", kinds.size(),
          " token types");
  ids_.reserve(tokens.size() * 2);
  for (size_t i = 0; i < tokens.size(); ++i) ids_.insert_or_assign(tokens[i], static_cast<int32_t>(i));
}

void Tokenizer::State::finish() {
  for (const auto& [id, name] :
       {std::pair(bos, "begin"), std::pair(eos, "end"), std::pair(unknown, "unknown")})
    require(id >= -1 && !is_part(id), "the tokenizer's ", name, " token ", id,
            " is outside its vocabulary of ", tokens.size(), " tokens");
  require(!add_bos || bos >= 0, "the tokenizer adds a begin token but names none");
  require(!add_eos || eos >= 0, "the tokenizer adds an end token but names none");

  for (int byte = 0; byte < 256; ++byte) {
    auto& id = bytes[static_cast<size_t>(byte)];
    if (scheme == Scheme::byte_level) {
      id = part(byte_spelling(static_cast<uint8_t>(byte)));
    } else {
      const int32_t* token = find(byte_token(byte));
      id = token != nullptr ? *token : -1;
    }
  }
  // A byte token is one that stands in `bytes`: any other so marked would have no byte to decode to.
  for (size_t i = 0; i < tokens.size(); ++i)
    if (kinds[i] == TokenKind::byte &&
        (scheme == Scheme::byte_level ||
         std::find(bytes.begin(), bytes.end(), static_cast<int32_t>(i)) == bytes.end()))
      kinds[i] = TokenKind::normal;

  if (eos >= 0) ends.push_back(eos);
  for (const std::string_view name : kEnds) {
    const int32_t* id = find(name);
    if (id == nullptr) continue;
    // Some files mark these as ordinary text.
    kinds[static_cast<size_t>(*id)] = TokenKind::control;
    ends.push_back(*id);
  }
  std::sort(ends.begin(), ends.end());

  for (size_t i = 0; i < tokens.size(); ++i)
    if (!tokens[i].empty() && (is_control(static_cast<int32_t>(i)) || kinds[i] == TokenKind::user_defined))
      specials.push_back(static_cast<int32_t>(i));
  std::stable_sort(specials.begin(), specials.end(), [&](int32_t a, int32_t b) {
    return tokens[static_cast<size_t>(a)].size() > tokens[static_cast<size_t>(b)].size();
  });
}

}  // namespace fovea::model

// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "fovea/core/error.h"
#include "fovea/model/tokenizer.h"
#include "fovea/model/tokenizer_state.h"

namespace fovea::model {
namespace {

// An array of the metadata, empty when absent.
template <typename T>
std::vector<T> array_of(const io::GgufFile& file, const std::string& key) {
  const io::GgufValue* value = file.find(key);
  if (value == nullptr) return {};
  const auto* array = std::get_if<io::GgufArray>(value);
  const auto* items = array == nullptr ? nullptr : std::get_if<std::vector<T>>(array);
  require(items != nullptr, "the GGUF key '", key, "' does not hold an array of the expected type");
  return *items;
}

TokenKind kind_of(int64_t number) {
  require(number >= 0 && number <= 6, "token type ", number, " is not one of 0 to 6");
  return number == 0 ? TokenKind::normal : static_cast<TokenKind>(number);
}

int32_t id_of(const io::GgufFile& file, const char* key, int32_t fallback) {
  const int64_t id = file.integer(key, fallback);
  require(id >= -1 && id <= INT32_MAX, "the GGUF key '", key, "' holds ", id, ", which is no token id");
  return static_cast<int32_t>(id);
}

}  // namespace

Tokenizer Tokenizer::from_gguf(const io::GgufFile& file) {
  auto state = std::make_shared<State>();
  const std::string model = file.string("tokenizer.ggml.model");
  if (model != "gpt2" && model != "llama")
    throw Error("the tokenizer model '" + model + "' is not supported, only gpt2 and llama are",
                ErrorCode::unsupported);
  state->scheme = model == "gpt2" ? State::Scheme::byte_level : State::Scheme::sentencepiece;

  state->tokens = array_of<std::string>(file, "tokenizer.ggml.tokens");
  for (const int64_t number : array_of<int64_t>(file, "tokenizer.ggml.token_type"))
    state->kinds.push_back(kind_of(number));
  if (state->kinds.empty()) state->kinds.assign(state->tokens.size(), TokenKind::normal);
  state->index_tokens();

  // SentencePiece's own numbers where the file is silent.
  const bool scored = state->scheme == State::Scheme::sentencepiece;
  state->bos = id_of(file, "tokenizer.ggml.bos_token_id", scored ? 1 : -1);
  state->eos = id_of(file, "tokenizer.ggml.eos_token_id", scored ? 2 : -1);
  state->unknown = id_of(file, "tokenizer.ggml.unknown_token_id", scored ? 0 : -1);
  if (!scored) {
    const std::string name = file.string("tokenizer.ggml.pre", "default");
    state->pretokenizer = Pretokenizer::named(name);
    // Llama 3's vocabulary was made with these two.
    state->whole_words_first =
        name == "llama-bpe" || name == "llama3" || name == "llama-v3" || name == "falcon3";
    state->add_bos = file.boolean("tokenizer.ggml.add_bos_token", state->whole_words_first);
    const auto merges = array_of<std::string>(file, "tokenizer.ggml.merges");
    state->merges.reserve(merges.size());
    for (size_t rank = 0; rank < merges.size(); ++rank) {
      const size_t space = merges[rank].find(' ', 1);
      require(space != std::string::npos, "merge rule ", rank, " of the tokenizer has no second part");
      state->add_merge(merges[rank].substr(0, space), merges[rank].substr(space + 1), rank);
    }
  } else {
    const auto scores = array_of<double>(file, "tokenizer.ggml.scores");
    require(scores.size() == state->tokens.size(), "the tokenizer has ", state->tokens.size(), " tokens but ",
            scores.size(), " scores");
    state->scores.assign(scores.begin(), scores.end());
    state->add_bos = file.boolean("tokenizer.ggml.add_bos_token", true);
    state->space_before_text = file.boolean("tokenizer.ggml.add_space_prefix", true);
  }
  state->add_eos = file.boolean("tokenizer.ggml.add_eos_token", false);
  state->finish();
  return Tokenizer(std::move(state));
}

}  // namespace fovea::model

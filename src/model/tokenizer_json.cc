// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "fovea/core/error.h"
#include "fovea/io/checks.h"
#include "fovea/io/file.h"
#include "fovea/model/tokenizer.h"
#include "fovea/model/tokenizer_state.h"

namespace fovea::model {
namespace {

using Json = nlohmann::json;
using State = Tokenizer::State;

[[noreturn]] void unsupported(const std::string& what) {
  throw Error("it uses " + what + ", which is not supported", ErrorCode::unsupported);
}

// The member `key`, or null.
const Json& member(const Json& object, const char* key) {
  static const Json null;
  const auto it = object.find(key);
  return it == object.end() ? null : *it;
}

bool flag(const Json& object, const char* key, bool fallback) {
  const Json& value = member(object, key);
  return value.is_null() ? fallback : value.get<bool>();
}

std::string type_of(const Json& part) { return part.at("type").get<std::string>(); }

// The steps of a normalizer, pre-tokenizer or post-processor: one, or the members of a Sequence.
std::vector<const Json*> steps_of(const Json& part, const char* members) {
  std::vector<const Json*> steps;
  if (part.is_null()) return steps;
  if (type_of(part) != "Sequence") return {&part};
  for (const Json& step : part.at(members)) steps.push_back(&step);
  return steps;
}

// A literal as an expression that matches it.
std::string escaped(const std::string& literal) {
  std::string out;
  for (const char c : literal) {
    if (std::ispunct(static_cast<unsigned char>(c)) != 0) out += '\\';
    out += c;
  }
  return out;
}

Pretokenizer::Stage stage_of_split(const Json& step) {
  const Json& pattern = step.at("pattern");
  const bool is_expression = pattern.contains("Regex");
  const auto text = pattern.at(is_expression ? "Regex" : "String").get<std::string>();
  Pretokenizer::Stage stage{is_expression ? text : escaped(text)};
  const auto behaviour = step.at("behavior").get<std::string>();
  if (behaviour == "Removed")
    (flag(step, "invert", false) ? stage.keep_gaps : stage.keep_matches) = false;
  else if (behaviour != "Isolated")
    unsupported("the split behavior " + io::quote(behaviour));
  return stage;
}

void read_metaspace(const Json& step, State& state) {
  if (flag(step, "split", true)) unsupported("a Metaspace pre-tokenizer that splits");
  if (member(step, "replacement") != kSpaceMark) unsupported("a Metaspace pre-tokenizer with another mark");
  const Json& scheme = member(step, "prepend_scheme");
  const bool first = scheme == "first";
  state.space_before_text = scheme.is_null() ? flag(step, "add_prefix_space", true) : scheme != "never";
  state.space_after_special = !first;
  state.space_before_space = false;
}

// Pre-tokenizers become stages; a ByteLevel one makes the vocabulary byte-level.
void read_pretokenizer(const Json& part, State& state) {
  std::vector<Pretokenizer::Stage> stages;
  for (const Json* each : steps_of(part, "pretokenizers")) {
    const Json& step = *each;
    const std::string type = type_of(step);
    if (type == "Split") {
      stages.push_back(stage_of_split(step));
    } else if (type == "Digits") {
      stages.push_back({flag(step, "individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)"});
    } else if (type == "ByteLevel") {
      state.scheme = State::Scheme::byte_level;
      state.space_before_text = flag(step, "add_prefix_space", true);
      if (state.space_before_text && !stages.empty())
        unsupported("add_prefix_space after another pre-tokenizer");
      if (flag(step, "use_regex", true)) stages.push_back({kGpt2Expression});
    } else if (type == "Metaspace") {
      read_metaspace(step, state);
    } else {
      unsupported("the pre-tokenizer " + io::quote(type));
    }
  }
  if (state.scheme == State::Scheme::sentencepiece && !stages.empty())
    unsupported("pre-tokenizers that split without a ByteLevel one");
  state.pretokenizer = Pretokenizer(stages);
}

// NFC is taken to have been applied: most text is in that form, and llama.cpp does the same.
void read_normalizer(const Json& part, State& state) {
  for (const Json* each : steps_of(part, "normalizers")) {
    const Json& step = *each;
    const std::string type = type_of(step);
    if (type == "Prepend" && member(step, "prepend") == kSpaceMark)
      state.space_before_text = true;
    else if (!(type == "Replace" && member(member(step, "pattern"), "String") == " " &&
               member(step, "content") == kSpaceMark) &&
             type != "NFC")
      unsupported("the normalizer " + io::quote(type));
  }
}

struct Entry {
  std::string text;
  int64_t id;
  TokenKind kind;
};

// Ids come in any order; those that no token has stay unused.
void read_vocabulary(const Json& root, const Json& model, State& state) {
  const bool byte_fallback = flag(model, "byte_fallback", false);
  std::vector<Entry> entries;
  for (const auto& [text, id] : model.at("vocab").items()) {
    const bool is_byte = byte_fallback && text.size() == 6 && text.starts_with("<0x");
    entries.push_back({text, id.get<int64_t>(), is_byte ? TokenKind::byte : TokenKind::normal});
  }
  for (const Json& token : member(root, "added_tokens")) {
    if (flag(token, "single_word", false)) unsupported("an added token that matches single words only");
    entries.push_back({token.at("content").get<std::string>(), token.at("id").get<int64_t>(),
                       flag(token, "special", false) ? TokenKind::control : TokenKind::user_defined});
  }
  constexpr int64_t kMostHoles = 1 << 16;
  const auto limit = static_cast<int64_t>(entries.size()) + kMostHoles;
  int64_t count = 0;
  for (const Entry& entry : entries) {
    require(entry.id >= 0 && entry.id < limit, "token ", io::quote(entry.text), " has the id ", entry.id,
            ", which no vocabulary of ", entries.size(), " tokens needs");
    count = std::max(count, entry.id + 1);
  }
  state.tokens.resize(static_cast<size_t>(count));
  state.kinds.assign(static_cast<size_t>(count), TokenKind::unused);
  for (Entry& entry : entries) {
    state.tokens[static_cast<size_t>(entry.id)] = std::move(entry.text);
    state.kinds[static_cast<size_t>(entry.id)] = entry.kind;
  }
  state.index_tokens();

  state.strip_left.resize(state.tokens.size());
  state.strip_right.resize(state.tokens.size());
  for (const Json& token : member(root, "added_tokens")) {
    const auto id = token.at("id").get<size_t>();
    state.strip_left[id] = flag(token, "lstrip", false);
    state.strip_right[id] = flag(token, "rstrip", false);
  }
}

void read_merges(const Json& model, State& state) {
  const Json& merges = model.at("merges");
  state.merges.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Json& rule = merges[rank];
    if (rule.is_array()) {
      require(rule.size() == 2, "merge rule ", rank, " does not have two parts");
      state.add_merge(rule[0].get<std::string>(), rule[1].get<std::string>(), rank);
      continue;
    }
    const auto text = rule.get<std::string>();
    const size_t space = text.find(' ', 1);
    require(space != std::string::npos, "merge rule ", rank, " does not have two parts");
    state.add_merge(text.substr(0, space), text.substr(space + 1), rank);
  }
}

int32_t id_of(const State& state, const std::string& text) {
  const int32_t* id = state.find(text);
  require(id != nullptr, "the vocabulary lacks the token ", io::quote(text));
  return *id;
}

// A template may put one token before the text and one after it.
void read_postprocessor(const Json& part, State& state) {
  for (const Json* each : steps_of(part, "processors")) {
    const Json& step = *each;
    const std::string type = type_of(step);
    if (type == "ByteLevel") continue;
    if (type != "TemplateProcessing") unsupported("the post-processor " + io::quote(type));
    bool after_text = false;
    for (const Json& item : step.at("single")) {
      if (item.contains("Sequence")) {
        after_text = true;
        continue;
      }
      bool& adds = after_text ? state.add_eos : state.add_bos;
      if (adds) unsupported("a template of several special tokens");
      adds = true;
      (after_text ? state.eos : state.bos) =
          id_of(state, item.at("SpecialToken").at("id").get<std::string>());
    }
  }
}

// "<s>" or {"content": "<s>", ...}
void read_config(const Json& config, State& state) {
  const auto token = [&](const char* key, int32_t& id) {
    const Json& value = member(config, key);
    if (!value.is_null())
      id = id_of(state, (value.is_object() ? value.at("content") : value).get<std::string>());
  };
  token("bos_token", state.bos);
  token("eos_token", state.eos);
  state.add_bos = flag(config, "add_bos_token", state.add_bos);
  state.add_eos = flag(config, "add_eos_token", state.add_eos);
}

void read_tokenizer(const Json& root, State& state) {
  const Json& model = root.at("model");
  const Json& type = member(model, "type");
  if (!type.is_null() && type != "BPE") unsupported("the model " + io::quote(type.get<std::string>()));
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (const Json& value = member(model, affix); !value.is_null() && value != "") unsupported(affix);
  state.scheme = State::Scheme::sentencepiece;
  read_normalizer(member(root, "normalizer"), state);
  read_pretokenizer(member(root, "pre_tokenizer"), state);
  state.whole_words_first = flag(model, "ignore_merges", false);
  read_vocabulary(root, model, state);
  read_merges(model, state);
  if (const Json& unknown = member(model, "unk_token"); !unknown.is_null())
    state.unknown = id_of(state, unknown.get<std::string>());
  read_postprocessor(member(root, "post_processor"), state);
}

// Runs `read` on a file's JSON; whatever is wrong in it becomes an Error that names the file.
template <typename Read>
void read_json(const std::string& path, const Read& read) {
  const std::string text = io::read_text(path);
  try {
    read(Json::parse(text));
  } catch (const Json::exception& error) {
    throw Error("'" + path + "' is not a usable tokenizer file: " + io::quote(error.what()));
  } catch (const Error& error) {
    throw Error("'" + path + "' is not a usable tokenizer file: " + error.what(), error.code());
  }
}

}  // namespace

Tokenizer Tokenizer::from_json(const std::string& path, const std::string& config) {
  auto state = std::make_shared<State>();
  read_json(path, [&](const Json& root) { read_tokenizer(root, *state); });
  if (!config.empty()) read_json(config, [&](const Json& root) { read_config(root, *state); });
  state->finish();
  return Tokenizer(std::move(state));
}

}  // namespace fovea::model

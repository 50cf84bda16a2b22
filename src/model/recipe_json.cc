// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "fovea/core/error.h"
#include "fovea/model/recipe.h"
#include "fovea/model/recipe_terms.h"

namespace fovea::model {
namespace {

using Json = nlohmann::ordered_json;

// Numbers, booleans and lists in their own types; what JSON cannot say (inf) stays text.
Json value_to_json(const std::string& text) {
  if (text.find(',') != std::string::npos) {
    const Json list = Json::parse("[" + text + "]", nullptr, false);
    if (!list.is_discarded() && list.dump() == "[" + text + "]") return list;
  }
  const Json value = Json::parse(text, nullptr, false);
  const bool plain = (value.is_number() || value.is_boolean()) && value.dump() == text;
  return plain ? value : Json(text);
}

Json term_to_json(const RecipeTerm& term) {
  Json result = {{"name", term.name}};
  for (const auto& [key, value] : term.options) result["options"][key] = value_to_json(value);
  if (!term.inner.empty()) result["inner"] = term_to_json(term.inner[0]);
  return result;
}

/// Reads JSON into written terms; a place is an index into the list of paths.
class Reader {
 public:
  std::vector<WrittenPart> parts(const Json& json) {
    std::vector<WrittenPart> result;
    object(json, "");
    for (const auto& [slot, value] : json.items()) {
      WrittenPart part;
      part.slot = slot;
      part.place = place(slot);
      if (slot.empty()) fail(part.place, "a slot needs a name: prefill, cache or heads");
      if (value.is_array()) {
        for (size_t i = 0; i < value.size(); ++i)
          part.terms.push_back(term(value[i], slot + "[" + std::to_string(i) + "]", 0));
        if (part.terms.empty()) continue;
      } else {
        part.terms.push_back(term(value, slot, 0));
      }
      result.push_back(std::move(part));
    }
    return result;
  }

  [[noreturn]] void fail(size_t at, const std::string& what) const {
    throw Error("recipe: " + (paths_[at].empty() ? "" : paths_[at] + ": ") + what);
  }

 private:
  size_t place(const std::string& path) {
    paths_.push_back(path);
    return paths_.size() - 1;
  }
  void object(const Json& json, const std::string& path) {
    if (!json.is_object()) fail(place(path), std::string("expected a JSON object, got ") + json.type_name());
  }

  WrittenTerm term(const Json& json, const std::string& path, int depth) {
    object(json, path);
    if (depth > kMaxNesting)
      fail(place(path), "mechanisms are nested more than " + std::to_string(kMaxNesting) + " deep");
    WrittenTerm result;
    result.place = place(path);
    for (const auto& [key, value] : json.items()) {
      const std::string where = path + "." + key;
      if (key == "name") {
        if (!value.is_string()) fail(place(where), "expected a string");
        result.name = value.get<std::string>();
      } else if (key == "options") {
        object(value, where);
        for (const auto& [name, option] : value.items()) {
          const size_t at = place(where + "." + name);
          result.options.push_back({name, text(option, at), at, at});
        }
      } else if (key == "inner") {
        result.inner.push_back(term(value, where, depth + 1));
      } else {
        fail(place(where), "unknown key; a term has name, options and inner");
      }
    }
    if (result.name.empty()) fail(result.place, "a term needs a name");
    return result;
  }

  std::string text(const Json& value, size_t at) const {
    if (value.is_string()) return value.get<std::string>();
    if (value.is_number() || value.is_boolean()) return value.dump();
    if (!value.is_array()) fail(at, std::string("expected a value, got ") + value.type_name());
    std::string list;
    for (size_t i = 0; i < value.size(); ++i) {
      if (!value[i].is_number()) fail(at, "expected a list of numbers");
      list += (i > 0 ? "," : "") + value[i].dump();
    }
    return list;
  }

  std::vector<std::string> paths_;
};

}  // namespace

std::string Recipe::to_json() const {
  Json result = Json::object();
  if (!prefill.empty()) result["prefill"] = term_to_json(prefill[0]);
  for (const auto& term : cache) result["cache"].push_back(term_to_json(term));
  if (!heads.empty()) result["heads"] = term_to_json(heads[0]);
  return result.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Recipe Recipe::from_json(std::string_view json) {
  Json parsed;
  try {
    parsed = Json::parse(json);
  } catch (const Json::exception& error) {
    throw Error(std::string("recipe: this is not JSON: ") + error.what());
  }
  Reader reader;
  const auto parts = reader.parts(parsed);
  return resolve_terms(parts, [&](size_t place, const std::string& what) { reader.fail(place, what); });
}

}  // namespace fovea::model

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "fovea/model/recipe.h"

/// The step between what is written (a line or JSON) and a Recipe: names are looked up, options
/// canonicalised.
namespace fovea::model {

/// A term as written. The places (of the name, of each key and value) mean something to the reporter of
/// errors only.
struct WrittenTerm {
  struct Option {
    std::string key, value;
    size_t key_place = 0, value_place = 0;
  };
  std::string name;
  size_t place = 0;
  std::vector<Option> options;
  std::vector<WrittenTerm> inner;
};

/// "prefill", "cache", "heads", or "" for a bare term.
struct WrittenPart {
  std::string slot;
  size_t place = 0;
  std::vector<WrittenTerm> terms;
};

/// Throws an Error about one place.
using Reporter = std::function<void(size_t place, const std::string& what)>;

/// Throws through `report`, or Error(internal) should that return.
Recipe resolve_terms(const std::vector<WrittenPart>& parts, const Reporter& report);

/// Wrappers around wrappers end here, in a line and in JSON alike.
inline constexpr int kMaxNesting = 8;

}  // namespace fovea::model

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "fovea/core/options.h"

namespace fovea::model {

/// One mechanism with its options: `name`, `name:key=value,key=value`, or `name(inner):key=value` for a
/// wrapper.
struct RecipeTerm {
  std::string name;
  options::Pairs options;         ///< canonical names, only those that differ from their defaults
  std::vector<RecipeTerm> inner;  ///< at most one
  friend bool operator==(const RecipeTerm&, const RecipeTerm&) = default;
};

/// How a model attends, in one line:
///
///     recipe  := part (';' part)*            parts in any order, each slot at most once
///     part    := 'prefill=' term | 'cache=' term ('+' term)* | 'heads=' term | term
///     term    := name ['(' term ')'] [':' key '=' value (',' key '=' value)*]
///
/// A value that holds a space or one of ; ( ) " (or a + or , that no number follows) stands in double quotes,
/// in which \" and \\ are a quote and a backslash. Spaces between tokens mean nothing.
///
/// A bare term goes to the slot its name belongs to (`quest` is `cache=quest`, `minference` is
/// `prefill=minference`, `duo` is `heads=duo`); `exact` alone is the empty recipe. Cache terms are told apart
/// by the kind of their policy (storage, retention, selection), at most one each.
struct Recipe {
  std::vector<RecipeTerm> prefill;  ///< at most one
  std::vector<RecipeTerm> cache;    ///< selection, retention, storage, in that order
  std::vector<RecipeTerm> heads;    ///< at most one

  /// Throws Error whose message names the character (1-based) and shows the line with a caret under it.
  static Recipe parse(std::string_view text);
  /// The canonical line; parse(to_string()) gives the same recipe. The exact recipe is "exact".
  std::string to_string() const;
  /// {"prefill": {...}, "cache": [...], "heads": {...}}
  std::string to_json() const;
  static Recipe from_json(std::string_view json);
  friend bool operator==(const Recipe&, const Recipe&) = default;
};

}  // namespace fovea::model

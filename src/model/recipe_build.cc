// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/recipe_build.h"

#include "fovea/core/error.h"

namespace fovea::model {
namespace {

std::shared_ptr<const sparse::Planner> build(const RecipeTerm& term) {
  const auto* entry = sparse::find_planner(term.name);
  require(entry != nullptr, "recipe: no prefill planner is called '", term.name, "'");
  require(term.inner.size() == (entry->wraps ? 1u : 0u), "recipe: '", term.name, "' works around ",
          entry->wraps ? "one planner" : "no other planner", ", got ", term.inner.size());
  return entry->make(term.options, term.inner.empty() ? nullptr : build(term.inner[0]));
}

}  // namespace

std::shared_ptr<const sparse::Planner> make_planner(const Recipe& recipe) {
  return recipe.prefill.empty() ? nullptr : build(recipe.prefill[0]);
}

cache::CacheSpec cache_spec(const Recipe& recipe) {
  cache::CacheSpec spec;
  for (const auto& term : recipe.cache) {
    const auto* entry = cache::find_policy(term.name);
    require(entry != nullptr, "recipe: no cache policy is called '", term.name, "'");
    auto& slot = entry->kind == cache::PolicyKind::storage     ? spec.storage
                 : entry->kind == cache::PolicyKind::retention ? spec.retention
                                                               : spec.selection;
    require(slot.name.empty(), "recipe: '", term.name, "' and '", slot.name, "' are of the same kind");
    slot = {term.name, term.options};
  }
  if (const auto duo = duo_heads(recipe)) {
    require(spec.retention.name.empty(), "recipe: heads=duo brings its own retention; remove '",
            spec.retention.name, "' from cache=");
    spec.retention = {"streaming",
                      {{"sink", options::print(duo->sink)}, {"recent", options::print(duo->recent)}}};
  }
  return spec;
}

std::unique_ptr<DuoHeadsOptions> duo_heads(const Recipe& recipe) {
  if (recipe.heads.empty() || recipe.heads[0].name != "duo") return nullptr;
  return std::make_unique<DuoHeadsOptions>(
      options::from_pairs<DuoHeadsOptions>(recipe.heads[0].options, "duo"));
}

}  // namespace fovea::model

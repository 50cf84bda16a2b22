// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/recipe_terms.h"

#include <algorithm>
#include <array>
#include <optional>

#include "fovea/cache/kv_cache.h"
#include "fovea/core/catalogue.h"
#include "fovea/model/head_policies.h"
#include "fovea/sparse/planner.h"

namespace fovea::model {
namespace {

enum class Slot { prefill, cache, heads };
constexpr std::array<Slot, 3> kSlots = {Slot::prefill, Slot::cache, Slot::heads};

std::string slot_name(Slot slot) {
  return slot == Slot::prefill ? "prefill" : slot == Slot::cache ? "cache" : "heads";
}

std::string slot_holds(Slot slot) {
  return slot == Slot::prefill ? "prefill planner" : slot == Slot::cache ? "cache policy" : "head policy";
}

struct Known {
  const std::vector<options::Info>* options;
  bool wraps = false;
};

std::optional<Known> find(Slot slot, std::string_view name) {
  if (slot == Slot::prefill) {
    if (const auto* entry = sparse::find_planner(name)) return Known{&entry->options, entry->wraps};
  } else if (slot == Slot::cache) {
    if (const auto* entry = cache::find_policy(name)) return Known{&entry->options};
  } else if (const auto* entry = find_head_policy(name)) {
    return Known{&entry->options};
  }
  return std::nullopt;
}

std::vector<std::string> names(Slot slot) {
  std::vector<std::string> result;
  const auto add = [&](const auto& entries) {
    for (const auto& entry : entries) result.push_back(entry.name);
  };
  if (slot == Slot::prefill) add(sparse::planners());
  if (slot == Slot::cache) add(cache::policies());
  if (slot == Slot::heads) add(head_policies());
  return result;
}

std::string suggestion(std::string_view name, const std::vector<std::string>& candidates) {
  const std::string near = nearest_name(name, candidates);
  if (!near.empty()) return "; did you mean '" + near + "'?";
  std::string all;
  for (const auto& candidate : candidates) all += (all.empty() ? "" : ", ") + candidate;
  return all.empty() ? "; there is none" : "; there are: " + all;
}

class Resolver {
 public:
  explicit Resolver(const Reporter& report) : report_(report) {}

  Recipe recipe(const std::vector<WrittenPart>& parts) const {
    Recipe result;
    std::array<bool, 3> taken{};
    for (const auto& part : parts) {
      if (part.slot.empty() && part.terms[0].name == "exact") {
        exact(part, parts.size());
        continue;
      }
      const Slot slot = part.slot.empty() ? slot_of(part.terms[0]) : slot_called(part);
      if (std::exchange(taken[static_cast<size_t>(slot)], true))
        fail(part.place, slot_name(slot) + " is given twice" +
                             (slot == Slot::cache ? "; join cache policies with '+'" : ""));
      if (slot == Slot::cache) {
        result.cache = cache_terms(part);
      } else {
        auto& target = slot == Slot::prefill ? result.prefill : result.heads;
        if (part.terms.size() > 1)
          fail(part.terms[1].place, slot_name(slot) + " takes one term; only cache policies are joined");
        target.push_back(term(part.terms[0], slot));
      }
    }
    return result;
  }

 private:
  [[noreturn]] void fail(size_t place, const std::string& what) const {
    report_(place, what);
    throw Error("recipe: an error was not reported", ErrorCode::internal);
  }

  void exact(const WrittenPart& part, size_t parts) const {
    const auto& written = part.terms[0];
    if (parts > 1 || part.terms.size() > 1 || !written.inner.empty())
      fail(written.place, "'exact' stands alone: it is the recipe without any mechanism");
    if (!written.options.empty()) fail(written.options[0].key_place, "'exact' has no options");
  }

  Slot slot_called(const WrittenPart& part) const {
    std::vector<std::string> all;
    for (Slot slot : kSlots) {
      if (part.slot == slot_name(slot)) return slot;
      all.push_back(slot_name(slot));
    }
    fail(part.place, "no slot is called '" + part.slot + "'" + suggestion(part.slot, all));
  }

  Slot slot_of(const WrittenTerm& written) const {
    std::vector<std::string> all = {"exact"};
    for (Slot slot : kSlots) {
      if (find(slot, written.name)) return slot;
      const auto more = names(slot);
      all.insert(all.end(), more.begin(), more.end());
    }
    fail(written.place, "nothing is called '" + written.name + "'" + suggestion(written.name, all));
  }

  std::vector<RecipeTerm> cache_terms(const WrittenPart& part) const {
    using Kind = cache::PolicyKind;
    std::vector<std::pair<Kind, RecipeTerm>> found;
    for (const auto& written : part.terms) {
      RecipeTerm resolved = term(written, Slot::cache);
      const Kind kind = cache::find_policy(resolved.name)->kind;
      for (const auto& [other, before] : found)
        if (other == kind)
          fail(written.place, "'" + written.name + "' and '" + before.name +
                                  "' are cache policies of the same kind (" + kind_name(kind) +
                                  "); a cache has one of each");
      found.emplace_back(kind, std::move(resolved));
    }
    std::vector<RecipeTerm> result;
    for (Kind kind : {Kind::selection, Kind::retention, Kind::storage})
      for (auto& [other, resolved] : found)
        if (other == kind) result.push_back(std::move(resolved));
    return result;
  }

  static std::string kind_name(cache::PolicyKind kind) {
    return kind == cache::PolicyKind::storage     ? "storage"
           : kind == cache::PolicyKind::retention ? "retention"
                                                  : "selection";
  }

  RecipeTerm term(const WrittenTerm& written, Slot slot) const {
    const auto known = find(slot, written.name);
    if (!known) {
      for (Slot other : kSlots)
        if (find(other, written.name))
          fail(written.place, "'" + written.name + "' is a " + slot_holds(other) + ", not a " +
                                  slot_holds(slot) + ": write " + slot_name(other) + "=" + written.name);
      fail(written.place, "no " + slot_holds(slot) + " is called '" + written.name + "'" +
                              suggestion(written.name, names(slot)));
    }
    RecipeTerm result;
    result.name = written.name;
    if (!known->wraps && !written.inner.empty())
      fail(written.inner[0].place, "'" + written.name + "' does not work around another mechanism");
    if (known->wraps && written.inner.empty())
      fail(written.place,
           "'" + written.name + "' works around another planner: write " + written.name + "(planner)");
    for (const auto& inner : written.inner) result.inner.push_back(term(inner, slot));
    result.options = canonical_options(written, *known->options);
    return result;
  }

  // Declaration order, full names, values as they print, defaults dropped.
  options::Pairs canonical_options(const WrittenTerm& written,
                                   const std::vector<options::Info>& fields) const {
    std::vector<std::string> values(fields.size());
    std::vector<bool> given(fields.size());
    for (const auto& option : written.options) {
      const options::Info* field = options::find(fields, option.key);
      if (field == nullptr) unknown_option(written.name, option, fields);
      const size_t index = static_cast<size_t>(field - fields.data());
      if (given[index]) fail(option.key_place, written.name + ": option " + field->name + " is given twice");
      given[index] = true;
      try {
        values[index] = options::canonical(*field, option.value, written.name + ": option " + field->name);
      } catch (const Error& error) {
        fail(option.value_place, error.what());
      }
    }
    options::Pairs result;
    for (size_t i = 0; i < fields.size(); ++i)
      if (given[i] && values[i] != fields[i].default_value) result.emplace_back(fields[i].name, values[i]);
    return result;
  }

  [[noreturn]] void unknown_option(const std::string& owner, const WrittenTerm::Option& option,
                                   const std::vector<options::Info>& fields) const {
    std::vector<std::string> all;
    for (const auto& field : fields) {
      all.push_back(field.name);
      if (!field.alias.empty()) all.push_back(field.alias);
    }
    fail(option.key_place,
         fields.empty() ? "'" + owner + "' has no options"
                        : "'" + owner + "' has no option '" + option.key + "'" + suggestion(option.key, all));
  }

  const Reporter& report_;
};

}  // namespace

Recipe resolve_terms(const std::vector<WrittenPart>& parts, const Reporter& report) {
  return Resolver(report).recipe(parts);
}

}  // namespace fovea::model

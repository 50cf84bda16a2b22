// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/policies.h"

#include <algorithm>

#include "fovea/cache/page_selection.h"
#include "fovea/cache/retention.h"
#include "fovea/cache/rotatekv_storage.h"
#include "fovea/cache/rtn_storage.h"
#include "fovea/core/catalogue.h"

namespace fovea::cache {

// Names across kinds differ, but for `all`; the first of a kind is what an empty name means.
const std::vector<PolicyEntry>& policies() {
  using Kind = PolicyKind;
  const auto none = [] { return options::describe<options::None>(); };
  static const std::vector<PolicyEntry> entries = {
      {"f16", Kind::storage, 0, "16-bit floats", none()},
      {"f32", Kind::storage, 0, "as computed", none()},
      {"bf16", Kind::storage, 0, "16-bit floats with the range of f32", none()},
      {"int8", Kind::storage, 0, "8-bit codes with a scale per token and head", none()},
      {"rtn", Kind::storage, 0,
       "codes of 2, 4 or 8 bits, rounded to nearest, with a scale per group of channels",
       options::describe<RtnStorageOptions>()},
      {"rotatekv", Kind::storage, 33, "rotated, reordered codes of 2 to 8 bits; attention sinks in 16 bits",
       options::describe<RotateKvStorageOptions>()},
      {"all", Kind::retention, 0, "every token is kept", none()},
      {"streaming", Kind::retention, 111, "attention sinks and a window of recent tokens",
       options::describe<StreamingOptions>()},
      {"all", Kind::selection, 0, "every kept token is read", none()},
      {"quest", Kind::selection, 110, "the pages whose key bounds promise the largest scores",
       options::describe<QuestSelectionOptions>()},
  };
  return entries;
}

const PolicyEntry* find_policy(std::string_view name) {
  const auto& all = policies();
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const auto& entry) { return entry.name == name; });
  return found == all.end() ? nullptr : &*found;
}

std::string_view name_of(PolicyKind kind) {
  return kind == PolicyKind::storage ? "storage" : kind == PolicyKind::retention ? "retention" : "selection";
}

const PolicyEntry& policy_of(PolicyKind kind, std::string_view name) {
  std::vector<std::string> names;
  for (const auto& entry : policies()) {
    if (entry.kind != kind) continue;
    if (name.empty() || entry.name == name) return entry;
    names.push_back(entry.name);
  }
  const std::string near = nearest_name(name, names);
  throw Error("cache: no " + std::string(name_of(kind)) + " is called '" + std::string(name) + "'" +
                  (near.empty() ? "" : "; did you mean '" + near + "'?"),
              ErrorCode::not_found);
}

}  // namespace fovea::cache

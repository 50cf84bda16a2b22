// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/head_policies.h"

#include <algorithm>

namespace fovea::model {

const std::vector<HeadPolicyEntry>& head_policies() {
  static const std::vector<HeadPolicyEntry> all = {
      {"duo", 111, "retrieval heads keep everything, the others sinks and a window",
       options::describe<DuoHeadsOptions>()},
  };
  return all;
}

const HeadPolicyEntry* find_head_policy(std::string_view name) {
  const auto& all = head_policies();
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const auto& entry) { return entry.name == name; });
  return found == all.end() ? nullptr : &*found;
}

}  // namespace fovea::model

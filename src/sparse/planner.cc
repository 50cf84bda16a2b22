// SPDX-License-Identifier: Apache-2.0
#include "fovea/sparse/planner.h"

#include <algorithm>

#include "fovea/sparse/minference.h"
#include "fovea/sparse/sparse_transformer.h"

namespace fovea::sparse {

kernels::AttentionResult Planner::attend(const Tensor& q, const Tensor& k, const Tensor& v) const {
  return kernels::plan_forward(q, k, v, plan(q, k), {.visible = kernels::Visibility::causal()});
}

const std::vector<PlannerEntry>& planners() {
  static const std::vector<PlannerEntry> all = [] {
    std::vector<PlannerEntry> entries;
    add_minference_planners(entries);
    add_sparse_transformer_planners(entries);
    return entries;
  }();
  return all;
}

const PlannerEntry* find_planner(std::string_view name) {
  const auto& all = planners();
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const auto& entry) { return entry.name == name; });
  return found == all.end() ? nullptr : &*found;
}

}  // namespace fovea::sparse

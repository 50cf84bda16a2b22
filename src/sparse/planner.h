// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fovea/core/options.h"
#include "fovea/kernels/attention.h"
#include "fovea/kernels/key_plan.h"

namespace fovea::sparse {

/// A causal prefill mechanism that a recipe can name: it reads q [1,Hq,Tq,D] and k [1,Hkv,Tk,D] (Tq <= Tk:
/// the rows are the last ones) and says which keys to read.
class Planner {
 public:
  virtual ~Planner() = default;
  virtual kernels::KeyPlan plan(const Tensor& q, const Tensor& k) const = 0;
  /// Attention by this mechanism. A mechanism that corrects the sparse result overrides it.
  virtual kernels::AttentionResult attend(const Tensor& q, const Tensor& k, const Tensor& v) const;
};

/// How a recipe reaches a planner: its name, options and factory. `inner` is the planner a wrapper works
/// around (prefill=wrapper(inner)); absent for plain planners.
struct PlannerEntry {
  std::string name;
  int paper = 0;
  std::string summary;
  std::vector<options::Info> options;
  bool wraps = false;
  std::function<std::unique_ptr<Planner>(const options::Pairs&, std::shared_ptr<const Planner> inner)> make;
};

/// All planners, in catalogue order (an explicit list in planner.cc).
const std::vector<PlannerEntry>& planners();
/// nullptr when there is none of that name.
const PlannerEntry* find_planner(std::string_view name);

}  // namespace fovea::sparse

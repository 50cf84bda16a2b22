// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/target.h"

#include "fovea/core/error.h"
#include "hwy/highway.h"

namespace fovea::kernels {
namespace {

// Lower bits are better targets.
template <typename Visit>
void for_each_target(int64_t targets, const Visit& visit) {
  for (; targets != 0; targets &= targets - 1) visit(targets & -targets);
}

int64_t usable_targets() {
  hwy::SetSupportedTargetsForTest(0);
  return hwy::SupportedTargets() & HWY_TARGETS;
}

int64_t forced = 0;

}  // namespace

std::vector<std::string> simd_targets() {
  std::vector<std::string> names;
  const int64_t usable = usable_targets();
  hwy::SetSupportedTargetsForTest(forced);
  for_each_target(usable, [&](int64_t target) { names.emplace_back(hwy::TargetName(target)); });
  return names;
}

std::string active_simd_target() {
  const int64_t usable = hwy::SupportedTargets() & HWY_TARGETS;
  return hwy::TargetName(usable & -usable);
}

void force_simd_target(std::string_view name) {
  const int64_t usable = usable_targets();
  int64_t chosen = 0;
  std::string known;
  for_each_target(usable, [&](int64_t target) {
    if (name == hwy::TargetName(target)) chosen = target;
    known += (known.empty() ? "" : ", ") + std::string(hwy::TargetName(target));
  });
  hwy::SetSupportedTargetsForTest(forced);
  require(name.empty() || chosen != 0, "SIMD target '", name, "' is not available here; there are ", known);
  forced = chosen;
  hwy::SetSupportedTargetsForTest(forced);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace fovea::kernels

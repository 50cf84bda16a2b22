// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/target.h"

#include <algorithm>
#include <optional>

#include "fovea/core/error.h"
#include "hwy/highway.h"
#include "kernels/cpu/bfloat16_unit.h"
#include "kernels/cpu/dot_instructions.h"

namespace fovea::kernels {
namespace {

using cpu::BFloat16Unit;

struct Target {
  int64_t highway;
  BFloat16Unit unit;

  std::string name() const {
    constexpr const char* kUnits[] = {"", "+BF16", "+AMX"};
    return hwy::TargetName(highway) + std::string(kUnits[static_cast<int>(unit)]);
  }
};

std::optional<Target> forced;

void apply_forced() { hwy::SetSupportedTargetsForTest(forced ? forced->highway : 0); }

BFloat16Unit best_unit() {
  if (has_bf16_tiles()) return BFloat16Unit::tiles;
  return has_bf16_dot() ? BFloat16Unit::dots : BFloat16Unit::none;
}

// Lower bits are better targets; the units come with AVX-512.
std::vector<Target> usable_targets() {
  hwy::SetSupportedTargetsForTest(0);
  int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  apply_forced();
  std::vector<Target> usable;
  for (; targets != 0; targets &= targets - 1) {
    const int64_t target = targets & -targets;
    for (int unit = target == HWY_AVX3 ? static_cast<int>(best_unit()) : 0; unit >= 0; --unit)
      usable.push_back({target, static_cast<BFloat16Unit>(unit)});
  }
  return usable;
}

}  // namespace

std::vector<std::string> simd_targets() {
  std::vector<std::string> names;
  for (const Target& target : usable_targets()) names.push_back(target.name());
  return names;
}

std::string active_simd_target() { return forced ? forced->name() : usable_targets().front().name(); }

void force_simd_target(std::string_view name) {
  std::optional<Target> chosen;
  std::string known;
  for (const Target& target : usable_targets()) {
    if (name == target.name()) chosen = target;
    known += (known.empty() ? "" : ", ") + target.name();
  }
  require(name.empty() || chosen, "SIMD target '", name, "' is not available here; there are ", known);
  forced = chosen;
  apply_forced();
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

BFloat16Unit cpu::bfloat16_unit() { return forced ? forced->unit : best_unit(); }

}  // namespace fovea::kernels

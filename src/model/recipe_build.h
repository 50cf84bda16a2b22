// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "fovea/cache/kv_cache.h"
#include "fovea/model/head_policies.h"
#include "fovea/model/recipe.h"
#include "fovea/sparse/planner.h"

namespace fovea::model {

/// The policies of the cache slot. heads=duo adds its streaming retention, and then `streaming` must still be
/// filled for each layer, from the gates; without it the vector stays empty (retention applies to all heads).
/// Throws Error where heads=duo meets a retention of the cache slot.
cache::CacheSpec cache_spec(const Recipe& recipe);

/// The planner of the prefill slot, wrappers around their inner planner; nullptr: exact attention. Throws
/// Error for options that do not go together.
std::shared_ptr<const sparse::Planner> make_planner(const Recipe& recipe);

/// Options of heads=duo; nullptr where the recipe has none.
std::unique_ptr<DuoHeadsOptions> duo_heads(const Recipe& recipe);

}  // namespace fovea::model

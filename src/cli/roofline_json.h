// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "fovea/kernels/roofline.h"

/// The measured ceilings as a user sees them (`fovea info --roofline`, `fovea bench --roofline`).
namespace fovea::cli {

/// Ceilings for 1, 2, 4, ... and all threads; the thread count is as before afterwards.
std::vector<kernels::Ceilings> ceilings_per_thread_count();

/// A short look with the current thread count.
kernels::Ceilings quick_ceilings();
/// The better of two looks: a ceiling is what the machine can do at most, and another program may have
/// disturbed one.
kernels::Ceilings best_of(const kernels::Ceilings& a, const kernels::Ceilings& b);

nlohmann::ordered_json ceilings_json(const std::vector<kernels::Ceilings>& all);
std::string ceilings_table(const std::vector<kernels::Ceilings>& all);

}  // namespace fovea::cli

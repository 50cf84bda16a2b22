// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "fovea/inference/compare.h"

namespace fovea::cli {

/// Where a comparison was made.
struct ReportSetting {
  std::string model_name, model_path, text;
  int64_t layers = 0, heads_q = 0, heads_kv = 0;
};

/// Everything `fovea compare --json` prints; maps are left out unless `with_maps`.
nlohmann::ordered_json comparison_json(const inference::Comparison& comparison, const ReportSetting& setting,
                                       bool with_maps);

/// One HTML page that needs nothing else: tables, plots and the maps, with the data inside.
std::string comparison_html(const inference::Comparison& comparison, const ReportSetting& setting);

}  // namespace fovea::cli

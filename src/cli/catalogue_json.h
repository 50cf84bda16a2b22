// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "fovea/core/operator.h"

/// The catalogue as JSON: the one description behind `fovea list --json`, `fovea show --json`.
namespace fovea::cli {

/// name, room, paper, title, year, arxiv, summary, forms, devices.
nlohmann::ordered_json summary_json(const Operator& op);
/// The same with inputs, outputs and options.
nlohmann::ordered_json operator_json(const Operator& op);
/// key=value pairs with values of the options' own types.
nlohmann::ordered_json options_json(const std::vector<options::Info>& infos, const options::Pairs& pairs);

std::vector<std::string> form_names(const Operator& op);
std::vector<std::string> device_names(const Operator& op);

}  // namespace fovea::cli

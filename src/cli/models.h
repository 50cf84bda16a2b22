// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace fovea::cli {

/// A model file found in the cache folder.
struct LocalModel {
  std::string name;  ///< what -m accepts
  std::filesystem::path path;
  int64_t bytes = 0;
};

/// GGUF files and folders with safetensors weights under environment().models, by name.
std::vector<LocalModel> local_models();

/// The path that `-m NAME` means: a path as it is, or the name of a local model. Throws Error(not_found) with
/// the known names.
std::filesystem::path resolve_model(const std::string& name);

}  // namespace fovea::cli

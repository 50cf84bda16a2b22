// SPDX-License-Identifier: Apache-2.0
#include "cli/models.h"

#include <algorithm>

#include "cli/environment.h"
#include "fovea/core/catalogue.h"
#include "fovea/core/error.h"

namespace fovea::cli {

namespace fs = std::filesystem;

namespace {

bool has_weights(const fs::path& folder) {
  std::error_code trouble;
  return std::any_of(fs::directory_iterator(folder, trouble), fs::directory_iterator{},
                     [](const auto& entry) { return entry.path().extension() == ".safetensors"; });
}

int64_t bytes_under(const fs::path& path) {
  std::error_code trouble;
  if (fs::is_regular_file(path, trouble)) return static_cast<int64_t>(fs::file_size(path, trouble));
  int64_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(path, trouble))
    if (entry.is_regular_file(trouble)) bytes += static_cast<int64_t>(entry.file_size(trouble));
  return bytes;
}

}  // namespace

std::vector<LocalModel> local_models() {
  std::vector<LocalModel> models;
  std::error_code trouble;
  for (const auto& entry : fs::directory_iterator(environment().models, trouble)) {
    const bool file = entry.is_regular_file(trouble) && entry.path().extension() == ".gguf";
    const bool folder = entry.is_directory(trouble) && has_weights(entry.path());
    if (file || folder)
      models.push_back({file ? entry.path().stem().string() : entry.path().filename().string(), entry.path(),
                        bytes_under(entry.path())});
  }
  std::sort(models.begin(), models.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return models;
}

fs::path resolve_model(const std::string& name) {
  std::error_code trouble;
  if (fs::exists(name, trouble)) return name;
  std::vector<std::string> names;
  for (const auto& model : local_models()) {
    if (model.name == name) return model.path;
    names.push_back(model.name);
  }
  const std::string near = nearest_name(name, names);
  throw Error("there is no model '" + name + "': neither a path nor the name of a local model" +
                  (near.empty() ? "; `fovea models` shows what there is" : "; did you mean '" + near + "'?"),
              ErrorCode::not_found);
}

}  // namespace fovea::cli

// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/model_files.h"

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "fovea/core/error.h"

namespace fovea::model {
namespace {

namespace fs = std::filesystem;

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

/// Lower case, without ".gguf".
std::string plain_name(const std::string& name) {
  std::string text = lower(name);
  if (text.ends_with(".gguf")) text.resize(text.size() - 5);
  return text;
}

}  // namespace

std::vector<LocalModel> list_models(const std::string& folder) {
  std::vector<LocalModel> models;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string file = entry.path().filename().string();
    if (entry.is_directory(error) && fs::exists(entry.path() / "config.json", error)) {
      int64_t bytes = 0;
      for (const auto& part : fs::directory_iterator(entry.path(), error))
        if (part.is_regular_file(error)) bytes += static_cast<int64_t>(part.file_size(error));
      models.push_back({file, entry.path().string(), bytes});
    } else if (entry.is_regular_file(error) && lower(file).ends_with(".gguf")) {
      models.push_back({file.substr(0, file.size() - 5), entry.path().string(),
                        static_cast<int64_t>(entry.file_size(error))});
    }
  }
  std::sort(models.begin(), models.end(),
            [](const LocalModel& a, const LocalModel& b) { return a.name < b.name; });
  return models;
}

std::string find_model(const std::string& wanted, const std::string& folder) {
  std::error_code error;
  if (!wanted.empty() && fs::exists(wanted, error)) return wanted;
  const auto models = list_models(folder);
  std::string name = plain_name(wanted);
  if (name.empty() || name == kDefaultModel.name) name = plain_name(std::string(kDefaultModel.file));
  std::string known;
  for (const LocalModel& model : models) {
    if (plain_name(model.name) == name) return model.path;
    known += (known.empty() ? "" : ", ") + model.name;
  }
  throw Error(
      (wanted.empty() ? "the default model " + std::string(kDefaultModel.name) : "model '" + wanted + "'") +
          " was not found: no such path, and " + folder +
          (known.empty() ? " holds no models" : " holds only " + known),
      ErrorCode::not_found);
}

}  // namespace fovea::model

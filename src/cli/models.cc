// SPDX-License-Identifier: Apache-2.0
#include "cli/models.h"

#include "cli/environment.h"
#include "fovea/core/error.h"
#include "fovea/model/model_files.h"

namespace fovea::cli {

std::filesystem::path resolve_model(const std::string& name) {
  return model::find_model(name, environment().models.string());
}

std::shared_ptr<const model::Model> load_model(const std::string& path) {
  try {
    return model::Model::load(path);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::unsupported) throw;
    throw Error(error.what());
  }
}

}  // namespace fovea::cli

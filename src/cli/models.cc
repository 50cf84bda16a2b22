// SPDX-License-Identifier: Apache-2.0
#include "cli/models.h"

#include "cli/environment.h"
#include "fovea/model/model_files.h"

namespace fovea::cli {

std::filesystem::path resolve_model(const std::string& name) {
  return model::find_model(name, environment().models.string());
}

}  // namespace fovea::cli

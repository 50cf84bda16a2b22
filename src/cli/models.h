// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "fovea/model/model.h"

namespace fovea::cli {

/// The path that `-m NAME` means: a path as it is, the name of a local model, or the default model when
/// empty. Throws Error(not_found) that says what there is.
std::filesystem::path resolve_model(const std::string& name);

/// The model at `path`. One that Fovea cannot run (another architecture) is unusable input, whatever
/// Model::load calls it.
std::shared_ptr<const model::Model> load_model(const std::string& path);

}  // namespace fovea::cli

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>

namespace fovea::cli {

/// The path that `-m NAME` means: a path as it is, the name of a local model, or the default model when
/// empty. Throws Error(not_found) that says what there is.
std::filesystem::path resolve_model(const std::string& name);

}  // namespace fovea::cli

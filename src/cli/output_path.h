// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace fovea::cli {

/// Throws unless a file can be created or replaced at `path`: looked at before long work, so that the work is
/// not lost.
void check_output_path(const std::string& path);

}  // namespace fovea::cli

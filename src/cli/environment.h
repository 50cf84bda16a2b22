// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>

namespace fovea::cli {

/// The environment variables Fovea knows. environment.cc is the only place that reads them.
///
///     FOVEA_SIMD       the SIMD target to use, as --simd
///     FOVEA_THREADS    the number of threads where a command has --threads and it is not given
///     XDG_CACHE_HOME   where models are kept: $XDG_CACHE_HOME/fovea/models, else $HOME/.cache/fovea/models
struct Environment {
  std::string simd;
  std::string threads;
  std::filesystem::path models;
};
const Environment& environment();

}  // namespace fovea::cli

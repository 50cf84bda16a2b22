// SPDX-License-Identifier: Apache-2.0
#include "cli/environment.h"

#include <cstdlib>

namespace fovea::cli {
namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

const Environment& environment() {
  static const Environment instance = [] {
    std::filesystem::path cache = variable("XDG_CACHE_HOME");
    if (cache.empty()) cache = std::filesystem::path(variable("HOME")) / ".cache";
    return Environment{variable("FOVEA_SIMD"), variable("FOVEA_THREADS"), cache / "fovea" / "models"};
  }();
  return instance;
}

}  // namespace fovea::cli

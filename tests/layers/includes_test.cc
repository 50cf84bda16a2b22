// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>

// The architecture as a test: what each folder under src/ may include of the others (docs/architecture.md).

namespace fovea {
namespace {

const std::set<std::string> kRooms = {"dense",       "sparse", "linear",   "cache",
                                      "distributed", "nn",     "analysis", "study"};
const std::set<std::string> kExchange = {"fovea/sparse/plan.h", "fovea/cache/kv_cache.h"};
const std::set<std::string> kFoundations = {"core", "io", "kernels"};
const std::set<std::string> kProcedures = {"model", "inference"};

bool allowed(const std::string& from, const std::string& to, const std::string& header) {
  if (from == to || to == "core") return true;
  if (from == "core") return false;
  if (from == "io") return to == "kernels";  // weights come out of files in the form that products take
  if (from == "kernels") return false;
  if (kRooms.contains(from)) return kFoundations.contains(to) || kExchange.contains(header);
  if (from == "model") return !kProcedures.contains(to) && to != "cli";
  return from == "cli" || to != "cli";
}

TEST(Layers, IncludesPointDownwards) {
  const std::filesystem::path root = std::filesystem::path(FOVEA_SOURCE_DIR) / "src";
  const std::regex include(R"re(^\s*#include "fovea/([a-z]+)/([^"]+)")re");
  size_t seen = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (entry.path().extension() != ".h" && entry.path().extension() != ".cc") continue;
    const std::string from = entry.path().lexically_relative(root).begin()->string();
    std::ifstream file(entry.path());
    std::smatch match;
    for (std::string line; std::getline(file, line);) {
      if (!std::regex_search(line, match, include)) continue;
      ++seen;
      const std::string to = match[1], header = "fovea/" + to + "/" + match[2].str();
      EXPECT_TRUE(allowed(from, to, header)) << entry.path() << " includes " << header;
    }
  }
  EXPECT_GT(seen, 100u) << "the scan found nothing to judge";
}

TEST(Layers, OnlySimdKernelsIncludeHighway) {
  const std::filesystem::path root = std::filesystem::path(FOVEA_SOURCE_DIR) / "src";
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (entry.path().extension() != ".h" && entry.path().extension() != ".cc") continue;
    if (entry.path().string().find("/kernels/cpu/") != std::string::npos) continue;
    std::ifstream file(entry.path());
    for (std::string line; std::getline(file, line);)
      EXPECT_FALSE(line.starts_with("#include \"hwy/") || line.starts_with("#include <hwy/")) << entry.path();
  }
}

TEST(Layers, SourcesAreAsciiWithALicenceLine) {
  for (const char* folder : {"src", "tests", "include", "examples"})
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(std::filesystem::path(FOVEA_SOURCE_DIR) / folder)) {
      if (entry.path().extension() != ".h" && entry.path().extension() != ".cc") continue;
      std::ifstream file(entry.path());
      std::string line;
      std::getline(file, line);
      EXPECT_EQ(line, "// SPDX-License-Identifier: Apache-2.0") << entry.path();
      for (int number = 2; std::getline(file, line); ++number)
        EXPECT_TRUE(
            std::all_of(line.begin(), line.end(), [](char c) { return static_cast<unsigned char>(c) < 128; }))
            << entry.path() << ":" << number;
    }
}

}  // namespace
}  // namespace fovea

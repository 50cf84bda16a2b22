// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "fovea/core/catalogue.h"
#include "fovea/io/safetensors.h"
#include "tests/support/reference.h"

// Every worked case in tests/cases: in.* go through the catalogue, out.* must come back within the case's
// tolerance.

namespace fovea {
namespace {

struct Case {
  std::string path;
  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << std::filesystem::path(c.path).stem().string();
  }
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const auto& entry : std::filesystem::directory_iterator(FOVEA_SOURCE_DIR "/tests/cases"))
    if (entry.path().extension() == ".safetensors") cases.push_back({entry.path().string()});
  std::sort(cases.begin(), cases.end(), [](const Case& a, const Case& b) { return a.path < b.path; });
  return cases;
}

options::Pairs options_of(const nlohmann::json& params) {
  options::Pairs pairs;
  for (const auto& [key, value] : params.items()) {
    if (value.is_array()) {
      std::string list;
      for (const auto& item : value) list += (list.empty() ? "" : ",") + item.dump();
      pairs.emplace_back(key, list);
    } else {
      pairs.emplace_back(key, value.is_string() ? value.get<std::string>() : value.dump());
    }
  }
  return pairs;
}

bool same_bytes(const Tensor& a, const Tensor& b) {
  const Tensor x = a.contiguous(), y = b.contiguous();
  return x.shape() == y.shape() && x.dtype() == y.dtype() &&
         std::memcmp(x.raw(), y.raw(), static_cast<size_t>(x.bytes())) == 0;
}

class WorkedCase : public testing::TestWithParam<Case> {};

TEST_P(WorkedCase, Holds) {
  const auto file = io::read_safetensors(GetParam().path);
  const Operator& op = catalogue().at(file.metadata.at("op"));
  EXPECT_EQ(std::to_string(op.paper), file.metadata.at("paper"));
  Tensors in, want;
  for (const auto& [name, tensor] : file.tensors)
    (name.starts_with("in.") ? in : want).set(name.substr(name.find('.') + 1), tensor);
  const auto tolerance = nlohmann::json::parse(file.metadata.at("tol"));
  const Tensors got = op.run(in, options_of(nlohmann::json::parse(file.metadata.at("params"))));
  for (const auto& [name, expected] : want) {
    ASSERT_TRUE(got.contains(name)) << "no output " << name;
    const double allowed = tolerance.value(name, 0.0);
    if (allowed == 0.0 || !is_float(expected.dtype()))
      EXPECT_TRUE(same_bytes(got[name], expected)) << name << " differs: " << got[name].describe();
    else
      EXPECT_LE(reference::relative_error(got[name], expected), allowed) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, WorkedCase, testing::ValuesIn(all_cases()), [](const auto& param_info) {
  std::string name = std::filesystem::path(param_info.param.path).stem().string();
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
  return name;
});

}  // namespace
}  // namespace fovea

// SPDX-License-Identifier: Apache-2.0
#include "fovea/core/options.h"

#include <gtest/gtest.h>

#include <limits>

namespace fovea {
namespace {

struct Everything {
  int64_t count = 16;
  bool flag = true;
  float scale = 0.1f;
  double share = 0.5;
  std::string mode = "union";
  std::vector<int64_t> list = {1, 2};

  static constexpr auto fields() {
    using E = Everything;
    return options::list(options::field(&E::count, "count", "how many", options::at_least(1)).alias("n"),
                         options::field(&E::flag, "flag", "whether"),
                         options::field(&E::scale, "scale", "factor", options::above(0)),
                         options::field(&E::share, "share", "part", options::above_up_to(0, 1)),
                         options::field(&E::mode, "mode", "which", options::one_of("union,first")),
                         options::field(&E::list, "list", "several", options::between(0, 9)));
  }
  void validate() const { require(count != 13, "option count = 13 is unlucky"); }
};

std::string message(const options::Pairs& pairs) {
  try {
    options::from_pairs<Everything>(pairs, "op");
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Options, ParseEveryType) {
  const auto value = options::from_pairs<Everything>(
      {{"n", "3"}, {"flag", "0"}, {"scale", "2.5e-1"}, {"share", "1"}, {"mode", "first"}, {"list", "4,5,6"}},
      "op");
  EXPECT_EQ(value.count, 3);
  EXPECT_FALSE(value.flag);
  EXPECT_EQ(value.scale, 0.25f);
  EXPECT_EQ(value.share, 1.0);
  EXPECT_EQ(value.mode, "first");
  EXPECT_EQ(value.list, (std::vector<int64_t>{4, 5, 6}));
}

TEST(Options, PrintsOnlyWhatDiffersAndParsesItBack) {
  Everything value;
  value.scale = 0.3f;
  value.list = {};
  const auto pairs = options::to_pairs(value);
  EXPECT_EQ(pairs, (options::Pairs{{"scale", "0.3"}, {"list", ""}}));
  EXPECT_EQ(options::from_pairs<Everything>(pairs, "op").scale, 0.3f);
  EXPECT_EQ(options::to_pairs(value, true).size(), 6u);
}

TEST(Options, DescribeIsTheOnlyList) {
  const auto infos = options::describe<Everything>();
  ASSERT_EQ(infos.size(), 6u);
  EXPECT_EQ(infos[0].alias, "n");
  EXPECT_EQ(infos[0].range, ">= 1");
  EXPECT_EQ(infos[2].default_value, "0.1");
  EXPECT_EQ(infos[3].range, "(0, 1]");
  EXPECT_EQ(infos[4].range, "union, first");
  EXPECT_EQ(infos[5].type, "list of int");
}

TEST(Options, RefusalsNameTheOptionTheValueAndTheRange) {
  EXPECT_EQ(message({{"count", "0"}}), "op: option count = 0 is outside its range >= 1");
  EXPECT_EQ(message({{"count", "3.5"}}), "op: option count expects an integer, got '3.5'");
  EXPECT_EQ(message({{"count", ""}}), "op: option count expects an integer, got ''");
  EXPECT_EQ(message({{"count", "99999999999999999999"}}),
            "op: option count expects an integer, got '99999999999999999999'");
  EXPECT_EQ(message({{"flag", "yes"}}), "op: option flag expects true or false, got 'yes'");
  EXPECT_EQ(message({{"scale", "nan"}}), "op: option scale expects a number, got 'nan'");
  EXPECT_EQ(message({{"share", "0"}}), "op: option share = 0 is outside its range (0, 1]");
  EXPECT_EQ(message({{"mode", "both"}}), "op: option mode = 'both' is not one of union, first");
  EXPECT_EQ(message({{"list", "1,10"}}), "op: option list = 10 is outside its range [0, 9]");
  EXPECT_EQ(message({{"list", "1,,2"}}), "op: option list expects an integer, got ''");
  EXPECT_EQ(message({{"size", "1"}}),
            "op: unknown option 'size'; it has: count, flag, scale, share, mode, list");
  EXPECT_EQ(message({{"count", "13"}}), "op: option count = 13 is unlucky");
}

TEST(Options, InfiniteFloatsAreOutsideFiniteRanges) { EXPECT_NE(message({{"share", "inf"}}), "accepted"); }

}  // namespace
}  // namespace fovea

// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/rope_scaling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "fovea/core/error.h"

namespace fovea::model {
namespace {

using Kind = RopeScaling::Kind;

double plain(int64_t m, int64_t rotated, double theta) {
  return std::pow(theta, -2.0 * static_cast<double>(m) / static_cast<double>(rotated));
}

void expect_frequency(const Rope& rope, int64_t m, double expected) {
  EXPECT_NEAR(static_cast<double>(rope.frequencies.at<float>(m)), expected, 1e-6 * expected) << "pair " << m;
}

TEST(RopeScaling, NoneIsThePowersOfTheBase) {
  const Rope rope = make_rope({}, 64, 10000, 2048);
  ASSERT_EQ(rope.frequencies.shape(), Shape{32});
  for (int64_t m = 0; m < 32; ++m) expect_frequency(rope, m, plain(m, 64, 10000));
  EXPECT_EQ(rope.magnitude, 1.0f);
}

TEST(RopeScaling, LinearDividesEveryFrequency) {
  const Rope rope = make_rope({.kind = Kind::linear, .factor = 4}, 16, 10000, 2048);
  for (int64_t m = 0; m < 8; ++m) expect_frequency(rope, m, plain(m, 16, 10000) / 4);
}

TEST(RopeScaling, NtkKeepsTheFirstFrequencyAndDividesTheLastByTheFactor) {
  const Rope rope = make_rope({.kind = Kind::ntk, .factor = 8}, 128, 10000, 2048);
  expect_frequency(rope, 0, 1.0);
  expect_frequency(rope, 63, plain(63, 128, 10000) / 8);
}

TEST(RopeScaling, DynamicIsPlainWithinTheTrainingContextAndNtkBeyond) {
  const RopeScaling scaling{.kind = Kind::dynamic, .factor = 2, .original_context = 1000};
  const Rope within = make_rope(scaling, 32, 10000, 500), beyond = make_rope(scaling, 32, 10000, 3000);
  for (int64_t m = 0; m < 16; ++m) expect_frequency(within, m, plain(m, 32, 10000));
  // 2 * 3000/1000 - 1 = 5
  expect_frequency(beyond, 15, plain(15, 32, 10000) / 5);
}

TEST(RopeScaling, YarnRampsBetweenTheChannelsOfTheTwoRotationCounts) {
  const RopeScaling scaling{.kind = Kind::yarn, .factor = 4, .original_context = 4096};
  const int64_t rotated = 128;
  const Rope rope = make_rope(scaling, rotated, 10000, 16384);
  // Pair m makes 4096 f_m / 2pi rotations: more than 32 up to pair 20, less than 1 from pair 46 on.
  const auto turns = [](int64_t m) { return 4096 * plain(m, 128, 10000) / (2 * std::numbers::pi); };
  ASSERT_GT(turns(20), 32);
  ASSERT_LT(turns(21), 32);
  ASSERT_GT(turns(45), 1);
  ASSERT_LT(turns(46), 1);
  for (int64_t m = 0; m <= 20; ++m) expect_frequency(rope, m, plain(m, rotated, 10000));
  for (int64_t m = 46; m < 64; ++m) expect_frequency(rope, m, plain(m, rotated, 10000) / 4);
  // Half way, half of each.
  expect_frequency(rope, 33, plain(33, rotated, 10000) * (0.5 + 0.5 / 4));
  EXPECT_FLOAT_EQ(rope.magnitude, static_cast<float>(0.1 * std::log(4.0) + 1));
}

TEST(RopeScaling, YarnTakesAGivenMagnitude) {
  const Rope rope = make_rope({.kind = Kind::yarn, .factor = 4, .original_context = 4096, .magnitude = 0.75},
                              64, 10000, 4096);
  EXPECT_EQ(rope.magnitude, 0.75f);
}

TEST(RopeScaling, Llama3KeepsShortWavesDividesLongOnesAndBlendsBetween) {
  const RopeScaling scaling{.kind = Kind::llama3, .factor = 8, .original_context = 8192};
  const int64_t rotated = 128;
  const Rope rope = make_rope(scaling, rotated, 500000, 131072);
  int kept = 0, divided = 0, blended = 0;
  for (int64_t m = 0; m < 64; ++m) {
    const double f = plain(m, rotated, 500000), wave = 2 * std::numbers::pi / f;
    if (wave < 8192.0 / 4) {
      expect_frequency(rope, m, f);
      ++kept;
    } else if (wave > 8192.0) {
      expect_frequency(rope, m, f / 8);
      ++divided;
    } else {
      const double smooth = (8192.0 / wave - 1) / (4.0 - 1);
      expect_frequency(rope, m, (1 - smooth) * f / 8 + smooth * f);
      ++blended;
    }
  }
  EXPECT_EQ(kept, 29);
  EXPECT_GT(divided, 20);
  EXPECT_GT(blended, 3);
}

TEST(RopeScaling, DivisorsOfAFileApplyPerPair) {
  const Rope rope = make_rope({.divisors = {1, 2, 8, 8}}, 8, 10000, 100);
  const double divisors[] = {1, 2, 8, 8};
  for (int64_t m = 0; m < 4; ++m) expect_frequency(rope, m, plain(m, 8, 10000) / divisors[m]);
}

TEST(RopeScaling, RefusesWhatItCannotScale) {
  EXPECT_THROW(make_rope({}, 7, 10000, 100), Error);
  EXPECT_THROW(make_rope({}, 8, 1, 100), Error);
  EXPECT_THROW(make_rope({}, 8, NAN, 100), Error);
  EXPECT_THROW(make_rope({.kind = Kind::linear, .factor = 0}, 8, 10000, 100), Error);
  EXPECT_THROW(make_rope({.kind = Kind::yarn, .factor = 2}, 8, 10000, 100), Error);
  EXPECT_THROW(make_rope({.divisors = {1, 2}}, 8, 10000, 100), Error);
  EXPECT_THROW(make_rope({.divisors = {1, 2, 0, 1}}, 8, 10000, 100), Error);
  EXPECT_THROW(parse_rope_scaling("longrope", "config.json"), Error);
}

}  // namespace
}  // namespace fovea::model

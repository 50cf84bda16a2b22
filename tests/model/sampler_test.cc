// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/sampler.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <set>

#include "fovea/core/error.h"

namespace fovea::model {
namespace {

Tensor logits_of(const std::vector<float>& values) {
  return Tensor::from(values, {static_cast<int64_t>(values.size())});
}

TEST(Sampler, GreedyTakesTheLargestAndOfEqualsTheLowerId) {
  Sampler sampler;
  EXPECT_EQ(sampler.sample(logits_of({0, 3, 2, 3}), {}), 1);
  EXPECT_EQ(sampler.sample(logits_of({NAN, -INFINITY, -2, -3}), {}), 2);
}

TEST(Sampler, TemperatureDrawsByTheSoftmax) {
  Sampler sampler({.temperature = 2, .seed = 5});
  const Tensor logits = logits_of({0, 2, 4});  // weights 1, e, e^2
  std::array<int, 3> counts{};
  const int draws = 20000;
  for (int i = 0; i < draws; ++i) ++counts[static_cast<size_t>(sampler.sample(logits, {}))];
  const double total = 1 + std::exp(1.0) + std::exp(2.0);
  for (int i = 0; i < 3; ++i)
    EXPECT_NEAR(counts[static_cast<size_t>(i)] / static_cast<double>(draws), std::exp(i) / total, 0.015) << i;
}

std::set<int32_t> support(const SamplerOptions& options, const Tensor& logits) {
  Sampler sampler(options);
  std::set<int32_t> seen;
  for (int i = 0; i < 4000; ++i) seen.insert(sampler.sample(logits, {}));
  return seen;
}

TEST(Sampler, TopKKeepsTheKMostLikely) {
  EXPECT_EQ(support({.temperature = 5, .top_k = 2}, logits_of({1, 4, 2, 3})), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(support({.temperature = 5, .top_k = 2}, logits_of({1, 1, 1})), (std::set<int32_t>{0, 1}));
}

TEST(Sampler, TopPKeepsTheFewestThatReachTheSum) {
  // Probabilities 0.5, 0.3, 0.15, 0.05.
  const Tensor logits = logits_of({std::log(0.15f), std::log(0.5f), std::log(0.05f), std::log(0.3f)});
  EXPECT_EQ(support({.temperature = 1, .top_p = 0.45}, logits), (std::set<int32_t>{1}));
  EXPECT_EQ(support({.temperature = 1, .top_p = 0.7}, logits), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(support({.temperature = 1, .top_p = 0.9}, logits), (std::set<int32_t>{0, 1, 3}));
}

TEST(Sampler, MinPDropsWhatIsFarBelowTheBest) {
  const Tensor logits = logits_of({std::log(0.15f), std::log(0.5f), std::log(0.05f), std::log(0.3f)});
  EXPECT_EQ(support({.temperature = 1, .min_p = 0.2}, logits), (std::set<int32_t>{0, 1, 3}));
  EXPECT_EQ(support({.temperature = 1, .min_p = 1}, logits), (std::set<int32_t>{1}));
}

TEST(Sampler, RepetitionPenaltyDividesPositiveAndMultipliesNegativeLogitsOnce) {
  Sampler sampler({.repetition_penalty = 2});
  const std::vector<int32_t> history = {1, 1, 1};
  EXPECT_EQ(sampler.sample(logits_of({2.5f, 4}), history), 0);  // 4/2 < 2.5, and once: 4/8 otherwise too
  EXPECT_EQ(sampler.sample(logits_of({1.5f, 4}), history), 1);  // 4/2 > 1.5; three times would be 0.5
  EXPECT_EQ(sampler.sample(logits_of({-3, -2}), history), 0);   // -2*2 < -3
}

TEST(Sampler, PenaltyForgetsTokensOutsideTheWindow) {
  Sampler sampler({.repetition_penalty = 100, .repetition_window = 2});
  EXPECT_EQ(sampler.sample(logits_of({1, 4}), std::vector<int32_t>{1, 0, 0}), 1);
  EXPECT_EQ(sampler.sample(logits_of({1, 4}), std::vector<int32_t>{0, 1, 5}), 0);
}

TEST(Sampler, TheSameSeedDrawsTheSame) {
  const SamplerOptions options{.temperature = 1, .seed = 42};
  Sampler a(options), b(options), c({.temperature = 1, .seed = 43});
  const Tensor logits = logits_of(std::vector<float>(100, 0.0f));
  int different = 0;
  for (int i = 0; i < 50; ++i) {
    const int32_t drawn = a.sample(logits, {});
    EXPECT_EQ(drawn, b.sample(logits, {}));
    different += drawn != c.sample(logits, {});
  }
  EXPECT_GT(different, 30);
}

TEST(Sampler, RefusesBadOptionsAndHopelessLogits) {
  EXPECT_THROW(Sampler({.temperature = -1}), Error);
  EXPECT_THROW(Sampler({.top_p = 0}), Error);
  EXPECT_THROW(Sampler({.repetition_penalty = 0}), Error);
  Sampler sampler;
  EXPECT_THROW(sampler.sample(logits_of({-INFINITY, NAN}), {}), Error);
  EXPECT_THROW(sampler.sample(logits_of({INFINITY, 0}), {}), Error);
  EXPECT_THROW(sampler.sample(Tensor::zeros({2, 3}), {}), Error);
}

}  // namespace
}  // namespace fovea::model

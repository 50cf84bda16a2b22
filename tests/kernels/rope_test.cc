// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "fovea/core/thread_pool.h"
#include "support/reference.h"

namespace fovea::kernels {
namespace {

std::mt19937 generator(5);

Tensor random_heads(const Shape& shape) {
  std::normal_distribution<float> normal;
  const Tensor x = Tensor::empty(shape);
  for (int64_t i = 0; i < x.size(); ++i) x.data<float>()[i] = normal(generator);
  return x;
}

Tensor positions(int64_t first, int64_t count) {
  std::vector<int64_t> values;
  for (int64_t t = 0; t < count; ++t) values.push_back(first + t);
  return Tensor::from(values, {count});
}

// Rotates by the definition, in double precision.
Tensor rotated(const Tensor& x, int64_t first, int64_t channels, double theta) {
  const Tensor y = x.clone();
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t h = 0; h < x.dim(1); ++h)
      for (int64_t t = 0; t < x.dim(2); ++t)
        for (int64_t m = 0; m < channels / 2; ++m) {
          const double frequency = static_cast<float>(
              std::pow(theta, -2.0 * static_cast<double>(m) / static_cast<double>(channels)));
          const double angle = static_cast<double>(first + t) * frequency;
          const double low = x.at<float>(b, h, t, m), high = x.at<float>(b, h, t, m + channels / 2);
          y.at<float>(b, h, t, m) = static_cast<float>(low * std::cos(angle) - high * std::sin(angle));
          y.at<float>(b, h, t, m + channels / 2) =
              static_cast<float>(high * std::cos(angle) + low * std::sin(angle));
        }
  return y;
}

TEST(Rope, RotatesThePairsOfTheFirstChannels) {
  for (int64_t channels : {2, 10, 64}) {
    const Tensor x = random_heads({2, 3, 7, 66}), want = rotated(x, 100000, channels, 10000.0);
    apply_rope(x, rope_table(positions(100000, 7), rope_frequencies(channels, 10000.0)));
    EXPECT_LT(reference::relative_error(x, want), 1e-6);
  }
}

TEST(Rope, PositionZeroChangesNothing) {
  const Tensor x = random_heads({1, 2, 1, 64}), before = x.clone();
  apply_rope(x, rope_table(positions(0, 1), rope_frequencies(64, 10000.0)));
  EXPECT_EQ(reference::relative_error(x, before), 0.0);
}

TEST(Rope, ProductsDependOnTheDistanceAlone) {
  const Tensor q = random_heads({1, 1, 1, 64}), k = random_heads({1, 1, 1, 64});
  const Tensor frequencies = rope_frequencies(64, 10000.0);
  const auto product = [&](int64_t at_q, int64_t at_k) {
    const Tensor a = q.clone(), b = k.clone();
    apply_rope(a, rope_table(positions(at_q, 1), frequencies));
    apply_rope(b, rope_table(positions(at_k, 1), frequencies));
    double sum = 0;
    for (int64_t i = 0; i < 64; ++i) sum += a.data<float>()[i] * b.data<float>()[i];
    return sum;
  };
  EXPECT_NEAR(product(17, 5), product(1017, 1005), 1e-4);
}

TEST(Rope, WorksOnStridedHeadsAndBothPositionTypes) {
  const Tensor tokens = random_heads({1, 9, 3, 64}), want = rotated(tokens.transpose(1, 2), 4, 64, 500.0);
  const std::vector<int32_t> at{4, 5, 6, 7, 8, 9, 10, 11, 12};
  apply_rope(tokens.transpose(1, 2), rope_table(Tensor::from(at, {9}), rope_frequencies(64, 500.0)));
  EXPECT_LT(reference::relative_error(tokens.transpose(1, 2), want), 1e-6);
}

TEST(Rope, MagnitudeScalesTheTable) {
  const RopeTable table = rope_table(positions(3, 2), rope_frequencies(8, 10000.0), 1.5f);
  EXPECT_NEAR(table.cos.at<float>(0, 0), 1.5 * std::cos(3.0), 1e-6);
  EXPECT_NEAR(table.sin.at<float>(1, 0), 1.5 * std::sin(4.0), 1e-6);
}

TEST(Rope, ManyTokensAreTheSameForOneAndTwoThreads) {
  const Tensor x = random_heads({1, 4, 700, 64}), y = x.clone(), frequencies = rope_frequencies(64, 10000.0);
  set_threads(1);
  apply_rope(x, rope_table(positions(0, 700), frequencies));
  set_threads(2);
  apply_rope(y, rope_table(positions(0, 700), frequencies));
  set_threads(0);
  EXPECT_EQ(reference::relative_error(x, y), 0.0);
}

TEST(Rope, RefusesTablesThatDoNotFit) {
  const RopeTable table = rope_table(positions(0, 4), rope_frequencies(64, 10000.0));
  EXPECT_THROW(apply_rope(Tensor::zeros({1, 2, 5, 64}), table), Error);
  EXPECT_THROW(apply_rope(Tensor::zeros({1, 2, 4, 32}), table), Error);
  EXPECT_THROW(rope_frequencies(7, 10000.0), Error);
  EXPECT_THROW(rope_table(Tensor::zeros({4}), rope_frequencies(8, 10000.0)), Error);
}

}  // namespace
}  // namespace fovea::kernels

// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "fovea/core/thread_pool.h"
#include "support/reference.h"

namespace fovea::kernels {
namespace {

std::mt19937 generator(3);

Tensor random_values(int64_t count) {
  std::normal_distribution<float> normal(0.0f, 4.0f);
  const Tensor x = Tensor::empty({count});
  for (int64_t i = 0; i < count; ++i) x.data<float>()[i] = normal(generator);
  return x;
}

TEST(SiluMultiply, MatchesDoublePrecisionWithAndWithoutAGate) {
  for (int64_t n : {1, 15, 100, 40000})
    for (float beta : {1.0f, 1.702f}) {
      const Tensor x = random_values(n), gate = random_values(n);
      const Tensor plain = Tensor::empty({n}), gated = Tensor::empty({n});
      for (int64_t i = 0; i < n; ++i) {
        const double v = x.at<float>(i), silu = v / (1 + std::exp(-static_cast<double>(beta) * v));
        plain.at<float>(i) = static_cast<float>(silu);
        gated.at<float>(i) = static_cast<float>(silu * gate.at<float>(i));
      }
      const Tensor y = Tensor::empty({n});
      silu_multiply(x, {}, y, beta);
      EXPECT_LT(reference::relative_error(y, plain), 1e-6);
      silu_multiply(x, gate, x, beta);
      EXPECT_LT(reference::relative_error(x, gated), 1e-6);
    }
}

TEST(SiluMultiply, LargeValuesSaturate) {
  const Tensor x = Tensor::from(std::vector<float>{200.0f, -200.0f}, {2}), y = Tensor::empty({2});
  silu_multiply(x, {}, y);
  EXPECT_EQ(y.at<float>(0), 200.0f);
  EXPECT_EQ(y.at<float>(1), 0.0f);
}

TEST(AddInPlace, AddsEveryElement) {
  for (int64_t n : {0, 1, 33, 70000}) {
    const Tensor x = random_values(n), y = random_values(n), want = y.clone();
    for (int64_t i = 0; i < n; ++i) want.at<float>(i) += x.at<float>(i);
    add_in_place(y, x);
    EXPECT_EQ(reference::relative_error(y, want), 0.0);
  }
}

TEST(Elementwise, SameForOneAndTwoThreads) {
  const Tensor x = random_values(100001), one = Tensor::empty({100001}), two = Tensor::empty({100001});
  set_threads(1);
  silu_multiply(x, x, one);
  set_threads(2);
  silu_multiply(x, x, two);
  set_threads(0);
  EXPECT_EQ(reference::relative_error(one, two), 0.0);
}

TEST(Elementwise, RefusesOtherShapesAndStrides) {
  EXPECT_THROW(add_in_place(Tensor::zeros({3}), Tensor::zeros({4})), Error);
  EXPECT_THROW(silu_multiply(Tensor::zeros({4}), Tensor::zeros({2}), Tensor::zeros({4})), Error);
  EXPECT_THROW(add_in_place(Tensor::zeros({3, 4}).transpose(0, 1), Tensor::zeros({4, 3})), Error);
}

}  // namespace
}  // namespace fovea::kernels

// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/hadamard.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "fovea/core/rng.h"
#include "fovea/core/thread_pool.h"
#include "support/reference.h"

namespace fovea::kernels {
namespace {

double entry(int64_t a, int64_t b) {
  return std::popcount(static_cast<uint64_t>(a & b)) % 2 == 0 ? 1.0 : -1.0;
}

Tensor by_definition(const Tensor& x, int64_t n) {
  const Tensor y = Tensor::empty(x.shape());
  for (int64_t run = 0; run < x.size(); run += n)
    for (int64_t i = 0; i < n; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < n; ++j) sum += entry(i, j) * static_cast<double>(x.data<float>()[run + j]);
      y.data<float>()[run + i] = static_cast<float>(sum / std::sqrt(static_cast<double>(n)));
    }
  return y;
}

TEST(Hadamard, EqualsTheSylvesterMatrixForEverySize) {
  for (int64_t n = 1; n <= 2048; n *= 2)
    for (const int64_t runs : {1, 3}) {
      const Tensor x = random_normal({3, runs * n}, static_cast<uint64_t>(n));
      const Tensor y = x.clone();
      hadamard_rows(y, n);
      EXPECT_LT(reference::relative_error(y, by_definition(x, n)), 1e-6) << n;
    }
}

TEST(Hadamard, TwiceIsTheIdentity) {
  for (const int64_t n : {2, 16, 64, 128, 1024}) {
    const Tensor x = random_normal({5, n}, 2), y = x.clone();
    hadamard_rows(y, n);
    hadamard_rows(y, n);
    EXPECT_LT(reference::relative_error(y, x), 1e-6);
  }
}

TEST(Hadamard, ConstantRunsBecomeOneChannel) {
  for (const int64_t n : {4, 64, 256, 512}) {
    const Tensor x = Tensor::full({2, n}, 1.7f);
    hadamard_rows(x, n);
    for (int64_t i = 1; i < n; ++i) EXPECT_EQ(x.at<float>(1, i), 0.0f);
    EXPECT_NEAR(x.at<float>(1, 0), 1.7 * std::sqrt(static_cast<double>(n)), 1e-4);
  }
}

TEST(Hadamard, StridedRowsAndThreads) {
  const Tensor x = random_normal({40, 8, 64}, 6), want = x.clone();
  hadamard_rows(want, 64);
  for (const int threads : {1, 2}) {
    set_threads(threads);
    const Tensor copy = x.clone();
    hadamard_rows(copy.transpose(0, 1), 64);
    EXPECT_EQ(reference::relative_error(copy, want), 0.0);
  }
  set_threads(0);
  hadamard_rows(Tensor::zeros({0, 8}), 8);
}

TEST(Hadamard, Refusals) {
  EXPECT_THROW(hadamard_rows(Tensor::zeros({2, 12}), 12), Error);
  EXPECT_THROW(hadamard_rows(Tensor::zeros({2, 12}), 8), Error);
  EXPECT_THROW(hadamard_rows(Tensor::zeros({8, 4}).transpose(0, 1), 8), Error);
  EXPECT_THROW(hadamard_rows(Tensor::zeros({2, 8}).to(DType::f16), 8), Error);
}

}  // namespace
}  // namespace fovea::kernels

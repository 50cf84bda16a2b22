// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "fovea/core/thread_pool.h"
#include "support/reference.h"

namespace fovea::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
std::mt19937 generator(11);

Tensor random_rows(const Shape& shape) {
  std::normal_distribution<float> normal(0.5f, 2.0f);
  const Tensor x = Tensor::empty(shape);
  for (int64_t i = 0; i < x.size(); ++i) x.data<float>()[i] = normal(generator);
  return x;
}

Tensor row_of(std::initializer_list<float> values) {
  return Tensor::from(std::vector<float>(values), {static_cast<int64_t>(values.size())});
}

std::vector<int32_t> indices_of(const Tensor& t) { return {t.data<int32_t>(), t.data<int32_t>() + t.size()}; }

// Indices by the definition: sort by (value descending, index ascending), take `count`, sort by index.
std::vector<int32_t> top_by_sorting(const float* x, int64_t length, int64_t count) {
  std::vector<int32_t> order(static_cast<size_t>(length));
  std::iota(order.begin(), order.end(), 0);
  const auto value = [x](int32_t i) { return std::isnan(x[i]) ? -kInfinity : x[i]; };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return value(a) > value(b); });
  order.resize(static_cast<size_t>(std::min(count, length)));
  std::sort(order.begin(), order.end());
  return order;
}

TEST(SoftmaxRows, MatchesDoublePrecision) {
  for (int64_t n : {1, 7, 16, 63, 65, 100, 257}) {
    const Tensor x = random_rows({3, 2, n}), got = softmax_rows(x), want = Tensor::empty(x.shape());
    for (int64_t r = 0; r < 6; ++r) {
      const float* row = x.data<float>() + r * n;
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += std::exp(static_cast<double>(row[i]));
      for (int64_t i = 0; i < n; ++i)
        want.data<float>()[r * n + i] = static_cast<float>(std::exp(static_cast<double>(row[i])) / sum);
    }
    EXPECT_LT(reference::relative_error(got, want), 1e-6) << n;
  }
}

TEST(SoftmaxRows, ARowOfMinusInfinityIsZero) {
  const Tensor x = Tensor::full({2, 37}, -kInfinity);
  x.at<float>(1, 20) = 3.0f;
  const Tensor y = softmax_rows(x);
  for (int64_t i = 0; i < 37; ++i) {
    EXPECT_EQ(y.at<float>(0, i), 0.0f);
    EXPECT_EQ(y.at<float>(1, i), i == 20 ? 1.0f : 0.0f);
  }
}

TEST(SoftmaxRows, ShiftsThatOverflowExpChangeNothing) {
  const Tensor y = softmax_rows(row_of({1000.0f, 1001.0f, -1000.0f}));
  EXPECT_NEAR(y.at<float>(1), 1 / (1 + std::exp(-1.0)), 1e-6);
  EXPECT_EQ(y.at<float>(2), 0.0f);
}

TEST(SoftmaxRows, ReadsStridedRows) {
  const Tensor x = random_rows({4, 50});
  EXPECT_EQ(reference::relative_error(softmax_rows(x.slice(1, 5, 38).slice(0, 0, 4, 2)),
                                      softmax_rows(x.slice(1, 5, 38).slice(0, 0, 4, 2).contiguous())),
            0.0);
  const Tensor flipped = softmax_rows(x.transpose(0, 1));
  EXPECT_LT(reference::relative_error(flipped, softmax_rows(x.transpose(0, 1).contiguous())), 1e-12);
}

TEST(TopKRows, EqualsSortingForAnyLengthAndCount) {
  std::uniform_int_distribution<int> few(0, 9);
  for (int64_t n : {1, 5, 16, 63, 65, 257, 1000, 5000})
    for (int64_t count : {1, 2, 8, 16, 60, 300, 5000}) {
      const Tensor x = random_rows({2, n});
      // The second row is full of equal values.
      for (int64_t i = 0; i < n; ++i) x.at<float>(1, i) = static_cast<float>(few(generator));
      const Tensor top = top_k_rows(x, count);
      for (int64_t r = 0; r < 2; ++r)
        EXPECT_EQ(indices_of(top.select(0, r)), top_by_sorting(x.data<float>() + r * n, n, count))
            << n << " " << count << " " << r;
    }
}

TEST(TopKRows, InfinityWinsNanLosesAndZerosAreEqual) {
  EXPECT_EQ(indices_of(top_k_rows(row_of({1, kNan, kInfinity, 2, kInfinity}), 2)),
            (std::vector<int32_t>{2, 4}));
  EXPECT_EQ(indices_of(top_k_rows(row_of({kNan, -kInfinity, -5, kNan}), 2)), (std::vector<int32_t>{0, 2}));
  EXPECT_EQ(indices_of(top_k_rows(row_of({-1, -0.0f, 0.0f}), 1)), (std::vector<int32_t>{1}));
  EXPECT_EQ(indices_of(top_k_rows(Tensor::full({100}, kNan), 3)), (std::vector<int32_t>{0, 1, 2}));
}

TEST(TopKRows, OddEndsHoldTheLargest) {
  const Tensor x = Tensor::zeros({1003});
  x.at<float>(1002) = 2;
  x.at<float>(0) = 1;
  EXPECT_EQ(indices_of(top_k_rows(x, 2)), (std::vector<int32_t>{0, 1002}));
}

TEST(TopKRows, ZeroCountAndEmptyRowsGiveNothing) {
  EXPECT_EQ(top_k_rows(Tensor::zeros({3, 4}), 0).shape(), (Shape{3, 0}));
  EXPECT_EQ(top_k_rows(Tensor::zeros({3, 0}), 5).shape(), (Shape{3, 0}));
  EXPECT_THROW(top_k_rows(Tensor::zeros({3, 4}), -1), Error);
}

TEST(ArgsortRows, EqualsAStableSort) {
  std::uniform_int_distribution<int> few(-4, 4);
  for (int64_t n : {1, 2, 65, 1000, 5000}) {
    const Tensor x = random_rows({2, n});
    for (int64_t i = 0; i < n; ++i) x.at<float>(1, i) = static_cast<float>(few(generator)) * 0.5f;
    const Tensor order = argsort_rows(x);
    for (int64_t r = 0; r < 2; ++r) {
      std::vector<int32_t> want(static_cast<size_t>(n));
      std::iota(want.begin(), want.end(), 0);
      std::stable_sort(want.begin(), want.end(),
                       [&](int32_t a, int32_t b) { return x.at<float>(r, a) < x.at<float>(r, b); });
      EXPECT_EQ(indices_of(order.select(0, r)), want);
    }
  }
}

TEST(ArgsortRows, InfinitiesAreAtTheEndsAndNanIsLast) {
  EXPECT_EQ(indices_of(argsort_rows(row_of({kNan, kInfinity, 0.0f, -0.0f, -kInfinity, -1}))),
            (std::vector<int32_t>{4, 5, 2, 3, 1, 0}));
}

TEST(RmsNorm, MatchesDoublePrecision) {
  for (int64_t n : {1, 15, 64, 100, 576}) {
    const Tensor x = random_rows({2, 3, n}), weight = random_rows({n}), want = Tensor::empty(x.shape());
    for (int64_t r = 0; r < 6; ++r) {
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += std::pow(static_cast<double>(x.data<float>()[r * n + i]), 2);
      for (int64_t i = 0; i < n; ++i)
        want.data<float>()[r * n + i] =
            static_cast<float>(static_cast<double>(x.data<float>()[r * n + i]) /
                               std::sqrt(sum / static_cast<double>(n) + 1e-5) * weight.at<float>(i));
    }
    EXPECT_LT(reference::relative_error(rms_norm(x, weight, 1e-5f), want), 1e-6);
  }
}

TEST(LayerNorm, MatchesDoublePrecisionFarFromZero) {
  for (int64_t n : {2, 33, 256}) {
    const Tensor x = random_rows({4, n}), weight = random_rows({n}), bias = random_rows({n});
    for (int64_t i = 0; i < x.size(); ++i) x.data<float>()[i] += 100.0f;
    const Tensor want = Tensor::empty(x.shape());
    for (int64_t r = 0; r < 4; ++r) {
      double mean = 0, variance = 0;
      for (int64_t i = 0; i < n; ++i) mean += x.at<float>(r, i);
      mean /= static_cast<double>(n);
      for (int64_t i = 0; i < n; ++i) variance += std::pow(x.at<float>(r, i) - mean, 2);
      variance /= static_cast<double>(n);
      for (int64_t i = 0; i < n; ++i)
        want.at<float>(r, i) =
            static_cast<float>((x.at<float>(r, i) - mean) / std::sqrt(variance + 1e-5) * weight.at<float>(i) +
                               bias.at<float>(i));
    }
    EXPECT_LT(reference::relative_error(layer_norm(x, weight, bias, 1e-5f), want), 1e-5);
  }
}

TEST(Norms, RefuseWeightsOfAnotherLength) {
  EXPECT_THROW(rms_norm(Tensor::zeros({2, 4}), Tensor::zeros({5}), 1e-5f), Error);
  EXPECT_THROW(layer_norm(Tensor::zeros({2, 4}), Tensor::zeros({4}), Tensor::zeros({3}), 1e-5f), Error);
}

TEST(Rows, ResultsAreTheSameForOneAndTwoThreads) {
  const Tensor x = random_rows({300, 257}), weight = random_rows({257});
  set_threads(1);
  const Tensor softmax = softmax_rows(x), norm = rms_norm(x, weight, 1e-5f), top = top_k_rows(x, 9);
  set_threads(2);
  EXPECT_EQ(reference::relative_error(softmax_rows(x), softmax), 0.0);
  EXPECT_EQ(reference::relative_error(rms_norm(x, weight, 1e-5f), norm), 0.0);
  EXPECT_EQ(indices_of(top_k_rows(x, 9)), indices_of(top));
  set_threads(0);
}

}  // namespace
}  // namespace fovea::kernels

// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/pooling.h"

#include <gtest/gtest.h>

#include <cmath>

#include "fovea/core/memory.h"
#include "fovea/core/rng.h"
#include "fovea/core/thread_pool.h"
#include "support/reference.h"

namespace fovea::kernels {
namespace {

struct Sizes {
  int64_t batch, heads_q, heads_kv, tq, tk, dim;
};
const Sizes kSizes[] = {{1, 1, 1, 1, 1, 1},
                        {2, 4, 2, 3, 63, 7},
                        {1, 6, 2, 5, 100, 32},
                        {1, 2, 1, 1, 257, 20},
                        {1, 3, 3, 17, 65, 48}};

class Pooling : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override { memory::set_poison(true); }
  void TearDown() override {
    memory::set_poison(false);
    set_threads(0);
  }
  Tensor random(const Shape& shape, uint64_t seed) const { return random_normal(shape, seed).to(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Types, Pooling, testing::Values(DType::f32, DType::f16, DType::bf16));

TEST_P(Pooling, MeansAndBoundsOfRaggedBlocks) {
  for (const Sizes& s : kSizes)
    for (const int64_t block : {1, 16, 1000}) {
      const Tensor x = random({s.batch, s.heads_kv, s.tk, s.dim}, 3), wide = x.to(DType::f32);
      const Tensor means = block_means(x, block);
      const Bounds bounds = page_bounds(x, block);
      ASSERT_EQ(means.dim(2), (s.tk + block - 1) / block);
      for (int64_t b = 0; b < s.batch; ++b)
        for (int64_t h = 0; h < s.heads_kv; ++h)
          for (int64_t p = 0; p < means.dim(2); ++p)
            for (int64_t c = 0; c < s.dim; ++c) {
              double sum = 0;
              float low = INFINITY, high = -INFINITY;
              const int64_t end = std::min(s.tk, (p + 1) * block);
              for (int64_t t = p * block; t < end; ++t) {
                const float value = wide.at<float>(b, h, t, c);
                sum += static_cast<double>(value);
                low = std::min(low, value);
                high = std::max(high, value);
              }
              ASSERT_NEAR(means.at<float>(b, h, p, c), sum / static_cast<double>(end - p * block), 1e-5);
              ASSERT_EQ(bounds.low.at<float>(b, h, p, c), low);
              ASSERT_EQ(bounds.high.at<float>(b, h, p, c), high);
            }
    }
}

TEST_P(Pooling, PairScoresEqualTheDefinition) {
  for (const Sizes& s : kSizes) {
    const Tensor q = random({s.batch, s.heads_q, s.tq, s.dim}, 1),
                 k = random({s.batch, s.heads_kv, s.tk, s.dim}, 2);
    const Tensor wide_q = q.to(DType::f32), wide_k = k.to(DType::f32);
    const Tensor got = pair_scores(q, k, 0.3f), want = Tensor::empty(got.shape());
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t h = 0; h < s.heads_q; ++h)
        for (int64_t i = 0; i < s.tq; ++i)
          for (int64_t j = 0; j < s.tk; ++j) {
            double sum = 0;
            for (int64_t c = 0; c < s.dim; ++c)
              sum += static_cast<double>(wide_q.at<float>(b, h, i, c)) *
                     static_cast<double>(wide_k.at<float>(b, h / (s.heads_q / s.heads_kv), j, c));
            want.at<float>(b, h, i, j) = static_cast<float>(0.3 * sum);
          }
    EXPECT_LT(reference::relative_error(got, want), 1e-6);
  }
}

TEST_P(Pooling, BoundScoresEqualTheDefinition) {
  for (const Sizes& s : kSizes) {
    const Tensor q = random({s.batch, s.heads_q, s.tq, s.dim}, 1),
                 k = random({s.batch, s.heads_kv, s.tk, s.dim}, 2);
    const Tensor wide_q = q.to(DType::f32);
    const Bounds bounds = page_bounds(k, 5);
    const Tensor got = bound_scores(q, bounds), want = Tensor::empty(got.shape());
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t h = 0; h < s.heads_q; ++h)
        for (int64_t i = 0; i < s.tq; ++i)
          for (int64_t p = 0; p < bounds.low.dim(2); ++p) {
            double sum = 0;
            for (int64_t c = 0; c < s.dim; ++c) {
              const double x = wide_q.at<float>(b, h, i, c);
              const int64_t g = h / (s.heads_q / s.heads_kv);
              sum += std::max(x * static_cast<double>(bounds.low.at<float>(b, g, p, c)),
                              x * static_cast<double>(bounds.high.at<float>(b, g, p, c)));
            }
            want.at<float>(b, h, i, p) = static_cast<float>(sum);
          }
    EXPECT_LT(reference::relative_error(got, want), 1e-6);
  }
}

TEST_P(Pooling, StripSumsAddUpTheCausalProbabilities) {
  for (const Sizes& s : kSizes)
    for (const int64_t rows : {1, 4, 64}) {
      const Tensor q = random({s.batch, s.heads_q, s.tq, s.dim}, 1),
                   k = random({s.batch, s.heads_kv, s.tk, s.dim}, 2);
      reference::Problem problem;
      problem.q = q.to(DType::f32);
      problem.k = k.to(DType::f32);
      problem.visible = reference::causal(s.tq, s.tk);
      const Tensor columns = Tensor::zeros({s.batch, s.heads_q, s.tk}),
                   diagonals = Tensor::zeros(columns.shape());
      for (int64_t b = 0; b < s.batch; ++b)
        for (int64_t h = 0; h < s.heads_q; ++h)
          for (int64_t i = std::max<int64_t>(0, s.tq - rows); i < s.tq; ++i) {
            const auto row = reference::row_of(problem, problem.q, problem.k, b, h, i);
            for (int64_t j = 0; j <= i + s.tk - s.tq; ++j) {
              columns.at<float>(b, h, j) += static_cast<float>(row.probability[static_cast<size_t>(j)]);
              diagonals.at<float>(b, h, i + s.tk - s.tq - j) +=
                  static_cast<float>(row.probability[static_cast<size_t>(j)]);
            }
          }
      const StripSums got = strip_sums(q, k, rows);
      EXPECT_LT(reference::relative_error(got.columns, columns), 3e-6);
      EXPECT_LT(reference::relative_error(got.diagonals, diagonals), 3e-6);
    }
}

TEST_P(Pooling, MoreQueriesThanKeysLeaveTheFirstRowsOut) {
  const Tensor q = random({1, 2, 9, 16}, 1), k = random({1, 1, 4, 16}, 2);
  const StripSums all = strip_sums(q, k, 9), last = strip_sums(q, k, 4);
  EXPECT_EQ(reference::relative_error(all.columns, last.columns), 0.0);
  EXPECT_EQ(reference::relative_error(all.diagonals, last.diagonals), 0.0);
}

TEST_P(Pooling, StridedInputsAndThreadCountsChangeNothing) {
  const Tensor q = random({2, 40, 4, 48}, 1).transpose(1, 2), k = random({2, 300, 2, 48}, 2).transpose(1, 2);
  auto all = [](const Tensor& a, const Tensor& b) {
    const StripSums sums = strip_sums(a, b, 20);
    const Bounds bounds = page_bounds(b, 16);
    return std::vector<Tensor>{
        pair_scores(a, b, 1.0f), bound_scores(a, bounds), block_means(b, 7), bounds.low, sums.columns,
        sums.diagonals};
  };
  set_threads(1);
  const auto want = all(q.clone(), k.clone());
  set_threads(2);
  const auto got = all(q, k);
  for (size_t i = 0; i < want.size(); ++i) EXPECT_EQ(reference::relative_error(got[i], want[i]), 0.0) << i;
}

TEST_P(Pooling, EmptyAxes) {
  const Tensor q = random({1, 2, 3, 8}, 1), none = random({1, 2, 0, 8}, 1);
  EXPECT_EQ(block_means(none, 4).dim(2), 0);
  EXPECT_EQ(pair_scores(q, none, 1.0f).size(), 0);
  EXPECT_EQ(bound_scores(none, page_bounds(q, 2)).size(), 0);
  EXPECT_EQ(strip_sums(none, q, 4).columns.at<float>(0, 0, 2), 0.0f);
  EXPECT_EQ(strip_sums(q, none, 4).columns.size(), 0);
}

TEST(PoolingMemory, StripSumsHoldOneStripPerWorker) {
  set_threads(2);
  const Tensor q = random_normal({1, 8, 64, 32}, 1), k = random_normal({1, 8, 4096, 32}, 2);
  memory::reset_peak();
  const int64_t before = memory::peak_bytes();
  strip_sums(q, k, 64);
  EXPECT_LT(memory::peak_bytes() - before, 2 * 64 * 4096 * 4 * 14 / 10);
  set_threads(0);
}

TEST(PoolingRefusals, ShapesThatDoNotFit) {
  const Tensor q = random_normal({1, 3, 4, 8}, 1), k = random_normal({1, 2, 4, 8}, 2);
  EXPECT_THROW(pair_scores(q, k, 1.0f), Error);
  EXPECT_THROW(pair_scores(k, k.slice(3, 0, 4), 1.0f), Error);
  EXPECT_THROW(block_means(k, 0), Error);
  EXPECT_THROW(page_bounds(k.select(0, 0), 4), Error);
  EXPECT_THROW(strip_sums(q, k, 2), Error);
}

}  // namespace
}  // namespace fovea::kernels

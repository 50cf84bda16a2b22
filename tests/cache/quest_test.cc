// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/quest.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "fovea/core/catalogue.h"
#include "fovea/core/rng.h"
#include "fovea/core/thread_pool.h"
#include "fovea/kernels/attention.h"
#include "fovea/kernels/pooling.h"
#include "support/reference.h"

namespace fovea::cache {
namespace {

struct Problem {
  Tensor q, k, v;
  Problem(int64_t batch, int64_t hq, int64_t hkv, int64_t tq, int64_t tk, int64_t dim, int64_t dim_v)
      : q(random_normal({batch, hq, tq, dim}, 1)),
        k(random_normal({batch, hkv, tk, dim}, 2)),
        v(random_normal({batch, hkv, tk, dim_v}, 3)) {}
};

std::vector<int32_t> pages_of(const QuestResult& result, int64_t b, int64_t h, int64_t i) {
  std::vector<int32_t> pages;
  for (int64_t r = 0; r < result.pages.dim(3); ++r) pages.push_back(result.pages.at<int32_t>(b, h, i, r));
  return pages;
}

/// Softmax attention over the visible keys of the pages the result names.
void expect_attention_over_pages(const Problem& p, const QuestResult& result, int64_t page_size,
                                 double tolerance) {
  reference::Problem problem;
  problem.q = p.q, problem.k = p.k, problem.v = p.v;
  const int64_t offset = p.k.dim(2) - p.q.dim(2);
  problem.visible = [&](int64_t b, int64_t h, int64_t i, int64_t j) {
    const auto pages = pages_of(result, b, h, i);
    return j <= i + offset &&
           std::find(pages.begin(), pages.end(), static_cast<int32_t>(j / page_size)) != pages.end();
  };
  const auto want = reference::attention(problem);
  EXPECT_LT(reference::relative_error(result.o, want.o), tolerance);
  EXPECT_LT(reference::relative_error(result.lse, want.lse), tolerance);
}

TEST(Quest, BudgetOfTheWholeCacheEqualsExactAttention) {
  for (const int64_t tk : {1, 16, 63, 100}) {
    const Problem p(2, 4, 2, 1, tk, 16, 24);
    const auto got = quest(p.q, p.k, p.v, {.page_size = 16, .token_budget = 112});
    const auto want = reference::attention({p.q, p.k, p.v, 0, 0, reference::causal(1, tk), {}, {}});
    EXPECT_LT(reference::relative_error(got.o, want.o), 1e-5);
    EXPECT_LT(reference::relative_error(got.lse, want.lse), 1e-5);
  }
}

TEST(Quest, PageOfOneKeyPicksTheExactTopKeys) {
  const Problem p(1, 2, 1, 1, 65, 20, 8);
  const auto got = quest(p.q, p.k, p.v, {.page_size = 1, .token_budget = 9, .keep_last = false});
  const Tensor scores = kernels::pair_scores(p.q, p.k, 1.0f);
  for (int64_t h = 0; h < 2; ++h) {
    std::vector<int32_t> order(65);
    for (int32_t j = 0; j < 65; ++j) order[static_cast<size_t>(j)] = j;
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return scores.at<float>(0, h, 0, a) > scores.at<float>(0, h, 0, b);
    });
    order.resize(9);
    std::sort(order.begin(), order.end());
    EXPECT_EQ(pages_of(got, 0, h, 0), order);
  }
  expect_attention_over_pages(p, got, 1, 1e-5);
}

TEST(Quest, BoundIsNeverBelowAScoreOfItsPage) {
  const Problem p(2, 4, 2, 5, 77, 24, 8);
  const Tensor bounds = kernels::bound_scores(p.q, kernels::page_bounds(p.k, 8));
  const Tensor scores = kernels::pair_scores(p.q, p.k, 1.0f);
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t h = 0; h < 4; ++h)
      for (int64_t i = 0; i < 5; ++i)
        for (int64_t j = 0; j < 77; ++j)
          EXPECT_GE(bounds.at<float>(b, h, i, j / 8) + 1e-4f, scores.at<float>(b, h, i, j));
}

TEST(Quest, ZeroQueriesTakeTheFirstPagesAndTheLast) {
  const Problem p(1, 2, 2, 1, 200, 16, 16);
  const auto got = quest(Tensor::zeros(p.q.shape()), p.k, p.v, {.page_size = 16, .token_budget = 64});
  EXPECT_EQ(pages_of(got, 0, 1, 0), (std::vector<int32_t>{0, 1, 2, 12}));
}

TEST(Quest, EqualBoundsTakeTheLowestPages) {
  const Problem p(1, 1, 1, 1, 160, 8, 8);
  const Tensor k = Tensor::full({1, 1, 160, 8}, 0.5f);
  const auto got = quest(p.q, k, p.v, {.page_size = 16, .token_budget = 64, .keep_last = false});
  EXPECT_EQ(pages_of(got, 0, 0, 0), (std::vector<int32_t>{0, 1, 2, 3}));
}

TEST(Quest, RowsAreSuccessiveDecodeSteps) {
  for (const bool keep_last : {true, false})
    for (const int64_t tk : {5, 40, 67}) {
      const Problem p(2, 4, 2, 5, tk, 12, 16);
      const QuestOptions options{.page_size = 4, .token_budget = 12, .min_pages = 2, .keep_last = keep_last};
      const auto all = quest(p.q, p.k, p.v, options);
      for (int64_t i = 0; i < 5; ++i) {
        const int64_t seen = tk - 5 + i + 1;
        const auto step =
            quest(p.q.slice(2, i, i + 1), p.k.slice(2, 0, seen), p.v.slice(2, 0, seen), options);
        for (int64_t b = 0; b < 2; ++b)
          for (int64_t h = 0; h < 4; ++h) {
            auto want = pages_of(step, b, h, 0);
            want.resize(static_cast<size_t>(all.pages.dim(3)), -1);
            EXPECT_EQ(pages_of(all, b, h, i), want) << "row " << i << " of " << tk;
          }
        EXPECT_LT(reference::relative_error(all.o.slice(2, i, i + 1).clone(), step.o), 1e-6);
        EXPECT_LT(reference::relative_error(all.lse.slice(2, i, i + 1).clone(), step.lse), 1e-6);
      }
      expect_attention_over_pages(p, all, 4, 1e-5);
    }
}

TEST(Quest, NewestPageCountsOnlyItsOwnKeys) {
  // The last key of the tail page is not visible to the first row and would lift its bound above all others.
  Problem p(1, 1, 1, 2, 8, 4, 4);
  for (int64_t c = 0; c < 4; ++c) {
    p.q.at<float>(0, 0, 0, c) = 1.0f;
    for (int64_t j = 0; j < 8; ++j) p.k.at<float>(0, 0, j, c) = j < 4 ? 1.0f : j == 7 ? 100.0f : 0.0f;
  }
  const auto got =
      quest(p.q, p.k, p.v, {.page_size = 4, .token_budget = 4, .min_pages = 1, .keep_last = false});
  EXPECT_EQ(pages_of(got, 0, 0, 0), (std::vector<int32_t>{0}));
}

TEST(Quest, RowsBeforeTheFirstKeySeeNothing) {
  const Problem p(1, 2, 1, 7, 3, 8, 8);
  const auto got = quest(p.q, p.k, p.v, {.page_size = 2});
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(got.lse.at<float>(0, 1, i), -INFINITY);
    EXPECT_EQ(got.o.at<float>(0, 1, i, 3), 0.0f);
    EXPECT_EQ(pages_of(got, 0, 1, i), (std::vector<int32_t>{-1, -1}));
  }
  expect_attention_over_pages(p, got, 2, 1e-5);
}

TEST(Quest, AppendingOneByOneKeepsTheBoundsOfBuildingAtOnce) {
  const Problem p(1, 1, 2, 1, 37, 9, 8);
  const auto all = kernels::page_bounds(p.k, 5);
  Tensor low, high;
  for (int64_t n = 1; n <= 37; ++n) {
    const auto token = kernels::page_bounds(p.k.slice(2, n - 1, n), 1);
    const int64_t page = (n - 1) / 5;
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t c = 0; c < 9; ++c) {
        if ((n - 1) % 5 == 0 && h == 0 && c == 0) low = token.low.clone(), high = token.high.clone();
        low.at<float>(0, h, 0, c) = std::min(low.at<float>(0, h, 0, c), token.low.at<float>(0, h, 0, c));
        high.at<float>(0, h, 0, c) = std::max(high.at<float>(0, h, 0, c), token.high.at<float>(0, h, 0, c));
        if (n % 5 != 0 && n != 37) continue;
        EXPECT_EQ(low.at<float>(0, h, 0, c), all.low.at<float>(0, h, page, c));
        EXPECT_EQ(high.at<float>(0, h, 0, c), all.high.at<float>(0, h, page, c));
      }
  }
}

TEST(Quest, HalfPrecisionInputsAndThreads) {
  for (const DType dtype : {DType::f16, DType::bf16}) {
    Problem p(2, 6, 2, 1, 257, 32, 32);
    p.q = p.q.to(dtype), p.k = p.k.to(dtype), p.v = p.v.to(dtype);
    set_threads(1);
    const auto one = quest(p.q, p.k, p.v, {.page_size = 16, .token_budget = 64});
    set_threads(2);
    const auto two = quest(p.q, p.k, p.v, {.page_size = 16, .token_budget = 64});
    set_threads(0);
    EXPECT_EQ(one.o.dtype(), dtype);
    EXPECT_EQ(reference::relative_error(one.o, two.o), 0.0);
    EXPECT_EQ(reference::relative_error(one.lse, two.lse), 0.0);
    expect_attention_over_pages(p, one, 16, dtype == DType::f16 ? 1e-3 : 1e-2);
  }
}

TEST(Quest, NeedlesAreRecalledAtASixteenthOfTheKeys) {
  constexpr int64_t kLength = 32768, kDim = 64;
  Problem p(1, 2, 2, 1, kLength, kDim, kDim);
  std::set<std::pair<int64_t, int32_t>> needles;
  Rng rng(17);
  for (int64_t h = 0; h < 2; ++h) {
    double norm = 0;
    for (int64_t c = 0; c < kDim; ++c) norm += std::pow(static_cast<double>(p.q.at<float>(0, h, 0, c)), 2);
    for (int needle = 0; needle < 8; ++needle) {
      const int64_t at = rng.next_below(kLength);
      needles.insert({h, static_cast<int32_t>(at / 16)});
      for (int64_t c = 0; c < kDim; ++c)
        p.k.at<float>(0, h, at, c) =
            static_cast<float>(14 * std::sqrt(kDim) / norm) * p.q.at<float>(0, h, 0, c);
    }
  }
  const auto exact = kernels::decode(p.q, kernels::PagedKv::of(p.k, p.v, 16));
  const auto got = quest(p.q, p.k, p.v, {.page_size = 16, .token_budget = 2048});
  for (const auto& [head, page] : needles) {
    const auto pages = pages_of(got, 0, head, 0);
    EXPECT_TRUE(std::binary_search(pages.begin(), pages.end(), page));
  }
  EXPECT_LT(reference::relative_error(got.o, exact.o), 0.02);
}

TEST(Quest, PageBudget) {
  EXPECT_EQ((QuestOptions{.page_size = 16, .token_budget = 1024}).page_budget(100000), 64);
  EXPECT_EQ((QuestOptions{.page_size = 16, .token_budget = 5}).page_budget(100000), 3);
  EXPECT_EQ((QuestOptions{.page_size = 16, .token_budget = 5}).page_budget(17), 2);
  EXPECT_EQ((QuestOptions{}).page_budget(0), 0);
  EXPECT_EQ((QuestOptions{.page_size = INT64_MAX}).page_budget(5), 1);
}

TEST(Quest, Refusals) {
  const Problem p(1, 2, 1, 1, 20, 8, 8);
  const auto& op = catalogue().at("quest");
  const Tensors in{{"q", p.q}, {"k", p.k}, {"v", p.v}};
  EXPECT_THROW(op.run(in, {{"token_budget", "0"}}), Error);
  EXPECT_THROW(op.run(in, {{"page_size", "0"}}), Error);
  EXPECT_EQ(op.run(in, {{"budget", "4"}, {"page", "2"}})["pages"].dim(3), 3);
  EXPECT_THROW(select_pages(Tensor::zeros({1, 1, 1, 4}), 100, {}), Error);
}

}  // namespace
}  // namespace fovea::cache

// SPDX-License-Identifier: Apache-2.0
#include "fovea/sparse/plan.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "fovea/core/rng.h"
#include "tests/support/reference.h"

namespace fovea::sparse {
namespace {

Tensor random_bits(const Shape& shape, double share, uint64_t seed) {
  const Tensor uniform = random_uniform(shape, seed);
  Tensor bits = Tensor::empty(shape, DType::u8);
  for (int64_t i = 0; i < bits.size(); ++i)
    bits.data<uint8_t>()[i] = uniform.data<float>()[i] < share ? 1 : 0;
  return bits;
}

TEST(Plan, BlocksBecomeCoalescedRangesThatCoverExactlyTheirKeys) {
  for (const auto& [queries, keys] : {std::pair{100, 257}, {65, 63}, {1, 1}, {64, 64}}) {
    const int64_t bq = 16, bk = 10, nq = (queries + bq - 1) / bq, nk = (keys + bk - 1) / bk;
    const Tensor blocks = random_bits({2, 3, nq, nk}, 0.4, 1);
    const KeyPlan plan = plan_from_blocks(blocks, bq, bk, queries, keys);
    kernels::check(plan, 2, 3, 3, queries, keys);
    const Tensor mask = plan_mask(plan, false);
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t h = 0; h < 3; ++h)
        for (int64_t i = 0; i < queries; ++i)
          for (int64_t j = 0; j < keys; ++j)
            ASSERT_EQ(mask.at<uint8_t>(b, h, i, j), blocks.at<uint8_t>(b, h, i / bq, j / bk))
                << i << "," << j;
    for (size_t r = 1; r < plan.ranges.size(); ++r) {
      const bool same_list = std::none_of(plan.range_offsets.begin(), plan.range_offsets.end(),
                                          [&](int64_t offset) { return offset == static_cast<int64_t>(r); });
      if (same_list) {
        EXPECT_LT(plan.ranges[r - 1].end, plan.ranges[r].begin);
      }
    }
  }
}

TEST(Plan, StripesAndTokensKeepTheirLists) {
  const Tensor columns = Tensor::from(std::vector<int32_t>{0, 3, -1, 1, 2, 4}, {1, 1, 2, 3});
  const Tensor mask = plan_mask(plan_from_stripes(columns, 2, 3, 5), false);
  const std::vector<uint8_t> want = {1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 1, 0, 1};
  EXPECT_TRUE(std::equal(want.begin(), want.end(), mask.data<uint8_t>()));
  const KeyPlan tokens = plan_from_tokens(columns, 5);
  EXPECT_EQ(tokens.block_q, 1);
  EXPECT_EQ(plan_mask(tokens, false).at<uint8_t>(0, 0, 1, 4), 1);
}

TEST(Plan, DensityCountsTheCausalMask) {
  for (const auto& [queries, keys] : {std::pair{70, 70}, {33, 90}, {90, 33}}) {
    const Tensor blocks = random_bits({1, 2, (queries + 7) / 8, (keys + 4) / 5}, 0.3, 7);
    const KeyPlan plan = plan_from_blocks(blocks, 8, 5, queries, keys);
    const Tensor mask = plan_mask(plan, true);
    const auto density = plan_density(plan);
    for (int64_t h = 0; h < 2; ++h) {
      double pairs = 0, causal = 0;
      for (int64_t i = 0; i < queries; ++i)
        for (int64_t j = 0; j < keys; ++j) {
          pairs += mask.at<uint8_t>(0, h, i, j);
          causal += j <= i + keys - queries ? 1 : 0;
        }
      EXPECT_DOUBLE_EQ(density[static_cast<size_t>(h)], pairs / causal);
    }
  }
}

TEST(Plan, RecallIsTheKeptProbability) {
  const Tensor q = random_normal({1, 2, 40, 16}, 1), k = random_normal({1, 1, 40, 16}, 2);
  const KeyPlan plan = plan_from_blocks(random_bits({1, 2, 5, 5}, 0.5, 3), 8, 8, 40, 40);
  const Tensor mask = plan_mask(plan), recall = plan_recall(q, k, plan);
  const reference::Problem problem{.q = q, .k = k, .v = k, .visible = reference::causal(40, 40)};
  for (int64_t h = 0; h < 2; ++h) {
    double kept = 0;
    for (int64_t i = 0; i < 40; ++i) {
      const auto row = reference::row_of(problem, q, k, 0, h, i);
      for (int64_t j = 0; j < 40; ++j)
        kept += mask.at<uint8_t>(0, h, i, j) * row.probability[static_cast<size_t>(j)] / 40;
    }
    EXPECT_NEAR(recall.at<float>(0, h), kept, 1e-5);
  }
}

TEST(Plan, PictureShadesWhatIsRead) {
  const KeyPlan everything =
      plan_from_blocks(Tensor::from(std::vector<uint8_t>(4, 1), {1, 1, 2, 2}), 8, 8, 16, 16);
  EXPECT_EQ(plan_picture(everything, 0, 0, 2), "+ \n#+\n");  // rows 4 and 12 see 5 and 13 keys
  EXPECT_THROW(plan_picture(everything, 0, 1, 2), Error);
}

TEST(Plan, RefusesShapesThatDoNotFit) {
  EXPECT_THROW(plan_from_blocks(Tensor::zeros({1, 1, 2, 2}, DType::u8), 8, 8, 17, 16), Error);
  EXPECT_THROW(plan_from_blocks(Tensor::zeros({1, 1, 2, 2}), 8, 8, 16, 16), Error);
  EXPECT_THROW(plan_from_blocks(Tensor::zeros({1, 1, 2, 2}, DType::u8), 0, 8, 16, 16), Error);
  EXPECT_THROW(plan_from_stripes(Tensor::zeros({1, 1, 3, 2}, DType::i32), 8, 16, 16), Error);
}

}  // namespace
}  // namespace fovea::sparse

// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "fovea/core/memory.h"
#include "fovea/core/rng.h"
#include "fovea/kernels/attention.h"
#include "fovea/kernels/key_plan.h"
#include "tests/support/attention_problem.h"
#include "tests/support/random_plan.h"

namespace fovea {
namespace {

using kernels::AttentionParams;
using kernels::AttentionResult;
using kernels::KeyPlan;
using kernels::plan_forward;
using kernels::Visibility;
using reference::Inputs;
using reference::PlanShape;
using reference::random_inputs;
using reference::random_plan;
using reference::relative_error;
using reference::Sizes;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void expect_matches_on_every_target(const Inputs& in, const KeyPlan& plan, const AttentionParams& params) {
  const reference::Result want = reference::attention(problem_of(in, plan, params));
  reference::for_each_simd_target([&](const std::string& target) {
    SCOPED_TRACE(target);
    const AttentionResult got = plan_forward(in.q, in.k, in.v, plan, params);
    EXPECT_LE(relative_error(got.o, want.o), 1e-5);
    EXPECT_LE(relative_error(got.lse, want.lse), 1e-5);
  });
}

class PlanForward : public ::testing::Test {
 protected:
  void SetUp() override { memory::set_poison(true); }
  void TearDown() override { memory::set_poison(false); }
};

TEST_F(PlanForward, EqualsTheReferenceForEveryGranularityAndSharing) {
  const Sizes s{2, 4, 2, 150, 210, 24, 20};
  const Inputs in = random_inputs(s);
  for (const PlanShape& shape :
       {PlanShape{64, 2, 4, 0.5, 0}, PlanShape{64, 1, 1, 0, 0.2}, PlanShape{64, 2, 2, 0.3, 0.3},
        PlanShape{128, 1, 4, 0.5, 0.1}, PlanShape{300, 1, 2, 0.5, 0.1}, PlanShape{16, 2, 4, 0.2, 0.2},
        PlanShape{5, 1, 2, 0.3, 0.1}, PlanShape{1, 2, 4, 0, 0.1}, PlanShape{1, 1, 1, 0.1, 0.5},
        PlanShape{1, 1, 2, 0, 0.9}})
    for (bool causal : {false, true}) {
      SCOPED_TRACE(::testing::Message() << "block " << shape.block_q << " batches " << shape.batches
                                        << " heads " << shape.heads << " causal " << causal);
      expect_matches_on_every_target(in, random_plan(s, shape, 7),
                                     {.visible = causal ? Visibility::causal() : Visibility::all()});
    }
}

// Lists that share most keys with their neighbours are split into shared keys and the rest.
TEST_F(PlanForward, TokenListsMayShareKeysWithTheirNeighboursOrNot) {
  for (const Sizes& s : {Sizes{2, 3, 1, 150, 150, 64, 64}, Sizes{1, 2, 2, 101, 160, 16, 40},
                         Sizes{1, 8, 1, 40, 400, 20, 12}, Sizes{1, 4, 4, 70, 300, 128, 128}})
    for (const double renewed : {0.0, 0.03, 1.0})
      for (const int64_t heads : {int64_t{1}, s.heads_kv, s.heads_q}) {
        SCOPED_TRACE(::testing::Message() << s << " renewed " << renewed << " heads " << heads);
        expect_matches_on_every_target(random_inputs(s), reference::drifting_tokens(s, heads, 50, renewed, 3),
                                       {.visible = Visibility::causal()});
      }
}

TEST_F(PlanForward, SharedKeysKeepWindowsBiasMaskAndSixteenBits) {
  const Sizes s{1, 2, 1, 90, 200, 32, 32};
  const Inputs in = random_inputs(s);
  const KeyPlan plan = reference::drifting_tokens(s, 1, 60, 0.02, 5);
  AttentionParams params{.visible = {.window_left = 60, .window_right = 0, .prefix = 20}};
  params.bias = random_normal({1, 2, 90, 200}, 4);
  params.mask = Tensor::zeros({1, 1, 90, 200}, DType::u8);
  for (int64_t i = 0; i < params.mask.size(); ++i) params.mask.data<uint8_t>()[i] = i % 7 != 0;
  expect_matches_on_every_target(in, plan, params);
  const Inputs half = random_inputs(s, 2, DType::f16);
  const AttentionResult got = plan_forward(half.q, half.k, half.v, plan);
  const AttentionResult want =
      plan_forward(half.q.to(DType::f32), half.k.to(DType::f32), half.v.to(DType::f32), plan);
  EXPECT_TRUE(reference::same_bits(got.o, want.o.to(DType::f16)));
}

TEST_F(PlanForward, EveryGranularityIsAsPreciseAsSinglePrecisionAllows) {
  const Sizes s{1, 3, 1, 700, 700, 64, 64};
  const Inputs in = random_inputs(s);
  const AttentionParams params{.visible = Visibility::causal()};
  for (const KeyPlan& plan :
       {random_plan(s, {64, 1, 1, 0.5, 0}, 7), random_plan(s, {64, 1, 1, 0, 0.2}, 7),
        reference::drifting_tokens(s, 1, 100, 0.02, 3), reference::drifting_tokens(s, 1, 100, 1.0, 3)}) {
    const reference::Result want = reference::attention(problem_of(in, plan, params));
    EXPECT_LE(relative_error(plan_forward(in.q, in.k, in.v, plan, params).o, want.o), 2e-6);
  }
}

TEST_F(PlanForward, TakesEveryOtherTermOfTheScore) {
  const Sizes s{2, 2, 1, 70, 400, 16, 16};
  const Inputs in = random_inputs(s);
  AttentionParams params;
  params.visible = Visibility{.window_left = 90, .window_right = 1, .prefix = 6};
  params.softcap = 3;
  params.k_len = Tensor::from(std::vector<int32_t>{400, 333}, {2});
  params.sink = random_normal({2}, 3);
  params.bias = random_normal({1, 2, 70, 400}, 4);
  params.mask = Tensor::zeros({1, 1, 70, 400}, DType::u8);
  for (int64_t i = 0; i < params.mask.size(); ++i) params.mask.data<uint8_t>()[i] = i % 5 != 0;
  params.slopes = Tensor::from(std::vector<float>{0.1f, 0.02f}, {2});
  params.bias_q = random_normal({1, 2, 70, 3}, 5);
  params.bias_k = random_normal({1, 1, 400, 3}, 6);
  for (int64_t block_q : {1, 8, 64})
    expect_matches_on_every_target(in, random_plan(s, {block_q, 1, 2, 0.4, 0.3}, 8), params);
}

TEST_F(PlanForward, SixteenBitInputsEqualTheReferenceOnEveryTarget) {
  const Sizes s{1, 2, 2, 140, 290, 20, 20};
  AttentionParams params;
  params.visible = Visibility{.window_left = 190, .window_right = 1, .prefix = 6};
  for (DType dtype : {DType::f16, DType::bf16}) {
    const Inputs in = random_inputs(s, 2, dtype);
    for (int64_t block_q : {1, 16, 64}) {
      const KeyPlan plan = random_plan(s, {block_q, 1, 2, 0.3, 0.3}, 9);
      const reference::Result want = reference::attention(problem_of(in, plan, params));
      reference::for_each_simd_target([&](const std::string& target) {
        SCOPED_TRACE(target + " " + std::string(name_of(dtype)));
        const AttentionResult got = plan_forward(in.q, in.k, in.v, plan, params);
        EXPECT_LE(relative_error(got.o, want.o), dtype == DType::f16 ? 5e-4 : 4e-3);
        EXPECT_LE(relative_error(got.lse, want.lse), 1e-5);
      });
    }
  }
}

TEST_F(PlanForward, APlanOfEverythingIsExactAttention) {
  const Sizes s{1, 4, 2, 130, 200, 32, 32};
  const Inputs in = random_inputs(s);
  const AttentionParams params{.visible = Visibility::causal()};
  const AttentionResult want = kernels::flash_forward(in.q, in.k, in.v, params);
  for (int64_t block_q : {1, 64}) {
    KeyPlan plan{.block_q = block_q};
    plan.queries = s.queries, plan.keys = s.keys;
    plan.range_offsets = {0}, plan.column_offsets = {0};
    for (int64_t list = 0; list < plan.lists(); ++list) {
      plan.ranges.push_back({0, static_cast<int32_t>(s.keys)});
      plan.range_offsets.push_back(list + 1);
      plan.column_offsets.push_back(0);
    }
    const AttentionResult got = plan_forward(in.q, in.k, in.v, plan, params);
    EXPECT_LE(relative_error(got.o, want.o), 1e-6);
    EXPECT_LE(relative_error(got.lse, want.lse), 1e-6);
  }
}

TEST_F(PlanForward, RowsWithoutPlannedKeysAreZeroWithMinusInfinity) {
  const Sizes s{1, 1, 1, 70, 70, 16, 16};
  const Inputs in = random_inputs(s);
  KeyPlan plan{.block_q = 64};
  plan.queries = plan.keys = 70;
  plan.range_offsets = {0, 0, 0}, plan.column_offsets = {0, 0, 1}, plan.columns = {69};
  const AttentionResult got = plan_forward(in.q, in.k, in.v, plan, {.visible = Visibility::causal()});
  EXPECT_EQ(got.lse.at<float>(0, 0, 3), -kInfinity);
  EXPECT_EQ(got.lse.at<float>(0, 0, 68), -kInfinity);
  EXPECT_EQ(got.o.at<float>(0, 0, 68, 5), 0.0f);
  EXPECT_EQ(got.o.at<float>(0, 0, 69, 5), in.v.at<float>(0, 0, 69, 5));
}

TEST_F(PlanForward, KeysOutsideThePlanMayBeNaN) {
  const Sizes s{1, 2, 1, 64, 300, 16, 16};
  for (int64_t block_q : {1, 16, 64}) {
    Inputs in = random_inputs(s);
    const KeyPlan plan = random_plan(s, {block_q, 1, 1, 0.1, 0.2}, 11);
    const AttentionResult want = plan_forward(in.q, in.k, in.v, plan);
    // Only the first block sees nothing of key j, if it is not in its list.
    int64_t j = 0;
    while (reference::has(plan, 0, 0, 2, 0, j)) ++j;
    in.v.at<float>(0, 0, j, 3) = std::numeric_limits<float>::quiet_NaN();
    const AttentionResult got = plan_forward(in.q, in.k, in.v, plan);
    for (int64_t i = 0; i < s.queries; ++i)
      EXPECT_EQ(std::isnan(got.o.at<float>(0, 0, i, 3)), reference::has(plan, 0, 0, 2, i, j))
          << block_q << " " << i;
  }
}

TEST_F(PlanForward, ResultsAreBitwiseEqualForAnyNumberOfThreads) {
  const Sizes s{2, 4, 2, 200, 200, 32, 32};
  const Inputs in = random_inputs(s);
  for (const KeyPlan& plan :
       {random_plan(s, {1, 2, 2, 0.3, 0.3}, 12), random_plan(s, {64, 2, 2, 0.3, 0.3}, 12),
        reference::drifting_tokens(s, 1, 40, 0.02, 3)}) {
    AttentionResult one, many;
    {
      reference::WithThreads threads(1);
      one = plan_forward(in.q, in.k, in.v, plan);
    }
    {
      reference::WithThreads threads(3);
      many = plan_forward(in.q, in.k, in.v, plan);
    }
    EXPECT_TRUE(reference::same_bits(one.o, many.o));
    EXPECT_TRUE(reference::same_bits(one.lse, many.lse));
  }
}

TEST_F(PlanForward, RefusesPlansThatAreNotSortedDisjointAndInside) {
  const Sizes s{1, 2, 1, 10, 20, 8, 8};
  const Inputs in = random_inputs(s);
  KeyPlan good{.block_q = 16};
  good.queries = 10, good.keys = 20;
  good.range_offsets = {0, 2}, good.ranges = {{0, 4}, {8, 10}}, good.column_offsets = {0, 2},
  good.columns = {5, 19};
  EXPECT_NO_THROW(plan_forward(in.q, in.k, in.v, good));
  auto refuses = [&](auto spoil) {
    KeyPlan plan = good;
    spoil(plan);
    EXPECT_THROW(plan_forward(in.q, in.k, in.v, plan), Error);
  };
  refuses([](KeyPlan& p) { p.columns = {19, 5}; });
  refuses([](KeyPlan& p) { p.columns = {5, 5}; });
  refuses([](KeyPlan& p) { p.columns = {5, 20}; });
  refuses([](KeyPlan& p) { p.columns = {-1, 5}; });
  for (const std::vector<int32_t>& columns : {std::vector<int32_t>{7, 3}, {3, 3}, {-1, 3}, {3, 20}})
    refuses([&](KeyPlan& p) {
      p.ranges.clear(), p.range_offsets = {0, 0};
      p.columns = columns;
    });
  refuses([](KeyPlan& p) { p.columns = {3, 5}; });
  refuses([](KeyPlan& p) { p.ranges = {{0, 9}, {8, 10}}; });
  refuses([](KeyPlan& p) { p.ranges = {{0, 4}, {8, 21}}; });
  refuses([](KeyPlan& p) { p.ranges = {{-2, 4}, {8, 10}}; });
  refuses([](KeyPlan& p) { p.ranges = {{4, 2}, {8, 10}}; });
  refuses([](KeyPlan& p) { p.range_offsets = {0, 1}; });
  refuses([](KeyPlan& p) { p.column_offsets = {0, 1, 2}; });
  refuses([](KeyPlan& p) { p.heads = 3; });
  refuses([](KeyPlan& p) { p.batches = 2; });
  refuses([](KeyPlan& p) { p.keys = 21; });
  refuses([](KeyPlan& p) { p.block_q = 0; });
}

}  // namespace
}  // namespace fovea

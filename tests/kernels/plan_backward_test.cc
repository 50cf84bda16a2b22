// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <string>

#include "fovea/core/memory.h"
#include "fovea/core/rng.h"
#include "fovea/kernels/attention.h"
#include "tests/support/attention_problem.h"
#include "tests/support/random_plan.h"

namespace fovea {
namespace {

using kernels::AttentionGradients;
using kernels::AttentionParams;
using kernels::KeyPlan;
using kernels::plan_backward;
using kernels::plan_forward;
using kernels::Visibility;
using reference::Inputs;
using reference::PlanShape;
using reference::random_inputs;
using reference::random_plan;
using reference::relative_error;
using reference::same_bits;
using reference::Sizes;

class PlanBackward : public testing::Test {
 protected:
  void SetUp() override { memory::set_poison(true); }
  void TearDown() override { memory::set_poison(false); }
};

Tensor random_d_o(const Inputs& in) {
  return random_normal({in.q.dim(0), in.q.dim(1), in.q.dim(2), in.v.dim(3)}, 5).to(in.v.dtype());
}

AttentionGradients gradients(const Inputs& in, const KeyPlan& plan, const AttentionParams& params) {
  return plan_backward(in.q, in.k, in.v, plan, plan_forward(in.q, in.k, in.v, plan, params), random_d_o(in),
                       params);
}

void expect_matches(const Inputs& in, const KeyPlan& plan, const AttentionParams& params = {},
                    double tolerance = 1e-5) {
  const reference::Gradients want =
      reference::attention_backward(reference::problem_of(in, plan, params), random_d_o(in));
  reference::for_each_simd_target([&](const std::string& target) {
    SCOPED_TRACE(target);
    const AttentionGradients got = gradients(in, plan, params);
    EXPECT_LE(relative_error(got.dq, want.dq), tolerance);
    EXPECT_LE(relative_error(got.dk, want.dk), tolerance);
    EXPECT_LE(relative_error(got.dv, want.dv), tolerance);
    if (params.bias) {
      EXPECT_LE(relative_error(got.dbias, want.dextra), tolerance);
    }
  });
}

TEST_F(PlanBackward, MatchesTheDefinitionForBlocksStripesAndTokens) {
  const Sizes s{2, 4, 2, 97, 290, 16, 24};
  const Inputs in = random_inputs(s, 3);
  for (const PlanShape& shape :
       {PlanShape{64, 1, 1, 0.5, 0.05}, PlanShape{16, 2, 4, 0.05, 0.02}, PlanShape{7, 1, 2, 0.9, 0.5},
        PlanShape{1, 2, 2, 0.02, 0.05}, PlanShape{1, 1, 4, 0.0, 0.01}, PlanShape{128, 2, 1, 0.02, 0.0}}) {
    SCOPED_TRACE(shape.block_q);
    const KeyPlan plan = random_plan(s, shape, 7);
    expect_matches(in, plan);
    expect_matches(in, plan, {.visible = {.window_left = 40, .window_right = 0, .prefix = 3}});
  }
}

// Of sparse plans, a task spans several tiles of keys.
TEST_F(PlanBackward, MatchesTheDefinitionForSparsePlansOfManyKeys) {
  const Sizes s{1, 4, 2, 200, 3000, 16, 24};
  const Inputs in = random_inputs(s, 3);
  for (const PlanShape& shape : {PlanShape{64, 1, 1, 0.0, 0.02}, PlanShape{64, 1, 4, 0.02, 0.0},
                                 PlanShape{64, 1, 2, 0.0, 0.1}, PlanShape{1, 1, 1, 0.0, 0.02}}) {
    SCOPED_TRACE(shape.block_q);
    expect_matches(in, random_plan(s, shape, 7), {.visible = Visibility::causal()});
  }
  expect_matches(in, reference::drifting_tokens(s, 2, 80, 0.05, 3));
}

TEST_F(PlanBackward, ScoresKeepTheirOptions) {
  const Sizes s{1, 4, 2, 50, 200, 16, 16};
  const Inputs in = random_inputs(s, 3);
  const KeyPlan plan = random_plan(s, {8, 1, 2, 0.2, 0.1}, 7);
  AttentionParams params{.softcap = 2};
  params.slopes = random_uniform({4}, 2);
  params.bias = random_normal({1, 4, 50, 200}, 5);
  expect_matches(in, plan, params);
  AttentionParams factors;
  factors.sink = random_normal({4}, 3);
  factors.bias_q = random_normal({1, 4, 50, 3}, 6), factors.bias_k = random_normal({1, 4, 200, 3}, 7);
  expect_matches(in, plan, factors);
}

TEST_F(PlanBackward, HalfTypesAreAsAccurateAsTheirRounding) {
  const Sizes s{1, 2, 1, 65, 130, 64, 48};
  const KeyPlan plan = random_plan(s, {16, 1, 1, 0.2, 0.1}, 7);
  expect_matches(random_inputs(s, 3, DType::f16), plan, {}, 1e-3);
  expect_matches(random_inputs(s, 3, DType::bf16), plan, {}, 8e-3);
}

TEST_F(PlanBackward, APlanOfAllKeysGivesTheDenseGradients) {
  const Sizes s{1, 2, 1, 128, 300, 16, 16};
  const Inputs in = random_inputs(s, 3);
  KeyPlan plan;
  plan.queries = s.queries, plan.keys = s.keys;
  plan.ranges = {{0, 300}, {0, 300}}, plan.range_offsets = {0, 1, 2}, plan.column_offsets = {0, 0, 0};
  const AttentionParams params{.visible = Visibility::causal()};
  const AttentionGradients got = gradients(in, plan, params);
  const AttentionGradients dense = kernels::flash_backward(
      in.q, in.k, in.v, kernels::flash_forward(in.q, in.k, in.v, params), random_d_o(in), params);
  EXPECT_LE(relative_error(got.dq, dense.dq), 1e-6);
  EXPECT_LE(relative_error(got.dk, dense.dk), 1e-6);
  EXPECT_LE(relative_error(got.dv, dense.dv), 1e-6);
}

TEST_F(PlanBackward, ThreadsDoNotChangeABit) {
  const Sizes s{1, 2, 1, 500, 2100, 32, 32};
  const Inputs in = random_inputs(s, 6);
  for (const KeyPlan& plan :
       {random_plan(s, {16, 1, 1, 0.2, 0.1}, 7), random_plan(s, {64, 1, 1, 0.0, 0.05}, 7),
        reference::drifting_tokens(s, 1, 60, 0.05, 3)}) {
    const auto with = [&](int threads) {
      const reference::WithThreads scope(threads);
      return gradients(in, plan, {});
    };
    const AttentionGradients one = with(1), two = with(2);
    EXPECT_TRUE(same_bits(one.dq, two.dq));
    EXPECT_TRUE(same_bits(one.dk, two.dk));
    EXPECT_TRUE(same_bits(one.dv, two.dv));
  }
}

}  // namespace
}  // namespace fovea

// SPDX-License-Identifier: Apache-2.0
#include "fovea/sparse/minference.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "fovea/core/catalogue.h"
#include "fovea/core/rng.h"
#include "tests/support/reference.h"

namespace fovea::sparse {
namespace {

using kernels::AttentionResult;
using kernels::Visibility;

struct Inputs {
  Tensor q, k, v;
  Inputs(int64_t heads_q, int64_t heads_kv, int64_t queries, int64_t keys, int64_t dim = 16)
      : q(random_normal({1, heads_q, queries, dim}, 1)),
        k(random_normal({1, heads_kv, keys, dim}, 2)),
        v(random_normal({1, heads_kv, keys, dim}, 3)) {}
  AttentionResult dense() const { return kernels::flash_forward(q, k, v, {.visible = Visibility::causal()}); }
  AttentionResult masked(const Tensor& mask) const {
    const auto want = reference::attention(
        {.q = q, .k = k, .v = v, .visible = [&](int64_t b, int64_t h, int64_t i, int64_t j) {
           return mask.at<uint8_t>(b, h, i, j) != 0;
         }});
    return {want.o, want.lse};
  }
};

void expect_near(const AttentionResult& got, const AttentionResult& want, double allowed = 1e-5) {
  EXPECT_LE(reference::relative_error(got.o, want.o), allowed);
  EXPECT_LE(reference::relative_error(got.lse, want.lse), allowed);
}

MinferenceOptions with(const std::string& pattern, int64_t budget) {
  MinferenceOptions options;
  options.pattern = pattern;
  options.n_init = options.vertical = 0;
  options.n_local = options.slash = options.topk = budget;
  return options;
}

TEST(Minference, BudgetsOfTheWholePromptEqualDenseCausal) {
  for (const auto& [queries, keys] : {std::pair{100, 100}, {65, 257}, {1, 63}}) {
    const Inputs in(4, 2, queries, keys);
    for (const char* pattern : {"a-shape", "vertical-slash", "block-topk"})
      expect_near(minference(in.q, in.k, in.v, with(pattern, keys)), in.dense());
    MinferenceOptions columns = with("vertical-slash", 0);
    columns.vertical = keys;
    expect_near(minference(in.q, in.k, in.v, columns), in.dense());
  }
}

TEST(Minference, ForcedSinksAndDiagonalsAloneAreTheAShape) {
  const Inputs in(2, 1, 90, 120);
  const VerticalSlashOptions forced{
      .vertical = 0, .slash = 0, .last_q = 16, .keep_sink = 5, .keep_local = 12, .block = 1};
  const auto selected = select_vertical_slash(in.q, in.k, forced);
  const Tensor mask = plan_mask(plan_vertical_slash(selected, 1, 90, 120)),
               want = plan_mask(plan_a_shape({5, 12}, 90, 120));
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t i = 0; i < 90; ++i)
      for (int64_t j = 0; j < 120; ++j)
        ASSERT_EQ(mask.at<uint8_t>(0, h, i, j), want.at<uint8_t>(0, 0, i, j)) << i << "," << j;
}

TEST(Minference, EveryPatternIsExactSoftmaxOverItsPlan) {
  for (const auto& [queries, keys] : {std::pair{130, 130}, {65, 150}}) {
    const Inputs in(4, 2, queries, keys);
    const VerticalSlashOptions shape{
        .vertical = 6, .slash = 9, .last_q = 16, .keep_sink = 3, .keep_local = 5, .block = 32};
    MinferenceOptions options;
    options.vertical = 6, options.slash = 9, options.last_q = 16, options.keep_sink = 3,
    options.keep_local = 5, options.block = 32;
    const KeyPlan plan = plan_vertical_slash(select_vertical_slash(in.q, in.k, shape), 32, queries, keys);
    kernels::check(plan, 1, 4, 2, queries, keys);
    expect_near(minference(in.q, in.k, in.v, options), in.masked(plan_mask(plan)));
    options.pattern = "block-topk";
    options.topk = 2;
    const Tensor blocks = select_blocks(in.q, in.k, {2, 32, true});
    expect_near(minference(in.q, in.k, in.v, options),
                in.masked(plan_mask(plan_from_blocks(blocks, 32, 32, queries, keys))));
  }
}

TEST(Minference, LargerBudgetsNeverDropAPair) {
  const Inputs in(2, 2, 128, 128);
  Tensor smaller;
  for (int64_t budget : {0, 4, 16, 64}) {
    const VerticalSlashOptions shape{
        .vertical = budget, .slash = budget, .last_q = 32, .keep_sink = 2, .keep_local = 3, .block = 16};
    const Tensor mask =
        plan_mask(plan_vertical_slash(select_vertical_slash(in.q, in.k, shape), 16, 128, 128));
    for (int64_t i = 0; smaller && i < mask.size(); ++i)
      ASSERT_LE(smaller.data<uint8_t>()[i], mask.data<uint8_t>()[i]);
    smaller = mask;
  }
}

TEST(Minference, SlashesBeforeTheFirstKeyAddNothing) {
  const VerticalSlash far{Tensor::empty({1, 1, 0}, DType::i32),
                          Tensor::from(std::vector<int32_t>{60}, {1, 1, 1})};
  const Tensor mask = plan_mask(plan_vertical_slash(far, 16, 64, 64));
  EXPECT_EQ(std::accumulate(mask.data<uint8_t>(), mask.data<uint8_t>() + 48 * 64, 0), 0);
  EXPECT_EQ(mask.at<uint8_t>(0, 0, 63, 3), 1);
}

TEST(Minference, FindsPlantedColumnsAndDiagonals) {
  Inputs in(1, 1, 256, 256, 64);
  for (int64_t c = 0; c < 64; ++c) {
    for (int64_t i = 0; i < 256; ++i) in.q.at<float>(0, 0, i, c) += c == 7 ? 12.0f : 0.0f;
    for (int64_t j : {40, 99}) in.k.at<float>(0, 0, j, c) += c == 7 ? 12.0f : 0.0f;
  }
  const auto found = select_vertical_slash(
      in.q, in.k, {.vertical = 3, .slash = 1, .last_q = 64, .keep_sink = 1, .keep_local = 1});
  EXPECT_EQ(found.columns.at<int32_t>(0, 0, 0), 0);
  EXPECT_EQ(found.columns.at<int32_t>(0, 0, 1), 40);
  EXPECT_EQ(found.columns.at<int32_t>(0, 0, 2), 99);
}

TEST(Minference, HeadsTakeTheirOwnPatterns) {
  const Inputs in(4, 2, 96, 96);
  MinferenceOptions options;
  options.keep_sink = 2, options.keep_local = 4, options.last_q = 16, options.block = 16;
  const auto got = minference(in.q, in.k, in.v, options, Tensor::from(std::vector<int32_t>{0, 1, 2, 1}, {4}),
                              Tensor::from(std::vector<int32_t>{3, 9, 5, 6, 2, 0, 96, 96}, {4, 2}));
  MinferenceOptions alone = options;
  alone.pattern = "a-shape", alone.n_init = 3, alone.n_local = 9;
  const auto first = minference(in.q, in.k, in.v, alone);
  EXPECT_LE(reference::relative_error(got.o.slice(1, 0, 1), first.o.slice(1, 0, 1)), 1e-6);
  EXPECT_LE(reference::relative_error(got.o.slice(1, 3, 4), in.dense().o.slice(1, 3, 4)), 1e-5);
  EXPECT_THROW(minference(in.q, in.k, in.v, options, Tensor::zeros({4}, DType::i32)), Error);
  EXPECT_THROW(minference(in.q, in.k, in.v, options, Tensor::from(std::vector<int32_t>{0, 1, 3, 1}, {4}),
                          Tensor::from(std::vector<int32_t>(8, 1), {4, 2})),
               Error);
}

TEST(MinferenceSearch, TakesTheDenseCandidateUnlessAnEarlierOneIsAsGood) {
  const Inputs in(2, 1, 80, 80);
  const VerticalSlashOptions shape{.last_q = 16, .keep_sink = 2, .keep_local = 2, .block = 16};
  auto search = [&](std::vector<int32_t> rows) {
    return minference_search(in.q, in.k, in.v, Tensor::from(rows, {static_cast<int64_t>(rows.size()) / 3, 3}),
                             shape);
  };
  const auto found = search({0, 2, 4, 1, 80, 80, 2, 1, 0});
  EXPECT_EQ(found.head_pattern.at<int32_t>(0), 1);
  EXPECT_EQ(found.head_budget.at<int32_t>(1, 0), 80);
  EXPECT_LT(found.error.at<float>(0, 1), found.error.at<float>(0, 0) * 1e-3);
  EXPECT_THROW(search({5, 1, 1}), Error);
  EXPECT_THROW(search({0, 1, 0}), Error);
}

TEST(PlanAttention, WantsExactlyOneOfMaskAndBlocks) {
  const Inputs in(2, 1, 8, 8);
  const Tensor mask = Tensor::zeros({1, 2, 8, 8}, DType::u8), blocks = Tensor::zeros({1, 2, 1, 1}, DType::u8);
  const Operator& op = catalogue().at("plan-attention");
  EXPECT_THROW(op.run({{"q", in.q}, {"k", in.k}, {"v", in.v}}), Error);
  EXPECT_THROW(op.run({{"q", in.q}, {"k", in.k}, {"v", in.v}, {"mask", mask}, {"blocks", blocks}}), Error);
  const Tensors nothing = op.run({{"q", in.q}, {"k", in.k}, {"v", in.v}, {"blocks", blocks}});
  EXPECT_EQ(nothing["o"].at<float>(0, 0, 7, 0), 0.0f);
  EXPECT_TRUE(std::isinf(nothing["lse"].at<float>(0, 0, 7)));
}

TEST(PlanAttention, BlocksAndTheirMaskAgreeForwardAndBackward) {
  const Inputs in(4, 2, 70, 70);
  const Tensor d_o = random_normal({1, 4, 70, 16}, 9);
  const Tensor blocks = select_blocks(in.q, in.k, {2, 16, true});
  const Tensor mask = plan_mask(plan_from_blocks(blocks, 16, 16, 70, 70));
  const options::Pairs sixteen = {{"block_q", "16"}, {"block_k", "16"}};
  const Operator& op = catalogue().at("plan-attention-backward");
  const Tensors by_blocks =
      op.run({{"q", in.q}, {"k", in.k}, {"v", in.v}, {"do", d_o}, {"blocks", blocks}}, sixteen);
  const Tensors by_mask = op.run({{"q", in.q}, {"k", in.k}, {"v", in.v}, {"do", d_o}, {"mask", mask}});
  for (const char* name : {"dq", "dk", "dv"})
    EXPECT_LE(reference::relative_error(by_blocks[name], by_mask[name]), 1e-5) << name;
}

TEST(Planners, MatchTheirPlansOnEveryRow) {
  const Inputs in(4, 2, 100, 100);
  for (const auto& entry : planners()) {
    if (entry.wraps) continue;
    const auto planner = entry.make({}, nullptr);
    const KeyPlan plan = planner->plan(in.q, in.k);
    kernels::check(plan, 1, 4, 2, 100, 100);
    const Tensor shared = plan_mask(plan);
    expect_near(planner->attend(in.q, in.k, in.v), in.masked(shared.expand({1, 4, 100, 100})));
  }
}

}  // namespace
}  // namespace fovea::sparse

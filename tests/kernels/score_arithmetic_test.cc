// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "fovea/core/memory.h"
#include "fovea/kernels/attention.h"
#include "tests/support/attention_problem.h"

namespace fovea {
namespace {

using kernels::AttentionParams;
using kernels::AttentionResult;
using kernels::flash_forward;
using kernels::ScoreArithmetic;
using kernels::Visibility;
using reference::Inputs;
using reference::random_inputs;
using reference::relative_error;
using reference::Sizes;

class ScoreArithmeticTest : public ::testing::Test {
 protected:
  void SetUp() override { memory::set_poison(true); }
  void TearDown() override { memory::set_poison(false); }
};

// Whole numbers up to 127, which every row has: eight bits hold them exactly, and bf16 too.
Tensor whole_numbers(const Tensor& normal) {
  Tensor x = normal.clone();
  const int64_t dim = x.dim(3);
  for (int64_t i = 0; i < x.size(); ++i) {
    float& value = x.data<float>()[i];
    value = i % dim == 0 ? 127.0f : std::clamp(std::round(40 * value), -127.0f, 127.0f);
  }
  return x;
}

TEST_F(ScoreArithmeticTest, EightBitsAreExactWhereTheyHoldTheRowsOnEveryTarget) {
  for (const Sizes& s : {Sizes{1, 4, 2, 67, 230, 64, 40}, Sizes{2, 2, 1, 100, 65, 17, 16},
                         Sizes{1, 1, 1, 2, 50, 1, 3}, Sizes{1, 2, 2, 40, 300, 512, 8}}) {
    Inputs in = random_inputs(s);
    in.q = whole_numbers(in.q), in.k = whole_numbers(in.k);
    AttentionParams plain{.scores = ScoreArithmetic::int8}, all = plain;
    plain.scale = all.scale = 1.0f / (4000.0f * std::sqrt(static_cast<float>(s.dim)));
    all.visible = Visibility{.window_left = 150, .window_right = 2, .prefix = 3};
    all.bias = random_normal({1, 1, s.queries, s.keys}, 4);
    all.slopes = Tensor::full({s.heads_q}, 0.01f);
    all.bias_q = random_normal({1, s.heads_q, s.queries, 3}, 5);
    all.bias_k = random_normal({1, 1, s.keys, 3}, 6);
    for (const AttentionParams& params : {plain, all})
      for (DType dtype : {DType::f32, DType::bf16}) {
        const Inputs typed{in.q.to(dtype), in.k.to(dtype), in.v.to(dtype)};
        const reference::Result want = reference::attention(reference::problem_of(typed, params));
        reference::for_each_simd_target([&](const std::string& target) {
          SCOPED_TRACE(::testing::Message() << target << " " << s << " " << name_of(dtype));
          const AttentionResult got = flash_forward(typed.q, typed.k, typed.v, params);
          EXPECT_LE(relative_error(got.o, want.o), dtype == DType::f32 ? 1e-5 : 4e-3);
          EXPECT_LE(relative_error(got.lse, want.lse), 1e-5);
        });
      }
  }
}

TEST_F(ScoreArithmeticTest, EightBitsKeepTheStatedErrorOnNormalData) {
  const Sizes s{1, 1, 1, 200, 1, 64, 1};  // of one key, lse is the score
  const Inputs in = random_inputs(s);
  const Tensor want = flash_forward(in.q, in.k, in.v).lse;
  reference::for_each_simd_target([&](const std::string& target) {
    SCOPED_TRACE(target);
    const Tensor got = flash_forward(in.q, in.k, in.v, {.scores = ScoreArithmetic::int8}).lse;
    double squares = 0;
    for (int64_t i = 0; i < s.queries; ++i)
      squares += std::pow(got.at<float>(0, 0, i) - want.at<float>(0, 0, i), 2);
    const double stated = 64.0 / std::sqrt(64.0) / (120 * std::sqrt(64.0));  // scale |q| |k| / (120 sqrt D)
    EXPECT_LE(std::sqrt(squares / static_cast<double>(s.queries)), 1.5 * stated);
    EXPECT_GE(std::sqrt(squares / static_cast<double>(s.queries)), 0.2 * stated);
  });
}

TEST_F(ScoreArithmeticTest, EightBitsGiveTheSameBitsForAnyNumberOfThreads) {
  const Inputs in = random_inputs({2, 4, 2, 300, 300, 64, 64});
  AttentionResult results[2];
  for (int n = 0; n < 2; ++n) {
    reference::WithThreads threads(1 + 2 * n);
    results[n] =
        flash_forward(in.q, in.k, in.v, {.visible = Visibility::causal(), .scores = ScoreArithmetic::int8});
  }
  EXPECT_TRUE(reference::same_bits(results[0].o, results[1].o));
  EXPECT_TRUE(reference::same_bits(results[0].lse, results[1].lse));
}

TEST_F(ScoreArithmeticTest, ANaNKeyReachesTheRowsThatSeeIt) {
  reference::for_each_simd_target([](const std::string& target) {
    SCOPED_TRACE(target);
    const Inputs in = random_inputs({1, 1, 1, 90, 90, 32, 32});
    in.k.at<float>(0, 0, 51, 7) = std::numeric_limits<float>::quiet_NaN();
    const AttentionResult got =
        flash_forward(in.q, in.k, in.v, {.visible = Visibility::causal(), .scores = ScoreArithmetic::int8});
    for (int64_t i = 0; i < 90; ++i) EXPECT_EQ(std::isnan(got.o.at<float>(0, 0, i, 7)), i >= 51) << i;
  });
}

TEST_F(ScoreArithmeticTest, F32WidensBFloat16Everywhere) {
  const Inputs in = random_inputs({1, 2, 2, 65, 131, 40, 72}, 2, DType::bf16);
  const AttentionResult got = flash_forward(in.q, in.k, in.v, {.scores = ScoreArithmetic::f32});
  const AttentionResult want = flash_forward(in.q.to(DType::f32), in.k.to(DType::f32), in.v.to(DType::f32));
  EXPECT_TRUE(reference::same_bits(got.o, want.o.to(DType::bf16)));
  EXPECT_TRUE(reference::same_bits(got.lse, want.lse));
}

TEST_F(ScoreArithmeticTest, EightBitsAreRefusedWhereTheyDoNotApply) {
  const Inputs in = random_inputs({1, 1, 1, 5, 5, 8, 8});
  const AttentionParams params{.scores = ScoreArithmetic::int8};
  const AttentionResult forward = flash_forward(in.q, in.k, in.v, params);
  EXPECT_THROW(kernels::flash_backward(in.q, in.k, in.v, forward, in.q, params), Error);
  EXPECT_THROW(kernels::decode(in.q, kernels::PagedKv::of(in.k, in.v, 8), {}, params), Error);
  const Inputs wide = random_inputs({1, 1, 1, 5, 5, 1025, 8});
  EXPECT_THROW(flash_forward(wide.q, wide.k, wide.v, params), Error);
}

}  // namespace
}  // namespace fovea

// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "fovea/core/memory.h"
#include "fovea/kernels/attention.h"
#include "tests/support/score_terms.h"

// bf16 inputs on every SIMD target, those with native bf16 arithmetic among them.
namespace fovea {
namespace {

using kernels::AttentionParams;
using kernels::AttentionResult;
using kernels::flash_forward;
using kernels::Visibility;
using reference::Inputs;
using reference::random_inputs;
using reference::relative_error;
using reference::Sizes;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kTolerance = 4e-3;     // of o; rounding it to bf16 takes 1.7e-3
constexpr double kLseTolerance = 1e-5;  // products of bf16 are exact, and so is the sum for lse

Inputs bfloat16_inputs(const Sizes& s) { return random_inputs(s, 1, DType::bf16); }

void expect_matches_on_every_target(const Inputs& in, const AttentionParams& params) {
  reference::expect_forward_on_every_target(in, params, kTolerance, kLseTolerance);
}

class FlashForwardBFloat16 : public ::testing::Test {
 protected:
  void SetUp() override { memory::set_poison(true); }
  void TearDown() override { memory::set_poison(false); }
};

TEST_F(FlashForwardBFloat16, EqualsTheReferenceForAllSizes) {
  for (const Sizes& s :
       {Sizes{1, 1, 1, 1, 1, 1, 1}, Sizes{2, 4, 2, 37, 53, 32, 16}, Sizes{1, 3, 1, 65, 63, 17, 33},
        Sizes{1, 2, 2, 100, 257, 64, 64}, Sizes{2, 2, 1, 257, 100, 80, 48}, Sizes{1, 1, 1, 5, 400, 64, 64},
        Sizes{1, 6, 2, 3, 129, 128, 128}, Sizes{1, 1, 1, 257, 257, 3, 5}, Sizes{1, 1, 1, 70, 210, 512, 512},
        Sizes{1, 2, 1, 449, 449, 96, 112}, Sizes{1, 1, 1, 63, 65, 1, 1}, Sizes{3, 2, 2, 1, 65, 40, 24}})
    for (bool causal : {false, true}) {
      SCOPED_TRACE(::testing::Message() << s << " causal " << causal);
      expect_matches_on_every_target(bfloat16_inputs(s),
                                     {.visible = causal ? Visibility::causal() : Visibility::all()});
    }
}

TEST_F(FlashForwardBFloat16, LongRowsKeepTheStatedError) {
  for (int64_t dim : {64, 128}) {
    const Inputs in = bfloat16_inputs({1, 1, 1, 60, 4096, dim, dim});
    expect_matches_on_every_target(in, {});
    expect_matches_on_every_target(in, {.visible = Visibility::causal()});
  }
}

TEST_F(FlashForwardBFloat16, WindowsHideKeysOnBothSidesAndKeepThePrefix) {
  for (const Sizes& s : {Sizes{1, 2, 1, 300, 300, 16, 16}, Sizes{1, 1, 1, 40, 700, 8, 24}})
    for (const Visibility& visible : reference::windows()) {
      SCOPED_TRACE(::testing::Message() << s << " left " << visible.window_left << " right "
                                        << visible.window_right << " prefix " << visible.prefix);
      expect_matches_on_every_target(bfloat16_inputs(s), {.visible = visible});
    }
}

TEST_F(FlashForwardBFloat16, EveryTermOfTheScoreAloneAndTogether) {
  const Inputs in = bfloat16_inputs(reference::kTermSizes);
  for (const auto& [name, params] : reference::score_terms()) {
    SCOPED_TRACE(name);
    expect_matches_on_every_target(in, params);
  }
}

// The rounding of the weights cancels where the values are equal.
TEST_F(FlashForwardBFloat16, ConstantValuesComeBackExactly) {
  Inputs in = bfloat16_inputs({1, 1, 1, 50, 333, 64, 1});
  in.v = Tensor::full({1, 1, 333, 24}, 1.7f).to(DType::bf16);
  reference::for_each_simd_target([&](const std::string& target) {
    SCOPED_TRACE(target);
    const Tensor o = flash_forward(in.q, in.k, in.v).o.to(DType::f32);
    const float want = in.v.to(DType::f32).at<float>(0, 0, 0, 0);
    for (int64_t i = 0; i < o.size(); ++i) EXPECT_EQ(o.data<float>()[i], want);
  });
}

TEST_F(FlashForwardBFloat16, ResultsAreBitwiseEqualForAnyNumberOfThreads) {
  const Inputs in = bfloat16_inputs({2, 4, 2, 300, 300, 64, 64});
  reference::for_each_simd_target([&](const std::string& target) {
    SCOPED_TRACE(target);
    AttentionResult results[2];
    for (int n = 0; n < 2; ++n) {
      reference::WithThreads threads(1 + 2 * n);
      results[n] = flash_forward(in.q, in.k, in.v, {.visible = Visibility::causal()});
    }
    EXPECT_TRUE(reference::same_bits(results[0].o, results[1].o));
    EXPECT_TRUE(reference::same_bits(results[0].lse, results[1].lse));
  });
}

TEST_F(FlashForwardBFloat16, RowsWithoutKeysAreZeroWithMinusInfinity) {
  const Inputs in = bfloat16_inputs({1, 1, 1, 10, 4, 16, 16});
  AttentionParams hidden;
  hidden.bias = Tensor::full({1, 1, 10, 4}, -kInfinity);
  reference::for_each_simd_target([&](const std::string& target) {
    SCOPED_TRACE(target);
    const AttentionResult causal = flash_forward(in.q, in.k, in.v, {.visible = Visibility::causal()});
    const AttentionResult none = flash_forward(in.q, in.k, in.v, hidden);
    for (int64_t i = 0; i < 10; ++i) {
      EXPECT_EQ(std::isfinite(causal.lse.at<float>(0, 0, i)), i >= 6);
      EXPECT_EQ(none.lse.at<float>(0, 0, i), -kInfinity);
      for (int64_t c = 0; c < 16; ++c) {
        EXPECT_EQ(causal.o.at<BFloat16>(0, 0, i, c).bits == 0, i < 6);
        EXPECT_EQ(none.o.at<BFloat16>(0, 0, i, c).bits, 0);
      }
    }
  });
}

TEST_F(FlashForwardBFloat16, NonFiniteKeysReachExactlyTheRowsThatSeeThem) {
  const int64_t bad = 131;
  for (float poison : {std::numeric_limits<float>::quiet_NaN(), kInfinity})
    reference::for_each_simd_target([&](const std::string& target) {
      SCOPED_TRACE(target);
      Inputs in = bfloat16_inputs({1, 1, 1, 300, 300, 32, 32});
      const AttentionParams params{.visible = Visibility{100, 0, 0}};
      const Tensor clean = flash_forward(in.q, in.k, in.v, params).o.to(DType::f32);
      for (Tensor* tensor : {&in.k, &in.v}) {
        const Tensor before = tensor->clone();
        tensor->at<BFloat16>(0, 0, bad, 7) = to_bfloat16(poison);
        const Tensor got = flash_forward(in.q, in.k, in.v, params).o.to(DType::f32);
        for (int64_t i = 0; i < 300; ++i) {
          const float x = got.at<float>(0, 0, i, 7);
          const bool sees = i >= bad && i <= bad + 100;
          // A key of infinity gives a score of either sign: no weight at all, or NaN.
          if (!sees || (tensor == &in.k && std::isfinite(x)))
            EXPECT_NEAR(x, clean.at<float>(0, 0, i, 7), sees ? 1.0 : 2e-2) << i;
          else
            EXPECT_FALSE(std::isfinite(x)) << i;
        }
        tensor->copy_from(before);
      }
    });
}

TEST_F(FlashForwardBFloat16, HugeScoresDoNotOverflow) {
  Inputs in = random_inputs({1, 1, 1, 64, 400, 16, 16});
  for (int64_t i = 0; i < in.q.size(); ++i) in.q.data<float>()[i] *= 5000;
  for (Tensor* tensor : {&in.q, &in.k, &in.v}) *tensor = tensor->to(DType::bf16);
  const reference::Result want = reference::attention({.q = in.q, .k = in.k, .v = in.v});
  reference::for_each_simd_target([&](const std::string& target) {
    SCOPED_TRACE(target);
    const AttentionResult got = flash_forward(in.q, in.k, in.v);
    EXPECT_LE(relative_error(got.lse, want.lse), 1e-6);
    EXPECT_LE(relative_error(got.o, want.o), 1e-2);
  });
}

TEST_F(FlashForwardBFloat16, SummaryIsTheUnnormalisedResult) {
  const Inputs in = bfloat16_inputs({1, 4, 2, 45, 333, 16, 24});
  reference::for_each_simd_target([&](const std::string& target) {
    SCOPED_TRACE(target);
    const AttentionResult want = flash_forward(in.q, in.k, in.v);
    const kernels::AttentionSummary got = kernels::flash_summary(in.q, in.k, in.v);
    for (int64_t h = 0; h < 4; ++h)
      for (int64_t i = 0; i < 45; ++i) {
        const float m = got.m.at<float>(0, h, i), s = got.s.at<float>(0, h, i);
        EXPECT_NEAR(m + std::log(s), want.lse.at<float>(0, h, i), kTolerance);
        for (int64_t c = 0; c < 24; ++c)
          EXPECT_NEAR(got.a.at<float>(0, h, i, c) / s, to_float(want.o.at<BFloat16>(0, h, i, c)), kTolerance);
      }
  });
}

// Two keys with scores 0 and x: lse = log(1 + e^x). Native weights have a relative error of 3.1e-6.
TEST_F(FlashForwardBFloat16, ExponentialsKeepTheirErrorBound) {
  constexpr int64_t kPoints = 4001;
  const Tensor zeros = Tensor::zeros({1, 1, kPoints, 8}).to(DType::bf16);
  AttentionParams params;
  params.bias = Tensor::zeros({1, 1, kPoints, 2});
  for (int64_t i = 0; i < kPoints; ++i)
    params.bias.at<float>(0, 0, i, 1) = -static_cast<float>(i) / static_cast<float>(kPoints - 1);
  const Tensor two = zeros.slice(2, 0, 2);
  reference::for_each_simd_target([&](const std::string& target) {
    SCOPED_TRACE(target);
    const AttentionResult got = flash_forward(zeros, two, two, params);
    double worst = 0;
    for (int64_t i = 0; i < kPoints; ++i) {
      const double w = std::exp(static_cast<double>(params.bias.at<float>(0, 0, i, 1)));
      worst = std::max(
          worst, std::abs(static_cast<double>(got.lse.at<float>(0, 0, i)) - std::log1p(w)) / (w / (1 + w)));
    }
    EXPECT_LE(worst, 4e-6);
  });
}

}  // namespace
}  // namespace fovea

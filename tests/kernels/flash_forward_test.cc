// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "fovea/core/memory.h"
#include "fovea/kernels/attention.h"
#include "tests/support/score_terms.h"

namespace fovea {
namespace {

using kernels::AttentionParams;
using kernels::AttentionResult;
using kernels::flash_forward;
using kernels::flash_forward_varlen;
using kernels::Visibility;
using reference::Inputs;
using reference::random_inputs;
using reference::relative_error;
using reference::Sizes;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void expect_matches(const Inputs& in, const AttentionParams& params, double tolerance = 3e-6) {
  const reference::Result want = reference::attention(reference::problem_of(in, params));
  const AttentionResult got = flash_forward(in.q, in.k, in.v, params);
  EXPECT_LE(relative_error(got.o, want.o), tolerance);
  EXPECT_LE(relative_error(got.lse, want.lse), tolerance);
}

void expect_matches_on_every_target(const Inputs& in, const AttentionParams& params,
                                    double tolerance = 3e-6) {
  reference::expect_forward_on_every_target(in, params, tolerance, tolerance);
}

class FlashForward : public ::testing::Test {
 protected:
  void SetUp() override { memory::set_poison(true); }
  void TearDown() override { memory::set_poison(false); }
};

const Sizes kSizes[] = {
    {1, 1, 1, 1, 1, 1, 1},        {2, 4, 2, 37, 53, 32, 16},   {1, 3, 1, 65, 63, 17, 33},
    {1, 2, 2, 100, 257, 64, 64},  {2, 2, 1, 257, 100, 80, 48}, {1, 1, 1, 2, 400, 64, 64},
    {1, 6, 2, 3, 129, 128, 128},  {1, 1, 1, 257, 257, 3, 5},   {1, 1, 1, 70, 210, 512, 512},
    {1, 2, 1, 449, 449, 96, 112}, {3, 2, 2, 1, 65, 40, 24},    {1, 200, 1, 3, 40, 8, 8},
};

TEST_F(FlashForward, EqualsTheReferenceForAllSizesOnEveryTarget) {
  for (const Sizes& s : kSizes)
    for (bool causal : {false, true}) {
      SCOPED_TRACE(::testing::Message() << s << " causal " << causal);
      expect_matches_on_every_target(random_inputs(s),
                                     {.visible = causal ? Visibility::causal() : Visibility::all()});
    }
}

TEST_F(FlashForward, LongRowsKeepTheStatedErrorOnEveryTarget) {
  for (int64_t dim : {64, 128}) {
    const Inputs in = random_inputs({1, 1, 1, 60, 4096, dim, dim});
    expect_matches_on_every_target(in, {}, 2e-6);
    expect_matches_on_every_target(in, {.visible = Visibility::causal()}, 2e-6);
  }
}

// Two keys with scores 0 and x and values 0 and 1: a = e^x. The weight has an error of 2 ulp, the score in
// base 2 one of rounding.
TEST_F(FlashForward, WeightsKeepTheErrorBoundOfTheExponential) {
  constexpr int64_t kPoints = 20001;
  const Tensor zeros = Tensor::zeros({1, 1, kPoints, 8}),
               values = Tensor::from(std::vector<float>{0, 1}, {1, 1, 2, 1});
  AttentionParams params;
  params.bias = Tensor::zeros({1, 1, kPoints, 2});
  for (int64_t i = 0; i < kPoints; ++i)
    params.bias.at<float>(0, 0, i, 1) = -80.0f * static_cast<float>(i) / static_cast<float>(kPoints - 1);
  reference::for_each_simd_target([&](const std::string& target) {
    SCOPED_TRACE(target);
    const Tensor a = kernels::flash_summary(zeros, zeros.slice(2, 0, 2), values, params).a;
    double worst = 0;
    for (int64_t i = 0; i < kPoints; ++i) {
      const double x = params.bias.at<float>(0, 0, i, 1), want = std::exp(x);
      const double error = std::abs(static_cast<double>(a.at<float>(0, 0, i, 0)) - want) / want;
      worst = std::max(worst, error / (2.4e-7 + 8e-8 * std::abs(x)));
    }
    EXPECT_LE(worst, 1.0);
  });
}

TEST_F(FlashForward, WindowsHideKeysOnBothSidesAndKeepThePrefix) {
  for (const Sizes& s :
       {Sizes{1, 2, 1, 300, 300, 16, 16}, Sizes{1, 1, 1, 250, 91, 8, 8}, Sizes{1, 1, 1, 40, 700, 8, 24}})
    for (const Visibility& visible : reference::windows()) {
      SCOPED_TRACE(::testing::Message() << s << " left " << visible.window_left << " right "
                                        << visible.window_right << " prefix " << visible.prefix);
      expect_matches(random_inputs(s), {.visible = visible});
    }
}

// Everything a score may be made of, one at a time and all at once.
TEST_F(FlashForward, BiasMaskSlopesSinkLengthsAndSoftcapEqualTheReferenceOnEveryTarget) {
  const Inputs in = random_inputs(reference::kTermSizes);
  for (const auto& [name, params] : reference::score_terms()) {
    SCOPED_TRACE(name);
    expect_matches_on_every_target(in, params, 1e-5);
  }
}

// bf16 too, wherever it is widened to f32: a plus in the name says that it is not.
TEST_F(FlashForward, WidenedInputsAreReadExactlyAndRoundedOnceOnEveryTarget) {
  reference::for_each_simd_target([](const std::string& target) {
    for (DType dtype : {DType::f16, DType::bf16}) {
      if (dtype == DType::bf16 && target.find('+') != std::string::npos) continue;
      SCOPED_TRACE(target + " " + std::string(name_of(dtype)));
      const Inputs in = random_inputs({1, 4, 2, 65, 131, 40, 72}, 2, dtype);
      const AttentionResult got = flash_forward(in.q, in.k, in.v);
      const AttentionResult want =
          flash_forward(in.q.to(DType::f32), in.k.to(DType::f32), in.v.to(DType::f32));
      EXPECT_TRUE(reference::same_bits(got.o, want.o.to(dtype)));
      EXPECT_TRUE(reference::same_bits(got.lse, want.lse));
    }
  });
}

TEST_F(FlashForward, StridedInputsEqualContiguousOnes) {
  const Inputs in = random_inputs({2, 4, 2, 90, 120, 32, 32});
  auto scattered = [](const Tensor& x) {  // rows of all heads interleaved
    Tensor y = Tensor::empty({x.dim(0), x.dim(2), x.dim(1), x.dim(3)});
    y.transpose(1, 2).copy_from(x);
    return y.transpose(1, 2);
  };
  const AttentionParams params{.visible = Visibility::causal()};
  const AttentionResult want = flash_forward(in.q, in.k, in.v, params);
  const AttentionResult got = flash_forward(scattered(in.q), scattered(in.k), scattered(in.v), params);
  EXPECT_TRUE(reference::same_bits(got.o, want.o));
  EXPECT_TRUE(reference::same_bits(got.lse, want.lse));
}

TEST_F(FlashForward, ResultsAreBitwiseEqualForAnyNumberOfThreads) {
  const Inputs in = random_inputs({2, 4, 2, 300, 300, 64, 64});
  const AttentionParams params{.visible = Visibility::causal()};
  AttentionResult one, many;
  {
    reference::WithThreads threads(1);
    one = flash_forward(in.q, in.k, in.v, params);
  }
  {
    reference::WithThreads threads(3);
    many = flash_forward(in.q, in.k, in.v, params);
  }
  EXPECT_TRUE(reference::same_bits(one.o, many.o));
  EXPECT_TRUE(reference::same_bits(one.lse, many.lse));
}

// The batch decides how rows are tiled: the last two of 50 stand alone or with the others, and a window's
// first tile begins elsewhere.
TEST_F(FlashForward, ABatchRowDoesNotDependOnItsNeighbours) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (const Sizes& s : {Sizes{3, 2, 2, 150, 150, 32, 32}, Sizes{60, 2, 1, 50, 331, 16, 16}})
      for (const Visibility& visible :
           {Visibility::all(), Visibility::causal(), Visibility{33, 0, 0}, Visibility{41, 2, 5}}) {
        SCOPED_TRACE(::testing::Message() << s << name_of(dtype) << visible.window_left);
        const Inputs in = random_inputs(s, 1, dtype);
        const AttentionParams params{.visible = visible};
        const AttentionResult together = flash_forward(in.q, in.k, in.v, params);
        const AttentionResult alone =
            flash_forward(in.q.slice(0, 1, 2), in.k.slice(0, 1, 2), in.v.slice(0, 1, 2), params);
        EXPECT_TRUE(reference::same_bits(alone.o, together.o.slice(0, 1, 2).clone()));
        EXPECT_TRUE(reference::same_bits(alone.lse, together.lse.slice(0, 1, 2).clone()));
      }
}

TEST_F(FlashForward, TileSizesDoNotChangeTheResult) {
  const Inputs in = random_inputs({1, 2, 1, 200, 333, 32, 32});
  const AttentionResult want = flash_forward(in.q, in.k, in.v, {.visible = Visibility::causal()});
  for (auto [queries, keys] :
       {std::pair{1, 1}, std::pair{7, 13}, std::pair{64, 512}, std::pair{1024, 4096}}) {
    const AttentionResult got = flash_forward(
        in.q, in.k, in.v, {.visible = Visibility::causal(), .query_tile = queries, .key_tile = keys});
    EXPECT_LE(relative_error(got.o, want.o), 1e-6);
    EXPECT_LE(relative_error(got.lse, want.lse), 1e-6);
  }
}

TEST_F(FlashForward, RowsWithoutKeysAreZeroWithMinusInfinity) {
  const Inputs in = random_inputs({1, 1, 1, 10, 4, 16, 16});
  const AttentionResult causal = flash_forward(in.q, in.k, in.v, {.visible = Visibility::causal()});
  for (int64_t i = 0; i < 6; ++i) {
    EXPECT_EQ(causal.lse.at<float>(0, 0, i), -kInfinity);
    for (int64_t c = 0; c < 16; ++c) EXPECT_EQ(causal.o.at<float>(0, 0, i, c), 0.0f);
  }
  EXPECT_TRUE(std::isfinite(causal.lse.at<float>(0, 0, 6)));

  AttentionParams hidden;
  hidden.bias = Tensor::full({1, 1, 10, 4}, -kInfinity);
  EXPECT_EQ(flash_forward(in.q, in.k, in.v, hidden).lse.at<float>(0, 0, 9), -kInfinity);
  EXPECT_EQ(flash_forward(in.q, in.k, in.v, hidden).o.at<float>(0, 0, 9, 3), 0.0f);
  hidden.sink = Tensor::full({1}, 1.5f);
  EXPECT_FLOAT_EQ(flash_forward(in.q, in.k, in.v, hidden).lse.at<float>(0, 0, 9), 1.5f);
  EXPECT_EQ(flash_forward(in.q, in.k, in.v, hidden).o.at<float>(0, 0, 9, 3), 0.0f);
}

TEST_F(FlashForward, EmptyBatchesRowsAndKeysWork) {
  EXPECT_EQ(
      flash_forward(Tensor::empty({0, 2, 3, 8}), Tensor::empty({0, 1, 3, 8}), Tensor::empty({0, 1, 3, 8}))
          .o.size(),
      0);
  EXPECT_EQ(
      flash_forward(Tensor::empty({1, 2, 0, 8}), Tensor::empty({1, 1, 3, 8}), Tensor::empty({1, 1, 3, 8}))
          .lse.size(),
      0);
  const AttentionResult no_keys =
      flash_forward(Tensor::zeros({1, 2, 3, 8}), Tensor::empty({1, 1, 0, 8}), Tensor::empty({1, 1, 0, 8}));
  EXPECT_EQ(no_keys.lse.at<float>(0, 1, 2), -kInfinity);
  EXPECT_EQ(no_keys.o.at<float>(0, 1, 2, 7), 0.0f);
}

TEST_F(FlashForward, NonFiniteKeysReachExactlyTheRowsThatSeeThem) {
  reference::for_each_simd_target([](const std::string& target) {
    SCOPED_TRACE(target);
    const int64_t bad = 130;
    Inputs in = random_inputs({1, 1, 1, 300, 300, 32, 32});
    const AttentionParams params{.visible = Visibility::causal()};
    const AttentionResult clean = flash_forward(in.q, in.k, in.v, params);
    for (Tensor* tensor : {&in.k, &in.v}) {
      const Tensor before = tensor->clone();
      tensor->at<float>(0, 0, bad, 7) = std::numeric_limits<float>::quiet_NaN();
      const AttentionResult got = flash_forward(in.q, in.k, in.v, params);
      for (int64_t i = 0; i < 300; ++i) {
        if (i < bad)
          EXPECT_NEAR(got.o.at<float>(0, 0, i, 7), clean.o.at<float>(0, 0, i, 7), 1e-5) << i;
        else
          EXPECT_TRUE(std::isnan(got.o.at<float>(0, 0, i, 7))) << i;
      }
      tensor->copy_from(before);
    }
  });
}

TEST_F(FlashForward, ARowOfNaNScoresIsNaN) {
  const Tensor q = Tensor::full({1, 1, 5, 8}, std::numeric_limits<float>::quiet_NaN());
  const AttentionResult got = flash_forward(q, Tensor::full({1, 1, 9, 8}, 1), Tensor::full({1, 1, 9, 8}, 1));
  for (int64_t i = 0; i < 5; ++i) EXPECT_TRUE(std::isnan(got.o.at<float>(0, 0, i, 0)));
}

TEST_F(FlashForward, HugeScoresDoNotOverflow) {
  Inputs in = random_inputs({1, 1, 1, 64, 400, 16, 16});
  for (int64_t i = 0; i < in.q.size(); ++i) in.q.data<float>()[i] *= 5000;
  const AttentionResult got = flash_forward(in.q, in.k, in.v);
  const reference::Result want = reference::attention({.q = in.q, .k = in.k, .v = in.v});
  EXPECT_LE(relative_error(got.lse, want.lse), 1e-6);
  EXPECT_LE(relative_error(got.o, want.o), 1e-2);  // a score of 2e4 has an absolute error of 1e-3 in f32
}

TEST_F(FlashForward, ALargeSoftcapIsNoSoftcap) {
  const Inputs in = random_inputs({1, 2, 2, 50, 90, 32, 32});
  const AttentionResult want = flash_forward(in.q, in.k, in.v);
  const AttentionResult got = flash_forward(in.q, in.k, in.v, {.softcap = 1e6f});
  EXPECT_LE(relative_error(got.o, want.o), 1e-6);
}

TEST_F(FlashForward, ScratchDoesNotGrowWithTheLength) {
  memory::set_poison(false);
  reference::WithThreads threads(1);
  int64_t scratch[2];
  for (int64_t n = 0; n < 2; ++n) {
    const int64_t length = n == 0 ? 1024 : 4096;
    const Inputs in = random_inputs({1, 1, 1, 3072, length, 8, 8});
    const int64_t before = memory::current_bytes();
    memory::reset_peak();
    const AttentionResult result = flash_forward(in.q, in.k, in.v);
    scratch[n] = memory::peak_bytes() - before - result.o.bytes() - result.lse.bytes();
  }
  EXPECT_EQ(scratch[0], scratch[1]);
  EXPECT_LE(scratch[1], 1 << 20);
}

TEST_F(FlashForward, SummaryIsTheUnnormalisedResult) {
  const Inputs in = random_inputs({1, 4, 2, 45, 333, 16, 24});
  const AttentionResult want = flash_forward(in.q, in.k, in.v);
  const kernels::AttentionSummary got = kernels::flash_summary(in.q, in.k, in.v);
  for (int64_t h = 0; h < 4; ++h)
    for (int64_t i = 0; i < 45; ++i) {
      const float m = got.m.at<float>(0, h, i), s = got.s.at<float>(0, h, i);
      EXPECT_GE(s, 1.0f);
      EXPECT_NEAR(m + std::log(s), want.lse.at<float>(0, h, i), 1e-5);
      for (int64_t c = 0; c < 24; ++c)
        EXPECT_NEAR(got.a.at<float>(0, h, i, c) / s, want.o.at<float>(0, h, i, c), 1e-5);
    }
  AttentionParams sink;
  sink.sink = Tensor::zeros({4});
  EXPECT_THROW(kernels::flash_summary(in.q, in.k, in.v, sink), Error);
}

TEST_F(FlashForward, RefusesWhatDoesNotFit) {
  const Inputs in = random_inputs({2, 4, 2, 8, 9, 16, 16});
  EXPECT_THROW(flash_forward(in.q.slice(1, 0, 3), in.k, in.v), Error);
  EXPECT_THROW(flash_forward(in.q, in.k.slice(3, 0, 8), in.v), Error);
  EXPECT_THROW(flash_forward(in.q, in.k, in.v.slice(2, 0, 8)), Error);
  EXPECT_THROW(flash_forward(in.q, in.k.to(DType::f16), in.v), Error);
  EXPECT_THROW(flash_forward(in.q.transpose(2, 3), in.k, in.v), Error);
  EXPECT_THROW(flash_forward(in.q.select(0, 0), in.k, in.v), Error);
  AttentionParams params;
  params.k_len = Tensor::from(std::vector<int32_t>{9, 10}, {2});
  EXPECT_THROW(flash_forward(in.q, in.k, in.v, params), Error);
  params = {};
  params.bias = Tensor::zeros({1, 2, 8, 9});
  EXPECT_THROW(flash_forward(in.q, in.k, in.v, params), Error);
  params = {};
  params.mask = Tensor::zeros({2, 4, 8, 9});
  EXPECT_THROW(flash_forward(in.q, in.k, in.v, params), Error);
  params = {};
  params.bias_q = Tensor::zeros({1, 4, 8, 2});
  EXPECT_THROW(flash_forward(in.q, in.k, in.v, params), Error);
  params = {};
  params.scale = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(flash_forward(in.q, in.k, in.v, params), Error);
}

TEST_F(FlashForward, RaggedBatchEqualsEachSequenceAlone) {
  const Tensor q = random_normal({40, 4, 32}, 1), k = random_normal({61, 2, 32}, 2),
               v = random_normal({61, 2, 24}, 3);
  const std::vector<int32_t> cu_q{0, 1, 1, 30, 40}, cu_k{0, 20, 31, 31, 61};
  AttentionParams params{.visible = Visibility::causal()};
  params.sink = random_normal({4}, 4);
  const AttentionResult got =
      flash_forward_varlen(q, k, v, Tensor::from(cu_q, {5}), Tensor::from(cu_k, {5}), params);
  ASSERT_EQ(got.o.shape(), (Shape{40, 4, 24}));
  ASSERT_EQ(got.lse.shape(), (Shape{4, 40}));
  for (size_t s = 0; s < 4; ++s) {
    auto part = [&](const Tensor& x, const std::vector<int32_t>& cu) {
      return x.slice(0, cu[s], cu[s + 1]).transpose(0, 1).unsqueeze(0);
    };
    const AttentionResult want = flash_forward(part(q, cu_q), part(k, cu_k), part(v, cu_k), params);
    EXPECT_EQ(relative_error(part(got.o, cu_q), want.o), 0.0);
    EXPECT_EQ(relative_error(got.lse.slice(1, cu_q[s], cu_q[s + 1]).unsqueeze(0), want.lse), 0.0);
  }
}

TEST_F(FlashForward, RefusesRaggedOffsetsThatDoNotAscendOrEnd) {
  const Tensor x = random_normal({6, 1, 8}, 1);
  auto run = [&](std::vector<int32_t> cu_q, std::vector<int32_t> cu_k) {
    flash_forward_varlen(x, x, x, Tensor::from(cu_q, {static_cast<int64_t>(cu_q.size())}),
                         Tensor::from(cu_k, {static_cast<int64_t>(cu_k.size())}));
  };
  EXPECT_NO_THROW(run({0, 2, 6}, {0, 3, 6}));
  EXPECT_THROW(run({0, 4, 2, 6}, {0, 3, 3, 6}), Error);
  EXPECT_THROW(run({0, 2, 6}, {0, 3, 7}), Error);
  EXPECT_THROW(run({1, 2, 6}, {0, 3, 6}), Error);
  EXPECT_THROW(run({0, 2, 5}, {0, 3, 6}), Error);
  EXPECT_THROW(run({0, 6}, {0, 3, 6}), Error);
}

TEST(SimdTarget, CanBeForcedAndGoesBack) {
  const auto targets = kernels::simd_targets();
  ASSERT_FALSE(targets.empty());
  EXPECT_EQ(kernels::active_simd_target(), targets.front());
  kernels::force_simd_target(targets.back());
  EXPECT_EQ(kernels::active_simd_target(), targets.back());
  EXPECT_EQ(kernels::simd_targets(), targets);
  EXPECT_THROW(kernels::force_simd_target("abacus"), Error);
  EXPECT_EQ(kernels::active_simd_target(), targets.back());
  kernels::force_simd_target("");
  EXPECT_EQ(kernels::active_simd_target(), targets.front());
}

}  // namespace
}  // namespace fovea

// SPDX-License-Identifier: Apache-2.0
#include "fovea/dense/flash_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "fovea/core/catalogue.h"
#include "tests/support/attention_problem.h"

namespace fovea::dense {
namespace {

using kernels::AttentionResult;
using reference::Inputs;
using reference::random_inputs;
using reference::relative_error;
using reference::Sizes;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

reference::Problem spelled_out(const Inputs& in, const FlashAttentionOptions& options,
                               const Tensor& sink = {}, const Tensor& k_len = {}) {
  kernels::AttentionParams params;
  params.scale = static_cast<float>(options.scale), params.softcap = static_cast<float>(options.softcap);
  params.visible.window_left = options.window_left;
  params.visible.window_right = options.causal ? 0 : options.window_right;
  params.sink = sink, params.k_len = k_len;
  return reference::problem_of(in, params);
}

TEST(FlashAttention, OneKeyReturnsItsValueAndItsScore) {
  const Inputs in = random_inputs({2, 2, 1, 5, 1, 16, 8});
  const AttentionResult got = flash_attention(in.q, in.k, in.v);
  for (int64_t i = 0; i < 5; ++i) {
    double score = 0;
    for (int64_t c = 0; c < 16; ++c)
      score +=
          static_cast<double>(in.q.at<float>(1, 1, i, c)) * static_cast<double>(in.k.at<float>(1, 0, 0, c));
    EXPECT_NEAR(got.lse.at<float>(1, 1, i), score / 4, 1e-5);
    for (int64_t c = 0; c < 8; ++c) EXPECT_EQ(got.o.at<float>(1, 1, i, c), in.v.at<float>(1, 0, 0, c));
  }
}

TEST(FlashAttention, EqualKeysGiveTheMeanOfTheVisibleValues) {
  Inputs in = random_inputs({1, 1, 1, 3, 40, 8, 4});
  in.k = Tensor::full({1, 1, 40, 8}, 0.7f);
  const AttentionResult got = flash_attention(in.q, in.k, in.v, {.causal = true});
  for (int64_t i = 0; i < 3; ++i)
    for (int64_t c = 0; c < 4; ++c) {
      double mean = 0;
      for (int64_t j = 0; j <= i + 37; ++j) mean += static_cast<double>(in.v.at<float>(0, 0, j, c));
      EXPECT_NEAR(got.o.at<float>(0, 0, i, c), mean / static_cast<double>(i + 38), 1e-6);
    }
}

TEST(FlashAttention, AConstantAddedToEveryKeyLeavesTheOutput) {
  Inputs in = random_inputs({1, 2, 2, 100, 100, 32, 32});
  const AttentionResult want = flash_attention(in.q, in.k, in.v, {.causal = true});
  for (int64_t i = 0; i < in.k.size(); ++i) in.k.data<float>()[i] += 0.01f * static_cast<float>(i % 32);
  EXPECT_LE(relative_error(flash_attention(in.q, in.k, in.v, {.causal = true}).o, want.o), 1e-5);
}

TEST(FlashAttention, AWindowOfTheRowItselfReturnsItsValue) {
  const Inputs in = random_inputs({1, 2, 2, 300, 300, 24, 24});
  const AttentionResult got = flash_attention(in.q, in.k, in.v, {.causal = true, .window_left = 0});
  EXPECT_TRUE(reference::same_bits(got.o, in.v));
}

TEST(FlashAttention, WindowsOfTheWholeLengthAndSplitsChangeNothing) {
  const Inputs in = random_inputs({1, 2, 1, 130, 260, 24, 24});
  const AttentionResult want = flash_attention(in.q, in.k, in.v);
  for (const FlashAttentionOptions& options :
       {FlashAttentionOptions{.window_left = 260, .window_right = 260},
        FlashAttentionOptions{.num_splits = 0}, FlashAttentionOptions{.num_splits = 7}})
    EXPECT_TRUE(reference::same_bits(flash_attention(in.q, in.k, in.v, options).o, want.o));
}

TEST(FlashAttention, ASinkTakesItsShareOfEveryRowAndVanishesAtMinusInfinity) {
  const Inputs in = random_inputs({1, 2, 2, 20, 50, 16, 16});
  const AttentionResult plain = flash_attention(in.q, in.k, in.v);
  const Tensor sink = Tensor::from(std::vector<float>{1.0f, -kInfinity}, {2});
  const AttentionResult got = flash_attention(in.q, in.k, in.v, {}, sink);
  for (int64_t i = 0; i < 20; ++i) {
    const double with = got.lse.at<float>(0, 0, i), without = plain.lse.at<float>(0, 0, i);
    EXPECT_NEAR(std::exp(with), std::exp(without) + std::exp(1.0), 1e-4 * std::exp(with));
    EXPECT_NEAR(got.o.at<float>(0, 0, i, 3), plain.o.at<float>(0, 0, i, 3) * std::exp(without - with), 1e-5);
    EXPECT_EQ(got.lse.at<float>(0, 1, i), plain.lse.at<float>(0, 1, i));
  }
}

TEST(FlashAttention, EqualsTheReferenceWithEveryOption) {
  const Inputs in = random_inputs({3, 4, 2, 65, 257, 40, 24});
  const FlashAttentionOptions options{.scale = 0.4, .window_left = 100, .window_right = 3, .softcap = 2};
  const Tensor sink = random_normal({4}, 5);
  const Tensor k_len = Tensor::from(std::vector<int32_t>{257, 0, 63}, {3});
  const AttentionResult got = flash_attention(in.q, in.k, in.v, options, sink, k_len);
  const reference::Result want = reference::attention(spelled_out(in, options, sink, k_len));
  EXPECT_LE(relative_error(got.o, want.o), 1e-5);
  EXPECT_LE(relative_error(got.lse, want.lse), 1e-5);
}

// The tolerance rule: at most 1.2 times the error of matmul - f32 softmax - matmul with 16-bit operands,
// whose probabilities are rounded to the storage type before they meet the values.
TEST(FlashAttention, SixteenBitErrorIsBelowThatOfThreePassesInTheSameType) {
  for (DType dtype : {DType::f16, DType::bf16}) {
    const Inputs in = random_inputs({1, 2, 2, 100, 257, 64, 64}, 7, dtype);
    const reference::Problem problem = spelled_out(in, {});
    const reference::Result exact = reference::attention(problem);
    const Tensor q = in.q.to(DType::f32), k = in.k.to(DType::f32), v = in.v.to(DType::f32);
    Tensor plain = Tensor::zeros({1, 2, 100, 64});
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t i = 0; i < 100; ++i) {
        const reference::Row row = reference::row_of(problem, q, k, 0, h, i);
        std::vector<float> probability(row.probability.begin(), row.probability.end());
        const Tensor p = Tensor::from(probability, {257}).to(dtype).to(DType::f32);
        for (int64_t c = 0; c < 64; ++c)
          for (int64_t j = 0; j < 257; ++j)
            plain.at<float>(0, h, i, c) += p.at<float>(j) * v.at<float>(0, h, j, c);
      }
    const double limit = 1.2 * relative_error(plain.to(dtype), exact.o);
    EXPECT_LE(relative_error(flash_attention(in.q, in.k, in.v).o, exact.o), limit);
  }
}

TEST(FlashAttention, CataloguesRefuseWhatTheCardForbids) {
  const Operator& op = catalogue().at("flash-attention");
  const Inputs in = random_inputs({2, 4, 2, 8, 9, 16, 16});
  const Tensors good{{"q", in.q}, {"k", in.k}, {"v", in.v}};
  EXPECT_EQ(op.run(good)["o"].shape(), (Shape{2, 4, 8, 16}));
  EXPECT_THROW(op.run(good, {{"window_left", "-2"}}), Error);
  EXPECT_THROW(op.run(good, {{"softcap", "-1"}}), Error);
  EXPECT_THROW(op.run(good, {{"colour", "red"}}), Error);
  EXPECT_THROW(op.run({{"q", in.q.slice(1, 0, 3)}, {"k", in.k}, {"v", in.v}}), Error);
  EXPECT_THROW(op.run({{"q", in.q}, {"k", in.k.to(DType::f16)}, {"v", in.v}}), Error);
  Tensors lengths = good;
  lengths.set("k_len", Tensor::from(std::vector<int32_t>{3, -1}, {2}));
  EXPECT_THROW(op.run(lengths), Error);
  lengths.set("k_len", Tensor::from(std::vector<int32_t>{3, 10}, {2}));
  EXPECT_THROW(op.run(lengths), Error);
}

TEST(FlashAttention, GradientsEqualTheReference) {
  const Inputs in = random_inputs({2, 4, 2, 37, 53, 16, 24});
  const Tensor d_o = random_normal({2, 4, 37, 24}, 9), sink = random_normal({4}, 10);
  const FlashAttentionOptions options{.causal = true, .window_left = 30, .softcap = 3};
  const auto got = flash_attention_backward(in.q, in.k, in.v, d_o, options, sink);
  const auto want = reference::attention_backward(spelled_out(in, options, sink), d_o);
  EXPECT_LE(relative_error(got.dq, want.dq), 1e-4);
  EXPECT_LE(relative_error(got.dk, want.dk), 1e-4);
  EXPECT_LE(relative_error(got.dv, want.dv), 1e-4);
  EXPECT_LE(relative_error(got.dsink, want.dsink), 1e-4);
}

TEST(FlashAttentionVarlen, EqualsEachSequenceAlone) {
  const Tensor q = random_normal({20, 2, 16}, 1), k = random_normal({30, 1, 16}, 2),
               v = random_normal({30, 1, 8}, 3);
  const std::vector<int32_t> cu_q{0, 5, 5, 20}, cu_k{0, 12, 13, 30};
  const FlashAttentionOptions options{.causal = true, .softcap = 4};
  const AttentionResult got =
      flash_attention_varlen(q, k, v, Tensor::from(cu_q, {4}), Tensor::from(cu_k, {4}), options);
  for (size_t s = 0; s < 3; ++s) {
    auto part = [&](const Tensor& x, const std::vector<int32_t>& cu) {
      return x.slice(0, cu[s], cu[s + 1]).transpose(0, 1).unsqueeze(0);
    };
    const AttentionResult want = flash_attention(part(q, cu_q), part(k, cu_k), part(v, cu_k), options);
    EXPECT_EQ(relative_error(part(got.o, cu_q), want.o), 0.0);
  }
}

TEST(FlashAttentionVarlen, RefusesOffsetsThatDoNotFit) {
  const Operator& op = catalogue().at("flash-attention-varlen");
  const Tensor x = random_normal({6, 1, 8}, 1);
  auto run = [&](const std::vector<int32_t>& cu_q, const std::vector<int32_t>& cu_k) {
    op.run({{"q", x},
            {"k", x},
            {"v", x},
            {"cu_q", Tensor::from(cu_q, {static_cast<int64_t>(cu_q.size())})},
            {"cu_k", Tensor::from(cu_k, {static_cast<int64_t>(cu_k.size())})}});
  };
  EXPECT_NO_THROW(run({0, 6}, {0, 6}));
  EXPECT_THROW(run({0, 4, 2, 6}, {0, 1, 2, 6}), Error);
  EXPECT_THROW(run({0, 6}, {0, 7}), Error);
  EXPECT_THROW(run({0, 3, 6}, {0, 6}), Error);
}

}  // namespace
}  // namespace fovea::dense

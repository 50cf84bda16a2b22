// SPDX-License-Identifier: Apache-2.0
#include "fovea/dense/memory_efficient_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "fovea/core/catalogue.h"
#include "fovea/core/memory.h"
#include "fovea/dense/flash_attention.h"
#include "tests/support/attention_problem.h"

namespace fovea::dense {
namespace {

using kernels::AttentionResult;
using reference::Inputs;
using reference::random_inputs;
using reference::relative_error;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(MemoryEfficientAttention, AnyChunksGiveTheReferenceResult) {
  const Inputs in = random_inputs({1, 2, 1, 200, 333, 32, 24});
  kernels::AttentionParams params{.visible = kernels::Visibility::causal()};
  params.bias = random_normal({1, 2, 200, 333}, 4);
  const reference::Result want = reference::attention(reference::problem_of(in, params));
  for (auto [queries, keys] :
       {std::pair{1, 1}, std::pair{7, 13}, std::pair{64, 512}, std::pair{1024, 4096}}) {
    const AttentionResult got = memory_efficient_attention(
        in.q, in.k, in.v, {.query_chunk = queries, .key_chunk = keys, .causal = true}, params.bias);
    EXPECT_LE(relative_error(got.o, want.o), 1e-5) << queries << "," << keys;
    EXPECT_LE(relative_error(got.lse, want.lse), 1e-5) << queries << "," << keys;
  }
}

TEST(MemoryEfficientAttention, AFullyMaskedRowIsZeroWithMinusInfinity) {
  const Inputs in = random_inputs({1, 2, 2, 4, 6, 8, 8});
  Tensor mask = Tensor::zeros({1, 1, 4, 6}, DType::u8);
  for (int64_t j = 0; j < 6; ++j) mask.at<uint8_t>(0, 0, 1, j) = 1;
  const AttentionResult got = memory_efficient_attention(in.q, in.k, in.v, {}, {}, mask);
  EXPECT_EQ(got.lse.at<float>(0, 1, 0), -kInfinity);
  EXPECT_EQ(got.o.at<float>(0, 1, 0, 5), 0.0f);
  const AttentionResult plain = memory_efficient_attention(in.q, in.k, in.v);
  EXPECT_NEAR(got.lse.at<float>(0, 1, 1), plain.lse.at<float>(0, 1, 1), 1e-6);
}

TEST(MemoryEfficientAttention, AConstantBiasShiftsLseAndLeavesTheOutput) {
  const Inputs in = random_inputs({1, 2, 2, 30, 70, 16, 16});
  const AttentionResult want = memory_efficient_attention(in.q, in.k, in.v);
  const AttentionResult got =
      memory_efficient_attention(in.q, in.k, in.v, {}, Tensor::full({1, 1, 30, 70}, 2.5f));
  EXPECT_LE(relative_error(got.o, want.o), 1e-5);
  EXPECT_NEAR(got.lse.at<float>(0, 1, 7), want.lse.at<float>(0, 1, 7) + 2.5f, 1e-5);
}

TEST(MemoryEfficientAttention, ScoresOfTenThousandGiveNoInfinityOrNaN) {
  Inputs in = random_inputs({1, 1, 1, 64, 500, 16, 16});
  for (int64_t i = 0; i < in.q.size(); ++i) in.q.data<float>()[i] *= 2500;
  const AttentionResult got = memory_efficient_attention(in.q, in.k, in.v);
  for (int64_t i = 0; i < got.o.size(); ++i) EXPECT_TRUE(std::isfinite(got.o.data<float>()[i]));
  for (int64_t i = 0; i < got.lse.size(); ++i) EXPECT_TRUE(std::isfinite(got.lse.data<float>()[i]));
}

// Scratch is one tile per worker: at T = 16384 the f32 score matrix would be 1 GiB, and 1/59 of it is 18 MB.
TEST(MemoryEfficientAttention, ScratchIsIndependentOfTheLengthAtTheDefaultChunks) {
  reference::WithThreads threads(1);
  std::vector<int64_t> scratch;
  for (int64_t length : {512, 2048}) {
    const Inputs in = random_inputs({1, 1, 1, 3072, length, 64, 64});
    const int64_t before = memory::current_bytes();
    memory::reset_peak();
    const AttentionResult got = memory_efficient_attention(in.q, in.k, in.v);
    scratch.push_back(memory::peak_bytes() - before - got.o.bytes() - got.lse.bytes());
  }
  EXPECT_EQ(scratch[0], scratch[1]);
  EXPECT_LE(scratch[1], 1 << 20);
}

TEST(MemoryEfficientAttention, GradientsEqualTheReferenceAndTheBiasGradientSumsOverBroadcastAxes) {
  const Inputs in = random_inputs({2, 2, 1, 23, 31, 16, 8});
  const Tensor d_o = random_normal({2, 2, 23, 8}, 9), bias = random_normal({1, 2, 23, 31}, 10);
  kernels::AttentionParams params{.visible = kernels::Visibility::causal()};
  params.bias = bias;
  const auto got = memory_efficient_attention_backward(
      in.q, in.k, in.v, d_o, {.query_chunk = 7, .key_chunk = 13, .causal = true}, bias);
  const auto want = reference::attention_backward(reference::problem_of(in, params), d_o);
  EXPECT_LE(relative_error(got.dq, want.dq), 1e-4);
  EXPECT_LE(relative_error(got.dk, want.dk), 1e-4);
  EXPECT_LE(relative_error(got.dv, want.dv), 1e-4);
  ASSERT_EQ(got.dbias.shape(), bias.shape());
  for (int64_t i = 0; i < 23; ++i) {  // a constant added to a row of scores changes nothing
    double sum = 0;
    for (int64_t j = 0; j < 31; ++j) sum += static_cast<double>(got.dbias.at<float>(0, 1, i, j));
    EXPECT_NEAR(sum, 0, 1e-5);
  }
}

TEST(AttentionChunkSummary, SummariesOfChunksJoinToTheWhole) {
  const Inputs in = random_inputs({1, 2, 1, 9, 300, 16, 8});
  const AttentionResult want = flash_attention(in.q, in.k, in.v);
  const auto first = attention_chunk_summary(in.q, in.k.slice(2, 0, 100), in.v.slice(2, 0, 100));
  const auto second = attention_chunk_summary(in.q, in.k.slice(2, 100, 300), in.v.slice(2, 100, 300));
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t i = 0; i < 9; ++i) {
      const double m1 = first.m.at<float>(0, h, i), m2 = second.m.at<float>(0, h, i), m = std::max(m1, m2);
      const double w1 = std::exp(m1 - m), w2 = std::exp(m2 - m);
      const double s = w1 * first.s.at<float>(0, h, i) + w2 * second.s.at<float>(0, h, i);
      EXPECT_NEAR(m + std::log(s), want.lse.at<float>(0, h, i), 1e-5);
      for (int64_t c = 0; c < 8; ++c)
        EXPECT_NEAR((w1 * first.a.at<float>(0, h, i, c) + w2 * second.a.at<float>(0, h, i, c)) / s,
                    want.o.at<float>(0, h, i, c), 1e-5);
    }
}

TEST(AttentionMerge, PartsInAnyOrderGiveTheWhole) {
  const Inputs in = random_inputs({1, 2, 1, 9, 300, 16, 8});
  const AttentionResult want = flash_attention(in.q, in.k, in.v);
  Tensor o = Tensor::empty({3, 1, 2, 9, 8}), lse = Tensor::empty({3, 1, 2, 9});
  const int64_t cuts[] = {0, 10, 200, 300};
  for (int64_t n = 0; n < 3; ++n) {
    const AttentionResult part =
        flash_attention(in.q, in.k.slice(2, cuts[n], cuts[n + 1]), in.v.slice(2, cuts[n], cuts[n + 1]));
    o.select(0, 2 - n).copy_from(part.o);
    lse.select(0, 2 - n).copy_from(part.lse);
  }
  const AttentionResult got = attention_merge(o, lse);
  EXPECT_LE(relative_error(got.o, want.o), 1e-6);
  EXPECT_LE(relative_error(got.lse, want.lse), 1e-6);
}

TEST(AttentionMerge, RefusesNoPartsAndPartsThatDoNotAgree) {
  const Operator& op = catalogue().at("attention-merge");
  EXPECT_THROW(op.run({{"o", Tensor::empty({0, 1, 2, 3, 4})}, {"lse", Tensor::empty({0, 1, 2, 3})}}), Error);
  EXPECT_THROW(op.run({{"o", Tensor::zeros({2, 1, 2, 3, 4})}, {"lse", Tensor::zeros({3, 1, 2, 3})}}), Error);
}

TEST(MemoryEfficientAttention, RefusesChunksOfNothingAndABiasThatDoesNotFit) {
  const Operator& op = catalogue().at("memory-efficient-attention");
  const Inputs in = random_inputs({1, 2, 2, 4, 6, 8, 8});
  Tensors tensors{{"q", in.q}, {"k", in.k}, {"v", in.v}};
  EXPECT_THROW(op.run(tensors, {{"query_chunk", "0"}}), Error);
  EXPECT_THROW(op.run(tensors, {{"key_chunk", "0"}}), Error);
  tensors.set("bias", Tensor::zeros({1, 2, 4, 7}));
  EXPECT_THROW(op.run(tensors), Error);
}

}  // namespace
}  // namespace fovea::dense

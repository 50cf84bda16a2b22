// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/duo_attention.h"

#include <gtest/gtest.h>

#include <cmath>

#include "fovea/core/catalogue.h"
#include "fovea/core/rng.h"
#include "fovea/core/thread_pool.h"
#include "support/reference.h"

namespace fovea::cache {
namespace {

struct Problem {
  Tensor q, k, v;
  Problem(int64_t batch, int64_t hq, int64_t hkv, int64_t tq, int64_t tk, int64_t dim, int64_t dim_v)
      : q(random_normal({batch, hq, tq, dim}, 1)),
        k(random_normal({batch, hkv, tk, dim}, 2)),
        v(random_normal({batch, hkv, tk, dim_v}, 3)) {}

  reference::Result attend(const reference::Visible& visible) const {
    reference::Problem problem;
    problem.q = q, problem.k = k, problem.v = v, problem.visible = visible;
    return reference::attention(problem);
  }
};

Tensor flags(const std::vector<uint8_t>& values) {
  return Tensor::from(values, {static_cast<int64_t>(values.size())});
}

/// The definition, word for word.
reference::Visible definition(const Problem& p, const std::vector<uint8_t>& retrieval,
                              const DuoAttentionOptions& options) {
  const int64_t offset = p.k.dim(2) - p.q.dim(2), group = p.q.dim(1) / p.k.dim(1);
  return [=](int64_t, int64_t h, int64_t i, int64_t j) {
    const int64_t a = i + offset;
    if (j > a) return false;
    if (retrieval[static_cast<size_t>(h / group)] != 0 || j < options.sink) return true;
    if (options.chunk_size == 0) return a - j < options.recent;
    return j >= options.chunk_size * (a / options.chunk_size) - options.recent;
  };
}

void expect_near(const kernels::AttentionResult& got, const reference::Result& want,
                 double tolerance = 1e-5) {
  EXPECT_LT(reference::relative_error(got.o, want.o), tolerance);
  EXPECT_LT(reference::relative_error(got.lse, want.lse), tolerance);
}

TEST(DuoAttention, AllRetrievalHeadsIsDenseCausal) {
  const Problem p(1, 4, 2, 33, 65, 16, 24);
  expect_near(duo_attention(p.q, p.k, p.v, flags({1, 1}), {{2, 4}, 0}), p.attend(reference::causal(33, 65)));
}

TEST(DuoAttention, WindowOfEverythingIsDenseCausal) {
  const Problem p(1, 4, 2, 33, 65, 16, 24);
  for (const int64_t chunk : {0, 8})
    expect_near(duo_attention(p.q, p.k, p.v, flags({0, 0}), {{0, 65}, chunk}),
                p.attend(reference::causal(33, 65)));
}

TEST(DuoAttention, NoSinkIsASlidingWindow) {
  const Problem p(1, 2, 2, 40, 40, 16, 16);
  expect_near(duo_attention(p.q, p.k, p.v, flags({0, 0}), {{0, 7}, 0}),
              p.attend([](int64_t, int64_t, int64_t i, int64_t j) { return j <= i && i - j < 7; }));
}

TEST(DuoAttention, OneChunkIsDenseForAllHeads) {
  const Problem p(1, 2, 2, 40, 40, 16, 16);
  expect_near(duo_attention(p.q, p.k, p.v, flags({0, 1}), {{0, 3}, 64}), p.attend(reference::causal(40, 40)));
}

TEST(DuoAttention, ChunksOfOneSeeOneKeyMoreThanTheExactMask) {
  const Problem p(1, 2, 2, 40, 40, 16, 16);
  expect_near(
      duo_attention(p.q, p.k, p.v, flags({0, 0}), {{2, 6}, 1}),
      p.attend([](int64_t, int64_t, int64_t i, int64_t j) { return j <= i && (j < 2 || j >= i - 6); }));
}

TEST(DuoAttention, EqualsTheDefinitionOnRaggedSizes) {
  struct Case {
    int64_t tq, tk, sink, recent, chunk;
  };
  const Case cases[] = {{70, 70, 4, 16, 0},   {70, 70, 4, 16, 16},  {50, 83, 3, 10, 16}, {50, 83, 3, 10, 13},
                        {1, 100, 4, 8, 0},    {1, 100, 4, 8, 32},   {9, 4, 1, 2, 0},     {9, 4, 1, 2, 3},
                        {65, 130, 40, 5, 64}, {100, 100, 0, 1, 10}, {63, 65, 200, 3, 7}, {3, 65, 2, 9, 64},
                        {130, 257, 8, 30, 64}};
  for (const Case& c : cases) {
    const Problem p(1, 4, 2, c.tq, c.tk, 12, 20);
    const std::vector<uint8_t> retrieval = {0, 1};
    const DuoAttentionOptions options{{c.sink, c.recent}, c.chunk};
    SCOPED_TRACE("Tq " + std::to_string(c.tq) + " Tk " + std::to_string(c.tk) + " chunk " +
                 std::to_string(c.chunk));
    expect_near(duo_attention(p.q, p.k, p.v, flags(retrieval), options),
                p.attend(definition(p, retrieval, options)));
  }
}

TEST(DuoAttention, HalfPrecisionAndStridedInputs) {
  for (const DType dtype : {DType::f16, DType::bf16}) {
    Problem p(1, 4, 2, 40, 80, 16, 16);
    p.q = p.q.to(dtype), p.k = p.k.to(dtype), p.v = p.v.to(dtype);
    const Tensor strided = p.k.transpose(1, 2).clone().transpose(1, 2);
    const DuoAttentionOptions options{{3, 9}, 16};
    const auto got = duo_attention(p.q, strided, p.v, flags({0, 1}), options);
    EXPECT_EQ(got.o.dtype(), dtype);
    expect_near(got, p.attend(definition(p, {0, 1}, options)), 1e-2);
  }
}

TEST(DuoAttention, ThreadCountsAgreeBitForBit) {
  const Problem p(2, 4, 2, 65, 130, 32, 32);
  set_threads(1);
  const auto one = duo_attention(p.q, p.k, p.v, flags({1, 0}), {{4, 20}, 32});
  set_threads(2);
  const auto two = duo_attention(p.q, p.k, p.v, flags({1, 0}), {{4, 20}, 32});
  set_threads(0);
  EXPECT_EQ(reference::relative_error(one.o, two.o), 0.0);
  EXPECT_EQ(reference::relative_error(one.lse, two.lse), 0.0);
}

TEST(DuoAttention, StreamingDecodeOverARingBufferEqualsTheMask) {
  constexpr int64_t kSink = 3, kRecent = 8;
  const Problem p(1, 2, 1, 50, 50, 16, 16);
  const auto masked = duo_attention(p.q, p.k, p.v, flags({0}), {{kSink, kRecent}, 0});
  const Tensor k = Tensor::empty({1, 1, kSink + kRecent, 16}), v = Tensor::empty(k.shape());
  for (int64_t a = 0; a < 50; ++a) {
    const int64_t slot = a < kSink + kRecent ? a : kSink + (a - kSink) % kRecent;
    k.slice(2, slot, slot + 1).copy_from(p.k.slice(2, a, a + 1));
    v.slice(2, slot, slot + 1).copy_from(p.v.slice(2, a, a + 1));
    const int64_t held = std::min(a + 1, kSink + kRecent);
    // Whatever has left the window is a sink or has been overwritten; the order in the buffer does not
    // matter.
    const auto step =
        kernels::flash_forward(p.q.slice(2, a, a + 1), k.slice(2, 0, held), v.slice(2, 0, held));
    EXPECT_LT(reference::relative_error(step.o, masked.o.slice(2, a, a + 1).clone()), 1e-5) << a;
  }
}

TEST(DuoMix, GatesOfOneAndZeroArePureForms) {
  const Problem p(2, 4, 2, 30, 48, 16, 16);
  const Tensor mixed = duo_mix(p.q, p.k, p.v, Tensor::from(std::vector<float>{1, 0}, {2}), {2, 8});
  const auto want = p.attend(definition(p, {1, 0}, {{2, 8}, 0}));
  EXPECT_LT(reference::relative_error(mixed, want.o), 1e-5);
}

TEST(DuoMix, IsLinearInTheGates) {
  const Problem p(1, 4, 2, 30, 48, 16, 16);
  auto at = [&](float a) { return duo_mix(p.q, p.k, p.v, Tensor::full({2}, a), {2, 8}); };
  const Tensor zero = at(0), one = at(1), between = at(0.3f);
  for (int64_t i = 0; i < one.size(); ++i)
    EXPECT_NEAR(between.data<float>()[i], 0.3f * one.data<float>()[i] + 0.7f * zero.data<float>()[i], 1e-5);
}

TEST(DuoMix, BackwardIsTheDirectionalDerivative) {
  const Problem p(2, 4, 2, 30, 48, 16, 20);
  const Tensor d_o = random_normal({2, 4, 30, 20}, 9);
  const auto full = p.attend(definition(p, {1, 1}, {{2, 8}, 0})),
             stream = p.attend(definition(p, {0, 0}, {{2, 8}, 0}));
  const Tensor got = duo_mix_backward(p.q, p.k, p.v, d_o, {2, 8});
  for (int64_t g = 0; g < 2; ++g) {
    double want = 0;
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t h = 2 * g; h < 2 * g + 2; ++h)
        for (int64_t i = 0; i < 30; ++i)
          for (int64_t c = 0; c < 20; ++c)
            want += static_cast<double>(d_o.at<float>(b, h, i, c)) *
                    static_cast<double>(full.o.at<float>(b, h, i, c) - stream.o.at<float>(b, h, i, c));
    EXPECT_NEAR(got.at<float>(g), want, 1e-3 * std::fabs(want) + 1e-4);
  }
}

TEST(DuoMix, GateTrainingFindsTheHeadsThatLookBack) {
  // Heads 1 and 4 repeat, at every token, the value of the token 40 steps before; the others look around.
  constexpr int64_t kHeads = 6, kLength = 96, kDim = 32;
  Problem p(1, kHeads, kHeads, kLength, kLength, kDim, kDim);
  for (const int64_t h : {1, 4})
    for (int64_t i = 40; i < kLength; ++i)
      for (int64_t c = 0; c < kDim; ++c) p.q.at<float>(0, h, i, c) = 3 * p.k.at<float>(0, h, i - 40, c);
  for (const int64_t h : {0, 2, 3, 5})
    for (int64_t i = 0; i < kLength; ++i)
      for (int64_t c = 0; c < kDim; ++c) p.q.at<float>(0, h, i, c) = 3 * p.k.at<float>(0, h, i, c);
  const StreamingOptions streaming{2, 16};
  const Tensor target = duo_mix(p.q, p.k, p.v, Tensor::full({kHeads}, 1), streaming);
  const Tensor alpha = Tensor::full({kHeads}, 1);
  for (int step = 0; step < 100; ++step) {
    const Tensor d_o = duo_mix(p.q, p.k, p.v, alpha, streaming);
    for (int64_t i = 0; i < d_o.size(); ++i)
      d_o.data<float>()[i] = 2 * (d_o.data<float>()[i] - target.data<float>()[i]) / (kLength * kDim);
    const Tensor gradient = duo_mix_backward(p.q, p.k, p.v, d_o, streaming);
    for (int64_t h = 0; h < kHeads; ++h)
      alpha.at<float>(h) =
          std::clamp(alpha.at<float>(h) - 0.5f * (gradient.at<float>(h) + 0.05f / kHeads), 0.0f, 1.0f);
  }
  const Tensor retrieval = duo_heads(alpha.reshape({1, kHeads}), {.sparsity = 4.0 / 6});
  for (int64_t h = 0; h < kHeads; ++h)
    EXPECT_EQ(retrieval.at<uint8_t>(0, h), h == 1 || h == 4) << alpha.at<float>(h);
}

TEST(DuoHeads, SparsityCountsOverAllLayers) {
  const Tensor alpha = random_uniform({3, 4}, 5);
  for (const auto& [sparsity, streaming] : {std::pair<double, int>{0, 0}, {0.6, 7}, {1, 12}, {0.04, 0}}) {
    const Tensor retrieval = duo_heads(alpha, {.sparsity = sparsity});
    int zeros = 0;
    float largest_streaming = -1, smallest_retrieval = 2;
    for (int64_t i = 0; i < 12; ++i) {
      const float gate = alpha.data<float>()[i];
      if (retrieval.data<uint8_t>()[i] == 0)
        ++zeros, largest_streaming = std::max(largest_streaming, gate);
      else
        smallest_retrieval = std::min(smallest_retrieval, gate);
    }
    EXPECT_EQ(zeros, streaming);
    EXPECT_LT(largest_streaming, smallest_retrieval);
  }
}

TEST(DuoHeads, EqualGatesStreamInIndexOrderAndThresholdsInclude) {
  const Tensor ties = duo_heads(Tensor::full({2, 3}, 0.5f), {.sparsity = 0.5});
  const std::vector<uint8_t> want = {0, 0, 0, 1, 1, 1};
  EXPECT_TRUE(std::equal(want.begin(), want.end(), ties.data<uint8_t>()));
  const Tensor alpha = Tensor::from(std::vector<float>{0.5f, 0.25f, 0.75f}, {1, 3});
  const Tensor above = duo_heads(alpha, {.sparsity = -1, .threshold = 0.5});
  EXPECT_EQ(above.at<uint8_t>(0, 0), 1);
  EXPECT_EQ(above.at<uint8_t>(0, 1), 0);
  EXPECT_EQ(above.at<uint8_t>(0, 2), 1);
}

TEST(DuoLoss, DistillsLabelledTokensAndShrinksGates) {
  const Tensor full = random_normal({2, 9, 6}, 1), mix = random_normal({2, 9, 6}, 2),
               alpha = random_normal({3, 4}, 3);
  const Tensor labels = Tensor::zeros({2, 9}, DType::u8);
  double gates = 0;
  for (int64_t i = 0; i < 12; ++i) gates += std::fabs(static_cast<double>(alpha.data<float>()[i])) / 12;
  EXPECT_NEAR(duo_loss(full, mix, labels, alpha, 0.05), 0.05 * gates, 1e-7);
  double distance = 0;
  for (const auto& [b, t] : {std::pair<int64_t, int64_t>{0, 3}, {1, 8}, {1, 0}}) {
    labels.at<uint8_t>(b, t) = 1;
    for (int64_t c = 0; c < 6; ++c)
      distance += std::pow(static_cast<double>(full.at<float>(b, t, c) - mix.at<float>(b, t, c)), 2) / 6 / 3;
  }
  EXPECT_NEAR(duo_loss(full, mix, labels, alpha, 0.05), distance + 0.05 * gates, 1e-5);
}

TEST(Duo, Refusals) {
  EXPECT_THROW(catalogue().at("duo-heads").run({{"alpha", Tensor::zeros({1, 2})}}, {{"sparsity", "1.5"}}),
               Error);
  const Problem p(1, 4, 2, 3, 5, 8, 8);
  const auto& op = catalogue().at("duo-attention");
  EXPECT_THROW(op.run({{"q", p.q}, {"k", p.k}, {"v", p.v}, {"retrieval", flags({1, 0, 1})}}), Error);
  EXPECT_THROW(op.run({{"q", p.q}, {"k", p.k}, {"v", p.v}, {"retrieval", flags({1, 0})}}, {{"recent", "0"}}),
               Error);
  EXPECT_THROW(duo_attention(p.q, p.k, p.v, flags({1})), Error);
}

}  // namespace
}  // namespace fovea::cache

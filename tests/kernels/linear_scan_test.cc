// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/linear_scan.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "fovea/core/memory.h"
#include "tests/support/attention_problem.h"
#include "tests/support/linear_scan_problem.h"

namespace fovea {
namespace {

using kernels::linear_scan;
using kernels::linear_scan_read;
using kernels::linear_scan_state;
using kernels::linear_scan_step;
using kernels::LinearScanParams;
using kernels::LinearScanResult;
using reference::all_rules;
using reference::relative_error;
using reference::Rule;
using reference::same_bits;
using reference::scan_inputs;
using reference::ScanInputs;
using reference::ScanSizes;
using reference::tokens_of;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class LinearScan : public testing::Test {
 protected:
  void SetUp() override { memory::set_poison(true); }
  void TearDown() override { memory::set_poison(false); }
};

LinearScanResult run(const ScanInputs& in) { return linear_scan(in.q, in.k, in.v, in.params); }

void expect_matches(const ScanInputs& in, double tolerance = 2e-6, double state_tolerance = 2e-6) {
  const reference::Scan want(in);
  reference::for_each_simd_target([&](const std::string& target) {
    SCOPED_TRACE(target);
    const LinearScanResult got = run(in);
    EXPECT_EQ(got.o.dtype(), in.v.dtype());
    EXPECT_LE(relative_error(got.o, want.o.tensor()), tolerance);
    EXPECT_LE(relative_error(got.state, want.state.tensor()), state_tolerance);
  });
}

TEST_F(LinearScan, MatchesTheRecurrenceForOddSizesGroupsAndAllRules) {
  for (const ScanSizes& s :
       {ScanSizes{1, 1, 1, 1, 1, 1}, ScanSizes{2, 2, 1, 63, 33, 17}, ScanSizes{1, 6, 2, 100, 16, 48},
        ScanSizes{1, 2, 2, 257, 20, 5}, ScanSizes{1, 3, 3, 65, 40, 65}})
    for (const Rule& rule : all_rules()) {
      SCOPED_TRACE(testing::PrintToString(s) + " " + rule.name());
      expect_matches(scan_inputs(s, rule));
    }
}

TEST_F(LinearScan, WideHeadsUpTo512) {
  expect_matches(scan_inputs({1, 1, 1, 70, 512, 100}, {.decay = 4, .delta = true}));
  expect_matches(scan_inputs({1, 1, 1, 70, 100, 512}, {.decay = 3}));
}

TEST_F(LinearScan, ChunksDoNotMatter) {
  for (const Rule& rule : all_rules())
    for (int64_t chunk : {16, 48, 256}) {
      SCOPED_TRACE(rule.name() + " chunk " + std::to_string(chunk));
      ScanInputs in = scan_inputs({1, 1, 1, 300, 24, 16}, rule);
      in.params.chunk = chunk;
      expect_matches(in);
    }
}

TEST_F(LinearScan, HalfTypesAreAsAccurateAsTheirRounding) {
  for (DType type : {DType::f16, DType::bf16})
    for (const Rule& rule : all_rules()) {
      SCOPED_TRACE(rule.name());
      expect_matches(scan_inputs({1, 2, 1, 100, 32, 24}, rule, 3, type), type == DType::f16 ? 1e-3 : 4e-3);
    }
}

TEST_F(LinearScan, StridedInputsGiveTheBitsOfDenseOnes) {
  for (const Rule& rule : all_rules()) {
    SCOPED_TRACE(rule.name());
    const ScanInputs in = scan_inputs({2, 4, 2, 70, 24, 20}, rule);
    ScanInputs strided = in;
    const auto swapped = [](const Tensor& x) { return x.transpose(1, 2).contiguous().transpose(1, 2); };
    for (Tensor* x : {&strided.q, &strided.k, &strided.v}) *x = swapped(*x);
    if (in.params.beta) strided.params.beta = swapped(in.params.beta);
    if (in.params.log_decay && in.params.log_decay.rank() > 1)
      strided.params.log_decay = swapped(in.params.log_decay);
    if (in.params.state) strided.params.state = in.params.state.transpose(0, 1).contiguous().transpose(0, 1);
    const LinearScanResult dense = run(in), got = run(strided);
    EXPECT_TRUE(same_bits(dense.o, got.o));
    EXPECT_TRUE(same_bits(dense.state, got.state));
  }
}

TEST_F(LinearScan, NoTokensReturnTheStateTheyWereGiven) {
  ScanInputs in = scan_inputs({2, 2, 2, 0, 16, 8}, {.decay = 4, .state = true});
  EXPECT_TRUE(same_bits(run(in).state, in.params.state));
  in.params.state = {};
  EXPECT_EQ(relative_error(run(in).state, Tensor::zeros({2, 2, 16, 8})), 0);
}

TEST_F(LinearScan, WithoutDecayItIsTheMaskedProduct) {
  const ScanInputs in = scan_inputs({1, 1, 1, 130, 32, 16}, {});
  const Tensor o = run(in).o, want = Tensor::zeros(o.shape());
  for (int64_t i = 0; i < 130; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      float score = 0;
      for (int64_t c = 0; c < 32; ++c) score += in.q.at<float>(0, 0, i, c) * in.k.at<float>(0, 0, j, c);
      for (int64_t x = 0; x < 16; ++x)
        want.at<float>(0, 0, i, x) += in.params.scale * score * in.v.at<float>(0, 0, j, x);
    }
  EXPECT_LE(relative_error(o, want), 2e-6);
}

TEST_F(LinearScan, DecayOfZeroIsNoDecay) {
  for (bool delta : {false, true}) {
    const ScanInputs in = scan_inputs({1, 2, 2, 100, 16, 16}, {.delta = delta});
    const Tensor want = run(in).o;
    for (const Tensor& decay :
         {Tensor::zeros({2}), Tensor::zeros({1, 2, 100}), Tensor::zeros({1, 2, 100, 16})}) {
      ScanInputs decayed = in;
      decayed.params.log_decay = decay;
      EXPECT_LE(relative_error(run(decayed).o, want), 1e-6);
    }
  }
}

// Every decay at once: none, gentle, strong beyond the range of f32, total.
Tensor wild_decays(const Shape& shape) {
  const Tensor decay = random_uniform(shape, 9);
  for (int64_t i = 0; i < decay.size(); ++i) {
    float& x = decay.data<float>()[i];
    x = x < 0.3f ? 0.0f : x < 0.7f ? -x : x < 0.9f ? -50 * x : -kInfinity;
  }
  return decay;
}

TEST_F(LinearScan, StrongDecaysNeitherOverflowNorLoseAccuracy) {
  for (bool delta : {false, true})
    for (int rank : {3, 4}) {
      ScanInputs in = scan_inputs({1, 2, 2, 200, 16, 16}, {.delta = delta, .beta = true, .state = true});
      in.params.log_decay = wild_decays(rank == 3 ? Shape{1, 2, 200} : Shape{1, 2, 200, 16});
      expect_matches(in, 1e-6, 1e-6);
      in.params.log_decay = Tensor::full(in.params.log_decay.shape(), -50);
      expect_matches(in, 1e-6, 1e-6);
    }
}

TEST_F(LinearScan, MinusInfinityForgetsAllThatCameBefore) {
  for (bool delta : {false, true})
    for (int rank : {3, 4}) {
      ScanInputs in = scan_inputs({1, 1, 1, 100, 16, 16}, {.delta = delta});
      const Tensor decay = Tensor::zeros(rank == 3 ? Shape{1, 1, 100} : Shape{1, 1, 100, 16});
      Tensor reset = decay.select(2, 37);
      for (int64_t i = 0; i < reset.size(); ++i) reset.data<float>()[i] = -kInfinity;
      in.params.log_decay = decay;
      const ScanInputs rest = tokens_of(in, 37, 100);
      EXPECT_LE(relative_error(run(in).o.slice(2, 37, 100),
                               run({rest.q, rest.k, rest.v, {.scale = in.params.scale, .delta = delta}}).o),
                1e-6);
    }
}

TEST_F(LinearScan, EveryDecayOfAHeadIsMinusInfinity) {
  ScanInputs in = scan_inputs({1, 1, 1, 100, 16, 16}, {});
  in.params.log_decay = Tensor::full({1}, -kInfinity);
  expect_matches(in);
}

TEST_F(LinearScan, SlowDecaysStayExactOverLongSequences) {
  ScanInputs in = scan_inputs({1, 1, 1, 8192, 8, 8}, {});
  for (const Shape& shape : {Shape{1}, Shape{1, 1, 8192}, Shape{1, 1, 8192, 8}}) {
    in.params.log_decay = Tensor::full(shape, -1.3e-4f);
    expect_matches(in, 5e-6, 5e-6);
  }
}

TEST_F(LinearScan, GoesOnFromAnyPoint) {
  for (const Rule& rule : all_rules())
    for (int64_t cut : {1, 16, 63, 64, 100}) {
      SCOPED_TRACE(rule.name() + " cut " + std::to_string(cut));
      const ScanInputs in = scan_inputs({2, 2, 1, 130, 20, 24}, rule);
      const LinearScanResult whole = run(in), first = run(tokens_of(in, 0, cut));
      ScanInputs rest = tokens_of(in, cut, 130);
      rest.params.state = first.state;
      const LinearScanResult second = run(rest);
      EXPECT_LE(relative_error(first.o, whole.o.slice(2, 0, cut)), 2e-6);
      EXPECT_LE(relative_error(second.o, whole.o.slice(2, cut, 130)), 2e-6);
      EXPECT_LE(relative_error(second.state, whole.state), 2e-6);
    }
}

TEST_F(LinearScan, StepsGoOnWhereForwardEnded) {
  for (const ScanSizes& s : {ScanSizes{2, 6, 2, 90, 20, 24}, ScanSizes{1, 1, 1, 90, 30, 150}})
    for (const Rule& rule : all_rules()) {
      SCOPED_TRACE(rule.name());
      const ScanInputs in = scan_inputs(s, rule);
      const reference::Scan want(in);
      const Tensor want_o = want.o.tensor();
      reference::for_each_simd_target([&](const std::string& target) {
        SCOPED_TRACE(target);
        Tensor state = run(tokens_of(in, 0, 70)).state;
        for (int64_t t = 70; t < 90; ++t) {
          ScanInputs token = tokens_of(in, t, t + 1);
          token.params.state = {};
          const Tensor next = t % 2 ? state : Tensor::empty(state.shape());
          const Tensor o = linear_scan_step(token.q, token.k, token.v, state, next, token.params);
          EXPECT_LE(relative_error(o, want_o.slice(2, t, t + 1)), 4e-6);
          state = next;
        }
        EXPECT_LE(relative_error(state, want.state.tensor()), 2e-6);
      });
    }
}

TEST_F(LinearScan, StateAndReadMakeTheSumThatIsNotCausal) {
  const ScanInputs in = scan_inputs({2, 4, 2, 150, 24, 20}, {.decay = 4, .beta = true});
  const LinearScanResult causal = run(in);
  const Tensor state = linear_scan_state(in.k, in.v, in.params);
  EXPECT_TRUE(same_bits(state, causal.state));
  const Tensor o = linear_scan_read(in.q, state, in.params.scale);
  EXPECT_LE(relative_error(o.slice(2, 149, 150), causal.o.slice(2, 149, 150)), 1e-6);
  EXPECT_EQ(o.shape(), causal.o.shape());
}

TEST_F(LinearScan, DeltaRuleRecallsValuesOfOrthonormalKeys) {
  // Token t has unit key t % 16, so that each of the last 16 values stands in the state as it was given.
  ScanInputs in = scan_inputs({1, 1, 1, 80, 16, 12}, {.delta = true});
  in.k = Tensor::zeros(in.k.shape());
  for (int64_t t = 0; t < 80; ++t) in.k.at<float>(0, 0, t, t % 16) = 1;
  in.q = in.k;
  in.params.scale = 1;
  const LinearScanResult got = run(in);
  EXPECT_LE(relative_error(got.o, in.v), 1e-6);
  for (int64_t t = 64; t < 80; ++t)
    EXPECT_LE(relative_error(got.state.select(2, t % 16).select(0, 0).select(0, 0),
                             in.v.select(2, t).select(0, 0).select(0, 0)),
              1e-6);
}

TEST_F(LinearScan, BetaOfZeroWritesNothing) {
  for (bool delta : {false, true}) {
    ScanInputs in = scan_inputs({1, 2, 2, 70, 16, 16}, {.delta = delta, .state = true});
    in.params.beta = Tensor::zeros({1, 2, 70});
    EXPECT_TRUE(same_bits(run(in).state, in.params.state));
  }
}

TEST_F(LinearScan, ThreadsDoNotChangeBits) {
  for (const Rule& rule : all_rules()) {
    SCOPED_TRACE(rule.name());
    const ScanInputs in = scan_inputs({1, 2, 1, 200, 24, 160}, rule);
    const reference::WithThreads one(1);
    const LinearScanResult want = run(in);
    for (int threads : {2, 3, 8}) {
      const reference::WithThreads several(threads);
      const LinearScanResult got = run(in);
      EXPECT_TRUE(same_bits(got.o, want.o));
      EXPECT_TRUE(same_bits(got.state, want.state));
    }
  }
}

std::string refusal(const ScanInputs& in) {
  try {
    run(in);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST_F(LinearScan, RefusesWhatDoesNotFitAndSaysWhy) {
  const ScanInputs good =
      scan_inputs({2, 4, 2, 10, 8, 6}, {.decay = 3, .delta = true, .beta = true, .state = true});
  EXPECT_EQ(refusal(good), "");
  ScanInputs in = good;
  in.k = in.k.slice(2, 0, 9);
  EXPECT_NE(refusal(in).find("v must be"), std::string::npos);
  in = good, in.q = in.q.slice(1, 0, 3);
  EXPECT_NE(refusal(in).find("Hq = 3 is not a multiple of Hkv = 2"), std::string::npos);
  in = good, in.q = in.q.to(DType::bf16);
  EXPECT_NE(refusal(in).find("q must be f32"), std::string::npos);
  in = good, in.q = in.q.slice(3, 0, 8, 2);
  EXPECT_NE(refusal(in).find("last axis of q"), std::string::npos);
  in = good, in.params.log_decay = Tensor::zeros({3});
  EXPECT_NE(refusal(in).find("log_decay must be f32[2]"), std::string::npos);
  in = good, in.params.log_decay = Tensor::zeros({2, 2, 10, 7});
  EXPECT_NE(refusal(in).find("log_decay must be f32[2,2,10,8]"), std::string::npos);
  in = good, in.params.beta = Tensor::zeros({2, 2, 9});
  EXPECT_NE(refusal(in).find("beta must be f32[2,2,10]"), std::string::npos);
  in = good, in.params.state = Tensor::zeros({2, 2, 6, 8});
  EXPECT_NE(refusal(in).find("state must be f32[2,2,8,6]"), std::string::npos);
  in = good, in.params.chunk = 20;
  EXPECT_NE(refusal(in).find("chunk must be"), std::string::npos);
  in = good, in.params.scale = kInfinity;
  EXPECT_NE(refusal(in).find("scale must be finite"), std::string::npos);
  EXPECT_THROW(linear_scan_step(good.q, good.k, good.v, good.params.state, good.params.state), Error);
  EXPECT_THROW(linear_scan_read(good.q, Tensor::zeros({2, 2, 7, 6})), Error);
}

}  // namespace
}  // namespace fovea

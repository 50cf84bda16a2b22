// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "fovea/core/memory.h"
#include "fovea/kernels/linear_scan.h"
#include "tests/support/attention_problem.h"
#include "tests/support/linear_scan_problem.h"

namespace fovea {
namespace {

using kernels::linear_scan_backward;
using kernels::LinearScanGradients;
using reference::all_rules;
using reference::relative_error;
using reference::Rule;
using reference::same_bits;
using reference::scan_inputs;
using reference::ScanInputs;
using reference::ScanSizes;

class LinearScanBackward : public testing::Test {
 protected:
  void SetUp() override { memory::set_poison(true); }
  void TearDown() override { memory::set_poison(false); }
};

Tensor random_d_o(const ScanInputs& in) {
  return random_normal({in.q.dim(0), in.q.dim(1), in.q.dim(2), in.v.dim(3)}, 11).to(in.v.dtype());
}

Tensor random_d_state(const ScanInputs& in) {
  return random_normal({in.k.dim(0), in.k.dim(1), in.k.dim(3), in.v.dim(3)}, 12);
}

// Each gradient with its name; those of inputs that were not given are not there.
std::vector<std::pair<std::string, Tensor>> named(const LinearScanGradients& g) {
  std::vector<std::pair<std::string, Tensor>> result{{"dq", g.dq}, {"dk", g.dk}, {"dv", g.dv}};
  if (g.d_log_decay) result.emplace_back("d_log_decay", g.d_log_decay);
  if (g.d_beta) result.emplace_back("d_beta", g.d_beta);
  if (g.d_state) result.emplace_back("d_state", g.d_state);
  return result;
}

LinearScanGradients expected(const ScanInputs& in, const Tensor& d_o, const Tensor& d_state) {
  reference::Scan scan(in);
  const reference::ScanGradients g = scan.gradients(d_o, d_state);
  return {g.dq.tensor(),
          g.dk.tensor(),
          g.dv.tensor(),
          in.params.log_decay ? g.d_log_decay.tensor() : Tensor(),
          in.params.beta ? g.d_beta.tensor() : Tensor(),
          in.params.state ? g.d_state.tensor() : Tensor()};
}

void expect_matches(const ScanInputs& in, bool final_state = true, double tolerance = 5e-6) {
  const Tensor d_o = random_d_o(in), d_state = final_state ? random_d_state(in) : Tensor();
  const auto want = named(expected(in, d_o, d_state));
  reference::for_each_simd_target([&](const std::string& target) {
    SCOPED_TRACE(target);
    const auto got = named(linear_scan_backward(in.q, in.k, in.v, d_o, in.params, d_state));
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(got[i].first, want[i].first);
      // The one decay of a head collects terms of either sign from all tokens.
      const bool cancels = got[i].second.rank() == 1;
      EXPECT_LE(relative_error(got[i].second, want[i].second), (cancels ? 6 : 1) * tolerance) << got[i].first;
    }
  });
}

TEST_F(LinearScanBackward, MatchesTheRecurrenceForOddSizesGroupsAndAllRules) {
  for (const ScanSizes& s :
       {ScanSizes{1, 1, 1, 1, 1, 1}, ScanSizes{2, 2, 1, 63, 33, 17}, ScanSizes{1, 6, 2, 100, 16, 48},
        ScanSizes{1, 2, 2, 257, 20, 5}, ScanSizes{1, 1, 1, 65, 40, 65}})
    for (const Rule& rule : all_rules()) {
      SCOPED_TRACE(testing::PrintToString(s) + " " + rule.name());
      expect_matches(scan_inputs(s, rule), !rule.beta);
    }
}

TEST_F(LinearScanBackward, ChunksDoNotMatter) {
  for (const Rule& rule : all_rules())
    for (int64_t chunk : {16, 48, 256}) {
      SCOPED_TRACE(rule.name() + " chunk " + std::to_string(chunk));
      ScanInputs in = scan_inputs({1, 1, 1, 150, 24, 16}, rule);
      in.params.chunk = chunk;
      expect_matches(in);
    }
}

TEST_F(LinearScanBackward, TheReferenceAgreesWithCentralDifferences) {
  for (const Rule& rule :
       {Rule{4, true, true, true}, Rule{3, false, true, true}, Rule{1, true, false, true}}) {
    SCOPED_TRACE(rule.name());
    const ScanInputs in = scan_inputs({1, 2, 1, 7, 4, 3}, rule);
    const Tensor d_o = random_d_o(in), d_state = random_d_state(in);
    const LinearScanGradients g = expected(in, d_o, d_state);
    const auto loss = [&](const ScanInputs& at) {
      const reference::Scan scan(at);
      const reference::Doubles weights(d_o), state_weights(d_state);
      double sum = 0;
      for (size_t i = 0; i < weights.values.size(); ++i) sum += weights.values[i] * scan.o.values[i];
      for (size_t i = 0; i < state_weights.values.size(); ++i)
        sum += state_weights.values[i] * scan.state.values[i];
      return sum;
    };
    const auto check = [&](const Tensor& input, const Tensor& gradient, auto with) {
      for (int64_t i = 0; i < input.size(); ++i) {
        ScanInputs high = in, low = in;
        const Tensor up = input.clone(), down = input.clone();
        up.data<float>()[i] += 0x1p-11f, down.data<float>()[i] -= 0x1p-11f;
        with(high) = up, with(low) = down;
        const double step =
            static_cast<double>(up.data<float>()[i]) - static_cast<double>(down.data<float>()[i]);
        EXPECT_NEAR((loss(high) - loss(low)) / step, static_cast<double>(gradient.data<float>()[i]), 2e-4);
      }
    };
    check(in.q, g.dq, [](ScanInputs& x) -> Tensor& { return x.q; });
    check(in.k, g.dk, [](ScanInputs& x) -> Tensor& { return x.k; });
    check(in.v, g.dv, [](ScanInputs& x) -> Tensor& { return x.v; });
    check(in.params.log_decay, g.d_log_decay, [](ScanInputs& x) -> Tensor& { return x.params.log_decay; });
    check(in.params.state, g.d_state, [](ScanInputs& x) -> Tensor& { return x.params.state; });
    if (in.params.beta)
      check(in.params.beta, g.d_beta, [](ScanInputs& x) -> Tensor& { return x.params.beta; });
  }
}

TEST_F(LinearScanBackward, StrongDecaysStayAccurate) {
  for (bool delta : {false, true})
    for (int decay : {3, 4})
      for (float strongest : {-3.0f, -50.0f}) {
        SCOPED_TRACE(testing::Message() << delta << decay << strongest);
        ScanInputs in = scan_inputs({1, 2, 2, 100, 16, 16}, {decay, delta, true, true});
        for (int64_t i = 0; i < in.params.log_decay.size(); ++i)
          in.params.log_decay.data<float>()[i] *= -strongest / 0.2f;
        expect_matches(in);
      }
}

TEST_F(LinearScanBackward, MinusInfinityStopsEveryGradient) {
  for (bool delta : {false, true})
    for (int decay : {3, 4}) {
      ScanInputs in = scan_inputs({1, 1, 1, 100, 16, 16}, {decay, delta, true, true});
      const Tensor reset = in.params.log_decay.select(2, 37);
      for (int64_t i = 0; i < reset.size(); ++i)
        reset.data<float>()[i] = -std::numeric_limits<float>::infinity();
      const Tensor d_o = random_d_o(in), d_state = random_d_state(in);
      for (int64_t t = 0; t < 37; ++t)
        for (int64_t x = 0; x < 16; ++x) d_o.at<float>(0, 0, t, x) = 0;
      const LinearScanGradients g = linear_scan_backward(in.q, in.k, in.v, d_o, in.params, d_state);
      for (const Tensor& zero : {g.d_state, g.dk.slice(2, 0, 37), g.dv.slice(2, 0, 37), g.dq.slice(2, 0, 37)})
        EXPECT_EQ(relative_error(zero, Tensor::zeros(zero.shape())), 0);
      expect_matches(in);
    }
}

TEST_F(LinearScanBackward, EachFactorOfTheSumHasTheSameShare) {
  const ScanInputs in = scan_inputs({2, 4, 2, 150, 24, 16}, {3, false, false, false});
  const Tensor d_o = random_d_o(in), o = kernels::linear_scan(in.q, in.k, in.v, in.params).o;
  const LinearScanGradients g = linear_scan_backward(in.q, in.k, in.v, d_o, in.params);
  const auto dot = [](const Tensor& a, const Tensor& b) {
    double sum = 0;
    for (int64_t i = 0; i < a.size(); ++i)
      sum += static_cast<double>(a.data<float>()[i]) * static_cast<double>(b.data<float>()[i]);
    return sum;
  };
  const double want = dot(o, d_o), tolerance = 1e-4 * std::abs(want);
  EXPECT_NEAR(dot(g.dq, in.q), want, tolerance);
  EXPECT_NEAR(dot(g.dk, in.k), want, tolerance);
  EXPECT_NEAR(dot(g.dv, in.v), want, tolerance);
}

TEST_F(LinearScanBackward, HalfTypesAreAsAccurateAsTheirRounding) {
  for (DType type : {DType::f16, DType::bf16})
    for (const Rule& rule : all_rules()) {
      SCOPED_TRACE(rule.name());
      expect_matches(scan_inputs({1, 2, 1, 100, 32, 24}, rule, 3, type), true,
                     type == DType::f16 ? 1e-3 : 4e-3);
    }
}

TEST_F(LinearScanBackward, StridedInputsAndThreadsGiveTheSameBits) {
  for (const Rule& rule : all_rules()) {
    SCOPED_TRACE(rule.name());
    const ScanInputs in = scan_inputs({2, 4, 2, 70, 24, 20}, rule);
    const Tensor d_o = random_d_o(in), d_state = random_d_state(in);
    const reference::WithThreads one(1);
    const auto want = named(linear_scan_backward(in.q, in.k, in.v, d_o, in.params, d_state));
    const auto swapped = [](const Tensor& x) { return x.transpose(1, 2).contiguous().transpose(1, 2); };
    for (int threads : {2, 5}) {
      const reference::WithThreads several(threads);
      const auto got = named(linear_scan_backward(swapped(in.q), swapped(in.k), swapped(in.v), swapped(d_o),
                                                  in.params, swapped(d_state)));
      for (size_t i = 0; i < want.size(); ++i)
        EXPECT_TRUE(same_bits(got[i].second, want[i].second)) << want[i].first;
    }
  }
}

TEST_F(LinearScanBackward, NoTokensPassTheGradientOfTheStateOn) {
  const ScanInputs in = scan_inputs({2, 2, 2, 0, 16, 8}, {4, false, true, true});
  const Tensor d_state = random_d_state(in);
  EXPECT_TRUE(
      same_bits(linear_scan_backward(in.q, in.k, in.v, random_d_o(in), in.params, d_state).d_state, d_state));
}

TEST_F(LinearScanBackward, MemoryGrowsWithTheLengthAlone) {
  const auto peak = [](int64_t length) {
    const ScanInputs in = scan_inputs({1, 1, 1, length, 16, 16}, {4, true, true, false});
    const Tensor d_o = random_d_o(in);
    const reference::WithThreads one(1);
    memory::reset_peak();
    const int64_t before = memory::current_bytes();
    linear_scan_backward(in.q, in.k, in.v, d_o, in.params);
    return memory::peak_bytes() - before;
  };
  const int64_t once = peak(4096), twice = peak(8192);
  EXPECT_LT(twice - once, 4096 * (4 * 16 + 1 + 16 * 16 / 64 + 4) * 4);
}

TEST_F(LinearScanBackward, RefusesGradientsOfAnotherShape) {
  const ScanInputs in = scan_inputs({1, 2, 1, 10, 8, 6}, {});
  EXPECT_THROW(linear_scan_backward(in.q, in.k, in.v, random_d_o(in).slice(2, 0, 9), in.params), Error);
  EXPECT_THROW(linear_scan_backward(in.q, in.k, in.v, random_d_o(in).to(DType::f16), in.params), Error);
  EXPECT_THROW(linear_scan_backward(in.q, in.k, in.v, random_d_o(in), in.params, Tensor::zeros({1, 2, 8, 6})),
               Error);
}

}  // namespace
}  // namespace fovea

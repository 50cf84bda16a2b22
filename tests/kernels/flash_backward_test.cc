// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "fovea/core/memory.h"
#include "fovea/core/rng.h"
#include "fovea/kernels/attention.h"
#include "tests/support/attention_problem.h"

namespace fovea {
namespace {

using kernels::AttentionGradients;
using kernels::AttentionParams;
using kernels::AttentionResult;
using kernels::flash_backward;
using kernels::flash_forward;
using kernels::Visibility;
using reference::Inputs;
using reference::random_inputs;
using reference::relative_error;
using reference::same_bits;
using reference::Sizes;

class FlashBackward : public testing::Test {
 protected:
  void SetUp() override { memory::set_poison(true); }
  void TearDown() override { memory::set_poison(false); }
};

Tensor random_d_o(const Inputs& in, uint64_t seed = 5) {
  return random_normal({in.q.dim(0), in.q.dim(1), in.q.dim(2), in.v.dim(3)}, seed).to(in.v.dtype());
}

AttentionGradients gradients(const Inputs& in, const Tensor& d_o, const AttentionParams& params = {}) {
  return flash_backward(in.q, in.k, in.v, flash_forward(in.q, in.k, in.v, params), d_o, params);
}

// Sums [B,Hq,Tq,Tk] over the axes along which `like` is broadcast.
Tensor summed_like(const Tensor& full, const Tensor& like) {
  const Tensor sum = Tensor::zeros(like.shape());
  for (int64_t b = 0; b < full.dim(0); ++b)
    for (int64_t h = 0; h < full.dim(1); ++h)
      for (int64_t i = 0; i < full.dim(2); ++i)
        for (int64_t j = 0; j < full.dim(3); ++j)
          sum.at<float>(like.dim(0) == 1 ? 0 : b, like.dim(1) == 1 ? 0 : h, i, j) +=
              full.at<float>(b, h, i, j);
  return sum;
}

void expect_matches(const Inputs& in, const AttentionParams& params = {}, double tolerance = 1e-5) {
  const Tensor d_o = random_d_o(in);
  const reference::Gradients want = reference::attention_backward(reference::problem_of(in, params), d_o);
  reference::for_each_simd_target([&](const std::string& target) {
    SCOPED_TRACE(target);
    const AttentionGradients got = gradients(in, d_o, params);
    EXPECT_LE(relative_error(got.dq, want.dq), tolerance);
    EXPECT_LE(relative_error(got.dk, want.dk), tolerance);
    EXPECT_LE(relative_error(got.dv, want.dv), tolerance);
    EXPECT_EQ(got.dsink.defined(), params.sink.defined());
    EXPECT_EQ(got.dbias.defined(), params.bias.defined());
    if (params.sink) {
      EXPECT_LE(relative_error(got.dsink, want.dsink), tolerance);
    }
    if (params.bias) {
      EXPECT_LE(relative_error(got.dbias, summed_like(want.dextra, params.bias)), tolerance);
    }
  });
}

TEST_F(FlashBackward, MatchesTheDefinitionForOddSizesAndGroups) {
  for (const Sizes& s :
       {Sizes{1, 1, 1, 1, 1, 1, 1}, Sizes{2, 2, 1, 63, 65, 33, 17}, Sizes{1, 6, 2, 100, 37, 16, 48},
        Sizes{1, 5, 1, 3, 257, 64, 64}, Sizes{2, 3, 3, 65, 130, 20, 5}, Sizes{1, 70, 1, 4, 9, 8, 8}}) {
    SCOPED_TRACE(testing::PrintToString(s));
    expect_matches(random_inputs(s));
    expect_matches(random_inputs(s), {.visible = Visibility::causal()});
  }
}

TEST_F(FlashBackward, MatchesTheDefinitionForEveryKindOfScore) {
  const Sizes s{2, 4, 2, 70, 150, 16, 16};
  const Inputs in = random_inputs(s, 2);
  std::vector<AttentionParams> cases(12);
  cases[0].visible = {.window_left = 20, .window_right = 3};
  cases[1].visible = {.window_left = 9, .window_right = 0, .prefix = 5};
  cases[2].softcap = 1.5f, cases[2].scale = 0.9f;
  cases[3].sink = random_normal({4}, 3);
  cases[4].slopes = random_uniform({4}, 4);
  cases[5].bias = random_normal({2, 4, 70, 150}, 5);
  cases[6].bias = random_normal({1, 4, 70, 150}, 5), cases[6].softcap = 2;
  cases[7].bias = random_normal({2, 1, 70, 150}, 5), cases[7].visible = Visibility::causal();
  cases[8].bias = random_normal({1, 1, 70, 150}, 5);
  cases[9].bias_q = random_normal({1, 4, 70, 3}, 6), cases[9].bias_k = random_normal({2, 4, 150, 3}, 7);
  cases[10].k_len = Tensor::from(std::vector<int32_t>{150, 31}, {2});
  cases[10].visible = Visibility::causal();
  cases[11].mask = Tensor::empty({1, 4, 70, 150}, DType::u8);
  Rng rng(8);
  for (int64_t i = 0; i < cases[11].mask.size(); ++i)
    cases[11].mask.data<uint8_t>()[i] = static_cast<uint8_t>(rng.next_below(3) == 0);
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(i);
    expect_matches(in, cases[i]);
  }
}

TEST_F(FlashBackward, TileSizesDoNotMatter) {
  const Inputs in = random_inputs({1, 2, 1, 40, 50, 16, 16}, 2);
  for (const auto& [query_tile, key_tile] : {std::pair(1, 1), std::pair(7, 13), std::pair(1024, 4096)}) {
    AttentionParams params;
    params.query_tile = query_tile, params.key_tile = key_tile;
    expect_matches(in, params);
  }
}

TEST_F(FlashBackward, HalfTypesAreAsAccurateAsTheirRounding) {
  for (DType type : {DType::f16, DType::bf16})
    expect_matches(random_inputs({1, 4, 2, 65, 130, 64, 48}, 3, type), {.visible = Visibility::causal()},
                   type == DType::f16 ? 1e-3 : 8e-3);
}

TEST_F(FlashBackward, GradientOfLseCounts) {
  const Inputs in = random_inputs({2, 2, 2, 33, 40, 16, 16}, 4);
  const Tensor d_o = random_d_o(in), d_lse = random_normal({2, 2, 33}, 9);
  AttentionParams params;
  params.sink = random_normal({2}, 3);
  const reference::Gradients want =
      reference::attention_backward(reference::problem_of(in, params), d_o, d_lse);
  const AttentionGradients got =
      flash_backward(in.q, in.k, in.v, flash_forward(in.q, in.k, in.v, params), d_o, params, d_lse);
  EXPECT_LE(relative_error(got.dq, want.dq), 1e-5);
  EXPECT_LE(relative_error(got.dk, want.dk), 1e-5);
  EXPECT_LE(relative_error(got.dsink, want.dsink), 1e-5);
}

TEST_F(FlashBackward, AgreesWithCentralDifferencesOfTheForward) {
  const Inputs in = random_inputs({1, 2, 1, 20, 30, 16, 16}, 6);
  const Tensor d_o = random_d_o(in);
  AttentionParams params{.softcap = 4, .visible = Visibility::causal()};
  const AttentionGradients got = gradients(in, d_o, params);
  const auto loss = [&](const Inputs& at) {
    const Tensor o = flash_forward(at.q, at.k, at.v, params).o;
    double sum = 0;
    for (int64_t i = 0; i < o.size(); ++i)
      sum += static_cast<double>(o.data<float>()[i]) * static_cast<double>(d_o.data<float>()[i]);
    return sum;
  };
  const auto check = [&](Tensor Inputs::*member, const Tensor& gradient) {
    const Tensor direction = random_normal((in.*member).shape(), 77);
    const double step = 1e-2;
    double slope = 0, sides[2];
    for (int side = 0; side < 2; ++side) {
      Inputs moved = in;
      moved.*member = (in.*member).clone();
      for (int64_t i = 0; i < direction.size(); ++i)
        (moved.*member).data<float>()[i] +=
            static_cast<float>(side == 0 ? -step : step) * direction.data<float>()[i];
      sides[side] = loss(moved);
    }
    for (int64_t i = 0; i < direction.size(); ++i)
      slope +=
          static_cast<double>(gradient.data<float>()[i]) * static_cast<double>(direction.data<float>()[i]);
    EXPECT_NEAR((sides[1] - sides[0]) / (2 * step), slope, 2e-3 * (1 + std::abs(slope)));
  };
  check(&Inputs::q, got.dq);
  check(&Inputs::k, got.dk);
  check(&Inputs::v, got.dv);
}

TEST_F(FlashBackward, StridedInputsGiveTheSameBits) {
  const Inputs in = random_inputs({2, 4, 2, 30, 50, 16, 24}, 6);
  const Tensor d_o = random_d_o(in);
  const auto strided = [](const Tensor& x) {
    const Tensor wide = Tensor::empty({x.dim(0), x.dim(2), x.dim(1), x.dim(3) + 3});
    const Tensor view = wide.transpose(1, 2).slice(3, 0, x.dim(3));
    view.copy_from(x);
    return view;
  };
  const AttentionGradients plain = gradients(in, d_o);
  const AttentionGradients got = gradients({strided(in.q), strided(in.k), strided(in.v)}, strided(d_o));
  EXPECT_TRUE(same_bits(plain.dq, got.dq));
  EXPECT_TRUE(same_bits(plain.dk, got.dk));
  EXPECT_TRUE(same_bits(plain.dv, got.dv));
}

TEST_F(FlashBackward, ThreadsDoNotChangeABit) {
  const Inputs in = random_inputs({1, 2, 1, 700, 900, 32, 32}, 6);
  const Tensor d_o = random_d_o(in);
  AttentionParams params{.visible = Visibility::causal()};
  params.bias = random_normal({1, 1, 700, 900}, 2);
  const auto with = [&](int threads) {
    const reference::WithThreads scope(threads);
    return gradients(in, d_o, params);
  };
  const AttentionGradients one = with(1);
  for (int threads : {2, 5}) {
    const AttentionGradients many = with(threads);
    EXPECT_TRUE(same_bits(one.dq, many.dq));
    EXPECT_TRUE(same_bits(one.dk, many.dk));
    EXPECT_TRUE(same_bits(one.dv, many.dv));
    EXPECT_TRUE(same_bits(one.dbias, many.dbias));
  }
}

TEST_F(FlashBackward, RowsAndKeysThatMeetNothingGetZero) {
  const Inputs in = random_inputs({1, 1, 1, 9, 4, 16, 16}, 6);
  const AttentionGradients got = gradients(in, random_d_o(in), {.visible = Visibility::causal()});
  for (int64_t c = 0; c < 16; ++c) EXPECT_EQ(got.dq.at<float>(0, 0, 4, c), 0.0f);
  AttentionParams shorter;
  shorter.k_len = Tensor::from(std::vector<int32_t>{2}, {1});
  const AttentionGradients cut = gradients(in, random_d_o(in), shorter);
  for (int64_t c = 0; c < 16; ++c) {
    EXPECT_EQ(cut.dk.at<float>(0, 0, 2, c), 0.0f);
    EXPECT_EQ(cut.dv.at<float>(0, 0, 3, c), 0.0f);
  }
}

TEST_F(FlashBackward, EmptySizesWork) {
  for (const Sizes& s : {Sizes{0, 2, 1, 3, 4, 8, 8}, Sizes{1, 2, 1, 0, 4, 8, 8}, Sizes{1, 2, 1, 3, 0, 8, 8},
                         Sizes{1, 2, 1, 3, 4, 8, 0}, Sizes{1, 0, 0, 3, 4, 8, 8}}) {
    const Inputs in = random_inputs(s);
    const AttentionGradients got = gradients(in, random_d_o(in));
    for (const Tensor* x : {&got.dq, &got.dk, &got.dv})
      for (int64_t i = 0; i < x->size(); ++i) EXPECT_EQ(x->data<float>()[i], 0.0f);
  }
}

TEST_F(FlashBackward, NaNReachesOnlyWhatSeesIt) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Inputs in = random_inputs({1, 1, 1, 10, 10, 16, 16}, 6);
  in.k.at<float>(0, 0, 7, 2) = nan;
  in.v.at<float>(0, 0, 8, 2) = nan;
  const AttentionGradients got = gradients(in, random_d_o(in), {.visible = Visibility::causal()});
  for (int64_t i = 0; i < 10; ++i) EXPECT_EQ(std::isnan(got.dq.at<float>(0, 0, i, 0)), i >= 7) << i;
}

TEST_F(FlashBackward, ScratchGrowsOnlyWithTheRows) {
  const auto scratch = [](int64_t length) {
    const Inputs in = random_inputs({1, 1, 1, length, length, 16, 16}, 6);
    const Tensor d_o = random_d_o(in);
    const AttentionResult forward = flash_forward(in.q, in.k, in.v);
    memory::reset_peak();
    const int64_t before = memory::current_bytes();
    const AttentionGradients got = flash_backward(in.q, in.k, in.v, forward, d_o);
    return memory::peak_bytes() - before - got.dq.bytes() - got.dk.bytes() - got.dv.bytes();
  };
  EXPECT_LE(scratch(1024) - scratch(512), 512 * (16 + 1) * 4);
}

TEST_F(FlashBackward, RefusesWhatDoesNotFitAndSaysWhy) {
  const Inputs in = random_inputs({1, 2, 1, 5, 6, 16, 16}, 6);
  const AttentionResult forward = flash_forward(in.q, in.k, in.v);
  const auto refused = [&](const AttentionResult& result, const Tensor& d_o, const std::string& part) {
    try {
      flash_backward(in.q, in.k, in.v, result, d_o);
      ADD_FAILURE() << "accepted; expected a message with: " << part;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  refused(forward, random_d_o(in).slice(2, 0, 4), "flash_backward: d_o must be f32[1,2,5,16]");
  refused(forward, random_d_o(in).to(DType::f16), "d_o must be f32");
  refused({forward.o, Tensor()}, random_d_o(in), "lse must be");
}

}  // namespace
}  // namespace fovea

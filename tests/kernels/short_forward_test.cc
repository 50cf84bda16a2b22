// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "fovea/core/memory.h"
#include "fovea/core/rng.h"
#include "fovea/kernels/attention.h"
#include "tests/support/score_terms.h"

namespace fovea {
namespace {

using kernels::AttentionParams;
using kernels::AttentionResult;
using kernels::flash_forward;
using kernels::Visibility;
using reference::Inputs;
using reference::random_inputs;
using reference::relative_error;
using reference::same_bits;
using reference::Sizes;

void expect_matches_on_every_target(const Inputs& in, const AttentionParams& params, double tolerance) {
  reference::expect_forward_on_every_target(in, params, tolerance, tolerance);
}

/// Windows: many sequences of so few keys that they take one pass.
class ShortForward : public ::testing::Test {
 protected:
  void SetUp() override { memory::set_poison(true); }
  void TearDown() override { memory::set_poison(false); }
};

TEST_F(ShortForward, WindowsOfAnySizeAreAsPreciseAsSinglePrecisionAllows) {
  for (const int64_t rows : {8, 9, 16, 17, 18, 33, 49, 50, 64, 65, 98, 113, 127, 128})
    for (const Sizes& s : {Sizes{5, 2, 2, rows, rows, 32, 32}, Sizes{2, 3, 1, rows, rows, 20, 7}}) {
      SCOPED_TRACE(::testing::Message() << s);
      const Inputs in = random_inputs(s);
      for (const Visibility& visible : {Visibility::all(), Visibility::causal(),
                                        Visibility{.window_left = 20, .window_right = 3, .prefix = 2}})
        expect_matches_on_every_target(in, {.visible = visible}, 2e-6);
    }
}

TEST_F(ShortForward, SharedBiasMaskOfEachWindowSinkLengthsAndSlopes) {
  for (const int64_t rows : {49, 60}) {
    const Sizes s{3, 4, 2, rows, rows, 32, 32};
    const Inputs in = random_inputs(s);
    AttentionParams params;
    params.bias = random_normal({1, 4, rows, rows}, 3);
    expect_matches_on_every_target(in, params, 2e-6);
    params.mask = Tensor::zeros({3, 1, rows, rows}, DType::u8);
    for (int64_t i = 0; i < params.mask.size(); ++i)
      params.mask.data<uint8_t>()[i] = i % rows / 25 == i / rows % rows / 25 && i / rows % rows != 7;
    expect_matches_on_every_target(in, params, 2e-6);
    params.k_len = Tensor::from(std::vector<int32_t>{49, 0, 17}, {3});
    params.sink = random_normal({4}, 4);
    params.slopes = random_uniform({4}, 5);
    params.softcap = 4;
    params.visible = Visibility::causal();
    expect_matches_on_every_target(in, params, 3e-6);
  }
}

TEST_F(ShortForward, LongerTensorsOfTheSameRowsGiveTheSameAnswer) {
  const Sizes s{2, 2, 1, 49, 300, 32, 32};
  const Inputs in = random_inputs(s);
  AttentionParams params;
  params.k_len = Tensor::from(std::vector<int32_t>{49, 49}, {2});
  const AttentionResult want = flash_forward(in.q, in.k, in.v, params);
  const AttentionResult got = flash_forward(in.q, in.k.slice(2, 0, 49), in.v.slice(2, 0, 49));
  EXPECT_LE(relative_error(got.o, want.o), 1e-6);
  EXPECT_LE(relative_error(got.lse, want.lse), 1e-6);
}

TEST_F(ShortForward, HiddenValuesMayBeNoNumbers) {
  Inputs in = random_inputs({1, 1, 1, 49, 49, 16, 16});
  in.v.at<float>(0, 0, 40, 3) = std::numeric_limits<float>::quiet_NaN();
  const AttentionResult got = flash_forward(in.q, in.k, in.v, {.visible = Visibility::causal()});
  for (int64_t i = 0; i < 49; ++i) EXPECT_EQ(std::isnan(got.o.at<float>(0, 0, i, 3)), i >= 40) << i;
  in.k.at<float>(0, 0, 48, 0) = std::numeric_limits<float>::quiet_NaN();
  const AttentionResult last = flash_forward(in.q, in.k, in.v, {.visible = Visibility::causal()});
  for (int64_t i = 0; i < 49; ++i) EXPECT_EQ(std::isnan(last.lse.at<float>(0, 0, i)), i == 48) << i;
}

TEST_F(ShortForward, ThreadsDoNotChangeABit) {
  const Inputs in = random_inputs({150, 3, 3, 49, 49, 32, 32});
  AttentionResult one, two;
  {
    const reference::WithThreads threads(1);
    one = flash_forward(in.q, in.k, in.v);
  }
  {
    const reference::WithThreads threads(2);
    two = flash_forward(in.q, in.k, in.v);
  }
  EXPECT_TRUE(same_bits(one.o, two.o));
  EXPECT_TRUE(same_bits(one.lse, two.lse));
}

}  // namespace
}  // namespace fovea

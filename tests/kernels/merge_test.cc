// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "fovea/core/memory.h"
#include "fovea/kernels/attention.h"
#include "tests/support/attention_problem.h"

namespace fovea {
namespace {

using kernels::AttentionResult;
using kernels::flash_forward;
using kernels::merge;
using reference::Inputs;
using reference::random_inputs;
using reference::relative_error;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<AttentionResult> parts_of(const Inputs& in, const std::vector<int64_t>& cuts) {
  std::vector<AttentionResult> parts;
  for (size_t n = 0; n + 1 < cuts.size(); ++n)
    parts.push_back(
        flash_forward(in.q, in.k.slice(2, cuts[n], cuts[n + 1]), in.v.slice(2, cuts[n], cuts[n + 1])));
  return parts;
}

TEST(Merge, PartsOfAnyPartitionGiveAttentionOverAllKeysOnEveryTarget) {
  memory::set_poison(true);
  const Inputs in = random_inputs({2, 4, 2, 45, 300, 32, 37});
  const AttentionResult want = flash_forward(in.q, in.k, in.v);
  for (const std::vector<int64_t>& cuts :
       {std::vector<int64_t>{0, 300}, {0, 1, 300}, {0, 100, 100, 250, 300}, {0, 7, 8, 9, 150, 299, 300}}) {
    auto parts = parts_of(in, cuts);
    std::reverse(parts.begin(), parts.end());
    reference::for_each_simd_target([&](const std::string& target) {
      SCOPED_TRACE(target);
      const AttentionResult got = merge(parts);
      EXPECT_LE(relative_error(got.o, want.o), 1e-6);
      EXPECT_LE(relative_error(got.lse, want.lse), 1e-6);
    });
  }
  memory::set_poison(false);
}

TEST(Merge, OnePartIsItself) {
  const Inputs in = random_inputs({1, 2, 1, 9, 30, 8, 20});
  const AttentionResult part = flash_forward(in.q, in.k, in.v);
  const AttentionResult got = merge({&part, 1});
  EXPECT_TRUE(reference::same_bits(got.o, part.o));
  EXPECT_TRUE(reference::same_bits(got.lse, part.lse));
}

TEST(Merge, EmptyPartsCountForNothingEvenWhenTheirValuesAreNaN) {
  const Inputs in = random_inputs({1, 1, 1, 5, 30, 8, 8});
  const AttentionResult part = flash_forward(in.q, in.k, in.v);
  const AttentionResult empty{Tensor::full({1, 1, 5, 8}, std::numeric_limits<float>::quiet_NaN()),
                              Tensor::full({1, 1, 5}, -kInfinity)};
  const AttentionResult parts[] = {empty, part, empty};
  EXPECT_TRUE(reference::same_bits(merge(parts).o, part.o));
  const AttentionResult nothing = merge({parts, 1});
  EXPECT_EQ(nothing.lse.at<float>(0, 0, 4), -kInfinity);
  EXPECT_EQ(nothing.o.at<float>(0, 0, 4, 7), 0.0f);
}

TEST(Merge, DuplicatedKeysAddLog2) {
  const Inputs in = random_inputs({1, 1, 1, 5, 30, 8, 8});
  const AttentionResult part = flash_forward(in.q, in.k, in.v);
  const AttentionResult parts[] = {part, part};
  const AttentionResult got = merge(parts);
  EXPECT_LE(relative_error(got.o, part.o), 1e-6);
  EXPECT_NEAR(got.lse.at<float>(0, 0, 2), part.lse.at<float>(0, 0, 2) + std::log(2.0f), 1e-6);
}

TEST(Merge, HugeLseDoNotOverflow) {
  AttentionResult parts[] = {{Tensor::full({1, 1, 1, 3}, 1), Tensor::full({1, 1, 1}, 9000)},
                             {Tensor::full({1, 1, 1, 3}, 5), Tensor::full({1, 1, 1}, -9000)}};
  const AttentionResult got = merge(parts);
  EXPECT_EQ(got.o.at<float>(0, 0, 0, 0), 1.0f);
  EXPECT_EQ(got.lse.at<float>(0, 0, 0), 9000.0f);
}

TEST(Merge, SixteenBitPartsAreMergedInF32) {
  const Inputs in = random_inputs({1, 2, 2, 20, 80, 16, 16}, 3, DType::bf16);
  const AttentionResult want = flash_forward(in.q, in.k, in.v);
  const AttentionResult got = merge(parts_of(in, {0, 30, 80}));
  EXPECT_EQ(got.o.dtype(), DType::bf16);
  EXPECT_LE(relative_error(got.o, want.o), 5e-3);
}

TEST(Merge, RefusesPartsThatDoNotAgree) {
  const AttentionResult part{Tensor::zeros({1, 2, 3, 4}), Tensor::zeros({1, 2, 3})};
  EXPECT_THROW(merge({}), Error);
  for (const AttentionResult& other :
       {AttentionResult{Tensor::zeros({1, 2, 3, 5}), part.lse},
        AttentionResult{part.o, Tensor::zeros({1, 2, 4})}, AttentionResult{part.o, Tensor()},
        AttentionResult{part.o.to(DType::f16), part.lse}}) {
    const AttentionResult parts[] = {part, other};
    EXPECT_THROW(merge(parts), Error);
  }
}

}  // namespace
}  // namespace fovea

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/support/attention_problem.h"

/// What a score may be made of and which keys a row may see, for the tests of every forward kernel.
namespace fovea::reference {

/// Windows with and without a prefix, on either side.
inline std::vector<kernels::Visibility> windows() {
  return {{0, 0, 0}, {5, 0, 0}, {70, 3, 0}, {-1, 9, 0}, {20, -1, 0}, {30, 0, 4}, {200, 0, 65}, {10, 0, 400}};
}

/// The problem of `score_terms`.
inline constexpr Sizes kTermSizes{2, 4, 2, 67, 230, 24, 40};

/// Every term alone and all of them together.
inline std::vector<std::pair<std::string, kernels::AttentionParams>> score_terms() {
  using kernels::AttentionParams;
  AttentionParams all;
  all.visible = {.window_left = 150, .window_right = 2, .prefix = 3};
  all.scale = 0.3f;
  all.softcap = 2.5f;
  all.k_len = Tensor::from(std::vector<int32_t>{230, 71}, {2});
  all.sink = random_normal({4}, 3);
  all.bias = random_normal({1, 4, 67, 230}, 4);
  all.mask = Tensor::zeros({2, 1, 67, 230}, DType::u8);
  for (int64_t i = 0; i < all.mask.size(); ++i) all.mask.data<uint8_t>()[i] = (i * 2654435761u >> 7) % 3 != 0;
  all.slopes = Tensor::from(std::vector<float>{0.5f, 0.25f, 0.01f, 0.0f}, {4});
  all.bias_q = random_normal({2, 4, 67, 3}, 5);
  all.bias_k = random_normal({1, 4, 230, 3}, 6);

  std::vector<std::pair<std::string, AttentionParams>> terms = {{"all", all}};
  const auto alone = [&](const char* name, auto member) {
    AttentionParams params;
    params.*member = all.*member;
    terms.emplace_back(name, params);
  };
  alone("scale", &AttentionParams::scale);
  alone("softcap", &AttentionParams::softcap);
  alone("k_len", &AttentionParams::k_len);
  alone("sink", &AttentionParams::sink);
  alone("bias", &AttentionParams::bias);
  alone("mask", &AttentionParams::mask);
  alone("slopes", &AttentionParams::slopes);
  AttentionParams low_rank;
  low_rank.bias_q = all.bias_q, low_rank.bias_k = all.bias_k;
  terms.emplace_back("low rank", low_rank);
  low_rank.bias_k = random_normal({2, 1, 230, 3}, 7);
  terms.emplace_back("low rank, keys shared by heads", low_rank);
  return terms;
}

/// flash_forward against double precision.
inline void expect_forward_on_every_target(const Inputs& in, const kernels::AttentionParams& params,
                                           double tolerance, double lse_tolerance) {
  const Result want = attention(problem_of(in, params));
  for_each_simd_target([&](const std::string& target) {
    SCOPED_TRACE(target);
    const kernels::AttentionResult got = kernels::flash_forward(in.q, in.k, in.v, params);
    EXPECT_EQ(got.o.dtype(), in.v.dtype());
    EXPECT_LE(relative_error(got.o, want.o), tolerance);
    EXPECT_LE(relative_error(got.lse, want.lse), lse_tolerance);
  });
}

}  // namespace fovea::reference

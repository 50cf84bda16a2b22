// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/rotatekv.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "fovea/core/catalogue.h"
#include "fovea/core/rng.h"
#include "fovea/kernels/rope.h"
#include "support/reference.h"

namespace fovea::cache {
namespace {

Tensor identity(int64_t channels) {
  std::vector<int32_t> order(static_cast<size_t>(channels));
  std::iota(order.begin(), order.end(), 0);
  return Tensor::from(order, {channels});
}

Tensor shuffled(int64_t channels) {
  const Tensor order = identity(channels);
  Rng rng(5);
  for (int64_t c = channels - 1; c > 0; --c)
    std::swap(order.at<int32_t>(c), order.at<int32_t>(rng.next_below(c + 1)));
  return order;
}

Tensor mask(int64_t batch, int64_t tokens, uint8_t value) {
  return Tensor::from(std::vector<uint8_t>(static_cast<size_t>(batch * tokens), value), {batch, tokens});
}

/// Keys that are normal but for a constant mean on four channels of every head.
Tensor biased_keys(int64_t heads, int64_t tokens, int64_t dim, float mean) {
  const Tensor k = random_normal({1, heads, tokens, dim}, 2);
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t n = 0; n < 4; ++n)
        k.at<float>(0, h, t, (7 * h + 13 * n + 3) % dim) += n % 2 == 0 ? mean : -mean;
  return k;
}

TEST(RotateKv, RotationAndOrderAreUndone) {
  for (const int64_t head_group : {1, 2, 4}) {
    const Tensor x = random_normal({2, 4, 33, 16}, 1), perm = shuffled(64);
    const Tensor z = rotate_rows(x, perm, head_group);
    EXPECT_EQ(z.shape(), (Shape{2, 33, 64}));
    EXPECT_LT(reference::relative_error(unrotate_rows(z, perm, head_group, 4), x), 1e-6);
  }
}

TEST(RotateKv, RotationKeepsNormsAndDotProducts) {
  const Tensor x = random_normal({1, 4, 2, 32}, 1), z = rotate_rows(x, shuffled(128), 4);
  double before[3] = {}, after[3] = {};
  for (int64_t c = 0; c < 128; ++c) {
    const double a = x.at<float>(0, c / 32, 0, c % 32), b = x.at<float>(0, c / 32, 1, c % 32);
    const double u = z.at<float>(0, 0, c), w = z.at<float>(0, 1, c);
    before[0] += a * a, before[1] += b * b, before[2] += a * b;
    after[0] += u * u, after[1] += w * w, after[2] += u * w;
  }
  for (int n = 0; n < 3; ++n) EXPECT_NEAR(before[n], after[n], 1e-3);
}

TEST(RotateKv, EightBitsAreWithinOnePercent) {
  const Tensor x = random_normal({2, 4, 65, 32}, 1);
  const auto got = rotatekv_quantize(x, shuffled(128), mask(2, 65, 0), {.bits = 8, .group_size = 32});
  EXPECT_LT(reference::relative_error(got.x_hat, x), 0.01);
}

TEST(RotateKv, SinksAreKeptAsTheyAre) {
  const Tensor x = random_normal({1, 4, 20, 16}, 1);
  const Tensor sinks = mask(1, 20, 0);
  sinks.at<uint8_t>(0, 0) = sinks.at<uint8_t>(0, 7) = 1;
  const auto some = rotatekv_quantize(x, shuffled(64), sinks), none = rotatekv_quantize(x, shuffled(64), {});
  for (int64_t t = 0; t < 20; ++t) {
    const Tensor& want = sinks.at<uint8_t>(0, t) != 0 ? x : none.x_hat;
    EXPECT_EQ(
        reference::relative_error(some.x_hat.slice(2, t, t + 1).clone(), want.slice(2, t, t + 1).clone()),
        0.0);
  }
  EXPECT_EQ(
      std::memcmp(some.rows.codes.raw(), none.rows.codes.raw(), static_cast<size_t>(none.rows.codes.bytes())),
      0)
      << "codes are stored for sinks too";
  EXPECT_EQ(reference::relative_error(rotatekv_quantize(x, shuffled(64), mask(1, 20, 1)).x_hat, x), 0.0);
}

TEST(RotateKv, DequantizeGivesWhatQuantizeReported) {
  for (const int bits : {2, 3, 4, 8}) {
    const Tensor x = random_normal({2, 6, 9, 8}, 1), perm = shuffled(48);
    const RotateKvOptions options{.bits = bits, .group_size = 12, .head_group = 2, .clip_ratio = 0.8};
    const auto got = rotatekv_quantize(x, perm, mask(2, 9, 0), options);
    EXPECT_EQ(got.rows.codes.dim(2), (48 * bits + 7) / 8);
    const Tensor back = catalogue()
                            .at("rotatekv-dequantize")
                            .run({{"codes", got.rows.codes},
                                  {"scale", got.rows.scale},
                                  {"zero", got.rows.zero},
                                  {"perm", perm}},
                                 {{"bits", std::to_string(bits)},
                                  {"group_size", "12"},
                                  {"head_group", "2"},
                                  {"heads", "6"}})["x_hat"];
    EXPECT_EQ(reference::relative_error(back, got.x_hat), 0.0);
  }
}

TEST(RotateKv, ConstantKeysBecomeOneChannelAndReconstruct) {
  const Tensor x = Tensor::full({1, 4, 3, 16}, 1.5f);
  const Tensor z = rotate_rows(x, {}, 2);
  for (int64_t c = 0; c < 64; ++c)
    EXPECT_NEAR(z.at<float>(0, 1, c), c % 32 == 0 ? 1.5 * std::sqrt(32.0) : 0.0, 1e-5);
  const auto got = rotatekv_quantize(x, identity(64), {}, {.bits = 2, .group_size = 1, .head_group = 2});
  EXPECT_LT(reference::relative_error(got.x_hat, x), 1e-6);
}

TEST(RotateKv, RowsOnAGridAreExact) {
  for (const int bits : {2, 3, 4}) {
    const int64_t levels = int64_t{1} << bits;
    const Tensor z = Tensor::empty({1, 6, 64}), perm = shuffled(64);
    for (int64_t t = 0; t < 6; ++t)
      for (int64_t c = 0; c < 64; ++c) {
        const int64_t level = c % 16 == 0 ? 0 : c % 16 == 1 ? levels - 1 : (t * 31 + c * 7) % levels;
        z.at<float>(0, t, c) = 0.5f * static_cast<float>(level - 1);
      }
    const Tensor x = unrotate_rows(z, perm, 4, 4);
    const auto got = rotatekv_quantize(x, perm, {}, {.bits = bits, .group_size = 16, .head_group = 4});
    EXPECT_LT(reference::relative_error(got.x_hat, x), 1e-5) << bits;
  }
}

TEST(RotateKv, CalibrationSortsSignedSums) {
  const Tensor x = random_normal({2, 4, 17, 8}, 3), z = rotate_rows(x, {}, 2);
  const Tensor perm = rotatekv_calibrate(x, 2);
  std::vector<double> sums(32);
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t t = 0; t < 17; ++t)
      for (int64_t c = 0; c < 32; ++c)
        sums[static_cast<size_t>(c)] += static_cast<double>(z.at<float>(b, t, c));
  for (int64_t c = 1; c < 32; ++c)
    EXPECT_LE(sums[static_cast<size_t>(perm.at<int32_t>(c - 1))],
              sums[static_cast<size_t>(perm.at<int32_t>(c))]);
  const Tensor ties = rotatekv_calibrate(Tensor::zeros({1, 2, 3, 4}), 2);
  for (int32_t c = 0; c < 8; ++c) EXPECT_EQ(ties.at<int32_t>(c), c);
}

TEST(RotateKv, SinksOwnTheLargestActivations) {
  const Tensor x = random_uniform({2, 30, 12}, 4);
  x.at<float>(0, 5, 3) = -50, x.at<float>(0, 5, 4) = 40, x.at<float>(0, 20, 0) = 30,
                    x.at<float>(1, 29, 11) = 9;
  const Tensor got = rotatekv_sinks(x, 3), first = rotatekv_sinks(x.slice(0, 1, 2).clone(), 1);
  for (int64_t t = 0; t < 30; ++t) {
    EXPECT_EQ(got.at<uint8_t>(0, t), t == 5 || t == 20);
    EXPECT_EQ(first.at<uint8_t>(0, t), t == 29);
  }
  const Tensor ties = rotatekv_sinks(Tensor::full({1, 4, 5}, -1), 7);
  for (int64_t t = 0; t < 4; ++t)
    EXPECT_EQ(ties.at<uint8_t>(0, t), t < 2) << "ties go to the lowest flat index";
  EXPECT_EQ(rotatekv_sinks(x, 100000).at<uint8_t>(0, 17), 1);
}

TEST(RotateKv, AllSinksIsDenseRopeAttention) {
  const Tensor q = random_normal({2, 4, 5, 16}, 1), k = random_normal({2, 2, 33, 16}, 2),
               v = random_normal({2, 2, 33, 16}, 3);
  const RotateKvAttentionOptions options{{.bits = 2, .group_size = 16, .head_group = 2}, 1000.0};
  const auto got = rotatekv_attention(q, k, v, shuffled(32), mask(2, 33, 1), options);
  auto rotated = [](const Tensor& x, int64_t first) {
    const Tensor y = x.clone();
    for (int64_t b = 0; b < x.dim(0); ++b)
      for (int64_t h = 0; h < x.dim(1); ++h)
        for (int64_t t = 0; t < x.dim(2); ++t)
          for (int64_t m = 0; m < 8; ++m) {
            const double angle =
                static_cast<double>(first + t) * std::pow(1000.0, -2.0 * static_cast<double>(m) / 16);
            const double a = x.at<float>(b, h, t, m), c = x.at<float>(b, h, t, m + 8);
            y.at<float>(b, h, t, m) = static_cast<float>(a * std::cos(angle) - c * std::sin(angle));
            y.at<float>(b, h, t, m + 8) = static_cast<float>(a * std::sin(angle) + c * std::cos(angle));
          }
    return y;
  };
  reference::Problem problem;
  problem.q = rotated(q, 28), problem.k = rotated(k, 0), problem.v = v,
  problem.visible = reference::causal(5, 33);
  const auto want = reference::attention(problem);
  EXPECT_LT(reference::relative_error(got.o, want.o), 1e-5);
  EXPECT_LT(reference::relative_error(got.lse, want.lse), 1e-5);
}

/// Relative error of exact attention over keys k_hat instead of k.
double attention_error(const Tensor& q, const Tensor& k, const Tensor& k_hat, const Tensor& v) {
  return reference::relative_error(kernels::flash_forward(q, k_hat, v).o, kernels::flash_forward(q, k, v).o);
}

struct KeyErrors {
  double reordered, rotated, plain;
};
KeyErrors errors_of_biased_keys(float mean, int bits) {
  constexpr int64_t kHeads = 4, kTokens = 1024, kDim = 64;
  const Tensor k = biased_keys(kHeads, kTokens, kDim, mean), v = random_normal({1, kHeads, kTokens, kDim}, 3);
  const Tensor q = random_normal({1, kHeads, 64, kDim}, 4);
  for (int64_t h = 0; h < kHeads; ++h)
    for (int64_t i = 0; i < 64; ++i) {
      for (int64_t c = 0; c < kDim; ++c) q.at<float>(0, h, i, c) *= 1.5f;
      for (int64_t n = 0; n < 4; ++n) q.at<float>(0, h, i, (7 * h + 13 * n + 3) % kDim) *= 0.3f;
    }
  const RotateKvOptions options{.bits = bits, .group_size = 64, .head_group = 4};
  const Tensor reordered = rotatekv_quantize(k, rotatekv_calibrate(k, 4), {}, options).x_hat;
  const Tensor rotated = rotatekv_quantize(k, {}, {}, options).x_hat;
  const Tensor plain =
      kernels::dequantize_affine(kernels::quantize_affine(k, bits, 64, 1.0f), bits, 64, kDim);
  return {attention_error(q, k, reordered, v), attention_error(q, k, rotated, v),
          attention_error(q, k, plain, v)};
}

TEST(RotateKv, ReorderedRotationBeatsPlainAndRotatedCodes) {
  const KeyErrors four = errors_of_biased_keys(20, 4), two = errors_of_biased_keys(5, 2);
  RecordProperty("mean_20_bits_4", std::to_string(four.reordered) + " " + std::to_string(four.rotated) + " " +
                                       std::to_string(four.plain));
  RecordProperty("mean_5_bits_2", std::to_string(two.reordered) + " " + std::to_string(two.rotated) + " " +
                                      std::to_string(two.plain));
  EXPECT_LE(four.reordered, 0.4 * four.plain);
  EXPECT_LE(four.reordered, 0.55 * four.rotated);
  EXPECT_LE(two.reordered, 0.75 * two.plain);
  EXPECT_LE(two.reordered, 0.75 * two.rotated);
}

TEST(RotateKv, Refusals) {
  const auto& op = catalogue().at("rotatekv-quantize");
  auto run = [&](int64_t heads, int64_t dim, const Tensor& perm, const options::Pairs& pairs) {
    op.run({{"x", random_normal({1, heads, 3, dim}, 1)}, {"perm", perm}, {"sink_mask", mask(1, 3, 0)}},
           pairs);
  };
  EXPECT_NO_THROW(run(4, 16, identity(64), {}));
  EXPECT_THROW(run(4, 16, identity(64), {{"head_group", "3"}}), Error);
  EXPECT_THROW(run(3, 16, identity(48), {{"head_group", "3"}, {"group_size", "16"}}), Error)
      << "48 is no power of two";
  EXPECT_THROW(run(4, 16, identity(64), {{"group_size", "48"}}), Error);
  EXPECT_THROW(run(4, 16, identity(64), {{"bits", "5"}}), Error);
  EXPECT_THROW(run(4, 16, identity(64), {{"clip_ratio", "0"}}), Error);
  const Tensor twice = identity(64), outside = identity(64);
  twice.at<int32_t>(3) = 4;
  outside.at<int32_t>(3) = 64;
  EXPECT_THROW(run(4, 16, twice, {}), Error);
  EXPECT_THROW(run(4, 16, outside, {}), Error);
  const Tensor x = random_normal({1, 4, 3, 16}, 1);
  x.at<float>(0, 0, 0, 0) = NAN;
  EXPECT_THROW(op.run({{"x", x}, {"perm", identity(64)}, {"sink_mask", mask(1, 3, 0)}}), Error);
}

}  // namespace
}  // namespace fovea::cache

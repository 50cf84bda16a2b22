// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "fovea/core/rng.h"
#include "fovea/core/thread_pool.h"
#include "support/reference.h"

namespace fovea::kernels {
namespace {

/// The e4m3 code nearest to x by search over all codes; ties go to the even code.
uint8_t nearest_e4m3(double x) {
  const double magnitude = std::min(std::fabs(x), 448.0);
  int best = 0;
  for (int code = 1; code < 0x7F; ++code) {
    const double there = std::fabs(static_cast<double>(from_e4m3(static_cast<uint8_t>(code))) - magnitude);
    const double here = std::fabs(static_cast<double>(from_e4m3(static_cast<uint8_t>(best))) - magnitude);
    if (there < here || (there == here && code % 2 == 0)) best = code;
  }
  return static_cast<uint8_t>(best | (std::signbit(x) ? 0x80 : 0));
}

/// One row by the rule, in float arithmetic, with codes not yet packed.
struct AffineRow {
  std::vector<int> codes;
  std::vector<float> scale, zero;
};
AffineRow affine_row(const float* x, int64_t n, int bits, int64_t group, float clip) {
  AffineRow row;
  const int levels = (1 << bits) - 1;
  for (int64_t g = 0; g < n; g += group) {
    const float high = clip * *std::max_element(x + g, x + g + group);
    const float low = clip * *std::min_element(x + g, x + g + group);
    const float scale = high == low ? high : (high - low) / static_cast<float>(levels);
    const float zero = high == low ? -1.0f : std::nearbyint(-low / scale);
    row.scale.push_back(scale);
    row.zero.push_back(zero);
    for (int64_t i = g; i < g + group; ++i)
      row.codes.push_back(high == low ? 0
                                      : static_cast<int>(std::clamp(std::nearbyint(x[i] / scale) + zero, 0.0f,
                                                                    static_cast<float>(levels))));
  }
  return row;
}

int code_at(const uint8_t* packed, int64_t channel, int bits) {
  int code = 0;
  for (int bit = 0; bit < bits; ++bit) {
    const int64_t at = channel * bits + bit;
    code |= ((packed[at / 8] >> (at % 8)) & 1) << bit;
  }
  return code;
}

TEST(E4m3, KnownCodes) {
  EXPECT_EQ(to_e4m3(0.0f), 0x00);
  EXPECT_EQ(to_e4m3(-0.0f), 0x80);
  EXPECT_EQ(to_e4m3(1.0f), 0x38);
  EXPECT_EQ(to_e4m3(448.0f), 0x7E);
  EXPECT_EQ(to_e4m3(1e9f), 0x7E);
  EXPECT_EQ(to_e4m3(-std::numeric_limits<float>::infinity()), 0xFE);
  EXPECT_EQ(to_e4m3(std::numeric_limits<float>::quiet_NaN()), 0x7F);
  EXPECT_EQ(to_e4m3(0x1p-9f), 0x01);
  EXPECT_EQ(to_e4m3(-0x1p-12f), 0x80) << "a negative value that rounds to zero keeps its sign";
  EXPECT_TRUE(std::isnan(from_e4m3(0x7F)));
  EXPECT_TRUE(std::isnan(from_e4m3(0xFF)));
}

TEST(E4m3, EveryCodeSurvivesARoundTrip) {
  for (int code = 0; code < 256; ++code) {
    if ((code & 0x7F) == 0x7F) continue;
    EXPECT_EQ(to_e4m3(from_e4m3(static_cast<uint8_t>(code))), code);
  }
}

TEST(E4m3, RoundsToNearestEven) {
  for (int code = 0; code < 0x7E; ++code) {
    const float a = from_e4m3(static_cast<uint8_t>(code)), b = from_e4m3(static_cast<uint8_t>(code + 1));
    const float middle = (a + b) / 2;
    EXPECT_EQ(to_e4m3(middle), code % 2 == 0 ? code : code + 1) << middle;
    EXPECT_EQ(to_e4m3(std::nextafter(middle, 0.0f)), code);
    EXPECT_EQ(to_e4m3(std::nextafter(middle, 1e9f)), code + 1);
  }
  const Tensor x = random_normal({2000}, 1);
  for (int64_t i = 0; i < x.size(); ++i) {
    const float value = x.data<float>()[i] * std::exp2(static_cast<float>(i % 24) - 12);
    EXPECT_EQ(to_e4m3(value), nearest_e4m3(value)) << value;
  }
}

TEST(QuantizeE4m3, BlocksAgreeWithTheScalarRule) {
  for (const int64_t dim : {1, 7, 65})
    for (const int64_t block : {1, 16, 1000}) {
      Tensor x = random_normal({1, 2, 37, dim}, 7);
      for (int64_t i = 0; i < x.size(); i += 5) x.data<float>()[i] *= 0x1p-10f;
      const Fp8Blocks blocks = quantize_e4m3(x, block);
      ASSERT_EQ(blocks.scales.dim(2), (37 + block - 1) / block);
      for (int64_t b = 0; b < 1; ++b)
        for (int64_t h = 0; h < 2; ++h)
          for (int64_t t = 0; t < 37; ++t) {
            float amax = 0;
            for (int64_t r = t / block * block; r < std::min<int64_t>(37, (t / block + 1) * block); ++r)
              for (int64_t c = 0; c < dim; ++c) amax = std::max(amax, std::fabs(x.at<float>(b, h, r, c)));
            const float scale = blocks.scales.at<float>(b, h, t / block);
            ASSERT_EQ(scale, amax / 448.0f);
            for (int64_t c = 0; c < dim; ++c)
              ASSERT_EQ(blocks.codes.at<uint8_t>(b, h, t, c), to_e4m3(x.at<float>(b, h, t, c) / scale));
          }
      const Tensor back = dequantize_e4m3(blocks, block);
      EXPECT_LT(reference::relative_error(back, x), 0.04);
    }
}

TEST(QuantizeE4m3, ZerosHaveScaleOne) {
  const Fp8Blocks blocks = quantize_e4m3(Tensor::zeros({1, 1, 5, 3}), 2);
  for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(blocks.scales.data<float>()[i], 1.0f);
  for (int64_t i = 0; i < 15; ++i) EXPECT_EQ(blocks.codes.data<uint8_t>()[i], 0);
}

TEST(QuantizeE4m3, NanStaysInItsElement) {
  Tensor x = random_normal({1, 1, 4, 33}, 3);
  x.at<float>(0, 0, 1, 32) = std::numeric_limits<float>::quiet_NaN();
  const Tensor back = dequantize_e4m3(quantize_e4m3(x, 4), 4);
  for (int64_t i = 0; i < x.size(); ++i)
    EXPECT_EQ(std::isnan(back.data<float>()[i]), std::isnan(x.data<float>()[i]));
}

TEST(QuantizeE4m3, EmptyAndStridedInputs) {
  EXPECT_EQ(quantize_e4m3(Tensor::zeros({0, 2, 5, 3}), 2).scales.size(), 0);
  EXPECT_EQ(quantize_e4m3(Tensor::zeros({1, 2, 0, 3}), 2).scales.dim(2), 0);
  const Tensor x = random_normal({2, 40, 3, 16}, 5), view = x.transpose(1, 2);
  const Fp8Blocks a = quantize_e4m3(view, 16), b = quantize_e4m3(view.clone(), 16);
  EXPECT_EQ(reference::relative_error(dequantize_e4m3(a, 16), dequantize_e4m3(b, 16)), 0.0);
}

class QuantizeAffineBits : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Widths, QuantizeAffineBits, testing::Values(2, 3, 4, 8));

TEST_P(QuantizeAffineBits, CodesFollowTheRuleAndTheBitStream) {
  const int bits = GetParam();
  for (const auto& [channels, group] : {std::pair<int64_t, int64_t>{64, 64},
                                        {64, 16},
                                        {96, 3},
                                        {1000, 1000},
                                        {1536, 64},
                                        {5, 1},
                                        {130, 13},
                                        {2048, 2048}})
    for (const float clip : {1.0f, 0.8f, 0.3f}) {
      Tensor x = random_normal({5, channels}, 11);
      for (int64_t c = 0; c < group; ++c) x.at<float>(1, c) = 2.5f;
      for (int64_t c = 0; c < group; ++c) x.at<float>(2, c) = 0.0f;
      for (int64_t c = 0; c < channels; ++c) x.at<float>(3, c) += 100.0f;
      const AffineBlocks blocks = quantize_affine(x, bits, group, clip);
      const int64_t bytes = (channels * bits + 7) / 8;
      ASSERT_EQ(blocks.codes.dim(1), bytes);
      const Tensor back = dequantize_affine(blocks, bits, group, channels);
      for (int64_t r = 0; r < 5; ++r) {
        const AffineRow want = affine_row(x.data<float>() + r * channels, channels, bits, group, clip);
        for (int64_t c = 0; c < channels; ++c) {
          const auto g = static_cast<size_t>(c / group);
          ASSERT_EQ(blocks.scale.at<float>(r, c / group), want.scale[g]);
          ASSERT_EQ(blocks.zero.at<float>(r, c / group), want.zero[g]);
          ASSERT_EQ(code_at(blocks.codes.data<uint8_t>() + r * bytes, c, bits),
                    want.codes[static_cast<size_t>(c)])
              << "row " << r << " channel " << c;
          ASSERT_EQ(back.at<float>(r, c),
                    want.scale[g] * (static_cast<float>(want.codes[static_cast<size_t>(c)]) - want.zero[g]));
        }
      }
    }
}

TEST_P(QuantizeAffineBits, ValuesOnAGridAreExact) {
  const int bits = GetParam();
  Tensor x = Tensor::empty({3, 256});
  for (int64_t i = 0; i < x.size(); ++i) {
    const int64_t level = i % 64 < 2 ? (i % 2) * ((1 << bits) - 1) : (i * 37 + i / 7) % (1 << bits);
    x.data<float>()[i] = 0.25f * static_cast<float>(level - 1);
  }
  const Tensor back = dequantize_affine(quantize_affine(x, bits, 64, 1.0f), bits, 64, 256);
  for (int64_t i = 0; i < x.size(); ++i) EXPECT_EQ(back.data<float>()[i], x.data<float>()[i]);
}

TEST_P(QuantizeAffineBits, RowFormsAgreeWithTensorForms) {
  const int bits = GetParam();
  const Tensor x = random_normal({2, 7, 192}, 9);
  const AffineBlocks blocks = quantize_affine(x, bits, 48, 0.9f);
  const Tensor all = dequantize_affine(blocks, bits, 48, 192);
  const int64_t bytes = blocks.codes.dim(2);
  for (int64_t r = 0; r < 14; ++r) {
    std::vector<uint8_t> codes(static_cast<size_t>(bytes));
    std::vector<float> scale(4), zero(4), back(192);
    quantize_affine_row(x.data<float>() + r * 192, 192, bits, 48, 0.9f, codes.data(), scale.data(),
                        zero.data());
    EXPECT_TRUE(std::equal(codes.begin(), codes.end(), blocks.codes.data<uint8_t>() + r * bytes));
    dequantize_affine_row(codes.data(), scale.data(), zero.data(), 192, bits, 48, back.data());
    EXPECT_TRUE(std::equal(back.begin(), back.end(), all.data<float>() + r * 192));
  }
}

TEST(QuantizeAffine, TiesRoundToEven) {
  // Range 0 .. 3 in two bits: scale 1, zero 0.
  const Tensor x = Tensor::from(std::vector<float>{0, 3, 0.5f, 1.5f, 2.5f, 0.49f, 0.51f, 1}, {1, 8});
  const Tensor back = dequantize_affine(quantize_affine(x, 2, 8, 1.0f), 2, 8, 8);
  const std::vector<float> want = {0, 3, 0, 2, 2, 0, 1, 1};
  EXPECT_TRUE(std::equal(want.begin(), want.end(), back.data<float>()));
}

TEST(QuantizeAffine, ThreadCountsAgreeBitForBit) {
  const Tensor x = random_normal({100, 256}, 4);
  set_threads(1);
  const AffineBlocks one = quantize_affine(x, 3, 64, 1.0f);
  set_threads(2);
  const AffineBlocks two = quantize_affine(x, 3, 64, 1.0f);
  set_threads(0);
  EXPECT_TRUE(std::equal(one.codes.data<uint8_t>(), one.codes.data<uint8_t>() + one.codes.size(),
                         two.codes.data<uint8_t>()));
}

TEST(QuantizeAffine, Refusals) {
  const Tensor x = random_normal({2, 64}, 4);
  EXPECT_THROW(quantize_affine(x, 5, 64, 1.0f), Error);
  EXPECT_THROW(quantize_affine(x, 2, 48, 1.0f), Error);
  EXPECT_THROW(dequantize_affine(quantize_affine(x, 2, 64, 1.0f), 4, 64, 64), Error);
  EXPECT_THROW(quantize_e4m3(x, 16), Error);
}

}  // namespace
}  // namespace fovea::kernels

// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/matmul.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "fovea/core/thread_pool.h"
#include "support/attention_problem.h"
#include "support/reference.h"

namespace fovea::kernels {
namespace {

std::mt19937 generator(7);

Tensor random_matrix(int64_t rows, int64_t columns) {
  std::normal_distribution<float> normal;
  const Tensor x = Tensor::empty({rows, columns});
  for (int64_t i = 0; i < x.size(); ++i) x.data<float>()[i] = normal(generator);
  return x;
}

AffineWeight random_affine(int64_t rows, int64_t columns, int bits, int64_t group, bool half_scales) {
  std::uniform_int_distribution<int> byte(0, 255);
  std::uniform_real_distribution<float> scale(0.01f, 0.1f);
  AffineWeight w{rows, columns, bits, group, {}, {}, {}};
  w.codes = Tensor::empty({rows, columns * bits / 8}, DType::u8);
  for (int64_t i = 0; i < w.codes.size(); ++i)
    w.codes.data<uint8_t>()[i] = static_cast<uint8_t>(byte(generator));
  w.scale = Tensor::empty({rows, columns / group});
  w.offset = Tensor::empty({rows, columns / group});
  for (int64_t i = 0; i < w.scale.size(); ++i) {
    float s = scale(generator), o = -8.0f * scale(generator);
    if (half_scales) s = to_float(to_half(s)), o = to_float(to_half(o));
    w.scale.data<float>()[i] = s;
    w.offset.data<float>()[i] = o;
  }
  return w;
}

Tensor dequantize(const AffineWeight& w) {
  const Tensor out = Tensor::empty({w.rows, w.columns});
  for (int64_t r = 0; r < w.rows; ++r)
    for (int64_t k = 0; k < w.columns; ++k) {
      const int code =
          w.bits == 8 ? w.codes.at<uint8_t>(r, k) : w.codes.at<uint8_t>(r, k / 2) >> (k % 2 * 4) & 15;
      out.at<float>(r, k) =
          w.scale.at<float>(r, k / w.group) * static_cast<float>(code) + w.offset.at<float>(r, k / w.group);
    }
  return out;
}

// Each (row, group) of x rounded to scale * integer in [-127, 127]: what the product is allowed to lose.
Tensor rounded_activations(const Tensor& x, int64_t group) {
  const Tensor out = Tensor::empty(x.shape());
  for (int64_t r = 0; r < x.dim(0); ++r)
    for (int64_t g = 0; g < x.dim(1); g += group) {
      float bound = 0;
      for (int64_t k = g; k < g + group; ++k) bound = std::max(bound, std::fabs(x.at<float>(r, k)));
      for (int64_t k = g; k < g + group; ++k)
        out.at<float>(r, k) =
            bound > 0 ? std::nearbyint(x.at<float>(r, k) * (127.0f / bound)) * (bound / 127.0f) : 0.0f;
    }
  return out;
}

Tensor product(const Tensor& x_any, const Tensor& w_any) {
  const Tensor x = x_any.contiguous(), w = w_any.contiguous();
  const int64_t columns = x.dim(1);
  const Tensor y = Tensor::empty({x.dim(0), w.dim(0)});
  for (int64_t i = 0; i < x.dim(0); ++i)
    for (int64_t j = 0; j < w.dim(0); ++j) {
      double sum = 0;
      for (int64_t k = 0; k < columns; ++k)
        sum += static_cast<double>(x.data<float>()[i * columns + k]) *
               static_cast<double>(w.data<float>()[j * columns + k]);
      y.at<float>(i, j) = static_cast<float>(sum);
    }
  return y;
}

Tensor rounded_to_bfloat16(const Tensor& x) { return x.to(DType::bf16).to(DType::f32); }

Tensor apply(const Linear& linear, const Tensor& x) {
  const Tensor y = Tensor::full({x.dim(0), linear.rows()}, std::numeric_limits<float>::quiet_NaN());
  linear.apply(x, y);
  return y;
}

// The largest error in units of the magnitudes that were summed, which cancellation in a sum does not
// inflate.
double product_error(const Tensor& got, const Tensor& x, const Tensor& w) {
  const Tensor want = product(x, w);
  double largest_weight = 0, worst = 0;
  for (int64_t i = 0; i < w.size(); ++i)
    largest_weight = std::max<double>(largest_weight, std::fabs(w.data<float>()[i]));
  for (int64_t i = 0; i < x.dim(0); ++i) {
    double sum = 1e-30;
    for (int64_t k = 0; k < x.dim(1); ++k) sum += std::fabs(x.at<float>(i, k)) * largest_weight;
    for (int64_t j = 0; j < w.dim(0); ++j)
      worst =
          std::max(worst, std::fabs(static_cast<double>(got.at<float>(i, j)) - want.at<float>(i, j)) / sum);
  }
  return worst;
}

bool same_bits(const Tensor& a_any, const Tensor& b_any) {
  const Tensor a = a_any.contiguous(), b = b_any.contiguous();
  return a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())) == 0;
}

class Affine : public testing::TestWithParam<std::tuple<int, int64_t, bool>> {
 protected:
  AffineWeight weight(int64_t rows, int64_t groups) const {
    const auto [bits, group, half] = GetParam();
    return random_affine(rows, groups * group, bits, group, half);
  }
};

TEST_P(Affine, ProductEqualsTheDequantisedOneOfRoundedActivations) {
  for (int64_t rows : {1, 16, 47})
    for (int64_t m : {1, 4, 7}) {
      const AffineWeight w = weight(rows, 3);
      const Tensor x = random_matrix(m, w.columns);
      const int64_t group = w.group % 32 == 0 ? 32 : 16;
      reference::for_each_simd_target([&](const std::string& target) {
        EXPECT_LT(product_error(apply(*make_linear(w), x), rounded_activations(x, group), dequantize(w)),
                  1e-6)
            << target << " " << rows << " " << m;
      });
    }
}

TEST_P(Affine, RowIsTheDequantisedRow) {
  const AffineWeight w = weight(19, 2);
  const auto linear = make_linear(w);
  const Tensor want = dequantize(w), row = Tensor::empty({w.columns});
  for (int64_t r = 0; r < w.rows; ++r) {
    linear->row(r, row.data<float>());
    EXPECT_LT(reference::relative_error(row, want.select(0, r)), 1e-7);
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, Affine,
                         testing::Combine(testing::Values(4, 8), testing::Values<int64_t>(16, 32, 48, 64),
                                          testing::Bool()));

TEST(AffineLinear, KeepsFourBitCodesAndHalfScalesInFiveBitsAWeight) {
  EXPECT_EQ(make_linear(random_affine(64, 128, 4, 32, true))->bytes(), 64 * 128 * 5 / 8);
}

TEST(AffineLinear, ExtremeCodesDoNotOverflow) {
  for (int bits : {4, 8})
    for (float value : {-3.0f, 3.0f}) {
      AffineWeight w = random_affine(16, 512, bits, 32, true);
      std::fill_n(w.codes.data<uint8_t>(), w.codes.size(), uint8_t{255});
      const Tensor x = Tensor::full({5, 512}, value);
      reference::for_each_simd_target([&](const std::string& target) {
        EXPECT_LT(product_error(apply(*make_linear(w), x), x, dequantize(w)), 1e-6) << target << " " << bits;
      });
    }
}

TEST(AffineLinear, NotFiniteActivationsMakeTheirRowNan) {
  const AffineWeight w = random_affine(20, 64, 4, 32, true);
  const Tensor x = random_matrix(4, 64);
  x.at<float>(1, 3) = std::numeric_limits<float>::quiet_NaN();
  x.at<float>(3, 40) = std::numeric_limits<float>::infinity();
  const Tensor y = apply(*make_linear(w), x);
  for (int64_t j = 0; j < 20; ++j) {
    EXPECT_TRUE(std::isfinite(y.at<float>(0, j)) && std::isfinite(y.at<float>(2, j)));
    EXPECT_TRUE(std::isnan(y.at<float>(1, j)) && std::isnan(y.at<float>(3, j)));
  }
}

TEST(AffineLinear, ZeroActivationsGiveZero) {
  const Tensor y = apply(*make_linear(random_affine(33, 64, 4, 32, true)), Tensor::zeros({2, 64}));
  for (int64_t i = 0; i < y.size(); ++i) EXPECT_EQ(y.data<float>()[i], 0.0f);
}

TEST(FloatLinear, ProductMatchesDoublePrecision) {
  for (int64_t rows : {1, 16, 31, 65})
    for (int64_t m : {1, 2, 3, 4, 7, 29})
      for (int64_t columns : {1, 33, 100}) {
        const Tensor w = random_matrix(rows, columns), x = random_matrix(m, columns);
        EXPECT_LT(product_error(apply(*make_linear(w, false), x), x, w), 1e-6);
        const Tensor w16 = rounded_to_bfloat16(w), x16 = rounded_to_bfloat16(x);
        EXPECT_LT(product_error(apply(*make_linear(w16), x16), x16, w16), 1e-6);
      }
}

TEST(FloatLinear, AcceptsEveryFloatTypeAndStridedWeights) {
  const Tensor w = random_matrix(20, 36), x = random_matrix(3, 18);
  for (DType type : {DType::f32, DType::f16, DType::bf16})
    for (bool allow_bf16 : {false, true}) {
      const Tensor part = w.to(type).slice(1, 0, 36, 2).slice(0, 0, 20, 2);
      const auto linear = make_linear(part, allow_bf16);
      EXPECT_LT(product_error(apply(*linear, x), x, part.to(DType::f32).contiguous()),
                allow_bf16 ? 5e-3 : 1e-6);
      const Tensor row = Tensor::empty({18});
      linear->row(7, row.data<float>());
      EXPECT_LT(reference::relative_error(row, part.to(DType::f32).select(0, 7)), allow_bf16 ? 4e-3 : 1e-9);
    }
}

TEST(Linear, ARowDoesNotDependOnItsBatchOrOnTheThreads) {
  const Tensor x = random_matrix(300, 96);
  std::vector<std::unique_ptr<Linear>> linears;
  linears.push_back(make_linear(random_affine(200, 96, 4, 32, true)));
  linears.push_back(make_linear(random_affine(200, 96, 8, 16, false)));
  linears.push_back(make_linear(random_matrix(200, 96), false));
  linears.push_back(make_linear(random_matrix(200, 96)));
  for (const auto& linear : linears) {
    set_threads(1);
    const Tensor one = apply(*linear, x);
    set_threads(2);
    EXPECT_TRUE(same_bits(one, apply(*linear, x)));
    for (int64_t r : {0, 5, 255, 256, 299})
      EXPECT_TRUE(same_bits(one.slice(0, r, r + 1), apply(*linear, x.slice(0, r, r + 1))));
  }
  set_threads(0);
}

TEST(Linear, WritesOnlyItsColumnsOfStridedRows) {
  std::vector<std::unique_ptr<Linear>> linears;
  linears.push_back(make_linear(random_affine(21, 64, 4, 32, true)));
  linears.push_back(make_linear(random_matrix(21, 64), false));
  linears.push_back(make_linear(random_matrix(21, 64)));
  for (const auto& linear : linears) {
    const Tensor x = random_matrix(9, 100).slice(1, 3, 67), y = Tensor::full({9, 40}, 5.0f);
    linear->apply(x, y.slice(1, 7, 28));
    EXPECT_TRUE(same_bits(y.slice(1, 7, 28), apply(*linear, x.contiguous())));
    for (int64_t r = 0; r < 9; ++r)
      for (int64_t c = 0; c < 40; ++c)
        if (c < 7 || c >= 28) {
          EXPECT_EQ(y.at<float>(r, c), 5.0f);
        }
  }
}

TEST(Linear, NoRowsIsNothingToDo) {
  make_linear(random_affine(21, 64, 4, 32, true))->apply(Tensor::empty({0, 64}), Tensor::empty({0, 21}));
  make_linear(random_matrix(21, 64))->apply(Tensor::empty({0, 64}), Tensor::empty({0, 21}));
}

TEST(Linear, RefusesWrongShapesAndFormats) {
  const auto linear = make_linear(random_matrix(4, 8));
  EXPECT_THROW(linear->apply(Tensor::empty({2, 7}), Tensor::empty({2, 4})), Error);
  EXPECT_THROW(linear->apply(Tensor::empty({2, 8}), Tensor::empty({2, 5})), Error);
  EXPECT_THROW(linear->apply(Tensor::empty({2, 8}, DType::f16), Tensor::empty({2, 4})), Error);
  EXPECT_THROW(linear->row(4, nullptr), Error);
  EXPECT_THROW(make_linear(Tensor::empty({4})), Error);
  AffineWeight w = random_affine(4, 64, 4, 32, true);
  w.bits = 5;
  EXPECT_THROW(make_linear(w), Error);
  w.bits = 8;
  EXPECT_THROW(make_linear(w), Error);
  w = random_affine(4, 64, 4, 32, true);
  w.group = 24;
  EXPECT_THROW(make_linear(w), Error);
}

TEST(GemmNt, MatchesDoublePrecisionForAnyStrides) {
  const Tensor a = random_matrix(37, 65), b = random_matrix(50, 65);
  const Tensor c = Tensor::empty({37, 50});
  gemm_nt(a, b, c);
  EXPECT_LT(product_error(c, a, b), 1e-6);
  const Tensor at = a.transpose(0, 1).contiguous(), bt = b.transpose(0, 1).contiguous();
  const Tensor wide = Tensor::zeros({37, 80});
  gemm_nt(at.transpose(0, 1), bt.transpose(0, 1), wide.slice(1, 10, 60));
  EXPECT_TRUE(same_bits(wide.slice(1, 10, 60), c));
}

TEST(GemmNt, AccumulateAddsToWhatIsThere) {
  const Tensor a = random_matrix(5, 12), b = random_matrix(18, 12), c = Tensor::full({5, 18}, 2.0f);
  gemm_nt(a, b, c, true);
  const Tensor want = product(a, b);
  for (int64_t i = 0; i < want.size(); ++i)
    EXPECT_NEAR(c.data<float>()[i], want.data<float>()[i] + 2.0f, 1e-5);
}

TEST(GemmNt, NoColumnsGivesZero) {
  const Tensor c = Tensor::full({3, 4}, 7.0f);
  gemm_nt(Tensor::empty({3, 0}), Tensor::empty({4, 0}), c);
  for (int64_t i = 0; i < c.size(); ++i) EXPECT_EQ(c.data<float>()[i], 0.0f);
}

TEST(GemmNt, RefusesShapesThatDoNotMatch) {
  EXPECT_THROW(gemm_nt(Tensor::zeros({2, 3}), Tensor::zeros({4, 5}), Tensor::zeros({2, 4})), Error);
  EXPECT_THROW(gemm_nt(Tensor::zeros({2, 3}), Tensor::zeros({4, 3}), Tensor::zeros({4, 2})), Error);
}

}  // namespace
}  // namespace fovea::kernels

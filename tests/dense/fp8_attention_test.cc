// SPDX-License-Identifier: Apache-2.0
#include "fovea/dense/fp8_attention.h"

#include <gtest/gtest.h>

#include <cmath>

#include "fovea/core/catalogue.h"
#include "fovea/core/rng.h"
#include "fovea/core/thread_pool.h"
#include "fovea/kernels/pooling.h"
#include "fovea/kernels/quantize.h"
#include "support/reference.h"

namespace fovea::dense {
namespace {

struct Problem {
  Tensor q, k, v;
  Problem(int64_t batch, int64_t hq, int64_t hkv, int64_t tq, int64_t tk, int64_t dim, int64_t dim_v)
      : q(random_normal({batch, hq, tq, dim}, 1)),
        k(random_normal({batch, hkv, tk, dim}, 2)),
        v(random_normal({batch, hkv, tk, dim_v}, 3)) {}
};

/// The rule of the header, one row at a time in double precision, on operands that are already rotated.
reference::Result by_rule(const Problem& p, int64_t block_q, int64_t block_k, int64_t tile, bool causal) {
  auto decoded = [](const Tensor& x, int64_t block) {
    return kernels::dequantize_e4m3(kernels::quantize_e4m3(x, block), block);
  };
  const Tensor q = decoded(p.q, block_q), k = decoded(p.k, block_k), v = decoded(p.v, block_k);
  const int64_t tq = q.dim(2), tk = k.dim(2), group = q.dim(1) / k.dim(1), width = v.dim(3);
  reference::Problem problem;
  problem.q = q, problem.k = k;
  if (causal) problem.visible = reference::causal(tq, tk);
  reference::Result result{Tensor::zeros({q.dim(0), q.dim(1), tq, width}),
                           Tensor::zeros({q.dim(0), q.dim(1), tq})};
  for (int64_t b = 0; b < q.dim(0); ++b)
    for (int64_t h = 0; h < q.dim(1); ++h)
      for (int64_t i = 0; i < tq; ++i) {
        const auto row = reference::row_of(problem, q, k, b, h, i);
        result.lse.at<float>(b, h, i) = static_cast<float>(row.lse);
        std::vector<double> sum(static_cast<size_t>(width));
        double maximum = -INFINITY, total = 0;
        for (int64_t begin = 0; begin < tk; begin += tile) {
          const int64_t end = std::min(begin + tile, tk);
          double now = maximum;
          for (int64_t j = begin; j < end; ++j) now = std::max(now, row.score[static_cast<size_t>(j)]);
          if (std::isinf(now)) continue;
          const double factor = std::isinf(maximum) ? 0 : std::exp(maximum - now);
          for (double& s : sum) s *= factor;
          total *= factor;
          maximum = now;
          for (int64_t j = begin; j < end; ++j) {
            const double weight = std::exp(row.score[static_cast<size_t>(j)] - now);
            total += weight;
            const auto rounded =
                static_cast<double>(kernels::from_e4m3(kernels::to_e4m3(static_cast<float>(256 * weight))));
            for (int64_t c = 0; c < width; ++c)
              sum[static_cast<size_t>(c)] += rounded * static_cast<double>(v.at<float>(b, h / group, j, c));
          }
        }
        for (int64_t c = 0; c < width; ++c)
          result.o.at<float>(b, h, i, c) =
              total > 0 ? static_cast<float>(sum[static_cast<size_t>(c)] / (256 * total)) : 0.0f;
      }
  return result;
}

TEST(HadamardRotate, ScoresAreUnchanged) {
  const Problem p(1, 2, 2, 9, 11, 32, 8);
  const Tensor signs = draw_signs(32, 7);
  EXPECT_LT(reference::relative_error(
                kernels::pair_scores(hadamard_rotate(p.q, signs), hadamard_rotate(p.k, signs), 1.0f),
                kernels::pair_scores(p.q, p.k, 1.0f)),
            1e-6);
}

TEST(HadamardRotate, SignsComeFirst) {
  const Tensor x = random_normal({3, 8}, 1), signs = draw_signs(8, 3), y = hadamard_rotate(x, signs);
  for (int64_t r = 0; r < 3; ++r)
    for (int64_t a = 0; a < 8; ++a) {
      double sum = 0;
      for (int64_t b = 0; b < 8; ++b)
        sum += (std::popcount(static_cast<uint64_t>(a & b)) % 2 == 0 ? 1 : -1) *
               static_cast<double>(signs.at<float>(b) * x.at<float>(r, b));
      EXPECT_NEAR(y.at<float>(r, a), sum / std::sqrt(8.0), 1e-5);
    }
}

TEST(HadamardRotate, DrawnSignsAreBothKindsAndRepeat) {
  const Tensor a = draw_signs(256, 1), b = draw_signs(256, 1), c = draw_signs(256, 2);
  float sum = 0;
  for (int64_t i = 0; i < 256; ++i) {
    EXPECT_EQ(std::fabs(a.at<float>(i)), 1.0f);
    EXPECT_EQ(a.at<float>(i), b.at<float>(i));
    sum += a.at<float>(i);
  }
  EXPECT_LT(std::fabs(sum), 80);
  EXPECT_GT(reference::relative_error(c, a), 0.5);
}

TEST(Fp8Attention, EqualsTheRuleRowByRow) {
  struct Case {
    int64_t tq, tk, dim, dim_v, block_q, block_k;
    bool causal;
  };
  const Case cases[] = {{65, 100, 16, 24, 32, 32, true}, {65, 100, 7, 5, 64, 48, false},
                        {9, 4, 8, 8, 4, 3, true},        {1, 257, 20, 20, 128, 128, true},
                        {63, 63, 32, 16, 1, 1, true},    {40, 300, 8, 8, 16, 100, false}};
  for (const Case& c : cases) {
    const Problem p(1, 2, 1, c.tq, c.tk, c.dim, c.dim_v);
    const auto got =
        fp8_attention(p.q, p.k, p.v, {},
                      {.causal = c.causal, .block_q = c.block_q, .block_k = c.block_k, .hadamard = false});
    const auto want = by_rule(p, c.block_q, c.block_k, c.block_k, c.causal);
    // A weight beside a rounding boundary may fall to either side of it.
    EXPECT_LT(reference::relative_error(got.o, want.o), 3e-4) << c.tq << " " << c.tk;
    EXPECT_LT(reference::relative_error(got.lse, want.lse), 1e-5);
  }
}

TEST(Fp8Attention, OneScaleForEveryHead) {
  const Problem p(1, 4, 2, 33, 100, 16, 16);
  const auto got = fp8_attention(p.q, p.k, p.v, {},
                                 {.causal = true, .block_k = 32, .hadamard = false, .per_tensor = true});
  const auto want = by_rule(p, 33, 100, 32, true);
  EXPECT_LT(reference::relative_error(got.o, want.o), 3e-4);
}

TEST(Fp8Attention, OneKeyReturnsItsValue) {
  const Problem p(1, 2, 2, 5, 1, 16, 16);
  const auto got = fp8_attention(p.q, p.k, p.v, {});
  const Tensor v = kernels::dequantize_e4m3(kernels::quantize_e4m3(p.v, 128), 128);
  for (int64_t i = 0; i < 5; ++i)
    EXPECT_LT(reference::relative_error(got.o.slice(2, i, i + 1).clone(), v), 1e-6);
}

TEST(Fp8Attention, GivenSignsReplaceTheDrawnOnes) {
  const Problem p(1, 2, 1, 9, 30, 16, 16);
  const auto drawn = fp8_attention(p.q, p.k, p.v, {}, {.seed = 4});
  const auto given = fp8_attention(p.q, p.k, p.v, draw_signs(16, 4), {.seed = 99});
  EXPECT_EQ(reference::relative_error(drawn.o, given.o), 0.0);
  EXPECT_GT(reference::relative_error(fp8_attention(p.q, p.k, p.v, {}, {.seed = 5}).o, drawn.o), 0.0);
}

TEST(Fp8Attention, RowsWithoutKeysAndEmptyInputs) {
  const Problem p(1, 2, 1, 9, 4, 16, 16);
  const auto got = fp8_attention(p.q, p.k, p.v, {}, {.causal = true});
  for (int64_t i = 0; i < 5; ++i) {
    EXPECT_EQ(got.lse.at<float>(0, 1, i), -INFINITY);
    EXPECT_EQ(got.o.at<float>(0, 1, i, 3), 0.0f);
  }
  const auto none = fp8_attention(p.q, p.k.slice(2, 0, 0), p.v.slice(2, 0, 0), {});
  EXPECT_EQ(none.lse.at<float>(0, 0, 8), -INFINITY);
  EXPECT_EQ(fp8_attention(p.q.slice(2, 0, 0), p.k, p.v, {}).o.size(), 0);
}

TEST(Fp8Attention, ThreadCountsAgreeBitForBit) {
  const Problem p(1, 3, 1, 130, 200, 32, 32);
  set_threads(1);
  const auto one = fp8_attention(p.q, p.k, p.v, {}, {.causal = true});
  set_threads(2);
  const auto two = fp8_attention(p.q, p.k, p.v, {}, {.causal = true});
  set_threads(0);
  EXPECT_EQ(reference::relative_error(one.o, two.o), 0.0);
  EXPECT_EQ(reference::relative_error(one.lse, two.lse), 0.0);
}

/// Normal numbers, one in a thousand with ten times the spread added.
Tensor with_outliers(const Shape& shape, uint64_t seed) {
  const Tensor x = random_normal(shape, seed), big = random_normal(shape, seed, 1),
               chance = random_uniform(shape, seed, 2);
  for (int64_t i = 0; i < x.size(); ++i)
    if (chance.data<float>()[i] < 0.001f) x.data<float>()[i] += 10 * big.data<float>()[i];
  return x;
}

TEST(Fp8Attention, BlockScalesAndRotationLowerTheErrorOnOutliers) {
  for (const int64_t dim : {64, 128}) {
    const Shape shape{1, 8, 1024, dim};
    const Tensor q = with_outliers(shape, 1), k = with_outliers(shape, 2), v = with_outliers(shape, 3);
    const Tensor exact = kernels::flash_forward(q, k, v).o;
    const double best = reference::relative_error(fp8_attention(q, k, v, {}).o, exact);
    const double plain = reference::relative_error(
        fp8_attention(q, k, v, {}, {.hadamard = false, .per_tensor = true}).o, exact);
    RecordProperty("ratio_" + std::to_string(dim), std::to_string(plain / best));
    EXPECT_GE(plain / best, 1.4) << dim;
  }
}

TEST(Fp8Attention, Refusals) {
  const Problem p(1, 2, 1, 3, 4, 12, 8);
  const auto& op = catalogue().at("flash-attention-fp8");
  const Tensors in{{"q", p.q}, {"k", p.k}, {"v", p.v}};
  EXPECT_THROW(op.run(in), Error) << "12 channels cannot be rotated";
  EXPECT_NO_THROW(op.run(in, {{"hadamard", "false"}}));
  EXPECT_THROW(op.run(in, {{"hadamard", "false"}, {"block_k", "0"}}), Error);
  EXPECT_THROW(catalogue().at("hadamard-rotate").run({{"x", p.q}, {"signs", Tensor::full({12}, 1)}}), Error);
}

}  // namespace
}  // namespace fovea::dense

// SPDX-License-Identifier: Apache-2.0
#include "fovea/sparse/sparse_transformer.h"

#include <gtest/gtest.h>

#include "fovea/core/rng.h"
#include "fovea/core/thread_pool.h"
#include "fovea/sparse/sparse_transformer_block.h"
#include "tests/support/reference.h"

namespace fovea::sparse {
namespace {

// The definition, pair by pair.
bool strided_pair(const StridedOptions& o, int64_t head, int64_t i, int64_t j) {
  const bool first = i - o.stride <= j, second = (i - j) % o.stride == 0;
  if (i < 0 || j > i) return false;
  if (o.combine == "heads") return head % 2 == 0 ? first : second;
  return o.combine == "first" ? first : o.combine == "second" ? second : first || second;
}

bool fixed_pair(const FixedOptions& o, int64_t head, int64_t i, int64_t j) {
  if (i < 0 || j > i) return false;
  const int64_t g = head % o.spread, phase = j % o.stride;
  const bool first = j / o.stride == i / o.stride;
  const bool second = (phase >= o.stride - (g + 1) * o.summary && phase < o.stride - g * o.summary) || i == j;
  if (o.combine == "heads") return head % 2 == 0 ? first : second;
  return o.combine == "first" ? first : o.combine == "second" ? second : first || second;
}

struct Lengths {
  int64_t queries, keys;
};
constexpr Lengths kLengths[] = {{65, 65}, {100, 100}, {1, 63}, {40, 97}, {70, 31}, {0, 5}};
constexpr const char* kCombine[] = {"union", "first", "second", "heads"};

template <typename Pair>
void expect_pattern(const kernels::AttentionResult& got, const Tensor& q, const Tensor& k, const Tensor& v,
                    Pair pair) {
  const int64_t offset = k.dim(2) - q.dim(2);
  const auto want =
      reference::attention({.q = q, .k = k, .v = v, .visible = [&](int64_t, int64_t h, int64_t i, int64_t j) {
                              return pair(h, i + offset, j);
                            }});
  EXPECT_LE(reference::relative_error(got.o, want.o), 1e-5);
  EXPECT_LE(reference::relative_error(got.lse, want.lse), 1e-5);
}

TEST(SparseTransformer, StridedIsTheMaskedSoftmaxForEveryCombination) {
  for (const auto& [queries, keys] : kLengths)
    for (const char* combine : kCombine)
      for (int64_t stride : {1, 7, 16, 200}) {
        const StridedOptions options{stride, combine};
        const Tensor q = random_normal({2, 4, queries, 8}, 1), k = random_normal({2, 2, keys, 8}, 2),
                     v = random_normal({2, 2, keys, 5}, 3);
        SCOPED_TRACE(std::string(combine) + " " + std::to_string(stride) + " " + std::to_string(queries) +
                     "x" + std::to_string(keys));
        expect_pattern(sparse_transformer_strided(q, k, v, options), q, k, v,
                       [&](int64_t h, int64_t i, int64_t j) { return strided_pair(options, h, i, j); });
      }
}

TEST(SparseTransformer, FixedIsTheMaskedSoftmaxForEveryCombination) {
  for (const auto& [queries, keys] : kLengths)
    for (const char* combine : kCombine)
      for (const auto& [stride, summary, spread] :
           {std::tuple<int64_t, int64_t, int64_t>{8, 2, 1}, {8, 2, 4}, {5, 5, 1}, {200, 3, 2}}) {
        const FixedOptions options{stride, summary, spread, combine};
        const Tensor q = random_normal({1, 6, queries, 8}, 1), k = random_normal({1, 2, keys, 8}, 2),
                     v = random_normal({1, 2, keys, 5}, 3);
        SCOPED_TRACE(std::string(combine) + " " + std::to_string(stride) + " " + std::to_string(queries) +
                     "x" + std::to_string(keys));
        expect_pattern(sparse_transformer_fixed(q, k, v, options), q, k, v,
                       [&](int64_t h, int64_t i, int64_t j) { return fixed_pair(options, h, i, j); });
      }
}

TEST(SparseTransformer, PlansAreThePatternBitForBit) {
  for (const auto& [queries, keys] : kLengths)
    for (const char* combine : kCombine) {
      const StridedOptions strided{6, combine};
      const FixedOptions fixed{9, 2, 3, combine};
      const Tensor a = plan_mask(plan_sparse_transformer_strided(3, queries, keys, strided));
      const Tensor b = plan_mask(plan_sparse_transformer_fixed(3, queries, keys, fixed));
      for (int64_t h = 0; h < 3; ++h)
        for (int64_t i = 0; i < queries; ++i)
          for (int64_t j = 0; j < keys; ++j) {
            ASSERT_EQ(a.at<uint8_t>(0, h, i, j), strided_pair(strided, h, i + keys - queries, j));
            ASSERT_EQ(b.at<uint8_t>(0, h, i, j), fixed_pair(fixed, h, i + keys - queries, j));
          }
    }
}

TEST(SparseTransformer, TwoHopsReachEveryEarlierPosition) {
  const int64_t n = 50;
  const Tensor first = plan_mask(plan_sparse_transformer_strided(1, n, n, {7, "first"}));
  const Tensor second = plan_mask(plan_sparse_transformer_strided(1, n, n, {7, "second"}));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      bool reached = false;
      for (int64_t m = j; m <= i; ++m)
        reached = reached || (second.at<uint8_t>(0, 0, i, m) && first.at<uint8_t>(0, 0, m, j));
      EXPECT_TRUE(reached) << i << " to " << j;
    }
}

TEST(SparseTransformer, BackwardIsTheGradientOfTheMaskedSoftmax) {
  const Tensor q = random_normal({1, 4, 41, 8}, 1), k = random_normal({1, 2, 53, 8}, 2),
               v = random_normal({1, 2, 53, 6}, 3);
  const Tensor d_o = random_normal({1, 4, 41, 6}, 4);
  for (const char* combine : kCombine) {
    const StridedOptions strided{6, combine};
    const FixedOptions fixed{8, 2, 2, combine};
    auto check = [&](const kernels::AttentionGradients& got, auto pair) {
      const auto want = reference::attention_backward(
          {.q = q,
           .k = k,
           .v = v,
           .visible = [&](int64_t, int64_t h, int64_t i, int64_t j) { return pair(h, i + 12, j); }},
          d_o);
      EXPECT_LE(reference::relative_error(got.dq, want.dq), 1e-4) << combine;
      EXPECT_LE(reference::relative_error(got.dk, want.dk), 1e-4) << combine;
      EXPECT_LE(reference::relative_error(got.dv, want.dv), 1e-4) << combine;
    };
    check(sparse_transformer_strided_backward(q, k, v, d_o, strided),
          [&](int64_t h, int64_t i, int64_t j) { return strided_pair(strided, h, i, j); });
    check(sparse_transformer_fixed_backward(q, k, v, d_o, fixed),
          [&](int64_t h, int64_t i, int64_t j) { return fixed_pair(fixed, h, i, j); });
  }
}

TEST(SparseTransformer, ThreadsDoNotChangeABit) {
  const Tensor q = random_normal({1, 3, 130, 16}, 1), k = random_normal({1, 1, 130, 16}, 2),
               v = random_normal({1, 1, 130, 16}, 3);
  set_threads(1);
  const Tensor one = sparse_transformer_strided(q, k, v, {11, "union"}).o;
  set_threads(2);
  const Tensor two = sparse_transformer_strided(q, k, v, {11, "union"}).o;
  set_threads(0);
  EXPECT_TRUE(std::equal(one.data<float>(), one.data<float>() + one.size(), two.data<float>()));
}

TEST(SparseTransformer, HalfInputsGiveHalfOutputs) {
  const Tensor q = random_normal({1, 2, 40, 16}, 1), k = random_normal({1, 2, 40, 16}, 2),
               v = random_normal({1, 2, 40, 16}, 3);
  const auto full = sparse_transformer_fixed(q, k, v, {8, 2, 1, "union"});
  const auto half =
      sparse_transformer_fixed(q.to(DType::bf16), k.to(DType::bf16), v.to(DType::bf16), {8, 2, 1, "union"});
  EXPECT_EQ(half.o.dtype(), DType::bf16);
  EXPECT_LE(reference::relative_error(half.o, full.o), 2e-2);
}

TEST(SparseTransformer, RefusesSummariesThatDoNotFitThePeriod) {
  EXPECT_THROW(options::from_pairs<FixedOptions>({{"stride", "8"}, {"summary", "9"}}, "op"), Error);
  EXPECT_THROW(options::from_pairs<FixedOptions>({{"stride", "8"}, {"summary", "3"}, {"spread", "3"}}, "op"),
               Error);
}

TEST(SparseTransformerBlock, PatternsThatSeeEverythingEqualDense) {
  const int64_t e = 16, f = 24;
  auto weight = [](int64_t rows, int64_t columns, uint64_t seed) {
    Tensor w = random_normal({rows, columns}, seed);
    for (int64_t i = 0; i < w.size(); ++i) w.data<float>()[i] *= 0.2f;
    return w;
  };
  const SparseTransformerBlockWeights w{
      random_normal({e}, 1), random_normal({e}, 2),  random_normal({e}, 3), random_normal({e}, 4),
      weight(e, e, 5),       weight(e, e, 6),        weight(e, e, 7),       weight(e, e, 8),
      weight(f, e, 9),       random_normal({f}, 10), weight(e, f, 11),      random_normal({e}, 12)};
  const Tensor x = random_normal({2, 19, e}, 13);
  const Tensor dense = sparse_transformer_block(x, w, {.heads = 4, .pattern = "dense"});
  for (const char* pattern : {"strided", "fixed"}) {
    const Tensor y = sparse_transformer_block(x, w, {.heads = 4, .pattern = pattern, .stride = 32});
    EXPECT_LE(reference::relative_error(y, dense), 1e-5) << pattern;
  }
  EXPECT_GT(reference::relative_error(
                sparse_transformer_block(x, w, {.heads = 4, .stride = 2, .combine = "first"}), dense),
            1e-3);
  EXPECT_THROW(sparse_transformer_block(x, w, {.heads = 3}), Error);
}

}  // namespace
}  // namespace fovea::sparse

// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <set>

#include "tests/cache/kv_cache_support.h"

namespace fovea::cache {
namespace {

using namespace testing;

// Prefill whose attention is not computed: only what is held matters.
void fill(KvCache& cache, const Sequence& s, int64_t first, int64_t count) {
  cache.prefill(s.rows(first, count), s.block(first, count),
                [&](const Tensor& q, const Tensor&, const Tensor& v) {
                  return AttentionResult{Tensor::zeros({1, q.dim(1), q.dim(2), v.dim(3)}),
                                         Tensor::zeros({1, q.dim(1), q.dim(2)})};
                });
}

TEST(KvCacheBytes, QuestAddsOnePagethOfTheCache) {
  CacheShape shape = small_shape();
  shape.dim_v = shape.dim;
  const Sequence s(shape, 4099);
  for (const char* storage : {"f32", "f16", "bf16"}) {
    CacheSpec spec;
    spec.storage.name = storage;
    auto dense = make_cache(spec, shape);
    spec.selection = {"quest", {}};
    auto quest = make_cache(spec, shape);
    fill(*dense, s, 0, 4098);
    fill(*quest, s, 0, 4098);
    const auto kv = static_cast<double>(dense->bytes());
    EXPECT_EQ(dense->bytes(), 4098 * 4 * 2 * 16 * (storage == std::string("f32") ? 4 : 2));
    EXPECT_LE(static_cast<double>(quest->bytes()), kv * (1 + 1.0 / 16) + 0.01 * kv) << storage;

    decode(*dense, s, 4098);
    decode(*quest, s, 4098);
    EXPECT_EQ(dense->bytes_read(), dense->bytes());
    // The bounds of all pages, and at most the budget of 1024 tokens for each of the two query heads of a
    // group.
    EXPECT_LE(static_cast<double>(quest->bytes_read()), kv * (1.0 / 16 + 2 * 1024.0 / 4099) * 1.01)
        << storage;
    EXPECT_GE(static_cast<double>(quest->bytes_read()), kv * (1.0 / 16 + 1008.0 / 4099)) << storage;
  }
}

TEST(KvCacheBytes, TheFirstLayersAreDense) {
  CacheShape shape = small_shape();
  const Sequence s(shape, 200);
  CacheSpec spec;
  spec.selection = kQuest;
  auto upper = make_cache(spec, shape);
  shape.layer = 1;
  auto lower = make_cache(spec, shape);
  fill(*upper, s, 0, 199);
  fill(*lower, s, 0, 199);
  EXPECT_LT(lower->bytes(), upper->bytes());
  decode(*lower, s, 199);
  EXPECT_EQ(lower->bytes_read(), lower->bytes());
}

TEST(KvCacheBytes, TwoBitsAreASixthOfSixteen) {
  CacheShape shape;
  shape.heads_q = 8, shape.heads_kv = 8, shape.dim = 128, shape.dim_v = 128, shape.layer = 2,
  shape.layers = 4;
  shape.rope_frequencies = kernels::rope_frequencies(128, 10000.0);
  const Sequence s(shape, 2048);
  auto dense = make_cache({}, shape);
  CacheSpec spec;
  spec.storage = {"rotatekv", {{"bits", "2"}, {"group_size", "128"}}};
  auto rotated = make_cache(spec, shape);
  fill(*dense, s, 0, 2048);
  fill(*rotated, s, 0, 2048);
  EXPECT_LE(static_cast<double>(rotated->bytes()), 0.17 * static_cast<double>(dense->bytes()));
}

TEST(KvCacheBytes, HalfOfTheHeadsStreaming) {
  CacheShape shape;
  shape.heads_q = 2, shape.heads_kv = 2, shape.dim = 4, shape.dim_v = 4;
  shape.rope_frequencies = kernels::rope_frequencies(4, 10000.0);
  const Sequence s(shape, 1024);
  CacheSpec spec;
  auto dense = make_cache(spec, shape);
  spec.retention = {"streaming", {}};
  spec.streaming = {0, 1};
  auto duo = make_cache(spec, shape);
  for (int64_t n = 0; n < 65536; n += 1024) {
    KvBlock block = s.block(0, 1024);
    block.position = n;
    for (KvCache* cache : {dense.get(), duo.get()})
      cache->prefill(s.rows(0, 1024), block, [&](const Tensor& q, const Tensor&, const Tensor& v) {
        return AttentionResult{Tensor::zeros({1, q.dim(1), q.dim(2), v.dim(3)}),
                               Tensor::zeros({1, q.dim(1), q.dim(2)})};
      });
  }
  EXPECT_LE(static_cast<double>(duo->bytes()), 0.51 * static_cast<double>(dense->bytes()));
  EXPECT_EQ(duo->bytes(), (65536 + 320) * 8 * 2);
}

double token_error(const Tensor& got, const Tensor& want, int64_t token) {
  return reference::relative_error(got.select(2, token), want.unsqueeze(0).select(2, token));
}

TEST(RotateKvStorage, SinksStayInSixteenBits) {
  Sequence s(small_shape(), 61);
  // Two tokens of the first chunk and one of the second have massive activations; one of the third is large
  // only among its own chunk.
  s.hidden.at<float>(0, 3) = 500;
  s.hidden.at<float>(7, 1) = -300;
  s.hidden.at<float>(25, 2) = 400;
  s.hidden.at<float>(45, 2) = 20;
  CacheSpec spec;
  spec.storage = {"rotatekv", {{"bits", "2"}, {"group_size", "16"}, {"n_pivot", "3"}}};
  auto cache = make_cache(spec, s.shape);
  prefill(*cache, s, 0, 20);
  prefill(*cache, s, 20, 20);
  prefill(*cache, s, 40, 10);
  for (int64_t t = 50; t < 60; ++t) decode(*cache, s, t);
  const auto [k, v] = held(*cache, s);
  std::set<int64_t> precise;
  for (int64_t t = 0; t < 60; ++t) {
    if (token_error(k, s.k, t) < 2e-3) precise.insert(t);
    EXPECT_EQ(token_error(k, s.k, t) < 2e-3, token_error(v, s.v, t) < 2e-3) << t;
  }
  EXPECT_TRUE(precise.count(0) && precise.count(7) && precise.count(25));
  EXPECT_FALSE(precise.count(45));
  for (int64_t t = 50; t < 60; ++t) EXPECT_FALSE(precise.count(t)) << "decode tokens are always quantised";
}

TEST(RotateKvStorage, MoreBitsMeanLessError) {
  const Sequence s(small_shape(), 61);
  double last = 1;
  for (const char* bits : {"2", "3", "4", "8"}) {
    CacheSpec spec;
    spec.storage = {"rotatekv", {{"bits", bits}, {"group_size", "16"}, {"n_pivot", "0"}}};
    auto cache = make_cache(spec, s.shape);
    prefill(*cache, s, 0, 60);
    const auto [k, v] = held(*cache, s);
    const double error = reference::relative_error(k, s.k.slice(1, 0, 60).unsqueeze(0));
    EXPECT_LT(error, 0.7 * last) << bits;
    EXPECT_GT(error, 0) << bits;
    last = error;
  }
  EXPECT_LE(last, 0.01);
}

// A spread far below the values would need a zero that f16 cannot hold.
TEST(RotateKvStorage, NearlyConstantRowsAreHeldToSixteenBits) {
  Sequence s(small_shape(), 9);
  Rng random(3);
  for (const Tensor* x : {&s.k_unrotated, &s.v})
    for (int64_t i = 0; i < x->size(); ++i)
      x->data<float>()[i] = (i % x->dim(2) == 0 ? 1000.0f : 0.0f) + 1e-3f * random.next_normal();
  s.shape.rope_frequencies = {};
  s.k = s.k_unrotated;
  CacheSpec spec;
  spec.storage = {"rotatekv", {{"bits", "2"}, {"group_size", "8"}, {"head_group", "1"}, {"n_pivot", "0"}}};
  auto cache = make_cache(spec, s.shape);
  prefill(*cache, s, 0, 8);
  const auto [k, v] = held(*cache, s);
  EXPECT_LE(reference::relative_error(k, s.k.slice(1, 0, 8).unsqueeze(0)), 1e-3);
  EXPECT_LE(reference::relative_error(v, s.v.slice(1, 0, 8).unsqueeze(0)), 1e-3);
}

TEST(RotateKvStorage, ThreeHeadsAreRotatedOneByOne) {
  CacheShape shape = small_shape();
  shape.heads_kv = 3, shape.heads_q = 9;
  const Sequence s(shape, 40);
  CacheSpec spec;
  spec.storage = {"rotatekv", {{"bits", "8"}, {"group_size", "16"}}};
  auto cache = make_cache(spec, shape);
  prefill(*cache, s, 0, 30);
  expect_near(decode(*cache, s, 30), expected(s, 30, 1, [](auto...) { return true; }), 2e-2, "three heads");
}

}  // namespace
}  // namespace fovea::cache

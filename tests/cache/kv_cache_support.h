// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <numeric>

#include "fovea/cache/kv_cache.h"
#include "fovea/core/rng.h"
#include "fovea/core/thread_pool.h"
#include "tests/support/reference.h"

namespace fovea::cache::testing {

using kernels::AttentionResult;

// The steps here are too small to share: waking a second thread would cost more than all of them.
class ComposedCache : public ::testing::Test {
  void SetUp() override { set_threads(1); }
  void TearDown() override { set_threads(0); }
};

inline CacheShape small_shape() {
  CacheShape shape;
  shape.heads_q = 8, shape.heads_kv = 4, shape.dim = 16, shape.dim_v = 8;
  shape.rope_frequencies = kernels::rope_frequencies(16, 100.0);
  shape.layer = 2, shape.layers = 4;
  return shape;
}

// A random sequence whose tokens go into a cache block by block.
struct Sequence {
  CacheShape shape;
  Tensor q, k, k_unrotated, v, hidden;

  Sequence(const CacheShape& model, int64_t tokens, uint64_t seed = 1) : shape(model) {
    auto fill = [&, stream = uint64_t{0}](const Shape& size) mutable {
      return random_normal(size, seed, stream++);
    };
    q = fill({1, shape.heads_q, tokens, shape.dim});
    k_unrotated = fill({shape.heads_kv, tokens, shape.dim});
    v = fill({shape.heads_kv, tokens, shape.dim_v});
    hidden = fill({tokens, 24});
    k = k_unrotated.clone();
    std::vector<int32_t> positions(static_cast<size_t>(tokens));
    std::iota(positions.begin(), positions.end(), 0);
    kernels::apply_rope(k.unsqueeze(0), kernels::rope_table(Tensor::from(positions, {tokens}),
                                                            shape.rope_frequencies, shape.rope_magnitude));
  }

  KvBlock block(int64_t first, int64_t count) const {
    const auto part = [&](const Tensor& x) { return x.slice(1, first, first + count); };
    return {part(k), part(k_unrotated), part(v), hidden.slice(0, first, first + count), first};
  }
  Tensor rows(int64_t first, int64_t count) const { return q.slice(2, first, first + count); }
};

inline AttentionResult exact_causal(const Tensor& q, const Tensor& k, const Tensor& v) {
  return kernels::flash_forward(q, k, v, {.visible = kernels::Visibility::causal()});
}

inline AttentionResult prefill(KvCache& cache, const Sequence& s, int64_t first, int64_t count) {
  return cache.prefill(s.rows(first, count), s.block(first, count), exact_causal);
}

inline AttentionResult decode(KvCache& cache, const Sequence& s, int64_t first, int64_t count = 1) {
  return cache.decode(s.rows(first, count), s.block(first, count));
}

// Rows first .. first+count-1 of the exact result, where kv head h sees key j from row a when visible(h, a,
// j).
template <typename Visible>
AttentionResult expected(const Sequence& s, int64_t first, int64_t count, const Visible& visible) {
  const int64_t group = s.shape.heads_q / s.shape.heads_kv;
  reference::Problem problem;
  problem.q = s.rows(first, count);
  problem.k = s.k.slice(1, 0, first + count).unsqueeze(0);
  problem.v = s.v.slice(1, 0, first + count).unsqueeze(0);
  problem.visible = [&, first, group](int64_t, int64_t h, int64_t i, int64_t j) {
    return j <= first + i && visible(h / group, first + i, j);
  };
  const auto result = reference::attention(problem);
  return {result.o, result.lse};
}

// Exact results by retention and first row: the same for every storage.
using Known = std::map<std::pair<std::string, int64_t>, AttentionResult>;
template <typename Compute>
const AttentionResult& remembered(Known& known, const std::string& retention, int64_t first,
                                  const Compute& compute) {
  auto& result = known[{retention, first}];
  if (!result.o.defined()) result = compute();
  return result;
}

inline void expect_near(const AttentionResult& got, const AttentionResult& want, double tolerance,
                        const std::string& what) {
  EXPECT_LE(reference::relative_error(got.o, want.o), tolerance) << what;
  EXPECT_LE(reference::relative_error(got.lse, want.lse), tolerance) << what;
}

inline bool same_bits(const Tensor& a_any, const Tensor& b_any) {
  const Tensor a = a_any.contiguous(), b = b_any.contiguous();
  return a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())) == 0;
}

inline void expect_same(const AttentionResult& got, const AttentionResult& want, const std::string& what) {
  EXPECT_TRUE(same_bits(got.o, want.o)) << what;
  EXPECT_TRUE(same_bits(got.lse, want.lse)) << what;
}

constexpr int64_t kSink = 5, kRecent = 23;

struct Combination {
  CacheSpec spec;
  std::string name, retention;
  double tolerance;  // of decode against exact attention over the same tokens
  bool streams(int64_t head) const {
    return spec.retention.name == "streaming" &&
           (spec.streaming.empty() || spec.streaming[static_cast<size_t>(head)] != 0);
  }
  bool any_streams() const { return spec.retention.name == "streaming"; }
};

// Every storage under every retention (on all heads, on some) under every selection of `selections`.
inline std::vector<Combination> combinations(const std::vector<PolicySpec>& selections) {
  const std::pair<PolicySpec, double> storages[] = {
      {{"f32", {}}, 1e-5},
      {{"f16", {}}, 3e-3},
      {{"bf16", {}}, 2e-2},
      {{"int8", {}}, 2e-2},
      {{"rotatekv", {{"bits", "8"}, {"group_size", "16"}}}, 2e-2}};
  const PolicySpec streaming{"streaming",
                             {{"sink", options::print(kSink)}, {"recent", options::print(kRecent)}}};
  const std::tuple<PolicySpec, std::vector<uint8_t>, const char*> retentions[] = {
      {{}, {}, "all"}, {streaming, {}, "streaming"}, {streaming, {1, 0, 0, 1}, "some heads streaming"}};
  std::vector<Combination> result;
  for (const auto& [storage, tolerance] : storages)
    for (const auto& [retention, heads, retention_name] : retentions)
      for (const auto& selection : selections)
        result.push_back(
            {{storage, retention, selection, heads},
             storage.name + ", " + retention_name + ", " + (selection.name.empty() ? "all" : selection.name),
             retention_name,
             tolerance});
  return result;
}

inline const PolicySpec kEverything{};
inline const PolicySpec kQuestOfEverything{"quest", {{"page_size", "4"}, {"token_budget", "100000"}}};
inline const PolicySpec kQuest{"quest", {{"page_size", "4"}, {"token_budget", "16"}}};

// What a cache whose heads keep everything holds, as the next prompt chunk would see it.
inline std::pair<Tensor, Tensor> held(const KvCache& cache, const Sequence& s) {
  auto copy = cache.fork();
  std::pair<Tensor, Tensor> result;
  const int64_t n = cache.length();
  copy->prefill(s.rows(n, 1), s.block(n, 1), [&](const Tensor& q, const Tensor& k, const Tensor& v) {
    result = {k.slice(2, 0, n).clone(), v.slice(2, 0, n).clone()};
    return exact_causal(q, k, v);
  });
  return result;
}

}  // namespace fovea::cache::testing

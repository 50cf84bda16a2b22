// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <set>
#include <sstream>

#include "fovea/core/error.h"
#include "fovea/core/rng.h"
#include "fovea/core/thread_pool.h"
#include "tests/support/reference.h"

namespace fovea::cache {
namespace {

using kernels::AttentionResult;

// The steps here are too small to share: waking a second thread would cost more than all of them.
class ComposedCache : public ::testing::Test {
  void SetUp() override { set_threads(1); }
  void TearDown() override { set_threads(0); }
};

CacheShape small_shape() {
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

AttentionResult exact_causal(const Tensor& q, const Tensor& k, const Tensor& v) {
  return kernels::flash_forward(q, k, v, {.visible = kernels::Visibility::causal()});
}

AttentionResult prefill(KvCache& cache, const Sequence& s, int64_t first, int64_t count) {
  return cache.prefill(s.rows(first, count), s.block(first, count), exact_causal);
}

AttentionResult decode(KvCache& cache, const Sequence& s, int64_t first, int64_t count = 1) {
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

void expect_near(const AttentionResult& got, const AttentionResult& want, double tolerance,
                 const std::string& what) {
  EXPECT_LE(reference::relative_error(got.o, want.o), tolerance) << what;
  EXPECT_LE(reference::relative_error(got.lse, want.lse), tolerance) << what;
}

bool same_bits(const Tensor& a_any, const Tensor& b_any) {
  const Tensor a = a_any.contiguous(), b = b_any.contiguous();
  return a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())) == 0;
}

void expect_same(const AttentionResult& got, const AttentionResult& want, const std::string& what) {
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
std::vector<Combination> combinations(const std::vector<PolicySpec>& selections) {
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

const PolicySpec kEverything{};
const PolicySpec kQuestOfEverything{"quest", {{"page_size", "4"}, {"token_budget", "100000"}}};
const PolicySpec kQuest{"quest", {{"page_size", "4"}, {"token_budget", "16"}}};

TEST_F(ComposedCache, DecodeEqualsAttentionOverTheKeptTokens) {
  const Sequence s(small_shape(), 131);
  Known known;
  for (const auto& c : combinations({kEverything, kQuestOfEverything})) {
    auto cache = make_cache(c.spec, s.shape);
    prefill(*cache, s, 0, 41);
    prefill(*cache, s, 41, 30);
    for (int64_t t = 71; t < 131; ++t) {
      const auto got = decode(*cache, s, t);
      const auto& want = remembered(known, c.retention, t, [&] {
        return expected(s, t, 1, [&](int64_t h, int64_t a, int64_t j) {
          return !c.streams(h) || j < kSink || a - j < kRecent;
        });
      });
      expect_near(got, want, c.tolerance, c.name + " at " + std::to_string(t));
    }
    EXPECT_EQ(cache->length(), 131);
  }
}

TEST_F(ComposedCache, DecodeFromNothingNeedsNoPrompt) {
  const Sequence s(small_shape(), 40);
  Known known;
  for (const auto& c : combinations({kEverything, kQuest})) {
    auto cache = make_cache(c.spec, s.shape);
    for (int64_t t = 0; t < 12; ++t) {
      const auto& want =
          remembered(known, "all", t, [&] { return expected(s, t, 1, [](auto...) { return true; }); });
      expect_near(decode(*cache, s, t), want, c.tolerance, c.name);
    }
  }
}

TEST_F(ComposedCache, PrefillSeesWhatIsHeldAndTheChunkItself) {
  const Sequence s(small_shape(), 131);
  Known known;
  for (const auto& c : combinations({kEverything, kQuest})) {
    auto cache = make_cache(c.spec, s.shape);
    const int64_t begins[] = {0, 41, 42, 100, 131};
    for (int i = 0; i < 4; ++i) {
      const int64_t start = begins[i], count = begins[i + 1] - start;
      const auto got = prefill(*cache, s, start, count);
      const auto& want = remembered(known, c.retention, start, [&] {
        return expected(s, start, count, [&](int64_t h, int64_t, int64_t j) {
          return !c.streams(h) || j < kSink || j >= start - kRecent;
        });
      });
      expect_near(got, want, i == 0 ? 1e-5 : c.tolerance, c.name + " chunk " + std::to_string(i));
    }
  }
}

TEST_F(ComposedCache, TheFirstChunkIsNotCopied) {
  const Sequence s(small_shape(), 20);
  auto cache = make_cache({}, s.shape);
  const KvBlock block = s.block(0, 20);
  cache->prefill(s.rows(0, 20), block, [&](const Tensor& q, const Tensor& k, const Tensor& v) {
    EXPECT_EQ(k.raw(), block.k.raw());
    EXPECT_EQ(v.raw(), block.v.raw());
    return exact_causal(q, k, v);
  });
}

TEST_F(ComposedCache, SeveralRowsAtOnceEqualOneByOne) {
  const Sequence s(small_shape(), 120);
  for (const auto& c : combinations({kEverything, kQuest})) {
    auto at_once = make_cache(c.spec, s.shape);
    prefill(*at_once, s, 0, 33);
    auto one_by_one = at_once->fork();
    for (int64_t t = 33; t + 7 <= 120; t += 7) {
      const auto got = decode(*at_once, s, t, 7);
      for (int64_t i = 0; i < 7; ++i) {
        const auto want = decode(*one_by_one, s, t + i);
        const AttentionResult row{got.o.slice(2, i, i + 1), got.lse.slice(2, i, i + 1)};
        expect_near(row, want,
                    c.spec.storage.name == "bf16"  ? 8e-3
                    : c.spec.storage.name == "f16" ? 1e-3
                                                   : 1e-5,
                    c.name + " at " + std::to_string(t + i));
      }
    }
    EXPECT_EQ(at_once->bytes(), one_by_one->bytes()) << c.name;
  }
}

TEST_F(ComposedCache, NoRowsChangeNothing) {
  const Sequence s(small_shape(), 20);
  for (const auto& c : combinations({kEverything, kQuest})) {
    auto cache = make_cache(c.spec, s.shape);
    prefill(*cache, s, 0, 10);
    auto control = cache->fork();
    EXPECT_EQ(decode(*cache, s, 10, 0).o.size(), 0) << c.name;
    EXPECT_EQ(prefill(*cache, s, 10, 0).o.size(), 0) << c.name;
    expect_same(decode(*cache, s, 10), decode(*control, s, 10), c.name);
  }
}

// What a cache whose heads keep everything holds, as the next prompt chunk would see it.
std::pair<Tensor, Tensor> held(const KvCache& cache, const Sequence& s) {
  auto copy = cache.fork();
  std::pair<Tensor, Tensor> result;
  const int64_t n = cache.length();
  copy->prefill(s.rows(n, 1), s.block(n, 1), [&](const Tensor& q, const Tensor& k, const Tensor& v) {
    result = {k.slice(2, 0, n).clone(), v.slice(2, 0, n).clone()};
    return exact_causal(q, k, v);
  });
  return result;
}

// Quest's definition over the keys k [1,Hkv,n,D] for one row q [1,Hq,1,D].
std::vector<std::set<int64_t>> best_pages(const Tensor& q, const Tensor& k, int64_t page_size,
                                          int64_t count) {
  const int64_t n = k.dim(2), pages = (n + page_size - 1) / page_size, group = q.dim(1) / k.dim(1);
  std::vector<std::set<int64_t>> result;
  for (int64_t h = 0; h < q.dim(1); ++h) {
    std::vector<std::pair<double, int64_t>> scores;
    for (int64_t p = 0; p + 1 < pages; ++p) {
      double u = 0;
      for (int64_t d = 0; d < q.dim(3); ++d) {
        double best = -1e30;
        for (int64_t j = p * page_size; j < std::min(n, (p + 1) * page_size); ++j)
          best = std::max(best, static_cast<double>(q.at<float>(0, h, 0, d)) *
                                    static_cast<double>(k.at<float>(0, h / group, j, d)));
        u += best;
      }
      scores.emplace_back(-u, p);
    }
    std::sort(scores.begin(), scores.end());
    std::set<int64_t> chosen = {pages - 1};
    for (int64_t r = 0; r + 1 < count && r < static_cast<int64_t>(scores.size()); ++r)
      chosen.insert(scores[static_cast<size_t>(r)].second);
    result.push_back(std::move(chosen));
  }
  return result;
}

TEST_F(ComposedCache, QuestReadsTheBestPagesOfWhatIsHeld) {
  const Sequence s(small_shape(), 132);
  for (const auto& c : combinations({kQuest})) {
    if (c.any_streams()) continue;
    auto cache = make_cache(c.spec, s.shape);
    prefill(*cache, s, 0, 71);
    for (int64_t t = 71; t < 131; ++t) {
      const auto got = decode(*cache, s, t);
      if (t % 7 != 0 && t < 128) continue;
      const auto [k, v] = held(*cache, s);
      const auto pages = best_pages(s.rows(t, 1), k, 4, 4);
      reference::Problem problem{.q = s.rows(t, 1), .k = k, .v = v};
      problem.visible = [&](int64_t, int64_t h, int64_t, int64_t j) {
        return pages[static_cast<size_t>(h)].count(j / 4) > 0;
      };
      const auto want = reference::attention(problem);
      const double tolerance = c.spec.storage.name == "bf16"  ? 1e-2
                               : c.spec.storage.name == "f16" ? 1e-3
                                                              : 1e-5;
      expect_near(got, {want.o, want.lse}, tolerance, c.name + " at " + std::to_string(t));
    }
  }
}

TEST_F(ComposedCache, QuestInARingReadsTheNewestPageAndTheBestOthers) {
  const Sequence s(small_shape(), 90);
  CacheSpec spec;
  spec.storage.name = "f32";
  spec.retention = {"streaming", {{"sink", "4"}, {"recent", "20"}}};
  spec.selection = {"quest", {{"page_size", "4"}, {"token_budget", "8"}, {"min_pages", "1"}}};
  auto cache = make_cache(spec, s.shape);
  prefill(*cache, s, 0, 50);
  for (int64_t t = 50; t < 90; ++t) {
    const auto got = decode(*cache, s, t);
    // Pages of slots: the newest token's page stands last for `best_pages`.
    std::vector<int64_t> token_of(24);
    for (int64_t j = 0; j <= t; ++j) token_of[static_cast<size_t>(j < 4 ? j : 4 + (j - 4) % 20)] = j;
    const int64_t newest = (4 + (t - 4) % 20) / 4;
    std::vector<int64_t> order;
    for (int64_t p = 0; p < 6; ++p)
      if (p != newest) order.push_back(p);
    order.push_back(newest);
    Tensor k = Tensor::empty({1, 4, 24, 16}), v = Tensor::empty({1, 4, 24, 8});
    for (int64_t i = 0; i < 24; ++i) {
      const int64_t j = token_of[static_cast<size_t>(order[static_cast<size_t>(i / 4)] * 4 + i % 4)];
      k.select(2, i).copy_from(s.k.unsqueeze(0).select(2, j));
      v.select(2, i).copy_from(s.v.unsqueeze(0).select(2, j));
    }
    const auto pages = best_pages(s.rows(t, 1), k, 4, 2);
    reference::Problem problem{.q = s.rows(t, 1), .k = k, .v = v};
    problem.visible = [&](int64_t, int64_t h, int64_t, int64_t i) {
      return pages[static_cast<size_t>(h)].count(i / 4) > 0;
    };
    const auto want = reference::attention(problem);
    expect_near(got, {want.o, want.lse}, 1e-5, "at " + std::to_string(t));
  }
}

TEST_F(ComposedCache, RingEqualsTheStreamingMaskRowByRow) {
  const Sequence s(small_shape(), 60);
  for (auto [sink, recent] :
       {std::pair<int64_t, int64_t>{0, 1}, {0, 7}, {3, 1}, {9, 4}, {100, 3}, {2, 100}}) {
    CacheSpec spec;
    spec.storage.name = "f32";
    spec.retention = {"streaming", {{"sink", options::print(sink)}, {"recent", options::print(recent)}}};
    auto cache = make_cache(spec, s.shape);
    for (int64_t t = 0; t < 60; ++t) {
      const auto want = expected(s, t, 1, [&, sink = sink, recent = recent](int64_t, int64_t a, int64_t j) {
        return j < sink || a - j < recent;
      });
      expect_near(decode(*cache, s, t), want, 1e-5, std::to_string(sink) + "+" + std::to_string(recent));
    }
  }
}

TEST_F(ComposedCache, AForkContinuesOnItsOwn) {
  const Sequence s(small_shape(), 90), other(small_shape(), 90, 2);
  for (const auto& c : combinations({kEverything, kQuest})) {
    auto cache = make_cache(c.spec, s.shape), control = make_cache(c.spec, s.shape);
    prefill(*cache, s, 0, 50);
    prefill(*control, s, 0, 50);
    auto fork = cache->fork();
    for (int64_t t = 50; t < 80; ++t) decode(*fork, other, t);
    EXPECT_EQ(cache->length(), 50);
    for (int64_t t = 50; t < 60; ++t) expect_same(decode(*cache, s, t), decode(*control, s, t), c.name);
  }
}

TEST_F(ComposedCache, TruncateForgets) {
  const Sequence s(small_shape(), 90), other(small_shape(), 90, 2);
  for (const auto& c : combinations({kEverything, kQuest})) {
    const int64_t kept = c.any_streams() ? 17 : 50;  // the ring has not turned yet at 17 + 9
    auto cache = make_cache(c.spec, s.shape);
    prefill(*cache, s, 0, kept);
    auto control = cache->fork();
    for (int64_t t = kept; t < kept + 9; ++t) decode(*cache, other, t);
    cache->truncate(kept);
    EXPECT_EQ(cache->bytes(), control->bytes()) << c.name;
    for (int64_t t = kept; t < kept + 20; ++t)
      expect_same(decode(*cache, s, t), decode(*control, s, t), c.name);

    cache->truncate(0);
    EXPECT_EQ(cache->bytes(), 0) << c.name;
    auto fresh = make_cache(c.spec, s.shape);
    expect_same(prefill(*cache, other, 0, 40), prefill(*fresh, other, 0, 40), c.name);
    expect_same(decode(*cache, other, 40), decode(*fresh, other, 40), c.name);
    EXPECT_THROW(cache->truncate(42), Error);
    EXPECT_THROW(cache->truncate(-1), Error);
  }
}

TEST_F(ComposedCache, TruncateRefusesWhereTheRingHasDroppedTokens) {
  const Sequence s(small_shape(), 90);
  for (const auto& c : combinations({kEverything})) {
    if (!c.any_streams()) continue;
    auto cache = make_cache(c.spec, s.shape);
    prefill(*cache, s, 0, 60);
    auto control = cache->fork();
    EXPECT_THROW(cache->truncate(59), Error) << c.name;
    EXPECT_THROW(cache->truncate(kSink + 1), Error) << c.name;
    cache->truncate(60);
    expect_same(decode(*cache, s, 60), decode(*control, s, 60), c.name);
    cache->truncate(kSink);  // only sinks remain, and all of them are held
    expect_near(decode(*cache, s, kSink), expected(s, kSink, 1, [](auto...) { return true; }), c.tolerance,
                c.name);
  }
}

std::string saved(const KvCache& cache) {
  std::ostringstream out;
  cache.save(out);
  return out.str();
}

void load(KvCache& cache, const std::string& bytes) {
  std::istringstream in(bytes);
  cache.load(in);
}

TEST_F(ComposedCache, SaveAndLoadContinueBitForBit) {
  const Sequence s(small_shape(), 90);
  for (const auto& c : combinations({kEverything, kQuest})) {
    auto cache = make_cache(c.spec, s.shape), loaded = make_cache(c.spec, s.shape);
    prefill(*cache, s, 0, 50);
    for (int64_t t = 50; t < 55; ++t) decode(*cache, s, t);
    prefill(*loaded, s, 0, 9);  // replaced by what is loaded
    const std::string bytes = saved(*cache);
    load(*loaded, bytes);
    EXPECT_EQ(loaded->length(), 55);
    EXPECT_EQ(loaded->bytes(), cache->bytes()) << c.name;
    EXPECT_EQ(saved(*loaded), bytes) << c.name;
    expect_same(prefill(*loaded, s, 55, 10), prefill(*cache, s, 55, 10), c.name);
    for (int64_t t = 65; t < 90; ++t) expect_same(decode(*loaded, s, t), decode(*cache, s, t), c.name);

    auto empty = make_cache(c.spec, s.shape);
    load(*loaded, saved(*empty));
    EXPECT_EQ(loaded->length(), 0);
  }
}

TEST_F(ComposedCache, DamagedFilesAreRefusedAndLeaveTheCacheAsItWas) {
  const Sequence s(small_shape(), 40);
  for (const auto& c : combinations({kQuest})) {
    auto cache = make_cache(c.spec, s.shape), victim = make_cache(c.spec, s.shape);
    prefill(*cache, s, 0, 30);
    prefill(*victim, s, 0, 7);
    const std::string bytes = saved(*cache), before = saved(*victim);
    const size_t step = std::max<size_t>(1, bytes.size() / 60);
    for (size_t cut = 0; cut < bytes.size(); cut += step) {
      EXPECT_THROW(load(*victim, bytes.substr(0, cut)), Error) << c.name << " cut at " << cut;
      std::string damaged = bytes;
      damaged[cut] = static_cast<char>(damaged[cut] ^ 0x41);
      EXPECT_THROW(load(*victim, damaged), Error) << c.name << " damaged at " << cut;
    }
    EXPECT_THROW(load(*victim, bytes.substr(0, bytes.size() - 1)), Error);
    EXPECT_EQ(saved(*victim), before) << c.name;
  }
}

TEST_F(ComposedCache, ASavedCacheOfAnotherKindIsRefused) {
  const Sequence s(small_shape(), 10);
  auto cache =
      make_cache({.storage = {"f16", {}}, .retention = {}, .selection = {}, .streaming = {}}, s.shape);
  prefill(*cache, s, 0, 10);
  auto other =
      make_cache({.storage = {"int8", {}}, .retention = {}, .selection = {}, .streaming = {}}, s.shape);
  try {
    load(*other, saved(*cache));
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("of another kind: f16 all all"), std::string::npos)
        << error.what();
  }
  auto by_default = make_cache({}, s.shape);  // names and defaults spelled out or not
  load(*by_default, saved(*cache));
  CacheShape layer = s.shape;
  layer.layer = 3;
  EXPECT_THROW(load(*make_cache({}, layer), saved(*cache)), Error);
}

TEST_F(ComposedCache, ResultsDoNotDependOnTheNumberOfThreads) {
  const Sequence s(small_shape(), 90);
  for (const auto& c : combinations({kEverything, kQuest})) {
    std::vector<AttentionResult> results[2];
    for (int run = 0; run < 2; ++run) {
      set_threads(1 + run);
      auto cache = make_cache(c.spec, s.shape);
      results[run].push_back(prefill(*cache, s, 0, 50));
      results[run].push_back(prefill(*cache, s, 50, 20));
      results[run].push_back(decode(*cache, s, 70, 1));
      results[run].push_back(decode(*cache, s, 71, 4));
    }
    for (size_t i = 0; i < results[0].size(); ++i) expect_same(results[0][i], results[1][i], c.name);
  }
  set_threads(1);
}

// ---- bytes

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

// ---- RotateKV

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

// ---- refusals

template <typename Body>
void expect_error(const Body& body, const std::string& says) {
  try {
    body();
    ADD_FAILURE() << "accepted; expected: " << says;
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(says), std::string::npos) << error.what();
  }
}

TEST(MakeCache, RefusesWhatDoesNotFit) {
  const CacheShape shape = small_shape();
  const auto storage = [&](PolicySpec spec) {
    return [=] { make_cache({.storage = spec, .retention = {}, .selection = {}, .streaming = {}}, shape); };
  };
  expect_error(storage({"rotatekw", {}}), "no storage is called 'rotatekw'; did you mean 'rotatekv'?");
  expect_error(storage({"quest", {}}), "no storage is called 'quest'");
  expect_error(storage({"f16", {{"bits", "2"}}}), "f16: unknown option 'bits'");
  expect_error(storage({"rotatekv", {{"bits", "5"}}}), "not one of 2, 3, 4, 8");
  expect_error(storage({"rotatekv", {{"head_group", "3"}}}), "head_group = 3 does not divide the 4 kv heads");
  expect_error(storage({"rotatekv", {{"group_size", "5"}}}), "group_size");
  CacheSpec spec;
  spec.retention.name = "steaming";
  expect_error([&] { make_cache(spec, shape); }, "did you mean 'streaming'?");
  spec.retention = {"streaming", {{"recent", "0"}}};
  expect_error([&] { make_cache(spec, shape); }, "outside its range");
  spec.retention.options.clear();
  spec.streaming = {1, 0};
  expect_error([&] { make_cache(spec, shape); }, "streaming has 2 flags for 4 kv heads");
  spec = {};
  spec.selection.name = "qest";
  expect_error([&] { make_cache(spec, shape); }, "did you mean 'quest'?");
  CacheShape bad = shape;
  bad.heads_q = 6;
  expect_error([&] { make_cache({}, bad); }, "6 query heads cannot share 4 kv heads");
  bad = shape;
  bad.dim = 0;
  expect_error([&] { make_cache({}, bad); }, "head dimensions");
}

TEST_F(ComposedCache, RefusesBlocksThatDoNotContinueIt) {
  const Sequence s(small_shape(), 20);
  CacheSpec spec;
  spec.storage.name = "rotatekv";
  auto cache = make_cache(spec, s.shape);
  expect_error([&] { decode(*cache, s, 3); }, "a block at position 3 does not continue 0 tokens");
  KvBlock block = s.block(0, 4);
  block.k_unrotated = {};
  expect_error([&] { cache->decode(s.rows(0, 4), block); }, "k_unrotated should be f32[4,4,16], got nothing");
  block = s.block(0, 4);
  expect_error([&] { cache->decode(s.rows(0, 3), block); }, "k should be f32[4,3,16], got f32[4,4,16]");
  block.v = block.v.to(DType::f16);
  expect_error([&] { cache->decode(s.rows(0, 4), block); }, "v should be f32[4,4,8], got f16[4,4,8]");
  EXPECT_EQ(cache->length(), 0);
}

}  // namespace
}  // namespace fovea::cache

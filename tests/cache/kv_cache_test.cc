// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "tests/cache/kv_cache_support.h"

namespace fovea::cache {
namespace {

using namespace testing;

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

}  // namespace
}  // namespace fovea::cache

// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <set>

#include "fovea/core/rng.h"
#include "fovea/core/thread_pool.h"

namespace fovea {
namespace {

TEST(ThreadPool, RunsEveryTaskOnceOnAnyNumberOfThreads) {
  for (int count : {1, 2, 5}) {
    ThreadPool pool(count);
    for (int64_t tasks : {0, 1, 2, 3, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(tasks));
      pool.run(tasks, [&](int64_t task, int worker) {
        EXPECT_LT(worker, count);
        seen[static_cast<size_t>(task)]++;
      });
      for (auto& n : seen) EXPECT_EQ(n, 1);
    }
  }
}

TEST(ThreadPool, ManyShortRegionsInARow) {
  ThreadPool pool(3);
  std::atomic<int64_t> sum{0};
  for (int round = 0; round < 3000; ++round) pool.run(4, [&](int64_t task, int) { sum += task; });
  EXPECT_EQ(sum, 3000 * 6);
}

TEST(ThreadPool, ThrowsWhatATaskThrewAndStaysUsable) {
  ThreadPool pool(2);
  EXPECT_THROW(pool.run(100, [](int64_t task, int) { require(task != 57, "task ", task); }), Error);
  std::atomic<int> done{0};
  pool.run(10, [&](int64_t, int) { ++done; });
  EXPECT_EQ(done, 10);
}

TEST(ThreadPool, NestedRegionsRunInPlace) {
  set_threads(2);
  std::atomic<int> done{0};
  parallel_for(4, [&](int64_t, int) { parallel_for(5, [&](int64_t, int) { ++done; }); });
  EXPECT_EQ(done, 20);
  set_threads(0);
}

TEST(ThreadPool, RefusesImpossibleCounts) {
  EXPECT_THROW(ThreadPool(0), Error);
  EXPECT_THROW(set_threads(-1), Error);
}

// Known-answer vectors of Philox 4x32-10 (Salmon et al. 2011).
TEST(Rng, MatchesThePublishedVectors) {
  EXPECT_EQ(Rng(0).block(0), (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Rng(~uint64_t{0}, ~uint64_t{0}).block(~uint64_t{0}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Rng, ElementsDependOnSeedStreamAndIndexAlone) {
  Rng walk(7, 3);
  for (uint64_t i = 0; i < 20; ++i) EXPECT_EQ(walk.next_uniform(), Rng(7, 3).uniform(i));
  EXPECT_NE(Rng(7, 3).uniform(0), Rng(7, 4).uniform(0));
  EXPECT_NE(Rng(7, 3).uniform(0), Rng(8, 3).uniform(0));
}

TEST(Rng, HasTheMomentsOfItsDistributions) {
  const Tensor normal = random_normal({200000}, 11), uniform = random_uniform({200000}, 11);
  double mean = 0, square = 0, flat = 0;
  for (int64_t i = 0; i < normal.size(); ++i) {
    const double x = normal.data<float>()[i];
    ASSERT_TRUE(std::isfinite(x));
    mean += x / 200000;
    square += x * x / 200000;
    flat += static_cast<double>(uniform.data<float>()[i]) / 200000;
  }
  EXPECT_NEAR(mean, 0, 0.01);
  EXPECT_NEAR(square, 1, 0.015);
  EXPECT_NEAR(flat, 0.5, 0.003);
}

TEST(Rng, BelowStaysBelowAndReachesEverything) {
  Rng rng(5);
  std::set<int64_t> seen;
  for (int i = 0; i < 500; ++i) seen.insert(rng.next_below(7));
  EXPECT_EQ(seen, (std::set<int64_t>{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_THROW(rng.next_below(0), Error);
}

}  // namespace
}  // namespace fovea

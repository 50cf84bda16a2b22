// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <sstream>

#include "fovea/core/error.h"
#include "tests/cache/kv_cache_support.h"

namespace fovea::cache {
namespace {

using namespace testing;

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

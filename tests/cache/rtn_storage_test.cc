// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "fovea/cache/storage.h"
#include "fovea/core/rng.h"
#include "fovea/core/thread_pool.h"
#include "tests/cache/kv_cache_support.h"
#include "tests/support/attention_problem.h"

namespace fovea::cache {
namespace {

struct Held {
  std::unique_ptr<Storage> storage;
  Tensor k, v;            // as written [H,T,D]
  Tensor read_k, read_v;  // as held
};

Held hold(const PolicySpec& spec, int64_t heads, int64_t tokens, int64_t dim, int64_t dim_v) {
  CacheShape shape;
  shape.heads_q = shape.heads_kv = heads, shape.dim = dim, shape.dim_v = dim_v;
  Held held{make_storage(spec, heads, shape), random_normal({heads, tokens, dim}, 3, 0),
            random_normal({heads, tokens, dim_v}, 3, 1), Tensor::empty({heads, tokens, dim}),
            Tensor::empty({heads, tokens, dim_v})};
  held.storage->write({.k = held.k, .v = held.v}, 0, tokens, 0);
  held.storage->read(0, tokens, held.read_k, held.read_v);
  return held;
}

const std::vector<PolicySpec> kCoded = {{"int8", {}},
                                        {"rtn", {{"bits", "8"}, {"group_size", "20"}}},
                                        {"rtn", {{"bits", "4"}, {"group", "1000"}}},
                                        {"rtn", {{"bits", "2"}, {"group_size", "10"}}}};

TEST(RtnStorage, AttendsExactlyToWhatItHolds) {
  for (const PolicySpec& spec : kCoded)
    for (int64_t tokens : {1, 63, 700}) {
      SCOPED_TRACE(spec.name + " of " + std::to_string(tokens));
      const Held held = hold(spec, 2, tokens, 100, 20);
      const Tensor q = random_normal({1, 6, 1, 100}, 9);
      const auto got = held.storage->attend(q, {}, 0);
      const auto want =
          kernels::decode(q, kernels::PagedKv::of(held.read_k.unsqueeze(0), held.read_v.unsqueeze(0), 64));
      EXPECT_LE(reference::relative_error(got.o, want.o), 1e-6);
      EXPECT_LE(reference::relative_error(got.lse, want.lse), 1e-6);
      EXPECT_EQ(held.storage->bytes_read(), held.storage->bytes());
    }
}

// Codes are attended to as they are where the processor can: queries and weights are then rounded to 16 bits.
constexpr double kOfIntegerDots = 3e-4;

TEST(RtnStorage, AttendsToItsCodesOnEveryTarget) {
  const std::vector<PolicySpec> forms = {{"int8", {}},
                                         {"rtn", {{"bits", "8"}, {"group", "32"}}},
                                         {"rtn", {{"bits", "4"}, {"group", "32"}}},
                                         {"rtn", {{"bits", "4"}, {"group", "64"}}},
                                         {"rtn", {{"bits", "2"}, {"group", "32"}}},
                                         {"rtn", {{"bits", "2"}, {"group", "64"}}}};
  for (const PolicySpec& spec : forms)
    for (const auto& [dim, dim_v] : {std::pair<int64_t, int64_t>{64, 64}, {128, 128}, {64, 128}, {256, 32}})
      for (int64_t tokens : {1, 63, 65, 100, 1257}) {
        const Held held = hold(spec, 2, tokens, dim, dim_v);
        const Tensor q = random_normal({1, 2 * (1 + tokens % 7), 1, dim}, 9);
        const auto want =
            kernels::decode(q, kernels::PagedKv::of(held.read_k.unsqueeze(0), held.read_v.unsqueeze(0), 64));
        reference::for_each_simd_target([&](const std::string& target) {
          SCOPED_TRACE(target + " " + spec.name + (spec.options.empty() ? "" : spec.options[0].second) +
                       " of " + std::to_string(tokens) + " x " + std::to_string(dim));
          const auto got = held.storage->attend(q, {}, 0);
          EXPECT_LE(reference::relative_error(got.o, want.o), kOfIntegerDots);
          EXPECT_LE(reference::relative_error(got.lse, want.lse), kOfIntegerDots);
        });
      }
}

TEST(RtnStorage, ANanInAQueryReachesItsRowAndNoOther) {
  const Held held = hold({"int8", {}}, 2, 200, 64, 64);
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const Tensor q = random_normal({1, 6, 1, 64}, 9);
    q.at<float>(0, 4, 0, 7) = bad;
    const Tensor o = held.storage->attend(q, {}, 0).o;
    for (int64_t h = 0; h < 6; ++h) EXPECT_EQ(std::isnan(o.at<float>(0, h, 0, 3)), h == 4) << h;
  }
}

TEST(RtnStorage, ReadsOnlyTheSelectedPages) {
  const Held held = hold({"rtn", {}}, 2, 300, 64, 64);
  const Tensor q = random_normal({1, 4, 1, 64}, 9);
  const Tensor pages = Tensor::from(std::vector<int32_t>{0, 3, 0, 18, 5, -1, 5, -1}, {1, 4, 1, 2});
  const auto want =
      kernels::decode(q, kernels::PagedKv::of(held.read_k.unsqueeze(0), held.read_v.unsqueeze(0), 16), pages);
  EXPECT_LE(reference::relative_error(held.storage->attend(q, pages, 16).o, want.o), kOfIntegerDots);
  // Head 0 reads pages 0, 3 and the 12 tokens of page 18; head 1 reads page 5.
  EXPECT_EQ(held.storage->bytes_read(), (16 + 16 + 12 + 16) * held.storage->bytes() / 2 / 300);
}

TEST(RtnStorage, ErrorsAreWithinHalfAStepOfEachGroup) {
  for (int bits : {2, 4, 8}) {
    const Held held = hold({"rtn", {{"bits", std::to_string(bits)}, {"group_size", "16"}}}, 1, 50, 32, 16);
    for (int64_t t = 0; t < 50; ++t)
      for (int64_t g = 0; g < 2; ++g) {
        const float* x = &held.k.at<float>(0, t, 16 * g);
        const float* y = &held.read_k.at<float>(0, t, 16 * g);
        const auto [low, high] = std::minmax_element(x, x + 16);
        const float step = (*high - *low) / static_cast<float>((1 << bits) - 1);
        // The zero is a whole number of steps, so an end of the range may be cut by another half step; scales
        // are f16.
        for (int c = 0; c < 16; ++c) EXPECT_LE(std::fabs(x[c] - y[c]), 1.01f * step + 2e-3f) << bits;
      }
  }
}

TEST(RtnStorage, BytesFollowTheBits) {
  const int64_t tokens = 10, channels = 2 * (64 + 64);
  EXPECT_EQ(hold({"int8", {}}, 2, tokens, 64, 64).storage->bytes(), tokens * (channels + 4 * 8));
  for (int bits : {2, 4, 8})
    EXPECT_EQ(
        hold({"rtn", {{"bits", std::to_string(bits)}, {"group", "32"}}}, 2, tokens, 64, 64).storage->bytes(),
        tokens * (channels * bits / 8 + channels / 32 * 4));
}

TEST(RtnStorage, ThreadsDoNotChangeABit) {
  const Tensor q = random_normal({1, 6, 1, 64}, 9);
  for (const char* bits : {"2", "4", "8"}) {
    const Held held = hold({"rtn", {{"bits", bits}}}, 3, 2000, 64, 64);
    set_threads(1);
    const auto one = held.storage->attend(q, {}, 0);
    set_threads(2);
    const auto two = held.storage->attend(q, {}, 0);
    set_threads(0);
    EXPECT_EQ(std::memcmp(one.o.raw(), two.o.raw(), static_cast<size_t>(one.o.bytes())), 0);
  }
}

TEST(RtnStorage, RefusesGroupsThatDoNotDivideAHead) {
  try {
    hold({"rtn", {{"group_size", "24"}}}, 1, 1, 64, 64);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("group_size = 24 does not divide the 64"), std::string::npos)
        << error.what();
  }
  EXPECT_THROW(hold({"rtn", {{"bits", "3"}}}, 1, 1, 64, 64), Error);
}

}  // namespace
}  // namespace fovea::cache

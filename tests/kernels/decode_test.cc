// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "fovea/core/memory.h"
#include "fovea/core/rng.h"
#include "fovea/core/thread_pool.h"
#include "fovea/kernels/attention.h"
#include "tests/support/attention_problem.h"

namespace fovea {
namespace {

using kernels::AttentionParams;
using kernels::AttentionResult;
using kernels::PagedKv;
using reference::same_bits;

struct Sizes {
  int64_t batch, heads_q, heads_kv, rows, keys, dim, dim_v;
};

struct Inputs {
  Tensor q, k, v;
  std::vector<int64_t> lengths;

  Inputs(const Sizes& s, DType type, uint64_t seed)
      : q(random_normal({s.batch, s.heads_q, s.rows, s.dim}, seed, 0).to(type)),
        k(random_normal({s.batch, s.heads_kv, s.keys, s.dim}, seed, 1).to(type)),
        v(random_normal({s.batch, s.heads_kv, s.keys, s.dim_v}, seed, 2).to(type)) {
    for (int64_t b = 0; b < s.batch; ++b) lengths.push_back(std::max<int64_t>(0, s.keys - 7 * b));
  }
};

// Scatters the sequences over pages in a shuffled order; slots that hold no token are NaN.
PagedKv paged(const Inputs& in, int64_t page_size, uint64_t seed) {
  const int64_t batch = in.k.dim(0), heads = in.k.dim(1), keys = in.k.dim(2);
  const int64_t each = (keys + page_size - 1) / page_size, pages = batch * each;
  std::vector<int32_t> order(static_cast<size_t>(pages)), lengths;
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  Rng rng(seed, 9);
  for (size_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[static_cast<size_t>(rng.next_below(static_cast<int64_t>(i)))]);
  PagedKv kv;
  kv.k = Tensor::empty({pages, heads, page_size, in.k.dim(3)}, in.k.dtype());
  kv.v = Tensor::empty({pages, heads, page_size, in.v.dim(3)}, in.v.dtype());
  std::memset(kv.k.raw(), 0xFF, static_cast<size_t>(kv.k.bytes()));
  std::memset(kv.v.raw(), 0xFF, static_cast<size_t>(kv.v.bytes()));
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t length = in.lengths[static_cast<size_t>(b)];
    lengths.push_back(static_cast<int32_t>(length));
    for (int64_t p = 0; p * page_size < length; ++p) {
      const int64_t begin = p * page_size, end = std::min(length, begin + page_size);
      const int64_t page = order[static_cast<size_t>(b * each + p)];
      kv.k.select(0, page).slice(1, 0, end - begin).copy_from(in.k.select(0, b).slice(1, begin, end));
      kv.v.select(0, page).slice(1, 0, end - begin).copy_from(in.v.select(0, b).slice(1, begin, end));
    }
  }
  kv.table = Tensor::from(order, {batch, each});
  kv.lengths = Tensor::from(lengths, {batch});
  return kv;
}

PagedKv whole(const Inputs& in, int64_t page_size) {
  PagedKv kv = PagedKv::of(in.k, in.v, page_size);
  for (size_t b = 0; b < in.lengths.size(); ++b)
    kv.lengths.at<int32_t>(static_cast<int64_t>(b)) = static_cast<int32_t>(in.lengths[b]);
  return kv;
}

using Selected = std::function<bool(int64_t b, int64_t h, int64_t i, int64_t j)>;

reference::Result expected(const Inputs& in, const AttentionParams& params = {},
                           const Selected& selected = {}) {
  reference::Problem p;
  p.q = in.q, p.k = in.k, p.v = in.v, p.scale = params.scale, p.softcap = params.softcap;
  const int64_t rows = in.q.dim(2);
  const auto position = [=](int64_t b, int64_t i) { return in.lengths[static_cast<size_t>(b)] - rows + i; };
  p.visible = [=](int64_t b, int64_t h, int64_t i, int64_t j) {
    const int64_t at = position(b, i), left = params.visible.window_left;
    if (j > at || (selected && !selected(b, h, i, j))) return false;
    if (params.mask &&
        params.mask.at<uint8_t>(params.mask.dim(0) == 1 ? 0 : b, params.mask.dim(1) == 1 ? 0 : h, i, j) == 0)
      return false;
    return left < 0 || j >= at - left || j < params.visible.prefix;
  };
  p.extra = [=](int64_t b, int64_t h, int64_t i, int64_t j) {
    double extra = 0;
    if (params.bias)
      extra += params.bias.at<float>(params.bias.dim(0) == 1 ? 0 : b, params.bias.dim(1) == 1 ? 0 : h, i, j);
    if (params.slopes)
      extra -=
          static_cast<double>(params.slopes.at<float>(h)) * static_cast<double>(std::abs(position(b, i) - j));
    return extra;
  };
  if (params.sink)
    for (int64_t h = 0; h < params.sink.dim(0); ++h) p.sink.push_back(params.sink.at<float>(h));
  return reference::attention(p);
}

void expect_close(const AttentionResult& got, const reference::Result& want, double tolerance) {
  EXPECT_LE(reference::relative_error(got.o, want.o), tolerance);
  EXPECT_LE(reference::relative_error(got.lse, want.lse), 1e-5);
}

double tolerance_of(DType type) { return type == DType::f32 ? 2e-6 : type == DType::f16 ? 6e-4 : 5e-3; }

class DecodeTest : public testing::Test {
 protected:
  void SetUp() override { memory::set_poison(true); }
  void TearDown() override {
    memory::set_poison(false);
    set_threads(0);
  }
};

TEST_F(DecodeTest, PagedCacheGivesExactAttentionForAllTypesSizesAndGroups) {
  const Sizes sizes[] = {{1, 1, 1, 1, 1, 1, 1},      {2, 3, 3, 1, 63, 64, 64},   {1, 9, 3, 1, 600, 64, 64},
                         {1, 4, 2, 2, 257, 128, 96}, {3, 4, 1, 16, 65, 33, 17},  {1, 4, 2, 1, 1100, 80, 128},
                         {1, 2, 1, 5, 3, 16, 16},    {1, 16, 1, 5, 130, 48, 100}};
  for (DType type : {DType::f32, DType::f16, DType::bf16})
    for (const Sizes& s : sizes) {
      const Inputs in(s, type, 11);
      const reference::Result want = expected(in);
      for (int64_t page : {1, 16, 37}) {
        SCOPED_TRACE(std::string(name_of(type)) + " keys " + std::to_string(s.keys) + " page " +
                     std::to_string(page));
        expect_close(kernels::decode(in.q, paged(in, page, 5)), want, tolerance_of(type));
      }
    }
}

TEST_F(DecodeTest, PageSizeAndLayoutDoNotChangeABit) {
  const Inputs in({2, 6, 2, 2, 1111, 64, 64}, DType::f16, 3);
  const AttentionResult first = kernels::decode(in.q, paged(in, 16, 1));
  for (const PagedKv& kv : {paged(in, 7, 2), paged(in, 256, 3), whole(in, 16), whole(in, 1000)}) {
    const AttentionResult other = kernels::decode(in.q, kv);
    EXPECT_TRUE(same_bits(first.o, other.o));
    EXPECT_TRUE(same_bits(first.lse, other.lse));
  }
}

TEST_F(DecodeTest, ThreadsAndBatchNeighboursDoNotChangeABit) {
  const Inputs in({3, 9, 3, 1, 5000, 64, 64}, DType::f32, 4);
  set_threads(1);
  const AttentionResult one = kernels::decode(in.q, paged(in, 16, 1));
  set_threads(2);
  const AttentionResult two = kernels::decode(in.q, paged(in, 16, 1));
  EXPECT_TRUE(same_bits(one.o, two.o));
  EXPECT_TRUE(same_bits(one.lse, two.lse));
  Inputs last = in;
  last.q = in.q.slice(0, 2, 3), last.k = in.k.slice(0, 2, 3), last.v = in.v.slice(0, 2, 3);
  last.lengths = {in.lengths[2]};
  const AttentionResult alone = kernels::decode(last.q, whole(last, 16));
  EXPECT_TRUE(same_bits(alone.o, two.o.slice(0, 2, 3).contiguous()));
}

TEST_F(DecodeTest, StridedViewsOfSequencesAreReadInPlace) {
  const Sizes s{2, 4, 2, 3, 130, 64, 32};
  Inputs in(s, DType::f32, 8);
  const Tensor wide_k = Tensor::empty({s.batch, s.keys, s.heads_kv, s.dim + 5});
  const Tensor wide_v = Tensor::empty({s.batch, s.keys, s.heads_kv, s.dim_v + 3});
  const Tensor wide_q = Tensor::empty({s.batch, s.rows, s.heads_q, s.dim + 1});
  const Tensor k = wide_k.transpose(1, 2).slice(3, 0, s.dim), v = wide_v.transpose(1, 2).slice(3, 0, s.dim_v);
  const Tensor q = wide_q.transpose(1, 2).slice(3, 0, s.dim);
  k.copy_from(in.k), v.copy_from(in.v), q.copy_from(in.q);
  const reference::Result want = expected(in);
  in.q = q, in.k = k, in.v = v;
  expect_close(kernels::decode(q, whole(in, 16)), want, 2e-6);
}

TEST_F(DecodeTest, SelectedPagesRestrictEachRowToItsOwn) {
  for (const Sizes& s :
       {Sizes{2, 6, 2, 3, 203, 32, 64}, Sizes{1, 40, 1, 2, 90, 32, 32}, Sizes{1, 2, 2, 1, 3000, 32, 48}})
    for (DType type : {DType::f32, DType::bf16}) {
      const int64_t page = 8, pages = (s.keys + page - 1) / page, chosen = std::min<int64_t>(pages, 9);
      const Inputs in(s, type, 21);
      const Tensor list = Tensor::empty({s.batch, s.heads_q, s.rows, chosen}, DType::i32);
      Rng rng(7);
      for (int64_t i = 0; i < list.size(); ++i)
        list.data<int32_t>()[i] = static_cast<int32_t>(rng.next_below(pages + 2)) - 2 < 0
                                      ? -1
                                      : static_cast<int32_t>(rng.next_below(pages));
      const auto selected = [=](int64_t b, int64_t h, int64_t i, int64_t j) {
        for (int64_t r = 0; r < chosen; ++r)
          if (list.at<int32_t>(b, h, i, r) == j / page) return true;
        return false;
      };
      const reference::Result want = expected(in, {}, selected);
      expect_close(kernels::decode(in.q, paged(in, page, 5), list), want, tolerance_of(type));
      set_threads(1);
      const AttentionResult one = kernels::decode(in.q, whole(in, page), list);
      set_threads(2);
      EXPECT_TRUE(same_bits(one.o, kernels::decode(in.q, paged(in, page, 5), list).o));
    }
}

TEST_F(DecodeTest, SelectingEveryPageIsReadingEverything) {
  const Inputs in({1, 6, 2, 2, 1000, 64, 64}, DType::f16, 3);
  const Tensor list = Tensor::empty({1, 6, 2, 63}, DType::i32);
  for (int64_t i = 0; i < list.size(); ++i) list.data<int32_t>()[i] = static_cast<int32_t>(62 - i % 63);
  const AttentionResult all = kernels::decode(in.q, paged(in, 16, 1));
  const AttentionResult listed = kernels::decode(in.q, paged(in, 16, 1), list);
  EXPECT_TRUE(same_bits(all.o, listed.o));
  EXPECT_TRUE(same_bits(all.lse, listed.lse));
}

TEST_F(DecodeTest, WindowPrefixSinkSoftcapSlopesBiasAndMaskApply) {
  const Inputs in({2, 6, 2, 2, 577, 16, 16}, DType::f32, 13);
  std::vector<AttentionParams> cases(8);
  cases[0].visible = {.window_left = 100};
  cases[1].visible = {.window_left = 100, .window_right = 5, .prefix = 4};
  cases[2].visible = {.window_left = 500, .prefix = 73};
  cases[3].sink = random_normal({6}, 1);
  cases[4].softcap = 2, cases[4].scale = 0.7f;
  cases[5].slopes = random_uniform({6}, 2);
  cases[6].bias = random_normal({1, 6, 2, 580}, 3), cases[6].softcap = 3;
  cases[7].mask = Tensor::empty({2, 1, 2, 577}, DType::u8);
  Rng rng(3);
  for (int64_t i = 0; i < cases[7].mask.size(); ++i)
    cases[7].mask.data<uint8_t>()[i] = static_cast<uint8_t>(rng.next_below(4) == 0);
  for (const AttentionParams& params : cases) {
    SCOPED_TRACE(&params - cases.data());
    expect_close(kernels::decode(in.q, paged(in, 16, 5), {}, params), expected(in, params), 3e-6);
  }
}

TEST_F(DecodeTest, RowsWithoutKeysAreZeroWithLseMinusInfinity) {
  Inputs in({3, 2, 1, 4, 9, 16, 16}, DType::f32, 13);
  in.lengths = {0, 2, 9};
  const AttentionResult got = kernels::decode(in.q, paged(in, 4, 5));
  expect_close(got, expected(in), 2e-6);
  EXPECT_EQ(got.lse.at<float>(0, 0, 3), -std::numeric_limits<float>::infinity());
  EXPECT_EQ(got.o.at<float>(1, 0, 1, 3), 0.0f);
  AttentionParams params;
  params.sink = Tensor::full({2}, 0.25f);
  const AttentionResult sunk = kernels::decode(in.q, paged(in, 4, 5), {}, params);
  EXPECT_EQ(sunk.lse.at<float>(0, 1, 0), 0.25f);
  EXPECT_EQ(sunk.o.at<float>(0, 1, 0, 0), 0.0f);
}

TEST_F(DecodeTest, EmptyBatchesRowsAndValuesWork) {
  for (const Sizes& s :
       {Sizes{0, 2, 1, 1, 5, 16, 16}, Sizes{1, 2, 1, 0, 5, 16, 16}, Sizes{1, 2, 1, 1, 5, 16, 0},
        Sizes{1, 2, 1, 2, 0, 16, 16}, Sizes{1, 0, 0, 2, 5, 16, 16}}) {
    const Inputs in(s, DType::f32, 1);
    EXPECT_EQ(kernels::decode(in.q, whole(in, 4)).o.shape(), Shape({s.batch, s.heads_q, s.rows, s.dim_v}));
  }
}

TEST_F(DecodeTest, NaNReachesOnlyTheRowsThatSeeIt) {
  Inputs in({1, 2, 1, 2, 100, 32, 32}, DType::f32, 13);
  in.v.at<float>(0, 0, 99, 3) = std::nanf("");
  const AttentionResult got = kernels::decode(in.q, paged(in, 16, 5));
  EXPECT_FALSE(std::isnan(got.o.at<float>(0, 0, 0, 3)));
  EXPECT_TRUE(std::isnan(got.o.at<float>(0, 0, 1, 3)));
  in.v.at<float>(0, 0, 99, 3) = 1;
  in.k.at<float>(0, 0, 99, 0) = std::nanf("");
  const AttentionResult keys = kernels::decode(in.q, paged(in, 16, 5));
  EXPECT_FALSE(std::isnan(keys.lse.at<float>(0, 1, 0)));
  EXPECT_TRUE(std::isnan(keys.lse.at<float>(0, 1, 1)));
}

TEST_F(DecodeTest, LargeScoresStayFinite) {
  Inputs in({1, 2, 1, 1, 600, 64, 64}, DType::f32, 13);
  AttentionParams params;
  params.scale = 1000;
  expect_close(kernels::decode(in.q, paged(in, 16, 5), {}, params), expected(in, params), 2e-3);
}

void expect_refused(const std::function<void()>& call, const std::string& part) {
  try {
    call();
    ADD_FAILURE() << "accepted; expected a message with: " << part;
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST_F(DecodeTest, RefusesWhatDoesNotFitAndSaysWhy) {
  const Inputs in({1, 4, 2, 1, 40, 16, 16}, DType::f32, 13);
  PagedKv kv = paged(in, 16, 5);
  expect_refused([&] { kernels::decode(in.q.to(DType::f16), kv); }, "k is f32, q is f16");
  expect_refused([&] { kernels::decode(in.q.slice(1, 0, 3), kv); }, "not a multiple");
  expect_refused([&] { kernels::decode(in.q.slice(3, 0, 8), kv); }, "do not fit together");
  AttentionParams params;
  params.bias_q = Tensor::zeros({1, 4, 1, 2});
  expect_refused([&] { kernels::decode(in.q, kv, {}, params); }, "bias_q");
  params = {};
  params.mask = Tensor::empty({1, 1, 1, 39}, DType::u8);
  expect_refused([&] { kernels::decode(in.q, kv, {}, params); }, "mask");
  expect_refused(
      [&] {
        kernels::decode(in.q, kv, Tensor::from(std::vector<int32_t>(4, 3), {1, 4, 1, 1}));
      },
      "outside -1..2");
  kv.table.at<int32_t>(0, 1) = 3;
  expect_refused([&] { kernels::decode(in.q, kv); }, "table[0,1] = 3");
  kv = paged(in, 16, 5);
  kv.lengths.at<int32_t>(0) = 49;
  expect_refused([&] { kernels::decode(in.q, kv); }, "lengths[0] = 49");
  expect_refused([&] { PagedKv::of(in.k, in.v, 0); }, "page_size");
}

}  // namespace
}  // namespace fovea

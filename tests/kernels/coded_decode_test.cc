// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
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
using kernels::CodedKv;
using kernels::PagedKv;
using reference::same_bits;

struct Sizes {
  int64_t heads_q, heads_kv, rows, keys, dim, dim_v;
};

struct Inputs {
  Tensor q, k, v;
  explicit Inputs(const Sizes& s)
      : q(random_normal({1, s.heads_q, s.rows, s.dim}, 5, 0)),
        k(random_normal({1, s.heads_kv, s.keys, s.dim}, 5, 1)),
        v(random_normal({1, s.heads_kv, s.keys, s.dim_v}, 5, 2)) {}

  // Codes that are the rows themselves.
  CodedKv coded(int64_t heads_together) const {
    CodedKv kv{.heads = k.dim(1), .dim = k.dim(3), .dim_v = v.dim(3), .length = k.dim(2)};
    kv.heads_together = heads_together;
    kv.read = [*this, heads_together](int64_t head, int64_t token, int64_t count, float* to_k, float* to_v) {
      for (int64_t j = token; j < token + count; ++j)
        for (int64_t h = head; h < head + heads_together; ++h) {
          to_k = std::copy_n(k.data<float>() + (h * k.dim(2) + j) * k.dim(3), k.dim(3), to_k);
          to_v = std::copy_n(v.data<float>() + (h * v.dim(2) + j) * v.dim(3), v.dim(3), to_v);
        }
    };
    return kv;
  }
};

void expect_same(const AttentionResult& a, const AttentionResult& b) {
  EXPECT_TRUE(same_bits(a.o, b.o));
  EXPECT_TRUE(same_bits(a.lse, b.lse));
}

// Copied rows are walked in shorter chunks, so sums are rounded in another order.
void expect_close(const AttentionResult& a, const AttentionResult& b) {
  EXPECT_LT(reference::relative_error(a.o, b.o), 1e-6);
  EXPECT_LT(reference::relative_error(a.lse, b.lse), 1e-6);
}

class CodedDecode : public testing::Test {
 protected:
  void SetUp() override { memory::set_poison(true); }
  void TearDown() override {
    memory::set_poison(false);
    set_threads(0);
  }
};

TEST_F(CodedDecode, EqualsDecodeOverTheRows) {
  for (const Sizes& s : {Sizes{1, 1, 1, 1, 1, 1}, Sizes{6, 2, 1, 700, 64, 64}, Sizes{4, 4, 3, 257, 63, 100},
                         Sizes{8, 4, 2, 1111, 16, 8}, Sizes{2, 2, 1, 65, 100, 1}, Sizes{4, 2, 1, 0, 8, 8}}) {
    SCOPED_TRACE("keys " + std::to_string(s.keys) + " dim " + std::to_string(s.dim));
    const Inputs in(s);
    const AttentionResult want = kernels::decode(in.q, PagedKv::of(in.k, in.v, 64));
    expect_close(kernels::decode(in.q, in.coded(1)), want);
    expect_close(kernels::decode(in.q, in.coded(s.heads_kv)), want);
  }
}

TEST_F(CodedDecode, ThreadsDoNotChangeABit) {
  const Inputs in({8, 4, 1, 5000, 64, 64});
  for (int64_t together : {1, 2, 4}) {
    set_threads(1);
    const AttentionResult one = kernels::decode(in.q, in.coded(together));
    set_threads(2);
    expect_same(kernels::decode(in.q, in.coded(together)), one);
  }
}

TEST_F(CodedDecode, SelectedPagesAreThoseOfTheRows) {
  const Inputs in({8, 4, 1, 1000, 32, 48});
  const Tensor pages = Tensor::empty({1, 8, 1, 20}, DType::i32);
  Rng rng(3);
  for (int64_t i = 0; i < pages.size(); ++i)
    pages.data<int32_t>()[i] = static_cast<int32_t>(rng.next_below(101)) - 1;
  const AttentionResult want = kernels::decode(in.q, PagedKv::of(in.k, in.v, 10), pages);
  const AttentionResult got = kernels::decode(in.q, in.coded(1), pages, 10);
  expect_close(got, want);
  // Heads that are read together share the pages of all of them: sums are taken in another order.
  EXPECT_LE(reference::relative_error(kernels::decode(in.q, in.coded(4), pages, 10).o, want.o), 2e-6);
}

TEST_F(CodedDecode, WindowSinkSlopesAndMaskApplyToHeadsReadTogether) {
  const Inputs in({6, 3, 2, 300, 16, 16});
  std::vector<AttentionParams> cases(4);
  cases[0].visible = {.window_left = 50, .prefix = 4};
  cases[1].sink = random_normal({6}, 1);
  cases[2].slopes = random_uniform({6}, 2);
  cases[3].mask = Tensor::empty({1, 6, 2, 300}, DType::u8);
  Rng rng(4);
  for (int64_t i = 0; i < cases[3].mask.size(); ++i)
    cases[3].mask.data<uint8_t>()[i] = static_cast<uint8_t>(rng.next_below(3) == 0);
  for (const AttentionParams& params : cases) {
    SCOPED_TRACE(&params - cases.data());
    expect_close(kernels::decode(in.q, in.coded(3), {}, 0, params),
                 kernels::decode(in.q, PagedKv::of(in.k, in.v, 16), {}, params));
  }
}

void expect_refused(const std::function<void()>& call, const std::string& part) {
  try {
    call();
    ADD_FAILURE() << "accepted; expected a message with: " << part;
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST_F(CodedDecode, RefusesWhatDoesNotFit) {
  const Inputs in({4, 2, 1, 40, 16, 16});
  expect_refused([&] { kernels::decode(in.q.to(DType::f16), in.coded(1)); }, "q is f16");
  expect_refused([&] { kernels::decode(in.q.slice(1, 0, 3), in.coded(1)); }, "not a multiple");
  expect_refused([&] { kernels::decode(in.q.slice(3, 0, 8), in.coded(1)); }, "f32[1,Hq,Tq,16]");
  CodedKv kv = in.coded(1);
  kv.heads_together = 3;
  expect_refused([&] { kernels::decode(in.q, kv); }, "3 at a time");
  kv = in.coded(1);
  kv.read = nullptr;
  expect_refused([&] { kernels::decode(in.q, kv); }, "cannot be read");
  kv = in.coded(1);
  kv.rows_k.resize(2);
  expect_refused([&] { kernels::decode(in.q, kv); }, "2 keys and 0 values in rows of codes");
  kv.rows_v.resize(2);
  expect_refused([&] { kernels::decode(in.q, kv); }, "do not hold 16 and 16 channels");
  expect_refused(
      [&] {
        kernels::decode(in.q, in.coded(1), Tensor::zeros({1, 4, 1, 1}, DType::i32));
      },
      "page_size = 0");
}

// ---- flash_forward takes this path for a few rows over many keys

TEST_F(CodedDecode, AFewRowsOverManyKeysEqualTheReferenceWithEveryVisibility) {
  const Inputs in({6, 2, 3, 600, 32, 24});
  for (const auto& visible :
       {kernels::Visibility::all(), kernels::Visibility::causal(), kernels::Visibility{.window_right = 0},
        kernels::Visibility{.window_left = 100, .window_right = 1},
        kernels::Visibility{.window_left = 100, .window_right = -1, .prefix = 7}}) {
    SCOPED_TRACE(std::to_string(visible.window_left) + " " + std::to_string(visible.window_right));
    reference::Problem problem;
    problem.q = in.q, problem.k = in.k, problem.v = in.v;
    problem.visible = [&](int64_t, int64_t, int64_t i, int64_t j) {
      const int64_t p = i + 600 - 3;
      return (visible.window_right < 0 || j <= p + visible.window_right) &&
             (visible.window_left < 0 || j >= p - visible.window_left || j < visible.prefix);
    };
    const AttentionResult got = kernels::flash_forward(in.q, in.k, in.v, {.visible = visible});
    const reference::Result want = reference::attention(problem);
    EXPECT_LE(reference::relative_error(got.o, want.o), 2e-6);
    EXPECT_LE(reference::relative_error(got.lse, want.lse), 1e-5);
  }
}

TEST_F(CodedDecode, AFewRowsOverManyKeysDoNotDependOnThreadsOrNeighbours) {
  for (DType type : {DType::f32, DType::bf16}) {
    const Tensor q = random_normal({3, 6, 1, 64}, 1).to(type),
                 k = random_normal({3, 2, 3000, 64}, 2).to(type),
                 v = random_normal({3, 2, 3000, 64}, 3).to(type);
    set_threads(1);
    const AttentionResult one = kernels::flash_forward(q, k, v);
    set_threads(2);
    expect_same(kernels::flash_forward(q, k, v), one);
    const auto row = [](const Tensor& x) { return x.slice(0, 1, 2); };
    const AttentionResult alone = kernels::flash_forward(row(q), row(k), row(v));
    EXPECT_TRUE(same_bits(alone.o, row(one.o).contiguous()));
  }
}

}  // namespace
}  // namespace fovea
